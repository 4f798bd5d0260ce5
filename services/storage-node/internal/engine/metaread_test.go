package engine

import (
	"bytes"
	"slices"
	"sort"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/stretchr/testify/require"
)

// bounds returns random bounds, often none.
func (w *world) bounds() (lower, upper string) {
	if w.rng.IntN(2) == 0 {
		lower = w.key()
	}
	if w.rng.IntN(2) == 0 {
		upper = w.key()
	}
	if lower != "" && upper != "" && lower > upper {
		lower, upper = upper, lower
	}
	return lower, upper
}

func orNil(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

// wrap pairs an iterator with the keys that it should find.
func (w *world) wrap(it *Iter, err error, at ikey.Seq, lower, upper string) openIter {
	require.NoError(w.t, err)
	return openIter{it: it, at: at, lower: lower, upper: upper, keys: w.m.present(at, lower, upper), pos: -1}
}

// move makes one random move and compares where it led.
func (w *world) move(o *openIter) {
	var ok bool
	n := len(o.keys)
	switch r := w.rng.IntN(10); {
	case o.pos >= 0 && r < 4:
		ok = o.it.Next()
		o.pos++
	case o.pos >= 0 && r < 7:
		ok = o.it.Prev()
		o.pos--
	case r < 8:
		key := w.key()
		ok = o.it.SeekGE([]byte(key))
		o.pos = sort.SearchStrings(o.keys, key)
	case r < 9:
		key := w.key()
		ok = o.it.SeekLT([]byte(key))
		o.pos = sort.SearchStrings(o.keys, key) - 1
	case w.rng.IntN(2) == 0:
		ok = o.it.First()
		o.pos = 0
	default:
		ok = o.it.Last()
		o.pos = n - 1
	}
	if o.pos >= n {
		o.pos = -1
	}
	require.NoError(w.t, o.it.Err())
	require.Equal(w.t, ok, o.it.Valid())
	if ok != (o.pos >= 0) {
		w.t.Fatalf("iterator at %d [%q, %q) stands on a key: %v (%q), want %d of %d\n%s", o.at, o.lower, o.upper, ok, o.it.Key(), o.pos, n, w.tables())
	}
	if !ok {
		return
	}
	key := o.keys[o.pos]
	if string(o.it.Key()) != key || !bytes.Equal(o.it.Value(), w.m.get(key, o.at)) {
		w.t.Fatalf("iterator at %d stands on %q = %x, want %q = %x\n%s", o.at, o.it.Key(), o.it.Value(), key, w.m.get(key, o.at), w.tables())
	}
}

func (w *world) iterate() {
	w.count("iterate")
	lower, upper := w.bounds()
	it, err := w.e.NewIter(IterOptions{Lower: orNil(lower), Upper: orNil(upper)})
	o := w.wrap(it, err, w.m.last(), lower, upper)
	for range 1 + w.rng.IntN(20) {
		w.move(&o)
		w.count("~iterator moves")
	}
	if len(w.iters) < 4 && w.rng.IntN(4) == 0 {
		w.iters = append(w.iters, o)
		return
	}
	require.NoError(w.t, it.Close())
}

// moveOpenIter moves an iterator that was opened before other operations: it must not notice them.
func (w *world) moveOpenIter() {
	if len(w.iters) == 0 {
		w.iterate()
		return
	}
	w.count("old iterator")
	i := w.rng.IntN(len(w.iters))
	for range 1 + w.rng.IntN(10) {
		w.move(&w.iters[i])
	}
	if w.rng.IntN(10) == 0 {
		require.NoError(w.t, w.iters[i].it.Close())
		w.iters = slices.Delete(w.iters, i, i+1)
	}
}

// toggleSnapshot opens or closes a snapshot.
func (w *world) toggleSnapshot() {
	w.count("snapshot")
	if len(w.snaps) > w.rng.IntN(6) {
		i := w.rng.IntN(len(w.snaps))
		require.NoError(w.t, w.snaps[i].s.Close())
		_, _, err := w.snaps[i].s.Get([]byte("t\x000"), nil)
		require.ErrorIs(w.t, err, ErrClosed)
		w.snaps = slices.Delete(w.snaps, i, i+1)
		return
	}
	w.snaps = append(w.snaps, openSnapshot{s: w.e.NewSnapshot(), at: w.m.last()})
}

// snapshotRead reads through a snapshot: whatever was written or compacted since, it sees what it
// saw when it was made.
func (w *world) snapshotRead() {
	if len(w.snaps) == 0 {
		w.toggleSnapshot()
		return
	}
	w.count("snapshot read")
	s := w.snaps[w.rng.IntN(len(w.snaps))]
	if w.rng.IntN(3) == 0 {
		lower, upper := w.bounds()
		it, err := s.s.NewIter(IterOptions{Lower: orNil(lower), Upper: orNil(upper)})
		o := w.wrap(it, err, s.at, lower, upper)
		for range 1 + w.rng.IntN(10) {
			w.move(&o)
		}
		require.NoError(w.t, it.Close())
		return
	}
	for range 4 {
		key := w.key()
		value, found, err := s.s.Get([]byte(key), nil)
		require.NoError(w.t, err)
		w.equal(key, w.m.get(key, s.at), value, found)
	}
}

// compareAll compares every key by point reads and by walks in both directions.
func (w *world) compareAll() {
	at := w.m.last()
	keys := w.m.present(at, "", "")
	it, err := w.e.NewIter(IterOptions{})
	require.NoError(w.t, err)
	i := 0
	for ok := it.First(); ok; ok = it.Next() {
		require.Less(w.t, i, len(keys), "surplus key %q", it.Key())
		require.Equal(w.t, keys[i], string(it.Key()))
		w.equal(keys[i], w.m.get(keys[i], at), it.Value(), true)
		i++
	}
	require.NoError(w.t, it.Err())
	require.Equal(w.t, len(keys), i, "keys are missing")
	for ok := it.Last(); ok; ok = it.Prev() {
		i--
		require.GreaterOrEqual(w.t, i, 0)
		require.Equal(w.t, keys[i], string(it.Key()))
		w.equal(keys[i], w.m.get(keys[i], at), it.Value(), true)
	}
	require.NoError(w.t, it.Err())
	require.Zero(w.t, i)
	require.NoError(w.t, it.Close())
	for _, k := range w.m.sorted {
		value, found, err := w.e.Get([]byte(k), w.buf)
		require.NoError(w.t, err)
		w.equal(k, w.m.get(k, at), value, found)
	}
	w.count("~full comparisons")
}
