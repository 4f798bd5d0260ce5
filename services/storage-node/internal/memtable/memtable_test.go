package memtable

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ikey"
)

type entry struct {
	key   ikey.Key
	value []byte
}

// model is the obvious ordered map: a sorted slice.
type model []entry

func (m *model) add(k ikey.Key, v []byte) {
	i := m.ge(k)
	if i < len(*m) && ikey.Compare((*m)[i].key, k) == 0 {
		return
	}
	*m = append(*m, entry{})
	copy((*m)[i+1:], (*m)[i:])
	(*m)[i] = entry{k.Clone(), bytes.Clone(v)}
}

func (m model) ge(k ikey.Key) int {
	return sort.Search(len(m), func(i int) bool { return ikey.Compare(m[i].key, k) >= 0 })
}

// keyGen draws keys of a few tenants with long common prefixes, prefixes of one another, and keys
// outside of a learned prefix.
func keyGen() *rapid.Generator[[]byte] {
	return rapid.OneOf(
		rapid.Custom(func(t *rapid.T) []byte {
			return fmt.Appendf(nil, "tenant\x00user%06d", rapid.IntRange(0, 400).Draw(t, "n"))
		}),
		rapid.Custom(func(t *rapid.T) []byte {
			return fmt.Appendf(nil, "%s\x00%s", rapid.SampledFrom([]string{"a", "tenant", "tenant2", "z"}).Draw(t, "tenant"),
				rapid.StringMatching(`[ab]{0,6}`).Draw(t, "key"))
		}),
	)
}

// The danger: an entry that point reads and iterators do not find, or find in the wrong order, when
// keys share prefixes, hints are learned half-way and entries come out of order.
func TestTableEqualsSortedSlice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, m := New(256<<10), model{}
		n := rapid.IntRange(0, 600).Draw(t, "n")
		seed := rapid.Uint64().Draw(t, "seed")
		rng := rand.New(rand.NewPCG(seed, 1))
		ordered := rapid.Bool().Draw(t, "ordered")
		keys := rapid.SliceOfN(keyGen(), 1, 300).Draw(t, "keys")
		for i := range n {
			seq := ikey.Seq(i + 1)
			if !ordered {
				seq = ikey.Seq(rng.IntN(1000))
			}
			k := ikey.Make(keys[rng.IntN(len(keys))], seq, ikey.Kind(rng.IntN(3)))
			v := []byte(k.String())
			require.True(t, table.Add(k, v))
			m.add(k, v)
		}
		require.Equal(t, len(m), table.Entries())
		requireSame(t, table, m)
		for range 200 {
			k := ikey.Make(keys[rng.IntN(len(keys))], ikey.Seq(rng.IntN(1100)), ikey.Kind(rng.IntN(4)))
			if rng.IntN(3) == 0 {
				k.User = append(bytes.Clone(k.User), 'x')
			}
			requireSeeks(t, table, m, k)
			requireGet(t, table, m, k.User, k.Seq())
		}
		merges := 0
		for _, e := range m {
			if e.key.Kind() == ikey.KindMerge {
				merges++
			}
		}
		got, low, high := table.Merges()
		require.Equal(t, merges, got)
		for _, e := range m {
			if e.key.Kind() == ikey.KindMerge {
				require.LessOrEqual(t, bytes.Compare(low, e.key.User), 0)
				require.GreaterOrEqual(t, bytes.Compare(high, e.key.User), 0)
			}
		}
	})
}

func requireSame(t require.TestingT, table *Table, m model) {
	it, i := table.NewIter(), 0
	for ok := it.First(); ok; ok = it.Next() {
		require.Less(t, i, len(m))
		require.Equal(t, m[i].key.String(), it.Key().String())
		require.Equal(t, m[i].value, it.Value())
		i++
	}
	require.Equal(t, len(m), i)
	for ok := it.Last(); ok; ok = it.Prev() {
		i--
		require.GreaterOrEqual(t, i, 0)
		require.Equal(t, m[i].key.String(), it.Key().String())
	}
	require.Equal(t, 0, i)
	require.NoError(t, it.Close())
}

func requireSeeks(t require.TestingT, table *Table, m model, k ikey.Key) {
	it, at := table.NewIter(), m.ge(k)
	require.Equal(t, at < len(m), it.SeekGE(k))
	if at < len(m) {
		require.Equal(t, m[at].key.String(), it.Key().String())
		require.Equal(t, at > 0, it.Prev())
	}
	require.Equal(t, at > 0, it.SeekLT(k))
	if at > 0 {
		require.Equal(t, m[at-1].key.String(), it.Key().String())
		require.Equal(t, at < len(m), it.Next())
	}
}

func requireGet(t require.TestingT, table *Table, m model, user []byte, seq ikey.Seq) {
	at := m.ge(ikey.Search(user, seq))
	trailer, value, ok := table.Get(user, seq)
	want := at < len(m) && bytes.Equal(m[at].key.User, user)
	require.Equal(t, want, ok)
	c := table.FindHashed(Hash(user), user, seq)
	require.Equal(t, want, c.Valid())
	if !want {
		return
	}
	require.Equal(t, m[at].key.Trailer, trailer)
	require.Equal(t, m[at].value, value)
	for ; c.Valid(); c.Next() {
		require.Equal(t, m[at].key.Trailer, c.Trailer())
		at++
	}
	require.True(t, at == len(m) || !bytes.Equal(m[at].key.User, user))
}

// The danger: readers beside the writer see torn entries, lose what was there before they began, or
// see keys out of order. Meant for the race detector as well.
func TestReadersBesideTheWriter(t *testing.T) {
	const total = 6000
	table := New(4 << 20)
	var published atomic.Uint64
	key := func(n uint64) []byte { return fmt.Appendf(nil, "tenant\x00key%05d", n*7919%3000) }
	var wg sync.WaitGroup
	for r := range 3 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(r), 2))
			for published.Load() < total {
				seq := published.Load()
				if seq == 0 {
					continue
				}
				n := rng.Uint64N(seq) + 1
				c := table.FindHashed(Hash(key(n)), key(n), ikey.Seq(n))
				require.True(t, c.Valid())
				require.Equal(t, ikey.Seq(n), c.Trailer().Seq())
				require.Equal(t, n, binary.LittleEndian.Uint64(c.Value()))
				requireWalk(t, table, key(n), ikey.Seq(seq), rng.IntN(2) == 0)
			}
		})
	}
	for n := uint64(1); n <= total; n++ {
		v := binary.LittleEndian.AppendUint64(nil, n)
		require.True(t, table.Add(ikey.Make(key(n), ikey.Seq(n), ikey.KindSet), v))
		published.Store(n)
	}
	wg.Wait()
}

// requireWalk walks a little from user and checks order and content of what is visible at seq.
func requireWalk(t *testing.T, table *Table, user []byte, seq ikey.Seq, forward bool) {
	it := table.NewIter()
	step, ok := it.Next, it.SeekGE(ikey.Search(user, ikey.MaxSeq))
	if !forward {
		step, ok = it.Prev, it.SeekLT(ikey.Make(user, 0, 0))
	}
	require.True(t, ok)
	last := it.Key()
	seen := false
	for i := 0; i < 50 && ok; i++ {
		k := it.Key()
		require.Equal(t, uint64(k.Seq()), binary.LittleEndian.Uint64(it.Value()))
		seen = seen || k.Seq() <= seq && bytes.Equal(k.User, user)
		if c := ikey.Compare(last, k); i > 0 {
			require.Equal(t, map[bool]int{true: -1, false: 1}[forward], c)
		}
		last, ok = k, step()
	}
	require.True(t, seen)
}

// The danger: an entry that does not fit is half added, or the batch that was reserved does not fit.
func TestFullArenaRefusesAndChangesNothing(t *testing.T) {
	table := New(64 << 10)
	big := make([]byte, 10<<20)
	require.False(t, table.Add(ikey.Make([]byte("t\x00big"), 1, ikey.KindSet), big))
	require.True(t, table.Empty())
	seq := ikey.Seq(1)
	value := make([]byte, 100)
	for ; EntryBytes(9, 100) <= table.AvailableBytes(); seq++ {
		require.True(t, table.Add(ikey.Make(fmt.Appendf(nil, "t\x00%07d", seq), seq, ikey.KindSet), value))
	}
	for ; table.Add(ikey.Make(fmt.Appendf(nil, "t\x00%07d", seq), seq, ikey.KindSet), value); seq++ {
	}
	n := table.Entries()
	require.Equal(t, int(seq-1), n)
	_, _, ok := table.Get(fmt.Appendf(nil, "t\x00%07d", seq), ikey.MaxSeq)
	require.False(t, ok)
	for s := ikey.Seq(1); s < seq; s++ {
		_, _, ok := table.Get(fmt.Appendf(nil, "t\x00%07d", s), ikey.MaxSeq)
		require.True(t, ok)
	}
}

// The danger: a value of 10 MiB cannot be stored at all.
func TestLargestValueFits(t *testing.T) {
	table := New(64 << 20)
	big := bytes.Repeat([]byte("x"), 10<<20)
	require.True(t, table.Add(ikey.Make([]byte("t\x00big"), 1, ikey.KindSet), big))
	_, v, ok := table.Get([]byte("t\x00big"), 1)
	require.True(t, ok)
	require.True(t, bytes.Equal(big, v))
}

// The danger: what an earlier life of the arena held shows through.
func TestResetForgetsEverything(t *testing.T) {
	table := New(256 << 10)
	for life := range 5 {
		m := model{}
		for i := range 1000 {
			k := ikey.Make(fmt.Appendf(nil, "t%d\x00%d", life, i*7%500), ikey.Seq(i+1), ikey.KindMerge)
			require.True(t, table.Add(k, k.User))
			m.add(k, k.User)
		}
		table.AddRangeDelete(ikey.RangeDelete{Start: []byte("a"), End: []byte("b"), Seq: 5})
		requireSame(t, table, m)
		require.Panics(t, func() { table.Reset() })
		require.True(t, table.Unref())
		table.Reset()
		require.True(t, table.Empty())
		require.Zero(t, table.SizeBytes())
		require.Empty(t, table.RangeDeletes())
		requireSame(t, table, nil)
		_, _, ok := table.Get([]byte("t0\x001"), ikey.MaxSeq)
		require.False(t, ok)
	}
}

// The danger: one key that is rewritten all the time makes an old snapshot's read linear.
func TestVersionSearchIsLogarithmic(t *testing.T) {
	table := New(16 << 20)
	user := []byte("t\x00hot")
	const n = 100_000
	for i := 1; i <= n; i++ {
		require.True(t, table.Add(ikey.Make(user, ikey.Seq(i), ikey.KindSet), nil))
	}
	node := table.lookup(Hash(user), user)
	for _, seq := range []int{1, 2, 77, 5000, 65535, 65536, 99_999} {
		steps, target := 0, uint64(ikey.MakeTrailer(ikey.Seq(seq), 0xff))
		a := &table.arena
		for v := a.newest(node); *a.u64(v, versTrailer) > target; steps++ {
			if j := ref(*a.u32(v, versJump)); j != v && *a.u64(j, versTrailer) > target {
				v = j
			} else {
				v = a.older(v)
			}
		}
		require.Less(t, steps, 64)
		trailer, _, ok := table.Get(user, ikey.Seq(seq))
		require.True(t, ok)
		require.Equal(t, ikey.Seq(seq), trailer.Seq())
	}
}

// The danger: keys that collide in one bucket are lost behind the limit of the walk.
func TestLongChainsFallBackToTheSkiplist(t *testing.T) {
	table := New(64 << 10)
	table.bucketMask = 0
	for i := range 400 {
		require.True(t, table.Add(ikey.Make(fmt.Appendf(nil, "t\x00%d", i%200), ikey.Seq(i+1), ikey.KindSet), nil))
	}
	require.Equal(t, 200, table.keys)
	for i := range 200 {
		trailer, _, ok := table.Get(fmt.Appendf(nil, "t\x00%d", i), ikey.MaxSeq)
		require.True(t, ok)
		require.Equal(t, ikey.Seq(i+201), trailer.Seq())
		_, _, ok = table.Get(fmt.Appendf(nil, "t\x00%dx", i), ikey.MaxSeq)
		require.False(t, ok)
	}
}

// The danger: a range delete that a reader misses, or sees before its snapshot.
func TestRangeDeletesAreSortedAndImmutable(t *testing.T) {
	table := New(1 << 10)
	add := func(start, end string, seq ikey.Seq) {
		table.AddRangeDelete(ikey.RangeDelete{Start: []byte(start), End: []byte(end), Seq: seq})
	}
	add("m", "p", 3)
	before := table.RangeDeletes()
	add("a", "z", 5)
	add("m", "n", 9)
	add("q", "q", 10)
	require.Len(t, before, 1)
	var got []string
	for _, d := range table.RangeDeletes() {
		got = append(got, fmt.Sprintf("%s-%s#%d", d.Start, d.End, d.Seq))
	}
	require.Equal(t, []string{"a-z#5", "m-n#9", "m-p#3"}, got)
	require.Equal(t, ikey.Seq(9), table.RangeDeleteSeq([]byte("m"), 9))
	require.Equal(t, ikey.Seq(5), table.RangeDeleteSeq([]byte("m"), 8))
	require.Equal(t, ikey.Seq(3), table.RangeDeleteSeq([]byte("m"), 4))
	require.Equal(t, ikey.Seq(0), table.RangeDeleteSeq([]byte("z"), 10))
	require.False(t, table.Empty())
	require.Greater(t, table.SizeBytes(), 3*rangeDeleteCharge)
}

// The danger: a lost write goes unnoticed because two entries share a sequence.
func TestTwoValuesUnderOneSequencePanic(t *testing.T) {
	table := New(1 << 10)
	k := ikey.Make([]byte("t\x00k"), 1, ikey.KindSet)
	require.True(t, table.Add(k, []byte("a")))
	require.True(t, table.Add(k, []byte("a")))
	require.Equal(t, 1, table.Entries())
	require.Panics(t, func() { table.Add(k, []byte("b")) })
}

// The danger: garbage on the hot paths.
func TestAddAndGetAllocateNothing(t *testing.T) {
	table := New(8 << 20)
	key, value := []byte("tenant\x00user00000000"), make([]byte, 100)
	seq := ikey.Seq(0)
	require.Zero(t, testing.AllocsPerRun(5000, func() {
		seq++
		binary.BigEndian.PutUint32(key[len(key)-4:], uint32(seq)*2654435761)
		require.True(t, table.Add(ikey.Make(key, seq, ikey.KindSet), value))
	}))
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		table.Get(key, seq)
	}))
}
