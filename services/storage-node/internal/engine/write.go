package engine

import (
	"fmt"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// Pending is a write that was applied and whose durability can be waited for. It is a value: it
// needs no release.
type Pending struct {
	e   *Engine
	seq ikey.Seq
}

// Seq returns the sequence of the last change of the batch.
func (p Pending) Seq() ikey.Seq { return p.seq }

// Wait returns when the write is durable, whatever the engine's sync mode. On an error it is not
// known whether it ever will be.
func (p Pending) Wait() error {
	if p.seq == 0 {
		return nil
	}
	return p.e.waitDurable(p.seq)
}

// Apply applies the batch and, under SyncGroup, returns when it is durable. The batch is applied as
// a whole or, when the error is not ErrPoisoned, not at all.
func (e *Engine) Apply(b *Batch, mode SyncMode) error {
	if mode == SyncDefault {
		mode = e.opts.Sync
	}
	_, err := e.write(b, mode == SyncGroup)
	return err
}

// Submit applies the batch and returns when GetLatest sees it; Pending.Wait waits until it is
// durable and Get sees it. The batch may be reset as soon as Submit returned.
func (e *Engine) Submit(b *Batch) (Pending, error) {
	seq, err := e.write(b, false)
	if err != nil || seq == 0 {
		return Pending{}, err
	}
	return Pending{e: e, seq: seq}, nil
}

// write applies the batch and returns the sequence of its last change, 0 for an empty one. It returns
// when the batch is applied or, if so asked, durable.
func (e *Engine) write(b *Batch, durable bool) (ikey.Seq, error) {
	if err := e.checkBatch(b); err != nil || b.count == 0 {
		return 0, err
	}
	if err := e.admit(b); err != nil {
		return 0, err
	}
	r := newRequest()
	r.batch, r.durable = b, durable
	e.enqueue(r)
	seq, err := r.seq, r.err
	r.recycle()
	if seq != 0 {
		e.stats.batches.Add(1)
		e.stats.changes.Add(uint64(b.count))
		e.stats.batchBytes.Add(uint64(len(b.ops)))
		if b.ranges > 0 {
			notify(e.wake.schedule) // tables that are covered as a whole go by an edit
		}
	}
	return seq, err
}

func (e *Engine) checkBatch(b *Batch) error {
	switch {
	case b.err != nil:
		return b.err
	case b.count > e.opts.MaxBatchOps:
		return fmt.Errorf("%w: %d changes, at most %d", ErrBatchTooLarge, b.count, e.opts.MaxBatchOps)
	case len(b.ops) > e.opts.MaxBatchBytes:
		return fmt.Errorf("%w: %d bytes, at most %d", ErrBatchTooLarge, len(b.ops), e.opts.MaxBatchBytes)
	}
	return nil
}

// admit is the stall check: it delays or refuses a write while flushes or compactions are behind, or
// disk or memory are used up. Batches that only delete physically, and urgent ones, are let through: they
// make room. It costs one atomic load while all is well.
func (e *Engine) admit(b *Batch) error {
	p := e.pressure.Load()
	if p == nil || !p.Refuse && p.Delay == 0 && p.MaxBatchBytes == 0 || b.puts == 0 || b.urgent {
		return nil
	}
	if err := p.refusal(b); err != nil {
		e.stats.refused.Add(1)
		return err
	}
	if p.Delay == 0 {
		return nil
	}
	e.stats.delayed.Add(1)
	e.stats.delayNanos.Add(uint64(p.Delay))
	select {
	case <-e.opts.Clock.After(p.Delay):
		if b.trail != nil {
			b.trail.Lap(stages.Delay, e.opts.Clock.Now())
		}
		return nil
	case <-e.stop:
		return ErrClosed
	}
}

// refusal returns why b is refused, or nil. The disk lets removals through: a tombstone is smaller than
// what it lets compactions drop.
func (p *Pressure) refusal(b *Batch) error {
	switch {
	case p.DiskFull && b.removal && !p.NoDeletes:
		return nil
	case p.DiskFull:
		return fmt.Errorf("%w: %s", ErrDiskFull, p.Reason)
	case p.Memory:
		return fmt.Errorf("%w: %s", ErrMemoryPressure, p.Reason)
	case p.Refuse:
		return &StalledError{Reason: p.Reason, RetryAfter: p.RetryAfter}
	case p.MaxBatchBytes > 0 && len(b.ops) > p.MaxBatchBytes && !b.removal:
		return fmt.Errorf("%w: the batch has %d bytes, at most %d are taken until there is room", ErrDiskThrottled, len(b.ops), p.MaxBatchBytes)
	}
	return nil
}
