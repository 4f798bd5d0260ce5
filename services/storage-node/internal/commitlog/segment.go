package commitlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/pairdb/pairdb/libs/record"
	"github.com/pairdb/pairdb/libs/vfs"
)

// SegmentInfo says what a segment file is, for tools.
type SegmentInfo struct {
	// Number is that of its header; 0: the file has none (it was prepared, never used).
	Number uint64
	// Previous is the segment before, with its length; 0: this is the first one.
	Previous      uint64
	PreviousBytes int64
	// Sealed says that another segment in the directory continues this one: then Bytes is the length
	// that it names, and every byte before that must be good. Otherwise Bytes is the file's size.
	Sealed bool
	Bytes  int64
	// End is where the last good frame ends, TornBytes what a crash left behind it.
	End, TornBytes int64
	// Closed says that the log was closed at End.
	Closed bool
}

// segmentPeek is how much of a file tells whether it is a segment.
const segmentPeek = record.HeaderBytes + len(headerMagic)

// HasMagic reports whether b, the start of a file, is that of a segment with a header.
func HasMagic(b []byte) bool {
	return len(b) >= segmentPeek && bytes.Equal(b[record.HeaderBytes:segmentPeek], []byte(headerMagic))
}

// ReadSegment reads one file of a log by itself: begin gets what its header says, visit every frame
// of the owner. It changes nothing. A file without a name of ours is what its header says; one with
// a name must have that number, or its content is from the file's life before and does not count:
// then Number is 0. Damage is an ErrCorrupt; frames before it were visited.
func ReadSegment(fsys vfs.FS, name string, begin func(SegmentInfo) error, visit func(Frame) error) (info SegmentInfo, err error) {
	f, size, err := openSized(fsys, name)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	dir := path.Dir(name)
	number, ours := ParseFileName(path.Base(name))
	if !ours {
		if number, err = writtenAs(f, size); err != nil {
			return info, err
		}
	}
	c := &chain{fs: fsys, dir: dir}
	info.Bytes = size
	if ours {
		if info.Bytes, info.Sealed, err = c.sealedAt(number, size); err != nil {
			return info, err
		}
	}
	if info.Bytes > size {
		return info, c.corrupt(number, size, fmt.Sprintf("the file ends here, its successor says at %d", info.Bytes))
	}
	r := record.NewFileReader(f, info.Bytes, record.Options{File: name, Epoch: uint32(number), Positions: true, Sealed: info.Sealed})
	h, payload, err := r.Next()
	if !info.Sealed && (err == io.EOF || errors.Is(err, record.ErrTorn)) {
		return info, begin(info)
	}
	p := &pass{chain: c, visit: visit}
	if err != nil {
		return info, at(name, p.readError(number, 0, err))
	}
	head, err := decodeHeader(h.Type, payload, number)
	if errors.Is(err, ErrCorrupt) {
		return info, &CorruptionError{File: name, What: err.Error()}
	}
	if err != nil {
		return info, fmt.Errorf("%s: %w", name, err)
	}
	info.Number, info.Previous, info.PreviousBytes = number, head.prev, head.prevLength
	if err := begin(info); err != nil {
		return info, err
	}
	err = p.frames(r, link{header: head, length: info.Bytes}, &info)
	return info, at(name, err)
}

// frames visits what follows the header.
func (p *pass) frames(r *record.Reader, l link, info *SegmentInfo) error {
	info.End = r.Offset()
	for !info.Closed {
		h, payload, err := r.Next()
		if err == io.EOF || !info.Sealed && errors.Is(err, record.ErrTorn) {
			break
		}
		if err != nil {
			return p.readError(l.number, info.End, err)
		}
		if info.Closed, err = p.frame(l, h, payload, info.End, r.Offset()); err != nil {
			return err
		}
		info.End = r.Offset()
	}
	info.TornBytes = r.TornBytes()
	if info.Closed && info.Sealed && info.End != l.length {
		return p.corrupt(l.number, info.End, "frames behind the end of the segment")
	}
	return nil
}

// sealedAt looks for a segment that continues segment number, and returns the length that it names.
func (c *chain) sealedAt(number uint64, size int64) (length int64, sealed bool, err error) {
	numbers, err := listSegments(c.fs, c.dir)
	if err != nil {
		return 0, false, err
	}
	for _, n := range numbers {
		if n <= number {
			continue
		}
		c.links = c.links[:0]
		// What is wrong with another file is told when that one is read.
		if err := c.add(n, 0, true); err == nil && len(c.links) > 0 && c.links[0].prev == number {
			return c.links[0].prevLength, true, nil
		}
	}
	return size, false, nil
}

// writtenAs returns the number in a header of which not even the name is known.
func writtenAs(f io.ReaderAt, size int64) (uint64, error) {
	if size < segmentPeekEpoch+4 {
		return 0, nil
	}
	var b [4]byte
	if _, err := f.ReadAt(b[:], segmentPeekEpoch); err != nil {
		return 0, err
	}
	return uint64(binary.LittleEndian.Uint32(b[:])), nil
}

// segmentPeekEpoch is where the epoch of the first frame stands (libs/record).
const segmentPeekEpoch = 12

// at names the file that was asked for, not the one that its number would have.
func at(name string, err error) error {
	var bad *CorruptionError
	if errors.As(err, &bad) {
		return &CorruptionError{File: name, Offset: bad.Offset, What: bad.What}
	}
	return err
}
