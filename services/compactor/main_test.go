package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	"github.com/pairdb/pairdb/libs/sidecar"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// output is a buffer that the program and the test share.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// idle is a node without work.
type idle struct {
	compactionv1.UnimplementedCompactionServiceServer
	nodev1.UnimplementedNodeServiceServer
	leases chan struct{}
}

func (n *idle) Identity(context.Context, *nodev1.IdentityRequest) (*nodev1.IdentityResponse, error) {
	return &nodev1.IdentityResponse{NodeId: "n1"}, nil
}

func (n *idle) Lease(ctx context.Context, _ *compactionv1.LeaseRequest) (*compactionv1.LeaseResponse, error) {
	select {
	case n.leases <- struct{}{}:
		return &compactionv1.LeaseResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestCompactorWaitsForTheSocketServesAndEndsCleanly(t *testing.T) {
	// The compactor may be the first container of the pod that starts.
	servicetest.ClearEnvironment(t)
	dir := t.TempDir()
	socket := filepath.Join(dir, "node.sock")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, compact.TableDir), 0o770))
	t.Setenv("PAIRDB_SOCKET", socket)
	t.Setenv("PAIRDB_DATA_DIR", dir)
	t.Setenv("PAIRDB_COMPACTOR_OPS_ADDR", "127.0.0.1:0")

	out := &output{}
	p := program()
	p.Umask, p.Stdout, p.Stderr = 0, out, out // the umask is the whole process's
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() { code <- p.Main(ctx, nil) }()

	addr := regexp.MustCompile(`"ops":"([^"]+)"`)
	require.Eventually(t, func() bool { return addr.MatchString(out.String()) }, 10*time.Second, time.Millisecond, "%v", out)
	url := "http://" + addr.FindStringSubmatch(out.String())[1]
	status, body := get(t, url+"/ready")
	require.Equal(t, http.StatusServiceUnavailable, status, body)
	status, _ = get(t, url+"/health")
	require.Equal(t, http.StatusOK, status)

	l, err := sidecar.Listen(socket)
	require.NoError(t, err)
	n := &idle{leases: make(chan struct{})}
	s := grpc.NewServer(sidecar.ServerOptions(sidecar.SelfAccess())...)
	compactionv1.RegisterCompactionServiceServer(s, n)
	nodev1.RegisterNodeServiceServer(s, n)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	<-n.leases
	<-n.leases
	status, body = get(t, url+"/ready")
	require.Equal(t, http.StatusOK, status, body)
	_, body = get(t, url+"/metrics")
	require.Contains(t, body, "pairdb_compactor_connected 1")

	cancel()
	require.Equal(t, service.ExitOK, <-code, "%v", out)
	s.Stop()
	require.NoError(t, <-served)
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode, string(body)
}

func TestWrongPlacesAreSaidInOneLine(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close() //nolint:errcheck // a test's
	for _, c := range []struct {
		key, value, want string
		code             int
	}{
		{"PAIRDB_DATA_DIR", filepath.Join(dir, "missing"), "no such file", service.ExitDisk},
		{"PAIRDB_DATA_DIR", file, "not a directory", service.ExitDisk},
		{"PAIRDB_SOCKET", file, "not a socket", service.ExitUnreachable},
		{"PAIRDB_COMPACTOR_OPS_ADDR", taken.Addr().String(), "address already in use", service.ExitRuntime},
		{"PAIRDB_COMPACTOR_SLOT", "3", "PAIRDB_COMPACTOR_SLOTS", service.ExitUsage},
	} {
		t.Run(c.key, func(t *testing.T) {
			servicetest.ClearEnvironment(t)
			t.Setenv("PAIRDB_DATA_DIR", dir)
			t.Setenv("PAIRDB_SOCKET", filepath.Join(dir, "node.sock"))
			t.Setenv("PAIRDB_COMPACTOR_OPS_ADDR", "127.0.0.1:0")
			t.Setenv(c.key, c.value)
			out := &output{}
			p := program()
			p.Umask, p.Stdout, p.Stderr = 0, out, out
			require.Equal(t, c.code, p.Main(t.Context(), nil), "%v", out)
			require.Contains(t, out.String(), c.want)
		})
	}
}

func TestCommandLine(t *testing.T) {
	servicetest.ClearEnvironment(t)
	for arg, want := range map[string]string{
		"--help": "PAIRDB_COMPACTOR_SLOTS", "--version": "compactor ", "--print-config": "PAIRDB_COMPACTOR_SLOTS=4",
	} {
		out := &output{}
		p := program()
		p.Stdout, p.Stderr = out, out
		require.Equal(t, service.ExitOK, p.Main(t.Context(), []string{arg}))
		require.True(t, strings.Contains(out.String(), want), "%s prints %v", arg, out)
	}
}
