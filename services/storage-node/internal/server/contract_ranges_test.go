package server

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ring"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
)

// included reports whether a coordinator means the token by the range.
func included(r *storagenodev1.KeyRange, token uint64) bool {
	start, end := r.GetStartHash(), r.GetEndHash()
	switch {
	case start < end:
		return start <= token && token <= end
	case start > end:
		return token >= start || token <= end
	}
	return true
}

// A token that is left out at the end of a range is a key that the new owner never gets; one end of the
// ring read as "everything" or "nothing" is all of them.
func TestContractRangesKeepBothEnds(t *testing.T) {
	const top = math.MaxUint64
	kr := func(pairs ...uint64) (out []*storagenodev1.KeyRange) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, &storagenodev1.KeyRange{StartHash: pairs[i], EndHash: pairs[i+1]})
		}
		return out
	}
	for i, c := range []struct {
		in   []*storagenodev1.KeyRange
		want []ring.HashRange
	}{
		{kr(10, 20), []ring.HashRange{{Start: 10, End: 21}}},
		{kr(10, top), []ring.HashRange{{Start: 10, End: 0}}},
		{kr(20, 10), []ring.HashRange{{Start: 20, End: 11}}},
		{kr(top, 0), []ring.HashRange{{Start: top, End: 1}}},
		{kr(0, top), []ring.HashRange{{}}},
		{kr(7, 7), []ring.HashRange{{}}},
		{kr(0, 0), []ring.HashRange{{}}},
		{kr(top, top), []ring.HashRange{{}}},
		{kr(7, 6), []ring.HashRange{{}}},
		{kr(10, 20, 21, 30), []ring.HashRange{{Start: 10, End: 31}}},
		{kr(21, 30, 10, 20), []ring.HashRange{{Start: 10, End: 31}}},
		{kr(10, 20, 22, 30), []ring.HashRange{{Start: 10, End: 21}, {Start: 22, End: 31}}},
		{kr(50, top, 0, 9), []ring.HashRange{{Start: 50, End: 10}}},
		{kr(50, top, 30, 40, 0, 9), []ring.HashRange{{Start: 30, End: 41}, {Start: 50, End: 10}}},
		{kr(10, 20, 10, 20, 12, 14), []ring.HashRange{{Start: 10, End: 21}}},
	} {
		got, err := contractRanges(c.in)
		require.NoError(t, err, "case %d", i)
		require.Equal(t, c.want, got, "case %d", i)
	}
	_, err := contractRanges(nil)
	require.ErrorIs(t, err, errLimit, "a selection without ranges would be the whole ring")
	many := make([]*storagenodev1.KeyRange, maxContractRanges+1)
	for i := range many {
		many[i] = &storagenodev1.KeyRange{StartHash: uint64(4 * i), EndHash: uint64(4*i + 1)}
	}
	_, err = contractRanges(many)
	require.ErrorIs(t, err, errLimit)
	got, err := contractRanges(many[1:])
	require.NoError(t, err)
	require.Len(t, got, maxContractRanges)
}

// Whatever a coordinator names, exactly its tokens are moved, and the same whatever the order.
func TestContractRangesAreTheSameTokens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Ends lie near each other and near the ends of the ring, where mistakes are.
		bound := rapid.OneOf(rapid.Uint64Range(0, 12), rapid.Uint64Range(math.MaxUint64-12, math.MaxUint64), rapid.Uint64())
		in := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) *storagenodev1.KeyRange {
			return &storagenodev1.KeyRange{StartHash: bound.Draw(t, "start"), EndHash: bound.Draw(t, "end")}
		}), 1, 8).Draw(t, "ranges")
		got, err := contractRanges(in)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			token := bound.Draw(t, "token")
			want := slices.ContainsFunc(in, func(r *storagenodev1.KeyRange) bool { return included(r, token) })
			n := 0
			for _, r := range got {
				if r.Contains(token) {
					n++
				}
			}
			if n > 1 || (n == 1) != want {
				t.Fatalf("token %d is in %d of %v, meant: %v", token, n, got, want)
			}
		}
		shuffled := slices.Clone(in)
		rand.New(rand.NewPCG(1, uint64(len(in)))).Shuffle(len(in), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		again, err := contractRanges(shuffled)
		if err != nil || !slices.Equal(got, again) {
			t.Fatalf("%v and %v: %v", got, again, err)
		}
	})
}

// Two orders that differ must never share a move; the same one must.
func TestContractMoveIDTellsOrdersApart(t *testing.T) {
	a := contractMoveID("stream", []byte("node-1"), rangeBytes([]ring.HashRange{{Start: 1, End: 2}}))
	require.Equal(t, a, contractMoveID("stream", []byte("node-1"), rangeBytes([]ring.HashRange{{Start: 1, End: 2}})))
	require.NotEqual(t, a, contractMoveID("stream", []byte("node-2"), rangeBytes([]ring.HashRange{{Start: 1, End: 2}})))
	require.NotEqual(t, a, contractMoveID("stream", []byte("node-1"), rangeBytes([]ring.HashRange{{Start: 1, End: 3}})))
	require.NotEqual(t, contractMoveID("stream", []byte("ab"), []byte("c")), contractMoveID("stream", []byte("a"), []byte("bc")))
	require.Regexp(t, `^stream-[0-9a-f]{16}-$`, a)
}
