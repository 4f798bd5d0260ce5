package membership

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMalformed says that bytes are not an encoded map.
var ErrMalformed = errors.New("malformed member map")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// format is the first byte of an encoded map.
const format = 1

// Encode returns the encoding of a map. Equal maps have equal bytes. A map beyond the limits is
// ErrInvalid or ErrTooMany.
func Encode(m Map) ([]byte, error) {
	if len(m) > MaxMembers {
		return nil, fmt.Errorf("%w: %d, at most %d", ErrTooMany, len(m), MaxMembers)
	}
	const usual = 128 // bytes of a declaration
	b := make([]byte, 0, 4+usual*len(m))
	b = append(b, format)
	b = binary.AppendUvarint(b, uint64(len(m)))
	for _, d := range m.Sorted() {
		if err := d.Validate(); err != nil {
			return nil, err
		}
		b = d.append(b)
	}
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooMany, len(b), MaxBytes)
	}
	return b, nil
}

func (d Declaration) append(b []byte) []byte {
	b = appendText(b, d.NodeID)
	b = binary.AppendUvarint(b, d.Version)
	b = binary.AppendUvarint(b, uint64(d.State))
	b = appendText(b, d.Incarnation)
	b = appendText(b, d.GRPCAddr)
	b = appendText(b, d.Zone)
	b = binary.AppendUvarint(b, uint64(d.VirtualNodes))
	return binary.AppendUvarint(b, uint64(d.DeclaredAt))
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// Decode reads an encoded map. It copies what it keeps of b. ErrMalformed says what is wrong; what
// Decode accepts, Encode turns into the same bytes.
func Decode(b []byte) (Map, error) {
	if len(b) > MaxBytes {
		return nil, malformed("%d bytes, at most %d", len(b), MaxBytes)
	}
	if len(b) == 0 || b[0] != format {
		return nil, malformed("not of format %d", format)
	}
	r := reader{b: b[1:]}
	count := r.number(MaxMembers)
	m := Map{}
	previous := ""
	for range count {
		d := r.declaration()
		if r.err != nil {
			break
		}
		if err := d.Validate(); err != nil {
			return nil, malformed("%v", err)
		}
		if d.NodeID <= previous {
			return nil, malformed("%s after %s", d.NodeID, previous)
		}
		previous = d.NodeID
		m[d.NodeID] = d
	}
	if r.err == nil && len(r.b) > 0 {
		r.err = malformed("%d bytes behind the last member", len(r.b))
	}
	if r.err != nil {
		return nil, r.err
	}
	return m, nil
}

// reader takes fields off the front of b. After an error it returns zero values.
type reader struct {
	b   []byte
	err error
}

func (r *reader) declaration() Declaration {
	return Declaration{
		NodeID:       r.text(MaxNodeIDBytes),
		Version:      r.number(^uint64(0)),
		State:        State(r.number(uint64(Removed))),
		Incarnation:  r.text(MaxIncarnationBytes),
		GRPCAddr:     r.text(MaxAddrBytes),
		Zone:         r.text(MaxZoneBytes),
		VirtualNodes: int(r.number(MaxVirtualNodes)),
		DeclaredAt:   int64(r.number(1<<63 - 1)),
	}
}

// number takes a varint in its shortest form.
func (r *reader) number(limit uint64) uint64 {
	if r.err != nil {
		return 0
	}
	n, size := binary.Uvarint(r.b)
	switch {
	case size <= 0:
		r.err = malformed("it ends within a number")
	case size > 1 && r.b[size-1] == 0:
		r.err = malformed("a number is longer than it has to be")
	case n > limit:
		r.err = malformed("%d, at most %d", n, limit)
	}
	if r.err != nil {
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) text(maxBytes int) string {
	n := int(r.number(uint64(maxBytes)))
	if r.err == nil && n > len(r.b) {
		r.err = malformed("it ends within a text")
	}
	if r.err != nil {
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}
