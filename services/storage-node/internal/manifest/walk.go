package manifest

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

// Step is an edit as it stands in a manifest file.
type Step struct {
	// Offset of its frame.
	Offset int64
	// State edits are parts of the whole state that the file begins with; Last is the last of them.
	State, Last bool
	Edit        *Edit
	// Seal is a frame without an edit: the file was closed in order.
	Seal bool
}

// Walked says what Walk found.
type Walked struct {
	// Number of the file, as its header says.
	Number uint64
	// End is where the last good frame ends, TornTail what follows it.
	End, TornTail int64
	// Sealed says that the last frame is a seal.
	Sealed bool
}

// HasMagic reports whether b, the start of a file, is that of a manifest.
func HasMagic(b []byte) bool { return bytes.HasPrefix(b, []byte(headerMagic)) }

// Walk hands every edit of a manifest file to visit, without applying it and whatever the marker says,
// for tools. It changes nothing. Damage is ErrCorrupt, what a newer release wrote ErrUnknownFormat;
// what stands before it was visited. A file with the name of another number is damage.
func Walk(fsys vfs.FS, name string, visit func(Step) error) (w Walked, err error) {
	b, err := readFile(fsys, name)
	if err != nil {
		return w, err
	}
	base := path.Base(name)
	number, ours := parseFileName(base)
	if !ours && len(b) >= headerBytes {
		number = binary.LittleEndian.Uint64(b[16:]) // a copy: it is what it says that it is
	}
	if err := checkHeader(b, number); err != nil {
		return w, err
	}
	w.Number, w.End = number, headerBytes
	r := record.NewFileReader(bytes.NewReader(b), int64(len(b)),
		record.Options{File: base, Epoch: uint32(number), Start: headerBytes, Positions: true})
	for {
		h, payload, err := r.Next()
		if err == io.EOF || errors.Is(err, record.ErrTorn) {
			w.TornTail = int64(len(b)) - w.End
			return w, nil
		}
		if err != nil {
			return w, corrupt(base, r.Offset(), err)
		}
		step, ok, err := decodeStep(h.Type, payload)
		step.Offset = w.End
		switch {
		case errors.Is(err, ErrUnknownFormat):
			return w, fmt.Errorf("%s: offset %d: %w", base, w.End, err)
		case err != nil:
			return w, corrupt(base, w.End, err)
		}
		w.End, w.Sealed = r.Offset(), step.Seal
		if !ok {
			continue
		}
		if err := visit(step); err != nil {
			return w, err
		}
	}
}

// decodeStep decodes a frame; ok is false for one that may be skipped.
func decodeStep(frameType uint8, payload []byte) (s Step, ok bool, err error) {
	switch {
	case frameType == frameSeal:
		return Step{Seal: true}, true, nil
	case frameType != frameEdit && frameType%2 == 1:
		return s, false, nil
	case frameType != frameEdit:
		return s, false, fmt.Errorf("%w: frame type %d", ErrUnknownFormat, frameType)
	}
	e, part, err := decodeEdit(payload)
	return Step{Edit: e, State: part != notSnapshot, Last: part == snapshotLast}, true, err
}

// Marker is the empty file whose name says which manifest file counts.
type Marker struct {
	Name  string
	Count uint64
	// File is the name of the manifest file.
	File string
}

// ParseMarker reads the name of a marker.
func ParseMarker(name string) (Marker, bool) {
	m, ok := parseMarker(name)
	return Marker{Name: name, Count: m.count, File: fileName(m.file)}, ok
}

// IsFileName reports whether name is that of a manifest file.
func IsFileName(name string) bool {
	_, ok := parseFileName(name)
	return ok
}
