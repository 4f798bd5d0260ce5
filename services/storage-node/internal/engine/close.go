package engine

import (
	"errors"

	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// writable returns why no write may be committed, or nil.
func (e *Engine) writable() error {
	if e.closed.Load() {
		return ErrClosed
	}
	return e.poisonErr()
}

// Close stops writes, flushes memtables (unless Options.KeepMemtablesAtClose), syncs the log and
// gives everything back. What can't be flushed stays in the log: nothing is lost. It is idempotent
// and returns the first error.
func (e *Engine) Close() error {
	e.closeOnce.Do(func() { e.closeErr = e.close() })
	return e.closeErr
}

func (e *Engine) close() error {
	e.closed.Store(true)
	var errs []error
	if e.poisoned.Load() == nil {
		errs = append(errs, e.settle())
	}
	e.stopBackground()
	errs = append(errs, e.board.Close())
	e.background.Wait()
	errs = append(errs, e.release())
	err := errors.Join(errs...)
	e.emit(Event{Kind: EventClosed, Err: err})
	return err
}

// settle waits for the group that is being committed, then makes it durable, in tables if it can.
func (e *Engine) settle() error {
	err := e.runAlone(func() error {
		if !e.opts.KeepMemtablesAtClose && !e.mem().Empty() {
			e.rotate(0)
		}
		return nil
	})
	if serr := e.syncWritten(); err == nil {
		err = serr
	}
	if err != nil || e.opts.KeepMemtablesAtClose {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.flushErr = nil // one more try for each
	notify(e.wake.flush)
	for len(e.mu.imm) > 0 && e.mu.flushErr == nil && e.poisoned.Load() == nil {
		e.mu.changed.Wait()
	}
	return nil
}

func (e *Engine) stopBackground() {
	e.mu.Lock()
	e.mu.closing = true
	e.mu.changed.Broadcast()
	e.mu.Unlock()
	close(e.stop)
	e.snapshots.close()
	// Waiting tails look at closed.
	e.durable.mu.Lock()
	if e.durable.moved != nil {
		close(e.durable.moved)
		e.durable.moved = nil
	}
	e.durable.mu.Unlock()
}

// release gives files, memory and the lock back. Iterators that are open keep what they use.
func (e *Engine) release() error {
	e.releaseMemory()
	errs := []error{e.log.Close()}
	if err := e.manifest.Close(); !errors.Is(err, manifest.ErrPoisoned) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, e.lock.Close())...)
}

// releaseMemory gives back what readers and the engine hold of memtables and tables.
func (e *Engine) releaseMemory() {
	e.closeReads()
	e.mu.Lock()
	handles := append(e.mu.imm[:len(e.mu.imm):len(e.mu.imm)], e.mu.mem)
	e.mu.imm, e.mu.mem = nil, nil
	e.mu.Unlock()
	for _, h := range handles {
		if h != nil {
			e.unrefMemtable(h.Table)
		}
	}
	for { // what is obsolete goes now, not at the next open
		if _, ok := e.deleteOne(); !ok {
			break
		}
	}
	e.tables.close()
}
