package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	"github.com/pairdb/pairdb/libs/vfs"
)

type testConfig struct {
	service.LogConfig
	DataDir  string        `envconfig:"PAIRDB_DATA_DIR" default:"/var/lib/pairdb" unit:"directory" desc:"Where data lives."`
	Memtable service.Bytes `envconfig:"PAIRDB_MEMTABLE_BYTES" default:"64MiB" unit:"bytes" desc:"Size of a memtable."`
	GCGrace  time.Duration `envconfig:"PAIRDB_GC_GRACE" default:"240h" unit:"duration" desc:"Grace of tombstones."`
	UIDs     []int         `envconfig:"PAIRDB_SOCKET_UIDS" optional:"true" unit:"list" desc:"Who may call."`
}

func (c *testConfig) Validate() error {
	var p service.Problems
	c.Check(&p)
	p.Bytes("PAIRDB_MEMTABLE_BYTES", c.Memtable, 1<<20, 1<<30)
	p.Duration("PAIRDB_GC_GRACE", c.GCGrace, time.Minute, 1000*time.Hour)
	return p.Err()
}

// program runs a program in this process and returns its exit code and outputs.
func program(t *testing.T, run func(context.Context, *service.Runtime) error, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	p := &service.Program{
		Name: "demo", Summary: "shows how.", Config: &testConfig{}, Run: run, Stdout: &out, Stderr: &errs,
		Commands: []service.Command{{Name: "check", Summary: "checks", Run: func(_ context.Context, args []string, w, _ io.Writer) error {
			fmt.Fprint(w, args)
			if len(args) > 1 {
				return service.WithExitCode(service.ExitCorrupt, errors.New("bad file"))
			}
			return nil
		}}},
	}
	code = p.Main(context.Background(), args)
	return code, out.String(), errs.String()
}

// A typing error in a key must not silently leave the default in place.
func TestUnknownConfigurationKeyIsRefusedWithTheNearestName(t *testing.T) {
	servicetest.ClearEnvironment(t)
	t.Setenv("PAIRDB_MEMTABLE_BYTE", "1")
	t.Setenv("PAIRDB_STORAGE_SERVICE_HOST", "10.0.0.1")
	code, _, stderr := program(t, nil)
	require.Equal(t, service.ExitUsage, code)
	require.Contains(t, stderr, "PAIRDB_MEMTABLE_BYTE: unknown key; the nearest known one is PAIRDB_MEMTABLE_BYTES")
	require.Contains(t, stderr, "enableServiceLinks: false")
}

// Containers of a pod share an environment: the key of a neighbour is no error.
func TestKeyOfAnotherBinaryIsAccepted(t *testing.T) {
	servicetest.ClearEnvironment(t)
	t.Setenv("PAIRDB_COMPACTOR_SLOTS", "4")
	code, _, stderr := program(t, func(context.Context, *service.Runtime) error { return nil })
	require.Equal(t, service.ExitOK, code, stderr)
}

// A value that cannot be read, or is empty, must not become 0.
func TestBadValuesAreRefused(t *testing.T) {
	for _, c := range []struct{ key, value, message string }{
		{"PAIRDB_MEMTABLE_BYTES", "", `PAIRDB_MEMTABLE_BYTES=""`},
		{"PAIRDB_MEMTABLE_BYTES", "64 megs", "is not a size"},
		{"PAIRDB_MEMTABLE_BYTES", "9999999999GiB", "is not a size"},
		{"PAIRDB_MEMTABLE_BYTES", "0", "PAIRDB_MEMTABLE_BYTES: 0 is outside of 1MiB to 1GiB"},
		{"PAIRDB_GC_GRACE", "10", "missing unit in duration"},
		{"PAIRDB_GC_GRACE", "1s", "outside of 1m0s to 1000h0m0s"},
		{"PAIRDB_LOG_LEVEL", "loud", `"loud" is none of debug, info, warn, error`},
		{"PAIRDB_SOCKET_UIDS", "root", "invalid syntax"},
	} {
		t.Run(c.key+"="+c.value, func(t *testing.T) {
			servicetest.ClearEnvironment(t)
			t.Setenv(c.key, c.value)
			code, _, stderr := program(t, nil)
			require.Equal(t, service.ExitUsage, code)
			require.Contains(t, stderr, c.message)
		})
	}
}

// What --print-config prints must be what runs: feed it back and it prints the same.
func TestPrintedConfigurationLoadsAgain(t *testing.T) {
	servicetest.ClearEnvironment(t)
	t.Setenv("PAIRDB_SOCKET_UIDS", "1001,1002")
	t.Setenv("PAIRDB_DATA_DIR", "/tmp/with space")
	code, first, stderr := program(t, nil, "--print-config")
	require.Zero(t, code, stderr)
	require.Contains(t, first, "PAIRDB_MEMTABLE_BYTES=64MiB\n")
	require.Contains(t, first, "PAIRDB_SOCKET_UIDS=1001,1002\n")
	require.Contains(t, first, "PAIRDB_DATA_DIR='/tmp/with space'\n")
	for line := range strings.Lines(first) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && strings.HasPrefix(key, service.Prefix) {
			t.Setenv(key, strings.Trim(value, "'"))
		}
	}
	_, second, _ := program(t, nil, "--print-config")
	require.Equal(t, first, second)
}

func TestHelpVersionAndCommands(t *testing.T) {
	servicetest.ClearEnvironment(t)
	code, out, _ := program(t, nil, "--help")
	require.Zero(t, code)
	for _, want := range []string{"demo check", "PAIRDB_DATA_DIR", "Exit codes:", "the data directory is in use"} {
		require.Contains(t, out, want)
	}
	code, out, _ = program(t, nil, "--version")
	require.Zero(t, code)
	require.Contains(t, out, "demo "+service.Version)
	code, out, _ = program(t, nil, "check", "dir")
	require.Zero(t, code)
	require.Equal(t, "[dir]", out)
	code, _, stderr := program(t, nil, "check", "dir", "x")
	require.Equal(t, service.ExitCorrupt, code)
	require.Equal(t, "demo: bad file\n", stderr)
	code, _, stderr = program(t, nil, "--print-confg")
	require.Equal(t, service.ExitUsage, code)
	require.Contains(t, stderr, "nearest known one is --print-config")
}

// Scripts and restart policies act on the code.
func TestExitCodeOfErrors(t *testing.T) {
	servicetest.ClearEnvironment(t)
	for _, c := range []struct {
		err  error
		code int
	}{
		{nil, service.ExitOK},
		{errors.New("x"), service.ExitRuntime},
		{fmt.Errorf("open: %w", vfs.ErrLocked), service.ExitLocked},
		{fmt.Errorf("open: %w", vfs.ErrNoSpace), service.ExitDisk},
		{fmt.Errorf("open: %w", fs.ErrPermission), service.ExitDisk},
		{fmt.Errorf("open: %w", syscall.EROFS), service.ExitDisk},
		{errors.Join(errors.New("x"), service.WithExitCode(service.ExitCorrupt, errors.New("y"))), service.ExitCorrupt},
		{service.WithExitCode(service.ExitRuntime, service.WithExitCode(service.ExitLocked, errors.New("z"))), service.ExitLocked},
	} {
		code, _, stderr := program(t, func(context.Context, *service.Runtime) error { return c.err })
		require.Equal(t, c.code, code, "%v", c.err)
		if c.err != nil {
			require.Contains(t, stderr, fmt.Sprintf(`"exit_code":%d`, c.code))
		}
	}
	require.NoError(t, service.WithExitCode(3, nil))
}

// A signal is a request to stop cleanly, not a failure.
func TestSignalEndsTheContext(t *testing.T) {
	servicetest.ClearEnvironment(t)
	code, _, stderr := program(t, func(ctx context.Context, _ *service.Runtime) error {
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
	require.Equal(t, service.ExitOK, code, stderr)
}

func TestKeysAreSortedAndDistinct(t *testing.T) {
	sorted := slices.Compact(slices.Sorted(slices.Values(service.Keys)))
	require.Equal(t, sorted, service.Keys)
}

// A field without a decision about its default would start as 0.
func TestFieldWithoutDefaultIsAnErrorOfTheProgrammer(t *testing.T) {
	_, err := service.Fields(&struct {
		N int `envconfig:"PAIRDB_COMPACTOR_SLOTS" unit:"count" desc:"Slots."`
	}{})
	require.ErrorContains(t, err, "one of default, required, optional")
	_, err = service.Fields(testConfig{})
	require.ErrorContains(t, err, "pointer to a struct expected")
}

func TestSizesAreReadAndPrinted(t *testing.T) {
	for text, want := range map[string]service.Bytes{
		"0": 0, "17": 17, "17B": 17, "64MiB": 64 << 20, " 2 GiB ": 2 << 30, "1TiB": 1 << 40, "1500KiB": 1500 << 10,
	} {
		var b service.Bytes
		require.NoError(t, b.UnmarshalText([]byte(text)))
		require.Equal(t, want, b)
		var again service.Bytes
		require.NoError(t, again.UnmarshalText([]byte(b.String())))
		require.Equal(t, b, again)
	}
	for _, text := range []string{"", "-1", "1.5GiB", "GiB", "9223372036854775808", "8388608TiB", "1MB"} {
		require.Error(t, new(service.Bytes).UnmarshalText([]byte(text)), text)
	}
}

func TestExitCodeReferenceIsCurrent(t *testing.T) {
	servicetest.Section(t, "docs/CONFIGURATION.md", "exit codes", service.ExitCodeReference())
}

func TestSpliceSectionKeepsTheOthers(t *testing.T) {
	page, err := service.SpliceSection("# Title\n", "a", "one")
	require.NoError(t, err)
	page, err = service.SpliceSection(page, "b", "two")
	require.NoError(t, err)
	page, err = service.SpliceSection(page, "a", "three")
	require.NoError(t, err)
	require.Equal(t, "# Title\n\n<!-- begin a -->\n\nthree\n\n<!-- end a -->\n\n<!-- begin b -->\n\ntwo\n\n<!-- end b -->\n", page)
	_, err = service.SpliceSection("<!-- begin a -->\n", "a", "x")
	require.Error(t, err)
}
