package merkle_test

import (
	"crypto/sha256"
	"fmt"
	"math"
	"math/big"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/merkle"
	"github.com/pairdb/pairdb/libs/ring"
)

// Danger: two nodes of different builds hash one record to two digests and repair it for ever.
func TestDigestIsTheDocumentedHash(t *testing.T) {
	for _, n := range []int{0, 1, 4000, 4096, 5000} {
		value := make([]byte, n)
		sum := sha256.Sum256(append([]byte("shop\x00cart\x00\x00"), value...))
		require.Equal(t, sum[:16], merkle.Append(nil, merkle.Of([]byte("shop\x00cart"), value)), "%d bytes", n)
	}
	key, value := []byte("shop\x00cart"), make([]byte, 1000)
	require.Zero(t, testing.AllocsPerRun(100, func() { merkle.Of(key, value) }))
}

// Danger: a sum that is not modulo 2^128 depends on the order of records.
func TestSumsAreModulo(t *testing.T) {
	mod := new(big.Int).Lsh(big.NewInt(1), 128)
	number := func(d merkle.Digest) *big.Int { return new(big.Int).SetBytes(d[:]) }
	rapid.Check(t, func(t *rapid.T) {
		var a, b merkle.Digest
		copy(a[:], rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0x80, 0xff}), 16, 16).Draw(t, "a"))
		copy(b[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "b"))
		sum := new(big.Int).Add(number(a), number(b))
		require.Zero(t, sum.Mod(sum, mod).Cmp(number(a.Add(b))))
		require.Equal(t, a, a.Add(b).Sub(b))
		require.Equal(t, a.Add(b), b.Add(a))
		require.True(t, a.Sub(a).IsZero())
	})
}

// shapes draws a ring that is cut at some tokens, of which some ranges count.
func shapes() *rapid.Generator[*merkle.Shape] {
	return rapid.Custom(func(t *rapid.T) *merkle.Shape {
		tokens := rapid.OneOf(rapid.Uint64(), rapid.SampledFrom([]uint64{0, 1, 2, math.MaxUint64, math.MaxUint64 - 1, 1 << 63}))
		cuts := rapid.SliceOfNDistinct(tokens, 1, 9, rapid.ID).Draw(t, "cuts")
		sorted := append([]uint64(nil), cuts...)
		for i := range sorted {
			for j := i; j > 0 && sorted[j] < sorted[j-1]; j-- {
				sorted[j], sorted[j-1] = sorted[j-1], sorted[j]
			}
		}
		var ranges []ring.HashRange
		for i := range sorted {
			if i == 0 || rapid.Bool().Draw(t, "counts") {
				ranges = append(ranges, ring.HashRange{Start: sorted[i], End: sorted[(i+1)%len(sorted)]})
			}
		}
		ranges = rapid.Permutation(ranges).Draw(t, "order")
		s, err := merkle.NewShape(ranges, 1<<rapid.IntRange(0, 6).Draw(t, "leaves"))
		require.NoError(t, err)
		return s
	})
}

// Danger: a token at a boundary or in a range that wraps belongs to a leaf on one side and to none, or
// another, on the other; then a difference is looked for where it is not.
func TestLocateIsExact(t *testing.T) {
	whole := new(big.Int).Lsh(big.NewInt(1), 64)
	rapid.Check(t, func(t *rapid.T) {
		s := shapes().Draw(t, "shape")
		var near []uint64
		for _, r := range s.Ranges() {
			near = append(near, r.Start-1, r.Start, r.Start+1, r.End-1, r.End, r.End+1, r.Start+(r.End-r.Start)/2)
		}
		token := rapid.OneOf(rapid.Uint64(), rapid.SampledFrom(near)).Draw(t, "token")
		at, leaf, ok := s.Locate(token)
		want := -1
		for i, r := range s.Ranges() {
			if r.Contains(token) {
				want = i
			}
		}
		if want < 0 {
			require.False(t, ok)
			return
		}
		require.True(t, ok)
		require.Equal(t, want, at)
		r := s.Ranges()[at]
		size := new(big.Int).SetUint64(r.End - r.Start)
		if size.Sign() == 0 {
			size = whole
		}
		exact := new(big.Int).SetUint64(token - r.Start)
		exact.Mul(exact, big.NewInt(int64(s.LeavesPerRange()))).Div(exact, size)
		require.Equal(t, int(exact.Int64()), leaf)
		require.Less(t, leaf, s.LeavesPerRange())
	})
}

type item struct {
	token uint64
	d     merkle.Digest
}

func items(s *merkle.Shape) *rapid.Generator[[]item] {
	one := rapid.Custom(func(t *rapid.T) item {
		token := rapid.Uint64().Draw(t, "token")
		if i := rapid.IntRange(-1, len(s.Ranges())-1).Draw(t, "range"); i >= 0 {
			token = s.Ranges()[i].Start + token%4
		}
		return item{token, merkle.Of([]byte(fmt.Sprint("t\x00", token)), rapid.SliceOfN(rapid.Byte(), 1, 8).Draw(t, "record"))}
	})
	return rapid.SliceOfNDistinct(one, 1, 20, func(i item) merkle.Digest { return i.d })
}

func treeOf(s *merkle.Shape, all []item) *merkle.Tree {
	t := merkle.NewTree(s)
	for _, i := range all {
		t.Add(i.token, i.d)
	}
	return t
}

// Danger: two nodes meet the same records in another order and take them for different.
func TestTreesDoNotDependOnTheOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := shapes().Draw(t, "shape")
		all := items(s).Draw(t, "items")
		a, b := treeOf(s, all), treeOf(s, rapid.Permutation(all).Draw(t, "order"))
		require.Equal(t, a.Roots(), b.Roots())
		for i := range s.Ranges() {
			require.Empty(t, merkle.Diff(a.Leaves(i), b.Leaves(i)))
		}
	})
}

// Danger: a record that is changed, missing or too much is not seen, or not where it is.
func TestOneDifferenceIsSeenInExactlyItsLeaf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := shapes().Draw(t, "shape")
		all := items(s).Draw(t, "items")
		odd := rapid.IntRange(0, len(all)-1).Draw(t, "odd")
		other := append([]item(nil), all...)
		if rapid.Bool().Draw(t, "changed") {
			other[odd].d = merkle.Of([]byte("t\x00other"), []byte("other"))
		} else {
			other = append(other[:odd], other[odd+1:]...)
		}
		a, b := treeOf(s, all), treeOf(s, other)
		if rapid.Bool().Draw(t, "swap") {
			a, b = b, a
		}
		at, leaf, ok := s.Locate(all[odd].token)
		if !ok {
			require.Empty(t, merkle.Diff(a.Roots(), b.Roots()))
			return
		}
		require.Equal(t, []int{at}, merkle.Diff(a.Roots(), b.Roots()))
		for i := range s.Ranges() {
			diff := merkle.Diff(a.Leaves(i), b.Leaves(i))
			if i == at {
				require.Equal(t, []int{leaf}, diff)
			} else {
				require.Empty(t, diff)
			}
		}
		b.SetLeaf(at, leaf, a.Leaves(at)[leaf])
		require.Equal(t, a.Roots(), b.Roots())
	})
}

// Danger: a request for a tree of any size takes all memory, or ranges that overlap count a record twice.
func TestShapesAreRefused(t *testing.T) {
	for _, leaves := range []int{-1, 0, 3, 1 << 17} {
		_, err := merkle.NewShape(nil, leaves)
		require.ErrorIs(t, err, merkle.ErrShape, "%d leaves", leaves)
	}
	many := make([]ring.HashRange, merkle.MaxRanges+1)
	for i := range many {
		many[i] = ring.HashRange{Start: uint64(i), End: uint64(i + 1)}
	}
	_, err := merkle.NewShape(many, 1)
	require.ErrorIs(t, err, merkle.ErrShape)
	_, err = merkle.NewShape(many[:17], 1<<16)
	require.ErrorIs(t, err, merkle.ErrShape)
	_, err = merkle.NewShape(many[:16], 1<<16)
	require.NoError(t, err)
	for _, overlap := range [][]ring.HashRange{
		{{Start: 1, End: 1}, {Start: 5, End: 6}},
		{{Start: 5, End: 6}, {}},
		{{Start: 1, End: 10}, {Start: 9, End: 12}},
		{{Start: 1, End: 10}, {Start: 1, End: 10}},
		{{Start: 100, End: 10}, {Start: 9, End: 12}},
		{{Start: 100, End: 10}, {Start: 200, End: 300}},
	} {
		_, err := merkle.NewShape(overlap, 2)
		require.ErrorIs(t, err, merkle.ErrShape, "%v", overlap)
	}
}

// Danger: bytes from a peer are cut short and taken for fewer digests.
func TestParseRefusesWhatIsNoDigest(t *testing.T) {
	a, b := merkle.Of([]byte("a"), nil), merkle.Of([]byte("b"), nil)
	got, err := merkle.Parse(merkle.Append(nil, a, b))
	require.NoError(t, err)
	require.Equal(t, []merkle.Digest{a, b}, got)
	_, err = merkle.Parse(make([]byte, 17))
	require.Error(t, err)
	one, err := merkle.ParseOne(a[:])
	require.NoError(t, err)
	require.Equal(t, a, one)
	none, err := merkle.ParseOne(nil)
	require.NoError(t, err)
	require.True(t, none.IsZero())
	_, err = merkle.ParseOne(a[:15])
	require.Error(t, err)
	require.Equal(t, []int{1}, merkle.Diff([]merkle.Digest{a, b}, []merkle.Digest{a}))
}

// Two nodes compare a range and find where they differ.
func Example() {
	shape, _ := merkle.NewShape([]ring.HashRange{{Start: 0, End: 1 << 63}, {Start: 1 << 63, End: 0}}, 4)
	here, there := merkle.NewTree(shape), merkle.NewTree(shape)
	for _, key := range []string{"apple", "pear", "plum"} {
		token := ring.Token("shop", key)
		here.Add(token, merkle.Of([]byte("shop\x00"+key), []byte("record")))
		if key != "pear" {
			there.Add(token, merkle.Of([]byte("shop\x00"+key), []byte("record")))
		}
	}
	for _, r := range merkle.Diff(here.Roots(), there.Roots()) {
		fmt.Println("range", r, "leaves", merkle.Diff(here.Leaves(r), there.Leaves(r)))
	}
	r, leaf, _ := shape.Locate(ring.Token("shop", "pear"))
	fmt.Println("pear is in range", r, "leaf", leaf)
	// Output:
	// range 1 leaves [0]
	// pear is in range 1 leaf 0
}

func BenchmarkLocate(b *testing.B) {
	ranges := make([]ring.HashRange, 450)
	for i := range ranges {
		step := uint64(math.MaxUint64 / uint64(len(ranges)))
		ranges[i] = ring.HashRange{Start: uint64(i) * step, End: uint64(i)*step + step}
	}
	s, err := merkle.NewShape(ranges, 64)
	require.NoError(b, err)
	token := uint64(1)
	for b.Loop() {
		token *= 6364136223846793005
		s.Locate(token)
	}
}
