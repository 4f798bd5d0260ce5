package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sidecar"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// asAgent makes the test binary be the program: a process that can be killed.
const asAgent = "HEALTH_AGENT_TEST_PROCESS"

func TestMain(m *testing.M) {
	if os.Getenv(asAgent) != "" {
		os.Exit(program().Main(context.Background(), nil))
	}
	os.Exit(m.Run())
}

// pod is a node that serves and remembers what its agent reports, and the agent's process.
type pod struct {
	well
	id    string
	agent *exec.Cmd

	mu   sync.Mutex
	last *nodev1.ReportRequest // guarded by mu
}

func (p *pod) Identity(context.Context, *nodev1.IdentityRequest) (*nodev1.IdentityResponse, error) {
	return &nodev1.IdentityResponse{NodeId: p.id, ClusterId: "c1", Incarnation: "i", GrpcAddr: "127.0.0.1:1", VirtualNodes: 150}, nil
}

func (p *pod) Report(_ context.Context, r *nodev1.ReportRequest) (*nodev1.ReportResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = r
	return &nodev1.ReportResponse{}, nil
}

// sees returns the liveness of each member in the last report.
func (p *pod) sees() map[string]clusterv1.Liveness {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]clusterv1.Liveness{}
	for _, m := range p.last.GetMembers() {
		out[m.GetDeclared().GetNodeId()] = m.GetLiveness()
	}
	return out
}

func startPod(t *testing.T, id, gossip, seed string) *pod {
	t.Helper()
	dir, err := os.MkdirTemp("", "pod") // a path of a socket is short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	p := &pod{id: id}
	l, err := sidecar.Listen(filepath.Join(dir, "node.sock"))
	require.NoError(t, err)
	s, served := grpc.NewServer(sidecar.ServerOptions(sidecar.SelfAccess())...), make(chan error, 1)
	nodev1.RegisterNodeServiceServer(s, p)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		require.NoError(t, <-served)
	})
	p.agent = exec.Command(os.Args[0])
	p.agent.Env = []string{
		asAgent + "=1", "PAIRDB_SOCKET=" + filepath.Join(dir, "node.sock"), "PAIRDB_NODE_ID=" + id, "PAIRDB_DATA_DIR=" + dir,
		"PAIRDB_GOSSIP_ADDR=" + gossip, "PAIRDB_GOSSIP_SEEDS=" + seed, "PAIRDB_HEALTH_OPS_ADDR=127.0.0.1:0",
	}
	p.agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, p.agent.Start())
	t.Cleanup(func() { _ = p.agent.Process.Kill() }) // it may have ended
	return p
}

func TestAKilledAgentIsDownAndOneThatIsToldToEndHasLeft(t *testing.T) {
	// kill -9 is what a kernel without memory does; SIGTERM is every rolling update.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	seed := l.Addr().String()
	require.NoError(t, l.Close())
	// The seed is given to itself as well, and comes last.
	third := startPod(t, "n3", "127.0.0.1:0", seed)
	second := startPod(t, "n2", "127.0.0.1:0", seed)
	first := startPod(t, "n1", seed, seed)
	const alive, down, left = clusterv1.Liveness_LIVENESS_ALIVE, clusterv1.Liveness_LIVENESS_DOWN, clusterv1.Liveness_LIVENESS_LEFT
	for _, p := range []*pod{first, second, third} {
		require.Eventually(t, func() bool {
			s := p.sees()
			return s["n1"] == alive && s["n2"] == alive && s["n3"] == alive
		}, time.Minute, 10*time.Millisecond, "%s sees all", p.id)
	}

	killed := time.Now()
	require.NoError(t, third.agent.Process.Kill())
	for _, p := range []*pod{first, second} {
		require.Eventually(t, func() bool { return p.sees()["n3"] == down }, time.Minute, 10*time.Millisecond, "%s sees the failure", p.id)
	}
	took := time.Since(killed)
	require.Less(t, took, 10*time.Second)
	t.Logf("seen by all after %s", took)
	require.Error(t, third.agent.Wait())

	require.NoError(t, second.agent.Process.Signal(syscall.SIGTERM))
	require.NoError(t, second.agent.Wait(), "a clean end")
	require.Equal(t, service.ExitOK, second.agent.ProcessState.ExitCode())
	require.Eventually(t, func() bool { return first.sees()["n2"] == left }, time.Minute, 10*time.Millisecond)
	require.NoError(t, first.agent.Process.Signal(syscall.SIGTERM))
	require.NoError(t, first.agent.Wait(), "alone it ends at once")
}
