package commitlog

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/libs/record"
	"github.com/pairdb/pairdb/libs/vfs"
)

// Options of a log.
type Options struct {
	// SegmentBytes is the size of a segment, rounded up to 4 KiB. Default 64 MiB: large enough that
	// rotation (two syncs) does not count, small enough to free space in steps.
	SegmentBytes int64
	// Recycle is how many trimmed segments are kept to be written again. Default 0.
	Recycle int
	// Prewrite says whether the blocks of new segments are written with zeros ahead of time, so that
	// syncs of frames have no metadata to write.
	Prewrite Prewrite
	// After, if set, paces prewriting.
	After func(time.Duration) <-chan time.Time
	// OnDemand prepares the next segment when it is needed, in Reserve, instead of ahead in the
	// background: for tests that count file-system operations.
	OnDemand bool
}

const defaultSegmentBytes = 64 << 20

// Log is an open commit log: Open, Replay, Start, then Reserve and Append.
type Log struct {
	fs  vfs.FS
	dir string
	o   Options

	// Of the leader.
	buf []byte
	// sealed says that the current segment takes no more frames.
	sealed bool

	// current is replaced by the leader under syncMu and mu; nil until the first frame after Start.
	current atomic.Pointer[segment]
	better  atomic.Bool           // the prepared segment is prewritten: worth leaving one that is not
	ready   atomic.Bool           // started and not closed
	failure atomic.Pointer[error] // why the log is poisoned
	metrics metrics

	syncMu sync.Mutex // one sync at a time

	mu        sync.Mutex
	replayed  bool
	started   bool
	closed    bool
	closeErr  error
	recovered Recovered
	segments  []Segment // ascending, the current one last; its Bytes are in current
	next      uint64    // number of the next file
	spare     []spare   // files to be written again
	prepared  *preparation
	// prewritten has the live segments whose blocks were written ahead.
	prewritten map[uint64]bool
	pins       map[uint64]int
}

// segment is a file that takes frames.
type segment struct {
	number uint64
	file   vfs.File
	size   int64
	// prewritten: its blocks are on the disk, in place. Final before the first frame.
	prewritten bool
	padded     int64        // up to a page's end, whole pages were written. Of the leader
	syncs      int          // guarded by syncMu
	written    atomic.Int64 // end of the last good frame
	synced     atomic.Int64 // durable up to here
}

func (s *segment) end() Position { return Position{Segment: s.number, Offset: s.written.Load()} }

// Open prepares a log in dir, which is made if there is none. It reads no segment.
func Open(fsys vfs.FS, dir string, o Options) (*Log, error) {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	o.SegmentBytes = pageUp(max(o.SegmentBytes, pageBytes))
	if o.SegmentBytes > 1<<40 || o.Recycle < 0 {
		return nil, fmt.Errorf("commit log options %+v", o)
	}
	if _, err := fsys.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := fsys.MkdirAll(dir, 0o770); err != nil {
			return nil, err
		}
		if err := vfs.SyncDir(fsys, path.Dir(dir)); err != nil {
			return nil, err
		}
	}
	return &Log{fs: fsys, dir: dir, o: o, prewritten: make(map[uint64]bool), pins: make(map[uint64]int)}, nil
}

// Replay is the function Replay for this log. It is called once, before Start.
func (l *Log) Replay(floor uint64, visit func(Frame) error, progress func(done, total int64)) (Recovered, error) {
	found, err := Replay(l.fs, l.dir, floor, visit, progress)
	if err != nil {
		return found, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recovered, l.replayed = found, true
	return found, nil
}

// Start makes what was replayed durable and the log ready for frames. It needs no space: a segment is
// made when the first frame comes (or ahead, in the background).
func (l *Log) Start() (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.replayed || l.started || l.closed {
		return fmt.Errorf("%w: Start belongs once, behind Replay", ErrClosed)
	}
	r := l.recovered
	if r.End.Segment != 0 {
		if err := l.confirm(r); err != nil {
			return fmt.Errorf("make %s durable: %w", FileName(r.End.Segment), err)
		}
	}
	l.segments = slices.Clone(r.Segments)
	l.next = r.next
	for _, number := range r.unused {
		if number > r.End.Segment {
			err = l.remove(number) // it may be a second name (package comment, 8)
		} else {
			err = l.retireLocked(Segment{Number: number})
		}
		if err != nil {
			return err
		}
	}
	l.started = true
	l.ready.Store(true)
	if !l.o.OnDemand {
		l.prepareLocked()
	}
	return nil
}

// confirm writes the head's bytes behind the proven synced offset again and syncs them (package
// comment, 5).
func (l *Log) confirm(r Recovered) (err error) {
	f, err := l.fs.OpenReadWrite(path.Join(l.dir, FileName(r.End.Segment)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, min(1<<20, r.End.Offset-r.synced))
	for off := r.synced; off < r.End.Offset; {
		b := buf[:min(int64(len(buf)), r.End.Offset-off)]
		if n, err := f.ReadAt(b, off); n < len(b) {
			return err
		}
		// On a full copy-on-write disk only the sync remains; the node must open to serve reads.
		if _, err := f.WriteAt(b, off); errors.Is(err, vfs.ErrNoSpace) {
			break
		} else if err != nil {
			return err
		}
		off += int64(len(b))
	}
	return f.SyncData()
}

// Segment is the number of the segment that took the last frame: every later frame is in it or behind
// it. 1 if the log is empty.
func (l *Log) Segment() uint64 { return max(l.Written().Segment, 1) }

// Written is the end of the last frame.
func (l *Log) Written() Position {
	if s := l.current.Load(); s != nil {
		return s.end()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recovered.End
}

// Durable is up to where the log would survive a crash now.
func (l *Log) Durable() Position {
	if s := l.current.Load(); s != nil {
		return Position{Segment: s.number, Offset: s.synced.Load()}
	}
	return l.Written()
}

// Segments lists the live segments, oldest first.
func (l *Log) Segments() []Segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.segments)
	if s := l.current.Load(); s != nil {
		out[len(out)-1].Bytes = s.written.Load()
	}
	return out
}

// usable returns why the log takes nothing.
func (l *Log) usable() error {
	if err := l.failure.Load(); err != nil {
		return *err
	}
	if !l.ready.Load() {
		return ErrClosed
	}
	return nil
}

// poison makes the log refuse everything from now on.
func (l *Log) poison(what string, cause error) error {
	err := fmt.Errorf("%w: %s: %w", ErrPoisoned, what, cause)
	if l.failure.CompareAndSwap(nil, &err) {
		return err
	}
	return *l.failure.Load()
}

// Close syncs the log and ends it with a frame that proves it: the next open searches no torn tail,
// and damage to the last frame is seen. Nobody may append any more. It is idempotent.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		defer l.mu.Unlock()
		return l.closeErr
	}
	l.closed = true
	l.ready.Store(false)
	p := l.prepared
	l.prepared = nil
	l.mu.Unlock()

	var errs []error
	if p != nil {
		// The next open would have to search it for damage.
		if s, err := l.take(p); err == nil {
			errs = append(errs, s.file.Close(), l.fs.Remove(path.Join(l.dir, FileName(s.number))))
		}
	}
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if err := l.failure.Load(); err != nil {
		errs = append(errs, *err)
	}
	if s := l.current.Load(); s != nil {
		errs = append(errs, l.finish(s), s.file.Close())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closeErr = errors.Join(errs...)
	return l.closeErr
}

// finish syncs the last segment and writes its close frame. Behind a failed write the frame takes the
// place of what was not written. syncMu is held.
func (l *Log) finish(s *segment) error {
	if l.failure.Load() != nil {
		return nil // said by Close
	}
	if err := l.syncSegment(s); err != nil {
		return err
	}
	off := s.written.Load()
	frame := record.Append(nil, record.Header{Epoch: uint32(s.number), Synced: uint64(off), Type: typeClose, Position: uint64(off)}, nil)
	if _, err := s.file.WriteAt(frame, off); err != nil {
		return fmt.Errorf("close %s: %w", FileName(s.number), err)
	}
	s.written.Store(off + int64(len(frame)))
	return l.syncSegment(s)
}

func pageUp(n int64) int64 { return (n + pageBytes - 1) &^ (pageBytes - 1) }
