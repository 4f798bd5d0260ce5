package workload

import (
	"bytes"
	"math"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestKeysAreInOrderAndApart(t *testing.T) {
	// Scans are checked by the order of keys, reads by their indices: two keys that meet would make
	// a right engine look wrong, and an index out of order a wrong one right.
	rapid.Check(t, func(t *rapid.T) {
		d := Data{Count: rapid.Uint64Range(2, 10_000_000).Draw(t, "count"), ValueBytes: 100}
		i := rapid.Uint64Range(0, d.Count-2).Draw(t, "i")
		a, b, miss := d.Key(nil, i), d.Key(nil, i+1), d.Missing(nil, i)
		require.Len(t, a, KeyBytes)
		require.Equal(t, 1, bytes.Count(a, []byte{0}), "one separator")
		require.Negative(t, bytes.Compare(a, miss))
		require.Negative(t, bytes.Compare(miss, b))
	})
	d := Data{Count: 1000}
	seen := map[string]bool{}
	for i := range 20 * d.Count {
		key := string(d.Key(nil, i))
		require.False(t, seen[key], "key %d", i)
		seen[key] = true
	}
	for i := range d.Count {
		require.False(t, seen[string(d.Missing(nil, i))], "the key beside %d", i)
	}
}

func TestValuesCompressLikeRecords(t *testing.T) {
	// Values of zeros, or of noise, would measure the compression and not the engine.
	for _, c := range []struct {
		bytes    int
		low, top float64
	}{{1024, 0.50, 0.60}, {100, 0.50, 0.80}} {
		d := Data{Count: 1000, ValueBytes: c.bytes}
		var block []byte
		for i := uint64(0); len(block) < 32<<10; i++ {
			block = append(block, d.Key(nil, i)...)
			block = append(block, d.Value(nil, i, 0)...)
		}
		ratio := float64(len(s2.Encode(nil, block))) / float64(len(block))
		require.GreaterOrEqual(t, ratio, c.low, "values of %d bytes", c.bytes)
		require.LessOrEqual(t, ratio, c.top, "values of %d bytes", c.bytes)
	}
}

func TestEveryChangedByteOfAValueIsNoticed(t *testing.T) {
	// A check that lets something pass makes a benchmark of a broken engine.
	d := Data{Count: 100, ValueBytes: 300}
	value := d.Value(nil, 42, 7)
	require.Len(t, value, d.ValueBytes)
	_, err := d.Check(value, 42, nil)
	require.NoError(t, err)
	for at := range value {
		value[at] ^= 0x10
		_, err := d.Check(value, 42, nil)
		require.ErrorContains(t, err, "wrong read", "byte %d", at)
		value[at] ^= 0x10
	}
	_, err = d.Check(value[:299], 42, nil)
	require.Error(t, err)
	_, err = d.Check(d.Value(nil, 41, 7), 42, nil)
	require.Error(t, err)
}

func TestScanDigestIsTheSumOfItsEntries(t *testing.T) {
	d := Data{Count: 100, ValueBytes: 10}
	require.Equal(t, uint64(5+6+7+3*(KeyBytes+10)), d.ScanDigest(5, 3))
}

func TestPermutationHitsEveryNumberOnce(t *testing.T) {
	// A fill in an order that leaves keys out would leave the data set with holes.
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(1, 5000).Draw(t, "count")
		p := NewPermutation(n, rapid.Uint64().Draw(t, "seed"))
		seen := make([]bool, n)
		for i := range n {
			at := p.At(i)
			require.Less(t, at, n)
			require.False(t, seen[at], "number %d twice", at)
			seen[at] = true
		}
	})
}

func TestPermutationIsScattered(t *testing.T) {
	// An order that is nearly that of the keys makes a random fill a sequential one.
	const n = 100_000
	p := NewPermutation(n, 1)
	ascending := 0
	for i := uint64(1); i < n; i++ {
		if p.At(i) > p.At(i-1) {
			ascending++
		}
	}
	require.InDelta(t, 0.5, float64(ascending)/n, 0.01)
}

func TestZipfianDrawsByRank(t *testing.T) {
	// The row's meaning is its skew: the share of each rank must be that of the distribution.
	const n, draws = 10_000, 1_000_000
	z, r := NewZipfian(n), NewRandom(1)
	counts := make([]int, n)
	for range draws {
		counts[z.Rank(r)]++
	}
	zeta := 0.0
	for i := 1; i <= n; i++ {
		zeta += math.Pow(float64(i), -Theta)
	}
	share := func(from, to int) (got, want float64) {
		for i := from; i < to; i++ {
			got += float64(counts[i]) / draws
			want += math.Pow(float64(i+1), -Theta) / zeta
		}
		return got, want
	}
	// The algorithm is exact for the first two ranks and approximates the rest.
	for _, c := range []struct {
		from, to int
		within   float64
	}{{0, 1, 0.01}, {1, 2, 0.02}, {2, 10, 0.1}, {10, 100, 0.1}, {100, 1000, 0.1}, {1000, n, 0.1}} {
		got, want := share(c.from, c.to)
		require.InEpsilon(t, want, got, c.within, "ranks %d to %d", c.from, c.to)
	}
}
