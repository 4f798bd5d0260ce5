package commitlog

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/pairdb/pairdb/libs/vfs"
)

// preparation is a segment that is being made ready to be the next one. s and err are set when done is
// closed.
type preparation struct {
	done chan struct{}
	s    *segment
	err  error
	// writing is not nil while, and after, the blocks of s are written; then s and err are set when
	// its done is closed. Guarded by mu of the log, and so is taken: nobody may begin to write.
	writing *prewriting
	taken   bool
}

// spare is a file to be written again.
type spare struct {
	number     uint64
	prewritten bool
}

// prepareLocked starts to prepare the next segment, if that is not done. The goroutine ends by itself;
// whoever takes the preparation, or Close, waits for it.
func (l *Log) prepareLocked() *preparation {
	if l.prepared == nil && !l.closed {
		p := &preparation{done: make(chan struct{})}
		l.prepared = p
		number := l.next
		l.next++
		var old spare
		if len(l.spare) > 0 {
			old = l.spare[0]
			l.spare = l.spare[1:]
		}
		run := func() {
			defer close(p.done)
			p.s, p.err = l.makeSegment(number, old)
		}
		if l.o.OnDemand {
			run()
		} else {
			go run()
		}
	}
	return l.prepared
}

// takePrepared returns the next segment, with at least size bytes. After an error nothing is changed
// but that a number is used up.
func (l *Log) takePrepared(size int64) (*segment, error) {
	s, err := l.awaitPrepared()
	if err != nil && l.failure.Load() == nil {
		// It may have failed long ago, ahead of time: there may be space now.
		s, err = l.awaitPrepared()
	}
	if err != nil {
		return nil, err
	}
	if size > s.size {
		if err := s.file.Preallocate(pageUp(size)); err != nil {
			l.discard(s)
			return nil, fmt.Errorf("extend %s to %d bytes: %w", FileName(s.number), pageUp(size), err)
		}
		s.size = pageUp(size)
	}
	return s, nil
}

func (l *Log) awaitPrepared() (*segment, error) {
	l.mu.Lock()
	p := l.prepareLocked()
	l.mu.Unlock()
	if p == nil {
		return nil, ErrClosed
	}
	s, err := l.take(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.prepared == p {
		l.prepared = nil
		l.better.Store(false)
	}
	return s, err
}

// makeSegment makes an empty segment whose space is there and whose name is durable, from a spare
// file or a new one.
func (l *Log) makeSegment(number uint64, old spare) (s *segment, err error) {
	if number > maxNumber {
		return nil, errors.New("commit log segment numbers are used up")
	}
	s = &segment{number: number, size: l.o.SegmentBytes, prewritten: old.prewritten}
	defer func() {
		if err != nil {
			l.discard(s)
			s = nil
		}
	}()
	name := path.Join(l.dir, FileName(number))
	if old.number != 0 {
		if err = l.fs.Rename(path.Join(l.dir, FileName(old.number)), name); err == nil {
			s.file, err = l.fs.OpenReadWrite(name)
		}
	} else {
		s.file, err = l.fs.Create(name, 0o660)
	}
	if err != nil {
		return s, fmt.Errorf("prepare %s: %w", FileName(number), err)
	}
	if err := s.file.Preallocate(s.size); err != nil {
		return s, fmt.Errorf("prepare %s: %w", FileName(number), err)
	}
	if l.o.Prewrite == PrewriteAlways && !s.prewritten {
		if err := l.writeBlocks(s, nil); err != nil {
			return s, err
		}
	}
	// The size, once: later syncs have no metadata to write. The name, before content counts.
	err = s.file.Sync()
	if err == nil {
		err = vfs.SyncDir(l.fs, l.dir)
	}
	if err != nil && !errors.Is(err, vfs.ErrNoSpace) {
		err = l.poison("prepare "+FileName(number), err)
	}
	if err != nil {
		return s, err
	}
	if old.number != 0 {
		l.metrics.recycled.Add(1)
	} else {
		l.metrics.created.Add(1)
	}
	return s, nil
}

// discard gives up a segment that holds nothing. That is tidiness: if it fails, the file does not
// count (package comment, 3) and the next Start sees to it.
func (l *Log) discard(s *segment) {
	if s.file != nil {
		_ = s.file.Close()
	}
	_ = l.fs.Remove(path.Join(l.dir, FileName(s.number)))
}

// Trim gives up the segments below floor that are not pinned, and never the last one. Recovery must
// not need them: the floor is durable in the manifest. Some files are kept, to be written again.
func (l *Log) Trim(floor uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started || l.closed {
		return ErrClosed
	}
	for number := range l.pins {
		floor = min(floor, number)
	}
	for len(l.segments) > 1 && l.segments[0].Number < floor {
		if err := l.retireLocked(l.segments[0]); err != nil {
			return err
		}
		l.segments = l.segments[1:]
	}
	return nil
}

// retireLocked keeps a file that nobody needs as a spare one, or removes it.
func (l *Log) retireLocked(s Segment) error {
	name := path.Join(l.dir, FileName(s.Number))
	// One that was filled is as good as prewritten, but for a rest that a large frame left.
	whole := l.prewritten[s.Number] || s.Bytes >= l.o.SegmentBytes/16*15
	delete(l.prewritten, s.Number)
	info, err := l.fs.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(l.spare) < l.o.Recycle && info.Size() == l.o.SegmentBytes && info.Mode().IsRegular() {
		l.spare = append(l.spare, spare{s.Number, whole})
		return nil
	}
	return l.remove(s.Number)
}

func (l *Log) remove(number uint64) error {
	if err := l.fs.Remove(path.Join(l.dir, FileName(number))); err != nil {
		return fmt.Errorf("trim commit log: %w", err)
	}
	l.metrics.removed.Add(1)
	return nil
}

// Pin keeps segment and all behind it until release is called, which may be more than once.
func (l *Log) Pin(number uint64) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.ContainsFunc(l.segments, func(s Segment) bool { return s.Number == number }) {
		return nil, fmt.Errorf("%w: %s", ErrTrimmed, FileName(number))
	}
	l.pins[number]++
	released := false
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if released {
			return
		}
		released = true
		if l.pins[number]--; l.pins[number] == 0 {
			delete(l.pins, number)
		}
	}, nil
}
