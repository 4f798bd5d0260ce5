package move

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pairdb/pairdb/libs/sidecar"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

const (
	// fewKeys are compared within a second, while writes wait.
	fewKeys = 2000
	// shrinkRounds of comparing what changed should bring it down to that; a range that is written faster
	// is fenced with more.
	shrinkRounds = 5
	// calmLag is how far behind a target may be when the fence begins: so long it takes to catch up.
	calmLag = time.Second
	// askAgain is the pause between questions to a target that may have accepted.
	askAgain = 500 * time.Millisecond
	// declineFor is how long a target is asked to forget a preparation that the node has forgotten.
	declineFor = 10 * time.Minute
)

// handOver makes the target the owner: see "Why nothing is lost" of the package.
func (r *Runner) handOver(ctx context.Context) error {
	t, err := r.sendTo(ctx)
	if err != nil {
		return err
	}
	defer t.release()
	if err := r.shrink(ctx, t); err != nil {
		return err
	}
	known, err := r.prepare(ctx, t)
	if err != nil {
		return err
	}
	began := time.Now()
	epoch, err := r.inFence(ctx, t, known)
	if err != nil {
		return r.backOut(ctx, err)
	}
	if err := r.accept(ctx, epoch); err != nil {
		return err
	}
	r.o.Metrics.fenced.Observe(time.Since(began).Seconds())
	return nil
}

// shrink compares what changed since the verification, until little is left for the fence, and the
// target is close behind.
func (r *Runner) shrink(ctx context.Context, t *target) error {
	for range shrinkRounds {
		if n, _ := r.touched.count(); n <= fewKeys {
			break
		}
		keys, complete := r.touched.take()
		if !complete {
			return fmt.Errorf("more than %d keys changed since the comparison", maxTouchedKeys)
		}
		if err := r.equalize(ctx, t, keys); err != nil {
			return err
		}
	}
	for {
		r.mu.Lock()
		lag, changed := r.is.lag(time.Now()), r.changed
		r.mu.Unlock()
		if lag <= calmLag {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// prepare has the target refuse requests of the ranges, and returns the highest epoch that it knows.
func (r *Runner) prepare(ctx context.Context, t *target) (uint64, error) {
	r.mu.Lock()
	r.prepared = true
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, r.o.Times.Call)
	defer cancel()
	a, err := t.replica.Prepare(ctx, &replicav1.PrepareRequest{
		Peer: r.peer, MoveId: r.id, Ranges: r.move().GetWhat().GetHashRanges(), OwnerAddr: r.o.Self.Addr,
	}, failFast)
	return a.GetKnownEpoch(), ofTarget(err)
}

// inFence begins the fence and does all that must be done before the target may accept. It returns the
// epoch, which is stored then. After an error Accept was not sent.
func (r *Runner) inFence(ctx context.Context, t *target, known uint64) (uint64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(r.o.Times.Fence, func() { cancel(errFenceLong) })
	defer late.Stop()
	watching := make(chan struct{})
	defer func() { cancel(nil); <-watching }()
	go func() {
		defer close(watching)
		if r.waitFor(ctx, r.o.Times.Fence, func(m *movev1.Move) bool { return m.GetCancelling() }) {
			cancel(errCancelling)
		}
	}()
	fence, err := r.o.Migration.Fence(ctx, &migrationv1.FenceRequest{MoveId: r.id})
	if err != nil {
		return 0, ofNode(firstCause(ctx, err))
	}
	if err := r.reach(ctx, movev1.State_STATE_FENCED); err != nil {
		return 0, firstCause(ctx, err)
	}
	if err := r.has(ctx, fence.GetSequence()); err != nil {
		return 0, err
	}
	// Nothing that is forwarded from here on is of the ranges.
	keys, complete := r.touched.take()
	if !complete {
		return 0, fmt.Errorf("more than %d keys changed since the comparison", maxTouchedKeys)
	}
	if err := r.equalize(ctx, t, keys); err != nil {
		return 0, firstCause(ctx, err)
	}
	// The target that was verified is the one that accepts.
	again, err := r.sendTo(ctx)
	if err != nil {
		return 0, firstCause(ctx, err)
	}
	again.release()
	epoch := max(known, fence.GetKnownEpoch(), r.move().GetEpoch()) + 1
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	// From here on Accept may have been sent, whatever becomes of this process.
	if err := r.advance(ctx, step{epoch: epoch}); err != nil {
		return 0, firstCause(ctx, err)
	}
	if m := r.move(); m.GetCancelling() || m.GetState() != movev1.State_STATE_FENCED {
		return 0, errCancelling
	}
	return epoch, nil
}

// accept has the target accept, whatever that takes: from the first call on only the target knows whether
// it has.
func (r *Runner) accept(ctx context.Context, epoch uint64) error {
	for {
		err := r.tryAccept(ctx, epoch)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.o.Metrics.retries.WithLabelValues(causeOf(err)).Inc()
		if definite(err) || r.move().GetCancelling() || r.removed() {
			return r.resolve(ctx)
		}
		r.explain(ctx, err)
		_ = sidecar.Pause(ctx, min(askAgain, r.o.Times.MaxRetry))
	}
	return r.advance(ctx, step{state: movev1.State_STATE_ACCEPTED, epoch: epoch})
}

func (r *Runner) tryAccept(ctx context.Context, epoch uint64) error {
	t, err := r.reachTarget(ctx)
	if err != nil {
		return failedToReach(err)
	}
	defer t.release()
	ctx, cancel := context.WithTimeout(ctx, r.o.Times.Call)
	defer cancel()
	_, err = t.replica.Accept(ctx, &replicav1.AcceptRequest{Peer: r.peer, MoveId: r.id, Epoch: epoch}, failFast)
	r.answered(t, err == nil, false)
	return ofTarget(err)
}

// answered notes what a target said of the ranges.
func (r *Runner) answered(t *target, accepted, declined bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if accepted {
		r.acceptedBy = t.incarnation
	}
	if declined {
		r.prepared = false
	}
}

// failedToReach makes an error that is none of the target's own words: somebody else may answer at its
// address for a while.
func failedToReach(err error) error { return fmt.Errorf("%w: %s", errRefused, say(err)) }

// resolve finds out how a fence ends: of another process, or of a target that refused to accept. If the
// target has accepted it is told so, otherwise the fence is lifted.
func (r *Runner) resolve(ctx context.Context) error {
	m := r.move()
	if m.GetEpoch() == 0 {
		return r.backOut(ctx, errors.New("the migrator was restarted in it"))
	}
	for {
		accepted, err := r.decline(ctx)
		switch {
		case err == nil && accepted:
			return r.advance(ctx, step{state: movev1.State_STATE_ACCEPTED, epoch: m.GetEpoch()})
		case err == nil:
			return r.backOut(ctx, errors.New("the target has not accepted"))
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case r.removed(): // it will never tell, and owns nothing
			return r.backOut(ctx, errors.New("the target was removed"))
		}
		r.o.Metrics.retries.WithLabelValues(causeOf(err)).Inc()
		r.explain(ctx, err)
		_ = sidecar.Pause(ctx, min(askAgain, r.o.Times.MaxRetry))
	}
}

// removed reports whether the target was taken off the list of members.
func (r *Runner) removed() bool {
	return r.o.Removed != nil && r.o.Removed(r.move().GetTarget().GetNodeId())
}

// decline asks the target to forget the preparation, and whether it is too late for that.
func (r *Runner) decline(ctx context.Context) (accepted bool, err error) {
	t, err := r.reachTarget(ctx)
	if err != nil {
		return false, failedToReach(err)
	}
	defer t.release()
	ctx, cancel := context.WithTimeout(ctx, r.o.Times.Call)
	defer cancel()
	a, err := t.replica.Decline(ctx, &replicav1.DeclineRequest{Peer: r.peer, MoveId: r.id, Epoch: r.move().GetEpoch()}, failFast)
	r.answered(t, err == nil && a.GetAccepted(), err == nil && !a.GetAccepted())
	return a.GetAccepted(), ofTarget(err)
}

// backOut takes a hand-over back of which Accept was not sent, or was declined: the source serves again.
// It returns why; the move goes on with its verification, or is called off.
func (r *Runner) backOut(ctx context.Context, why error) error {
	r.o.Metrics.putOff.Inc()
	r.log.Warn("hand-over put off", "error", why)
	r.touched.end()
	// A process that is told to end lifts the fence all the same: its successor would only do that, later.
	quickly := min(2*time.Second, r.o.Times.Call)
	quick, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickly)
	_, _ = r.decline(quick) // the target is not the owner, whether it hears this or not
	cancel()
	pause := r.o.Times.MinRetry
	for {
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickly)
		_, err := r.o.Migration.Lift(call, &migrationv1.LiftRequest{MoveId: r.id})
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.explain(ctx, ofNode(err))
		_ = sidecar.Pause(ctx, pause)
		pause = min(2*pause, time.Second)
	}
	r.waitFor(ctx, r.o.Times.Call, func(m *movev1.Move) bool { return m.GetState() != movev1.State_STATE_FENCED })
	if permanent(why) || errors.Is(why, errAnotherTarget) {
		return why
	}
	return fmt.Errorf("%w: %w", errPutOff, why)
}

// declineForLong asks the target to forget a move that the node has called off.
func (r *Runner) declineForLong(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, declineFor)
	defer cancel()
	pause := r.o.Times.MinRetry
	for ctx.Err() == nil {
		accepted, err := r.decline(ctx)
		if err == nil {
			if accepted {
				r.log.Error("the target has accepted a move that is called off")
			}
			return
		}
		_ = sidecar.Pause(ctx, pause)
		pause = min(2*pause, r.o.Times.MaxRetry)
	}
	r.log.Warn("the target could not be asked to forget the move")
}

// give has the node record that the target is the owner.
func (r *Runner) give(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, r.o.Times.Call)
	defer cancel()
	r.mu.Lock()
	by := r.acceptedBy
	r.mu.Unlock()
	if _, err := r.o.Migration.Give(call, &migrationv1.GiveRequest{MoveId: r.id, TargetIncarnation: by}); err != nil {
		return ofNode(err)
	}
	return r.reach(ctx, movev1.State_STATE_COMMITTED)
}

// release has the node let go of what it holds for the move.
func (r *Runner) release(ctx context.Context) error {
	if err := r.callRelease(ctx); err != nil {
		return err
	}
	return r.reach(ctx, movev1.State_STATE_RELEASED)
}

func (r *Runner) callRelease(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.o.Times.Call)
	defer cancel()
	_, err := r.o.Migration.Release(ctx, &migrationv1.ReleaseRequest{MoveId: r.id})
	return ofNode(err)
}
