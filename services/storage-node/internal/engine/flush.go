package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/iterator"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// metaFlushed is the fact of the node that holds the flushed sequence: every change up to it is in
// tables. Recovery skips those in the log.
const metaFlushed = "engine.flushed_seq"

// flushLoop writes immutable memtables to tables of level 0, oldest first. A memtable leaves the
// queue only with the edit that names its tables; after a failure it is tried again, for ever.
func (e *Engine) flushLoop() {
	wait := e.opts.FlushRetry
	for {
		h := e.nextToFlush()
		if h == nil {
			return
		}
		err := e.flushOldest(h)
		e.mu.Lock()
		e.mu.flushErr = err
		e.mu.changed.Broadcast()
		e.mu.Unlock()
		if err == nil {
			wait = e.opts.FlushRetry
			continue
		}
		e.stats.flushFailures.Add(1)
		e.emit(Event{Kind: EventFlushFailed, Err: err})
		if e.poisoned.Load() != nil {
			return // an event said so; writes are refused, the log keeps everything
		}
		if errors.Is(err, vfs.ErrNoSpace) {
			e.noteSpace()
		}
		select {
		case <-e.opts.Clock.After(wait):
		case <-e.wake.flush: // somebody asks, or there is space again
		case <-e.stop:
			return
		}
		wait = min(2*wait, 30*e.opts.FlushRetry)
	}
}

// nextToFlush waits for an immutable memtable. It returns nil when the engine ends.
func (e *Engine) nextToFlush() *memHandle {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.mu.imm) == 0 {
		if e.mu.closing {
			return nil
		}
		e.mu.changed.Wait()
	}
	return e.mu.imm[0]
}

// flushOldest writes h, the oldest immutable memtable, and brings its tables into the tree.
func (e *Engine) flushOldest(h *memHandle) error {
	began := e.opts.Clock.Now()
	// Tables must not hold what a crash can take from the log: versions of a compaction, and the
	// sequence up to which recovery skips, would be ahead of the readers.
	if err := e.waitDurable(h.lastSeq()); err != nil {
		return err
	}
	tables, err := e.writeMemtable(h)
	if err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	var bytes int64
	edit := manifest.Edit{LogFloor: e.floorAfter(h), NodeMeta: map[string]string{}}
	if seq := h.lastSeq(); seq > 0 {
		edit.NodeMeta[metaFlushed] = strconv.FormatUint(uint64(seq), 10)
	}
	for _, t := range tables {
		edit.Added = append(edit.Added, manifest.Added{Level: 0, Table: t})
		bytes += int64(t.Size)
	}
	e.tails.staleFacts(edit.NodeMeta)
	err = e.applyEdit(edit, func() {
		e.mu.imm = append(e.mu.imm[:0:0], e.mu.imm[1:]...)
		if seq := uint64(h.lastSeq()); seq > e.flushed.Load() {
			e.flushed.Store(seq)
		}
	}, nil)
	if err != nil {
		e.discard(err, tables)
		return fmt.Errorf("flush: %w", err)
	}
	e.unrefMemtable(h.Table) // the engine's own reference
	e.stats.flushes.Add(1)
	e.stats.flushBytes.Add(uint64(bytes))
	e.emit(Event{Kind: EventFlushed, Tables: len(tables), Bytes: bytes, Seq: uint64(h.lastSeq()),
		Duration: e.opts.Clock.Now().Sub(began)})
	e.trimLog(edit.LogFloor)
	e.noteSpace()
	notify(e.wake.schedule)
	return nil
}

// floorAfter returns the first log segment that is needed once h is in tables.
func (e *Engine) floorAfter(h *memHandle) uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.mu.imm) > 1 && e.mu.imm[0] == h {
		return e.mu.imm[1].segment
	}
	return e.mu.mem.segment
}

// writeMemtable writes the content of h to new tables, synced with their directory. A memtable that
// was made for a huge batch becomes several.
func (e *Engine) writeMemtable(h *memHandle) ([]*manifest.Table, error) {
	if h.Empty() {
		return nil, nil
	}
	w := &tableWriter{e: e, origin: manifest.OriginFlush, level: 0}
	ranges := h.RangeDeletes()
	if len(ranges) == 0 {
		// Range deletes cross any cut, so with them it stays one table.
		w.limit = 2 * uint64(e.opts.TableBytes)
	}
	it := h.NewIter()
	err := writeNewest(it, e.snapshots.sequences(), w.add)
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	for _, d := range ranges {
		if err == nil {
			err = w.addRange(d)
		}
	}
	if err == nil {
		err = w.finish()
	}
	if err != nil {
		w.abandon()
		return nil, err
	}
	return w.tables, nil
}

// writeNewest hands the entries of it to add, but for those that a newer Set or Delete of the same
// key shadows for the newest reader and every snapshot.
func writeNewest(it iterator.Iterator, snapshots []ikey.Seq, add func(ikey.Key, []byte) error) error {
	var user []byte
	var shadow ikey.Seq // of the newest Set or Delete of user so far
	for ok := it.First(); ok; ok = it.Next() {
		k := it.Key()
		if user == nil || !bytes.Equal(k.User, user) {
			user, shadow = append(user[:0], k.User...), 0
		} else if shadow > 0 && !anySnapshotIn(snapshots, k.Seq(), shadow) {
			continue
		}
		if k.Kind() != ikey.KindMerge {
			shadow = k.Seq()
		}
		if err := add(k, it.Value()); err != nil {
			return err
		}
	}
	return it.Err()
}

// anySnapshotIn reports whether a snapshot sees an entry at from but not one at to: from <= s < to.
func anySnapshotIn(snapshots []ikey.Seq, from, to ikey.Seq) bool {
	for i := len(snapshots) - 1; i >= 0 && snapshots[i] >= from; i-- {
		if snapshots[i] < to {
			return true
		}
	}
	return false
}

// tableWriter writes entries to new tables in sst/.
type tableWriter struct {
	e      *Engine
	origin manifest.Origin
	level  int
	limit  uint64 // a table ends at the first key beyond it; 0: never

	file   vfs.File
	num    uint64
	w      *sstable.Writer
	last   []byte
	added  int
	tables []*manifest.Table
	made   []uint64 // numbers of all files, for abandon
}

// entriesPerStep: a disk that works writes so many entries within milliseconds.
const entriesPerStep = 1024

func (w *tableWriter) add(k ikey.Key, value []byte) error {
	if w.w != nil && w.limit > 0 && w.w.EstimatedBytes() >= w.limit && !bytes.Equal(k.User, w.last) {
		if err := w.cut(); err != nil {
			return err
		}
	}
	if w.w == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	w.last = append(w.last[:0], k.User...)
	if w.added++; w.added%entriesPerStep == 0 {
		w.e.stats.flushSteps.Add(1)
	}
	return w.w.Add(k, value)
}

func (w *tableWriter) addRange(d ikey.RangeDelete) error {
	if w.w == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	return w.w.AddRangeDelete(d)
}

// tablePerm: nobody writes to a table again, not even we.
const tablePerm = 0o440

func (w *tableWriter) open() error {
	e := w.e
	w.num = e.manifest.NewFile()
	f, err := e.fs.Create(e.tablePath(w.num), tablePerm)
	if err != nil {
		return fmt.Errorf("create table %s: %w", compact.TableName(w.num), err)
	}
	w.made = append(w.made, w.num)
	w.file = f
	w.w = sstable.NewWriter(f, sstable.WriterOptions{BlockBytes: e.opts.BlockBytes, Compression: e.opts.compression(w.level), ValueBlockBytes: e.opts.ValueBlockBytes,
		FilterBitsPerKey: e.opts.FilterBitsPerKey, Inspect: causal.Inspect})
	return nil
}

// cut finishes the current table and syncs it.
func (w *tableWriter) cut() error {
	meta, err := w.w.Finish()
	if err == nil {
		err = w.file.Sync()
	}
	if cerr := w.file.Close(); err == nil {
		err = cerr
	}
	w.w, w.file = nil, nil
	if err != nil {
		return fmt.Errorf("write table %s: %w", compact.TableName(w.num), err)
	}
	w.tables = append(w.tables, &manifest.Table{Num: w.num, Meta: meta, Origin: w.origin})
	return nil
}

// finish ends the last table and makes the names durable.
func (w *tableWriter) finish() error {
	if w.w != nil {
		if err := w.cut(); err != nil {
			return err
		}
	}
	return vfs.SyncDir(w.e.fs, w.e.tableDir())
}

// abandon removes what was written. A file that can't be removed goes at the next open.
func (w *tableWriter) abandon() {
	if w.file != nil {
		_ = w.file.Close() // its content is of no use
		w.file, w.w = nil, nil
	}
	for _, num := range w.made {
		w.e.removeTable(num)
	}
}

// discard removes tables whose edit was refused. If it is not known whether the edit is in the
// manifest, they stay: an edit that is there must find them.
func (e *Engine) discard(err error, tables []*manifest.Table) {
	if errors.Is(err, manifest.ErrPoisoned) || !errors.Is(err, vfs.ErrNoSpace) && !errors.Is(err, manifest.ErrInvalidEdit) {
		return
	}
	for _, t := range tables {
		e.removeTable(t.Num)
	}
}

func (e *Engine) tableDir() string            { return path.Join(e.dir, compact.TableDir) }
func (e *Engine) tablePath(num uint64) string { return path.Join(e.tableDir(), compact.TableName(num)) }

// Flush writes everything that was applied before the call to tables. After an error it is tried
// again in the background; nothing is lost.
func (e *Engine) Flush(ctx context.Context) error {
	if err := e.rotateNonEmpty(); err != nil {
		return err
	}
	e.mu.Lock()
	var last *memHandle
	if n := len(e.mu.imm); n > 0 {
		last = e.mu.imm[n-1]
	}
	e.mu.flushErr = nil // of attempts before this call
	e.mu.Unlock()
	if last == nil {
		return nil
	}
	notify(e.wake.flush)
	return e.waitUntil(ctx, func() (bool, error) {
		for _, h := range e.mu.imm {
			if h == last {
				return false, e.mu.flushErr
			}
		}
		return true, nil
	})
}

// rotateNonEmpty makes the active memtable immutable unless it is empty.
func (e *Engine) rotateNonEmpty() error {
	return e.runAlone(func() error {
		if err := e.writable(); err != nil {
			return err
		}
		if !e.mem().Empty() {
			e.rotate(0)
		}
		return nil
	})
}

// waitUntil waits for a condition that is checked with e.mu held, whenever memtables or tables
// change. The engine's end is ErrClosed.
func (e *Engine) waitUntil(ctx context.Context, cond func() (bool, error)) error {
	stop := context.AfterFunc(ctx, func() {
		e.mu.Lock()
		e.mu.changed.Broadcast()
		e.mu.Unlock()
	})
	defer stop()
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		done, err := cond()
		switch {
		case done || err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case e.poisoned.Load() != nil:
			return e.poisonErr()
		case e.mu.closing:
			return ErrClosed
		}
		e.mu.changed.Wait()
	}
}
