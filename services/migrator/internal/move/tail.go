package move

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pairdb/pairdb/libs/sidecar"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/stream"
)

// follow forwards changes in the background, and does meanwhile what comes after the copy: it verifies,
// and hands over or commits.
func (r *Runner) follow(ctx context.Context) error {
	// A pin that broke is noticed by the feed; one that was never made is made here.
	pinned, err := r.pin(ctx)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.is.tail = max(r.is.tail, pinned-1) // nothing before the pin is asked for: the copy has it
	r.is.heard = false
	r.mu.Unlock()
	defer r.following.Store(false)
	defer r.touched.end()

	ctx, cancel := context.WithCancelCause(ctx)
	stop := r.reporting(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.tail(ctx); err != nil {
			cancel(err)
		}
	}()
	err = r.beside(ctx)
	err = firstCause(ctx, err)
	cancel(nil)
	<-done
	stop()
	r.mu.Lock()
	r.is.heard = false
	r.mu.Unlock()
	return err
}

// tail forwards changes until ctx ends or somebody must decide; it tries again what may pass by itself.
func (r *Runner) tail(ctx context.Context) error {
	pause := r.o.Times.MinRetry
	for {
		before := r.sent()
		err := r.tailOnce(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if permanent(err) || hasReason(err, reasonTooOld) || errors.Is(err, errAnotherTarget) {
			return err
		}
		r.o.Metrics.retries.WithLabelValues(causeOf(err)).Inc()
		if r.sent() > before {
			pause = r.o.Times.MinRetry
		}
		r.explain(ctx, err)
		_ = sidecar.Pause(ctx, pause)
		pause = min(2*pause, r.o.Times.MaxRetry)
	}
}

// sent returns how many changes the target has.
func (r *Runner) sent() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.is.progress.GetTailedRecords()
}

// tailOnce forwards changes from behind the last one that the target has, until a side breaks off.
func (r *Runner) tailOnce(parent context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	t, err := r.sendTo(ctx)
	if err != nil {
		return err
	}
	defer t.release()
	r.mu.Lock()
	from, current, seen := r.is.tail+1, r.is.tailAtMs, r.m.GetUpdatedAtMs()
	r.mu.Unlock()
	silent := r.silence(cancel) // of a feed that says something each 200 ms, whether anything changes or not
	defer silent.Stop()
	feed, err := r.o.Migration.Follow(ctx, &migrationv1.FollowRequest{MoveId: r.id, FromSequence: from}, failFast, stream.Encoded)
	if err != nil {
		return ofNode(firstCause(ctx, err))
	}
	// The oldest change that is sent is newer than the newest that the target has.
	readAt := time.Now()
	if oldest := max(current, seen); oldest > 0 {
		readAt = time.UnixMilli(oldest)
	}
	sink, err := r.sink(ctx, t, stream.Options{ReadAt: readAt, Acked: r.tailed})
	if err != nil {
		return err
	}
	defer func() {
		sink.Close()
		if parent.Err() == nil {
			r.resent(sink.Unacknowledged())
		}
	}()
	watching := make(chan struct{})
	defer func() { <-watching }()
	defer cancel(nil)
	go func() {
		defer close(watching)
		select {
		case <-sink.Ended(): // while the feed has nothing to say
			cancel(ofTarget(broken(sink.Err())))
		case <-ctx.Done():
		}
	}()
	about := &migrationv1.FollowResponse{}
	part := &stream.Part{Rest: about}
	defer part.Free()
	for {
		silent.Reset(r.o.Times.Stall)
		err := feed.RecvMsg(part)
		silent.Stop()
		if err != nil {
			return ofNode(firstCause(ctx, err))
		}
		for key := range part.Records.All() {
			r.touched.add(key)
		}
		r.mu.Lock()
		r.is.newest, r.is.heard = max(r.is.newest, about.GetNewestSequence(), about.GetSequence()), true
		r.mu.Unlock()
		if err := sink.Send(ctx, &part.Records, stream.Mark{Sequence: about.GetSequence(), AtMs: about.GetAtMs()}); err != nil {
			return ofTarget(firstCause(ctx, broken(err)))
		}
	}
}

// broken makes an error of the orderly end of a stream that was to go on.
func broken(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return stream.ErrBroken
	}
	return err
}

// caughtUp waits until the target has everything that the node had when it was first heard after the
// call.
func (r *Runner) caughtUp(ctx context.Context) error {
	goal, known := uint64(0), false
	for {
		r.mu.Lock()
		tail, newest, heard, changed := r.is.tail, r.is.newest, r.is.heard, r.changed
		r.mu.Unlock()
		if heard && !known {
			goal, known = newest, true
		}
		if known && tail >= goal {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// has waits until the target has every change up to a sequence.
func (r *Runner) has(ctx context.Context, sequence uint64) error {
	for {
		r.mu.Lock()
		tail, changed := r.is.tail, r.changed
		r.mu.Unlock()
		if tail >= sequence {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// notVerified is the reason of a copy that has everything and can't be compared. Nodes know its beginning:
// it stands for the verification that copies end with.
const notVerified = "not verified: the target knows the established contract only, and has no means to compare"

// beside is what is done while changes are forwarded.
func (r *Runner) beside(ctx context.Context) error {
	verified := false // in this session: what an earlier one has verified, changes have passed by since
	for {
		if err := r.caughtUp(ctx); err != nil {
			return err
		}
		m := r.move()
		r.mu.Lock()
		contract := r.contract
		r.mu.Unlock()
		follows := m.GetMode() == movev1.Mode_MODE_FOLLOW && !m.GetFinishing()
		if contract {
			r.mu.Lock()
			r.note = notVerified
			r.mu.Unlock()
			if m.GetReason() != notVerified {
				if err := r.advance(ctx, step{}); err != nil {
					return err
				}
			}
		}
		if follows && (verified || contract) {
			r.following.Store(true)
			r.waitFor(ctx, time.Hour, func(now *movev1.Move) bool { return now.GetFinishing() })
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			continue
		}
		r.following.Store(false)
		if !follows && m.GetState() == movev1.State_STATE_TAILING {
			if err := r.advance(ctx, step{state: movev1.State_STATE_VERIFYING}); err != nil {
				return err
			}
		}
		if contract {
			return r.advance(ctx, step{state: movev1.State_STATE_COMMITTED})
		}
		if err := r.verify(ctx); err != nil {
			return err
		}
		verified = true
		switch {
		case follows:
		case m.GetHandOver():
			return r.handOver(ctx)
		default:
			return r.advance(ctx, step{state: movev1.State_STATE_COMMITTED})
		}
	}
}

// verify has both sides compared and made equal, and remembers the keys that change from its beginning on.
func (r *Runner) verify(ctx context.Context) error {
	const most = 5 // changes come faster than a comparison can remember
	for range most {
		r.touched.begin()
		if err := r.compare(ctx, false); err != nil {
			return err
		}
		if _, complete := r.touched.count(); complete || !r.move().GetHandOver() {
			return r.advance(ctx, step{verified: true})
		}
	}
	return fmt.Errorf("verified %d times, and each time more than %d keys changed meanwhile", most, maxTouchedKeys)
}
