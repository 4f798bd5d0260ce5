package move

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/stream"
)

// Identity is who moves: the node of the pod.
type Identity struct {
	ClusterID, NodeID string
	// Addr is where the node serves clients.
	Addr string
}

// Comparison is what is to be compared, and with whom.
type Comparison struct {
	MoveID string
	// Own and Other are the two sides; Peer is who asks.
	Own, Other replicav1.ReplicaServiceClient
	Peer       *replicav1.Peer
	What       *movev1.Selection
	// CollectedBefore is as in DigestRequest.
	CollectedBefore uint64
	// BothWays has each side get what only the other has; else records go from Own to Other.
	BothWays bool
	// Limits bound what is sent.
	Limits []*stream.Limiter
	// Progress is told what was compared and repaired since it was last told; may be nil.
	Progress func(comparedKeys, repairedKeys int64)
}

// Compared is what a comparison found. It returns when nothing differs any more.
type Compared struct {
	// ComparedKeys and RepairedKeys are the whole of it.
	ComparedKeys, RepairedKeys int64
}

// Compare makes two sides equal. It returns an error when it could not, and never claims to have.
type Compare func(ctx context.Context, c Comparison) (Compared, error)

// Options configure a Runner. All fields are required but Metrics, Tracer and Limit.
type Options struct {
	// Migration and Replica call the node of the pod, over its socket.
	Migration migrationv1.MigrationServiceClient
	Replica   replicav1.ReplicaServiceClient
	Self      Identity
	// Targets are the connections to other nodes.
	Targets *stream.Targets
	// Addr returns where the members say that a node is.
	Addr func(nodeID string) (addr string, ok bool)
	// Removed reports whether the members say that a node was taken off their list: what it has accepted is not its
	// any more.
	Removed func(nodeID string) bool
	// Compare verifies.
	Compare Compare
	// Limit is shared by all moves; nil: none.
	Limit *stream.Limiter
	// GCGrace is the node's: deletions that are older may be gone on either side.
	GCGrace time.Duration
	Log     *slog.Logger
	// Metrics count; nil: nobody looks.
	Metrics *Metrics
	// Tracer makes a span for each step; nil: none.
	Tracer trace.Tracer
	// Times are for tests; zero ones are the defaults.
	Times Times
}

// Times of a move.
type Times struct {
	// Call bounds a call that answers at once; default 10 s.
	Call time.Duration
	// Fence is how long requests may be refused before the hand-over is put off; default 30 s.
	Fence time.Duration
	// MinRetry to MaxRetry is the pause after an error; default 100 ms to 15 s.
	MinRetry, MaxRetry time.Duration
	// Report is how often progress is told; default 1 s.
	Report time.Duration
	// Stall is how long a stream may bring nothing forward: as in stream.Options for the target, and
	// likewise for what comes from the node; default 1 min.
	Stall time.Duration
}

func (t Times) withDefaults() Times {
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{
		{&t.Call, 10 * time.Second}, {&t.Fence, 30 * time.Second}, {&t.MinRetry, 100 * time.Millisecond},
		{&t.MaxRetry, 15 * time.Second}, {&t.Report, time.Second}, {&t.Stall, time.Minute},
	} {
		if *d.value <= 0 {
			*d.value = d.or
		}
	}
	return t
}

func (o Options) withDefaults() Options {
	if o.Metrics == nil {
		o.Metrics = NewMetrics()
	}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider().Tracer("")
	}
	o.Times = o.Times.withDefaults()
	return o
}
