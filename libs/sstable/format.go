package sstable

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/cespare/xxhash/v2"

	"github.com/pairdb/pairdb/libs/sstable/hashindex"
)

const (
	// FormatVersion is the version that the writer writes, and the newest that the reader reads.
	FormatVersion = 1

	magic = "PairDBst"

	headerBytes  = 32
	footerBytes  = 128
	trailerBytes = 5 // type byte and checksum behind each block

	// maxHandleBytes is the longest encoded handle: three uvarints of 64 bits.
	maxHandleBytes = 3 * binary.MaxVarintLen64

	// featureValueBlocks: long values are in blocks of their own behind the data block of their
	// keys; see values.go.
	featureValueBlocks = 1
	knownFeatures      = featureValueBlocks

	// MaxKeyBytes bounds an engine key.
	MaxKeyBytes = 1 << 20
	// MaxValueBytes bounds a value: as much as one frame of the commit log.
	MaxValueBytes = 64 << 20
	// maxRawBytes bounds what a compressed block may claim to expand to: the largest entry, and a
	// block that was nearly full before it.
	maxRawBytes = MaxValueBytes + MaxKeyBytes + maxBlockBytes + 1<<10
	// maxBlockBytes bounds WriterOptions.BlockBytes and IndexPartitionBytes.
	maxBlockBytes = 16 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum covers the payload and the type of a block, and the offset at which it starts. The offset
// is mixed in by exclusive or, which costs no second pass.
func checksum(payloadAndType []byte, offset uint64) uint32 {
	return crc32.Checksum(payloadAndType, castagnoli) ^ uint32(offset*0x9E3779B97F4A7C15>>32)
}

// handle says where a block is: its offset and the length of its payload, without the trailer.
type handle struct {
	offset, length uint64
	// values is how many bytes of value blocks follow a data block; 0 for every other block.
	values uint64
}

// append encodes the handle; the length of the value blocks is there only if there are any.
func (h handle) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, h.offset)
	dst = binary.AppendUvarint(dst, h.length)
	if h.values > 0 {
		dst = binary.AppendUvarint(dst, h.values)
	}
	return dst
}

// end is the offset behind the trailer.
func (h handle) end() uint64 { return h.offset + h.length + trailerBytes }

// groupEnd is the offset behind the value blocks of a data block.
func (h handle) groupEnd() uint64 { return h.end() + h.values }

// within reports whether the block lies in [from, to) of the file.
func (h handle) within(from, to uint64) bool {
	return h.offset >= from && h.offset <= to && h.length <= math.MaxUint32 && to-h.offset >= trailerBytes &&
		h.length <= to-h.offset-trailerBytes && h.values <= to-h.end()
}

func decodeHandle(b []byte) (handle, bool) {
	offset, n := binary.Uvarint(b)
	if n <= 0 {
		return handle{}, false
	}
	length, m := binary.Uvarint(b[n:])
	if m <= 0 {
		return handle{}, false
	}
	h := handle{offset: offset, length: length}
	if b = b[n+m:]; len(b) > 0 {
		values, n := binary.Uvarint(b)
		if n != len(b) || values == 0 {
			return handle{}, false
		}
		h.values = values
	}
	return h, true
}

// encodeHeader returns the header: magic, version u32, key id u32, 12 bytes of zero, checksum u32.
// Every version keeps this layout and the one of the last 24 bytes of a footer of 128, so that a
// damaged version number is never taken for a newer one.
func encodeHeader() []byte {
	b := make([]byte, headerBytes)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], FormatVersion)
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
	return b
}

// checkHeader returns what is wrong with a header, or "".
func checkHeader(b []byte) (what string, newer bool) {
	if string(b[:8]) != magic {
		return "not a table: bad header magic", false
	}
	if binary.LittleEndian.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli) {
		return "header checksum mismatch", false
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != FormatVersion {
		return versionProblem(v)
	}
	return featureProblem(binary.LittleEndian.Uint32(b[12:]), 0)
}

func versionProblem(v uint32) (what string, newer bool) {
	if v > FormatVersion {
		return fmt.Sprintf("format version %d is newer than %d, the newest this program reads", v, FormatVersion), true
	}
	return fmt.Sprintf("format version %d does not exist", v), false
}

func featureProblem(keyID, features uint32) (what string, newer bool) {
	if keyID != 0 {
		return fmt.Sprintf("encrypted with key %d, which this program cannot read", keyID), true
	}
	if unknown := features &^ knownFeatures; unknown != 0 {
		return fmt.Sprintf("needs features %#x, which this program does not have", unknown), true
	}
	return "", false
}

// footer is the fixed end of a file. Layout, little endian:
//
//	  0  index       offset u64, length u64
//	 16  filter      offset u64, length u64   (0, 0: none)
//	 32  ranges      offset u64, length u64   (0, 0: none)
//	 48  properties  offset u64, length u64
//	 64  data end    u64: offset behind the last data block
//	 72  size        u64: length of the file
//	 80  digest      u64
//	 88  levels      u32: 1 or 2 levels of index
//	 92  hash index  u32: its lines of 64 bytes; 0: none
//	 96  zero        8 bytes
//	104  features    u32: what a reader must know beyond the version; 1: value blocks
//	108  key id      u32: reserved for encryption, 0
//	112  version     u32
//	116  checksum    u32: CRC32C of everything in the footer before it
//	120  magic       8 bytes
type footer struct {
	index, filter, ranges, properties handle
	dataEnd, size, digest             uint64
	levels, features, hashLines       uint32
}

// hashIndex is where the hash index is: right behind the data, with up to 63 bytes in front of its lines
// that put these on cache lines.
func (f footer) hashIndex() handle {
	if f.hashLines == 0 {
		return handle{}
	}
	return handle{offset: f.dataEnd, length: f.hashPad() + uint64(f.hashLines)*hashindex.LineBytes}
}

func (f footer) hashPad() uint64 { return -f.dataEnd & (hashindex.LineBytes - 1) }

// behindData is where the parts behind data and hash index begin.
func (f footer) behindData() uint64 {
	if f.hashLines == 0 {
		return f.dataEnd
	}
	return f.hashIndex().end()
}

func (f footer) append(dst []byte) []byte {
	start := len(dst)
	for _, h := range []handle{f.index, f.filter, f.ranges, f.properties} {
		dst = binary.LittleEndian.AppendUint64(dst, h.offset)
		dst = binary.LittleEndian.AppendUint64(dst, h.length)
	}
	dst = binary.LittleEndian.AppendUint64(dst, f.dataEnd)
	dst = binary.LittleEndian.AppendUint64(dst, f.size)
	dst = binary.LittleEndian.AppendUint64(dst, f.digest)
	dst = binary.LittleEndian.AppendUint32(dst, f.levels)
	dst = binary.LittleEndian.AppendUint32(dst, f.hashLines)
	dst = append(dst, make([]byte, 8)...)
	dst = binary.LittleEndian.AppendUint32(dst, f.features)
	dst = append(dst, make([]byte, 4)...)
	dst = binary.LittleEndian.AppendUint32(dst, FormatVersion)
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
	return append(dst, magic...)
}

// digestTail feeds the part of the footer that the digest covers.
func (f footer) digestTail(d *xxhash.Digest) uint64 {
	f.digest = 0
	b := f.append(make([]byte, 0, footerBytes))
	_, _ = d.Write(b[:88+4])
	return d.Sum64()
}

// decodeFooter returns what is wrong, or "". size is the length of the file.
func decodeFooter(b []byte, size uint64) (f footer, what string, newer bool) {
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	if string(b[120:]) != magic {
		return f, "not a table, or its end is missing: bad footer magic", false
	}
	if u32(116) != crc32.Checksum(b[:116], castagnoli) {
		return f, "footer checksum mismatch", false
	}
	if v := u32(112); v != FormatVersion {
		what, newer = versionProblem(v)
		return f, what, newer
	}
	if what, newer = featureProblem(u32(108), u32(104)); what != "" {
		return f, what, newer
	}
	f.index = handle{offset: u64(0), length: u64(8)}
	f.filter = handle{offset: u64(16), length: u64(24)}
	f.ranges = handle{offset: u64(32), length: u64(40)}
	f.properties = handle{offset: u64(48), length: u64(56)}
	f.dataEnd, f.size, f.digest = u64(64), u64(72), u64(80)
	f.levels, f.hashLines, f.features = u32(88), u32(92), u32(104)
	if f.size != size {
		return f, fmt.Sprintf("file has %d bytes, its footer says %d", size, f.size), false
	}
	if f.levels != 1 && f.levels != 2 {
		return f, fmt.Sprintf("%d levels of index", f.levels), false
	}
	return f, f.layoutProblem(), false
}

// layoutProblem checks that the parts lie in the file in their order and without gaps, as far as
// the footer knows them.
func (f footer) layoutProblem() string {
	end := f.size - footerBytes
	if f.dataEnd < headerBytes || f.dataEnd > end {
		return "data end is outside of the file"
	}
	if f.hashLines > 0 && (f.features&featureValueBlocks == 0 || !f.hashIndex().within(f.dataEnd, end)) {
		return "hash index is not where it belongs"
	}
	at := f.behindData()
	gapAllowed := f.levels == 2 // the index partitions come first
	for _, p := range []struct {
		name     string
		h        handle
		optional bool
	}{{"filter", f.filter, true}, {"range deletes", f.ranges, true}, {"index", f.index, false}, {"properties", f.properties, false}} {
		if p.optional && p.h == (handle{}) {
			continue
		}
		if !p.h.within(at, end) || p.h.offset != at && !gapAllowed {
			return p.name + " block is not where it belongs"
		}
		gapAllowed = false
		at = p.h.end()
	}
	if at != end {
		return "gap before the footer"
	}
	return ""
}
