// Package podtest starts local pods of the built binaries for black-box tests. It never imports a
// service.
package podtest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
)

// Binaries returns the directory of the built binaries, or fails the test: without them nothing is
// tested.
func Binaries(t testing.TB) string {
	t.Helper()
	dir, err := FindBinaries()
	require.NoError(t, err)
	return dir
}

// FindBinaries returns the directory of the built binaries, for what runs before the tests.
func FindBinaries() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir != "/" {
		bin := filepath.Join(dir, "bin")
		if _, err := os.Stat(filepath.Join(bin, "storage-node")); err == nil {
			return bin, nil
		}
		dir = filepath.Dir(dir)
	}
	return "", errors.New("bin/storage-node is missing: run make build first")
}

// Log keeps the output of the processes and shows it when the test fails.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// String returns what was written.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// logTail is how much of the log a failed test shows.
const logTail = 16 << 10

// Start starts pods, waits until they are ready and stops them when the test ends.
func Start(t testing.TB, o localpod.Options) (*localpod.Pods, *Log) {
	t.Helper()
	log := &Log{}
	o.Binaries = Binaries(t)
	o.Log = log
	if o.Dir == "" {
		// t.TempDir can be longer than the address of a unix socket.
		dir, err := os.MkdirTemp("", "pod")
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
		o.Dir = dir
	}
	pods, err := localpod.Start(o)
	require.NoError(t, err)
	t.Cleanup(func() {
		pods.Stop()
		if t.Failed() {
			text := log.String()
			t.Logf("end of the log:\n%s", text[max(0, len(text)-logTail):])
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	require.NoError(t, pods.Ready(ctx))
	return pods, log
}

// Client returns a client of a pod; it is closed when the test ends.
func Client(t testing.TB, addr string, o client.Options) *client.Client {
	t.Helper()
	c, err := client.New(addr, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// Eventually waits for a condition, asking often; it fails the test after limit.
func Eventually(t testing.TB, limit time.Duration, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// File returns the last file of a pattern below dir.
func File(t testing.TB, dir, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	require.NoError(t, err)
	require.NotEmpty(t, names, "%s in %s", pattern, dir)
	return names[len(names)-1]
}

// Flip changes one bit of a file, as a disk that rots does.
func Flip(t testing.TB, name string, offset int) {
	t.Helper()
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Greater(t, len(b), offset)
	b[offset] ^= 0x10
	require.NoError(t, os.Chmod(name, 0o660))
	require.NoError(t, os.WriteFile(name, b, 0o660))
}
