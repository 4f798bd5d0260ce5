package commitlog

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path"
	"strconv"
	"strings"

	"github.com/pairdb/pairdb/libs/record"
)

const (
	// MaxOwnerType is the largest type of a frame that Append takes; the smallest is 1.
	MaxOwnerType = 127
	// MaxPayloadBytes is the largest payload of a frame.
	MaxPayloadBytes = record.MaxPayloadBytes

	typeHeader = 200
	typeClose  = 201

	formatVersion = 1
	headerMagic   = "PAIRDBCL"
	// magic 8 ‖ version u32 ‖ key id u32 ‖ number u64 ‖ previous number u64 ‖ previous length u64
	headerPayloadBytes = 40
	firstFrameAt       = record.HeaderBytes + headerPayloadBytes

	// pageBytes: segments are multiples of it, and writes end at one.
	pageBytes = 4096
	// maxNumber: numbers are epochs of frames, which have 32 bits.
	maxNumber = math.MaxUint32
)

var (
	// ErrCorrupt says that log bytes that were durable are damaged or missing.
	ErrCorrupt = errors.New("commit log is damaged")
	// ErrUnknownFormat says that a segment was written by a newer release, or is encrypted.
	ErrUnknownFormat = errors.New("commit log of an unknown format")
	// ErrPoisoned says that a sync failed: the log takes nothing any more.
	ErrPoisoned = errors.New("commit log is poisoned by a failed sync")
	// ErrClosed says that the log is closed, or was not started.
	ErrClosed = errors.New("commit log is not open")
	// ErrTooLarge says that a payload is longer than MaxPayloadBytes.
	ErrTooLarge = errors.New("frame is too large for the commit log")
	// ErrTrimmed says that a segment is not in the log any more.
	ErrTrimmed = errors.New("commit log segment is trimmed")
)

// CorruptionError is an ErrCorrupt with its place.
type CorruptionError struct {
	File   string
	Offset int64
	What   string
}

func (e *CorruptionError) Error() string {
	return fmt.Sprintf("%v: %s: offset %d: %s (restore the node from a checkpoint or from its replicas)", ErrCorrupt, e.File, e.Offset, e.What)
}

// Is reports true for ErrCorrupt.
func (e *CorruptionError) Is(target error) bool { return target == ErrCorrupt }

// Position is a place between frames of the log.
type Position struct {
	Segment uint64
	Offset  int64
}

// Compare orders positions: -1, 0 or 1.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Segment, q.Segment), cmp.Compare(p.Offset, q.Offset))
}

// String prints the position for people.
func (p Position) String() string { return fmt.Sprintf("%s@%d", FileName(p.Segment), p.Offset) }

// Frame is a frame of the owner.
type Frame struct {
	Type    uint8
	Payload []byte
	// Start and End are the places before and behind it.
	Start, End Position
}

// FileName returns the name of a segment in the log's directory.
func FileName(number uint64) string { return fmt.Sprintf("%06d.log", number) }

// ParseFileName is the inverse of FileName.
func ParseFileName(name string) (number uint64, ok bool) {
	digits, ok := strings.CutSuffix(path.Base(name), ".log")
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 10, 32)
	return number, err == nil && number > 0 && name == FileName(number)
}

// header is the content of a header frame.
type header struct {
	number     uint64
	prev       uint64 // 0: this is the first segment
	prevLength int64
}

func (h header) appendFrame(dst []byte) []byte {
	p := make([]byte, 0, headerPayloadBytes)
	p = append(p, headerMagic...)
	p = binary.LittleEndian.AppendUint32(p, formatVersion)
	p = binary.LittleEndian.AppendUint32(p, 0) // key id
	p = binary.LittleEndian.AppendUint64(p, h.number)
	p = binary.LittleEndian.AppendUint64(p, h.prev)
	p = binary.LittleEndian.AppendUint64(p, uint64(h.prevLength))
	return record.Append(dst, record.Header{Epoch: uint32(h.number), Type: typeHeader}, p)
}

// decodeHeader reads the first frame of segment number. Its checksum is good, so what does not fit
// was written like that.
func decodeHeader(frameType uint8, p []byte, number uint64) (h header, err error) {
	if frameType != typeHeader || len(p) < 16 || string(p[:8]) != headerMagic {
		return h, fmt.Errorf("%w: the first frame is no segment header", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(p[8:]); v != formatVersion {
		return h, fmt.Errorf("%w: version %d, %d is known: use a newer release", ErrUnknownFormat, v, formatVersion)
	}
	if k := binary.LittleEndian.Uint32(p[12:]); k != 0 {
		return h, fmt.Errorf("%w: encrypted with key %d", ErrUnknownFormat, k)
	}
	if len(p) != headerPayloadBytes {
		return h, fmt.Errorf("%w: segment header of %d bytes", ErrCorrupt, len(p))
	}
	h = header{
		number:     binary.LittleEndian.Uint64(p[16:]),
		prev:       binary.LittleEndian.Uint64(p[24:]),
		prevLength: int64(binary.LittleEndian.Uint64(p[32:])),
	}
	bad := h.number != number || h.prev >= number || (h.prev == 0) != (h.prevLength == 0) ||
		h.prev != 0 && h.prevLength < firstFrameAt
	if bad {
		return h, fmt.Errorf("%w: segment header says number %d after %d with %d bytes", ErrCorrupt, h.number, h.prev, h.prevLength)
	}
	return h, nil
}
