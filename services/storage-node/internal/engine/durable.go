package engine

import (
	"sync"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
)

// durability is how far the commit log is synced. Whoever waits first syncs, for everything that is
// written by then; the others wait. When a sync ends, those that it covered return, and the first of
// those that it did not syncs next: no goroutine is woken for nothing.
type durability struct {
	mu      sync.Mutex
	written logMark // the newest frame whose changes are applied
	synced  ikey.Seq
	syncing bool
	waiting []*waiter
	moved   chan struct{} // not nil: closed and set to nil when visible moves
}

// logMark is the end of a frame in the log and the last sequence in it.
type logMark struct {
	seq ikey.Seq
	pos commitlog.Position
}

// waiter is a goroutine that waits for a sequence to be durable.
type waiter struct {
	seq    ikey.Seq
	signal chan bool // true: sync; false: look again
}

var waiters = sync.Pool{New: func() any { return &waiter{signal: make(chan bool, 1)} }}

// noteWritten is called by the leader after the changes of a frame were applied.
func (e *Engine) noteWritten(m logMark) {
	d := &e.durable
	d.mu.Lock()
	d.written = m
	if e.opts.Sync != SyncGroup {
		e.moveVisibleLocked(m.seq)
	}
	d.mu.Unlock()
	if e.opts.Sync != SyncNever {
		notify(e.wake.sync)
	}
}

// moveVisibleLocked lets readers see everything up to seq. d.mu is held.
func (e *Engine) moveVisibleLocked(seq ikey.Seq) {
	if uint64(seq) <= e.visible.Load() {
		return
	}
	e.visible.Store(uint64(seq))
	if d := &e.durable; d.moved != nil {
		close(d.moved)
		d.moved = nil
	}
}

// visibleMoved returns a channel that is closed when visible moves beyond seq; nil if it is there.
func (e *Engine) visibleMoved(seq ikey.Seq) <-chan struct{} {
	d := &e.durable
	d.mu.Lock()
	defer d.mu.Unlock()
	if ikey.Seq(e.visible.Load()) > seq {
		return nil
	}
	if d.moved == nil {
		d.moved = make(chan struct{})
	}
	return d.moved
}

// waitDurable returns when every change up to seq, which was applied, is durable.
func (e *Engine) waitDurable(seq ikey.Seq) error {
	d := &e.durable
	var w *waiter
	d.mu.Lock()
	mine := false // this goroutine is the one that syncs
	for d.synced < seq {
		if err := e.poisonErr(); err != nil {
			e.stopSyncingLocked(mine)
			d.mu.Unlock()
			return err
		}
		if mine || !d.syncing {
			d.syncing, mine = true, true
			e.syncOnceLocked()
			continue
		}
		if w == nil {
			w = waiters.Get().(*waiter)
		}
		w.seq = seq
		d.waiting = append(d.waiting, w)
		d.mu.Unlock()
		mine = <-w.signal
		d.mu.Lock()
	}
	e.stopSyncingLocked(mine)
	d.mu.Unlock()
	if w != nil {
		waiters.Put(w)
	}
	return nil
}

// syncOnceLocked syncs the log as far as it is written. d.mu is released meanwhile.
func (e *Engine) syncOnceLocked() {
	d := &e.durable
	target := d.written
	d.mu.Unlock()
	err := e.log.SyncTo(target.pos)
	if err != nil {
		_ = e.poison(err) // every waiter looks at it
	} else {
		e.stats.syncs.Add(1)
	}
	d.mu.Lock()
	if err == nil {
		d.synced = max(d.synced, target.seq)
		e.moveVisibleLocked(target.seq)
	}
}

// stopSyncingLocked ends this goroutine's turn, if it had one: it wakes whom the syncs covered, and
// makes the first of the others sync next.
func (e *Engine) stopSyncingLocked(mine bool) {
	if !mine {
		return
	}
	d := &e.durable
	d.syncing = false
	failed := e.poisoned.Load() != nil
	keep := d.waiting[:0]
	for _, w := range d.waiting {
		switch {
		case failed || w.seq <= d.synced:
			w.signal <- false
		case !d.syncing:
			d.syncing = true
			w.signal <- true
		default:
			keep = append(keep, w)
		}
	}
	clear(d.waiting[len(keep):])
	d.waiting = keep
}

// syncWritten makes everything durable that is written now.
func (e *Engine) syncWritten() error {
	e.durable.mu.Lock()
	seq := e.durable.written.seq
	e.durable.mu.Unlock()
	return e.waitDurable(seq)
}

// syncLoop syncs what nobody waits for: every SyncInterval while there is something.
func (e *Engine) syncLoop() {
	for {
		select {
		case <-e.wake.sync:
		case <-e.stop:
			return
		}
		select {
		case <-e.opts.Clock.After(e.opts.SyncInterval):
		case <-e.stop:
			return
		}
		if e.syncWritten() != nil {
			return // poisoned: said by an event
		}
	}
}
