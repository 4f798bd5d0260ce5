package commitlog

import (
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/pairdb/pairdb/libs/vfs"
)

// CopyTo copies the durable part of the segments from floor on into dir, where Replay finds the same
// frames, and returns where the copy ends. It links nothing: a segment is written again one day.
func (l *Log) CopyTo(dir string, floor uint64) (end Position, err error) {
	end = l.Durable()
	if end.Segment == 0 {
		return end, nil
	}
	release, err := l.Pin(max(floor, l.Metrics().OldestSegment))
	if err != nil {
		return end, err
	}
	defer release()
	for _, s := range l.Segments() {
		if s.Number < floor || s.Number > end.Segment {
			continue
		}
		if s.Number == end.Segment {
			s.Bytes = end.Offset
		}
		if err := l.copySegment(dir, s); err != nil {
			return end, fmt.Errorf("copy %s: %w", FileName(s.Number), err)
		}
	}
	return end, vfs.SyncDir(l.fs, dir)
}

func (l *Log) copySegment(dir string, s Segment) (err error) {
	src, err := l.fs.Open(path.Join(l.dir, FileName(s.Number)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := l.fs.Create(path.Join(dir, FileName(s.Number)), 0o660)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	in := struct{ io.Reader }{io.NewSectionReader(src, 0, s.Bytes)}
	if _, err := io.CopyBuffer(struct{ io.Writer }{dst}, in, make([]byte, 1<<20)); err != nil {
		return err
	}
	return dst.Sync()
}
