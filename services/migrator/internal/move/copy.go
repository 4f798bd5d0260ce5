package move

import (
	"context"
	"errors"
	"fmt"
	"time"

	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/stream"
)

// copyWindow may be sent of a copy and not acknowledged: what a target takes while a busy machine lets it
// wait for a processor and its disk, a tenth of a second. After a death all of it may have to be sent again.
const copyWindow = 8 << 20

// begin makes sure of the target and has the node hold its log.
func (r *Runner) begin(ctx context.Context) error {
	t, err := r.sendTo(ctx)
	if err != nil {
		return err
	}
	defer t.release()
	if !t.contract {
		if err := r.tenants(ctx, t); err != nil {
			return err
		}
	}
	if r.move().GetPurpose() == movev1.Purpose_PURPOSE_REPAIR {
		return r.advance(ctx, step{state: movev1.State_STATE_VERIFYING})
	}
	if r.move().GetState() == movev1.State_STATE_PLANNED {
		// A move that begins anew may have a pin that is worth nothing any more.
		if err := r.callRelease(ctx); err != nil {
			return err
		}
	}
	if _, err := r.pin(ctx); err != nil {
		return err
	}
	if err := r.reach(ctx, movev1.State_STATE_PINNED); err != nil {
		return err
	}
	if r.move().GetState() > movev1.State_STATE_PINNED {
		return nil
	}
	return r.advance(ctx, step{state: movev1.State_STATE_COPYING})
}

// pin has the node hold its log, and returns from where on it does.
func (r *Runner) pin(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, r.o.Times.Call)
	defer cancel()
	a, err := r.o.Migration.Pin(ctx, &migrationv1.PinRequest{MoveId: r.id})
	if err != nil {
		return 0, ofNode(err)
	}
	if a.GetSequence() == 0 {
		return 0, ofNode(fmt.Errorf("%w: a pin without a sequence", errMalformed))
	}
	return a.GetSequence(), nil
}

// copy sends a snapshot, from the cursor on.
func (r *Runner) copy(ctx context.Context) error {
	t, err := r.sendTo(ctx)
	if err != nil {
		return err
	}
	defer t.release()
	stop := r.reporting(ctx)
	defer stop()
	if err := r.copyTo(ctx, t); err != nil {
		return err
	}
	stop()
	return r.advance(ctx, step{state: movev1.State_STATE_TAILING})
}

func (r *Runner) copyTo(ctx context.Context, t *target) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.mu.Lock()
	cursor, sent, total := r.is.cursor, r.is.progress.GetCopiedBytes(), r.is.progress.GetTotalBytes()
	r.mu.Unlock()
	silent := r.silence(cancel) // of a node that goes through what does not belong to the move, and says so now and then
	defer silent.Stop()
	export, err := r.o.Migration.Export(ctx, &migrationv1.ExportRequest{MoveId: r.id, Cursor: cursor}, failFast, stream.Encoded)
	if err != nil {
		return ofNode(firstCause(ctx, err))
	}
	var sink stream.Sink
	defer func() {
		if sink != nil {
			sink.Close()
			if err != nil {
				r.resent(sink.Unacknowledged())
			}
		}
	}()
	about := &migrationv1.ExportResponse{}
	part := &stream.Part{Rest: about}
	defer part.Free()
	for {
		silent.Reset(r.o.Times.Stall)
		err := export.RecvMsg(part)
		silent.Stop()
		if err != nil {
			return ofNode(firstCause(ctx, err))
		}
		sent += part.Records.Bytes()
		total = r.estimate(sent, about.GetRemainingBytes(), total)
		if sink == nil {
			sink, err = r.sink(ctx, t, stream.Options{Sorted: true, ReadAt: time.Now(), Acked: r.copied, WindowBytes: copyWindow})
			if err != nil {
				return err
			}
		}
		if err := sink.Send(ctx, &part.Records, stream.Mark{Cursor: about.GetCursor()}); err != nil {
			return ofTarget(firstCause(ctx, err))
		}
		if about.GetFinished() {
			return ofTarget(sink.Finish(ctx))
		}
	}
}

// silence ends a stream from the node when it says nothing for too long: reset it before each message that
// is waited for, stop it after.
func (r *Runner) silence(end context.CancelCauseFunc) *time.Timer {
	return time.AfterFunc(r.o.Times.Stall, func() { end(ofNode(fmt.Errorf("nothing came for %s", r.o.Times.Stall))) })
}

// estimate notes how much of the copy is left behind what is sent, and returns how much all of it is.
func (r *Runner) estimate(sent, left, total int64) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.is.left = left
	if left >= 0 {
		total = max(total, sent+left)
		r.is.progress.TotalBytes = total
	}
	return total
}

// firstCause is why a context has ended, if it has, for reasons of our own; else the error.
func firstCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); ctx.Err() != nil && cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}
