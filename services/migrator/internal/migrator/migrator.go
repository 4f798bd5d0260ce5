package migrator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/sidecar"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/move"
	"github.com/pairdb/pairdb/services/migrator/internal/plan"
	"github.com/pairdb/pairdb/services/migrator/internal/stream"
)

// sidecarName is how the node knows this process.
const sidecarName = "migrator"

// Times of the conversation with the node.
const (
	// beat is how often the node hears of the migrator and is looked at: it counts one as gone after
	// several.
	beat = 2 * time.Second
	// callTimeout bounds a call that the node answers from memory.
	callTimeout = 5 * time.Second
	// minRetry to maxRetry is the back-off after a call that failed.
	minRetry = 100 * time.Millisecond
	maxRetry = 2 * time.Second
)

var (
	// failFast makes a call fail at once while the node can't be reached; every caller tries again.
	failFast = grpc.WaitForReady(false)

	errRestarted = errors.New("the node has restarted")
	errDenied    = errors.New("the node refuses this user")
)

// Options configure a Migrator. All are required but Tracer, RepairInterval, RepairPaused and the rates.
type Options struct {
	// Conn is the connection to the node's socket; it must take messages of stream.MaxMessageBytes.
	Conn grpc.ClientConnInterface
	// Targets are the connections to other nodes.
	Targets *stream.Targets
	// Moves is how many are under way at once.
	Moves int
	// BytesPerSecond is what all moves together may send; 0: no limit.
	BytesPerSecond int64
	// RepairInterval, RepairPaused and RepairBytesPerSecond are those of plan.Options.
	RepairInterval       time.Duration
	RepairPaused         bool
	RepairBytesPerSecond int64
	Log                  *slog.Logger
	Metrics              *Metrics
	Tracer               trace.Tracer
	// Times are those of moves, for tests.
	Times move.Times
}

// Migrator does the work of one node. Run it once.
type Migrator struct {
	o         Options
	node      nodev1.NodeServiceClient
	migration migrationv1.MigrationServiceClient
	admin     adminv1.AdminServiceClient
	replica   replicav1.ReplicaServiceClient
	limit     *stream.Limiter
	members   members
	away      atomic.Pointer[string] // why the node can't be reached; nil: it can
}

// New returns a migrator.
func New(o Options) *Migrator {
	m := &Migrator{
		o: o, node: nodev1.NewNodeServiceClient(o.Conn), migration: migrationv1.NewMigrationServiceClient(o.Conn),
		admin: adminv1.NewAdminServiceClient(o.Conn), replica: replicav1.NewReplicaServiceClient(o.Conn),
		limit: stream.NewLimiter(o.BytesPerSecond),
	}
	o.Metrics.slots.Set(float64(o.Moves))
	starting := "the node has not answered yet"
	m.away.Store(&starting)
	return m
}

// Unreachable returns why the node can't be reached, or "".
func (m *Migrator) Unreachable() string {
	if why := m.away.Load(); why != nil {
		return *why
	}
	return ""
}

// Run works until ctx ends and returns nil then: streams have ended and what was reached is told. It
// returns an error only if the node says that this migrator may not ask.
func (m *Migrator) Run(ctx context.Context) error {
	pause := minRetry
	for ctx.Err() == nil {
		err := m.session(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errDenied):
			return err
		case errors.Is(err, errRestarted):
			pause = minRetry
		}
		m.reached(err)
		_ = sidecar.Pause(ctx, pause)
		pause = min(2*pause, maxRetry)
	}
	return nil
}

// identity is whose migrator this is, in one session of the node.
type identity struct {
	move.Identity
	session uint64
	grace   time.Duration
}

// session works until the node restarts, or ctx ends.
func (m *Migrator) session(ctx context.Context) error {
	id, err := m.greet(ctx)
	if err != nil {
		return err
	}
	m.reached(nil)
	m.o.Log.Info("node found", "node_id", id.NodeID, "cluster_id", id.ClusterID, "session", id.session)
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel(nil)
		wg.Wait()
	}()
	wg.Go(func() { m.members.watch(ctx, m) })
	planner := plan.New(plan.Options{
		NodeID: id.NodeID, ClusterID: id.ClusterID, Migration: m.migration, Admin: m.admin, Replica: m.replica, Dial: m.dial,
		Interval: m.o.RepairInterval, Paused: m.o.RepairPaused, BytesPerSecond: m.o.RepairBytesPerSecond, Log: m.o.Log, Metrics: m.o.Metrics.plan,
	})
	wg.Go(func() {
		if err := planner.Run(ctx); err != nil && ctx.Err() == nil {
			cancel(fmt.Errorf("plan: %w", err))
		}
	})
	wg.Go(func() {
		if err := m.carryOut(ctx, id); err != nil {
			cancel(err)
		}
	})
	if err := m.look(ctx, id); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// greet asks the node who it is and what it goes by.
func (m *Migrator) greet(ctx context.Context) (identity, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	i, err := m.node.Identity(ctx, &nodev1.IdentityRequest{Sidecar: sidecarName}, failFast)
	if err != nil {
		return identity{}, denied(err)
	}
	c, err := m.migration.Configuration(ctx, &migrationv1.ConfigurationRequest{}, failFast)
	if err != nil {
		return identity{}, denied(err)
	}
	return identity{
		Identity: move.Identity{ClusterID: i.GetClusterId(), NodeID: i.GetNodeId(), Addr: i.GetGrpcAddr()},
		session:  i.GetSession(), grace: time.Duration(c.GetGcGraceSeconds()) * time.Second,
	}, nil
}

// denied makes an error of a node that refuses to be asked end the process.
func denied(err error) error {
	if code := status.Code(err); code == codes.PermissionDenied || code == codes.Unauthenticated {
		return fmt.Errorf("%w: %w", errDenied, err)
	}
	return err
}

// look asks the node again and again who it is, until it is another one or has restarted.
func (m *Migrator) look(ctx context.Context, id identity) error {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		i, err := m.node.Identity(call, &nodev1.IdentityRequest{Sidecar: sidecarName}, failFast)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		m.reached(err)
		if err == nil && i.GetSession() != id.session {
			m.o.Log.Info("node has restarted", "node_id", i.GetNodeId(), "session", i.GetSession())
			return errRestarted
		}
	}
}

// reached notes and logs changes of whether the node can be reached.
func (m *Migrator) reached(err error) {
	if err == nil {
		if m.away.Swap(nil) != nil {
			m.o.Log.Info("node reached")
		}
		m.o.Metrics.connected.Set(1)
		return
	}
	if errors.Is(err, errRestarted) || status.Code(err) == codes.Canceled {
		return // it answers, or our own end
	}
	why := err.Error()
	if m.away.Swap(&why) == nil {
		m.o.Log.Warn("node lost", "error", err)
	}
	m.o.Metrics.connected.Set(0)
}

// dial connects the planner to another node.
func (m *Migrator) dial(_ context.Context, addr string) (plan.Peer, error) {
	conn, release, err := m.o.Targets.Dial(addr)
	if err != nil {
		return plan.Peer{}, err
	}
	return plan.Peer{Replica: replicav1.NewReplicaServiceClient(conn), Admin: adminv1.NewAdminServiceClient(conn), Release: release}, nil
}
