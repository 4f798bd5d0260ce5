package cache

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ikey"
)

// check looks at every link and sum of a shard.
func (c *core[K, E, P]) check(t require.TestingT) {
	var used, small int64
	count := 0
	for _, q := range []struct {
		queue
		where uint8
	}{{c.small, inSmall}, {c.main, inMain}} {
		prev, n := uint32(0), 0
		for s := q.head; s != 0; s = c.slots[s].next {
			p := c.slots[s]
			require.Equal(t, prev, p.prev)
			require.Equal(t, q.where, p.where)
			require.NotPanics(t, func() { c.indexOf(s) })
			used += p.bytes
			if q.where == inSmall {
				small += p.bytes
			}
			prev, n = s, n+1
		}
		require.Equal(t, q.tail, prev)
		require.Equal(t, q.count, n)
		count += n
	}
	require.Equal(t, c.used, used)
	require.Equal(t, c.smallUsed, small)
	require.LessOrEqual(t, c.used, max(c.capacity, 0))
	words := 0
	for _, w := range c.index {
		if w != 0 {
			words++
		}
	}
	require.Equal(t, count, words)
	require.LessOrEqual(t, 2*words, len(c.index))
}

// The danger: a block of another file or offset, or a cache that grows beyond its bound.
func TestBlocksEqualAMapThatForgets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := rapid.SampledFrom([]int64{1, 300, 20 << 10, 1 << 20, 9 << 20}).Draw(t, "capacity")
		b := NewBlocks(capacity)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		for range 3000 {
			file, offset := rng.Uint64N(8), rng.Uint64N(60)*4096
			want := fmt.Sprintf("%d/%d", file, offset)
			if got := b.Get(file, offset); got != nil {
				require.Equal(t, want, string(got[:len(want)]))
				continue
			}
			block := make([]byte, len(want)+rng.IntN(5000))
			copy(block, want)
			b.Put(file, offset, block)
		}
		m := b.Metrics()
		require.EqualValues(t, 3000, m.Hits+m.Misses)
		require.LessOrEqual(t, m.Bytes, capacity)
		for i := range b.shards {
			b.shards[i].c.check(t)
		}
		if capacity >= 9<<20 {
			require.NotZero(t, m.Hits)
			require.Zero(t, m.Evictions)
		}
	})
}

// The danger: an entry that can never fit empties the cache, or loops for ever under the lock.
func TestEntryLargerThanTheCacheIsRefused(t *testing.T) {
	b := NewBlocks(64 << 10)
	b.Put(1, 0, make([]byte, 100))
	b.Put(1, 1, make([]byte, 64<<10))
	b.Put(1, 2, make([]byte, 10<<20))
	require.Nil(t, b.Get(1, 1))
	require.Nil(t, b.Get(1, 2))
	require.NotNil(t, b.Get(1, 0))
	require.EqualValues(t, 2, b.Metrics().Refused)

	r := NewRows(64 << 10)
	r.Insert([]byte("small"), []byte("v"), 1)
	r.Insert([]byte("big"), make([]byte, 1<<20), 1)
	r.Update([]byte("small"), make([]byte, 1<<20), 2, true)
	_, ok := r.Get([]byte("big"), nil, 9)
	require.False(t, ok)
	_, ok = r.Get([]byte("small"), nil, 9)
	require.False(t, ok, "the old state must go when the new one does not fit")
}

// The danger: size 0 means no bound, a panic, or an endless loop.
func TestSizeZeroKeepsNothing(t *testing.T) {
	for _, capacity := range []int64{0, -1, 1, 100} {
		b, r := NewBlocks(capacity), NewRows(capacity)
		b.Put(1, 2, []byte("x"))
		require.Nil(t, b.Get(1, 2))
		key := []byte("k")
		r.Insert(key, key, 1)
		r.Update(key, key, 2, true)
		r.Invalidate(key, 3)
		r.Clear(4)
		_, ok := r.Get(key, nil, 9)
		require.False(t, ok)
		require.Zero(t, b.Metrics().Entries+r.Metrics().Entries)
		require.LessOrEqual(t, b.MaxEntryBytes()+r.MaxEntryBytes(), int64(100))
	}
}

// The danger: garbage, or a key conversion that allocates, on every cached read.
func TestHitsAllocateNothing(t *testing.T) {
	b, r := NewBlocks(1<<20), NewRows(1<<20)
	b.Put(7, 9, make([]byte, 4096))
	key, dst := []byte("tenant\x00key"), make([]byte, 0, 256)
	r.Insert(key, make([]byte, 200), 5)
	require.Zero(t, testing.AllocsPerRun(100, func() { b.Get(7, 9) }))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, ok := r.Get(key, dst, 6); !ok {
			t.Fatal("miss")
		}
	}))
	value := make([]byte, 190)
	seq := ikey.Seq(6)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		seq++
		r.Update(key, value, seq, false)
	}))
}

// The danger: a full cache costs a scan for each insertion, or makes garbage for each.
func TestFullCacheMakesNoGarbage(t *testing.T) {
	r := NewRows(4 << 20)
	key, value := make([]byte, 16), make([]byte, 300)
	n := uint64(0)
	insert := func() {
		n++
		binary.BigEndian.PutUint64(key, n*0x9e3779b97f4a7c15)
		r.Insert(key, value, 1)
		r.Insert(key, value, 1) // a full cache takes what it is offered again
	}
	for range 60_000 {
		insert()
	}
	require.Greater(t, r.Metrics().Evictions, uint64(20_000))
	require.Less(t, testing.AllocsPerRun(5000, insert), 0.1)
	for i := range r.shards {
		r.shards[i].c.check(t)
	}
}

// The danger: what is read once pushes out what is read often, and each read pays for a copy into the
// cache and one out of it.
func TestFullRowCacheTakesWhatIsReadAgain(t *testing.T) {
	r := NewRows(4 << 20)
	key := func(i uint64) []byte { return binary.BigEndian.AppendUint64(nil, i*0x9e3779b97f4a7c15) }
	value := make([]byte, 1000)
	n := uint64(0)
	for ; r.Metrics().Bytes < r.Metrics().CapacityBytes*8/10; n++ {
		r.Insert(key(n), value, 1)
	}
	for range 20_000 {
		n++
		r.Insert(key(n), value, 1)
	}
	before := r.Metrics().Inserts
	for range 10_000 {
		n++
		r.Insert(key(n), value, 1)
	}
	require.Equal(t, before, r.Metrics().Inserts, "nothing is read twice")
	_, ok := r.Get(key(n), nil, 1)
	require.False(t, ok)
	r.Insert(key(n), value, 1)
	_, ok = r.Get(key(n), nil, 1)
	require.True(t, ok)
	r.Insert(key(1<<40), value, 1)
	for range 50_000 {
		n++
		r.Insert(key(n), value, 1)
	}
	r.Insert(key(1<<40), value, 1)
	_, ok = r.Get(key(1<<40), nil, 1)
	require.False(t, ok, "that was long ago")
}

// The danger: a switch that does nothing, or one that lets old reads in.
func TestFullRowCacheThatAdmitsAllTakesWhatIsReadOnce(t *testing.T) {
	r := NewRows(4 << 20)
	r.AdmitAll()
	key := func(i uint64) []byte { return binary.BigEndian.AppendUint64(nil, i*0x9e3779b97f4a7c15) }
	value := make([]byte, 1000)
	for n := range uint64(20_000) {
		r.Insert(key(n), value, 1)
		_, ok := r.Get(key(n), nil, 1)
		require.True(t, ok)
	}
	require.Positive(t, r.Metrics().Evictions)
	r.Invalidate(key(1), 5)
	r.Insert(key(1), value, 4)
	_, ok := r.Get(key(1), nil, 5)
	require.False(t, ok, "a write went by")
	(*Rows)(nil).AdmitAll()
}

// The danger: keys that a tenant chose to collide make every search linear.
func TestCollidingKeysAreRefusedNotSearched(t *testing.T) {
	var c core[blockKey, blockEntry, *blockEntry]
	c.init(1 << 20)
	taken := 0
	for i := range uint64(1000) {
		if s := c.insert(42, 100); s != 0 {
			c.slots[s].e = blockEntry{key: blockKey{file: i}}
			taken++
		}
	}
	require.LessOrEqual(t, taken, maxProbe)
	c.check(t)
	for c.small.count > 0 {
		c.evictSmall()
		c.check(t)
	}
}

// The danger: a scan empties the cache of what is read all the time.
func TestScanDoesNotEvictWhatIsHot(t *testing.T) {
	b := NewBlocks(1 << 20)
	hot := func() (hits int) {
		for i := range uint64(100) {
			if b.Get(1, i) != nil {
				hits++
			} else {
				b.Put(1, i, make([]byte, 4000))
			}
		}
		return hits
	}
	for range 3 {
		hot()
	}
	for i := range uint64(5000) {
		b.Put(2, i, make([]byte, 4000))
	}
	require.GreaterOrEqual(t, hot(), 90)
}

// The danger: each of the ways in which a row can be wrong after something newer happened.
func TestRowsFollowSequences(t *testing.T) {
	key := []byte("t\x00k")
	get := func(r *Rows, at ikey.Seq) string {
		if v, ok := r.Get(key, nil, at); ok {
			return string(v)
		}
		return "miss"
	}
	for _, c := range []struct {
		name string
		do   func(r *Rows)
		want map[ikey.Seq]string
	}{
		{"a read that was overtaken by a write", func(r *Rows) { r.Update(key, []byte("new"), 9, false); r.Insert(key, []byte("old"), 8) }, map[ikey.Seq]string{20: "miss"}},
		{"a read at the write", func(r *Rows) { r.Update(key, []byte("new"), 9, false); r.Insert(key, []byte("new"), 9) }, map[ikey.Seq]string{8: "miss", 9: "new"}},
		{"a write over a row", func(r *Rows) { r.Insert(key, []byte("old"), 8); r.Update(key, []byte("new"), 9, false) }, map[ikey.Seq]string{8: "miss", 9: "new"}},
		{"a long write over a row", func(r *Rows) { r.Insert(key, []byte("old"), 8); r.Update(key, make([]byte, 500), 9, false) }, map[ikey.Seq]string{8: "miss", 9: string(make([]byte, 500))}},
		{"a write that inserts", func(r *Rows) { r.Update(key, []byte("new"), 9, true); r.Insert(key, []byte("old"), 8) }, map[ikey.Seq]string{8: "miss", 9: "new"}},
		{"a late write", func(r *Rows) { r.Update(key, []byte("new"), 9, true); r.Update(key, []byte("old"), 8, true) }, map[ikey.Seq]string{9: "new"}},
		{"an invalidation", func(r *Rows) { r.Insert(key, []byte("old"), 8); r.Invalidate(key, 9); r.Insert(key, []byte("old"), 8) }, map[ikey.Seq]string{20: "miss"}},
		{"a read after an invalidation", func(r *Rows) { r.Invalidate(key, 9); r.Insert(key, []byte("new"), 10) }, map[ikey.Seq]string{9: "miss", 10: "new"}},
		{"a second read", func(r *Rows) { r.Insert(key, []byte("v"), 8); r.Insert(key, []byte("v"), 12) }, map[ikey.Seq]string{8: "v"}},
		{"a range over a row", func(r *Rows) { r.Insert(key, []byte("old"), 8); r.InvalidateRange([]byte("t"), []byte("u"), 9) }, map[ikey.Seq]string{8: "miss", 20: "miss"}},
		{"a range beside a row", func(r *Rows) {
			r.Insert(key, []byte("old"), 8)
			r.InvalidateRange([]byte("a"), key, 9)
			r.InvalidateRange([]byte("u"), nil, 9)
		}, map[ikey.Seq]string{20: "old"}},
		{"a read that was overtaken by a range", func(r *Rows) { r.InvalidateRange(key, nil, 9); r.Insert(key, []byte("old"), 8) }, map[ikey.Seq]string{20: "miss"}},
		{"a write after a range", func(r *Rows) { r.InvalidateRange(key, nil, 9); r.Update(key, []byte("new"), 10, true) }, map[ikey.Seq]string{20: "new"}},
		{"a write over a row that a range hit", func(r *Rows) {
			r.Insert(key, []byte("old"), 8)
			r.InvalidateRange(key, nil, 9)
			r.Update(key, []byte("new"), 10, false)
		}, map[ikey.Seq]string{20: "new"}},
		{"a write before a range that is already known", func(r *Rows) { r.InvalidateRange(key, nil, 9); r.Update(key, []byte("old"), 8, true) }, map[ikey.Seq]string{20: "miss"}},
		{"two ranges with one sequence", func(r *Rows) {
			r.Insert(key, []byte("old"), 8)
			r.InvalidateRange([]byte("a"), []byte("b"), 9)
			r.Get(key, nil, 20)
			r.InvalidateRange(key, nil, 9)
		}, map[ikey.Seq]string{20: "miss"}},
		{"many ranges", func(r *Rows) {
			r.Insert(key, []byte("old"), 8)
			r.InvalidateRange(key, nil, 9)
			for i := range ikey.Seq(2 * maxRanges) {
				r.InvalidateRange([]byte("a"), []byte("b"), 10+i)
			}
		}, map[ikey.Seq]string{900: "miss"}},
		{"clear", func(r *Rows) { r.Insert(key, []byte("old"), 8); r.Clear(9) }, map[ikey.Seq]string{20: "miss"}},
		{"a read after clear", func(r *Rows) { r.Clear(9); r.Insert(key, []byte("new"), 9) }, map[ikey.Seq]string{20: "new"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewRows(1 << 20)
			c.do(r)
			for at, want := range c.want {
				require.Equal(t, want, get(r, at), "at %d", at)
			}
		})
	}
}

// The danger: a stale row for ever, by a read that raced with a write. Writers publish their
// sequence as the engine does: after the cache knows of it. Meant for the race detector as well.
func TestRacingReadsNeverInstallStaleRows(t *testing.T) {
	const keys, writes = 40, 8000
	r := NewRows(8 << 10) // small: evictions all the time
	var visible atomic.Uint64
	var done atomic.Bool
	key := func(k int) []byte { return fmt.Appendf(nil, "t\x00%03d", k) }
	record := func(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }
	var history [keys][]uint64
	var mu sync.RWMutex
	// state returns the sequence of the last write to k up to at.
	state := func(k int, at uint64) uint64 {
		mu.RLock()
		defer mu.RUnlock()
		h := history[k]
		for i := len(h) - 1; i >= 0; i-- {
			if h[i] <= at {
				return h[i]
			}
		}
		return 0
	}
	var wg sync.WaitGroup
	for reader := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(reader), 3))
			for !done.Load() {
				k := rng.IntN(keys)
				at := visible.Load()
				if v, ok := r.Get(key(k), nil, ikey.Seq(at)); ok {
					if got, want := binary.BigEndian.Uint64(v), state(k, at); got != want {
						t.Errorf("key %d at %d: row %d, state %d", k, at, got, want)
						return
					}
					continue
				}
				r.Insert(key(k), record(state(k, at)), ikey.Seq(at))
			}
		})
	}
	rng := rand.New(rand.NewPCG(9, 9))
	for seq := uint64(1); seq <= writes || r.Metrics().Hits == 0; seq++ { // until the readers have run, too
		low, high := rng.IntN(keys), 0
		high = low + 1
		wide := rng.IntN(20) == 0
		if wide {
			high = min(low+5, keys)
		}
		mu.Lock()
		for k := low; k < high; k++ {
			history[k] = append(history[k], seq)
		}
		mu.Unlock()
		switch {
		case wide:
			r.InvalidateRange(key(low), key(high), ikey.Seq(seq))
		case rng.IntN(4) == 0:
			r.Invalidate(key(low), ikey.Seq(seq))
		default:
			r.Update(key(low), record(seq), ikey.Seq(seq), rng.IntN(2) == 0)
		}
		visible.Store(seq)
	}
	done.Store(true)
	wg.Wait()
	for i := range r.shards {
		r.shards[i].c.check(t)
	}
}

// The danger: memory that two rows share.
func TestSparesAreOfTheRightSize(t *testing.T) {
	s := spares{max: 64 << 20}
	for n := 1; n < 5<<20; n += 1 + n/7 {
		size := roundUp(n)
		require.GreaterOrEqual(t, size, n)
		require.LessOrEqual(t, size, max(64, n+n/4+1))
		require.Equal(t, size, roundUp(size))
		b := s.get(n)
		require.Equal(t, size, cap(b))
		s.put(b)
		require.Equal(t, size, cap(s.get(n)))
		require.Zero(t, s.bytes)
	}
}

// The danger: a cache that was made smaller takes what it no longer has room for, or never grows back.
func TestCapacityChangesAtOnce(t *testing.T) {
	const full = 1 << 20
	b, r := NewBlocks(full), NewRows(full)
	fill := func() {
		for i := range 4096 {
			b.Put(1, uint64(i), make([]byte, 1000))
			key := fmt.Appendf(nil, "key%d", i)
			r.Insert(key, make([]byte, 1000), ikey.Seq(i+1))
		}
	}
	fill()
	wide := [2]Metrics{b.Metrics(), r.Metrics()}
	for _, capacity := range []int64{full / 2, full / 8, 0, -1, full / 4} {
		b.SetCapacity(capacity)
		r.SetCapacity(capacity)
		for range 2 {
			require.LessOrEqual(t, b.Metrics().Bytes, max(capacity, 0))
			require.LessOrEqual(t, r.Metrics().Bytes, max(capacity, 0))
			fill()
		}
	}
	b.SetCapacity(2 * full)
	r.SetCapacity(full)
	fill()
	fill() // a full row cache takes what is offered again
	require.Equal(t, wide[0].CapacityBytes, b.Metrics().CapacityBytes, "no more than it was made with")
	require.Equal(t, wide[1].CapacityBytes, r.Metrics().CapacityBytes)
	require.Greater(t, b.Metrics().Entries, wide[0].Entries/2)
	require.Greater(t, r.Metrics().Entries, wide[1].Entries/2)
	require.Nil(t, NewBlocks(0))
	NewBlocks(0).SetCapacity(1)
	NewRows(0).SetCapacity(1)
}

// The danger: a row that a write has replaced comes back because the cache forgot the write when it shrank.
func TestShrunkenRowsStillRefuseOldReads(t *testing.T) {
	r := NewRows(1 << 20)
	r.Update([]byte("k"), []byte("new"), 5, true)
	r.SetCapacity(0)
	r.SetCapacity(1 << 20)
	r.Insert([]byte("k"), []byte("old"), 4)
	_, ok := r.Get([]byte("k"), nil, 9)
	require.False(t, ok)
}
