package engine

import (
	"sync/atomic"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/cache"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
	"github.com/pairdb/pairdb/services/storage-node/internal/memtable"
)

// reads is the read side of an Engine, embedded in it.
//
// What a reader sees is decided by two things, taken together by acquire: a read state (which
// memtables and tables there are) and a sequence (which of their entries count). The write side
// keeps these promises, on which everything here rests:
//
//  1. A memtable is published (publish) before the first entry is added to it, and an entry is in
//     the row cache (updated or invalidated) and in the memtable before applied reaches its
//     sequence; applied never passes an entry that is still missing.
//  2. visible <= applied; visible reaches a sequence when everything up to it is durable.
//  3. A version is published only when visible has reached every sequence in its tables, and tables
//     replace a memtable in one publish.
//  4. A job's snapshot list is taken (snapshots.sequences) after the version of its inputs is
//     referenced; with 3 it follows that a job never drops what a later snapshot can see.
type reads struct {
	current atomic.Pointer[readState]
	applied atomic.Uint64 // newest sequence that GetLatest may read
	visible atomic.Uint64 // newest sequence that Get may read: durable

	snapshots snapshotSet
	tables    *tableCache
	rows      *cache.Rows           // nil when the row cache is off
	recycle   func(*memtable.Table) // gets memtables that nobody holds any more

	states atomic.Int64 // read states that are not released: 0 after Close
	iters  atomic.Int64 // open iterators: 0 after Close
	counts readCounts
}

// readCounts are the counters of the read side.
type readCounts struct {
	tableProbes    atomic.Uint64 // tables searched by point reads
	filterSkips    atomic.Uint64 // tables that a filter ruled out
	corruptReads   atomic.Uint64 // reads that met damage
	mergedReads    atomic.Uint64 // point reads that joined fragments
	stateConflicts atomic.Uint64 // retries of acquire
}

// liveTable is a table of a version together with its place in the table cache.
type liveTable struct {
	*manifest.Table
	slot *tableSlot
}

// readState is one immutable picture of where entries are: the memtables and a version. Its
// referents stay until the last reader lets go.
//
// refs counts the readers and, while it is current, the engine. When it falls to zero whoever
// swaps it from 0 to dead tears the state down, so a late acquire can't revive one that is gone.
type readState struct {
	refs atomic.Int64
	_    [56]byte // refs is written by every reader: keep it off the line of what they read

	mems    []*memtable.Table // the active one, then immutable ones, newest first
	version *manifest.Version
	l0      []liveTable // newest first
	levels  [manifest.NumLevels][]liveTable
	reads   *reads
}

const dead = -1 << 40

func (s *readState) tryRef() bool {
	if s.refs.Add(1) <= 0 {
		s.refs.Add(-1)
		return false
	}
	return true
}

func (s *readState) unref() {
	if s.refs.Add(-1) == 0 && s.refs.CompareAndSwap(0, dead) {
		for _, m := range s.mems {
			s.reads.unrefMemtable(m)
		}
		s.version.Unref()
		s.reads.states.Add(-1)
	}
}

// unrefMemtable gives one reference of a memtable back, and hands the table to recycle if it was the
// last: its arena may be used again.
func (r *reads) unrefMemtable(m *memtable.Table) {
	if m.Unref() && r.recycle != nil {
		r.recycle(m)
	}
}

// publish makes a new read state current. It takes over one reference of version, and adds its own
// to the memtables: the active one first, then immutable ones, newest first. It keeps mems. Calls
// are serialised by the caller.
func (r *reads) publish(mems []*memtable.Table, version *manifest.Version) {
	s := &readState{mems: mems, version: version, reads: r}
	s.refs.Store(1)
	for _, m := range mems {
		m.Ref()
	}
	if prev := r.current.Load(); prev != nil && prev.version == version {
		s.l0, s.levels = prev.l0, prev.levels
	} else {
		for level, tables := range version.Levels {
			live := make([]liveTable, len(tables))
			for i, t := range tables {
				live[i] = liveTable{Table: t, slot: r.tables.slot(t.Num)}
			}
			s.levels[level] = live
		}
		s.l0 = newestFirst(s.levels[0])
	}
	r.states.Add(1)
	if old := r.current.Swap(s); old != nil {
		old.unref()
	}
}

func newestFirst(tables []liveTable) []liveTable {
	out := make([]liveTable, len(tables))
	for i, t := range tables {
		out[len(tables)-1-i] = t
	}
	return out
}

// closeReads ends reading: acquire fails from now on. Iterators that are open keep their state.
func (r *reads) closeReads() {
	if old := r.current.Swap(nil); old != nil {
		old.unref()
	}
}

// acquire returns the current read state and the value that *at has while that state is current.
// Both belong together: every entry up to the sequence is in the state, and nothing that a reader
// at the sequence needs was dropped from it. It takes no lock. The caller calls unref.
func (r *reads) acquire(at *atomic.Uint64) (*readState, ikey.Seq, error) {
	for {
		s := r.current.Load()
		if s == nil {
			return nil, 0, ErrClosed
		}
		if s.tryRef() {
			// A sequence that is loaded while s is still current can't belong to a memtable that
			// came after s.
			seq := ikey.Seq(at.Load())
			if r.current.Load() == s {
				return s, seq, nil
			}
			s.unref()
		}
		r.counts.stateConflicts.Add(1)
	}
}

// acquireFixed returns the current read state for a sequence that a snapshot protects.
func (r *reads) acquireFixed() (*readState, error) {
	for {
		s := r.current.Load()
		if s == nil {
			return nil, ErrClosed
		}
		if s.tryRef() {
			return s, nil
		}
	}
}
