package workload

import (
	"encoding/binary"
	"fmt"
)

// KeyBytes is the length of every key: a tenant, the separator, and a number that orders them.
const KeyBytes = 24

// keyPrefix is the tenant of all keys with the separator of an engine key, and what pads them.
const keyPrefix = "bench\x00user/key-"

// slots is the distance between the numbers of neighbouring keys of a data set: inserted keys and
// keys that are never there lie between.
const slots = 64

// Data is a data set: Count keys and their values of ValueBytes, loaded first, then inserted ones.
// It is immutable.
type Data struct {
	Count      uint64
	ValueBytes int
}

// spread takes the insertions apart: it has no common factor with any Count that is used, so that i →
// i·spread mod Count is a permutation.
const spread = 2_654_435_761 // a prime

// Key writes the key of index i to dst[:0]. Indices below Count are in key order. Later ones are
// inserted keys, which lie all over the set, as the hashed keys of YCSB do.
func (d Data) Key(dst []byte, i uint64) []byte {
	if i < d.Count {
		return appendKey(dst, i*slots)
	}
	j := i - d.Count
	return appendKey(dst, (j*spread%d.Count)*slots+1+j/d.Count%(slots/2-1))
}

// Missing writes a key that is never there to dst[:0], beside that of index i: the order of keys
// gives an engine no hint.
func (d Data) Missing(dst []byte, i uint64) []byte { return appendKey(dst, i%d.Count*slots+slots/2) }

func appendKey(dst []byte, n uint64) []byte {
	dst = append(dst[:0], keyPrefix...)
	var digits [KeyBytes - len(keyPrefix)]byte // base 250: no zero byte, which ends a tenant
	for i := len(digits) - 1; i >= 0; i-- {
		digits[i] = byte(n%250) + 1
		n /= 250
	}
	return append(dst, digits[:]...)
}

// Pattern of a value behind its header, which is the index of the key and the version of the value: randomRun bytes that don't compress, then textRun that do.
// Together they compress to about 55 % with S2, as records with names and numbers do.
const (
	randomRun = 64
	textRun   = 64
)

const text = `,"status":"active","region":"eu-central-1","currency":"EUR","amount":`

// Value writes the value of index i, written for the version-th time, to dst[:0]; it is ValueBytes
// long.
func (d Data) Value(dst []byte, i, version uint64) []byte {
	dst = binary.LittleEndian.AppendUint64(dst[:0], i)
	dst = binary.LittleEndian.AppendUint64(dst, version)
	state := mix(i ^ mix(version))
	for len(dst) < d.ValueBytes {
		for k := 0; k < randomRun/8; k++ {
			state += 0x9e3779b97f4a7c15
			dst = binary.LittleEndian.AppendUint64(dst, mix(state))
		}
		dst = append(dst, text[:textRun]...)
	}
	return dst[:d.ValueBytes]
}

// CheckHeader returns an error unless value has the length and the index of i: the cheap check.
func (d Data) CheckHeader(value []byte, i uint64) error {
	if len(value) != d.ValueBytes {
		return fmt.Errorf("wrong read: the value of key %d has %d bytes, %d expected", i, len(value), d.ValueBytes)
	}
	if got := binary.LittleEndian.Uint64(value); got != i {
		return fmt.Errorf("wrong read: the value of key %d is that of key %d", i, got)
	}
	return nil
}

// Check returns an error unless value is, to the last byte, what Value makes of i and some version.
// It needs scratch memory, which it returns.
func (d Data) Check(value []byte, i uint64, scratch []byte) ([]byte, error) {
	if err := d.CheckHeader(value, i); err != nil {
		return scratch, err
	}
	scratch = d.Value(scratch, i, binary.LittleEndian.Uint64(value[8:]))
	for at := range value {
		if value[at] != scratch[at] {
			return scratch, fmt.Errorf("wrong read: the value of key %d differs from what was written at byte %d", i, at)
		}
	}
	return scratch, nil
}

// ScanDigest returns the sum of the indices of n neighbouring keys from index i on, and of the lengths
// of their keys and values: the digest that engines.Scanned makes of a scan without insertions.
func (d Data) ScanDigest(i uint64, n int) uint64 {
	u := uint64(n)
	return i*u + u*(u-1)/2 + u*uint64(KeyBytes+d.ValueBytes)
}

// mix is the finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection that scatters.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// Random is a source of numbers for one goroutine: splitmix64, which costs a nanosecond.
type Random struct{ state uint64 }

// NewRandom returns the source of a seed.
func NewRandom(seed uint64) *Random { return &Random{state: mix(seed + 1)} }

// Next returns 64 random bits.
func (r *Random) Next() uint64 {
	r.state += 0x9e3779b97f4a7c15
	return mix(r.state)
}

// Below returns a number in [0, n).
func (r *Random) Below(n uint64) uint64 { return r.Next() % n } // the bias is below n/2⁶⁴

// Float returns a number in [0, 1).
func (r *Random) Float() float64 { return float64(r.Next()>>11) / (1 << 53) }
