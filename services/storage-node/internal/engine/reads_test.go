package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/cache"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
	"github.com/pairdb/pairdb/services/storage-node/internal/memtable"
	"github.com/stretchr/testify/require"
)

// shelf is a read side without a write side: memtables and tables that a test put there.
type shelf struct {
	t       testing.TB
	e       *Engine
	fs      *vfs.MemFS
	blocks  *cache.Blocks
	levels  [manifest.NumLevels][]*manifest.Table
	mems    []*memtable.Table // newest first
	next    uint64
	corrupt []uint64
}

func newShelf(t testing.TB, blockCache int64, maxOpen int) *shelf {
	s := &shelf{t: t, e: &Engine{}, fs: vfs.NewMem(), next: 1}
	require.NoError(t, s.fs.MkdirAll("sst", 0o770))
	s.blocks = cache.NewBlocks(blockCache)
	s.e.tables = newTableCache(s.fs, "sst", maxOpen, s.blocks, func(num uint64, _ error) { s.corrupt = append(s.corrupt, num) })
	return s
}

// entry is one point entry or range delete.
type entry struct {
	key   ikey.Key
	value []byte // the end of a range delete
}

func (s *shelf) memtable(entries []entry) {
	m := memtable.New(1 << 20)
	for _, e := range entries {
		if e.key.Kind() == ikey.KindRangeDelete {
			m.AddRangeDelete(ikey.RangeDelete{Start: e.key.User, End: e.value, Seq: e.key.Seq()})
			continue
		}
		require.True(s.t, m.Add(e.key, e.value))
	}
	s.mems = append([]*memtable.Table{m}, s.mems...)
}

// table writes entries, in any order, as one table of a level. None is no table.
func (s *shelf) table(level int, entries []entry, o sstable.WriterOptions) *manifest.Table {
	if len(entries) == 0 {
		return nil
	}
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b entry) int { return ikey.Compare(a.key, b.key) })
	num := s.next
	s.next++
	f, err := s.fs.Create("sst/"+compact.TableName(num), 0o440)
	require.NoError(s.t, err)
	w := sstable.NewWriter(f, o)
	for _, e := range entries {
		if e.key.Kind() == ikey.KindRangeDelete {
			require.NoError(s.t, w.AddRangeDelete(ikey.RangeDelete{Start: e.key.User, End: e.value, Seq: e.key.Seq()}))
			continue
		}
		require.NoError(s.t, w.Add(e.key, e.value))
	}
	meta, err := w.Finish()
	require.NoError(s.t, err)
	require.NoError(s.t, f.Close())
	t := &manifest.Table{Num: num, Meta: meta, Origin: manifest.OriginFlush}
	s.levels[level] = append(s.levels[level], t)
	return t
}

// publish makes everything readable up to seq.
func (s *shelf) publish(seq ikey.Seq) {
	if len(s.mems) == 0 {
		s.memtable(nil)
	}
	v := manifest.NewVersion(s.levels)
	require.NoError(s.t, manifest.CheckInvariants(v))
	s.e.publish(slices.Clone(s.mems), v)
	s.e.applied.Store(uint64(seq))
	s.e.visible.Store(uint64(seq))
}

// close ends the shelf; nothing may stay pinned.
func (s *shelf) close() {
	s.e.closeReads()
	s.e.tables.close()
	requireNothingPinned(s.t, s.e)
}

// history is random changes of a few keys with rising sequences, and what they mean.
type history struct {
	entries []entry
	m       *model
}

func randomHistory(rng *rand.Rand, n, keys int) history {
	h := history{m: newModel()}
	key := func() string { return fmt.Sprintf("k%02d", rng.IntN(keys)) }
	for seq := ikey.Seq(1); seq <= ikey.Seq(n); seq++ {
		o := op{kind: ikey.KindSet, key: key()}
		switch rng.IntN(10) {
		case 0:
			o.kind = ikey.KindDelete
		case 1:
			o.kind, o.end = ikey.KindRangeDelete, key()
			if o.end < o.key {
				o.key, o.end = o.end, o.key
			}
			o.end += "x"
		case 2, 3, 4:
			o.kind = ikey.KindMerge
		}
		e := entry{key: ikey.Make([]byte(o.key), seq, o.kind)}
		switch o.kind {
		case ikey.KindSet, ikey.KindMerge:
			o.record = randomRecord(rng, rng.IntN(40))
			e.value = o.record
		case ikey.KindRangeDelete:
			e.value = []byte(o.end)
		}
		h.entries = append(h.entries, e)
		h.m.apply([]op{o}, seq)
	}
	return h
}

// spread puts the history on the shelf: oldest at the bottom, newest in memtables. Tables of deeper
// levels are cut between keys, with range deletes cut at the same places.
func (s *shelf) spread(rng *rand.Rand, h history) {
	rest := h.entries
	take := func() []entry {
		n := rng.IntN(len(rest) + 1)
		part := rest[:n]
		rest = rest[n:]
		return part
	}
	o := sstable.WriterOptions{BlockBytes: 64 << rng.IntN(6), FilterBitsPerKey: rng.IntN(3) * 5}
	for level := manifest.NumLevels - 1; level >= 1; level -= 1 + rng.IntN(3) {
		part := take()
		cuts := []string{"", "z"}
		for range rng.IntN(4) {
			cuts = append(cuts, fmt.Sprintf("k%02d", rng.IntN(30)))
		}
		slices.Sort(cuts)
		for i := 1; i < len(cuts); i++ {
			s.table(level, cutEntries(part, cuts[i-1], cuts[i]), o)
		}
	}
	for range rng.IntN(4) {
		s.table(0, take(), o)
	}
	for range rng.IntN(3) {
		s.memtable(take())
	}
	s.memtable(rest)
	s.publish(ikey.Seq(len(h.entries)))
}

// cutEntries returns what of entries lies in [from, to).
func cutEntries(entries []entry, from, to string) []entry {
	var out []entry
	for _, e := range entries {
		start, end := string(e.key.User), string(e.value)
		if e.key.Kind() != ikey.KindRangeDelete {
			if from <= start && start < to {
				out = append(out, e)
			}
			continue
		}
		start, end = max(start, from), min(end, to)
		if start < end {
			out = append(out, entry{key: ikey.Make([]byte(start), e.key.Seq(), e.key.Kind()), value: []byte(end)})
		}
	}
	return out
}

// Wherever the versions of a key lie (memtables, overlapping tables, deep levels), point reads and
// walks must give what the history says, at every sequence. A wrong order of sources resurrects
// old values; a lost range delete, deleted ones.
func TestReadsEqualHistoryAtEverySequence(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 20
	}
	for round := range rounds {
		rng := rand.New(rand.NewPCG(7, uint64(round)))
		s := newShelf(t, int64(rng.IntN(3))*(8<<10), 1+rng.IntN(4))
		h := randomHistory(rng, 20+rng.IntN(100), 3+rng.IntN(25))
		s.spread(rng, h)
		for at := ikey.Seq(0); at <= ikey.Seq(len(h.entries)); at += ikey.Seq(1 + rng.IntN(4)) {
			s.compare(h.m, at, rng)
		}
		s.close()
	}
}

func (s *shelf) compare(m *model, at ikey.Seq, rng *rand.Rand) {
	state, err := s.e.acquireFixed()
	require.NoError(s.t, err)
	defer state.unref()
	for _, k := range append(m.sorted, "k99", "a") {
		value, found, err := state.get([]byte(k), at, nil)
		require.NoError(s.t, err)
		want := m.get(k, at)
		require.Equal(s.t, want != nil, found, "key %s at %d", k, at)
		require.True(s.t, bytes.Equal(want, value), "key %s at %d", k, at)
	}
	require.True(s.t, state.tryRef())
	lower, upper := "", ""
	if rng.IntN(2) == 0 {
		lower, upper = fmt.Sprintf("k%02d", rng.IntN(15)), fmt.Sprintf("k%02d", 15+rng.IntN(15))
	}
	it, err := newIter(state, at, IterOptions{Lower: orNil(lower), Upper: orNil(upper)})
	require.NoError(s.t, err)
	keys := m.present(at, lower, upper)
	i := 0
	for ok := it.First(); ok; ok = it.Next() {
		require.Less(s.t, i, len(keys), "surplus %q at %d", it.Key(), at)
		require.Equal(s.t, keys[i], string(it.Key()), "at %d", at)
		require.True(s.t, bytes.Equal(m.get(keys[i], at), it.Value()), "%q at %d", it.Key(), at)
		i++
	}
	require.NoError(s.t, it.Err())
	require.Len(s.t, keys, i)
	for ok := it.Last(); ok; ok = it.Prev() {
		i--
		require.GreaterOrEqual(s.t, i, 0)
		require.Equal(s.t, keys[i], string(it.Key()), "at %d", at)
		require.True(s.t, bytes.Equal(m.get(keys[i], at), it.Value()), "%q at %d", it.Key(), at)
	}
	require.NoError(s.t, it.Err())
	require.Zero(s.t, i)
	s.wander(m, it, at, keys, rng)
	require.NoError(s.t, it.Close())
	require.NoError(s.t, it.Close(), "Close is idempotent")
	require.False(s.t, it.First())
	require.ErrorIs(s.t, it.Err(), ErrClosed)
}

// wander moves an iterator at random, with many turns.
func (s *shelf) wander(m *model, it *Iter, at ikey.Seq, keys []string, rng *rand.Rand) {
	pos := -1
	for range 40 {
		var ok bool
		k := fmt.Sprintf("k%02d", rng.IntN(30))
		switch r := rng.IntN(10); {
		case pos >= 0 && r < 4:
			ok, pos = it.Next(), pos+1
		case pos >= 0 && r < 8:
			ok, pos = it.Prev(), pos-1
		case r%2 == 0:
			ok = it.SeekGE([]byte(k))
			pos, _ = slices.BinarySearch(keys, k)
		default:
			ok = it.SeekLT([]byte(k))
			pos, _ = slices.BinarySearch(keys, k)
			pos--
		}
		if pos == len(keys) {
			pos = -1
		}
		require.NoError(s.t, it.Err())
		require.Equal(s.t, pos >= 0, ok)
		if ok {
			require.Equal(s.t, keys[pos], string(it.Key()))
			require.True(s.t, bytes.Equal(m.get(keys[pos], at), it.Value()))
		}
	}
}
