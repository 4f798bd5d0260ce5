package move

import (
	"bytes"
	"cmp"
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/stream"
)

// standing is how far a move is, in this process.
type standing struct {
	progress *movev1.Progress
	// reached rises with everything that was achieved: what goes on is no reason for a longer pause.
	reached int64

	cursor, storedCursor []byte
	unstored             int64 // bytes since storedCursor

	tail, storedTail uint64 // every change up to it is at the target
	tailStoredAt     time.Time
	unstoredChanges  bool   // changes were sent since storedTail
	tailAtMs         int64  // when the newest change up to tail was found durable
	newest           uint64 // of the node, as it last said
	heard            bool   // the feed has said something in this session

	left      int64 // of the copy, in bytes; -1: not known
	rate      float64
	rateBytes int64 // since rateAt
	rateAt    time.Time
}

// Distances between stored cursors: after a death at most a 64th of a copy is sent again, but for small
// ones, which are quick.
const (
	minStoreBytes = 256 << 10
	maxStoreBytes = 8 << 20
	storeParts    = 64
	// tailStoreEvery is how often a feed without changes of the move is stored: each store is a write.
	tailStoreEvery = 30 * time.Second
)

func standAt(m *movev1.Move) standing {
	s := standing{progress: &movev1.Progress{}, left: -1, rateAt: time.Now(), tailStoredAt: time.Now()}
	if p := m.GetProgress(); p != nil {
		s.progress = proto.CloneOf(p)
	}
	if m.GetState() > movev1.State_STATE_PINNED {
		s.progress.Resumes++
	}
	s.progress.RemainingSeconds, s.progress.LagMs = -1, -1
	s.cursor, s.storedCursor = m.GetCopyCursor(), m.GetCopyCursor()
	s.tail, s.storedTail = m.GetTailSequence(), m.GetTailSequence()
	return s
}

// copied notes what the target has of the snapshot.
func (r *Runner) copied(m stream.Mark) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(m.Cursor) > 0 {
		r.is.cursor = m.Cursor
	}
	r.is.progress.CopiedRecords += m.Records
	r.is.progress.CopiedBytes += m.Bytes
	r.is.unstored += m.Bytes
	r.is.rateBytes += m.Bytes
	r.is.reached++
	if r.is.unstored >= storeBytes(r.is.progress.GetTotalBytes()) {
		r.signalLocked()
	}
	r.o.Metrics.bytes.WithLabelValues("copy").Add(float64(m.Bytes))
	r.o.Metrics.records.WithLabelValues("copy").Add(float64(m.Records))
}

func storeBytes(total int64) int64 {
	return min(max(total/storeParts, minStoreBytes), maxStoreBytes)
}

// tailed notes what the target has of the changes.
func (r *Runner) tailed(m stream.Mark) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.Sequence > r.is.tail {
		r.is.tail, r.is.tailAtMs = m.Sequence, m.AtMs
	}
	r.is.progress.TailedRecords += m.Records
	r.is.progress.TailedBytes += m.Bytes
	r.is.rateBytes += m.Bytes
	if m.Records > 0 {
		r.is.unstoredChanges = true
		r.is.reached++
	}
	r.signalLocked()
	r.o.Metrics.bytes.WithLabelValues("tail").Add(float64(m.Bytes))
	r.o.Metrics.records.WithLabelValues("tail").Add(float64(m.Records))
}

// resent notes bytes that are sent once more.
func (r *Runner) resent(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.is.progress.ResentBytes += n
	r.is.progress.Resumes++
	r.o.Metrics.resent.Add(float64(n))
}

func (r *Runner) hasReached(before int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.is.reached > before
}

// Lag returns how far the target is behind; false when nothing is tailed.
func (r *Runner) Lag() (time.Duration, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.is.heard {
		return 0, false
	}
	return r.is.lag(time.Now()), true
}

func (s *standing) lag(now time.Time) time.Duration {
	if s.tail >= s.newest || s.tailAtMs == 0 {
		return 0
	}
	return max(now.Sub(time.UnixMilli(s.tailAtMs)), 0)
}

// step is a change of a move.
type step struct {
	state    movev1.State
	reason   string
	verified bool
	epoch    uint64
	restart  bool // forgets the cursor and the tail
}

// advance changes the move at the node. What was acknowledged goes along.
func (r *Runner) advance(ctx context.Context, s step) error {
	r.advancing.Lock()
	defer r.advancing.Unlock()
	r.mu.Lock()
	q := &migrationv1.AdvanceRequest{
		Id: r.id, Version: r.m.GetVersion(), State: s.state, Reason: cmp.Or(s.reason, r.note), Verified: s.verified, Epoch: s.epoch,
		Progress: r.is.now(),
	}
	cursor, unstored, tail := r.is.cursor, r.is.unstored, r.is.tail
	if !s.restart { // else the node forgets them
		if !bytes.Equal(cursor, r.is.storedCursor) && r.m.GetState() <= movev1.State_STATE_TAILING {
			q.CopyCursor = cursor
		}
		if tail > r.is.storedTail {
			q.TailSequence = tail
		}
	}
	r.mu.Unlock()
	return r.send(ctx, q, func() {
		r.is.storedCursor, r.is.unstored = cursor, r.is.unstored-unstored
		r.is.storedTail, r.is.tailStoredAt, r.is.unstoredChanges = max(tail, r.is.storedTail), time.Now(), r.is.tail > tail
		if s.restart {
			again := r.is.progress
			again.ResentBytes += again.GetCopiedBytes()
			r.o.Metrics.resent.Add(float64(again.GetCopiedBytes()))
			again.CopiedRecords, again.CopiedBytes = 0, 0
			r.is = standAt(r.m)
			r.is.progress = again
			r.is.cursor, r.is.storedCursor, r.is.tail, r.is.storedTail = nil, nil, 0, 0
		}
		if s.state != movev1.State_STATE_UNSPECIFIED {
			r.is.reached++
		}
	})
}

// send makes a call of Advance; advancing is held. stored runs under mu when it has succeeded.
func (r *Runner) send(ctx context.Context, q *migrationv1.AdvanceRequest, stored func()) error {
	ctx, cancel := context.WithTimeout(ctx, r.o.Times.Call)
	defer cancel()
	a, err := r.o.Migration.Advance(ctx, q)
	if err != nil {
		return ofNode(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seeLocked(a.GetMove())
	stored()
	return nil
}

// store tells the node how far the move is: durably if that is worth a write.
func (r *Runner) store(ctx context.Context) error {
	r.advancing.Lock()
	defer r.advancing.Unlock()
	r.mu.Lock()
	r.is.measure(time.Now())
	now := time.Now()
	due := r.is.unstoredChanges || r.is.tail > r.is.storedTail && now.Sub(r.is.tailStoredAt) >= tailStoreEvery
	q := &migrationv1.AdvanceRequest{Id: r.id, Version: r.m.GetVersion(), Reason: r.note, Progress: r.is.now()}
	cursor, unstored, tail := r.is.cursor, r.is.unstored, r.is.tail
	if !bytes.Equal(cursor, r.is.storedCursor) && r.m.GetState() <= movev1.State_STATE_TAILING {
		q.CopyCursor = cursor
	}
	if due {
		q.TailSequence = tail
	}
	r.mu.Unlock()
	return r.send(ctx, q, func() {
		r.is.storedCursor, r.is.unstored = cursor, r.is.unstored-unstored
		if due {
			r.is.storedTail, r.is.tailStoredAt, r.is.unstoredChanges = tail, now, r.is.tail > tail
		}
	})
}

// measure brings the rate up to date.
func (s *standing) measure(now time.Time) {
	d := now.Sub(s.rateAt)
	if d < 100*time.Millisecond {
		return
	}
	current := float64(s.rateBytes) / d.Seconds()
	// A fifth of each second: what was five seconds ago counts for a third.
	weight := min(0.2*d.Seconds(), 1)
	if s.rate == 0 {
		weight = 1
	}
	s.rate += weight * (current - s.rate)
	s.rateBytes, s.rateAt = 0, now
}

// now returns a copy of the progress with its estimates.
func (s *standing) now() *movev1.Progress {
	p := s.progress
	p.BytesPerSecond = int64(s.rate)
	p.RemainingSeconds = -1
	if s.left >= 0 && s.rate >= 1 {
		p.RemainingSeconds = int64(float64(s.left) / s.rate)
	}
	p.LagRecords, p.LagMs = 0, -1
	if s.heard {
		if s.newest > s.tail {
			p.LagRecords = int64(s.newest - s.tail)
		}
		p.LagMs = s.lag(time.Now()).Milliseconds()
	}
	return proto.CloneOf(p)
}

// reporting tells the node how far the move is until the returned function is called, which tells it for
// the last time.
func (r *Runner) reporting(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(r.o.Times.Report)
		defer ticker.Stop()
		for {
			r.mu.Lock()
			changed := r.changed
			full := r.is.unstored >= storeBytes(r.is.progress.GetTotalBytes())
			r.mu.Unlock()
			if !full {
				select {
				case <-changed:
					continue
				case <-ticker.C:
				case <-ctx.Done():
					return
				}
			}
			if err := r.store(ctx); err != nil {
				// Whoever moves the data notices what is wrong; here the next time comes.
				select {
				case <-ticker.C:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return func() {
		cancel()
		<-done
		const lastWord = 2 * time.Second // the node is at the other end of a socket
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWord)
		defer cancel()
		_ = r.store(ctx) // else it is sent again
	}
}
