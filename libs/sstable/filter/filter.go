// Package filter is the set membership filter of a table: a blocked Bloom filter whose answer costs
// one cache line. It never answers no for a key that was added.
//
// Layout, numbers little endian:
//
//	lines   64 bytes each
//	probes  u8: bits set per key, 1 to 7
//	hash    u8: 1 is XXH64
//	zero    2 bytes
//	count   u32: number of lines
//
// The high half of a key's hash chooses the line (multiplied and shifted, not divided); the hash
// times an odd constant gives nine bits for each probe in the line. Blocked Bloom filters are from
// Putze, Sanders, Singler, "Cache-, Hash- and Space-Efficient Bloom Filters" (2007).
package filter

import (
	"encoding/binary"
	"errors"

	"github.com/cespare/xxhash/v2"
)

const (
	// LineBytes is the size of a line: one cache line.
	LineBytes = 64
	tailBytes = 8
	hashXXH64 = 1
	maxProbes = 7 // 7 × 9 bits fit a 64-bit product
	remix     = 0x9E3779B97F4A7C15
)

// ErrMalformed says that bytes are not a filter.
var ErrMalformed = errors.New("malformed filter")

// Hash returns the hash of an engine key that Add and MayContain take.
func Hash(user []byte) uint64 { return xxhash.Sum64(user) }

// Builder collects the keys of a filter.
type Builder struct {
	hashes []uint64
}

// Add adds a key by its hash. Adding the same hash twice in a row counts once.
func (b *Builder) Add(hash uint64) {
	if n := len(b.hashes); n > 0 && b.hashes[n-1] == hash {
		return
	}
	b.hashes = append(b.hashes, hash)
}

// Len returns the number of keys.
func (b *Builder) Len() int { return len(b.hashes) }

// SizeBytes returns how long the filter will be.
func (b *Builder) SizeBytes(bitsPerKey int) int {
	return lines(len(b.hashes), bitsPerKey)*LineBytes + tailBytes
}

func lines(keys, bitsPerKey int) int {
	const lineBits = LineBytes * 8
	return max(1, (keys*bitsPerKey+lineBits-1)/lineBits)
}

// Build returns the filter of the keys: 10 bits a key are wrong for about 1 % of absent keys.
func (b *Builder) Build(bitsPerKey int) []byte {
	n := lines(len(b.hashes), bitsPerKey)
	// The best number of probes of a plain Bloom filter is 0.69 bits per key; lines are filled
	// unevenly, which favours a little less.
	probes := min(max(bitsPerKey*6/10, 1), maxProbes)
	out := make([]byte, n*LineBytes+tailBytes)
	for _, h := range b.hashes {
		line := out[lineOf(h, uint64(n)):]
		x := h * remix
		for i := 0; i < probes; i++ {
			line[x>>3&63] |= 1 << (x & 7)
			x >>= 9
		}
	}
	tail := out[n*LineBytes:]
	tail[0], tail[1] = byte(probes), hashXXH64
	binary.LittleEndian.PutUint32(tail[4:], uint32(n))
	return out
}

// lineOf returns the offset of the line of h among n.
func lineOf(h, n uint64) uint64 { return (h >> 32) * n >> 32 * LineBytes }

// Filter answers from the bytes that Build made. The zero value answers yes to everything.
type Filter struct {
	lines  []byte
	count  uint64
	probes int
}

// Parse checks b and returns its filter, which keeps b. Answers cost one cache line if b starts at
// a multiple of LineBytes in memory.
func Parse(b []byte) (Filter, error) {
	if len(b) < LineBytes+tailBytes {
		return Filter{}, ErrMalformed
	}
	tail := b[len(b)-tailBytes:]
	count := uint64(binary.LittleEndian.Uint32(tail[4:]))
	if tail[0] == 0 || tail[0] > maxProbes || tail[1] != hashXXH64 || tail[2] != 0 || tail[3] != 0 {
		return Filter{}, ErrMalformed
	}
	if count*LineBytes != uint64(len(b)-tailBytes) {
		return Filter{}, ErrMalformed
	}
	return Filter{lines: b[:len(b)-tailBytes], count: count, probes: int(tail[0])}, nil
}

// MayContain reports whether a key with this hash may have been added: no is certain.
func (f *Filter) MayContain(hash uint64) bool {
	if f.count == 0 {
		return true
	}
	at := lineOf(hash, f.count)
	line := f.lines[at : at+LineBytes : at+LineBytes]
	x := hash * remix
	for i := f.probes; i > 0; i-- {
		if line[x>>3&63]&(1<<(x&7)) == 0 {
			return false
		}
		x >>= 9
	}
	return true
}

// SizeBytes returns the memory of the filter.
func (f *Filter) SizeBytes() int { return len(f.lines) }
