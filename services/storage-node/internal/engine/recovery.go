package engine

import (
	"bytes"
	"errors"
	"fmt"
	"path"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/memtable"
)

// openLog opens the commit log without reading it.
func (e *Engine) openLog() (err error) {
	e.log, err = commitlog.Open(e.fs, path.Join(e.dir, logDir),
		commitlog.Options{SegmentBytes: e.opts.LogSegmentBytes, Recycle: e.opts.LogRecycled, OnDemand: e.opts.LogOnDemand,
			Prewrite: e.opts.LogPrewrite, After: e.opts.Clock.After})
	return err
}

// recover replays the commit log from the manifest's floor on into memtables. Changes that are in
// tables already are skipped; a memtable that is full is flushed at once, so memory is bounded by one
// memtable.
func (e *Engine) recover() error {
	found, err := e.ratchetNumbers()
	if err != nil {
		return err
	}
	missing := e.missingTables(found)
	r := &replay{e: e}
	if r.flushed, err = e.metaSeq(metaFlushed); err != nil {
		return err
	}
	if err := e.loadKept(); err != nil {
		return err
	}
	r.last = max(r.flushed, e.manifest.LastSeq())
	e.flushed.Store(uint64(r.flushed))
	e.mu.mem = &memHandle{Table: e.arenas.take(e.opts.MemtableBytes, 0), first: r.flushed + 1, segment: e.manifest.LogFloor()}
	e.mu.Lock()
	e.installReadStateLocked()
	e.mu.Unlock()
	if err := r.run(); err != nil {
		return errors.Join(err, e.closeRecovered())
	}
	e.leader.next = r.last + 1
	e.leader.rangesFrom = r.last
	e.applied.Store(uint64(r.last))
	e.visible.Store(uint64(r.last))
	d := &e.durable
	d.logged, d.applied = logMark{seq: r.last, pos: e.log.Written()}, r.last
	d.logSynced, d.synced = r.last, r.last
	e.sweepTables(found)
	if err := e.quarantineMissing(missing); err != nil {
		return errors.Join(err, e.closeRecovered())
	}
	return nil
}

// run replays, and makes durable what was replayed, before anybody may see it.
func (r *replay) run() error {
	e := r.e
	progress := func(done, total int64) {
		e.emit(Event{Kind: EventRecovery, Bytes: done, Total: total, Seq: uint64(r.last)})
	}
	found, err := e.log.Replay(e.manifest.LogFloor(), func(f commitlog.Frame) error {
		if err := r.frame(f.Type, f.Payload, f.Start.Segment); err != nil {
			return fmt.Errorf("replay %s at offset %d: %w", commitlog.FileName(f.Start.Segment), f.Start.Offset, err)
		}
		return nil
	}, progress)
	switch {
	case errors.Is(err, commitlog.ErrCorrupt):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case errors.Is(err, commitlog.ErrUnknownFormat):
		return fmt.Errorf("%w: %w", ErrNewerFormat, err)
	case err != nil:
		return err
	}
	if found.TornBytes > 0 {
		e.stats.tornTails.Add(1)
		e.stats.tornBytes.Add(uint64(found.TornBytes))
		e.emit(Event{Kind: EventTornTail, Bytes: found.TornBytes, Reason: found.End.String()})
	}
	return e.log.Start()
}

// closeRecovered gives back what recover made, when Open fails after it.
func (e *Engine) closeRecovered() error {
	e.mu.Lock()
	e.mu.closing = true
	e.mu.Unlock()
	e.background.Wait() // marks of quarantine
	e.releaseMemory()
	return nil
}

// replay is a pass through the commit log.
type replay struct {
	e       *Engine
	flushed ikey.Seq // changes up to it are in tables
	last    ikey.Seq // the newest sequence so far, of log and manifest
	logLast ikey.Seq // the newest sequence of the log so far
	changes int

	unpacker logUnpacker
}

// frame takes one frame of the log; segment is where it stands.
func (r *replay) frame(kind uint8, payload []byte, segment uint64) error {
	switch kind {
	case frameBatch, framePacked:
		return r.batch(kind, payload, segment)
	case frameIngest: // the manifest says whether it happened
		m, err := decodeIngestMarker(payload)
		if err != nil {
			return err
		}
		return r.advance(m.seq, m.seq)
	}
	return fmt.Errorf("%w: frame of type %d: written by a newer program?", ErrNewerFormat, kind)
}

// advance notes the sequences of a frame; they only rise.
func (r *replay) advance(first, last ikey.Seq) error {
	if first <= r.logLast || last < first || last >= ikey.MaxSeq {
		return fmt.Errorf("%w: sequences %d to %d after %d", ErrCorrupt, first, last, r.logLast)
	}
	r.logLast, r.last = last, max(r.last, last)
	return nil
}

// batch inserts the changes of a frame that are in no table.
func (r *replay) batch(kind uint8, payload []byte, segment uint64) error {
	first, count, ops, err := r.unpacker.group(kind, payload)
	if err != nil {
		return err
	}
	if err := r.advance(first, first+ikey.Seq(count)-1); err != nil {
		return err
	}
	seq := first
	for ; len(ops) > 0; seq++ {
		c, rest, err := nextChange(ops)
		if err != nil {
			return err
		}
		ops = rest
		if seq > r.flushed && seq <= r.logLast {
			if err := r.insert(c, seq, segment); err != nil {
				return err
			}
		}
	}
	if seq != r.logLast+1 {
		return fmt.Errorf("%w: the frame has %d changes and says %d", ErrCorrupt, seq-first, count)
	}
	return nil
}

// insert adds a change to the active memtable; one that is full is flushed first.
func (r *replay) insert(c change, seq ikey.Seq, segment uint64) error {
	e := r.e
	need := memtable.EntryBytes(len(c.key), len(c.value))
	if m := e.mu.mem; m.AvailableBytes() < need || m.SizeBytes() >= e.opts.MemtableBytes {
		if err := r.flush(need, segment); err != nil {
			return err
		}
	}
	if c.kind == ikey.KindRangeDelete {
		if bytes.Compare(c.key, c.value) >= 0 {
			return fmt.Errorf("%w: empty range delete at sequence %d", ErrCorrupt, seq)
		}
		e.mu.mem.AddRangeDelete(ikey.RangeDelete{Start: c.key, End: c.value, Seq: seq})
	} else if !e.mu.mem.Add(ikey.Make(c.key, seq, c.kind), c.value) {
		return fmt.Errorf("a memtable of %d bytes has no room for a change of %d", e.opts.MemtableBytes, need)
	}
	e.mu.mem.maxSeq.Store(uint64(seq))
	r.changes++
	return nil
}

// flush writes the active memtable to tables and makes a new one.
func (r *replay) flush(need int, segment uint64) error {
	e := r.e
	full := e.mu.mem
	e.durable.synced = full.lastSeq() // the tables will be; nobody reads meanwhile
	e.leader.next = full.lastSeq() + 1
	e.rotateTo(need, segment)
	return e.flushOldest(full)
}
