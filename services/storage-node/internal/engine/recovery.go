package engine

import (
	"encoding/binary"
	"fmt"
	"path"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/memtable"
)

// openLog opens the commit log without reading it.
func (e *Engine) openLog() (err error) {
	e.log, err = commitlog.Open(e.fs, path.Join(e.dir, logDir), commitlog.Options{SegmentBytes: e.opts.LogSegmentBytes, Recycle: e.opts.LogRecycled})
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
	flushed, err := e.metaSeq(metaFlushed)
	if err != nil {
		return err
	}
	r := &replay{e: e, last: max(flushed, e.manifest.LastSeq())}
	if r.ingested, err = e.metaSeq(metaIngested); err != nil {
		return err
	}
	e.flushed.Store(uint64(flushed))
	e.mu.mem = &memHandle{Table: e.arenas.take(e.opts.MemtableBytes, 0), first: flushed + 1, segment: e.manifest.LogFloor()}
	e.installReadStateLocked()
	if err := r.run(); err != nil {
		e.closeRecovered()
		return err
	}
	e.leader.next = r.last + 1
	e.leader.rangesFrom = r.last
	e.applied.Store(uint64(r.last))
	e.visible.Store(uint64(r.last))
	e.durable.synced = r.last
	e.durable.written = logMark{seq: r.last}
	e.sweepTables(found)
	return nil
}
