package engine

import (
	"bytes"
	"fmt"
	"sort"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable/filter"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// The row cache and sequences. A row is the joined record of one key with the sequence at which it
// became, or was read as, the state of the key. The cache has the row of a write before applied or
// visible reaches the write. So a reader at sequence v that loads v first and then finds a row with
// sequence <= v has the state of the key at v: a write between the two would have replaced the row
// before v reached it. A row above v is not durable for this reader, who goes to the memtables.

// Get returns the joined record of key at the newest durable sequence. The value is written to
// dst[:0], which grows if it must. A key that isn't there is found == false; an answer that damage
// makes impossible is an error, never an absence.
func (e *Engine) Get(key, dst []byte) (value []byte, found bool, err error) {
	return e.GetTrail(key, dst, nil)
}

// GetTrail is Get that also says in t where it looked; nil: nobody wants to know.
func (e *Engine) GetTrail(key, dst []byte, t *stages.Trail) (value []byte, found bool, err error) {
	if e.rows != nil {
		if value, ok := e.rowAt(key, dst, ikey.Seq(e.visible.Load())); ok {
			if t != nil {
				t.Looked(stages.Lookups{Rows: 1})
			}
			return value, true, nil
		}
	}
	s, at, err := e.acquire(&e.visible)
	if err != nil {
		return nil, false, err
	}
	value, found, err = s.getTrail(key, at, dst, t)
	if found && e.rows != nil {
		e.rows.Insert(key, value, at)
	}
	s.unref()
	return value, found, err
}

// GetLatest returns the joined record of key with every write that was applied, durable or not, and
// the sequence at which the answer is valid: what SetIfUnchanged needs. It is for the decision of a
// write; clients get Get.
func (e *Engine) GetLatest(key, dst []byte) (value []byte, found bool, readSeq ikey.Seq, err error) {
	return e.GetLatestTrail(key, dst, nil)
}

// GetLatestTrail is GetLatest that also says in t where it looked; nil: nobody wants to know.
func (e *Engine) GetLatestTrail(key, dst []byte, t *stages.Trail) (value []byte, found bool, readSeq ikey.Seq, err error) {
	if e.rows != nil {
		at := ikey.Seq(e.applied.Load())
		if value, ok := e.rowAt(key, dst, at); ok {
			if t != nil {
				t.Looked(stages.Lookups{Rows: 1})
			}
			return value, true, at, nil
		}
	}
	s, at, err := e.acquire(&e.applied)
	if err != nil {
		return nil, false, 0, err
	}
	value, found, err = s.getTrail(key, at, dst, t)
	if found && e.rows != nil {
		e.rows.Insert(key, value, at)
	}
	s.unref()
	return value, found, at, err
}

// NewestSeq returns the sequence of the newest entry of key that was applied and counts; found is false if
// there is none. It looks into tables, never into the row cache.
func (e *Engine) NewestSeq(key []byte) (seq ikey.Seq, found bool, err error) {
	s, at, err := e.acquire(&e.applied)
	if err != nil {
		return 0, false, err
	}
	defer s.unref()
	l := lookup{key: key, hash: filter.Hash(key), at: at}
	if !s.searchMemtables(&l) {
		if err := s.searchTables(&l); err != nil {
			return 0, false, err
		}
	}
	if l.set != nil && l.setAt >= l.floor {
		seq, found = l.setAt, true
	}
	for _, f := range l.frags {
		if f.seq >= l.floor {
			seq, found = max(seq, f.seq), true
		}
	}
	return seq, found, nil
}

// rowAt returns the cached row of key if it is the state at sequence at, which was loaded before.
func (e *Engine) rowAt(key, dst []byte, at ikey.Seq) ([]byte, bool) {
	if e.rows == nil || e.current.Load() == nil {
		return nil, false // closed: the slow path says so
	}
	return e.rows.Get(key, dst[:0], at)
}

// lookup collects what the sources of a read state know about one key, newest source first. Values
// alias memtables and blocks: the read state holds them.
type lookup struct {
	key  []byte
	hash uint64 // filter.Hash and memtable.Hash, which are the same
	at   ikey.Seq

	// floor hides everything below it: the newest Set, Delete or range delete that was met.
	floor ikey.Seq
	set   []byte // of the Set with sequence setAt; not nil when there is one
	setAt ikey.Seq
	frags []fragment

	skips, probes uint64 // tables that a filter ruled out, that were searched

	// dst is the caller's memory for the result; free is the same as long as no table has put a
	// value into it, then nil.
	dst, free []byte
}

type fragment struct {
	seq   ikey.Seq
	value []byte
}

// entry takes an entry with a sequence <= at, newest first within one source. It reports whether
// older ones of this source can still count.
func (l *lookup) entry(t ikey.Trailer, value []byte) (more bool) {
	seq := t.Seq()
	if seq < l.floor {
		return false
	}
	switch t.Kind() {
	case ikey.KindMerge:
		l.frags = append(l.frags, fragment{seq: seq, value: value})
		return true
	case ikey.KindSet:
		if value == nil {
			value = emptyValue
		}
		l.set, l.setAt = value, seq
	}
	l.floor = seq
	return false
}

var emptyValue = []byte{}

// inDst reports whether value lies in the caller's memory.
func (l *lookup) inDst(value []byte) bool {
	return len(value) > 0 && cap(l.dst) > 0 && &value[0] == &l.dst[:1][0]
}

// mask takes the sequence of a range delete over the key.
func (l *lookup) mask(seq ikey.Seq) { l.floor = max(l.floor, seq) }

// result joins what was collected, into the caller's memory if it is free.
func (l *lookup) result() (value []byte, found bool, err error) {
	dst := l.free
	found = l.set != nil && l.setAt >= l.floor
	switch {
	case found && l.inDst(l.set):
		dst = l.set
	case found:
		dst = append(dst, l.set...)
	}
	// Fragments came newest first; the join is associative, so it can start at the oldest.
	var spare []byte
	for i := len(l.frags) - 1; i >= 0; i-- {
		f := l.frags[i]
		if f.seq < l.floor {
			continue
		}
		if !found {
			dst, found = append(dst, f.value...), true
			continue
		}
		joined, err := causal.JoinEncoded(spare[:0], f.value, dst)
		if err != nil {
			return nil, false, fmt.Errorf("join fragments of key %s: %w", ikey.Hash(l.key), err)
		}
		dst, spare = joined, dst
	}
	if !found {
		return nil, false, nil
	}
	return dst, true, nil
}

// get returns the joined record of key at sequence at, in dst[:0] if it fits.
func (s *readState) get(key []byte, at ikey.Seq, dst []byte) (value []byte, found bool, err error) {
	return s.getTrail(key, at, dst, nil)
}

// getTrail is get that also says in t where it looked, if there is one.
func (s *readState) getTrail(key []byte, at ikey.Seq, dst []byte, t *stages.Trail) (value []byte, found bool, err error) {
	l := lookup{key: key, hash: filter.Hash(key), at: at, dst: dst[:0], free: dst[:0]}
	if complete := s.searchMemtables(&l); complete {
		if t != nil {
			t.Looked(stages.Lookups{Memtables: 1})
		}
	} else {
		err := s.searchTables(&l)
		s.reads.counts.filterSkips.Add(l.skips)
		s.reads.counts.tableProbes.Add(l.probes)
		if t != nil {
			t.Looked(stages.Lookups{Tables: int64(l.probes), Skipped: int64(l.skips)})
		}
		if err != nil {
			if isDamage(err) {
				s.reads.counts.corruptReads.Add(1)
			}
			return nil, false, err
		}
	}
	if len(l.frags) > 0 {
		s.reads.counts.mergedReads.Add(1)
	}
	return l.result()
}

// searchMemtables reports whether the answer is complete: everything in an older memtable or a
// table is older than what it found.
func (s *readState) searchMemtables(l *lookup) bool {
	for _, m := range s.mems {
		masked := ikey.Seq(0)
		if len(m.RangeDeletes()) > 0 {
			masked = m.RangeDeleteSeq(l.key, l.at)
			l.mask(masked)
		}
		more := masked == 0
		for c := m.FindHashed(l.hash, l.key, l.at); c.Valid(); c.Next() {
			if !l.entry(c.Trailer(), c.Value()) {
				more = false
				break
			}
		}
		if !more {
			return true
		}
	}
	return false
}

// searchTables asks the tables. Tables of level 0 overlap: they come by their newest sequence, and
// the search may leave the level only when no further one reaches above floor. Below, a key lies in
// one table a level at most, and higher levels are newer.
func (s *readState) searchTables(l *lookup) error {
	for i := range s.l0 {
		t := &s.l0[i]
		if t.MaxSeq < l.floor {
			break
		}
		if bytes.Compare(l.key, t.Smallest.User) < 0 || ikey.Compare(ikey.Search(l.key, l.at), t.Largest) > 0 {
			continue
		}
		if err := s.searchTable(t, l); err != nil {
			return err
		}
	}
	target := ikey.Search(l.key, l.at)
	for level := 1; level < len(s.levels) && l.floor == 0; level++ {
		tables := s.levels[level]
		if len(tables) == 0 {
			continue
		}
		i := sort.Search(len(tables), func(i int) bool { return ikey.Compare(tables[i].Largest, target) >= 0 })
		if i == len(tables) || bytes.Compare(l.key, tables[i].Smallest.User) < 0 {
			continue
		}
		if err := s.searchTable(&tables[i], l); err != nil {
			return err
		}
	}
	return nil
}

// searchTable collects what one table knows about the key.
func (s *readState) searchTable(live *liveTable, l *lookup) error {
	if live.Quarantined {
		return quarantined(live.Num)
	}
	if live.slot.rulesOut(l.hash) {
		l.skips++
		return nil
	}
	table, err := live.slot.acquire()
	if err != nil {
		return err
	}
	defer table.release()
	if table.ranges != nil {
		l.mask(table.ranges.covering(l.key, l.at))
	}
	if !table.MayContain(l.hash) {
		l.skips++
		return nil
	}
	l.probes++
	for at := l.at; ; {
		t, value, ok, err := table.Get(l.key, l.hash, at, l.free)
		if err != nil {
			return s.damaged(live, err)
		}
		if !ok {
			return nil
		}
		if l.inDst(value) {
			l.free = nil
		}
		if !l.entry(t, value) || t.Seq() == 0 {
			return nil
		}
		at = t.Seq() - 1 // a fragment: what is below it?
	}
}

// damaged passes an error of a table on, and has the table quarantined if it is damage.
func (s *readState) damaged(t *liveTable, err error) error {
	if isDamage(err) {
		s.reads.tables.onCorrupt(t.Num, err)
	}
	return err
}
