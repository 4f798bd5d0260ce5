// Package node composes the storage node: data directory, engine, store, servers, metrics, state
// and the order in which all of it starts and stops. It never answers a request itself.
package node

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	pki "github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/token"
	"github.com/pairdb/pairdb/libs/vfs"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/announce"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/hot"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// Node is a running storage node.
type Node struct {
	cfg  *config.Config
	log  *slog.Logger
	fs   vfs.FS
	root fs.FS // of the machine, for what the kernel tells of the process
	// watchEvery is the time between two looks of the watch; defaultWatchEvery but in tests.
	watchEvery time.Duration
	// session names this process to sidecars.
	session uint64
	started time.Time
	// onHealth gets the events of healthevents.go; nil: nobody does. It is set before Run.
	onHealth func(kind string, payload proto.Message)

	server  *server.Server
	grpc    *grpc.Server
	health  *health.Server
	request *requestMetrics
	loads   loads
	events  *events
	publish *publish
	// moveEvents turn changes of moves into events.
	moveEvents *moveEvents
	sidecars   *server.Sidecars
	state      state
	tracing    *service.Tracing // nil: no spans
	hot        *hot.Tracker
	// certificates are those of the TCP ports; nil: they do not speak TLS.
	certificates *pki.Source
	tokens       *token.Keys // nil: clients need none

	tcp      net.Listener
	ops      *service.Ops
	announce *announce.Announcer // nil if the node is announced to nobody

	mu       sync.RWMutex  // held to read storage by those who may come while the engine closes
	storage  *storage      // guarded by mu; nil until the engine is open and when it closes
	locked   chan struct{} // closed when the data directory is this process's
	identity identity      // of the data directory; written before locked is closed
	claimErr error         // why there is none; written by the open
	drained  atomic.Bool   // the data directory remembers that the node was
	openDone chan struct{} // closed when the open has ended, well or not
	opened   chan struct{} // closed when storage is there
	stop     chan struct{} // closed when the engine has to close
	once     sync.Once     // closes stop
	failed   chan error    // why the engine can't go on; capacity 1
	why      atomic.Value  // string: why the node ends by itself; nil while it does not
}

// New makes a node and listens for requests and probes. Nothing is served before Run.
func New(cfg *config.Config, rt *service.Runtime, fsys vfs.FS) (*Node, error) {
	labels := prometheus.Labels{"node_id": cfg.NodeID}
	metered, fileMetrics := newMeterFS(fsys, labels)
	n := &Node{
		cfg: cfg, log: rt.Log.With("node_id", cfg.NodeID), fs: metered, health: health.NewServer(),
		root: os.DirFS("/"), watchEvery: defaultWatchEvery, session: newSession(), started: time.Now(), sidecars: &server.Sidecars{},
		request: newRequestMetrics(labels), state: state{stallLimit: cfg.StallLimit}, tracing: rt.Tracing, hot: hot.New(hot.Options{}),
		locked: make(chan struct{}), openDone: make(chan struct{}), opened: make(chan struct{}), stop: make(chan struct{}), failed: make(chan error, 1),
	}
	n.health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	n.events = newEvents(n.log, &n.state, labels, n.poison)
	var err error
	if n.certificates, err = openCertificates(cfg, rt, n.log, labels); err != nil {
		return nil, err
	}
	if n.tokens, err = openTokens(cfg); err != nil {
		return nil, err
	}
	if n.publish, err = newPublish(cfg, rt, n.log, metered, &n.state); err != nil {
		return nil, err
	}
	n.onHealth = n.publish.note
	n.moveEvents = newMoveEvents(cfg.NodeID, n.publish.note)
	rt.Metrics.MustRegister(newCollector(labels, n.metrics), newHealthCollector(labels, n))
	rt.Metrics.MustRegister(newTenantCollector(labels, n.tenantUsage))
	rt.Metrics.MustRegister(newOwnershipCollector(labels, n.ownership))
	rt.Metrics.MustRegister(newEqualCollector(labels, n.equal, n.openEngine))
	rt.Metrics.MustRegister(newStateCollector(labels, n.metrics), newStoreCollector(labels, n.picture))
	rt.Metrics.MustRegister(newReplicaCollector(labels, n.replicaCounts))
	rt.Metrics.MustRegister(newMoveCollector(labels, n.moveCounts))
	rt.Metrics.MustRegister(fileMetrics...)
	rt.Metrics.MustRegister(n.request.collectors...)
	rt.Metrics.MustRegister(n.events.collectors()...)
	rt.Metrics.MustRegister(n.publish.collectors(labels)...)
	n.server = server.New(server.Node{
		ID: cfg.NodeID, Version: rt.Build.Version, Started: n.started, State: n.state.get,
		Health: func() (bool, []string) { n.refresh(); return n.state.health(time.Now()) },
		Vitals: n.vitals, Sidecars: n.sidecars, Events: n.publish.out, Level: rt.Level, Warnings: warnings(cfg),
		Tokens: n.tokens, Refused: n.certificates.Refused,
	})
	rt.Metrics.MustRegister(newLoadCollector(labels, &n.loads, n.server.PipelineWrites))
	n.grpc = n.server.GRPC(n.serverOptions(&n.loads.tcp), n.health, append(n.tcpOptions(), grpc.WaitForHandlers(true))...)
	n.server.RegisterStorage(n.grpc)
	n.server.RegisterContract(n.grpc)
	n.server.RegisterReplica(n.grpc)
	adminv1.RegisterAdminServiceServer(n.grpc, n.server.Admin())
	if err := n.openAnnouncer(rt.Metrics, labels); err != nil {
		n.publish.close()
		return nil, err
	}
	if n.tcp, err = net.Listen("tcp", cfg.GRPCAddr); err != nil {
		n.publish.close()
		return nil, fmt.Errorf("listen for requests (PAIRDB_GRPC_ADDR): %w", err)
	}
	n.ops, err = service.OpenOps(n.certificates.Ops(service.OpsOptions{
		Addr: cfg.OpsAddr, Registry: rt.Metrics, Log: n.log, Pprof: cfg.OpsPprof,
		NotLive:  func() []service.Reason { return n.state.notLive(time.Now()) },
		NotReady: func() []service.Reason { return n.state.notReady(time.Now()) },
		Degraded: n.degraded, NotStarted: n.state.notStarted,
	}))
	if err != nil {
		n.publish.close()
		n.tcp.Close() // the other error counts
		return nil, fmt.Errorf("PAIRDB_OPS_ADDR: %w", err)
	}
	return n, nil
}

// newSession draws the number that tells sidecars one process of the node from the next.
func newSession() uint64 {
	for {
		if s := rand.Uint64(); s != 0 {
			return s
		}
	}
}

func (n *Node) serverOptions(load *server.Load) server.Options {
	o := server.Options{
		Log: n.log, Observe: n.request.observe, Timeout: n.cfg.RequestTimeout,
		MaxInFlight: n.cfg.MaxInFlight, Reflection: n.cfg.Reflection, Load: load,
		SlowRequest: n.cfg.SlowRequest, LogKeys: n.cfg.LogKeys,
	}
	if n.tracing.Enabled() {
		o.Tracer = n.tracing.Tracer("storage-node")
	}
	return o
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

// picture returns what the store and its neighbours say while the engine is open.
func (n *Node) picture() (picture, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.storage == nil {
		return picture{}, false
	}
	p := picture{store: n.storage.store.Counts(), tenants: n.storage.tenants.Population()}
	if names, err := n.storage.snapshots.names(); err == nil { // what is wrong with the directory, who lists it is told
		p.snapshots = len(names)
	}
	return p, true
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
	n.setGoLimit()
	n.log.Info("listening", "grpc", n.Addr(), "ops", n.OpsAddr(), "data_dir", n.cfg.DataDir)
	// Requests get two fifths of the time, sidecars and the last events one, the last flush and sync
	// the rest.
	fifth := n.cfg.ShutdownTimeout / 5
	g := service.NewGroup(n.log)
	g.Add(service.Stage{Name: "readiness", Stop: n.leave, Limit: time.Second})
	if n.announce != nil {
		g.Add(n.announceStage())
	}
	g.Add(service.Stage{
		Name: "grpc", Limit: 2 * fifth,
		Run:  func() error { return n.grpc.Serve(n.loads.tcp.Listen(n.tcp)) },
		Stop: func(ctx context.Context) error { stopGracefully(ctx, n.grpc); return nil },
	})
	g.Add(n.socketStage(fifth / 2))
	g.Add(n.watchStage())
	g.Add(service.Stage{Name: "engine", Run: n.runStorage, Stop: n.closeStorage, Limit: 2 * fifth})
	g.Add(n.publish.stage(fifth / 2))
	g.Add(n.ops.Stage())
	n.certificates.AddTo(g)
	return g.Run(ctx)
}

// leave tells everybody that no more requests are welcome.
func (n *Node) leave(context.Context) error {
	if n.state.enter(server.StateStopping, "the node is shutting down") {
		n.log.Info("stopping")
		reason := "asked to stop"
		if why, ok := n.why.Load().(string); ok {
			reason = why
		}
		n.publish.stopping(reason)
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

// handle takes an event of the engine. It is told before anything is done about it: that may be the
// end of the process.
func (n *Node) handle(e engine.Event) {
	n.publish.engine(e)
	n.events.handle(e)
}

// fail ends the node with err; the first reason counts.
func (n *Node) fail(err error) {
	select {
	case n.failed <- err:
	default:
	}
}
