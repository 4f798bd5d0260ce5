package block_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable/block"
)

func genKey(t *rapid.T) ikey.Key {
	user := rapid.SampledFrom([]string{"", "prefix", "prefix\xff", "prefixlonglonglong"}).Draw(t, "prefix") + rapid.StringMatching(`[ab]{0,3}`).Draw(t, "user")
	return ikey.Make([]byte(user), ikey.Seq(rapid.IntRange(0, 4).Draw(t, "seq")), ikey.KindSet)
}

// The point search takes shortcuts that the iterator does not: both must find the same entry.
func TestSeekFindsWhatTheIteratorFinds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOfN(rapid.Custom(genKey), 0, 60).Draw(t, "keys")
		slices.SortFunc(keys, ikey.Compare)
		keys = slices.CompactFunc(keys, func(a, b ikey.Key) bool { return ikey.Compare(a, b) == 0 })
		w := block.Writer{RestartInterval: rapid.IntRange(0, 5).Draw(t, "interval")}
		for i, k := range keys {
			w.Add(k, fmt.Appendf(nil, "%d", i))
		}
		require.Equal(t, len(keys), w.Entries())
		size := w.SizeBytes()
		b := w.Finish()
		require.Len(t, b, size)
		require.NoError(t, block.Check(b))
		var it block.Iter
		require.NoError(t, it.Init(b))
		for range 20 {
			k := genKey(t)
			want, _ := slices.BinarySearchFunc(keys, k, ikey.Compare)
			f, ok, err := block.Seek(b, k)
			require.NoError(t, err)
			require.Equal(t, want < len(keys), ok)
			require.Equal(t, ok, it.SeekGE(k))
			if ok {
				require.Equal(t, fmt.Sprint(want), string(f.Value))
				require.Equal(t, keys[want].Trailer, f.Trailer)
				require.Equal(t, bytes.Equal(keys[want].User, k.User), f.Same)
				require.Equal(t, f.Value, it.Value())
			}
			require.Equal(t, want > 0, it.SeekLT(k))
			if want > 0 {
				require.Equal(t, fmt.Sprint(want-1), string(it.Value()))
				require.Equal(t, want < len(keys), it.Next())
			}
		}
		n := len(keys)
		for ok := it.Last(); ok; ok = it.Prev() {
			n--
			require.Equal(t, keys[n].String(), it.Key().String())
		}
		require.Zero(t, n)
	})
}

func seeds(f *testing.F) {
	for _, interval := range []int{1, 3} {
		w := block.Writer{RestartInterval: interval}
		for i := range 10 {
			w.Add(ikey.Make(fmt.Appendf(nil, "key%d", i), 1, ikey.KindSet), []byte("value"))
		}
		f.Add(bytes.Clone(w.Finish()), []byte("key5"))
	}
	f.Add([]byte{0, 0, 0, 0}, []byte{})
}

// FuzzBlock: any bytes as a block.
func FuzzBlock(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b, user []byte) {
		k := ikey.Search(user, 3)
		_, _, seekErr := block.Seek(b, k)
		good := block.Check(b) == nil
		var it block.Iter
		if it.Init(b) != nil {
			require.False(t, good)
			require.Error(t, seekErr)
			return
		}
		forward := 0
		for ok := it.First(); ok; ok = it.Next() {
			forward++
		}
		if good {
			require.NoError(t, it.Err())
			require.NoError(t, seekErr)
			backward := 0
			for ok := it.Last(); ok; ok = it.Prev() {
				backward++
			}
			require.Equal(t, forward, backward)
		}
		_ = it.Init(b)
		for ok := it.SeekGE(k); ok; ok = it.Prev() {
		}
		_ = it.SeekLT(k)
		it.Release()
	})
}
