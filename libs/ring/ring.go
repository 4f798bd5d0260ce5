// Package ring is where keys stand on the hash ring, and which nodes keep them by the members that are
// declared. It never knows who is alive, nor what a node really holds.
package ring

import (
	"crypto/sha256"
	"encoding/binary"
)

// Token returns the place of a key on the ring: the first eight bytes, big endian, of
// SHA-256("<tenant>:<key>"). A tenant contains no colon, so the pair is unambiguous. Coordinators
// compute the same.
func Token(tenant, key string) uint64 {
	// 128 bytes hold most pairs without an allocation.
	var buf [128]byte
	return TokenOf(buf[:0], []byte(tenant), []byte(key))
}

// TokenOf is Token for bytes. It uses and overwrites scratch from its length on.
func TokenOf(scratch, tenant, key []byte) uint64 {
	scratch = append(scratch, tenant...)
	scratch = append(scratch, ':')
	scratch = append(scratch, key...)
	sum := sha256.Sum256(scratch)
	return binary.BigEndian.Uint64(sum[:8])
}

// HashRange is the half-open range [Start, End) of tokens. It wraps around when Start > End, and
// Start == End is the whole ring.
type HashRange struct {
	Start, End uint64
}

// Contains reports whether the token is in the range.
func (r HashRange) Contains(token uint64) bool {
	switch {
	case r.Start < r.End:
		return r.Start <= token && token < r.End
	case r.Start > r.End:
		return token >= r.Start || token < r.End
	}
	return true
}
