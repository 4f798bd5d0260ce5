// Package server is the wire of the storage node: it checks what comes in, asks store and engine,
// and turns answers and errors into proto. It never decides what is true, and no proto type leaves
// it.
package server

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/token"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/antientropy"
	"github.com/pairdb/pairdb/services/storage-node/internal/hot"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
	"github.com/pairdb/pairdb/services/storage-node/internal/replica"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

const (
	// maxRequestBytes bounds a request: the 16 MiB of a full batch, its clocks and framing. What
	// is between the two gets an answer with a reason, what is above is cut off by gRPC.
	maxRequestBytes = store.MaxBatchBytes + 4<<20
	// maxResponseBytes bounds an answer: the siblings of one key as large as they can be stored
	// (48 MiB), the winner once more. Whoever wrote them must be able to read them.
	maxResponseBytes = 64 << 20
	// maxStreams bounds the calls of one connection, beside the limit of the whole node.
	maxStreams = 1024
	// maxHeaderBytes bounds the metadata of a call: a trace, an id and what applications add. gRPC's own
	// limit is 16 MiB, of each of the calls of a connection.
	maxHeaderBytes = 64 << 10
	// streamWorkers are goroutines that outlive a call, so that their stacks need not grow again.
	// Eight on two cores served 10 to 60 % more reads at 64 and 256 in flight than none or two
	// (BenchmarkUnary); calls beyond them get goroutines of their own.
	streamWorkers = 8
	// streamStall is how long a stream waits for a reader that takes nothing.
	streamStall = time.Minute
)

// Keepalive has a client that went away without a word noticed within 80 s.
var Keepalive = keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}

// State is the phase of the node's life.
type State uint8

// The phases, in the order in which a node can pass through them.
const (
	StateRecovering State = iota
	StateServing
	StatePoisoned
	StateStopping
)

// String returns the word that Status and probes use.
func (s State) String() string {
	return [...]string{"recovering", "serving", "poisoned", "stopping"}[min(s, StateStopping)]
}

// Node is what the services say about the process they are in.
type Node struct {
	ID, Version string
	Started     time.Time
	// State returns the phase and what there is to say about it.
	State func() (State, string)
	// Health returns whether the node should get requests, and what does not work as it should.
	Health func() (ready bool, problems []string)
	// Events takes the events of sidecars.
	Events Emitter
	// Vitals returns how the node is in every detail.
	Vitals func() Vitals
	// Sidecars remembers who called.
	Sidecars *Sidecars
	// Warnings are told by Status with what is degraded: they are of the configuration, and nothing that
	// an alert should wait for.
	Warnings []string
	// Tokens checks those of clients; nil: nobody needs one. Refused is told whom it turned away; nil: nobody is.
	Tokens  *token.Keys
	Refused func(ctx context.Context, method, why string)
	// Level is from which level on the node logs; nil: it can't be changed.
	Level *slog.LevelVar
}

// Backend is what requests need; it exists once the engine is open.
type Backend struct {
	Store     *store.Store
	Engine    Engine
	Snapshots Snapshots
	Tenants   *tenant.Registry
	Members   *members.Registry
	Moves     *moves.Registry
	Ownership *ownership.Registry
	// ClusterID is that of callers who may hand over ranges.
	ClusterID string
	// Equality tells since when ranges are equal on two nodes; nil: of none it is known.
	Equality Equality
	// AntiEntropy remembers what ranges were equal.
	AntiEntropy *antientropy.Registry
	Replica     *replica.Replica
	// ReplicationFactor is how many copies there are of each record; 0 is 3.
	ReplicationFactor int
	// Settings are told to the migrator.
	Settings Settings
	// LetGo lets go of what is held for a move that is over; nil: nothing is held.
	LetGo func(ctx context.Context, moveID string)
	// LocalMode is the configured mode of compaction in this process.
	LocalMode string
	// Pipelined is called for each message of a pipeline, also at the same time; it must return at once.
	// May be nil.
	Pipelined func(Pipelined)
	// MaxWrites is how many writes of pipelines are in work at once, over all of them; more wait. 0 is
	// as many as one of them may have.
	MaxWrites int
	// Hot looks at operations for the list of hot keys; nil: nobody does.
	Hot *hot.Tracker

	writes *places
	fences chan struct{} // held by who raises or lifts a fence
}

// Server holds the services of a node. They may be registered before there is a backend: until
// Open they answer RECOVERING.
type Server struct {
	node  Node
	open  atomic.Pointer[Backend]
	stall time.Duration
	// ordering lets a coordinator's orders of moves look for one that is there and make it in one step.
	ordering sync.Mutex

	leaving context.Context // ends when the node shuts down
	leave   context.CancelFunc
}

// New returns the services of a node.
func New(n Node) *Server {
	s := &Server{node: n, stall: streamStall}
	s.leaving, s.leave = context.WithCancel(context.Background())
	return s
}

// Open gives the services what they need to answer.
func (s *Server) Open(b Backend) {
	if b.MaxWrites == 0 {
		b.MaxWrites = maxPipelineOps + store.MaxBatchOps
	}
	b.writes, b.fences = newPlaces(b.MaxWrites), make(chan struct{}, 1)
	s.open.Store(&b)
}

// PipelineWrites returns how many writes of pipelines are in work, how many messages wait for places, and
// how many places there are; all 0 before Open.
func (s *Server) PipelineWrites() (taken, waiting, limit int) {
	if b := s.open.Load(); b != nil {
		return b.writes.use()
	}
	return 0, 0, 0
}

// Leave ends the streams: their readers resume elsewhere, or here after the restart. Calls with one
// answer finish.
func (s *Server) Leave() { s.leave() }

func (s *Server) backend() (*Backend, error) {
	if b := s.open.Load(); b != nil {
		return b, nil
	}
	return nil, ErrRecovering
}

// Admin returns the service for operators.
func (s *Server) Admin() adminv1.AdminServiceServer { return adminService{s: s} }

// Options configure a gRPC server of the node.
type Options struct {
	Log *slog.Logger
	// Observe is called after each call; it must return at once. May be nil.
	Observe func(Call)
	// Timeout is the deadline of a call that brings none, MaxInFlight how many calls are worked on
	// at once.
	Timeout     time.Duration
	MaxInFlight int
	// Load shows what the server has in work. May be nil.
	Load *Load
	// Reflection also serves gRPC reflection.
	Reflection bool
	// Tracer makes the spans of a call's stages below the span of the call, which a stats handler of the
	// transport makes; nil: none are made.
	Tracer trace.Tracer
	// SlowRequest is from when on a request for keys is logged as slow; 0: never.
	SlowRequest time.Duration
	// LogKeys has keys themselves in the log, instead of their hashes.
	LogKeys bool
}

// GRPC returns a gRPC server with the health service and everything that each call passes; more are
// options of the transport. Register services, then Serve.
func (s *Server) GRPC(o Options, h *health.Server, more ...grpc.ServerOption) *grpc.Server {
	if o.Load == nil {
		o.Load = &Load{}
	}
	o.Load.limit.Store(int64(o.MaxInFlight))
	g := &guard{
		log: o.Log, observe: o.Observe, timeout: o.Timeout, leaving: s.leaving, load: o.Load,
		tracer: o.Tracer, slow: newSlowLog(o),
	}
	server := grpc.NewServer(append([]grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.MaxSendMsgSize(maxResponseBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.ConnectionTimeout(10 * time.Second),
		// One that pings more often than every 5 s is told to stop.
		grpc.KeepaliveParams(Keepalive),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(g.unary),
		grpc.ChainStreamInterceptor(g.stream),
		grpc.UnknownServiceHandler(unknown),
	}, more...)...)
	healthv1.RegisterHealthServer(server, h)
	if o.Reflection {
		reflection.Register(server)
	}
	return server
}

// unknown answers calls that this node does not serve, so that they get a reason too.
func unknown(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	return status.Errorf(codes.Unimplemented, "unknown method %s", method)
}
