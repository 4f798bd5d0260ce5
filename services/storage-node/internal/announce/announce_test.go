package announce

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	coordinatorv1 "github.com/pairdb/pairdb/proto/coordinator/proto/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// coordinator is a CoordinatorService over loopback. What it answers can be changed.
type coordinator struct {
	coordinatorv1.UnimplementedCoordinatorServiceServer

	mu    sync.Mutex
	nodes map[string]*coordinatorv1.StorageNode
	adds  []*coordinatorv1.AddStorageNodeRequest
	fault error         // of every call, when set
	slow  chan struct{} // AddStorageNode waits for it after it has done its work, when set
}

func (c *coordinator) AddStorageNode(ctx context.Context, r *coordinatorv1.AddStorageNodeRequest) (*coordinatorv1.AddStorageNodeResponse, error) {
	c.mu.Lock()
	c.adds = append(c.adds, r)
	fault, slow, known := c.fault, c.slow, c.nodes[r.GetNodeId()]
	if fault == nil && known == nil {
		c.nodes[r.GetNodeId()] = &coordinatorv1.StorageNode{NodeId: r.GetNodeId(), Host: r.GetHost(), Port: r.GetPort(), Status: "active"}
	}
	c.mu.Unlock()
	if slow != nil {
		select {
		case <-slow:
		case <-ctx.Done():
		}
	}
	switch {
	case fault != nil:
		return nil, fault
	case known != nil:
		return &coordinatorv1.AddStorageNodeResponse{ErrorMessage: "node exists"}, nil
	}
	return &coordinatorv1.AddStorageNodeResponse{Success: true, NodeId: r.GetNodeId(), MigrationId: "m1"}, nil
}

func (c *coordinator) ListStorageNodes(context.Context, *coordinatorv1.ListStorageNodesRequest) (*coordinatorv1.ListStorageNodesResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fault != nil {
		return nil, c.fault
	}
	resp := &coordinatorv1.ListStorageNodesResponse{Success: true, Nodes: []*coordinatorv1.StorageNode{{NodeId: "other"}}}
	for _, n := range c.nodes {
		resp.Nodes = append(resp.Nodes, n)
	}
	return resp, nil
}

func (c *coordinator) set(change func(*coordinator)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

func (c *coordinator) attempts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.adds)
}

func newCoordinator() *coordinator {
	return &coordinator{nodes: map[string]*coordinatorv1.StorageNode{}}
}

// serve serves on an address until the test ends or stop is called.
func (c *coordinator) serve(t *testing.T, addr string) (listening string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	s := grpc.NewServer()
	coordinatorv1.RegisterCoordinatorServiceServer(s, c)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }() // ends with Stop
	stop = func() { s.Stop(); <-done }
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// lines is a log that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// run starts an announcer that is not patient.
func run(t *testing.T, addr string, change func(*Options)) (a *Announcer, log *lines, ended chan struct{}, stop func()) {
	t.Helper()
	log = &lines{}
	o := Options{
		Coordinator: addr, NodeID: "n1", Host: "n1.pods", Port: 8080, VirtualNodes: 150, Log: slog.New(slog.NewTextHandler(log, nil)),
		FirstPause: 2 * time.Millisecond, MaxPause: 20 * time.Millisecond, Timeout: 5 * time.Second,
	}
	if change != nil {
		change(&o)
	}
	a, err := New(o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended = make(chan struct{})
	go func() { defer close(ended); a.Run(ctx) }()
	stop = func() { cancel(); <-ended }
	t.Cleanup(stop)
	return a, log, ended, stop
}

func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, 10*time.Second, time.Millisecond, what)
}

func (a *Announcer) isRegistered() bool { return testutil.ToFloat64(a.registered) == 1 }

func TestNodeIsAnnouncedWithWhatItIs(t *testing.T) {
	c := newCoordinator()
	addr, _ := c.serve(t, "127.0.0.1:0")
	a, log, ended, _ := run(t, addr, nil)
	<-ended
	require.True(t, a.isRegistered())
	require.Equal(t, 1, c.attempts())
	got := c.adds[0]
	require.Equal(t, "n1", got.GetNodeId())
	require.Equal(t, "n1.pods", got.GetHost())
	require.EqualValues(t, 8080, got.GetPort())
	require.EqualValues(t, 150, got.GetVirtualNodes())
	require.Equal(t, 1, log.count("migration=m1"))
}

// A node that starts again is known: the coordinator's error must not keep it announcing for ever.
func TestKnownNodeIsRegistered(t *testing.T) {
	c := newCoordinator()
	addr, _ := c.serve(t, "127.0.0.1:0")
	for range 2 {
		a, _, ended, _ := run(t, addr, nil)
		<-ended
		require.True(t, a.isRegistered())
	}
	require.Equal(t, 2, c.attempts())
}

// Known at another address, the node gets no requests: that is not registered, and somebody must learn it.
func TestNodeKnownElsewhereIsNotRegistered(t *testing.T) {
	c := newCoordinator()
	c.nodes["n1"] = &coordinatorv1.StorageNode{NodeId: "n1", Host: "old.pods", Port: 8080}
	addr, _ := c.serve(t, "127.0.0.1:0")
	a, log, ended, _ := run(t, addr, nil)
	wait(t, "tried again", func() bool { return c.attempts() > 3 })
	require.False(t, a.isRegistered())
	require.Equal(t, 1, log.count("old.pods:8080"), "a problem is logged once")
	c.set(func(c *coordinator) { delete(c.nodes, "n1") })
	<-ended
	require.True(t, a.isRegistered())
}

// What refuses today may accept tomorrow.
func TestRefusalIsTriedAgain(t *testing.T) {
	c := newCoordinator()
	c.fault = status.Error(codes.PermissionDenied, "not today")
	addr, _ := c.serve(t, "127.0.0.1:0")
	a, log, ended, _ := run(t, addr, nil)
	wait(t, "tried again", func() bool { return c.attempts() > 3 })
	require.False(t, a.isRegistered())
	require.Positive(t, log.count("not today"))
	c.set(func(c *coordinator) { c.fault = nil })
	<-ended
	require.True(t, a.isRegistered())
}

// A coordinator may start after the node, and restart while it is asked.
func TestAbsentCoordinatorIsWaitedFor(t *testing.T) {
	c := newCoordinator()
	addr, stop := c.serve(t, "127.0.0.1:0")
	stop() // now nobody listens there
	a, log, ended, _ := run(t, addr, nil)
	wait(t, "the problem is logged", func() bool { return log.count("not registered") > 0 })

	c.fault = status.Error(codes.Unavailable, "starting")
	_, stop = c.serve(t, addr)
	wait(t, "asked", func() bool { return c.attempts() > 0 })
	stop()
	require.False(t, a.isRegistered())
	c.set(func(c *coordinator) { c.fault = nil })
	c.serve(t, addr)
	<-ended
	require.True(t, a.isRegistered())
}

// A coordinator that is too slow has added the node all the same: the next attempt finds it.
func TestSlowCoordinatorIsGivenUpAndFoundOut(t *testing.T) {
	c := newCoordinator()
	c.slow = make(chan struct{})
	addr, _ := c.serve(t, "127.0.0.1:0")
	a, _, ended, _ := run(t, addr, func(o *Options) { o.Timeout = 50 * time.Millisecond })
	<-ended
	require.True(t, a.isRegistered())
	close(c.slow)
}

// A shutdown must not wait for a coordinator, whatever it is doing.
func TestRunEndsWithItsContext(t *testing.T) {
	c := newCoordinator()
	c.slow = make(chan struct{})
	addr, stopServing := c.serve(t, "127.0.0.1:0")
	a, _, _, stop := run(t, addr, func(o *Options) { o.Timeout = time.Hour })
	wait(t, "in a call", func() bool { return c.attempts() == 1 })
	begun := time.Now()
	stop()
	require.Less(t, time.Since(begun), 5*time.Second)
	require.False(t, a.isRegistered())
	close(c.slow)
	stopServing()

	_, log, _, stop := run(t, addr, func(o *Options) { o.FirstPause, o.MaxPause = time.Hour, time.Hour })
	wait(t, "in a pause", func() bool { return log.count("not registered") == 1 })
	begun = time.Now()
	stop()
	require.Less(t, time.Since(begun), 5*time.Second)
}

func TestBadAddressOfTheCoordinatorIsAnError(t *testing.T) {
	_, err := New(Options{Coordinator: "%"})
	require.ErrorContains(t, err, "%")
}
