package filter_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/sstable/filter"
)

// A filter that denies a key it has makes the key unreadable.
func TestFilterNeverDeniesAKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b filter.Builder
		hashes := rapid.SliceOf(rapid.Uint64()).Draw(t, "hashes")
		for _, h := range hashes {
			b.Add(h)
		}
		bits := rapid.IntRange(1, 64).Draw(t, "bits")
		raw := b.Build(bits)
		require.Len(t, raw, b.SizeBytes(bits))
		f, err := filter.Parse(raw)
		require.NoError(t, err)
		for _, h := range hashes {
			require.True(t, f.MayContain(h))
		}
	})
}

// Ten bits a key promise about one wrong answer in a hundred, whatever the number of keys.
func TestWrongAnswersAreRare(t *testing.T) {
	for _, keys := range []int{100, 10000, 300000} {
		var b filter.Builder
		for i := range keys {
			b.Add(filter.Hash(fmt.Appendf(nil, "tenant\x00%d", i)))
		}
		f, err := filter.Parse(b.Build(10))
		require.NoError(t, err)
		wrong := 0
		for i := range 100000 {
			if f.MayContain(filter.Hash(fmt.Appendf(nil, "tenant\x00no%d", i))) {
				wrong++
			}
		}
		t.Logf("%d keys: %.2f %% wrong", keys, float64(wrong)/1000)
		require.Less(t, wrong, 1500)
	}
}

// FuzzParse: any bytes as a filter.
func FuzzParse(f *testing.F) {
	var b filter.Builder
	b.Add(1)
	f.Add(b.Build(10), uint64(1))
	f.Fuzz(func(t *testing.T, raw []byte, hash uint64) {
		if f, err := filter.Parse(raw); err == nil {
			_ = f.MayContain(hash)
		}
	})
}
