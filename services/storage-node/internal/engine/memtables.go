package engine

import (
	"errors"
	"fmt"
	"sync"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/memtable"
)

// arenaPool keeps memtables of the standard size that nobody holds any more: fresh memory costs a
// page fault every 4 KiB, at the moment when all writers wait.
type arenaPool struct {
	mu    sync.Mutex
	max   int // of them; 0: none are kept
	spare []*memtable.Table
}

// give takes a memtable without references back.
func (p *arenaPool) give(t *memtable.Table, standard int) {
	if size := t.AvailableBytes() + t.SizeBytes(); size > standard+standard/4 || size < standard/2 {
		return // made for one large batch, or while memory was short
	}
	p.mu.Lock()
	room := len(p.spare) < p.max
	p.mu.Unlock()
	if !room {
		return
	}
	t.Reset()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.spare) < p.max {
		p.spare = append(p.spare, t)
	}
}

// keep bounds what is kept; what is more goes.
func (p *arenaPool) keep(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.max = n
	if len(p.spare) > n {
		clear(p.spare[n:])
		p.spare = p.spare[:n]
	}
}

// keepSpare makes a spare memtable, if there is none, and touches its memory.
func (p *arenaPool) keepSpare(standard int) {
	p.mu.Lock()
	room := len(p.spare) < p.max
	p.mu.Unlock()
	if !room {
		return
	}
	t := memtable.New(standard)
	t.Populate()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.spare) < p.max {
		p.spare = append(p.spare, t)
	}
}

// memtableLoop makes the next memtable ahead of the rotation that needs it: fresh memory for it takes
// tens of milliseconds, in which nobody writes. While memory is short it flushes early instead.
func (e *Engine) memtableLoop() {
	for {
		select {
		case <-e.wake.memtable:
			e.arenas.keepSpare(e.memtableBytes())
		case <-e.wake.shrink:
			e.flushEarly()
		case <-e.stop:
			return
		}
	}
}

// take returns an empty memtable for entries of at least need bytes.
func (p *arenaPool) take(standard, need int) *memtable.Table {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.spare); n > 0 && need <= p.spare[n-1].AvailableBytes() {
		t := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return t
	}
	const overhead = 4 << 10 // the head of the skiplist, rounding
	return memtable.New(max(standard, need+overhead))
}

// makeRoom makes sure that the active memtable takes need bytes. It waits while too many memtables
// wait for their flush. It runs as the leader, before anything is logged.
func (e *Engine) makeRoom(need int) error {
	if m, full := e.mem(), e.memtableBytes(); m.AvailableBytes() >= need && m.SizeBytes() < full {
		if !m.nextAsked && m.SizeBytes() > full/2 {
			m.nextAsked = true
			notify(e.wake.memtable)
		}
		return nil
	}
	if err := e.waitForFlush(); err != nil {
		return err
	}
	e.rotate(need)
	return nil
}

// waitForFlush returns when one more memtable may wait for its flush.
func (e *Engine) waitForFlush() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.mu.imm) < e.opts.MaxImmutables {
		return nil
	}
	e.stats.stalls.Add(1)
	began := e.opts.Clock.Now()
	defer func() { e.stats.stallNanos.Add(uint64(e.opts.Clock.Now().Sub(began))) }()
	for len(e.mu.imm) >= e.opts.MaxImmutables {
		switch {
		case e.mu.closing:
			return ErrClosed
		case e.poisoned.Load() != nil:
			return e.poisonErr()
		case errors.Is(e.mu.flushErr, vfs.ErrNoSpace):
			return fmt.Errorf("%w: memtables can't be flushed: %w", ErrDiskFull, e.mu.flushErr)
		case e.mu.flushErr != nil:
			return &StalledError{Reason: "memtables can't be flushed: " + e.mu.flushErr.Error(), RetryAfter: e.opts.FlushRetry}
		}
		e.mu.changed.Wait()
	}
	return nil
}

// rotate makes the active memtable immutable and a new one active, with room for need bytes. It
// runs as the leader.
func (e *Engine) rotate(need int) { e.rotateTo(need, e.log.Segment()) }

func (e *Engine) rotateTo(need int, segment uint64) {
	h := &memHandle{Table: e.arenas.take(e.memtableBytes(), need), first: e.leader.next, segment: segment}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.imm = append(e.mu.imm, e.mu.mem)
	e.mu.mem = h
	e.installReadStateLocked()
	e.mu.changed.Broadcast()
	e.stats.rotations.Add(1)
	e.noteSpace()
}

// lastSeq returns the newest sequence in the memtable.
func (h *memHandle) lastSeq() ikey.Seq { return ikey.Seq(h.maxSeq.Load()) }
