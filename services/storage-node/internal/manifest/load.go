package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/pairdb/pairdb/libs/record"
	"github.com/pairdb/pairdb/libs/vfs"
)

// loaded is what a manifest file says.
type loaded struct {
	state *state
	edits int
	size  int64 // up to the end of the last good frame
	torn  int64 // bytes behind it
}

// load reads and replays a manifest file.
func load(fsys vfs.FS, dir string, number uint64) (*loaded, error) {
	name := fileName(number)
	b, err := readFile(fsys, path.Join(dir, name))
	if isNotExist(err) {
		return nil, fmt.Errorf("%w: the marker names %s, which is not there", ErrCorrupt, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if err := checkHeader(b, number); err != nil {
		return nil, err
	}
	found := &loaded{state: newState(), size: headerBytes}
	complete := false
	r := record.NewFileReader(bytes.NewReader(b), int64(len(b)),
		record.Options{File: name, Epoch: uint32(number), Start: headerBytes, Positions: true})
	for {
		h, payload, err := r.Next()
		if err == io.EOF || errors.Is(err, record.ErrTorn) {
			found.torn = int64(len(b)) - found.size
			break
		}
		if err != nil {
			return nil, corrupt(name, r.Offset(), err)
		}
		switch {
		case h.Type == frameEdit:
			complete, err = found.replay(payload, complete)
			if errors.Is(err, ErrUnknownFormat) {
				return nil, fmt.Errorf("%s: offset %d: %w", name, found.size, err)
			}
			if err != nil {
				return nil, corrupt(name, found.size, err)
			}
		case h.Type != frameSeal && h.Type%2 == 0:
			return nil, fmt.Errorf("%w: %s: offset %d: frame type %d", ErrUnknownFormat, name, found.size, h.Type)
		}
		found.size = r.Offset()
	}
	if !complete {
		// It was synced before a marker named the file.
		return nil, corrupt(name, found.size, errors.New("the state at the start of the file is not whole"))
	}
	return found, nil
}

func corrupt(name string, offset int64, err error) error {
	return &CorruptionError{File: name, Offset: offset, Err: err}
}

// CorruptionError is an ErrCorrupt with its place.
type CorruptionError struct {
	File   string // without its directory
	Offset int64
	Err    error
}

func (e *CorruptionError) Error() string {
	return fmt.Sprintf("%v: %s: offset %d: %v (restore the node from a checkpoint or from its replicas)", ErrCorrupt, e.File, e.Offset, e.Err)
}

// Is reports true for ErrCorrupt.
func (e *CorruptionError) Is(target error) bool { return target == ErrCorrupt }

// Unwrap returns what is wrong there.
func (e *CorruptionError) Unwrap() error { return e.Err }

// replay applies one edit; complete says whether the whole state at the start of the file was read.
func (l *loaded) replay(payload []byte, complete bool) (bool, error) {
	e, part, err := decodeEdit(payload)
	if err != nil {
		return complete, err
	}
	if (part == notSnapshot) != complete {
		return complete, malformed("a part of the whole state where it does not belong")
	}
	c, err := l.state.resolve(e)
	if err != nil {
		return complete, err
	}
	l.state.apply(c)
	l.edits++
	return part != snapshotMore, nil
}

func readFile(fsys vfs.FS, name string) (b []byte, err error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFileBytes {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrCorrupt, info.Size(), maxFileBytes)
	}
	b = make([]byte, info.Size())
	if n, err := f.ReadAt(b, 0); err != nil && !(err == io.EOF && n == len(b)) {
		return nil, err
	}
	return b, nil
}
