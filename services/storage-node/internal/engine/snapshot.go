package engine

import (
	"slices"
	"sync"

	"github.com/pairdb/pairdb/libs/ikey"
)

// snapshotSet is the ordered set of the sequences that snapshots protect.
type snapshotSet struct {
	mu     sync.Mutex
	live   []protected // ascending by seq
	closed bool
}

type protected struct {
	seq   ikey.Seq
	count int
}

// add protects the sequence that load returns. load is called under the lock, so that sequences,
// which only grow, are added in order, and a job's list can't miss one that is about to be added.
func (s *snapshotSet) add(load func() ikey.Seq) (ikey.Seq, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, false
	}
	seq := load()
	if n := len(s.live); n > 0 && s.live[n-1].seq == seq {
		s.live[n-1].count++
	} else {
		s.live = append(s.live, protected{seq: seq, count: 1})
	}
	return seq, true
}

func (s *snapshotSet) remove(seq ikey.Seq) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := slices.BinarySearchFunc(s.live, seq, func(p protected, q ikey.Seq) int {
		switch {
		case p.seq < q:
			return -1
		case p.seq > q:
			return 1
		}
		return 0
	})
	if !ok {
		return
	}
	if s.live[i].count--; s.live[i].count == 0 {
		s.live = slices.Delete(s.live, i, i+1)
	}
}

// sequences returns the protected sequences, ascending: the stripes of a compaction job. Call it
// after the version of the job's inputs is referenced.
func (s *snapshotSet) sequences() []ikey.Seq {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]ikey.Seq, len(s.live))
	for i, p := range s.live {
		out[i] = p.seq
	}
	return out
}

// count returns how many snapshots are open.
func (s *snapshotSet) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, p := range s.live {
		n += p.count
	}
	return n
}

func (s *snapshotSet) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// Snapshot reads the store as it was at one durable sequence, for as long as it is open; what it
// can see is kept through compactions, so close it. Get and NewIter may be called from several
// goroutines.
type Snapshot struct {
	e   *Engine
	seq ikey.Seq

	mu     sync.RWMutex
	closed bool
}

// NewSnapshot returns a snapshot of everything that is durable now. On a closed engine its methods
// return ErrClosed.
func (e *Engine) NewSnapshot() *Snapshot {
	seq, ok := e.snapshots.add(func() ikey.Seq { return ikey.Seq(e.visible.Load()) })
	return &Snapshot{e: e, seq: seq, closed: !ok}
}

// Seq returns the sequence at which the snapshot reads.
func (s *Snapshot) Seq() ikey.Seq { return s.seq }

// Get is Engine.Get at the snapshot.
func (s *Snapshot) Get(key, dst []byte) (value []byte, found bool, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, false, ErrClosed
	}
	if value, ok := s.e.rowAt(key, dst, s.seq); ok {
		return value, true, nil
	}
	state, err := s.e.acquireFixed()
	if err != nil {
		return nil, false, err
	}
	defer state.unref()
	return state.get(key, s.seq, dst)
}

// NewIter is Engine.NewIter at the snapshot. The iterator stays valid after the snapshot is closed.
func (s *Snapshot) NewIter(o IterOptions) (*Iter, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	state, err := s.e.acquireFixed()
	if err != nil {
		return nil, err
	}
	return newIter(state, s.seq, o)
}

// Close ends the protection. It is idempotent.
func (s *Snapshot) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.e.snapshots.remove(s.seq)
	}
	return nil
}
