// Package record frames payloads for append-only files, so that a reader can tell a torn tail from
// damage. It never interprets a payload and never writes to a disk.
//
// A file of frames is
//
//	frame ‖ frame ‖ …  [‖ zeros, or bytes of an earlier use of the file]
//
// and a frame is, little endian,
//
//	offset  bytes
//	0       4      CRC32C of bytes 4 to 28 and, if the owner uses positions, of the frame's position
//	4       4      CRC32C of the payload
//	8       4      length of the payload
//	12      4      epoch of the file: frames of another epoch are not there
//	16      8      synced: how many bytes of the file were durable when the frame was written
//	24      1      type
//	25      3      zero
//	28      n      payload
//
// Unsynced bytes may reach a disk in any order, so the end of a file after a crash may hold anything.
// Only what lies before a synced offset that a later header proves must be whole: an invalid frame
// before it is damage, an invalid frame elsewhere ends the file. The header has a checksum of its own,
// so that it proves something even where its payload was cut off; the position in that checksum keeps
// a value that imitates a frame, or a frame that was moved, from being taken for one.
package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	// HeaderBytes is the length of a frame without its payload.
	HeaderBytes = 28
	// MaxPayloadBytes bounds a payload; a longer one is not a frame.
	MaxPayloadBytes = 64 << 20
)

// Header is what a frame says beside its payload.
type Header struct {
	// Epoch of the file: its owner takes another one whenever it uses a file anew.
	Epoch uint32
	// Synced is how many bytes of the file were known to be durable.
	Synced uint64
	// Type is the owner's.
	Type uint8
	// Length of the payload in bytes. Append sets it.
	Length uint32
	// Position is the offset of the frame in its file where the owner uses positions, else 0.
	Position uint64
}

var (
	// ErrTorn says that the file ends in a frame that was not written whole. It was never durable.
	ErrTorn = errors.New("torn tail")
	// ErrCorrupt says that bytes that were durable are damaged.
	ErrCorrupt = errors.New("damaged frame")
)

// CorruptError is an ErrCorrupt with its place.
type CorruptError struct {
	File   string
	Offset int64
	What   string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s: offset %d: %v: %s", e.File, e.Offset, ErrCorrupt, e.What)
}

// Is reports true for ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Append appends a frame to dst. The payload must not be longer than MaxPayloadBytes.
func Append(dst []byte, h Header, payload []byte) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, HeaderBytes)...)
	dst = append(dst, payload...)
	Seal(dst[at:], h)
	return dst
}

// Seal writes the header of a frame whose payload stands in place already, behind HeaderBytes bytes.
func Seal(frame []byte, h Header) {
	payload := frame[HeaderBytes:]
	binary.LittleEndian.PutUint32(frame[4:], crc32.Checksum(payload, castagnoli))
	binary.LittleEndian.PutUint32(frame[8:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(frame[12:], h.Epoch)
	binary.LittleEndian.PutUint64(frame[16:], h.Synced)
	frame[24], frame[25], frame[26], frame[27] = h.Type, 0, 0, 0
	binary.LittleEndian.PutUint32(frame, headerSum(frame, h.Position))
}

func headerSum(frame []byte, position uint64) uint32 {
	sum := crc32.Checksum(frame[4:HeaderBytes], castagnoli)
	if position == 0 {
		return sum
	}
	// crc32.Update by hand: it would move the eight bytes to the heap for each frame.
	sum = ^sum
	for i := range 8 {
		sum = castagnoli[byte(sum)^byte(position>>(8*i))] ^ sum>>8
	}
	return ^sum
}

// parseHeader reads the header at the start of b, which has at least HeaderBytes bytes, of a frame at
// position. It returns the checksum of the payload too.
func parseHeader(b []byte, position uint64) (h Header, sum uint32, ok bool) {
	h = Header{
		Length: binary.LittleEndian.Uint32(b[8:]),
		Epoch:  binary.LittleEndian.Uint32(b[12:]),
		Synced: binary.LittleEndian.Uint64(b[16:]),
		Type:   b[24],
	}
	ok = b[25]|b[26]|b[27] == 0 && h.Length <= MaxPayloadBytes &&
		binary.LittleEndian.Uint32(b) == headerSum(b, position)
	return h, binary.LittleEndian.Uint32(b[4:]), ok
}
