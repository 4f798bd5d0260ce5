package engine

import (
	"sort"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
)

// levelIter walks tables that are disjoint and in order as one: a level below 0, or a single table
// of level 0. A table is opened when the walk gets to it and closed when the walk leaves it, so an
// iterator over a large store has one open table a level. It reports damage to the table cache.
type levelIter struct {
	tables []liveTable
	at     int // index of the table that is open; len(tables) or -1 beyond either end
	table  *openTable
	iter   *sstable.Iter
	err    error
	done   bool
}

func newLevelIter(tables []liveTable) *levelIter { return &levelIter{tables: tables, at: -1} }

// open makes table i the current one.
func (l *levelIter) open(i int) bool {
	if l.iter != nil && l.at == i {
		return true
	}
	l.leave()
	l.at = i
	if i < 0 || i >= len(l.tables) {
		return false
	}
	t := &l.tables[i]
	if t.Quarantined {
		l.err = quarantined(t.Num)
		return false
	}
	table, err := t.slot.acquire()
	if err != nil {
		l.err = err
		return false
	}
	l.table, l.iter = table, table.NewIter()
	return true
}

// leave closes the current table; a failure of its iterator becomes that of the walk.
func (l *levelIter) leave() {
	if l.iter == nil {
		return
	}
	if err := l.iter.Close(); err != nil && l.err == nil {
		l.err = err
	}
	l.iter = nil
	l.table.release()
	l.table = nil
}

// settle is called with the outcome of a move inside the current table. When the table ended, the
// walk goes on in the neighbour in direction step.
func (l *levelIter) settle(ok bool, step int) bool {
	for !ok {
		if l.iter != nil {
			if err := l.iter.Err(); err != nil {
				return l.fail(err)
			}
		}
		if l.err != nil || !l.open(l.at+step) {
			return false
		}
		if step > 0 {
			ok = l.iter.First()
		} else {
			ok = l.iter.Last()
		}
	}
	return true
}

func (l *levelIter) fail(err error) bool {
	l.err = err
	if isDamage(err) {
		slot := l.table.slot
		slot.cache.onCorrupt(slot.num, err)
	}
	return false
}

func (l *levelIter) reset() bool {
	l.err = nil
	return !l.done
}

// First implements iterator.Iterator.
func (l *levelIter) First() bool {
	return l.reset() && l.open(0) && l.settle(l.iter.First(), +1)
}

// Last implements iterator.Iterator.
func (l *levelIter) Last() bool {
	return l.reset() && l.open(len(l.tables)-1) && l.settle(l.iter.Last(), -1)
}

// SeekGE implements iterator.Iterator.
func (l *levelIter) SeekGE(k ikey.Key) bool {
	i := sort.Search(len(l.tables), func(i int) bool { return ikey.Compare(l.tables[i].Largest, k) >= 0 })
	return l.reset() && l.open(i) && l.settle(l.iter.SeekGE(k), +1)
}

// SeekLT implements iterator.Iterator.
func (l *levelIter) SeekLT(k ikey.Key) bool {
	i := sort.Search(len(l.tables), func(i int) bool { return ikey.Compare(l.tables[i].Smallest, k) >= 0 }) - 1
	return l.reset() && l.open(i) && l.settle(l.iter.SeekLT(k), -1)
}

// Next implements iterator.Iterator.
func (l *levelIter) Next() bool { return l.Valid() && l.settle(l.iter.Next(), +1) }

// Prev implements iterator.Iterator.
func (l *levelIter) Prev() bool { return l.Valid() && l.settle(l.iter.Prev(), -1) }

// Valid implements iterator.Iterator.
func (l *levelIter) Valid() bool { return l.err == nil && l.iter != nil && l.iter.Valid() }

// Key implements iterator.Iterator.
func (l *levelIter) Key() ikey.Key { return l.iter.Key() }

// Value implements iterator.Iterator.
func (l *levelIter) Value() []byte {
	v := l.iter.Value()
	if v == nil {
		if err := l.iter.Err(); err != nil {
			l.fail(err)
		}
	}
	return v
}

// Err implements iterator.Iterator.
func (l *levelIter) Err() error { return l.err }

// Close implements iterator.Iterator.
func (l *levelIter) Close() error {
	if !l.done {
		l.done = true
		l.leave()
	}
	return l.err
}

// quarantined is the error of a read that a quarantined table is in the way of: what it holds is
// not known, so the answer isn't either.
func quarantined(num uint64) error {
	return &sstable.CorruptionError{File: compact.TableName(num), What: "the table is quarantined: it was found damaged"}
}
