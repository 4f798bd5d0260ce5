package command

import (
	"bytes"
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
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pairdb/pairdb/libs/command"
	"github.com/pairdb/pairdb/libs/event"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startNATS runs a server on loopback until the test ends.
func startNATS(t *testing.T, change func(*server.Options)) *server.Server {
	t.Helper()
	o := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true}
	if change != nil {
		change(o)
	}
	s, err := server.NewServer(o)
	require.NoError(t, err)
	go s.Start()
	require.True(t, s.ReadyForConnections(10*time.Second))
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

// node is an AdminService that notes what it is asked.
type node struct {
	adminv1.UnimplementedAdminServiceServer
	mu        sync.Mutex
	snapshots []string
	flushes   int
	err       error
	gate      chan struct{} // Flush waits for it; nil is open
}

func (n *node) Status(context.Context, *adminv1.StatusRequest) (*adminv1.StatusResponse, error) {
	return &adminv1.StatusResponse{NodeId: "n.1", State: "serving"}, nil
}

func (n *node) Flush(ctx context.Context, _ *adminv1.FlushRequest) (*adminv1.FlushResponse, error) {
	n.mu.Lock()
	n.flushes++
	gate, err := n.gate, n.err
	n.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &adminv1.FlushResponse{}, err
}

func (n *node) Snapshot(_ context.Context, r *adminv1.SnapshotRequest) (*adminv1.SnapshotResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return nil, n.err
	}
	n.snapshots = append(n.snapshots, r.GetName())
	return &adminv1.SnapshotResponse{Snapshot: &adminv1.SnapshotInfo{Name: r.GetName(), Sequence: 7}}, nil
}

func (n *node) set(change func(*node)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(n)
}

func (n *node) asked() (flushes, snapshots int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.flushes, len(n.snapshots)
}

// logBuffer collects log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// world is a command service with its node and its NATS.
type world struct {
	t       *testing.T
	node    *node
	service *command.Service
	log     *logBuffer
	client  *nats.Conn
	stop    func()
}

// start runs a service over a server; config is how it gets there.
func start(t *testing.T, config event.Config, clientURL string) *world {
	t.Helper()
	w := &world{t: t, node: &node{}, log: &logBuffer{}}
	path := filepath.Join(t.TempDir(), "n.sock")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	g := grpc.NewServer()
	adminv1.RegisterAdminServiceServer(g, w.node)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	socket, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)

	log := slog.New(slog.NewTextHandler(w.log, nil))
	conn, err := event.Connect(config, "test", log)
	require.NoError(t, err)
	w.service = command.New(command.Options{
		Kind: Kind, Conn: conn, Node: socket, ClusterID: "c.1", NodeID: "n.1", Version: "dev", Log: log,
		Labels: prometheus.Labels{"node_id": "n.1"},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); w.service.Run(ctx) }()
	w.client, err = nats.Connect(clientURL)
	require.NoError(t, err)
	t.Cleanup(w.client.Close)
	w.stop = sync.OnceFunc(func() {
		cancel()
		<-ran
		conn.Close()
		require.NoError(t, socket.Close())
		g.Stop()
		require.NoError(t, <-served)
	})
	t.Cleanup(w.stop)
	return w
}

// run starts a service over a server of its own and waits until it answers.
func run(t *testing.T) *world {
	t.Helper()
	s := startNATS(t, nil)
	w := start(t, event.Config{NATSURL: s.ClientURL()}, s.ClientURL())
	w.answers()
	return w
}

// answers waits until the service answers pings.
func (w *world) answers() {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		_, err := w.client.Request("$SRV.PING."+Kind.Name, nil, time.Second)
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
}

// ask sends a request and returns the answer.
func (w *world) ask(verb, request string) answer {
	w.t.Helper()
	m, err := w.client.Request(event.CommandSubject("c.1", "n.1", verb), []byte(request), 10*time.Second)
	require.NoError(w.t, err)
	var a answer
	require.NoError(w.t, json.Unmarshal(m.Data, &a), "%s", m.Data)
	if a.OK {
		require.Empty(w.t, m.Header.Get("Nats-Service-Error"))
	} else {
		require.Equal(w.t, a.Error.Message, m.Header.Get("Nats-Service-Error"))
		require.Equal(w.t, a.Error.Reason, m.Header.Get("Nats-Service-Error-Code"))
	}
	return a
}

func (w *world) count(verb, result string) int {
	counter, ok := w.service.Collector().(*prometheus.CounterVec)
	require.True(w.t, ok)
	return int(testutil.ToFloat64(counter.WithLabelValues(verb, result)))
}

// answer is what a sender gets.
type answer struct {
	RequestID string          `json:"request_id"`
	OK        bool            `json:"ok"`
	Result    json.RawMessage `json:"result"`
	Error     *answerError    `json:"error"`
}

type answerError struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}
