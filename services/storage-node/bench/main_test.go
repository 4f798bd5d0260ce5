package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// asProgram makes the test's binary the program: it starts itself as its own children.
const asProgram = "PAIRDB_BENCH_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// program runs the program and returns what it printed and its exit error.
func program(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func TestRunKillsReopensMeasuresAndCleansUp(t *testing.T) {
	// The whole chain with real processes: a child is filled and killed with SIGKILL, another one opens
	// what it left and finds everything; tables and charts are written; nothing stays behind.
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	stdout, stderr, err := program(t, "--size", "smoke", "--keys", "2000", "--dir", dir, "--out", out,
		"--engines", "pairdb,pebble", "--workloads", "^(recovery|miss-1|fill-random)$", "--cpuprofile", filepath.Join(out, "profiles"))
	require.NoError(t, err, stderr)
	require.Contains(t, stdout, "| open after kill -9 (less is better)")
	require.Contains(t, stdout, "| miss-1 ")
	require.Contains(t, stdout, "fdatasync", "the limits of the machine")
	require.Contains(t, stderr, "left", "the progress")
	for _, name := range []string{"engine.md", "engine.svg", "profiles/miss-1.pairdb.1.pprof"} {
		info, err := os.Stat(filepath.Join(out, name))
		require.NoError(t, err)
		require.Positive(t, info.Size(), name)
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left, "the data is removed")
}

func TestGrowthMeasuresThreeSizes(t *testing.T) {
	out := t.TempDir()
	stdout, stderr, err := program(t, "growth", "--size", "smoke", "--keys", "20000", "--dir", t.TempDir(), "--out", out)
	require.NoError(t, err, stderr)
	require.Regexp(t, `with so many keys \|\s+200 \|\s+2000 \|\s+20000 \|`, stdout)
	require.FileExists(t, filepath.Join(out, "growth.svg"))
}

func TestMistypedArgumentsSayWhatThereIs(t *testing.T) {
	for want, args := range map[string][]string{
		`no engine "peble"`:       {"--engines", "peble"},
		"no row matches":          {"--workloads", "^nothing$"},
		`unknown size "huge"`:     {"--size", "huge"},
		"error parsing regexp":    {"--workloads", "("},
		"unknown flag: --profile": {"--profile", "x"},
	} {
		_, stderr, err := program(t, args...)
		require.Error(t, err)
		require.Contains(t, stderr, want)
	}
}

func TestHelpTeaches(t *testing.T) {
	stdout, _, err := program(t, "--help")
	require.NoError(t, err)
	for _, want := range []string{"--workloads", "--engines pairdb,pebble", "growth", "--cpuprofile"} {
		require.Contains(t, stdout, want)
	}
	stdout, _, err = program(t, "--list")
	require.NoError(t, err)
	require.Contains(t, stdout, "ycsb-a")
	require.Contains(t, stdout, "engines: pairdb, pebble")
}
