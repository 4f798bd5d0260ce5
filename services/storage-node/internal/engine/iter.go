package engine

import (
	"bytes"
	"sort"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/iterator"
)

// stepsBeforeSeek is how many versions of one key an iterator steps over before it seeks past the
// rest: a seek costs about as much as eight steps.
const stepsBeforeSeek = 8

// IterOptions bound an iterator to Lower <= key < Upper; nil is no bound. The bounds are copied.
type IterOptions struct {
	Lower, Upper []byte
}

// Iter walks the joined records of an engine at one sequence, in key order, in both directions. It
// sees neither what was written after it was made nor what was deleted before. It pins memtables
// and table files: close it. It is for one goroutine.
//
// Internally it stands on a merged walk over all entries of all sources. Forward, the walk stands
// on an entry of the current key or, when fragments were joined, possibly behind it; backward, it
// stands before all entries of the current key.
type Iter struct {
	state *readState
	seq   ikey.Seq
	inner iterator.Iterator
	mask  rangeMask

	lower, upper []byte

	key     []byte // own copy
	value   []byte // aliases inner, acc
	acc     []byte
	spare   []byte
	valid   bool
	forward bool // which way the inner walk stands relative to key; meaningful while valid
	err     error
	closed  bool
}

// NewIter returns an iterator at the newest durable sequence. It stands nowhere until it is
// positioned.
func (e *Engine) NewIter(o IterOptions) (*Iter, error) {
	s, at, err := e.acquire(&e.visible)
	if err != nil {
		return nil, err
	}
	return newIter(s, at, o)
}

// newIter takes over the caller's reference of s.
func newIter(s *readState, at ikey.Seq, o IterOptions) (*Iter, error) {
	it := &Iter{state: s, seq: at, lower: bytes.Clone(o.Lower), upper: bytes.Clone(o.Upper)}
	s.reads.iters.Add(1)
	dels, err := s.rangeDeletes(it.lower, it.upper)
	if err != nil {
		s.reads.iters.Add(-1)
		s.unref()
		return nil, err
	}
	if len(dels) > 0 {
		it.mask = newRangeMask(dels, at)
	}
	it.inner = iterator.Merge(it.sources()...)
	return it, nil
}

// rangeDeletes returns the range deletes of all memtables and of all tables within the bounds.
func (s *readState) rangeDeletes(lower, upper []byte) ([]ikey.RangeDelete, error) {
	var dels []ikey.RangeDelete
	for _, m := range s.mems {
		dels = append(dels, m.RangeDeletes()...)
	}
	for level := range s.levels {
		for i := range s.levels[level] {
			t := &s.levels[level][i]
			if t.RangeDeletes == 0 || !t.within(lower, upper) {
				continue
			}
			if t.Quarantined {
				return nil, quarantined(t.Num)
			}
			table, err := t.slot.acquire()
			if err != nil {
				return nil, err
			}
			dels = append(dels, table.RangeDeletes()...)
			table.release()
		}
	}
	return dels, nil
}

// within reports whether the table may hold something in [lower, upper).
func (t *liveTable) within(lower, upper []byte) bool {
	return (upper == nil || bytes.Compare(t.Smallest.User, upper) < 0) &&
		(lower == nil || bytes.Compare(t.Largest.User, lower) >= 0)
}

// sources returns the walks to merge, newest first. Tables out of bounds and tables that a range
// delete hides as a whole are left out.
func (it *Iter) sources() []iterator.Iterator {
	s := it.state
	out := make([]iterator.Iterator, 0, len(s.mems)+len(s.l0)+len(s.levels))
	for _, m := range s.mems {
		if m.Entries() > 0 || m == s.mems[0] {
			out = append(out, m.NewIter())
		}
	}
	for i := range s.l0 {
		if tables := it.needed(s.l0[i : i+1]); len(tables) > 0 {
			out = append(out, newLevelIter(tables))
		}
	}
	for _, tables := range s.levels[1:] {
		if tables = it.needed(tables); len(tables) > 0 {
			out = append(out, newLevelIter(tables))
		}
	}
	return out
}

// needed cuts tables, which are in order, to the bounds, and leaves out hidden ones.
func (it *Iter) needed(tables []liveTable) []liveTable {
	if it.lower != nil {
		i := sort.Search(len(tables), func(i int) bool { return bytes.Compare(tables[i].Largest.User, it.lower) >= 0 })
		tables = tables[i:]
	}
	if it.upper != nil {
		i := sort.Search(len(tables), func(i int) bool { return bytes.Compare(tables[i].Smallest.User, it.upper) >= 0 })
		tables = tables[:i]
	}
	if len(it.mask.spans) == 0 {
		return tables
	}
	kept := make([]liveTable, 0, len(tables))
	for _, t := range tables {
		if !it.mask.hides(t.Smallest, t.Largest, t.MaxSeq) {
			kept = append(kept, t)
		}
	}
	return kept
}

// First moves to the smallest key.
func (it *Iter) First() bool {
	if !it.restart() {
		return false
	}
	if it.lower != nil {
		it.inner.SeekGE(ikey.Search(it.lower, ikey.MaxSeq))
	} else {
		it.inner.First()
	}
	return it.findForward()
}

// Last moves to the largest key.
func (it *Iter) Last() bool {
	if !it.restart() {
		return false
	}
	if it.upper != nil {
		it.inner.SeekLT(ikey.Search(it.upper, ikey.MaxSeq))
	} else {
		it.inner.Last()
	}
	return it.findBackward()
}

// SeekGE moves to the smallest key that is not less than key.
func (it *Iter) SeekGE(key []byte) bool {
	if !it.restart() {
		return false
	}
	if it.lower != nil && bytes.Compare(key, it.lower) < 0 {
		key = it.lower
	}
	it.inner.SeekGE(ikey.Search(key, ikey.MaxSeq))
	return it.findForward()
}

// SeekLT moves to the largest key that is less than key.
func (it *Iter) SeekLT(key []byte) bool {
	if !it.restart() {
		return false
	}
	if it.upper != nil && bytes.Compare(key, it.upper) > 0 {
		key = it.upper
	}
	it.inner.SeekLT(ikey.Search(key, ikey.MaxSeq))
	return it.findBackward()
}

// Next moves to the next larger key; only from a key.
func (it *Iter) Next() bool {
	if !it.valid {
		return false
	}
	it.valid = false
	if !it.forward {
		it.inner.SeekGE(ikey.Search(it.key, ikey.MaxSeq))
	}
	it.skipKey()
	return it.findForward()
}

// Prev moves to the next smaller key; only from a key.
func (it *Iter) Prev() bool {
	if !it.valid {
		return false
	}
	it.valid = false
	if it.forward {
		it.inner.SeekLT(ikey.Search(it.key, ikey.MaxSeq))
	}
	return it.findBackward()
}

// Valid reports whether the iterator stands on a key.
func (it *Iter) Valid() bool { return it.valid }

// Key returns the engine key; it is valid until the next move.
func (it *Iter) Key() []byte { return it.key }

// Value returns the joined record; it is valid until the next move.
func (it *Iter) Value() []byte { return it.value }

// Seq returns the sequence at which the iterator reads.
func (it *Iter) Seq() ikey.Seq { return it.seq }

// Err returns what stopped the walk, nil at its end.
func (it *Iter) Err() error { return it.err }

// Close lets go of what the iterator pins and returns Err. It is idempotent.
func (it *Iter) Close() error {
	if it.closed {
		return it.err
	}
	it.closed, it.valid = true, false
	if err := it.inner.Close(); err != nil && it.err == nil {
		it.err = err
	}
	it.state.reads.iters.Add(-1)
	it.state.unref()
	return it.err
}

func (it *Iter) restart() bool {
	it.valid, it.err = false, nil
	if it.closed {
		it.err = ErrClosed
	}
	return !it.closed
}

// skipKey moves the inner walk forward beyond all entries of the current key.
func (it *Iter) skipKey() {
	for range stepsBeforeSeek {
		if !it.inner.Valid() || !bytes.Equal(it.inner.Key().User, it.key) {
			return
		}
		it.inner.Next()
	}
	if it.inner.Valid() && bytes.Equal(it.inner.Key().User, it.key) {
		it.inner.SeekGE(ikey.Make(it.key, 0, 0))
		for it.inner.Valid() && bytes.Equal(it.inner.Key().User, it.key) {
			it.inner.Next()
		}
	}
}

// skipInvisible moves the inner walk from an entry above the iterator's sequence to the first one
// of the same key that is not, or to another key.
func (it *Iter) skipInvisible() {
	it.key = append(it.key[:0], it.inner.Key().User...)
	for range stepsBeforeSeek {
		k := it.inner.Key()
		if k.Seq() <= it.seq || !bytes.Equal(k.User, it.key) || !it.inner.Next() {
			return
		}
	}
	if k := it.inner.Key(); k.Seq() > it.seq && bytes.Equal(k.User, it.key) {
		it.inner.SeekGE(ikey.Search(it.key, it.seq))
	}
}

// findForward looks for the first key that is there, from where the inner walk stands: on the
// newest entry of a key, or on the newest that is not above the sequence.
func (it *Iter) findForward() bool {
	for it.inner.Valid() {
		k := it.inner.Key()
		if it.upper != nil && bytes.Compare(k.User, it.upper) >= 0 {
			return false
		}
		if k.Seq() > it.seq {
			it.skipInvisible()
			continue
		}
		it.key = append(it.key[:0], k.User...)
		if floor := it.mask.at(it.key); k.Seq() >= floor {
			switch k.Kind() {
			case ikey.KindSet:
				if it.value = it.inner.Value(); it.value == nil && !it.inner.Valid() {
					return it.ended()
				}
				return it.found(true)
			case ikey.KindMerge:
				if !it.joinForward(floor) {
					return false
				}
				return it.found(true)
			}
		}
		it.skipKey()
	}
	return it.ended()
}

// joinForward joins the fragment under the inner walk with what is older.
func (it *Iter) joinForward(floor ikey.Seq) bool {
	it.acc = append(it.acc[:0], it.inner.Value()...)
	if !it.inner.Valid() {
		return it.ended()
	}
	for it.inner.Next() {
		k := it.inner.Key()
		if k.Seq() < floor || !bytes.Equal(k.User, it.key) || !it.joinable(k.Kind()) {
			break
		}
		older := it.inner.Value()
		if !it.inner.Valid() {
			return it.ended()
		}
		if !it.join(it.acc, older) {
			return false
		}
		if k.Kind() == ikey.KindSet {
			break
		}
	}
	if err := it.inner.Err(); err != nil {
		return it.fail(err)
	}
	it.value = it.acc
	return true
}

func (it *Iter) joinable(k ikey.Kind) bool { return k == ikey.KindSet || k == ikey.KindMerge }

// join makes acc the join of newer and older, one of which may be acc.
func (it *Iter) join(newer, older []byte) bool {
	joined, err := causal.JoinEncoded(it.spare[:0], newer, older)
	if err != nil {
		return it.fail(err)
	}
	it.acc, it.spare = joined, it.acc
	return true
}

// findBackward looks for the last key that is there, from where the inner walk stands: on the
// oldest entry of a key.
func (it *Iter) findBackward() bool {
	for it.inner.Valid() {
		user := it.inner.Key().User
		if it.lower != nil && bytes.Compare(user, it.lower) < 0 {
			return false
		}
		it.key = append(it.key[:0], user...)
		live, ok := it.collectBackward(it.mask.at(it.key))
		if !ok {
			return false
		}
		if live {
			it.value = it.acc
			return it.found(false)
		}
	}
	return it.ended()
}

// collectBackward walks the entries of the current key from old to new, to the one before all of
// them, and leaves the joined record in acc if there is one.
func (it *Iter) collectBackward(floor ikey.Seq) (live, ok bool) {
	above := 0
	for it.inner.Valid() {
		k := it.inner.Key()
		if !bytes.Equal(k.User, it.key) {
			break
		}
		switch {
		case k.Seq() > it.seq:
			if above++; above > stepsBeforeSeek {
				it.inner.SeekLT(ikey.Search(it.key, ikey.MaxSeq))
				continue
			}
		case k.Seq() < floor:
		case k.Kind() == ikey.KindDelete:
			live = false
		default:
			newer := it.inner.Value()
			if !it.inner.Valid() {
				return false, it.ended()
			}
			if k.Kind() != ikey.KindMerge || !live {
				it.acc = append(it.acc[:0], newer...)
				live = true
			} else if !it.join(newer, it.acc) {
				return false, false
			}
		}
		it.inner.Prev()
	}
	if err := it.inner.Err(); err != nil {
		return false, it.fail(err)
	}
	return live, true
}

func (it *Iter) found(forward bool) bool {
	it.valid, it.forward = true, forward
	return true
}

// ended is called when the inner walk stands nowhere: at an end, or because of a failure.
func (it *Iter) ended() bool {
	if err := it.inner.Err(); err != nil {
		return it.fail(err)
	}
	return false
}

func (it *Iter) fail(err error) bool {
	it.err, it.valid = err, false
	if isDamage(err) {
		it.state.reads.counts.corruptReads.Add(1)
	}
	return false
}
