package move

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/sidecar"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/stream"
)

// failFast makes a call fail at once while the other side can't be reached: whoever calls tries again.
var failFast = grpc.WaitForReady(false)

// Runner takes one move through its life. Run it once; See, Gone, Following and Lag may be called
// concurrently.
type Runner struct {
	o       Options
	id      string
	log     *slog.Logger
	peer    *replicav1.Peer   // who calls
	limits  []*stream.Limiter // of what is sent
	touched touched

	// advancing is held by who changes the move at the node. It is taken before mu.
	advancing sync.Mutex

	following atomic.Bool

	mu          sync.Mutex
	m           *movev1.Move            // guarded by mu; the newest that is known
	gone        bool                    // guarded by mu; the node does not list it any more
	changed     chan struct{}           // guarded by mu; closed at the next change
	interrupt   context.CancelCauseFunc // guarded by mu; ends the step that is under way
	incarnation string                  // guarded by mu; of the target's data directory, as first seen
	contract    bool                    // guarded by mu; the target knows the established contract only
	note        string                  // guarded by mu; the reason while all is well
	prepared    bool                    // guarded by mu; the target may have been asked to prepare
	acceptedBy  string                  // guarded by mu; the incarnation of the target that has accepted
	is          standing                // guarded by mu
}

// New returns a runner of a move as the node has it.
func New(o Options, m *movev1.Move) *Runner {
	o = o.withDefaults()
	return &Runner{
		o: o, id: m.GetId(), m: m, changed: make(chan struct{}),
		log:    o.Log.With("move", m.GetId(), "target", m.GetTarget().GetNodeId()),
		peer:   &replicav1.Peer{ClusterId: o.Self.ClusterID, NodeId: o.Self.NodeID},
		limits: []*stream.Limiter{o.Limit, stream.NewLimiter(m.GetMaxBytesPerSecond())},
		is:     standAt(m),
	}
}

// ID returns the id of the move.
func (r *Runner) ID() string { return r.id }

// Following reports whether the move has done all that it does by itself, and follows until it is told
// otherwise.
func (r *Runner) Following() bool { return r.following.Load() }

// See tells the runner what the node says of its move now.
func (r *Runner) See(m *movev1.Move) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seeLocked(m)
}

func (r *Runner) seeLocked(m *movev1.Move) {
	if m.GetVersion() <= r.m.GetVersion() {
		return
	}
	if was, now := r.m.GetState(), m.GetState(); was != now {
		r.o.Metrics.changes.WithLabelValues(stateName(now)).Inc()
		r.log.Info("move changed", "state", stateName(now), "was", stateName(was), "reason", m.GetReason())
	}
	r.m = m
	if r.interrupt != nil && over(m.GetState()) {
		r.interrupt(errCalledOff)
	}
	r.signalLocked()
}

// Gone tells the runner that the node does not list its move any more.
func (r *Runner) Gone() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = true
	if r.interrupt != nil {
		r.interrupt(errCalledOff)
	}
	r.signalLocked()
}

func (r *Runner) signalLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// over reports whether a runner has nothing more to do for a move in this state.
func over(s movev1.State) bool {
	return s == movev1.State_STATE_RELEASED || s == movev1.State_STATE_FAILED || s == movev1.State_STATE_CANCELLED
}

// move returns the newest that is known. Nobody changes it.
func (r *Runner) move() *movev1.Move {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.m
}

// Run works until the move is over or failed, or ctx ends.
func (r *Runner) Run(ctx context.Context) {
	pause := r.o.Times.MinRetry
	for ctx.Err() == nil {
		r.mu.Lock()
		m, ended, reached := r.m, r.gone || over(r.m.GetState()), r.is.reached
		r.mu.Unlock()
		if ended {
			r.ended(ctx, m)
			return
		}
		err := r.step(ctx, m)
		if err == nil {
			pause = r.o.Times.MinRetry
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if r.isOver() {
			continue
		}
		r.o.Metrics.retries.WithLabelValues(causeOf(err)).Inc()
		if causeOf(err) == "changed" && !permanent(err) {
			// The news is on its way, or the node has forgotten the move.
			r.waitFor(ctx, pause, func(now *movev1.Move) bool { return now.GetVersion() > m.GetVersion() })
			pause = min(2*pause, time.Second)
			continue
		}
		if r.move().GetState() < movev1.State_STATE_FENCED {
			switch {
			case hasReason(err, reasonTooOld), errors.Is(err, errAnotherTarget):
				err = r.anew(ctx, err)
			case permanent(err):
				r.failMove(ctx, err)
			}
		}
		if err == nil {
			continue
		}
		if r.isOver() {
			continue
		}
		r.explain(ctx, err)
		if r.hasReached(reached) && !errors.Is(err, errPutOff) { // what was verified for it is verified anew each time
			pause = r.o.Times.MinRetry
		}
		_ = sidecar.Pause(ctx, pause)
		pause = min(2*pause, r.o.Times.MaxRetry)
	}
}

// step does what comes next. It ends with an error that says what stopped it.
func (r *Runner) step(ctx context.Context, m *movev1.Move) (err error) {
	ctx, interrupt := context.WithCancelCause(ctx)
	defer interrupt(nil)
	r.mu.Lock()
	r.interrupt = interrupt
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.interrupt = nil
		r.mu.Unlock()
	}()
	ctx, span := r.o.Tracer.Start(ctx, "move "+stateName(m.GetState()), trace.WithNewRoot(), trace.WithAttributes(
		attribute.String("pairdb.move", r.id), attribute.String("pairdb.move_target", m.GetTarget().GetNodeId()),
		attribute.String("pairdb.move_purpose", m.GetPurpose().String()),
	))
	defer func() {
		if err != nil {
			span.SetStatus(otelcodes.Error, say(err))
		}
		span.End()
	}()
	repair := m.GetPurpose() == movev1.Purpose_PURPOSE_REPAIR
	switch m.GetState() {
	case movev1.State_STATE_PLANNED, movev1.State_STATE_PINNED:
		return r.begin(ctx)
	case movev1.State_STATE_COPYING:
		return r.copy(ctx)
	case movev1.State_STATE_VERIFYING:
		if repair {
			return r.repair(ctx)
		}
		return r.follow(ctx)
	case movev1.State_STATE_TAILING:
		return r.follow(ctx)
	case movev1.State_STATE_FENCED:
		return r.resolve(ctx)
	case movev1.State_STATE_ACCEPTED:
		return r.give(ctx)
	case movev1.State_STATE_COMMITTED:
		return r.release(ctx)
	}
	return failf("the move is in state %s, which this binary does not know", m.GetState())
}

func (r *Runner) isOver() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gone || over(r.m.GetState())
}

// waitFor waits until the move is as wanted, or is over, but no longer than limit; it reports whether
// it is as wanted.
func (r *Runner) waitFor(ctx context.Context, limit time.Duration, wanted func(*movev1.Move) bool) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		r.mu.Lock()
		m, changed, ended := r.m, r.changed, r.gone || over(r.m.GetState())
		r.mu.Unlock()
		if wanted(m) {
			return true
		}
		if ended {
			return false
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// reach waits for the news that the node has brought the move to a state, or past it.
func (r *Runner) reach(ctx context.Context, s movev1.State) error {
	if r.waitFor(ctx, r.o.Times.Call, func(m *movev1.Move) bool { return m.GetState() >= s }) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: it is not %s yet", errNews, stateName(s))
}

// explain tells the node why the move waits.
func (r *Runner) explain(ctx context.Context, err error) {
	text := say(err)
	if r.move().GetReason() == text {
		return
	}
	r.log.Warn("move waits", "state", stateName(r.move().GetState()), "error", err)
	_ = r.advance(ctx, step{reason: text}) // the node may be what is away
}

// failMove says that a person must solve what is wrong. If the node can't be told, the error comes again.
func (r *Runner) failMove(ctx context.Context, err error) {
	r.log.Error("move failed", "state", stateName(r.move().GetState()), "error", err)
	_ = r.advance(ctx, step{state: movev1.State_STATE_FAILED, reason: say(err)})
}

// anew begins from a new pin: what was copied is there still, and costs nothing but the way; the place in
// the log is lost.
func (r *Runner) anew(ctx context.Context, why error) error {
	r.log.Warn("move begins anew", "error", why)
	r.mu.Lock()
	r.incarnation = ""
	r.mu.Unlock()
	return r.advance(ctx, step{state: movev1.State_STATE_PLANNED, reason: "begins anew: " + say(why), restart: true})
}

// ended cleans up behind a move that is over.
func (r *Runner) ended(ctx context.Context, m *movev1.Move) {
	r.mu.Lock()
	prepared := r.prepared
	r.mu.Unlock()
	if m.GetState() == movev1.State_STATE_RELEASED || m.GetState() == movev1.State_STATE_FAILED {
		return
	}
	if m.GetHandOver() && (prepared || m.GetState() >= movev1.State_STATE_VERIFYING) && m.GetState() < movev1.State_STATE_ACCEPTED ||
		m.GetState() == movev1.State_STATE_CANCELLED && m.GetHandOver() {
		r.declineForLong(ctx)
	}
	if m.GetState() == movev1.State_STATE_CANCELLED {
		ctx, cancel := context.WithTimeout(ctx, r.o.Times.Call)
		defer cancel()
		_ = r.callRelease(ctx) // the node has let go by itself, or does it at its next start
	}
}

// Version returns the newest version of the move that the runner knows.
func (r *Runner) Version() uint64 { return r.move().GetVersion() }
