package commitlog

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/vfs"
)

// Prewrite says when the blocks of a segment that is made from nothing are written with zeros.
// Preallocation only reserves them: the first write to each makes the next sync journal that the block
// has content now, which costs as much again as the sync of the content.
type Prewrite uint8

const (
	// PrewriteAuto writes them in the background, paced, once the log is synced often. The segment
	// that takes frames meanwhile is left when the better one is ready.
	PrewriteAuto Prewrite = iota
	// PrewriteNever leaves them.
	PrewriteNever
	// PrewriteAlways writes them when a segment is made, whoever waits: for tests.
	PrewriteAlways
)

// String returns auto, never or always.
func (p Prewrite) String() string {
	return [...]string{"auto", "never", "always"}[min(p, PrewriteAlways)]
}

const (
	// prewriteAfterSyncs: writing 64 MiB pays for itself when some thousands of syncs follow; whoever
	// did this many on one segment will do more. Logs that are hardly synced never write zeros.
	prewriteAfterSyncs = 64
	// prewriteBytes are written and synced at a time: somebody's sync may wait behind it, a millisecond
	// at worst on a disk of 256 MB/s.
	prewriteBytes = 256 << 10
	// prewritePause between two of them leaves most of the disk to the foreground; 64 MiB take about half a
	// second.
	prewritePause = time.Millisecond
)

var zeros [prewriteBytes]byte

// prewriting is a goroutine that writes the blocks of a prepared segment.
type prewriting struct {
	stop chan struct{} // closed when somebody needs the segment now
	done chan struct{}
	once sync.Once
}

// prewriteAhead sees to it that the prepared segment is a prewritten one. It does not wait.
func (l *Log) prewriteAhead() {
	if l.o.Prewrite != PrewriteAuto {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.prepared
	if p == nil || p.writing != nil || p.taken || l.closed {
		return
	}
	select {
	case <-p.done:
	default:
		return
	}
	switch {
	case p.err != nil:
	case p.s.prewritten:
		l.better.Store(true)
	default:
		p.writing = &prewriting{stop: make(chan struct{}), done: make(chan struct{})}
		go l.prewrite(p)
	}
}

// prewrite runs as the goroutine of p.writing; whoever takes p waits for it.
func (l *Log) prewrite(p *preparation) {
	defer close(p.writing.done)
	if err := l.writeBlocks(p.s, p.writing.stop); err != nil {
		l.discard(p.s)
		p.s, p.err = nil, err
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.s.prewritten && l.prepared == p && !p.taken {
		l.better.Store(true)
	}
}

// take ends the preparation and returns its segment, as far as it came.
func (l *Log) take(p *preparation) (*segment, error) {
	<-p.done
	l.mu.Lock()
	p.taken = true
	w := p.writing
	l.mu.Unlock()
	if w != nil {
		w.once.Do(func() { close(w.stop) })
		<-w.done
	}
	return p.s, p.err
}

// writeBlocks writes zeros to the whole of s, which holds nothing that counts, and syncs them, until
// stop is closed. A disk without space for it is no error: the segment is as good as before.
func (l *Log) writeBlocks(s *segment, stop <-chan struct{}) error {
	for off := int64(0); off < s.size; off += prewriteBytes {
		select {
		case <-stop:
			return nil
		default:
		}
		_, err := s.file.WriteAt(zeros[:min(prewriteBytes, s.size-off)], off)
		if errors.Is(err, vfs.ErrNoSpace) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("prewrite %s: %w", FileName(s.number), err)
		}
		if err := s.file.SyncData(); err != nil {
			return l.poison("prewrite "+FileName(s.number), err)
		}
		if l.o.After != nil && stop != nil {
			select {
			case <-stop:
				return nil
			case <-l.o.After(prewritePause):
			}
		}
	}
	s.prewritten = true
	l.metrics.prewritten.Add(1)
	return nil
}
