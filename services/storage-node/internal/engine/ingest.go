package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/iterator"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// Ingest brings the entries of table files into the tree as fragments, all at one sequence, which it
// returns: they become visible together, and durable before Ingest returns. The files may lie
// anywhere, overlap, and hold sets and fragments of valid records; they are read with all checksums
// and stay as they are.
//
// How it goes:
//
//  1. The entries are joined and written to new tables with a sequence S that lies ahead of what
//     writes will have used by then (ingestAhead), so that the tables are complete and durable before
//     the commit queue is held up. If writes were faster, it begins again.
//  2. Memtables with keys in the range are flushed: in the tree, what is above must be newer.
//  3. In the commit queue, with nothing else under way: a marker with S goes to the log and is
//     synced, for the change feed. Later writes have sequences above S.
//  4. The manifest edit adds the tables, and the fact that S was ingested: the commit point. A marker
//     without the fact counts for nothing.
//
// A writer whose read is older than S and whose key is in the range gets ErrConflict: its Set would
// shadow what it has not seen.
func (e *Engine) Ingest(ctx context.Context, files []string) (ikey.Seq, error) {
	e.ingestMu.Lock()
	defer e.ingestMu.Unlock()
	ahead := ikey.Seq(ingestAhead)
	for attempt := 1; ; attempt++ {
		seq, err := e.ingestOnce(ctx, files, ahead)
		if errors.Is(err, errOvertaken) && attempt < maxIngestAttempts {
			ahead *= 8
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("ingest: %w", err)
		}
		return seq, nil
	}
}

const (
	// ingestAhead: at 10⁶ writes per second for a quarter of an hour. 56 bits have room for 64
	// million ingests.
	ingestAhead = 1 << 30
	// maxIngestAttempts bounds how often an ingest starts anew, or waits for a flush outside of the
	// commit queue; then it flushes inside, which stalls writers for that long.
	maxIngestAttempts = 3
	// maxIngestFiles bounds open files, maxIngestTables the marker.
	maxIngestFiles  = 1024
	maxIngestTables = 4096
)

var (
	errOvertaken = errors.New("writes overtook the sequence of the ingest")
	errOverlap   = errors.New("a memtable overlaps the ingest")
)

// ingest is one attempt.
type ingest struct {
	e      *Engine
	seq    ikey.Seq
	tables []*manifest.Table
	spans  []manifest.Span
	bytes  uint64
}

func (e *Engine) ingestOnce(ctx context.Context, files []string, ahead ikey.Seq) (ikey.Seq, error) {
	if err := e.writable(); err != nil {
		return 0, err
	}
	if err := e.CheckRoom(); err != nil {
		return 0, err
	}
	seq := ikey.Seq(e.applied.Load()) + ahead
	if seq >= ikey.MaxSeq-ahead {
		return 0, errors.New("sequence numbers are used up")
	}
	in := &ingest{e: e, seq: seq}
	if err := in.write(ctx, files); err != nil {
		return 0, err
	}
	if len(in.tables) == 0 {
		return ikey.Seq(e.applied.Load()), nil
	}
	committed, err := in.publish(ctx)
	if err != nil {
		if !committed {
			in.drop()
		}
		return 0, err
	}
	e.stats.ingests.Add(1)
	e.stats.ingestedTables.Add(uint64(len(in.tables)))
	e.stats.ingestedBytes.Add(in.bytes)
	e.emit(Event{Kind: EventIngested, Tables: len(in.tables), Bytes: int64(in.bytes), Seq: uint64(seq)})
	notify(e.wake.schedule)
	return seq, e.waitDurable(seq)
}

// CheckRoom refuses, with ErrDiskThrottled or ErrDiskFull, what others send in bulk from a throttled disk
// on: whoever sends it has the data, and can come back.
func (e *Engine) CheckRoom() error {
	switch s, _ := e.Space(); s {
	case SpaceFull:
		return fmt.Errorf("%w: nothing is ingested", ErrDiskFull)
	case SpaceThrottled:
		return fmt.Errorf("%w: nothing is ingested", ErrDiskThrottled)
	}
	return nil
}

// write joins the files into new tables.
func (in *ingest) write(ctx context.Context, files []string) (err error) {
	if len(files) > maxIngestFiles {
		return fmt.Errorf("%w: %d files, at most %d at once", ErrInvalidTable, len(files), maxIngestFiles)
	}
	var iters []iterator.Iterator
	var readers []*sstable.Reader
	defer func() {
		for _, it := range iters {
			_ = it.Close() // its error was that of the walk
		}
		for _, r := range readers {
			_ = r.Close() // read only
		}
	}()
	for _, name := range files {
		r, err := in.open(name)
		if err != nil {
			return err
		}
		readers = append(readers, r)
		iters = append(iters, r.NewIter())
	}
	w := &tableWriter{e: in.e, origin: manifest.OriginIngest, limit: uint64(in.e.opts.TableBytes)}
	if err := in.copy(ctx, iterator.Merge(iters...), w); err != nil {
		w.abandon()
		return err
	}
	if err := w.finish(); err != nil {
		w.abandon()
		return err
	}
	in.tables = w.tables
	for _, t := range in.tables {
		in.spans = append(in.spans, t.Span())
		in.bytes += t.Size
	}
	return nil
}

func (in *ingest) open(name string) (*sstable.Reader, error) {
	f, err := in.e.fs.OpenForeign(name, false)
	if err != nil {
		return nil, err
	}
	r, err := sstable.Open(f, sstable.ReaderOptions{Name: path.Base(name)})
	if err != nil {
		return nil, err
	}
	if m := r.Meta(); m.Deletes > 0 || m.RangeDeletes > 0 {
		return nil, errors.Join(fmt.Errorf("%w: %s has physical deletes", ErrInvalidTable, path.Base(name)), r.Close())
	}
	return r, nil
}

// copy writes the entries of it as fragments at the sequence of the ingest; entries of one key are
// joined.
func (in *ingest) copy(ctx context.Context, it iterator.Iterator, w *tableWriter) error {
	var key, acc, spare []byte
	flush := func() error {
		if key == nil {
			return nil
		}
		if len(w.made) > maxIngestTables {
			return fmt.Errorf("%w: more than %d tables at once", ErrInvalidTable, maxIngestTables)
		}
		return w.add(ikey.Make(key, in.seq, ikey.KindMerge), acc)
	}
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		k := it.Key()
		if len(k.User) == 0 || len(k.User) > MaxKeyBytes {
			return fmt.Errorf("%w: key of %d bytes", ErrInvalidTable, len(k.User))
		}
		value := it.Value()
		if err := it.Err(); err != nil {
			return err
		}
		if _, err := causal.Decode(value); err != nil {
			return fmt.Errorf("%w: key %s: %w", ErrInvalidTable, ikey.Hash(k.User), err)
		}
		if key != nil && bytes.Equal(key, k.User) {
			joined, err := causal.JoinEncoded(spare[:0], acc, value)
			if err != nil {
				return fmt.Errorf("%w: key %s: %w", ErrInvalidTable, ikey.Hash(k.User), err)
			}
			acc, spare = joined, acc
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		key, acc = append(key[:0], k.User...), append(acc[:0], value...)
	}
	if err := it.Err(); err != nil {
		return err
	}
	return flush()
}

// drop removes tables that will not be part of the tree.
func (in *ingest) drop() {
	for _, t := range in.tables {
		in.e.removeTable(t.Num)
	}
}

// publish brings the tables into the tree. committed says that the edit may be in the manifest.
func (in *ingest) publish(ctx context.Context) (committed bool, err error) {
	for attempt := 1; ; attempt++ {
		err := in.e.runAlone(func() error {
			err := in.checkQueue(attempt > maxIngestAttempts)
			if err == nil {
				committed, err = in.commit()
			}
			return err
		})
		if !errors.Is(err, errOverlap) {
			return committed, err
		}
		if err := in.e.Flush(ctx); err != nil {
			return false, err
		}
	}
}

// checkQueue says whether the ingest may be committed now. With insist it flushes overlapping
// memtables itself. It runs as the leader.
func (in *ingest) checkQueue(insist bool) error {
	e := in.e
	if err := e.writable(); err != nil {
		return err
	}
	if e.leader.next > in.seq {
		return errOvertaken
	}
	if !in.overlapsMemtables() {
		return nil
	}
	if !insist {
		return errOverlap
	}
	if !e.mem().Empty() {
		e.rotate(0)
	}
	return e.waitUntil(context.Background(), func() (bool, error) { return len(e.mu.imm) == 0, e.mu.flushErr })
}

// overlapsMemtables reports whether a memtable has an entry or a range delete in the range of the
// ingest.
func (in *ingest) overlapsMemtables() bool {
	e := in.e
	e.mu.Lock()
	handles := append([]*memHandle{e.mu.mem}, e.mu.imm...)
	for _, h := range handles {
		h.Ref()
	}
	e.mu.Unlock()
	found := false
	for _, h := range handles {
		found = found || overlapsAny(h, in.spans)
		e.unrefMemtable(h.Table)
	}
	return found
}

func overlapsAny(h *memHandle, spans []manifest.Span) bool {
	it := h.NewIter()
	defer func() { _ = it.Close() }() // memory: it can't fail
	for _, s := range spans {
		if it.SeekGE(ikey.Search(s.Start, ikey.MaxSeq)) && s.Overlaps(manifest.Span{Start: it.Key().User, End: it.Key().User}) {
			return true
		}
		for _, d := range h.RangeDeletes() {
			if s.Overlaps(rangeSpan(d.Start, d.End)) {
				return true
			}
		}
	}
	return false
}

// commit writes the marker and makes the edit. It runs as the leader.
func (in *ingest) commit() (committed bool, err error) {
	e := in.e
	marker := ingestMarker{seq: in.seq}
	for _, t := range in.tables {
		marker.tables = append(marker.tables, markedTable{num: t.Num, digest: t.Digest})
	}
	frame := marker.encode()
	if err := e.log.Reserve(len(frame)); err != nil {
		return false, e.logError("reserve", err)
	}
	e.leader.next = in.seq + 1
	pos, err := e.log.Append(frameIngest, frame)
	if err != nil {
		return false, e.logError("append ingest marker", err)
	}
	if err := e.log.SyncTo(pos); err != nil {
		return false, e.poison(err)
	}
	e.tails.addIngest(in.seq, in.numbers())
	err = e.applyEdit(in.edit(), nil, func() { in.show(pos) })
	if err == nil || e.poisoned.Load() != nil {
		return true, err
	}
	e.tails.forget(in.seq)
	return false, err
}

// edit adds the tables to level 0. Which tables the marker names is a fact of the node until the log
// has forgotten the marker: Tail needs them, even when they are compacted away.
func (in *ingest) edit() manifest.Edit {
	edit := manifest.Edit{LastSeq: in.seq, NodeMeta: map[string]string{}}
	for _, t := range in.tables {
		edit.Added = append(edit.Added, manifest.Added{Level: 0, Table: t})
	}
	key, value := ingestFact(in.seq, in.numbers())
	edit.NodeMeta[key] = value
	return edit
}

func (in *ingest) numbers() []uint64 {
	nums := make([]uint64, len(in.tables))
	for i, t := range in.tables {
		nums[i] = t.Num
	}
	return nums
}

// show makes the ingest readable, after its tables were published. e.mu is held, so that no job is
// planned between the two.
func (in *ingest) show(pos commitlog.Position) {
	e := in.e
	for _, s := range in.spans {
		e.rows.InvalidateRange(s.Start, append(bytes.Clone(s.End), 0), in.seq) // the end belongs to it
		e.noteRange(manifest.Span{Start: bytes.Clone(s.Start), End: bytes.Clone(s.End), Exclusive: s.Exclusive}, in.seq)
	}
	e.applied.Store(uint64(in.seq))
	d := &e.durable
	d.mu.Lock()
	d.logged, d.applied = logMark{seq: in.seq, pos: pos}, in.seq
	d.logSynced, d.synced = max(d.logSynced, in.seq), max(d.synced, in.seq)
	e.moveVisibleLocked(in.seq)
	d.mu.Unlock()
}
