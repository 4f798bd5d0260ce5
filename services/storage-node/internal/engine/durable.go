package engine

import (
	"sync"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
)

// durability is how far the commit log is synced. Whoever waits first syncs, for everything that is
// written by then; the others wait. When a sync ends, those that it covered return, and the first of
// those that it did not syncs next: no goroutine is woken for nothing.
//
// A frame may be synced while its changes are being applied, by another goroutine: what is durable is
// both. Whichever comes second wakes those who wait.
type durability struct {
	mu        sync.Mutex
	logged    logMark  // the newest frame
	logSynced ikey.Seq // up to it, frames are synced
	applied   ikey.Seq // up to it, changes are applied
	synced    ikey.Seq // the smaller of both
	syncing   bool
	ended     uint64 // syncs
	waiting   []*waiter
	moved     chan struct{} // not nil: closed and set to nil when visible moves
}

// logMark is the end of a frame in the log and the last sequence in it.
type logMark struct {
	seq ikey.Seq
	pos commitlog.Position
}

// waiter is a goroutine that waits for a sequence to be durable.
type waiter struct {
	seq    ikey.Seq
	signal chan turn // one at a time
}

func newWaiter() waiter { return waiter{signal: make(chan turn, 1)} }

var waiters = sync.Pool{New: func() any { w := newWaiter(); return &w }}

// noteLogged is called by the leader when a frame was written.
func (e *Engine) noteLogged(m logMark) {
	d := &e.durable
	d.mu.Lock()
	d.logged = m
	d.mu.Unlock()
}

// noteApplied is called by the leader when the changes up to seq were applied.
func (e *Engine) noteApplied(seq ikey.Seq) {
	d := &e.durable
	d.mu.Lock()
	d.applied = seq
	if e.opts.Sync != SyncGroup {
		e.moveVisibleLocked(seq)
	}
	if d.logSynced > d.synced {
		e.wakeLocked(nil)
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

// waitDurable returns when every change up to seq, which was logged, is applied and durable.
func (e *Engine) waitDurable(seq ikey.Seq) error {
	d := &e.durable
	d.mu.Lock()
	if d.synced >= seq {
		d.mu.Unlock()
		return nil
	}
	if err := e.poisonErr(); err != nil {
		d.mu.Unlock()
		return err
	}
	w := waiters.Get().(*waiter)
	w.seq = seq
	syncs := !d.syncing
	if syncs {
		d.syncing = true
	} else {
		d.waiting = append(d.waiting, w)
	}
	d.mu.Unlock()
	err := e.waitTurn(w, syncs)
	waiters.Put(w)
	return err
}

// waitTurn waits until w is durable, as one of d.waiting or, if it syncs, as the one that has set
// d.syncing.
func (e *Engine) waitTurn(w *waiter, syncs bool) error {
	for {
		if syncs {
			if done, err := e.syncLogged(w); done {
				return err
			}
		}
		switch <-w.signal {
		case turnDone:
			return nil
		case turnFailed:
			return e.poisonErr()
		case turnSync:
			syncs = true
		}
	}
}

// awaitSync makes the members of the group of own that were logged, and want to be durable, wait for
// that. It returns the others, whether own is the one that syncs and, if so, another durable member
// that can apply meanwhile, if it is worth it.
func (e *Engine) awaitSync(own *request) (others []*request, syncs bool, helper *request) {
	d := &e.durable
	others = own.group[:0]
	var first *waiter
	durable := 0
	d.mu.Lock()
	for _, r := range own.group {
		if !r.durable || r.err != nil {
			others = append(others, r)
			continue
		}
		durable++
		switch {
		case r == own && !d.syncing:
			d.syncing, syncs = true, true
			continue
		case !d.syncing:
			d.syncing, first = true, &r.waiter
			continue
		case syncs && helper == nil:
			helper = r
		}
		d.waiting = append(d.waiting, &r.waiter)
	}
	d.mu.Unlock()
	if first != nil {
		first.signal <- turnSync
	}
	if durable < overlapGroup || e.opts.NoOverlappedApply {
		helper = nil
	}
	return others, syncs, helper
}

// overlapGroup is the smallest group whose changes are applied by another goroutine than the one that
// syncs: waking one costs as much as applying a few changes.
const overlapGroup = 4

// syncLogged syncs the log as far as it is written. The caller has set d.syncing. It wakes whom the
// sync covered, and makes the first of the others sync next. If it reports false, w waits until its
// changes are applied.
func (e *Engine) syncLogged(w *waiter) (done bool, err error) {
	e.holdQueue()
	d := &e.durable
	d.mu.Lock()
	target := d.logged
	d.mu.Unlock()
	if err = e.poisonErr(); err == nil {
		if err = e.log.SyncTo(target.pos); err != nil {
			err = e.poison(err)
		} else {
			e.stats.syncs.Add(1)
		}
	}
	d.mu.Lock()
	d.syncing = false
	d.ended++
	if err == nil {
		d.logSynced = max(d.logSynced, target.seq)
	}
	e.wakeLocked(err)
	if done = err != nil || d.synced >= w.seq; !done {
		d.waiting = append(d.waiting, w)
	}
	d.mu.Unlock()
	if next := e.releaseQueue(); next != nil {
		next.signal <- turnLead
	}
	return done, err
}

// wakeLocked wakes who is durable now, everybody after an error, and makes the first of those whose
// frames are not synced the next who syncs. d.mu is held.
func (e *Engine) wakeLocked(err error) {
	d := &e.durable
	e.commit.woken.Add(int64(len(d.waiting))) // before the first of them can lead
	if durable := min(d.logSynced, d.applied); durable > d.synced {
		d.synced = durable
		e.moveVisibleLocked(durable)
	}
	keep := d.waiting[:0]
	for _, w := range d.waiting {
		switch {
		case w.seq <= d.synced:
			w.signal <- turnDone
		case err != nil:
			w.signal <- turnFailed
		case !d.syncing && w.seq > d.logSynced:
			d.syncing = true
			w.signal <- turnSync
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
	seq := e.durable.logged.seq
	e.durable.mu.Unlock()
	return e.waitDurable(seq)
}

// maxUnsyncedBytes of log are synced in the background whatever the mode. The rotation to the next
// segment has to sync the last one, and all writers wait for that.
const maxUnsyncedBytes = 8 << 20

// noteUnsynced is called by the leader for n bytes that were logged.
func (e *Engine) noteUnsynced(n int) {
	if e.leader.unsynced += n; e.leader.unsynced > maxUnsyncedBytes {
		e.leader.unsynced = 0
		notify(e.wake.syncNow)
	}
}

// syncLoop syncs what nobody waits for: every SyncInterval while there is something, and when much was
// written.
func (e *Engine) syncLoop() {
	for {
		select {
		case <-e.wake.sync:
			select {
			case <-e.opts.Clock.After(e.opts.SyncInterval):
			case <-e.wake.syncNow:
			case <-e.stop:
				return
			}
		case <-e.wake.syncNow:
		case <-e.stop:
			return
		}
		if e.syncWritten() != nil {
			return // poisoned: said by an event
		}
	}
}
