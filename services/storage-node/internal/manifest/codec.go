package manifest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/pairdb/pairdb/libs/ikey"
)

// An edit is its version, then fields: tag, length, body. A reader that meets an unknown tag skips
// the field if the tag is odd and refuses the file if it is even: a newer release uses an even tag
// for everything that an older one must not overlook.
const (
	editVersion = 1

	tagAdd        = 2
	tagDelete     = 4
	tagLogFloor   = 6
	tagNextFile   = 8
	tagLastSeq    = 10
	tagQuarantine = 12
	tagRelease    = 14
	tagNodeMeta   = 16
	tagSnapshot   = 18 // the edit is part of a whole state; body 1: the last part
)

// ErrUnknownFormat says that a newer release wrote the manifest.
var ErrUnknownFormat = errors.New("manifest of a newer format")

var errMalformed = errors.New("malformed edit")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errMalformed, fmt.Sprintf(format, args...))
}

// snapshotPart says which part of a whole state an edit is.
type snapshotPart uint8

const (
	notSnapshot snapshotPart = iota
	snapshotMore
	snapshotLast
)

// encode appends the edit to dst.
func (e *Edit) encode(dst []byte, part snapshotPart) []byte {
	dst = append(dst, editVersion)
	if part != notSnapshot {
		dst = appendField(dst, tagSnapshot, []byte{byte(part - snapshotMore)})
	}
	var body []byte
	for _, d := range e.Deleted {
		body = binary.AppendUvarint(body[:0], uint64(d.Level))
		body = binary.AppendUvarint(body, d.Num)
		dst = appendField(dst, tagDelete, body)
	}
	for _, a := range e.Added {
		body = a.Table.encode(binary.AppendUvarint(body[:0], uint64(a.Level)))
		dst = appendField(dst, tagAdd, body)
	}
	for _, num := range e.Quarantined {
		dst = appendUint(dst, tagQuarantine, num)
	}
	for _, num := range e.Released {
		dst = appendUint(dst, tagRelease, num)
	}
	if e.LogFloor != 0 {
		dst = appendUint(dst, tagLogFloor, e.LogFloor)
	}
	if e.NextFile != 0 {
		dst = appendUint(dst, tagNextFile, e.NextFile)
	}
	if e.LastSeq != 0 {
		dst = appendUint(dst, tagLastSeq, uint64(e.LastSeq))
	}
	for _, k := range slices.Sorted(maps.Keys(e.NodeMeta)) {
		body = appendBytes(body[:0], []byte(k))
		body = appendBytes(body, []byte(e.NodeMeta[k]))
		dst = appendField(dst, tagNodeMeta, body)
	}
	return dst
}

func appendField(dst []byte, tag uint64, body []byte) []byte {
	return appendBytes(binary.AppendUvarint(dst, tag), body)
}

func appendUint(dst []byte, tag, v uint64) []byte {
	var b [binary.MaxVarintLen64]byte
	return appendField(dst, tag, b[:binary.PutUvarint(b[:], v)])
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// Table flags.
const flagQuarantined = 1

func (t *Table) encode(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, t.Num)
	dst = append(dst, byte(t.Origin))
	var flags uint64
	if t.Quarantined {
		flags |= flagQuarantined
	}
	dst = binary.AppendUvarint(dst, flags)
	dst = binary.AppendUvarint(dst, t.Size)
	dst = binary.LittleEndian.AppendUint64(dst, t.Digest)
	for _, k := range []ikey.Key{t.Smallest, t.Largest} {
		dst = binary.AppendUvarint(dst, uint64(len(k.User)))
		dst = append(dst, k.User...)
		dst = binary.LittleEndian.AppendUint64(dst, uint64(k.Trailer))
	}
	for _, v := range t.numbers() {
		dst = binary.AppendUvarint(dst, *v)
	}
	return dst
}

// numbers lists the plain counts of a table in the order of the format.
func (t *Table) numbers() []*uint64 {
	return []*uint64{
		(*uint64)(&t.MinSeq), (*uint64)(&t.MaxSeq), &t.Entries, &t.Sets, &t.Merges, &t.Deletes,
		&t.RangeDeletes, &t.Tombstones, &t.RawKeyBytes, &t.RawValueBytes, &t.OldestCollectible,
	}
}

// cursor reads the primitives of the format. After a failure it yields zeros.
type cursor struct {
	b      []byte
	failed bool
}

func (c *cursor) fail() { c.b, c.failed = nil, true }

func (c *cursor) uint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail()
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.fail()
		return nil
	}
	b := c.b[:n:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) bytes() []byte { return c.take(c.uint()) }

func (c *cursor) fixed64() uint64 {
	if b := c.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) key() ikey.Key {
	user := append([]byte{}, c.bytes()...)
	return ikey.Key{User: user, Trailer: ikey.Trailer(c.fixed64())}
}

// done reports whether all was read, without a failure.
func (c *cursor) done() bool { return !c.failed && len(c.b) == 0 }

// DecodeEdit reads an encoded edit; it keeps nothing of b.
func DecodeEdit(b []byte) (*Edit, error) {
	e, _, err := decodeEdit(b)
	return e, err
}

func decodeEdit(b []byte) (*Edit, snapshotPart, error) {
	if len(b) == 0 {
		return nil, 0, malformed("empty")
	}
	if b[0] != editVersion {
		return nil, 0, fmt.Errorf("%w: edit version %d, %d is known", ErrUnknownFormat, b[0], editVersion)
	}
	if len(b) > maxEditBytes {
		return nil, 0, malformed("%d bytes, the limit is %d", len(b), maxEditBytes)
	}
	e, part, c := &Edit{}, notSnapshot, cursor{b: b[1:]}
	for len(c.b) > 0 {
		tag := c.uint()
		body := cursor{b: c.bytes()}
		if c.failed {
			return nil, 0, malformed("field with tag %d is cut off", tag)
		}
		if tag == tagSnapshot {
			part = snapshotMore + snapshotPart(min(body.uint(), 2))
			if part > snapshotLast || !body.done() {
				return nil, 0, malformed("snapshot mark")
			}
			continue
		}
		if err := e.decodeField(tag, &body); err != nil {
			return nil, 0, err
		}
	}
	return e, part, nil
}

func (e *Edit) decodeField(tag uint64, c *cursor) error {
	switch tag {
	case tagAdd:
		level := c.uint()
		t, err := decodeTable(c)
		if err != nil {
			return err
		}
		if level >= NumLevels {
			return malformed("table %06d at level %d", t.Num, level)
		}
		e.Added = append(e.Added, Added{Level: int(level), Table: t})
		return nil
	case tagDelete:
		level, num := c.uint(), c.uint()
		if level >= NumLevels {
			return malformed("table %06d at level %d", num, level)
		}
		e.Deleted = append(e.Deleted, Deleted{Level: int(level), Num: num})
	case tagQuarantine:
		e.Quarantined = append(e.Quarantined, c.uint())
	case tagRelease:
		e.Released = append(e.Released, c.uint())
	case tagLogFloor:
		e.LogFloor = c.uint()
	case tagNextFile:
		e.NextFile = c.uint()
	case tagLastSeq:
		e.LastSeq = ikey.Seq(c.uint())
		if e.LastSeq >= ikey.MaxSeq {
			return malformed("last sequence %d", e.LastSeq)
		}
	case tagNodeMeta:
		k, v := string(c.bytes()), string(c.bytes())
		if e.NodeMeta == nil {
			e.NodeMeta = make(map[string]string)
		}
		e.NodeMeta[k] = v
		if err := checkNodeMeta(e.NodeMeta); err != nil {
			return malformed("%v", err)
		}
	default:
		if tag%2 == 1 {
			return nil
		}
		return fmt.Errorf("%w: edit with the unknown field %d", ErrUnknownFormat, tag)
	}
	if !c.done() {
		return malformed("field with tag %d", tag)
	}
	return nil
}

func decodeTable(c *cursor) (*Table, error) {
	t := &Table{Num: c.uint()}
	if o := c.take(1); o != nil {
		t.Origin = Origin(o[0])
	}
	flags := c.uint()
	t.Size, t.Digest = c.uint(), c.fixed64()
	t.Smallest, t.Largest = c.key(), c.key()
	for _, v := range t.numbers() {
		*v = c.uint()
	}
	if c.failed {
		return nil, malformed("table %06d is cut off", t.Num)
	}
	if flags&^flagQuarantined != 0 {
		return nil, fmt.Errorf("%w: table %06d with the flags %#x", ErrUnknownFormat, t.Num, flags)
	}
	t.Quarantined = flags&flagQuarantined != 0
	// What newer releases add to a table comes behind, as fields with the same rule.
	for len(c.b) > 0 {
		tag := c.uint()
		c.bytes()
		if c.failed {
			return nil, malformed("table %06d is cut off", t.Num)
		}
		if tag%2 == 0 {
			return nil, fmt.Errorf("%w: table %06d with the unknown field %d", ErrUnknownFormat, t.Num, tag)
		}
	}
	if err := t.check(); err != nil {
		return nil, malformed("table %06d: %v", t.Num, err)
	}
	if t.Num >= math.MaxInt64 {
		return nil, malformed("table number %d", t.Num)
	}
	return t, nil
}

func checkNodeMeta(m map[string]string) error {
	if len(m) > maxNodeMeta {
		return fmt.Errorf("more than %d node facts", maxNodeMeta)
	}
	for k, v := range m {
		if len(k) == 0 || len(k) > maxNodeMetaKey || len(v) > maxNodeMetaValue {
			return fmt.Errorf("node fact %.40q: key of %d bytes (1–%d), value of %d (at most %d)", k, len(k), maxNodeMetaKey, len(v), maxNodeMetaValue)
		}
	}
	return nil
}
