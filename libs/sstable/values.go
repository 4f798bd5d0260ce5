package sstable

import (
	"bytes"
	"encoding/binary"
	"runtime/debug"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable/hashindex"
)

// A table whose footer has featureValueBlocks keeps values of at least WriterOptions.ValueBlockBytes
// in blocks of their own, packed one by one, behind the data block that has their keys:
//
//	data block   entries; the value of each is a reference
//	value block  of the first entry that has one
//	value block  of the next, and so on without gaps
//
// So a point read unpacks one value and not all values beside it, data blocks hold a hundred keys
// and stay in the cache, and a merge copies values as they are stored. A value block says whose value
// it is, so a read that knows where it is needs no data block:
//
//	key length  uvarint
//	key         engine key
//	sequence    uvarint
//	value       the rest; the compression of the block is that of the value alone
//
// Where it is says the hash index: it has every key with one version in the table, a Set in a value
// block, but for some that found no room.
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
	return r.readValue(v.block(h), scratch)
}

// readValue reads a value block and returns the value in scratch[:0], which grows if it must.
func (r *Reader) readValue(h handle, scratch []byte) ([]byte, error) {
	if m := r.mapped(); m != nil {
		return r.mappedValue(m, h, scratch)
	}
	n := int(h.length) + trailerBytes
	p := readBuffers.Get().(*[]byte)
	if cap(*p) < n {
		*p = make([]byte, n)
	}
	b := (*p)[:n]
	out, err := []byte(nil), r.readAt(b, h.offset)
	if err == nil {
		out, err = r.openValue(h, b, scratch)
	}
	if cap(*p) <= maxPooledBytes {
		readBuffers.Put(p)
	}
	return out, err
}

// openValue checks b, the bytes of a value block, and returns the value in scratch[:0], which grows if
// it must.
func (r *Reader) openValue(h handle, b, scratch []byte) ([]byte, error) {
	if Compression(b[h.length]) == None {
		// Copied first: what is checked is what is handed out.
		scratch = append(scratch[:0], b...)
		payload, _, err := r.stored(h, scratch)
		if err != nil {
			return nil, err
		}
		_, _, value, ok := splitValue(payload)
		if !ok {
			return nil, r.malformed(h.offset)
		}
		return scratch[:copy(scratch, value)], nil
	}
	payload, c, err := r.stored(h, b)
	if err != nil {
		return nil, err
	}
	_, _, packed, ok := splitValue(payload)
	if !ok {
		return nil, r.malformed(h.offset)
	}
	return r.unpackBlock(h, packed, c, &scratch)
}

func appendValueHeader(dst []byte, k ikey.Key) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(k.User)))
	dst = append(dst, k.User...)
	return binary.AppendUvarint(dst, uint64(k.Seq()))
}

// splitValue splits the payload of a value block.
func splitValue(b []byte) (user []byte, seq ikey.Seq, value []byte, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, 0, nil, false
	}
	user, b = b[w:w+int(n)], b[w+int(n):]
	s, w := binary.Uvarint(b)
	if w <= 0 || s > uint64(ikey.MaxSeq) {
		return nil, 0, nil, false
	}
	return user, ikey.Seq(s), b[w:], true
}

// probe looks a key up in the hash index of the mapped file. It reports ok if that answers: then the
// table has one version of the key, a Set with sequence seq, and value is in scratch[:0] unless
// it is newer than at. Not ok says nothing: whoever asks searches the index. The bytes of the hash
// index need no checksum for that; those of the value are checked.
func (r *Reader) probe(m *mapped, user []byte, hash uint64, at ikey.Seq, scratch []byte) (value []byte, seq ikey.Seq, ok bool) {
	var fault error
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer r.recoverFault(r.foot.hashIndex(), &fault) // it returns with ok == false
	index, file := r.foot.hashIndex(), m.Bytes()
	found := hashindex.Find(file[index.offset+r.foot.hashPad():index.offset+index.length], hash)
	for _, place := range found.All() {
		h := handle{offset: uint64(place.Offset), length: uint64(place.Length)}
		if !h.within(headerBytes, r.foot.dataEnd) {
			continue
		}
		b := file[h.offset:h.end()]
		if key, _, _, ok := splitValue(b[:h.length]); !ok || !bytes.Equal(key, user) {
			continue
		}
		payload, c, err := r.stored(h, b)
		if err != nil {
			continue
		}
		_, seq, packed, _ := splitValue(payload)
		if seq > at {
			return nil, seq, true
		}
		if c == None {
			value = append(scratch[:0], packed...)
		} else if value, err = r.unpackBlock(h, packed, c, &scratch); err != nil {
			continue
		}
		return value, seq, true
	}
	return nil, 0, false
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
	payload, packing, err := r.stored(v.block(h), b)
	if err != nil {
		return s, err
	}
	_, _, value, ok := splitValue(payload)
	if !ok {
		return s, r.malformed(h.offset)
	}
	s.payload, s.packing = value, packing
	s.raw = len(s.payload)
	if s.packing != None {
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
