package workload

import "math/bits"

// Permutation is a random order of the numbers below a count, in constant memory: a Feistel network
// of four rounds on the next even power of two, walked until it comes back into the range.
type Permutation struct {
	count uint64
	half  uint // bits of each half
	seed  uint64
}

// NewPermutation returns an order of the numbers in [0, count).
func NewPermutation(count, seed uint64) Permutation {
	width := max(2, bits.Len64(count-1))
	return Permutation{count: count, half: uint(width+1) / 2, seed: seed}
}

// At returns the i-th number, for i below the count.
func (p Permutation) At(i uint64) uint64 {
	mask := uint64(1)<<p.half - 1
	for {
		left, right := i>>p.half, i&mask
		for round := uint64(0); round < 4; round++ {
			left, right = right, left^mix(right+p.seed+round<<56)&mask
		}
		if i = left<<p.half | right; i < p.count {
			return i
		}
	}
}
