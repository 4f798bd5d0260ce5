package sstable

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable/filter"
	"github.com/pairdb/pairdb/libs/vfs"
)

// genEntries draws sorted entries with long common prefixes, several versions of a key, and now and
// then a value larger than a block.
func genEntries(t *rapid.T) []entry {
	user := rapid.Custom(func(t *rapid.T) string {
		return rapid.SampledFrom([]string{"a\x00", "a\x00aaaaaaaaaaaaaaaa", "b\x00", "b\x00\xff\xff", "b\x00\xff"}).Draw(t, "prefix") +
			rapid.StringMatching(`[a-c]{0,4}`).Draw(t, "suffix")
	})
	return sortEntries(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) entry {
		seq := rapid.Uint64Range(0, 20).Draw(t, "seq")
		if rapid.IntRange(0, 9).Draw(t, "far") == 0 {
			seq += 1 << 50
		}
		kind := rapid.SampledFrom([]ikey.Kind{ikey.KindSet, ikey.KindMerge, ikey.KindDelete}).Draw(t, "kind")
		v := strings.Repeat(rapid.StringN(0, 5, -1).Draw(t, "v"), rapid.SampledFrom([]int{1, 1, 1, 2, 40, 300}).Draw(t, "times"))
		return entry{ikey.Make([]byte(user.Draw(t, "user")), ikey.Seq(seq), kind), v}
	}), 0, 120).Draw(t, "entries"))
}

func sortEntries(es []entry) []entry {
	slices.SortFunc(es, func(a, b entry) int { return ikey.Compare(a.k, b.k) })
	return slices.CompactFunc(es, func(a, b entry) bool { return ikey.Compare(a.k, b.k) == 0 })
}

func genRanges(t *rapid.T) []ikey.RangeDelete {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) ikey.RangeDelete {
		a, b := rapid.StringMatching(`[a-d]{1,3}`).Draw(t, "a"), rapid.StringMatching(`[a-d]{1,3}`).Draw(t, "b")
		if a > b {
			a, b = b, a
		}
		return ikey.RangeDelete{Start: []byte(a), End: []byte(b + "x"), Seq: ikey.Seq(rapid.Uint64Range(0, 30).Draw(t, "seq"))}
	}), 0, 5).Draw(t, "ranges")
}

func genOptions(t *rapid.T) WriterOptions {
	return WriterOptions{
		BlockBytes:          rapid.SampledFrom([]int{0, 1, 100, 1000}).Draw(t, "block"),
		IndexPartitionBytes: rapid.SampledFrom([]int{0, 1, 60, 200}).Draw(t, "partition"),
		Compression:         rapid.SampledFrom([]Compression{None, S2, Zstd}).Draw(t, "compression"),
		FilterBitsPerKey:    rapid.SampledFrom([]int{0, 1, 10, 20}).Draw(t, "filter"),
		ValueBlockBytes:     rapid.SampledFrom([]int{0, 1, 20, 100}).Draw(t, "value blocks"),
	}
}

// A table that loses, reorders or invents an entry on any path is data loss.
func TestTableReturnsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries, ranges := genEntries(t), genRanges(t)
		if len(entries)+len(ranges) == 0 {
			return
		}
		fs, meta := build(t, genOptions(t), entries, ranges)
		var cache BlockCache
		if rapid.Bool().Draw(t, "cache") {
			cache = mapCache{}
		}
		r := reopen(t, fs, ReaderOptions{Cache: cache, FileNum: 7})
		require.Equal(t, meta, r.Meta())
		total := int64(0)
		require.NoError(t, r.Verify(context.Background(), func(n int64) { total += n }))
		require.EqualValues(t, meta.Size, total)
		if rapid.Bool().Draw(t, "mapped") {
			mapped, err := r.Map()
			require.NoError(t, err)
			require.True(t, mapped)
		}
		checkMeta(t, meta, entries, r.RangeDeletes())
		checkGets(t, r, entries)
		it := r.NewIter()
		if rapid.Bool().Draw(t, "scan") {
			it = r.NewScan(ScanOptions{ChunkBytes: rapid.IntRange(1, 3000).Draw(t, "chunk"), DropBehind: true})
		}
		walkRandomly(t, it, entries)
		require.NoError(t, it.Close())
		require.NoError(t, it.Close())
		require.NoError(t, r.Close())
	})
}

func checkMeta(t require.TestingT, m Meta, entries []entry, ranges []ikey.RangeDelete) {
	require.EqualValues(t, len(entries), m.Entries)
	require.EqualValues(t, len(ranges), m.RangeDeletes)
	inside := func(k ikey.Key) {
		require.LessOrEqual(t, ikey.Compare(m.Smallest, k), 0)
		require.LessOrEqual(t, ikey.Compare(k, m.Largest), 0)
	}
	for _, e := range entries {
		inside(e.k)
		require.LessOrEqual(t, m.MinSeq, e.k.Seq())
		require.GreaterOrEqual(t, m.MaxSeq, e.k.Seq())
	}
	for _, d := range ranges {
		inside(ikey.Make(d.Start, d.Seq, ikey.KindRangeDelete))
		inside(RangeDeleteBound(d.End))
		require.LessOrEqual(t, m.MinSeq, d.Seq)
		require.GreaterOrEqual(t, m.MaxSeq, d.Seq)
	}
}

// checkGets compares Get with the entries, for present keys and their neighbours.
func checkGets(t require.TestingT, r *Reader, entries []entry) {
	scratch := make([]byte, 0, 32)
	for _, e := range entries {
		require.True(t, r.MayContain(filter.Hash(e.k.User)))
		for _, user := range [][]byte{e.k.User, append(bytes.Clone(e.k.User), 'a'), e.k.User[:len(e.k.User)-1]} {
			for _, seq := range []ikey.Seq{e.k.Seq(), e.k.Seq() + 1, max(e.k.Seq(), 1) - 1, 0, ikey.MaxSeq} {
				tr, v, ok, err := r.Get(user, filter.Hash(user), seq, scratch)
				require.NoError(t, err)
				i := slices.IndexFunc(entries, func(e entry) bool { return bytes.Equal(e.k.User, user) && e.k.Seq() <= seq })
				require.Equal(t, i >= 0, ok, "%q@%d", user, seq)
				if ok {
					require.Equal(t, entries[i].k.Trailer, tr)
					require.Equal(t, entries[i].v, string(v))
				}
			}
		}
	}
}

// walkRandomly compares an iterator with a sorted slice under random positioning calls.
func walkRandomly(t *rapid.T, it interface {
	First() bool
	Last() bool
	SeekGE(ikey.Key) bool
	SeekLT(ikey.Key) bool
	Next() bool
	Prev() bool
	Valid() bool
	Key() ikey.Key
	Value() []byte
	Err() error
}, entries []entry) {
	pos := -1
	for range rapid.IntRange(1, 80).Draw(t, "steps") {
		var ok bool
		switch op := rapid.IntRange(0, 11).Draw(t, "op"); op {
		case 0:
			ok, pos = it.First(), 0
		case 1:
			ok, pos = it.Last(), len(entries)-1
		case 2, 3:
			k := ikey.Make([]byte(rapid.StringMatching(`[ab]?\x00?(aaaaaaaaaaaaaaaa|\xff|)[a-c]{0,3}`).Draw(t, "seek")),
				ikey.Seq(rapid.Uint64Range(0, 22).Draw(t, "seq")), ikey.KindMerge)
			at, _ := slices.BinarySearchFunc(entries, k, func(e entry, k ikey.Key) int { return ikey.Compare(e.k, k) })
			if op == 2 {
				ok, pos = it.SeekGE(k), at
			} else {
				ok, pos = it.SeekLT(k), at-1
			}
		default:
			if pos < 0 || pos >= len(entries) {
				continue
			}
			if op < 8 {
				ok, pos = it.Next(), pos+1
			} else {
				ok, pos = it.Prev(), pos-1
			}
		}
		require.NoError(t, it.Err())
		want := pos >= 0 && pos < len(entries)
		require.Equal(t, want, ok)
		require.Equal(t, want, it.Valid())
		if ok {
			require.Equal(t, entries[pos].k.String(), it.Key().String())
			require.Equal(t, entries[pos].v, string(it.Value()))
		}
	}
}

// numbered returns n entries with keys in order.
func numbered(n, valueBytes int) []entry {
	rng := rand.New(rand.NewPCG(1, 2))
	es := make([]entry, n)
	for i := range es {
		v := make([]byte, valueBytes)
		for j := range v {
			v[j] = "abcdefgh"[rng.IntN(8)]
		}
		es[i] = entry{ikey.Make(fmt.Appendf(nil, "tenant\x00key%08d", i), ikey.Seq(i+1), ikey.KindSet), string(v)}
	}
	return es
}

// Out-of-order keys would make entries unreachable.
func TestWriterRefusesKeysOutOfOrder(t *testing.T) {
	for _, c := range []struct{ a, b ikey.Key }{
		{ikey.Make([]byte("b"), 1, ikey.KindSet), ikey.Make([]byte("a"), 1, ikey.KindSet)},
		{ikey.Make([]byte("a"), 1, ikey.KindSet), ikey.Make([]byte("a"), 1, ikey.KindSet)},
		{ikey.Make([]byte("a"), 1, ikey.KindSet), ikey.Make([]byte("a"), 2, ikey.KindSet)},
	} {
		f, err := vfs.NewMem().Create("t.sst", 0o660)
		require.NoError(t, err)
		w := NewWriter(f, WriterOptions{})
		require.NoError(t, w.Add(c.a, nil))
		require.ErrorIs(t, w.Add(c.b, nil), ErrOutOfOrder)
		_, err = w.Finish()
		require.ErrorIs(t, err, ErrOutOfOrder)
	}
}

// A limit that the writer does not know would make a file that no reader opens.
func TestWriterRefusesWhatNoTableHolds(t *testing.T) {
	writer := func() *Writer {
		f, err := vfs.NewMem().Create("t.sst", 0o660)
		require.NoError(t, err)
		return NewWriter(f, WriterOptions{})
	}
	require.ErrorIs(t, writer().Add(ikey.Make(make([]byte, MaxKeyBytes+1), 1, ikey.KindSet), nil), ErrTooLarge)
	require.ErrorIs(t, writer().Add(ikey.Make(nil, 1, ikey.KindSet), make([]byte, MaxValueBytes+1)), ErrTooLarge)
	require.Error(t, writer().Add(ikey.Make(nil, 1, ikey.KindRangeDelete), nil))
	require.Error(t, writer().AddRangeDelete(ikey.RangeDelete{Start: []byte("b"), End: []byte("b")}))
	_, err := writer().Finish()
	require.ErrorIs(t, err, ErrEmpty)
}

// An attempt that reuses a longer file must not leave the old end behind: the footer would be the
// old one.
func TestWriterCutsALongerFile(t *testing.T) {
	fs := vfs.NewMem()
	f, err := fs.Create("t.sst", 0o660)
	require.NoError(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte("x"), 1<<20), 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	f, err = fs.OpenReadWrite("t.sst")
	require.NoError(t, err)
	w := NewWriter(f, WriterOptions{})
	require.NoError(t, w.Add(ikey.Make([]byte("a"), 1, ikey.KindSet), nil))
	_, err = w.Finish()
	require.NoError(t, err)
	require.NoError(t, f.Close())
	r := reopen(t, fs, ReaderOptions{})
	require.NoError(t, r.Verify(context.Background(), nil))
	require.NoError(t, r.Close())
}

// A filter that is wrong too often costs a disk read for each miss, at every level.
func TestFilterIsWrongForAboutOnePercent(t *testing.T) {
	es := numbered(20000, 8)
	fs, _ := build(t, WriterOptions{FilterBitsPerKey: 10}, es, nil)
	r := reopen(t, fs, ReaderOptions{})
	wrong := 0
	for i := range 100000 {
		if r.MayContain(filter.Hash(fmt.Appendf(nil, "tenant\x00other%d", i))) {
			wrong++
		}
	}
	require.Less(t, wrong, 1300)
	require.NoError(t, r.Close())
}

// A cancelled verification must end soon, and a scan must end with the error of its hook.
func TestVerifyAndScanStopWhenTold(t *testing.T) {
	fs, _ := build(t, WriterOptions{}, numbered(5000, 100), nil)
	r := reopen(t, fs, ReaderOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, r.Verify(ctx, nil), context.Canceled)
	stop := errors.New("stop")
	reads := 0
	it := r.NewScan(ScanOptions{ChunkBytes: 4096, OnRead: func(int) error {
		if reads++; reads > 3 {
			return stop
		}
		return nil
	}})
	for ok := it.First(); ok; ok = it.Next() {
	}
	require.ErrorIs(t, it.Err(), stop)
	require.ErrorIs(t, it.Close(), stop)
	require.NoError(t, r.Close())
}

// Collection is planned from these two numbers: too few and garbage stays for ever.
func TestInspectCountsWhatBecomesCollectible(t *testing.T) {
	es := []entry{{ikey.Make([]byte("a"), 1, ikey.KindSet), "9"}, {ikey.Make([]byte("b"), 1, ikey.KindSet), ""},
		{ikey.Make([]byte("c"), 1, ikey.KindMerge), "4"}, {ikey.Make([]byte("d"), 1, ikey.KindDelete), "1"}}
	fs, m := build(t, WriterOptions{Inspect: func(v []byte) (uint64, bool) {
		if len(v) == 0 {
			return 0, false
		}
		return uint64(v[0] - '0'), true
	}}, es, nil)
	require.EqualValues(t, 2, m.Tombstones)
	require.EqualValues(t, 4, m.OldestCollectible)
	r := reopen(t, fs, ReaderOptions{})
	require.Equal(t, m, r.Meta())
	require.NoError(t, r.Close())
}

// Splits and progress are planned from offsets: they must ascend with the keys.
func TestApproximateOffsetAscends(t *testing.T) {
	es := numbered(3000, 50)
	fs, m := build(t, WriterOptions{IndexPartitionBytes: 500}, es, nil)
	r := reopen(t, fs, ReaderOptions{})
	last := uint64(0)
	for _, e := range es {
		at := r.ApproximateOffset(e.k.User)
		require.GreaterOrEqual(t, at, last)
		last = at
	}
	require.Zero(t, r.ApproximateOffset([]byte("a"))-headerBytes)
	require.Greater(t, r.ApproximateOffset([]byte("z")), m.Size*9/10)
	require.NoError(t, r.Close())
}
