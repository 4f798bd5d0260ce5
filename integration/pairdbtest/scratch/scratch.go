// Package scratch makes what tests in containers need on a machine that can't pull images: images of the built
// binaries, of a NATS server and of a program that pauses, FROM scratch. It never starts a container.
package scratch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/pairdb/pairdb/integration/pairdbtest"
	"github.com/pairdb/pairdb/integration/podtest"
)

// ErrNoDocker says that no Docker engine answers.
var ErrNoDocker = errors.New("no Docker engine answers: tests in containers need one")

const (
	pingLimit = 10 * time.Second
	// buildLimit covers the compiler's first look at NATS, on a busy machine.
	buildLimit = 5 * time.Minute
)

// Main runs the tests of a package whose tests may call Images, and returns the exit code for os.Exit. It
// fails when a test has left something in Docker, and removes the images.
func Main(m *testing.M) int {
	code := m.Run()
	if _, err := built(false); err != nil {
		return code // no image, no container
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	left, err := pairdbtest.Left(ctx)
	if err := errors.Join(err, pairdbtest.RemoveImages(ctx)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	for _, name := range left {
		fmt.Fprintln(os.Stderr, "the tests have left", name)
		code = max(code, 1)
	}
	return code
}

// Images returns the images, which are built when a test asks for the first time. Without Docker the test is
// skipped, or fails where CI=true.
func Images(t testing.TB) pairdbtest.Images {
	t.Helper()
	i, err := Build()
	if errors.Is(err, ErrNoDocker) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// Build is Images for what runs without a test.
func Build() (pairdbtest.Images, error) { return built(true) }

var errNotBuilt = errors.New("no images were asked for")

// built returns the images, and builds them before that if it is told to.
var built = func() func(bool) (pairdbtest.Images, error) {
	var mu sync.Mutex
	var images pairdbtest.Images
	err := errNotBuilt
	return func(now bool) (pairdbtest.Images, error) {
		mu.Lock()
		defer mu.Unlock()
		if now && errors.Is(err, errNotBuilt) {
			images, err = build()
		}
		return images, err
	}
}()

func build() (pairdbtest.Images, error) {
	ctx, cancel := context.WithTimeout(context.Background(), buildLimit)
	defer cancel()
	if err := prepare(ctx); err != nil {
		return pairdbtest.Images{}, err
	}
	if _, err := pairdbtest.Sweep(ctx); err != nil {
		return pairdbtest.Images{}, err
	}
	bin, err := podtest.FindBinaries()
	if err != nil {
		return pairdbtest.Images{}, err
	}
	programs, err := os.MkdirTemp("", "programs")
	if err != nil {
		return pairdbtest.Images{}, err
	}
	defer os.RemoveAll(programs)
	for _, pkg := range []string{"github.com/nats-io/nats-server/v2", "github.com/pairdb/pairdb/integration/pairdbtest/pause"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", programs+"/", pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return pairdbtest.Images{}, fmt.Errorf("compile %s: %w\n%s", pkg, err, out)
		}
	}
	return pairdbtest.Build(ctx, pairdbtest.Programs{
		Dir: bin, NATS: filepath.Join(programs, "nats-server"), Pause: filepath.Join(programs, "pause"),
	})
}

// prepare looks for Docker, and tells testcontainers-go before its first use what it can't do without the
// image of its reaper: Left and the sweep of the next run do the reaper's work then, and nobody looks for
// Docker's ports anywhere but on the loopback address.
func prepare(ctx context.Context) error {
	ping, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	docker, err := client.New(client.FromEnv)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoDocker, err)
	}
	defer docker.Close()
	if _, err := docker.Ping(ping, client.PingOptions{NegotiateAPIVersion: true}); err != nil {
		return fmt.Errorf("%w: %w", ErrNoDocker, err)
	}
	reapers, err := docker.ImageList(ctx, client.ImageListOptions{Filters: client.Filters{}.Add("reference", "testcontainers/ryuk")})
	if err != nil || len(reapers.Items) > 0 {
		return err
	}
	return errors.Join(os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"), os.Setenv("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1"))
}
