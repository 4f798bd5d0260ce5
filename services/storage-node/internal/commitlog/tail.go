package commitlog

import (
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/pairdb/pairdb/libs/record"
	"github.com/pairdb/pairdb/libs/vfs"
)

// Reader follows the frames of a live log. It pins the segment that it reads and all behind it. It is
// for one goroutine.
type Reader struct {
	log     *Log
	number  uint64
	file    vfs.File
	frames  *record.Reader
	release func()
}

// NewReader returns a reader of the frames from a position on; offset 0 is the start of a segment.
// ErrTrimmed: the segment is not there any more.
func (l *Log) NewReader(from Position) (*Reader, error) {
	r := &Reader{log: l}
	if err := r.enter(from); err != nil {
		return nil, err
	}
	return r, nil
}

// enter goes on at a position in another segment. After an error r reads where it did.
func (r *Reader) enter(at Position) error {
	release, err := r.log.Pin(at.Segment)
	if err != nil {
		return err
	}
	name := path.Join(r.log.dir, FileName(at.Segment))
	file, err := r.log.fs.Open(name)
	if err != nil {
		release()
		return err
	}
	err = r.Close()
	r.number, r.file, r.release = at.Segment, file, release
	r.frames = record.NewFileReader(file, at.Offset, record.Options{
		File: name, Epoch: uint32(at.Segment), Positions: true, Start: at.Offset,
	})
	return err
}

// Next returns the next frame that ends at or before limit, which is a position that Append, Sync,
// Durable or Written returned. io.EOF: there is none, yet. The payload is valid until the next call.
func (r *Reader) Next(limit Position) (Frame, error) {
	if r.frames == nil {
		return Frame{}, ErrClosed
	}
	if written := r.log.Written(); written.Compare(limit) < 0 {
		limit = written
	}
	for {
		end, following, err := r.extent(limit)
		if err != nil {
			return Frame{}, err
		}
		r.frames.Extend(end)
		start := r.frames.Offset()
		h, payload, err := r.frames.Next()
		switch {
		case err == io.EOF && following != 0:
			if err := r.enter(Position{Segment: following}); err != nil {
				return Frame{}, err
			}
			continue
		case err == io.EOF:
			return Frame{}, io.EOF
		case err != nil:
			return Frame{}, r.readError(start, err)
		case h.Type > MaxOwnerType: // header and close frames
			continue
		}
		return Frame{
			Type: h.Type, Payload: payload,
			Start: Position{r.number, start}, End: Position{r.number, r.frames.Offset()},
		}, nil
	}
}

// extent returns up to where the segment may be read, and the number of the one that follows if the
// limit is behind this one.
func (r *Reader) extent(limit Position) (end int64, following uint64, err error) {
	if limit.Segment < r.number {
		return 0, 0, nil
	}
	end, following, err = r.log.extent(r.number)
	if limit.Segment == r.number {
		return min(end, limit.Offset), 0, err
	}
	return end, following, err
}

// extent returns the end of a live segment, and the number of the one behind it; 0: none.
func (l *Log) extent(number uint64) (end int64, following uint64, err error) {
	if s := l.current.Load(); s != nil && s.number == number {
		return s.written.Load(), 0, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, s := range l.segments {
		if s.Number != number {
			continue
		}
		if i+1 < len(l.segments) {
			return s.Bytes, l.segments[i+1].Number, nil
		}
		if c := l.current.Load(); c != nil && c.number == number { // it was published meanwhile
			return c.written.Load(), 0, nil
		}
		return s.Bytes, 0, nil
	}
	return 0, 0, fmt.Errorf("%w: %s", ErrTrimmed, FileName(number))
}

func (r *Reader) readError(offset int64, err error) error {
	var bad *record.CorruptError
	name := path.Join(r.log.dir, FileName(r.number))
	if errors.As(err, &bad) {
		return &CorruptionError{File: name, Offset: bad.Offset, What: bad.What}
	}
	if errors.Is(err, record.ErrTorn) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &CorruptionError{File: name, Offset: offset, What: "a frame that was written is not whole"}
	}
	return fmt.Errorf("follow commit log: %w", err)
}

// Close gives the segment and its pin back. It is idempotent.
func (r *Reader) Close() error {
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.release()
	r.file, r.frames = nil, nil
	return err
}
