package iterator_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/iterator"
)

func genKey(t *rapid.T) ikey.Key {
	return ikey.Make([]byte(rapid.StringMatching(`[a-c]{0,2}`).Draw(t, "user")), ikey.Seq(rapid.IntRange(0, 5).Draw(t, "seq")), ikey.KindSet)
}

// An entry that a merge drops or puts out of place is lost to every read above it.
func TestMergeIsTheSortedUnionInBothDirections(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []iterator.Entry
		var its []iterator.Iterator
		for i := range rapid.IntRange(0, 5).Draw(t, "iterators") {
			var es []iterator.Entry
			for j := range rapid.IntRange(0, 12).Draw(t, "entries") {
				es = append(es, iterator.Entry{Key: genKey(t), Value: fmt.Appendf(nil, "%d.%d", i, j)})
			}
			slices.SortStableFunc(es, func(a, b iterator.Entry) int { return ikey.Compare(a.Key, b.Key) })
			es = slices.CompactFunc(es, func(a, b iterator.Entry) bool { return ikey.Compare(a.Key, b.Key) == 0 })
			all = append(all, es...)
			its = append(its, iterator.Slice(es))
		}
		// Stable: equal keys in the order of the iterators.
		slices.SortStableFunc(all, func(a, b iterator.Entry) int { return ikey.Compare(a.Key, b.Key) })
		want := iterator.Slice(all)
		got := iterator.Merge(its...)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			var w, g bool
			switch op := rapid.IntRange(0, 13).Draw(t, "op"); op {
			case 0:
				w, g = want.First(), got.First()
			case 1:
				w, g = want.Last(), got.Last()
			case 2:
				k := genKey(t)
				w, g = want.SeekGE(k), got.SeekGE(k)
			case 3:
				k := genKey(t)
				w, g = want.SeekLT(k), got.SeekLT(k)
			default:
				if !want.Valid() {
					continue
				}
				if op < 9 {
					w, g = want.Next(), got.Next()
				} else {
					w, g = want.Prev(), got.Prev()
				}
			}
			require.NoError(t, got.Err())
			require.Equal(t, w, g)
			require.Equal(t, w, got.Valid())
			if w {
				require.Equal(t, want.Key(), got.Key())
				require.Equal(t, string(want.Value()), string(got.Value()))
			}
		}
		require.NoError(t, got.Close())
		require.NoError(t, got.Close())
	})
}

// A source that failed looks like one that ended: the merge would answer without its entries.
func TestMergeStopsWhenASourceFails(t *testing.T) {
	boom := errors.New("boom")
	m := iterator.Merge(iterator.Slice([]iterator.Entry{{Key: ikey.Make([]byte("a"), 1, ikey.KindSet)}}), iterator.Fail(boom))
	for _, move := range []func() bool{m.First, m.Last, func() bool { return m.SeekGE(ikey.Key{}) }, func() bool { return m.SeekLT(ikey.Key{}) }} {
		require.False(t, move())
		require.False(t, m.Valid())
		require.ErrorIs(t, m.Err(), boom)
	}
	require.ErrorIs(t, m.Close(), boom)
}

func ExampleMerge() {
	a := iterator.Slice([]iterator.Entry{{Key: ikey.Make([]byte("k"), 7, ikey.KindMerge)}})
	b := iterator.Slice([]iterator.Entry{{Key: ikey.Make([]byte("j"), 3, ikey.KindSet)}, {Key: ikey.Make([]byte("k"), 4, ikey.KindSet)}})
	it := iterator.Merge(a, b)
	for ok := it.First(); ok; ok = it.Next() {
		fmt.Println(it.Key())
	}
	// Output:
	// "j"#3,SET
	// "k"#7,MERGE
	// "k"#4,SET
}

func BenchmarkMergeNext(b *testing.B) {
	for _, n := range []int{2, 8} {
		b.Run(fmt.Sprintf("sources=%d", n), func(b *testing.B) {
			its := make([]iterator.Iterator, n)
			for i := range its {
				var es []iterator.Entry
				for j := range 1000 {
					es = append(es, iterator.Entry{Key: ikey.Make(fmt.Appendf(nil, "tenant\x00key%06d", j*n+i), 1, ikey.KindSet)})
				}
				its[i] = iterator.Slice(es)
			}
			m := iterator.Merge(its...)
			b.ReportAllocs()
			m.First()
			for b.Loop() {
				if !m.Next() {
					m.First()
				}
			}
		})
	}
}
