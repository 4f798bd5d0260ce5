package merkle

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
)

// DigestBytes is the length of a digest.
const DigestBytes = 16

// Digest is that of a record, or the sum of those of many: a number modulo 2^128, big endian. The zero
// Digest is that of no records.
type Digest [DigestBytes]byte

// separator stands between key and record. Engine keys contain one zero byte, and never two.
var separator = [2]byte{}

// Of returns the digest of a record: the first 16 bytes of SHA-256(key ‖ 0x00 0x00 ‖ canonical). The key is
// tenant ‖ 0x00 ‖ key, canonical what is left of the record after it was collected at the cut that both
// sides use. It allocates nothing for pairs of up to 4 KiB.
func Of(key, canonical []byte) Digest {
	var d Digest
	if n := len(key) + len(separator) + len(canonical); n <= smallBytes {
		var buf [smallBytes]byte
		b := append(append(append(buf[:0], key...), separator[:]...), canonical...)
		sum := sha256.Sum256(b)
		copy(d[:], sum[:])
		return d
	}
	h := sha256.New()
	h.Write(key)
	h.Write(separator[:])
	h.Write(canonical)
	var sum [sha256.Size]byte
	copy(d[:], h.Sum(sum[:0]))
	return d
}

// smallBytes of a pair are hashed on the stack: most records are smaller.
const smallBytes = 4 << 10

func (d Digest) split() (hi, lo uint64) {
	return binary.BigEndian.Uint64(d[:8]), binary.BigEndian.Uint64(d[8:])
}

func join(hi, lo uint64) (d Digest) {
	binary.BigEndian.PutUint64(d[:8], hi)
	binary.BigEndian.PutUint64(d[8:], lo)
	return d
}

// Add returns d + o modulo 2^128.
func (d Digest) Add(o Digest) Digest {
	dh, dl := d.split()
	oh, ol := o.split()
	lo, carry := bits.Add64(dl, ol, 0)
	hi, _ := bits.Add64(dh, oh, carry)
	return join(hi, lo)
}

// Sub returns d - o modulo 2^128: it takes a record out that was added.
func (d Digest) Sub(o Digest) Digest {
	dh, dl := d.split()
	oh, ol := o.split()
	lo, borrow := bits.Sub64(dl, ol, 0)
	hi, _ := bits.Sub64(dh, oh, borrow)
	return join(hi, lo)
}

// IsZero reports whether d is the digest of no records.
func (d Digest) IsZero() bool { return d == Digest{} }

// Append appends digests to dst one after the other, as they travel.
func Append(dst []byte, digests ...Digest) []byte {
	for i := range digests {
		dst = append(dst, digests[i][:]...)
	}
	return dst
}

// Parse reads what Append wrote.
func Parse(b []byte) ([]Digest, error) {
	if len(b)%DigestBytes != 0 {
		return nil, fmt.Errorf("digests: %d bytes are no multiple of %d", len(b), DigestBytes)
	}
	out := make([]Digest, len(b)/DigestBytes)
	for i := range out {
		copy(out[i][:], b[i*DigestBytes:])
	}
	return out, nil
}

// ParseOne reads one digest; nothing at all is the zero Digest, "no record that counts".
func ParseOne(b []byte) (d Digest, err error) {
	if len(b) != 0 && len(b) != DigestBytes {
		return d, fmt.Errorf("digest: %d bytes, none or %d expected", len(b), DigestBytes)
	}
	copy(d[:], b)
	return d, nil
}

// Diff returns the positions at which a and b differ, ascending. What one of them lacks differs.
func Diff(a, b []Digest) []int {
	var out []int
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			out = append(out, i)
		}
	}
	return out
}
