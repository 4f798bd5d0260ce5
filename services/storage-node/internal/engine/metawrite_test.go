package engine

import (
	"cmp"
	"errors"
	"maps"
	"path"
	"slices"
	"strconv"
	"sync"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/stretchr/testify/require"
)

// key returns one of a few hundred keys of three tenants, whose names and user keys are such that
// joining them without the separator would collide.
func (w *world) key() string {
	tenants := [...]string{"t", "t1", "t11"}
	return tenants[w.rng.IntN(3)] + "\x00" + strconv.Itoa(w.rng.IntN(w.o.keys))
}

func (w *world) record() []byte {
	size := w.rng.IntN(100)
	switch w.rng.IntN(40) {
	case 0:
		size = w.rng.IntN(w.o.largeValue)
	case 1:
		size = 0
	}
	return randomRecord(w.rng, size)
}

func (w *world) randomOp(kind ikey.Kind) op {
	o := op{kind: kind, key: w.key()}
	if kind != ikey.KindDelete {
		o.record = w.record()
	}
	return o
}

func (w *world) randomRange() op {
	a, b := w.key(), w.key()
	if w.rng.IntN(4) > 0 { // most ranges are short
		b = a + string(rune('0'+w.rng.IntN(10)))
	}
	if a > b {
		a, b = b, a
	}
	if a == b {
		b += "\x00"
	}
	return op{kind: ikey.KindRangeDelete, key: a, end: b}
}

func addTo(b *Batch, o op) {
	switch o.kind {
	case ikey.KindSet:
		b.Set([]byte(o.key), o.record)
	case ikey.KindMerge:
		b.Merge([]byte(o.key), o.record)
	case ikey.KindDelete:
		b.Delete([]byte(o.key))
	case ikey.KindRangeDelete:
		b.DeleteRange([]byte(o.key), []byte(o.end))
	}
}

func (w *world) write(name string, ops ...op) {
	w.count(name)
	w.batch.Reset()
	for _, o := range ops {
		addTo(&w.batch, o)
	}
	w.commit(ops)
}

func (w *world) writeBatch() {
	ops := make([]op, 1+w.rng.IntN(20))
	for i := range ops {
		switch w.rng.IntN(12) {
		case 0:
			ops[i] = w.randomRange()
		case 1, 2:
			ops[i] = w.randomOp(ikey.KindDelete)
		case 3, 4, 5:
			ops[i] = w.randomOp(ikey.KindMerge)
		default:
			ops[i] = w.randomOp(ikey.KindSet)
		}
	}
	w.write("batch", ops...)
}

// commit applies w.batch, sometimes in two steps, and tells the model.
func (w *world) commit(ops []op) {
	mode := SyncMode(w.rng.IntN(4))
	var err error
	if w.rng.IntN(8) == 0 {
		var p Pending
		if p, err = w.e.Submit(&w.batch); err == nil && w.rng.IntN(2) == 0 {
			w.m.apply(ops, w.e.AppliedSeq())
			w.checkLatest(ops)
			require.NoError(w.t, p.Wait())
			w.durable = w.m.last()
			return
		}
		mode = SyncNever // nobody waits for it
		if err == nil && w.o.sync == SyncGroup {
			err = p.Wait()
			mode = SyncGroup
		}
	} else {
		if w.o.sync == SyncGroup {
			mode = SyncGroup // so that Get must see it
		}
		err = w.e.Apply(&w.batch, mode)
	}
	require.NoError(w.t, err)
	w.m.apply(ops, w.e.AppliedSeq())
	if mode == SyncGroup || mode == SyncDefault && w.o.sync == SyncGroup {
		w.durable = w.m.last()
	}
	if n := len(w.m.marks); n > 2_000 {
		w.trimModel()
	}
}

// writeAtOnce has several writers commit at the same time, so that they share groups and syncs. Their
// sequences say in which order they came.
func (w *world) writeAtOnce() {
	w.count("writers at once")
	type writer struct {
		ops []op
		b   Batch
		seq ikey.Seq
		err error
	}
	writers := make([]writer, 2+w.rng.IntN(10))
	for i := range writers {
		for range 1 + w.rng.IntN(3) {
			o := w.randomOp(pick(w.rng, ikey.KindSet, ikey.KindMerge, ikey.KindDelete))
			writers[i].ops = append(writers[i].ops, o)
			addTo(&writers[i].b, o)
		}
	}
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() { writers[i].seq, writers[i].err = w.e.write(&writers[i].b, true) })
	}
	wg.Wait()
	slices.SortFunc(writers, func(a, b writer) int { return cmp.Compare(a.seq, b.seq) })
	for _, x := range writers {
		require.NoError(w.t, x.err)
		w.m.apply(x.ops, x.seq)
	}
	require.Equal(w.t, w.e.AppliedSeq(), w.m.last())
	w.durable = w.m.last()
}

// checkLatest looks with GetLatest at what was just written, durable or not.
func (w *world) checkLatest(ops []op) {
	for _, o := range ops {
		value, found, _, err := w.e.GetLatest([]byte(o.key), nil)
		require.NoError(w.t, err)
		w.equal(o.key, w.m.get(o.key, ikey.MaxSeq), value, found)
	}
}

// conditional does what a client's write does: read, decide, set unless something came between.
func (w *world) conditional() {
	w.count("conditional set")
	o := w.randomOp(ikey.KindSet)
	old, found, at, err := w.e.GetLatest([]byte(o.key), nil)
	require.NoError(w.t, err)
	w.equal(o.key, w.m.get(o.key, ikey.MaxSeq), old, found)
	if found {
		o.record = join(o.record, old)
	}
	overtake := w.rng.IntN(3) == 0
	if overtake {
		between := op{kind: ikey.KindMerge, key: o.key, record: w.record()}
		if w.rng.IntN(3) == 0 {
			between = op{kind: ikey.KindRangeDelete, key: o.key, end: o.key + "\x00"}
		}
		w.write("merge", between)
	}
	w.batch.Reset()
	w.batch.SetIfUnchanged([]byte(o.key), o.record, at)
	if overtake {
		require.ErrorIs(w.t, w.e.Apply(&w.batch, SyncGroup), ErrConflict)
		w.count("~conflicts")
		return
	}
	err = w.e.Apply(&w.batch, SyncGroup)
	if errors.Is(err, ErrConflict) {
		w.count("~false conflicts") // allowed: the engine may forget how old a change is
		return
	}
	require.NoError(w.t, err)
	w.m.apply([]op{o}, w.e.AppliedSeq())
	w.durable = w.m.last()
}

// ingest brings in files that may overlap each other and everything else.
func (w *world) ingest() {
	w.count("ingest")
	require.NoError(w.t, w.fs.MkdirAll("incoming", 0o770))
	var ops []op
	var files []string
	for range 1 + w.rng.IntN(3) {
		w.serial++
		name := path.Join("incoming", strconv.Itoa(w.serial)+".sst")
		files = append(files, name)
		ops = append(ops, w.ingestFile(name)...)
	}
	seq, err := w.e.Ingest(w.ctx(), files)
	require.NoError(w.t, err)
	require.Equal(w.t, w.e.AppliedSeq(), seq)
	w.m.apply(ops, seq)
	w.durable = seq
	for _, name := range files {
		require.NoError(w.t, w.fs.Remove(name))
	}
}

// ingestFile writes a table of fragments; sets count as fragments, too.
func (w *world) ingestFile(name string) []op {
	byKey := map[string]op{}
	for range 1 + w.rng.IntN(12) {
		o := op{kind: ikey.KindMerge, key: w.key(), record: w.record()}
		byKey[o.key] = o
	}
	f, err := w.fs.Create(name, 0o660)
	require.NoError(w.t, err)
	table := sstable.NewWriter(f, sstable.WriterOptions{Compression: sstable.S2, FilterBitsPerKey: 10})
	var ops []op
	for _, k := range slices.Sorted(maps.Keys(byKey)) {
		kind := ikey.KindSet
		if w.rng.IntN(2) == 0 {
			kind = ikey.KindMerge
		}
		require.NoError(w.t, table.Add(ikey.Make([]byte(k), 1, kind), byKey[k].record))
		ops = append(ops, byKey[k])
	}
	_, err = table.Finish()
	require.NoError(w.t, err)
	require.NoError(w.t, f.Sync())
	require.NoError(w.t, f.Close())
	return ops
}
