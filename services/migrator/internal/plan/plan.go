package plan

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/sidecar"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

const (
	// callLimit bounds calls that a node answers from memory or with one durable write.
	callLimit = 10 * time.Second
	// again is the pause before a step that failed is done again.
	again = 2 * time.Second
	// breath is the shortest pause between two steps, whatever changes.
	breath = 100 * time.Millisecond
	// idle is the pause between two looks at what does not change by itself.
	idle = 10 * time.Second
)

// Peer is another node, over TCP.
type Peer struct {
	// Replica must take messages of 64 MiB: a record has up to 48.
	Replica replicav1.ReplicaServiceClient
	Admin   adminv1.AdminServiceClient
	// Release says that the caller needs them no longer; it is called once.
	Release func()
}

// Options of a planner. All but Interval, Paused, BytesPerSecond and what says otherwise are needed.
type Options struct {
	// NodeID and ClusterID are those of the own node.
	NodeID, ClusterID string
	// Migration, Admin and Replica reach the own node over its socket; Replica must take messages of 64 MiB.
	// The planner opens streams of its own (Work, WatchMembers).
	Migration migrationv1.MigrationServiceClient
	Admin     adminv1.AdminServiceClient
	Replica   replicav1.ReplicaServiceClient
	// Dial reaches another node by the address that it has declared, host:port. It need not wait for it.
	Dial func(ctx context.Context, addr string) (Peer, error)
	// Interval is PAIRDB_REPAIR_INTERVAL: 0 compares only when something changes.
	Interval time.Duration
	// Paused is PAIRDB_REPAIR_PAUSED: nothing is compared. Drains and bootstraps go on.
	Paused bool
	// BytesPerSecond is PAIRDB_REPAIR_BYTES_PER_SECOND; 0: no limit.
	BytesPerSecond int64
	// Random returns numbers in [0, 1), to spread what all would do at once; nil: the global source.
	Random func() float64
	// Log gets a line for each thing that is decided, and for each that does not go on.
	Log *slog.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

// Planner runs the loops. Make it with New.
type Planner struct {
	o     Options
	views *views
	limit *limiter
}

// New returns a planner that does nothing yet.
func New(o Options) *Planner {
	if o.Random == nil {
		o.Random = rand.Float64
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics()
	}
	return &Planner{o: o, views: newViews(), limit: newLimiter(o.BytesPerSecond)}
}

// Run plans until ctx ends, and returns nil then. Problems of the own node and of others are retried for
// ever and logged; it waits for all that it began. It is called once.
func (p *Planner) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { p.views.run(ctx, &p.o) })
	steps := map[string]func(ctx context.Context, v view) (time.Duration, error){
		"drain": p.drain, "bootstrap": newJoiner(p).step, "return": newReturner(p).step, "sweep": p.sweep, "repair": newRepairer(p).step,
	}
	if p.o.Paused {
		delete(steps, "repair")
		p.o.Log.Warn("replicas are not compared in the background: PAIRDB_REPAIR_PAUSED")
	}
	for name, step := range steps {
		group.Go(func() { p.loop(ctx, name, step) })
	}
	return nil
}

// loop does a step after each change of the view, and when the step says so. A step that fails is done
// again soon; the log gets a line when it begins to fail, and when it fails otherwise.
func (p *Planner) loop(ctx context.Context, name string, step func(ctx context.Context, v view) (time.Duration, error)) {
	trouble := ""
	for ctx.Err() == nil {
		v, changed := p.views.get()
		if !v.heard {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		wait, err := step(ctx, v)
		if err != nil && ctx.Err() == nil {
			wait = again
			if err.Error() != trouble {
				p.o.Log.Warn("planning failed and is repeated", "what", name, "error", err)
			}
			trouble = err.Error()
		} else {
			trouble = ""
		}
		if sidecar.Pause(ctx, breath) != nil {
			return
		}
		timer := time.NewTimer(max(wait-breath, 0))
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// peer is who calls.
func (p *Planner) peer() *replicav1.Peer {
	return &replicav1.Peer{ClusterId: p.o.ClusterID, NodeId: p.o.NodeID}
}

// call gives a function a context with the limit of a short call.
func call[A any](ctx context.Context, f func(ctx context.Context) (A, error)) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return f(ctx)
}

// own is what the node says of itself.
type own struct {
	config    *migrationv1.ConfigurationResponse
	ownership *migrationv1.OwnershipResponse
}

func (p *Planner) own(ctx context.Context) (o own, err error) {
	o.config, err = call(ctx, func(ctx context.Context) (*migrationv1.ConfigurationResponse, error) {
		return p.o.Migration.Configuration(ctx, &migrationv1.ConfigurationRequest{})
	})
	if err != nil {
		return o, err
	}
	o.ownership, err = call(ctx, func(ctx context.Context) (*migrationv1.OwnershipResponse, error) {
		return p.o.Migration.Ownership(ctx, &migrationv1.OwnershipRequest{})
	})
	return o, err
}
