package command

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/service"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node says who it is and notes what it is asked.
type node struct {
	adminv1.UnimplementedAdminServiceServer
	nodev1.UnimplementedNodeServiceServer
	mu     sync.Mutex
	asked  []proto.Message // guarded by mu
	err    error           // guarded by mu; of every call
	moves  int             // guarded by mu; how many Moves tells of
	broken bool            // guarded by mu; Cleanup ends after its first message
}

func (n *node) Identity(context.Context, *nodev1.IdentityRequest) (*nodev1.IdentityResponse, error) {
	return &nodev1.IdentityResponse{NodeId: "n.1", ClusterId: "c.1", Version: "v1.2.3"}, nil
}

func (n *node) note(m proto.Message) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, m)
	return n.err
}

func (n *node) calls() []proto.Message {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]proto.Message(nil), n.asked...)
}

func (n *node) set(change func(*node)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(n)
}

func (n *node) Drain(_ context.Context, r *adminv1.DrainRequest) (*adminv1.DrainResponse, error) {
	return &adminv1.DrainResponse{Drain: &movev1.Drain{Id: "drain-1", State: movev1.DrainState_DRAIN_STATE_REQUESTED}}, n.note(r)
}

func (n *node) Replicate(_ context.Context, r *adminv1.ReplicateRequest) (*adminv1.ReplicateResponse, error) {
	return &adminv1.ReplicateResponse{Moves: []*movev1.Move{{Id: r.GetId()}}}, n.note(r)
}

func (n *node) Repair(_ context.Context, r *adminv1.RepairRequest) (*adminv1.RepairResponse, error) {
	return &adminv1.RepairResponse{Moves: []*movev1.Move{{Id: r.GetId()}}}, n.note(r)
}

func (n *node) Moves(_ context.Context, r *adminv1.MovesRequest) (*adminv1.MovesResponse, error) {
	err := n.note(r)
	n.mu.Lock()
	defer n.mu.Unlock()
	return &adminv1.MovesResponse{Moves: make([]*movev1.Move, n.moves)}, err
}

func (n *node) CancelMove(_ context.Context, r *adminv1.CancelMoveRequest) (*adminv1.CancelMoveResponse, error) {
	return &adminv1.CancelMoveResponse{}, n.note(r)
}

func (n *node) Cleanup(r *adminv1.CleanupRequest, s grpc.ServerStreamingServer[adminv1.CleanupProgress]) error {
	if err := n.note(r); err != nil {
		return err
	}
	if err := s.Send(&adminv1.CleanupProgress{DoneBytes: 1, TotalBytes: 2}); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.broken {
		return context.Canceled
	}
	return s.Send(&adminv1.CleanupProgress{DoneBytes: 2, TotalBytes: 2, DroppedRecords: 9, Finished: true})
}

// world is the stage of a migrator with its node and its NATS.
type world struct {
	t      *testing.T
	node   *node
	client *nats.Conn
}

// start runs the stage and waits until it answers.
func start(t *testing.T) *world {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	require.NoError(t, err)
	go s.Start()
	require.True(t, s.ReadyForConnections(10*time.Second))
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })

	w := &world{t: t, node: &node{}}
	path := filepath.Join(t.TempDir(), "n.sock")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	g := grpc.NewServer()
	adminv1.RegisterAdminServiceServer(g, w.node)
	nodev1.RegisterNodeServiceServer(g, w.node)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	socket, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	rt := &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()}
	stage := ForNode(event.Config{NATSURL: s.ClientURL()}, socket, rt)
	ran := make(chan error, 1)
	go func() { ran <- stage.Run() }()
	w.client, err = nats.Connect(s.ClientURL())
	require.NoError(t, err)
	t.Cleanup(func() {
		w.client.Close()
		require.NoError(t, stage.Stop(context.Background()))
		require.NoError(t, <-ran)
		require.NoError(t, socket.Close())
		g.Stop()
		require.NoError(t, <-served)
	})
	require.Eventually(t, func() bool {
		_, err := w.client.Request("$SRV.PING."+Kind.Name, nil, time.Second)
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
	return w
}

// answer is what a sender gets.
type answer struct {
	OK     bool            `json:"ok"`
	Result json.RawMessage `json:"result"`
	Error  struct {
		Reason, Message string
	} `json:"error"`
}

func (w *world) ask(verb, request string) answer {
	w.t.Helper()
	m, err := w.client.Request(event.CommandSubject("c.1", "n.1", verb), []byte(request), 10*time.Second)
	require.NoError(w.t, err)
	var a answer
	require.NoError(w.t, json.Unmarshal(m.Data, &a), "%s", m.Data)
	return a
}
