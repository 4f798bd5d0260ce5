package merkle

import "slices"

// Tree is the digests of one side by leaves. It is for one goroutine until it is complete, and then safe
// for concurrent reading.
type Tree struct {
	shape  *Shape
	leaves []Digest // range after range
}

// NewTree returns the tree of no records.
func NewTree(s *Shape) *Tree {
	return &Tree{shape: s, leaves: make([]Digest, len(s.ranges)*s.leaves)}
}

// Clone returns a tree of its own.
func (t *Tree) Clone() *Tree { return &Tree{shape: t.shape, leaves: slices.Clone(t.leaves)} }

// Shape returns the tree's shape.
func (t *Tree) Shape() *Shape { return t.shape }

// Add adds the digest of a record at its token. It reports whether the token is in a range.
func (t *Tree) Add(token uint64, d Digest) bool {
	r, leaf, ok := t.shape.Locate(token)
	if ok {
		at := &t.leaves[r*t.shape.leaves+leaf]
		*at = at.Add(d)
	}
	return ok
}

// SetLeaf replaces the sum of a leaf, which was hashed anew.
func (t *Tree) SetLeaf(rangeIndex, leaf int, d Digest) { t.leaves[rangeIndex*t.shape.leaves+leaf] = d }

// Root returns the sum of a range.
func (t *Tree) Root(rangeIndex int) (sum Digest) {
	for _, d := range t.Leaves(rangeIndex) {
		sum = sum.Add(d)
	}
	return sum
}

// Roots returns the roots of all ranges, in the order of the shape.
func (t *Tree) Roots() []Digest {
	out := make([]Digest, len(t.shape.ranges))
	for i := range out {
		out[i] = t.Root(i)
	}
	return out
}

// Leaves returns the leaves of a range; they are shared, and nobody changes them.
func (t *Tree) Leaves(rangeIndex int) []Digest {
	n := t.shape.leaves
	return t.leaves[rangeIndex*n : (rangeIndex+1)*n : (rangeIndex+1)*n]
}
