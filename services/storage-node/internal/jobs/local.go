package jobs

import (
	"context"
	"errors"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
)

// localRetry is how long the executor waits after a Lease that failed (the disk's fault).
const localRetry = time.Second

// localLoop is the executor in this process: one more worker on the same board, with one slot.
func (b *Board) localLoop() {
	me := Worker{Name: "local", FreeSlots: 1, TotalSlots: 1, Formats: b.o.Formats, local: true}
	for b.ctx.Err() == nil {
		leases, err := b.Lease(b.ctx, me)
		if err != nil {
			select {
			case <-b.o.After(localRetry):
			case <-b.ctx.Done():
			}
			continue
		}
		for _, l := range leases {
			b.runLocal(l)
		}
	}
}

// runLocal does one attempt from its lease to its report.
func (b *Board) runLocal(l Lease) {
	ctx, stop := context.WithCancel(b.ctx)
	defer stop()
	a := &localAttempt{b: b, l: l}
	a.rate.Store(l.Job.MaxBytesPerSecond)
	var beats sync.WaitGroup
	beats.Go(func() { a.heartbeats(ctx, stop) })

	outs, stats, corrupt, err := compact.Run(ctx, l.Job, compact.Env{
		OpenInput:  func(in compact.Input) (vfs.File, error) { return b.o.FS.Open(b.tablePath(in.Num)) },
		OpenOutput: a.openOutput,
		Progress:   func(done int64) { a.done.Store(done) },
		Throttle:   a.throttle,
	})
	if err == nil {
		// The lease is kept up until the verification has it. A verdict needs no reaction here:
		// the board has acted on it.
		_, _ = b.Complete(b.ctx, l.Key, Report{Outputs: outs, Stats: stats, Corrupt: corrupt})
	} else {
		b.Abandon(l.Key, abandonReason(ctx, err, corrupt), err.Error(), corrupt)
	}
	stop()
	beats.Wait()
}

func abandonReason(ctx context.Context, err error, corrupt []compact.CorruptInput) AbandonReason {
	switch {
	case ctx.Err() != nil:
		return AbandonShutdown
	case errors.Is(err, vfs.ErrNoSpace):
		return AbandonNoSpace
	case len(corrupt) > 0:
		return AbandonCorruptInput
	}
	return AbandonIOError
}

type localAttempt struct {
	b    *Board
	l    Lease
	done atomic.Int64
	rate atomic.Int64
	next time.Time // when the budget allows the next bytes; used by Run's goroutine only
}

func (a *localAttempt) openOutput(index int) (vfs.File, error) {
	return a.b.o.FS.OpenReadWrite(path.Join(a.b.attemptDir(a.l.Key), compact.OutputName(index)))
}

func (a *localAttempt) heartbeats(ctx context.Context, stop context.CancelFunc) {
	for {
		select {
		case <-a.b.o.After(a.l.Heartbeat):
		case <-ctx.Done():
			return
		}
		d := a.b.Heartbeat(a.l.Key, a.done.Load())
		if d.Stop {
			stop()
			return
		}
		a.rate.Store(d.MaxBytesPerSecond)
	}
}

// throttle spreads n bytes over the time that the rate gives them, on the board's clock.
func (a *localAttempt) throttle(ctx context.Context, n int) error {
	rate := a.rate.Load()
	if rate <= 0 || n <= 0 {
		return ctx.Err()
	}
	now := a.b.o.Now()
	if a.next.Before(now) {
		a.next = now
	}
	a.next = a.next.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	wait := a.next.Sub(now)
	// Short waits are gathered: a timer for every block would cost more than the block.
	if wait < 10*time.Millisecond {
		return ctx.Err()
	}
	select {
	case <-a.b.o.After(wait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
