package sstable

import "encoding/binary"

// A table whose footer has featureValueBlocks keeps values of at least WriterOptions.ValueBlockBytes
// in blocks of their own, packed one by one, behind the data block that has their keys:
//
//	data block   entries; the value of each is a reference
//	value block  of the first entry that has one
//	value block  of the next, and so on without gaps
//
// So a point read unpacks one value and not all values beside it, data blocks hold a hundred keys
// and stay in the cache, and a merge copies values as they are stored.
//
// The value of an entry in a data block is
//
//	tag     u8: refApart, refPlain
//	offset  uvarint: of the value block, from the end of the data block     with refApart
//	length  uvarint: of its payload, without the trailer                    with refApart
//	value   the rest                                                        without refApart
const (
	// refApart: the value is in a value block.
	refApart = 1
	// refPlain: WriterOptions.Inspect was asked and said that the value is never collectible.
	refPlain = 2

	// maxRefBytes is the longest reference: a tag and two numbers of 32 bits.
	maxRefBytes = 1 + 2*5

	// maxGroupBytes ends a data block when its value blocks have as many bytes: a scan holds them
	// in memory at once, and one value beyond.
	maxGroupBytes = 256 << 10
)

// ref is a decoded reference.
type ref struct {
	apart, plain   bool
	offset, length uint64
	inline         []byte
}

func appendRef(dst []byte, offset, length int, plain bool) []byte {
	tag := byte(refApart)
	if plain {
		tag |= refPlain
	}
	dst = append(dst, tag)
	dst = binary.AppendUvarint(dst, uint64(offset))
	return binary.AppendUvarint(dst, uint64(length))
}

// decodeRef splits the value of an entry. ok is false if it is malformed or points out of the value
// blocks of h.
func decodeRef(h handle, b []byte) (r ref, ok bool) {
	if len(b) == 0 || b[0]&^(refApart|refPlain) != 0 {
		return r, false
	}
	r.apart, r.plain = b[0]&refApart != 0, b[0]&refPlain != 0
	b = b[1:]
	if !r.apart {
		r.inline = b
		return r, true
	}
	var n, m int
	r.offset, n = binary.Uvarint(b)
	if n <= 0 {
		return r, false
	}
	r.length, m = binary.Uvarint(b[n:])
	if m <= 0 || n+m != len(b) {
		return r, false
	}
	return r, r.offset <= h.values && h.values-r.offset >= trailerBytes && r.length <= h.values-r.offset-trailerBytes
}

// block returns the handle of the value block.
func (r ref) block(h handle) handle { return handle{offset: h.end() + r.offset, length: r.length} }

// separates reports whether the table has value blocks.
func (r *Reader) separates() bool { return r.foot.features&featureValueBlocks != 0 }

// value returns the value of an entry of data block h. It aliases the entry, or is written to
// scratch[:0], which grows if it must.
func (r *Reader) value(h handle, entry, scratch []byte) ([]byte, error) {
	if !r.separates() {
		return entry, nil
	}
	v, ok := decodeRef(h, entry)
	if !ok {
		return nil, r.malformed(h.offset)
	}
	if !v.apart {
		return v.inline, nil
	}
	return r.readInto(v.block(h), scratch)
}

// Stored is a value as it is in a table, for a copy into another one.
type Stored struct {
	payload []byte
	packing Compression
	raw     int // length of the value
	plain   bool
}

// storedValue returns a value of data block h as it is in the file; b are the bytes of its value
// block.
func (r *Reader) storedValue(h handle, v ref, b []byte) (s Stored, err error) {
	s.plain = v.plain
	s.payload, s.packing, err = r.stored(v.block(h), b)
	if err != nil {
		return s, err
	}
	s.raw = len(s.payload)
	if s.packing != None {
		var ok bool
		if s.raw, ok = rawLen(s.payload); !ok {
			return s, r.corrupt(h.offset, "packed value has a bad length")
		}
	}
	return s, nil
}

// Clone returns a copy in memory of its own: that of scratch, if it is large enough.
func (s Stored) Clone(scratch []byte) Stored {
	s.payload = append(scratch[:0], s.payload...)
	return s
}

// Bytes returns the memory of the value, to be used again for Clone.
func (s Stored) Bytes() []byte { return s.payload }

// Takes reports whether AddStored of a writer with these options writes s as Add would write the
// value: it is packed in the same way, long enough for a value block, and Inspect said that it is
// never collectible, so nobody has to look into it.
func (o WriterOptions) Takes(s Stored) bool {
	return o.ValueBlockBytes > 0 && s.raw >= o.ValueBlockBytes && s.packing == o.Compression && (s.plain || o.Inspect == nil)
}
