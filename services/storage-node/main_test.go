package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
)

func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // a node that starts stops at once
	return runProgram(ctx, t, args...)
}

func runProgram(ctx context.Context, t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	p := program()
	p.Stdout, p.Stderr, p.Umask = &out, &errs, 0
	code = p.Main(ctx, args)
	return code, out.String(), errs.String()
}

// The binary's own face: what an operator types first must work without a data directory.
func TestProgramExplainsItself(t *testing.T) {
	servicetest.ClearEnvironment(t)
	for arg, want := range map[string]string{"--help": "PAIRDB_DATA_DIR", "--version": "storage-node ", "--print-config": "PAIRDB_SYNC=group\n"} {
		code, stdout, stderr := run(t, arg)
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, want)
	}
	t.Setenv("PAIRDB_MEMTABLE_BYTE", "1")
	code, _, stderr := run(t)
	require.Equal(t, service.ExitUsage, code)
	require.Contains(t, stderr, "nearest known one is PAIRDB_MEMTABLE_BYTES")
}

// A whole life in one process: start on an empty directory, stop, exit 0.
func TestProgramStartsAndStops(t *testing.T) {
	servicetest.ClearEnvironment(t)
	dir := t.TempDir()
	t.Setenv("PAIRDB_DATA_DIR", filepath.Join(dir, "data"))
	t.Setenv("PAIRDB_SOCKET", filepath.Join(dir, "s"))
	t.Setenv("PAIRDB_GRPC_ADDR", "127.0.0.1:0")
	t.Setenv("PAIRDB_OPS_ADDR", "127.0.0.1:0")
	code, _, stderr := run(t)
	require.Equal(t, service.ExitOK, code, stderr)
	require.Contains(t, stderr, `"msg":"stopped"`)
	require.DirExists(t, filepath.Join(dir, "data", "sst"))
}

// Danger: the message of a node that does not start names a command that does something else.
func TestAdoptIsWhatTheMessageSays(t *testing.T) {
	servicetest.ClearEnvironment(t)
	dir := filepath.Join(t.TempDir(), "data")
	t.Setenv("PAIRDB_DATA_DIR", dir)
	t.Setenv("PAIRDB_SOCKET", filepath.Join(t.TempDir(), "s"))
	t.Setenv("PAIRDB_GRPC_ADDR", "127.0.0.1:0")
	t.Setenv("PAIRDB_OPS_ADDR", "127.0.0.1:0")
	t.Setenv("PAIRDB_NODE_ID", "n1")
	code, _, stderr := run(t)
	require.Equal(t, service.ExitOK, code, stderr)
	code, stdout, stderr := run(t, "adopt", dir, "--node-id", "n2")
	require.Equal(t, service.ExitOK, code, stderr)
	require.Contains(t, stdout, "node n2's, in a new incarnation")
	identity, err := os.ReadFile(filepath.Join(dir, "IDENTITY"))
	require.NoError(t, err)
	require.Contains(t, string(identity), `"node_id": "n2"`)

	code, stdout, _ = run(t, "adopt", "--help")
	require.Equal(t, service.ExitOK, code)
	require.Contains(t, stdout, "-node-id")
	for _, args := range [][]string{{"adopt"}, {"adopt", dir, dir}, {"adopt", dir, "--what"}, {"adopt", t.TempDir()}} {
		code, _, _ = run(t, args...)
		require.Equal(t, service.ExitUsage, code, "%v", args)
	}
}
