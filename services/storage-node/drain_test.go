package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// admin is a node as far as the drain of a pod can tell.
type admin struct {
	adminv1.UnimplementedAdminServiceServer
	asked *adminv1.DrainRequest
	err   error
}

func (a *admin) Drain(_ context.Context, r *adminv1.DrainRequest) (*adminv1.DrainResponse, error) {
	a.asked = r
	return &adminv1.DrainResponse{Sequence: 81234}, a.err
}

// Danger: a pod is stopped that was not flushed, and the command said nothing; or it hangs and the pod with it.
func TestDrainAsksTheNodeOfThePod(t *testing.T) {
	servicetest.ClearEnvironment(t)
	dir, err := os.MkdirTemp("", "pod") // a path of a socket is short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	socket := filepath.Join(dir, "n.sock")
	t.Setenv("PAIRDB_SOCKET", socket)
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	a, s, served := &admin{}, grpc.NewServer(), make(chan error, 1)
	adminv1.RegisterAdminServiceServer(s, a)
	go func() { served <- s.Serve(l) }()
	run := func(args ...string) (code int, stdout, stderr string) {
		return runProgram(context.Background(), t, args...)
	}
	code, stdout, stderr := run("drain", "-timeout", "20s")
	require.Zero(t, code, stderr)
	require.Equal(t, "flushed up to sequence 81234; writes are refused for 20s\n", stdout)
	require.Equal(t, adminv1.DrainRequest_KIND_FLUSH, a.asked.GetKind())
	require.EqualValues(t, 20_000, a.asked.GetTimeoutMs())
	code, stdout, _ = run("drain", "--help")
	require.Zero(t, code)
	require.Contains(t, stdout, "-timeout")

	for _, args := range [][]string{{"-timeout", "999ms"}, {"-timeout", "61m"}, {"-timeout", "x"}, {"-x"}, {"operand"}} {
		code, _, stderr = run(append([]string{"drain"}, args...)...)
		require.Equal(t, service.ExitUsage, code, stderr)
	}
	a.err = status.Error(codes.ResourceExhausted, "disk full")
	code, _, stderr = run("drain")
	require.Equal(t, service.ExitRuntime, code)
	require.Contains(t, stderr, "disk full")
	a.err = status.Error(codes.Unavailable, "node is recovering")
	code, _, _ = run("drain")
	require.Equal(t, service.ExitUnreachable, code)
	s.Stop()
	require.NoError(t, <-served)
	code, _, _ = run("drain", "-socket", filepath.Join(dir, "nobody.sock"), "-timeout", "1s")
	require.Equal(t, service.ExitUnreachable, code)
}
