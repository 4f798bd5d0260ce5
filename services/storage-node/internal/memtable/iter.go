package memtable

import (
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/iterator"
)

// Iter walks the point entries of a table. It may run beside the writer. It holds no reference: the
// caller does. The zero Iter is made usable by Init, so that it can be part of another struct.
type Iter struct {
	table *Table
	node  ref
	v     ref
}

var _ iterator.Iterator = (*Iter)(nil)

// NewIter returns an iterator that stands nowhere.
func (t *Table) NewIter() *Iter { return &Iter{table: t} }

// Init makes i an iterator of t.
func (i *Iter) Init(t *Table) { *i = Iter{table: t} }

func (i *Iter) toNewest(n ref) bool {
	i.node, i.v = n, 0
	if n != 0 {
		i.v = i.table.arena.newest(n)
	}
	return n != 0
}

func (i *Iter) toOldest(n ref) bool {
	i.node, i.v = 0, 0
	if n != 0 && n != i.table.head {
		i.node, i.v = n, i.table.arena.oldest(n)
	}
	return i.node != 0
}

// First moves to the smallest entry.
func (i *Iter) First() bool { return i.toNewest(i.table.arena.link(i.table.head, 0).to()) }

// Last moves to the largest entry.
func (i *Iter) Last() bool { return i.toOldest(i.table.findLast()) }

// SeekGE moves to the smallest entry that is not less than k.
func (i *Iter) SeekGE(k ikey.Key) bool {
	a := &i.table.arena
	n, _ := i.table.findGE(k.User)
	if n == 0 || string(a.nodeKey(n)) != string(k.User) {
		return i.toNewest(n)
	}
	if v := i.table.seekVersion(n, uint64(k.Trailer)); v != 0 {
		i.node, i.v = n, v
		return true
	}
	return i.toNewest(a.link(n, 0).to())
}

// SeekLT moves to the largest entry that is less than k.
func (i *Iter) SeekLT(k ikey.Key) bool {
	a := &i.table.arena
	n, before := i.table.findGE(k.User)
	if n == 0 || string(a.nodeKey(n)) != string(k.User) {
		return i.toOldest(before)
	}
	v := i.table.seekVersion(n, uint64(k.Trailer))
	if v == 0 {
		return i.toOldest(n)
	}
	if v = a.newer(v); v == 0 {
		return i.toOldest(before)
	}
	i.node, i.v = n, v
	return true
}

// Next moves one entry forward.
func (i *Iter) Next() bool {
	a := &i.table.arena
	if i.v == 0 {
		return false
	}
	if v := a.older(i.v); v != 0 {
		i.v = v
		return true
	}
	return i.toNewest(a.link(i.node, 0).to())
}

// Prev moves one entry backward.
func (i *Iter) Prev() bool {
	a := &i.table.arena
	if i.v == 0 {
		return false
	}
	if v := a.newer(i.v); v != 0 {
		i.v = v
		return true
	}
	return i.toOldest(a.before(i.node))
}

// Valid reports whether the iterator stands on an entry.
func (i *Iter) Valid() bool { return i.v != 0 }

// Key returns the internal key; it lies in the arena.
func (i *Iter) Key() ikey.Key {
	a := &i.table.arena
	return ikey.Key{User: a.nodeKey(i.node), Trailer: ikey.Trailer(*a.u64(i.v, versTrailer))}
}

// Value returns the value; it lies in the arena.
func (i *Iter) Value() []byte { return i.table.arena.value(i.v) }

// Err returns nil: memory does not fail.
func (i *Iter) Err() error { return nil }

// Close makes the iterator stand nowhere.
func (i *Iter) Close() error {
	i.node, i.v = 0, 0
	return nil
}
