package engine

import (
	"slices"
	"sync"
	"testing"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/services/storage-node/internal/cache"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
	"github.com/pairdb/pairdb/services/storage-node/internal/memtable"
	"github.com/stretchr/testify/require"
)

// Joined without a separator, tenant "a" with key "b:c" and tenant "a:b" with key "c" were one key
// once, and one record vanished in the next merge.
func TestEqualKeysOfTwoTenantsStayApart(t *testing.T) {
	pairs := [][2]string{{"a", "bc"}, {"ab", "c"}, {"a", "b:c"}, {"a:b", "c"}}
	s := newShelf(t, 64<<10, 4)
	s.e.rows = cache.NewRows(1 << 20)
	var entries []entry
	for i, p := range pairs {
		key := ikey.AppendEngineKey(nil, p[0], p[1])
		entries = append(entries, entry{key: ikey.Make(key, ikey.Seq(i+1), ikey.KindSet), value: []byte(p[0] + "|" + p[1])})
	}
	s.table(1, entries[:2], sstable.WriterOptions{FilterBitsPerKey: 10})
	s.memtable(entries[2:])
	s.publish(4)
	for range 2 { // the second time from the row cache
		for _, p := range pairs {
			s.want(string(ikey.AppendEngineKey(nil, p[0], p[1])), p[0]+"|"+p[1])
		}
	}
	it, err := s.e.NewIter(IterOptions{})
	require.NoError(t, err)
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	require.Equal(t, len(pairs), n)
	require.NoError(t, it.Close())
	s.close()
}

// Get must not show what a power cut can still take, wherever the entry is: not in the memtable,
// not in the row cache. GetLatest must.
func TestGetSeesDurableRowsOnly(t *testing.T) {
	s := newShelf(t, 0, 4)
	s.e.rows = cache.NewRows(1 << 20)
	key := []byte("t\x00k")
	s.memtable([]entry{
		{key: ikey.Make(key, 1, ikey.KindSet), value: []byte("durable")},
		{key: ikey.Make(key, 2, ikey.KindSet), value: []byte("applied")},
	})
	s.publish(2)
	s.e.visible.Store(1)
	s.e.rows.Update(key, []byte("applied"), 2, true)

	snap := s.e.NewSnapshot()
	for range 2 {
		s.want(string(key), "durable")
		value, found, at, err := s.e.GetLatest(key, nil)
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, "applied", string(value))
		require.Equal(t, ikey.Seq(2), at)
	}
	s.e.visible.Store(2)
	s.want(string(key), "applied")
	value, _, err := snap.Get(key, nil)
	require.NoError(t, err)
	require.Equal(t, "durable", string(value), "the snapshot stays where it was made")
	require.Equal(t, []ikey.Seq{1}, s.e.snapshots.sequences())
	require.NoError(t, snap.Close())
	require.NoError(t, snap.Close())
	require.Empty(t, s.e.snapshots.sequences())
	_, _, err = snap.Get(key, nil)
	require.ErrorIs(t, err, ErrClosed)
	_, err = snap.NewIter(IterOptions{})
	require.ErrorIs(t, err, ErrClosed)
	s.close()
}

// A read that found the old row before a write, and offers it to the cache after it, must be
// refused: the row would be stale for ever.
func TestLateCacheFillNeverReplacesANewerRow(t *testing.T) {
	key := []byte("t\x00k")
	for name, write := range map[string]func(r *cache.Rows){
		"set, row taken":     func(r *cache.Rows) { r.Update(key, []byte("new"), 2, true) },
		"set, row not taken": func(r *cache.Rows) { r.Update(key, []byte("new"), 2, false) },
		"merge or delete":    func(r *cache.Rows) { r.Invalidate(key, 2) },
		"range delete":       func(r *cache.Rows) { r.InvalidateRange(nil, nil, 2) },
	} {
		t.Run(name, func(t *testing.T) {
			r := cache.NewRows(1 << 20)
			write(r)
			r.Insert(key, []byte("old"), 1) // the late reader, whose read was at 1
			value, ok := r.Get(key, nil, 10)
			require.True(t, !ok || string(value) == "new", "%q", value)
		})
	}
}

// One writer and many readers on the read side's own terms: row cache, memtable, applied, visible,
// in this order. No reader may ever see a value older than one that it or the writer saw before.
func TestRowsNeverGoBack(t *testing.T) {
	s := newShelf(t, 0, 4)
	s.e.rows = cache.NewRows(64 << 10)
	keys := []string{"t\x00a", "t\x00b", "t\x00c"}
	s.memtable(nil)
	s.publish(0)
	const writes = 30_000
	var readers sync.WaitGroup
	for r := range 4 {
		readers.Go(func() {
			var dst []byte
			var last [3]uint64
			for i := 0; ; i++ {
				k := (i + r) % len(keys)
				// The next write of a key is three sequences away: its value is at least that
				// of visible, rounded down to its own.
				before := s.e.visible.Load()
				value, found, err := s.e.Get([]byte(keys[k]), dst)
				if err != nil {
					t.Error(err)
					return
				}
				seq := uint64(0)
				if found {
					seq, dst = decimal(value), value
				}
				if seq < last[k] || seq+uint64(len(keys)) <= before || seq > s.e.visible.Load() {
					t.Errorf("key %d: value of %d, after %d, visible was %d", k, seq, last[k], before)
					return
				}
				last[k] = seq
				if before >= writes {
					return
				}
			}
		})
	}
	m := s.mems[0]
	for seq := ikey.Seq(1); seq <= writes; seq++ {
		key := []byte(keys[int(seq)%len(keys)])
		value := appendDecimal(nil, uint64(seq))
		s.e.rows.Update(key, value, seq, seq%2 == 0)
		if !m.Add(ikey.Make(key, seq, ikey.KindSet), value) {
			s.memtable(nil) // rotate: published before the first entry
			m = s.mems[0]
			s.e.publish(slices.Clone(s.mems), manifest.NewVersion(s.levels))
			require.True(t, m.Add(ikey.Make(key, seq, ikey.KindSet), value))
		}
		s.e.applied.Store(uint64(seq))
		if seq%3 == 0 || seq == writes { // a sync for a group of three
			s.e.visible.Store(uint64(seq))
		}
	}
	readers.Wait()
	s.close()
}

// A write that is decided by GetLatest is refused when something newer than the returned sequence is
// there. If that sequence were newer than the answer (a read state from before a rotation with a
// sequence from after it), the write in between would be shadowed unseen.
func TestReadSequenceIsThatOfTheAnswer(t *testing.T) {
	s := newShelf(t, 0, 4)
	keys := []string{"t\x00a", "t\x00b", "t\x00c"}
	s.mems = []*memtable.Table{memtable.New(1 << 10)}
	s.publish(0)
	const writes = 20_000
	var readers sync.WaitGroup
	for r := range 2 {
		readers.Go(func() {
			var dst []byte
			for i := 0; ; i++ {
				k := (i + r) % len(keys)
				value, found, at, err := s.e.GetLatest([]byte(keys[k]), dst)
				if err != nil {
					t.Error(err)
					return
				}
				got := uint64(0)
				if found {
					got, dst = decimal(value), value
				}
				want := uint64(at) - (uint64(at)+3-uint64(k))%3 // the last write of the key up to at
				if got != want && int64(want) > 0 {
					t.Errorf("at %d key %d is %d, want %d", at, k, got, want)
					return
				}
				if at >= writes {
					return
				}
			}
		})
	}
	m := s.mems[0]
	for seq := ikey.Seq(1); seq <= writes; seq++ {
		key, value := []byte(keys[int(seq)%len(keys)]), appendDecimal(nil, uint64(seq))
		if !m.Add(ikey.Make(key, seq, ikey.KindSet), value) {
			m = memtable.New(1 << 10)
			s.mems = append([]*memtable.Table{m}, s.mems[:min(len(s.mems), 2)]...)
			s.e.publish(slices.Clone(s.mems), manifest.NewVersion(s.levels))
			require.True(t, m.Add(ikey.Make(key, seq, ikey.KindSet), value))
		}
		s.e.applied.Store(uint64(seq))
	}
	readers.Wait()
	s.close()
}

func decimal(b []byte) (n uint64) {
	for _, c := range b {
		n = n*10 + uint64(c-'0')
	}
	return n
}

func appendDecimal(dst []byte, n uint64) []byte {
	if n >= 10 {
		dst = appendDecimal(dst, n/10)
	}
	return append(dst, byte('0'+n%10))
}

// The hot path must not make garbage: a read from the row cache, the memtable or a cached block
// allocates nothing when the caller's buffer is large enough.
func TestCachedGetAllocatesNothing(t *testing.T) {
	s := newShelf(t, 1<<20, 4)
	s.table(1, []entry{{key: ikey.Make([]byte("table"), 1, ikey.KindSet), value: []byte("v")}}, sstable.WriterOptions{FilterBitsPerKey: 10})
	s.memtable([]entry{{key: ikey.Make([]byte("memory"), 2, ikey.KindSet), value: []byte("v")}})
	s.publish(2)
	dst := make([]byte, 0, 64)
	get := func(key string) func() {
		k := []byte(key)
		return func() {
			if _, _, err := s.e.Get(k, dst); err != nil {
				t.Error(err)
			}
			if _, _, _, err := s.e.GetLatest(k, dst); err != nil {
				t.Error(err)
			}
		}
	}
	require.Zero(t, testing.AllocsPerRun(100, get("memory")), "memtable")
	require.Zero(t, testing.AllocsPerRun(100, get("table")), "block cache")
	require.Zero(t, testing.AllocsPerRun(100, get("nothing")), "miss")
	s.e.rows = cache.NewRows(1 << 20)
	require.Zero(t, testing.AllocsPerRun(100, get("table")), "row cache")
	s.close()
}
