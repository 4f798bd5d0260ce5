// Package ikey is the internal key of the storage engine: an engine key, a sequence number and a
// kind, and the one order in which everything is sorted. It never touches a value.
//
// An engine key is
//
//	tenant ‖ 0x00 ‖ user key
//
// Neither part may contain 0x00, so two tenants never share an engine key and the keys of a tenant
// are contiguous. The encoded form appends a trailer of eight bytes, little endian:
//
//	sequence (56 bits) ‖ kind (8 bits, lowest)
//
// Order: engine key ascending in byte order, then trailer descending, so that the newest version
// of a key comes first.
package ikey

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// Seq is the sequence number of a write: it orders all writes of one node. 56 bits are used.
type Seq uint64

// MaxSeq is larger than every sequence that is ever assigned.
const MaxSeq Seq = 1<<56 - 1

// Kind says what an entry does to its key. Its values are part of the file formats.
type Kind uint8

const (
	// KindDelete removes the key physically: ownership clean-up, dropped tenants.
	KindDelete Kind = 0
	// KindSet is the complete state of the key; it shadows everything older.
	KindSet Kind = 1
	// KindMerge is a fragment that must be joined with what is older.
	KindMerge Kind = 2
	// KindRangeDelete removes every older entry in [key, value). It lives in batches, the commit
	// log and the range-delete block of a table, never among point entries.
	KindRangeDelete Kind = 3
	// KindIngest marks in the commit log where tables were ingested. Never in tables.
	KindIngest Kind = 4

	// kindMax sorts before every real kind of the same sequence, for searches.
	kindMax Kind = 255
)

// String returns the name of the kind as the documents write it.
func (k Kind) String() string {
	switch k {
	case KindDelete:
		return "DELETE"
	case KindSet:
		return "SET"
	case KindMerge:
		return "MERGE"
	case KindRangeDelete:
		return "RANGEDEL"
	case KindIngest:
		return "INGEST"
	}
	return fmt.Sprintf("KIND(%d)", uint8(k))
}

// Point reports whether entries of this kind stand among the point entries of a table.
func (k Kind) Point() bool { return k <= KindMerge }

// Trailer packs a sequence and a kind.
type Trailer uint64

// TrailerLen is the encoded length of a trailer in bytes.
const TrailerLen = 8

// MakeTrailer packs seq and kind.
func MakeTrailer(seq Seq, kind Kind) Trailer { return Trailer(uint64(seq)<<8 | uint64(kind)) }

// Seq returns the sequence.
func (t Trailer) Seq() Seq { return Seq(t >> 8) }

// Kind returns the kind.
func (t Trailer) Kind() Kind { return Kind(t) }

// Key is an internal key. User is the engine key; whoever hands out a Key says how long User is
// valid.
type Key struct {
	User    []byte
	Trailer Trailer
}

// Make returns the key of one entry. It keeps user.
func Make(user []byte, seq Seq, kind Kind) Key {
	return Key{User: user, Trailer: MakeTrailer(seq, kind)}
}

// Search returns the key that sorts before every entry of user with a sequence of at most seq, and
// after every one with a larger sequence.
func Search(user []byte, seq Seq) Key { return Make(user, seq, kindMax) }

// Seq returns the sequence of the key.
func (k Key) Seq() Seq { return k.Trailer.Seq() }

// Kind returns the kind of the key.
func (k Key) Kind() Kind { return k.Trailer.Kind() }

// Compare orders internal keys: -1, 0 or 1.
func Compare(a, b Key) int {
	if c := bytes.Compare(a.User, b.User); c != 0 {
		return c
	}
	switch {
	case a.Trailer > b.Trailer:
		return -1
	case a.Trailer < b.Trailer:
		return 1
	}
	return 0
}

// Append appends the encoded key to dst.
func (k Key) Append(dst []byte) []byte {
	dst = append(dst, k.User...)
	return binary.LittleEndian.AppendUint64(dst, uint64(k.Trailer))
}

// Clone returns a key with its own copy of User.
func (k Key) Clone() Key { return Key{User: bytes.Clone(k.User), Trailer: k.Trailer} }

// String prints the key for people: escaped engine key, sequence, kind.
func (k Key) String() string {
	return fmt.Sprintf("%q#%d,%s", k.User, k.Seq(), k.Kind())
}

// Redacted prints the key for logs and for errors, which may get there: like String, but with the hash of
// the key instead of the key.
func (k Key) Redacted() string {
	return fmt.Sprintf("%s#%d,%s", Hash(k.User), k.Seq(), k.Kind())
}

// hashDigits of a SHA-256 tell a million keys apart with a probability of 1 to 10⁷ that two share them.
const hashDigits = 16

// KeyHash returns how logs, errors and lists name the key of a tenant without showing it: the first 16
// hexadecimal digits of its SHA-256.
func KeyHash(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:hashDigits/2])
}

// Hash is KeyHash for the user key in an engine key. What is no engine key is hashed as a whole.
func Hash(user []byte) string {
	if _, key, err := SplitEngineKey(user); err == nil {
		user = key
	}
	return KeyHash(string(user))
}

// ErrMalformed says that bytes are not an encoded key, or a pair not an engine key.
var ErrMalformed = errors.New("malformed key")

// Decode splits an encoded key. User aliases b.
func Decode(b []byte) (Key, error) {
	if len(b) < TrailerLen {
		return Key{}, fmt.Errorf("%w: %d bytes, at least %d expected", ErrMalformed, len(b), TrailerLen)
	}
	n := len(b) - TrailerLen
	return Key{User: b[:n:n], Trailer: Trailer(binary.LittleEndian.Uint64(b[n:]))}, nil
}

// Separator is the byte between tenant and user key.
const Separator = 0x00

// AppendEngineKey appends tenant ‖ 0x00 ‖ key to dst. The caller has validated both: neither may
// contain 0x00.
func AppendEngineKey(dst []byte, tenant, key string) []byte {
	dst = append(dst, tenant...)
	dst = append(dst, Separator)
	return append(dst, key...)
}

// SplitEngineKey returns the tenant and the user key of an engine key; both alias user.
func SplitEngineKey(user []byte) (tenant, key []byte, err error) {
	i := bytes.IndexByte(user, Separator)
	if i < 0 {
		return nil, nil, fmt.Errorf("%w: an engine key of %d bytes has no separator", ErrMalformed, len(user))
	}
	return user[:i:i], user[i+1:], nil
}

// TenantBounds returns the half-open range of engine keys of a tenant.
func TenantBounds(tenant string) (start, end []byte) {
	start = append([]byte(tenant), Separator)
	end = append([]byte(tenant), Separator+1)
	return start, end
}

// RangeDelete removes every entry with Start <= engine key < End and a sequence smaller than Seq.
type RangeDelete struct {
	Start, End []byte
	Seq        Seq
}

// Covers reports whether d removes an entry of user with sequence seq for a reader at snapshot
// readSeq.
func (d RangeDelete) Covers(user []byte, seq, readSeq Seq) bool {
	return d.Seq <= readSeq && seq < d.Seq && bytes.Compare(d.Start, user) <= 0 && bytes.Compare(user, d.End) < 0
}
