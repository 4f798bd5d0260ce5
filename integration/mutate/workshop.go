package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// programs are what black-box tests run, of the module services.
var programs = []string{"./storage-node", "./compactor", "./migrator", "./health-agent", "./pairctl"}

const (
	// testTimeout is for one run of the tests of a mutation; they take seconds on an idle machine.
	testTimeout = 4 * time.Minute
	// killAfter gives a test binary time to say by itself where it hangs.
	killAfter = 30 * time.Second
	// maxFiles bounds the copy: the tree has a tenth of that.
	maxFiles = 20_000
)

// workshop is a private copy of the tree in which one mutation at a time is made.
type workshop struct {
	root, tmp string
	sound     map[string]error // package and tests: how they end without a mutation
}

// verdict is what the tests said of a mutation.
type verdict struct {
	caught bool
	by     string
	took   time.Duration
}

// try makes a mutation, runs its tests, and takes it back.
func (w *workshop) try(ctx context.Context, m mutation) (verdict, error) {
	file := filepath.Join(w.root, m.file)
	source, err := os.ReadFile(file)
	if err != nil {
		return verdict{}, err
	}
	mutated, err := m.apply(string(source))
	if err != nil {
		return verdict{}, err
	}
	if err := w.soundness(ctx, m); err != nil {
		return verdict{}, fmt.Errorf("without the mutation: %w", err)
	}
	if err := os.WriteFile(file, []byte(mutated), 0o600); err != nil {
		return verdict{}, err
	}
	defer func() { _ = os.WriteFile(file, source, 0o600) }() // what is not taken back does not apply again
	return w.test(ctx, m)
}

// apply returns the source with all replacements of the mutation.
func (m mutation) apply(source string) (string, error) {
	for _, s := range m.swaps {
		if n := strings.Count(source, s.old); n != 1 {
			return "", fmt.Errorf("it does not apply: %d times in %s, not once: %q", n, m.file, s.old)
		}
		source = strings.Replace(source, s.old, s.new, 1)
	}
	return source, nil
}

// soundness reports whether the tests of a mutation pass on the tree as it is.
func (w *workshop) soundness(ctx context.Context, m mutation) error {
	key := m.pkg + " " + m.run + "/" + m.part
	if err, known := w.sound[key]; known {
		return err
	}
	v, err := w.test(ctx, m)
	if err == nil && v.caught {
		err = fmt.Errorf("%s fails: %s", m.run, v.by)
	}
	w.sound[key] = err
	return err
}

// test compiles the tests of a mutation's package and runs those that are named.
func (w *workshop) test(ctx context.Context, m mutation) (verdict, error) {
	binary := filepath.Join(w.tmp, "mutated.test")
	module, pkg := split(m.pkg)
	if m.built {
		if err := w.build(ctx); err != nil {
			return verdict{}, err
		}
	}
	// -trimpath: the build cache serves this copy as it served the last one.
	build := command(ctx, filepath.Join(w.root, module), "go", "test", "-c", "-trimpath", "-o", binary, "./"+pkg)
	if out, err := build.CombinedOutput(); err != nil {
		return verdict{}, fmt.Errorf("it does not compile: %w\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(ctx, testTimeout+killAfter)
	defer cancel()
	// -test.short is not given: the campaigns run in the form that `make test` runs.
	test := command(ctx, filepath.Join(w.root, m.pkg), binary, "-test.run", m.pattern(), "-test.count=1",
		"-test.timeout", testTimeout.String(), "-test.v")
	start := time.Now()
	out, err := test.CombinedOutput()
	v := verdict{took: time.Since(start)}
	var exit *exec.ExitError
	switch {
	case err == nil && !bytes.Contains(out, []byte(m.passes())):
		return v, fmt.Errorf("no test matches %q in %s", m.pattern(), m.pkg)
	case err == nil:
		return v, nil
	case !errors.As(err, &exit):
		return v, err
	}
	v.by, v.caught = noticed(string(out))
	if !v.caught {
		return v, fmt.Errorf("the tests ended with %w and named no failure:\n%s", err, tail(out))
	}
	return v, nil
}

// pattern is what `go test -run` takes; between slashes stand the levels of subtests.
func (m mutation) pattern() string {
	if m.part == "" {
		return "^(" + m.run + ")$"
	}
	return "^(" + m.run + ")$/^" + m.part + "$"
}

// passes is what stands in the output when the tests of a mutation ran and passed.
func (m mutation) passes() string {
	if m.part == "" {
		return "--- PASS: "
	}
	return "--- PASS: " + m.run + "/" + m.part + " "
}

// build links the programs, as they are now, where black-box tests look for them.
func (w *workshop) build(ctx context.Context) error {
	args := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(w.root, "bin") + "/"}, programs...)
	if out, err := command(ctx, filepath.Join(w.root, "services"), "go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("it does not compile: %w\n%s", err, out)
	}
	return nil
}

var (
	failed  = regexp.MustCompile(`(?m)^--- FAIL: (\w+)`)
	started = regexp.MustCompile(`(?m)^=== RUN +(\w+)$`)
	hung    = regexp.MustCompile(`(?m)^panic: test timed out after`)
	crashed = regexp.MustCompile(`(?m)^(?:panic|fatal error): (.*)$`)
)

// noticed says which test failed and how: an assertion, a panic, or the time limit.
func noticed(out string) (by string, ok bool) {
	var tests []string
	for _, match := range failed.FindAllStringSubmatch(out, -1) {
		if !slices.Contains(tests, match[1]) {
			tests = append(tests, match[1])
		}
	}
	how := ""
	if hung.MatchString(out) {
		how = " (time limit)"
	} else if match := crashed.FindStringSubmatch(out); match != nil {
		how = fmt.Sprintf(" (panic: %.40s)", match[1])
	}
	if len(tests) == 0 && how != "" {
		if all := started.FindAllStringSubmatch(out, -1); len(all) > 0 {
			tests = []string{all[len(all)-1][1]}
		}
	}
	return strings.Join(tests, ", ") + how, len(tests) > 0
}

func tail(out []byte) []byte { return out[max(0, len(out)-2000):] }

// split cuts the path of a package into its module and the rest.
func split(pkg string) (module, rest string) {
	module, rest, _ = strings.Cut(pkg, "/")
	return module, rest
}

func command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false")
	cmd.WaitDelay = killAfter
	return cmd
}

func gitRoot(ctx context.Context) (string, error) {
	out, err := command(ctx, ".", "git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return "", fmt.Errorf("find the tree: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// copyTree copies a commit, or what git knows or would take of the working tree.
func copyTree(ctx context.Context, from, rev, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	if rev != "" {
		archive := filepath.Join(filepath.Dir(to), "tree.tar")
		if out, err := command(ctx, from, "git", "archive", "-o", archive, rev).CombinedOutput(); err != nil {
			return fmt.Errorf("git archive: %w: %s", err, out)
		}
		return command(ctx, to, "tar", "-xf", archive).Run()
	}
	out, err := command(ctx, from, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	names := strings.Split(strings.TrimRight(string(out), "\x00"), "\x00")
	if len(names) > maxFiles {
		return fmt.Errorf("%d files, at most %d", len(names), maxFiles)
	}
	for _, name := range names {
		err := copyFile(filepath.Join(from, name), filepath.Join(to, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) { // removed, not committed
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // read only
	info, err := src.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm()|0o200)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
