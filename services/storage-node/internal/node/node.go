// Package node composes the storage node: data directory, engine, store, servers, metrics, state
// and the order in which all of it starts and stops. It never answers a request itself.
package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/vfs"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/announce"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// Node is a running storage node.
type Node struct {
	cfg *config.Config
	log *slog.Logger
	fs  vfs.FS

	server  *server.Server
	grpc    *grpc.Server
	health  *health.Server
	request *requestMetrics
	events  *events
	state   state

	tcp      net.Listener
	ops      *service.Ops
	announce *announce.Announcer // nil if the node is announced to nobody

	mu       sync.RWMutex  // held to read storage by those who may come while the engine closes
	storage  *storage      // guarded by mu; nil until the engine is open and when it closes
	openDone chan struct{} // closed when the open has ended, well or not
	opened   chan struct{} // closed when storage is there
	stop     chan struct{} // closed when the engine has to close
	once     sync.Once     // closes stop
	failed   chan error    // why the engine can't go on; capacity 1
}

// New makes a node and listens for requests and probes. Nothing is served before Run.
func New(cfg *config.Config, rt *service.Runtime, fsys vfs.FS) (*Node, error) {
	labels := prometheus.Labels{"node_id": cfg.NodeID}
	metered, fileMetrics := newMeterFS(fsys, labels)
	n := &Node{
		cfg: cfg, log: rt.Log.With("node_id", cfg.NodeID), fs: metered, health: health.NewServer(),
		request:  newRequestMetrics(labels),
		openDone: make(chan struct{}), opened: make(chan struct{}), stop: make(chan struct{}), failed: make(chan error, 1),
	}
	n.health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	n.events = newEvents(n.log, &n.state, labels, n.poison)
	rt.Metrics.MustRegister(newCollector(labels, n.metrics))
	rt.Metrics.MustRegister(newTenantCollector(labels, n.tenantUsage))
	rt.Metrics.MustRegister(fileMetrics...)
	rt.Metrics.MustRegister(n.request.collectors...)
	rt.Metrics.MustRegister(n.events.collectors()...)
	n.server = server.New(server.Node{
		ID: cfg.NodeID, Version: rt.Build.Version, Started: time.Now(), State: n.state.get,
		Health: func() (bool, []string) { return n.state.health(time.Now()) },
	})
	n.grpc = n.server.GRPC(n.serverOptions(), n.health, grpc.WaitForHandlers(true))
	n.server.RegisterStorage(n.grpc)
	n.server.RegisterContract(n.grpc)
	adminv1.RegisterAdminServiceServer(n.grpc, n.server.Admin())
	if err := n.openAnnouncer(rt.Metrics, labels); err != nil {
		return nil, err
	}
	var err error
	if n.tcp, err = net.Listen("tcp", cfg.GRPCAddr); err != nil {
		return nil, fmt.Errorf("listen for requests (PAIRDB_GRPC_ADDR): %w", err)
	}
	n.ops, err = service.OpenOps(service.OpsOptions{
		Addr: cfg.OpsAddr, Registry: rt.Metrics, Log: n.log, Pprof: cfg.OpsPprof,
		NotLive: n.state.notLive, NotReady: func() []service.Reason { return n.state.notReady(time.Now()) }, Degraded: n.state.degraded,
	})
	if err != nil {
		n.tcp.Close() // the other error counts
		return nil, fmt.Errorf("PAIRDB_OPS_ADDR: %w", err)
	}
	return n, nil
}

func (n *Node) serverOptions() server.Options {
	return server.Options{
		Log: n.log, Observe: n.request.observe, Timeout: n.cfg.RequestTimeout,
		MaxInFlight: n.cfg.MaxInFlight, Reflection: n.cfg.Reflection,
	}
}

// Addr and OpsAddr return where the node listens.
func (n *Node) Addr() string { return n.tcp.Addr().String() }

// OpsAddr returns where /ready is.
func (n *Node) OpsAddr() string { return n.ops.Addr() }

// metrics returns the engine's numbers while it is open.
func (n *Node) metrics() (engine.Metrics, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.storage == nil {
		return engine.Metrics{}, false
	}
	return n.storage.engine.Metrics(), true
}

// tenantUsage returns what tenants used while the engine is open.
func (n *Node) tenantUsage() []tenant.Usage {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.storage == nil {
		return nil
	}
	return n.storage.tenants.Usage()
}

// setStorage replaces the storage and returns the old one.
func (n *Node) setStorage(s *storage) (old *storage) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old, n.storage = n.storage, s
	return old
}

// Run serves until ctx ends, or until the engine can't go on. The stages stop in the order in which
// they are added: nothing is taken from under those who still need it.
func (n *Node) Run(ctx context.Context) error {
	debug.SetMemoryLimit(n.cfg.MemoryLimit.Bytes())
	n.log.Info("listening", "grpc", n.Addr(), "ops", n.OpsAddr(), "data_dir", n.cfg.DataDir,
		"memory_limit", service.Bytes(n.cfg.MemoryLimit.Bytes()).String())
	// Requests get two fifths of the time, sidecars one, the last flush and sync the rest.
	fifth := n.cfg.ShutdownTimeout / 5
	g := service.NewGroup(n.log)
	g.Add(service.Stage{Name: "readiness", Stop: n.leave, Limit: time.Second})
	if n.announce != nil {
		g.Add(n.announceStage())
	}
	g.Add(service.Stage{
		Name: "grpc", Limit: 2 * fifth,
		Run:  func() error { return n.grpc.Serve(n.tcp) },
		Stop: func(ctx context.Context) error { stopGracefully(ctx, n.grpc); return nil },
	})
	g.Add(n.socketStage(fifth))
	g.Add(service.Stage{Name: "engine", Run: n.runStorage, Stop: n.closeStorage, Limit: 2 * fifth})
	g.Add(n.ops.Stage())
	return g.Run(ctx)
}

// leave tells everybody that no more requests are welcome.
func (n *Node) leave(context.Context) error {
	if n.state.enter(server.StateStopping, "the node is shutting down") {
		n.log.Info("stopping")
	}
	n.health.Shutdown()
	n.server.Leave()
	return nil
}

// stopGracefully lets requests in flight finish until shortly before ctx ends, then cuts them off.
func stopGracefully(ctx context.Context, s *grpc.Server) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-time.Until(deadline)/10))
		defer cancel()
	}
	defer context.AfterFunc(ctx, s.Stop)()
	s.GracefulStop()
}

// poison is called by the engine's events when nothing can be made durable any more.
func (n *Node) poison(err error) {
	n.state.enter(server.StatePoisoned, err.Error())
	n.health.Shutdown()
	n.fail(service.WithExitCode(service.ExitDisk, fmt.Errorf("the engine is poisoned: %w", err)))
}

// fail ends the node with err; the first reason counts.
func (n *Node) fail(err error) {
	select {
	case n.failed <- err:
	default:
	}
}
