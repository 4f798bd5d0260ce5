package commitlog

import (
	"fmt"
	"slices"

	"github.com/pairdb/pairdb/libs/record"
)

// keepBufferBytes bounds the buffer that is kept for the next frame: one huge batch must not pin its
// memory.
const keepBufferBytes = 4 << 20

// Reserve makes sure that frames with payloads of n bytes together (counting record.HeaderBytes for
// each but one) can be appended without taking more space. An error that is vfs.ErrNoSpace leaves the
// log as it was: the same call succeeds when there is space again.
func (l *Log) Reserve(n int) error {
	if err := l.usable(); err != nil {
		return err
	}
	if n < 0 || n > MaxPayloadBytes {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, n, MaxPayloadBytes)
	}
	// One header for the frame, one for the close frame.
	need := int64(n) + 2*record.HeaderBytes
	if s := l.current.Load(); s != nil && !l.sealed && s.written.Load()+need <= s.size {
		if s.prewritten || !l.better.Load() {
			return nil
		}
	}
	return l.rotate(firstFrameAt + need)
}

// Append writes a frame with one write call and returns where it ends; SyncTo makes it durable. After
// an error nothing was appended, though after a crash the frame may be found in full; the next
// frame goes to a new segment.
func (l *Log) Append(frameType uint8, payload []byte) (Position, error) {
	if frameType == 0 || frameType > MaxOwnerType {
		return Position{}, fmt.Errorf("commit log frame of type %d, 1 to %d are the owner's", frameType, MaxOwnerType)
	}
	if err := l.Reserve(len(payload)); err != nil {
		return Position{}, err
	}
	s := l.current.Load()
	off := s.written.Load()
	n := record.HeaderBytes + len(payload)
	end := off + int64(n)
	if end > s.padded {
		// The write ends with a page: the kernel need not read the rest of it from a recycled file.
		end = min(pageUp(end), s.size)
	}
	b := l.frameBuffer(int(end - off))
	copy(b[record.HeaderBytes:], payload)
	clear(b[n:])
	record.Seal(b[:n], record.Header{
		Epoch: uint32(s.number), Synced: uint64(s.synced.Load()), Type: frameType, Position: uint64(off),
	})
	if _, err := s.file.WriteAt(b, off); err != nil {
		l.sealed = true
		l.metrics.failedWrites.Add(1)
		return Position{}, fmt.Errorf("write %s at offset %d: %w", FileName(s.number), off, err)
	}
	s.padded = max(s.padded, end)
	s.written.Store(off + int64(n))
	l.metrics.frames.Add(1)
	l.metrics.payloadBytes.Add(uint64(len(payload)))
	l.metrics.writtenBytes.Add(uint64(len(b)))
	return s.end(), nil
}

func (l *Log) frameBuffer(n int) []byte {
	if cap(l.buf) >= n {
		return l.buf[:n]
	}
	b := slices.Grow([]byte(nil), n)[:n]
	if n <= keepBufferBytes {
		l.buf = b
	}
	return b
}

// rotate continues in a new segment of at least size bytes (package comment, 1 and 7).
func (l *Log) rotate(size int64) error {
	next, err := l.takePrepared(size)
	if err != nil {
		return err
	}
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	old := l.current.Load()
	if old != nil {
		if err := l.syncSegment(old); err != nil {
			l.discard(next)
			return err
		}
	}
	end := l.Written()
	l.sealed = true
	b := header{number: next.number, prev: end.Segment, prevLength: end.Offset}.appendFrame(nil)
	if _, err := next.file.WriteAt(append(b, make([]byte, pageBytes-len(b))...), 0); err != nil {
		l.discard(next)
		l.metrics.failedWrites.Add(1)
		return fmt.Errorf("write the header of %s: %w", FileName(next.number), err)
	}
	next.written.Store(int64(len(b)))
	next.padded = pageBytes
	if err := l.syncSegment(next); err != nil {
		l.discard(next)
		return err
	}
	l.publish(old, next)
	if old == nil {
		return nil
	}
	l.metrics.rotations.Add(1)
	if err := old.file.Close(); err != nil {
		// It was synced, so nothing is lost; but a disk that fails here is not to be trusted.
		return l.poison("close "+FileName(old.number), err)
	}
	return nil
}

// publish makes next the current segment.
func (l *Log) publish(old, next *segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old != nil {
		l.segments[len(l.segments)-1].Bytes = old.written.Load()
	}
	if next.prewritten {
		l.prewritten[next.number] = true
	}
	l.segments = append(l.segments, Segment{Number: next.number})
	l.current.Store(next)
	l.sealed = false
	if !l.o.OnDemand {
		l.prepareLocked()
	}
}

// Sync makes every frame durable that is written when it begins, and returns up to where the log is
// durable then. A failure poisons the log.
func (l *Log) Sync() (Position, error) {
	if err := l.usable(); err != nil {
		return Position{}, err
	}
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if err := l.failure.Load(); err != nil {
		return Position{}, *err
	}
	if s := l.current.Load(); s != nil {
		if err := l.syncSegment(s); err != nil {
			return Position{}, err
		}
	}
	return l.Durable(), nil
}

// SyncTo makes the log durable up to pos at least, which Append returned. It costs nothing if it is.
func (l *Log) SyncTo(pos Position) error {
	if l.Durable().Compare(pos) >= 0 {
		return nil
	}
	durable, err := l.Sync()
	if err == nil && durable.Compare(pos) < 0 {
		return fmt.Errorf("sync commit log to %v: it ends at %v", pos, durable)
	}
	return err
}

// syncSegment syncs what is written of s now. syncMu is held.
func (l *Log) syncSegment(s *segment) error {
	if err := l.failure.Load(); err != nil {
		return *err
	}
	written := s.written.Load()
	if s.synced.Load() >= written {
		return nil
	}
	l.metrics.syncs.Add(1)
	if err := s.file.SyncData(); err != nil {
		return l.poison("sync "+FileName(s.number), err)
	}
	s.synced.Store(written)
	if s.syncs++; s.syncs%prewriteAfterSyncs == 0 {
		l.prewriteAhead()
	}
	return nil
}
