package sstable

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// Compression is how a block is stored. Its values are part of the format.
type Compression uint8

const (
	// None stores blocks as they are.
	None Compression = 0
	// S2 is fast to pack and to unpack.
	S2 Compression = 1
	// Zstd packs tighter and costs about three times the time of S2 to unpack.
	Zstd Compression = 2
)

// String returns the name of the compression.
func (c Compression) String() string {
	switch c {
	case None:
		return "none"
	case S2:
		return "s2"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("compression(%d)", uint8(c))
}

// rawLenBytes is the length of the original, stored before the packed bytes, so that a reader
// checks it before it allocates.
const rawLenBytes = 4

// Encoders and decoders of zstd hold tables of some hundred KiB: they are shared by all tables.
var (
	zstdEncoders = sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
			zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(128<<10), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return e
	}}
	zstdDecoders = sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(maxRawBytes), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return d
	}}
)

// pack returns the stored form of raw, which may be in scratch, and says which compression it has.
// Raw itself is returned when packing saves less than 12 %: then reading it costs more than the
// space is worth.
func pack(scratch *[]byte, raw []byte, c Compression) ([]byte, Compression) {
	if c == None || len(raw) < 64 {
		return raw, None
	}
	dst := *scratch
	dst = binary.LittleEndian.AppendUint32(dst[:0], uint32(len(raw)))
	switch c {
	case S2:
		bound := rawLenBytes + s2.MaxEncodedLen(len(raw))
		if cap(dst) < bound {
			grown := make([]byte, rawLenBytes, bound)
			copy(grown, dst)
			dst = grown
		}
		packed := s2.Encode(dst[rawLenBytes:cap(dst)], raw)
		dst = dst[:rawLenBytes+len(packed)]
	case Zstd:
		e := zstdEncoders.Get().(*zstd.Encoder)
		dst = e.EncodeAll(raw, dst)
		zstdEncoders.Put(e)
	}
	*scratch = dst
	if len(dst) > len(raw)-len(raw)*12/100 {
		return raw, None
	}
	return dst, c
}

// rawLen returns the length of the original of a packed payload.
func rawLen(payload []byte) (int, bool) {
	if len(payload) < rawLenBytes {
		return 0, false
	}
	n := binary.LittleEndian.Uint32(payload)
	return int(n), n <= maxRawBytes
}

// unpack writes the original of payload into dst, whose length is rawLen of it.
func unpack(dst, payload []byte, c Compression) bool {
	packed := payload[rawLenBytes:]
	switch c {
	case S2:
		if n, err := s2.DecodedLen(packed); err != nil || n != len(dst) {
			return false
		}
		out, err := s2.Decode(dst, packed)
		return err == nil && len(out) == len(dst) && (len(dst) == 0 || &out[0] == &dst[0])
	case Zstd:
		d := zstdDecoders.Get().(*zstd.Decoder)
		defer zstdDecoders.Put(d)
		// Never more than the capacity: a frame that expands to more fails.
		out, err := d.DecodeAll(packed, dst[:0:len(dst)])
		return err == nil && len(out) == len(dst) && (len(dst) == 0 || &out[0] == &dst[0])
	}
	return false
}
