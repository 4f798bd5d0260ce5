package merkle

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/pairdb/pairdb/libs/ring"
)

// Limits of shapes.
const (
	// MaxRanges bounds the ranges of a tree, as those of a selection.
	MaxRanges = 4096
	// MaxLeavesPerRange and MaxLeaves bound its leaves: a tree is 16 MiB at most.
	MaxLeavesPerRange = 1 << 16
	MaxLeaves         = 1 << 20
)

// ErrShape says that ranges and leaves make no tree.
var ErrShape = errors.New("no shape of a tree")

// Shape says which leaf a token belongs to. It is immutable and safe for concurrent use; both sides of a
// comparison use the same one.
type Shape struct {
	ranges []ring.HashRange
	leaves int
	// order are the positions of ranges by their starts.
	order []int
}

// NewShape returns the shape of a tree over ranges, which must not overlap, in the order in which they are
// given; none is the whole ring. leavesPerRange is a power of two. Errors: ErrShape.
func NewShape(ranges []ring.HashRange, leavesPerRange int) (*Shape, error) {
	if len(ranges) == 0 {
		ranges = []ring.HashRange{{}}
	}
	switch n := leavesPerRange; {
	case n < 1 || n > MaxLeavesPerRange || bits.OnesCount(uint(n)) != 1:
		return nil, fmt.Errorf("%w: %d leaves per range: a power of two from 1 to %d is", ErrShape, n, MaxLeavesPerRange)
	case len(ranges) > MaxRanges:
		return nil, fmt.Errorf("%w: %d ranges, at most %d allowed", ErrShape, len(ranges), MaxRanges)
	case n*len(ranges) > MaxLeaves:
		return nil, fmt.Errorf("%w: %d leaves, at most %d allowed", ErrShape, n*len(ranges), MaxLeaves)
	}
	s := &Shape{ranges: slices.Clone(ranges), leaves: leavesPerRange, order: make([]int, len(ranges))}
	for i := range s.order {
		s.order[i] = i
	}
	slices.SortFunc(s.order, func(a, b int) int { return cmp.Compare(ranges[a].Start, ranges[b].Start) })
	for i, at := range s.order {
		next := ranges[s.order[(i+1)%len(s.order)]]
		if len(ranges) > 1 && ranges[at].Contains(next.Start) {
			return nil, fmt.Errorf("%w: two ranges overlap at token %d", ErrShape, next.Start)
		}
	}
	return s, nil
}

// Ranges returns the ranges; nobody changes them.
func (s *Shape) Ranges() []ring.HashRange { return s.ranges }

// LeavesPerRange returns how many leaves each range has.
func (s *Shape) LeavesPerRange() int { return s.leaves }

// Locate returns the range that holds a token, and which of its leaves does. ok is false for a token of no
// range.
func (s *Shape) Locate(token uint64) (rangeIndex, leaf int, ok bool) {
	// The range that begins last at or below the token; below all of them it can only be the one that
	// wraps, which begins last of all.
	i, found := slices.BinarySearchFunc(s.order, token, func(at int, t uint64) int { return cmp.Compare(s.ranges[at].Start, t) })
	if !found {
		i = (i + len(s.order) - 1) % len(s.order)
	}
	at := s.order[i]
	r := s.ranges[at]
	if !r.Contains(token) {
		return 0, 0, false
	}
	return at, s.leafOf(r, token), true
}

// leafOf returns offset × leaves / size, all of them exact. The offset is below the size, so the quotient
// is below the number of leaves, and the upper half of the product, which is below the offset, fits.
func (s *Shape) leafOf(r ring.HashRange, token uint64) int {
	size := r.End - r.Start // modulo 2^64, as the ring goes; 0 is all of it
	hi, lo := bits.Mul64(token-r.Start, uint64(s.leaves))
	if size == 0 {
		return int(hi)
	}
	leaf, _ := bits.Div64(hi, lo, size)
	return int(leaf)
}
