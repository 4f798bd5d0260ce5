package ring_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ring"
)

// edges are tokens near which sets go wrong; everything else is drawn between.
var edges = []uint64{0, 1, 2, 3, 1 << 63, math.MaxUint64 - 1, math.MaxUint64}

func genToken() *rapid.Generator[uint64] {
	return rapid.OneOf(rapid.SampledFrom(edges), rapid.Uint64Range(0, 40), rapid.Uint64())
}

func genRanges() *rapid.Generator[[]ring.HashRange] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) ring.HashRange {
		return ring.HashRange{Start: genToken().Draw(t, "start"), End: genToken().Draw(t, "end")}
	}), 0, 6)
}

func contains(all []ring.HashRange, token uint64) bool {
	return slices.ContainsFunc(all, func(r ring.HashRange) bool { return r.Contains(token) })
}

// probes are the tokens at and beside every bound, where membership can change.
func probes(t *rapid.T, lists ...[]ring.HashRange) []uint64 {
	out := append(slices.Clone(edges), genToken().Draw(t, "probe"))
	for _, l := range lists {
		for _, r := range l {
			out = append(out, r.Start-1, r.Start, r.Start+1, r.End-1, r.End, r.End+1)
		}
	}
	return out
}

func requireNormal(t *rapid.T, all []ring.HashRange) {
	if len(all) == 0 {
		require.Nil(t, all)
		return
	}
	for i, r := range all {
		if len(all) == 1 && r.Start == r.End {
			require.Equal(t, ring.HashRange{}, r, "the whole ring has one form")
			return
		}
		require.NotEqual(t, r.Start, r.End)
		if i == len(all)-1 {
			if r.Start > r.End && len(all) > 1 {
				require.Less(t, r.End, all[0].Start)
			}
			break
		}
		require.Less(t, r.Start, r.End, "only the last one wraps")
		require.Less(t, r.End, all[i+1].Start, "none touches another")
	}
}

// Danger: a token that falls out of a set is a key that nobody has; one that falls in is deleted.
func TestSetsOfRangesAreThoseOfTheirTokens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := genRanges().Draw(t, "a"), genRanges().Draw(t, "b")
		beforeA, beforeB := slices.Clone(a), slices.Clone(b)
		normal, union, both, less := ring.Normal(a), ring.Union(a, b), ring.Intersect(a, b), ring.Subtract(a, b)
		overlap, more := false, false
		for _, tok := range probes(t, a, b) {
			inA, inB := contains(a, tok), contains(b, tok)
			require.Equal(t, inA, ring.In(normal, tok), "normal %d", tok)
			require.Equal(t, inA || inB, ring.In(union, tok), "union %d", tok)
			require.Equal(t, inA && inB, ring.In(both, tok), "both %d", tok)
			require.Equal(t, inA && !inB, ring.In(less, tok), "less %d", tok)
			overlap, more = overlap || inA && inB, more || inB && !inA
		}
		require.Equal(t, overlap, ring.Overlaps(a, b))
		require.Equal(t, !more, ring.Covers(a, b))
		for _, s := range [][]ring.HashRange{normal, union, both, less} {
			requireNormal(t, s)
			require.Equal(t, s, ring.Normal(s))
		}
		require.Equal(t, normal, ring.Union(both, less), "a set is its parts")
		require.Equal(t, beforeA, a)
		require.Equal(t, beforeB, b)
	})
}

// Danger: the borders of the ring have no number behind them.
func TestSetsAtTheBordersOfTheRing(t *testing.T) {
	const top = math.MaxUint64
	whole := []ring.HashRange{{}}
	require.Nil(t, ring.Normal(nil))
	require.False(t, ring.In(nil, 0))
	require.Equal(t, whole, ring.Normal([]ring.HashRange{{Start: 7, End: 7}}))
	require.Equal(t, whole, ring.Union([]ring.HashRange{{Start: 5, End: 0}}, []ring.HashRange{{Start: 0, End: 5}}))
	require.Equal(t, []ring.HashRange{{Start: top, End: 0}}, ring.Subtract(whole, []ring.HashRange{{Start: 0, End: top}}))
	require.Equal(t, []ring.HashRange{{Start: 1, End: 0}}, ring.Subtract(whole, []ring.HashRange{{Start: 0, End: 1}}))
	require.Nil(t, ring.Subtract([]ring.HashRange{{Start: 3, End: 2}}, whole))
	require.Equal(t, []ring.HashRange{{Start: 5, End: 7}, {Start: 9, End: 3}},
		ring.Normal([]ring.HashRange{{Start: 9, End: 2}, {Start: 0, End: 3}, {Start: 5, End: 6}, {Start: 6, End: 7}}))
}

func ExampleSubtract() {
	fmt.Println(ring.Subtract([]ring.HashRange{{Start: 90, End: 10}}, []ring.HashRange{{Start: 95, End: 99}}))
	// Output: [{90 95} {99 10}]
}
