package sstable

import (
	"encoding/binary"
	"errors"

	"github.com/pairdb/pairdb/libs/ikey"
)

// Meta is what is known of a table without reading its data.
type Meta struct {
	// Size is the length of the file in bytes. Digest is a hash over all its checksums and its
	// footer: tables with equal size and digest have equal bytes, but for an accident of 2^-64.
	Size, Digest uint64
	// Smallest and Largest bound entries and range deletes, both inclusive. The upper bound of a
	// range delete is RangeDeleteBound of its end, which sorts before every entry of that key.
	Smallest, Largest ikey.Key
	// MinSeq and MaxSeq bound the sequences of entries and range deletes.
	MinSeq, MaxSeq ikey.Seq
	// Entries counts point entries: Sets + Merges + Deletes. RangeDeletes come on top.
	Entries, Sets, Merges, Deletes, RangeDeletes uint64
	// Tombstones counts the records that WriterOptions.Inspect called collectible some day, and
	// OldestCollectible is the smallest time it returned, 0 for none.
	Tombstones, OldestCollectible uint64
	// RawKeyBytes and RawValueBytes sum the engine keys and the values before compression.
	RawKeyBytes, RawValueBytes uint64
}

// RangeDeleteBound returns the key that bounds a range delete with this (exclusive) end in
// Meta.Largest.
func RangeDeleteBound(end []byte) ikey.Key {
	return ikey.Make(end, ikey.MaxSeq, ikey.KindRangeDelete)
}

// IsExclusive reports whether k is a RangeDeleteBound: no entry of k.User is in the table.
func IsExclusive(k ikey.Key) bool {
	return k.Trailer == ikey.MakeTrailer(ikey.MaxSeq, ikey.KindRangeDelete)
}

// properties is the content of the properties block: Meta without size and digest, and how the
// table was made. Layout: records of id uvarint, length uvarint, payload, with ascending ids.
// Numbers are uvarints, keys are encoded internal keys. Unknown ids are skipped: what a reader must
// not skip is a feature in the footer.
type properties struct {
	meta       Meta
	dataBlocks uint64
	partitions uint64
	filterKeys uint64
	blockBytes uint64
	packing    uint64 // Compression
	filterBits uint64
}

const (
	propSmallest = 13
	propLargest  = 14
)

// numbers lists the numeric properties with their ids, which are part of the format.
func (p *properties) numbers() []struct {
	id uint64
	at *uint64
} {
	m := &p.meta
	return []struct {
		id uint64
		at *uint64
	}{
		{1, &m.Entries}, {2, &m.Sets}, {3, &m.Merges}, {4, &m.Deletes}, {5, &m.RangeDeletes},
		{6, &m.Tombstones}, {7, &m.OldestCollectible}, {8, &m.RawKeyBytes}, {9, &m.RawValueBytes},
		{10, (*uint64)(&m.MinSeq)}, {11, (*uint64)(&m.MaxSeq)}, {12, &p.dataBlocks},
		// 13 and 14 are the bounds.
		{15, &p.partitions}, {16, &p.filterKeys}, {17, &p.blockBytes}, {18, &p.packing}, {19, &p.filterBits},
	}
}

func (p *properties) append(dst []byte) []byte {
	var num [binary.MaxVarintLen64]byte
	record := func(id uint64, payload []byte) {
		dst = binary.AppendUvarint(dst, id)
		dst = binary.AppendUvarint(dst, uint64(len(payload)))
		dst = append(dst, payload...)
	}
	boundsDone := false
	for _, n := range p.numbers() {
		if n.id > propLargest && !boundsDone {
			record(propSmallest, p.meta.Smallest.Append(nil))
			record(propLargest, p.meta.Largest.Append(nil))
			boundsDone = true
		}
		record(n.id, binary.AppendUvarint(num[:0], *n.at))
	}
	return dst
}

var errProperties = errors.New("malformed properties")

// decodeProperties reads what append wrote; the bounds alias b.
func decodeProperties(b []byte) (p properties, err error) {
	fields := map[uint64]*uint64{}
	for _, n := range p.numbers() {
		fields[n.id] = n.at
	}
	bounds := map[uint64]*ikey.Key{propSmallest: &p.meta.Smallest, propLargest: &p.meta.Largest}
	last := uint64(0)
	for len(b) > 0 {
		id, n := binary.Uvarint(b)
		if n <= 0 || id <= last {
			return p, errProperties
		}
		b = b[n:]
		length, n := binary.Uvarint(b)
		if n <= 0 || length > uint64(len(b)-n) {
			return p, errProperties
		}
		payload := b[n : n+int(length) : n+int(length)]
		b = b[n+int(length):]
		last = id
		if at := fields[id]; at != nil {
			v, m := binary.Uvarint(payload)
			if m <= 0 || m != len(payload) {
				return p, errProperties
			}
			*at = v
			delete(fields, id)
		} else if k := bounds[id]; k != nil {
			if *k, err = ikey.Decode(payload); err != nil {
				return p, errProperties
			}
			delete(bounds, id)
		}
	}
	if len(fields) > 0 || len(bounds) > 0 || !p.plausible() {
		return p, errProperties
	}
	return p, nil
}

// plausible checks what holds for every table.
func (p *properties) plausible() bool {
	m := &p.meta
	if m.Sets > m.Entries || m.Merges > m.Entries || m.Deletes > m.Entries || m.Sets+m.Merges+m.Deletes != m.Entries {
		return false
	}
	if m.MinSeq > m.MaxSeq || m.MaxSeq > ikey.MaxSeq || m.Tombstones > m.Entries {
		return false
	}
	if m.Entries == 0 && m.RangeDeletes == 0 {
		return false
	}
	return ikey.Compare(m.Smallest, m.Largest) <= 0
}
