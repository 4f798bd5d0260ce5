package memtable

import (
	"sync/atomic"

	"github.com/pairdb/pairdb/libs/ikey"
)

// The versions of a key form a list, newest first. Each also has a jump to a much older one, chosen
// as in a skew-binary random access list (Myers 1983): adding at the front costs O(1), finding the
// newest version that a snapshot may see O(log versions), however hot the key is.

func (t *Table) fillVersion(v ref, trailer uint64, value []byte, older ref) {
	a := &t.arena
	*a.u64(v, versTrailer) = trailer
	atomic.StoreUint32(a.u32(v, versOlder), uint32(older))
	atomic.StoreUint32(a.u32(v, versNewer), 0)
	jump, depth := v, uint32(0)
	if older != 0 {
		depth = *a.u32(older, versDepth) + 1
		jump = older
		if j := ref(*a.u32(older, versJump)); j != older {
			jj := ref(*a.u32(j, versJump))
			jDepth := *a.u32(j, versDepth)
			if *a.u32(older, versDepth)-jDepth == jDepth-*a.u32(jj, versDepth) {
				jump = jj
			}
		}
	}
	*a.u32(v, versJump) = uint32(jump)
	*a.u32(v, versDepth) = depth
	*a.u32(v, versLen) = uint32(len(value))
	copy(a.bytes(v, versValue, len(value)), value)
}

// addVersion adds an entry to a key that is already there.
func (t *Table) addVersion(n ref, trailer uint64, value []byte) bool {
	a := &t.arena
	newest := a.newest(n)
	var newer ref // the version the new one goes behind; 0: it becomes the newest
	older := newest
	if *a.u64(newest, versTrailer) >= trailer {
		older = t.seekVersion(n, trailer)
		if older != 0 && *a.u64(older, versTrailer) == trailer {
			if string(a.value(older)) != string(value) {
				panic("memtable: two different entries with one sequence")
			}
			return true
		}
		if older != 0 {
			newer = a.newer(older)
		} else {
			newer = a.oldest(n)
		}
	}
	v, ok := a.alloc(versValue + len(value))
	if !ok {
		return false
	}
	t.fillVersion(v, trailer, value, older)
	atomic.StoreUint32(a.u32(v, versNewer), uint32(newer))
	if newer == 0 {
		atomic.StoreUint32(a.u32(n, nodeNewest), uint32(v))
	} else {
		atomic.StoreUint32(a.u32(newer, versOlder), uint32(v))
	}
	if older == 0 {
		atomic.StoreUint32(a.u32(n, nodeOldest), uint32(v))
	} else {
		atomic.StoreUint32(a.u32(older, versNewer), uint32(v))
	}
	t.count(trailer, n)
	return true
}

// seekVersion returns the newest version of n with a trailer of at most max, or 0.
func (t *Table) seekVersion(n ref, max uint64) ref {
	a := &t.arena
	v := a.newest(n)
	for v != 0 && *a.u64(v, versTrailer) > max {
		if j := ref(*a.u32(v, versJump)); j != v && *a.u64(j, versTrailer) > max {
			v = j
		} else {
			v = a.older(v)
		}
	}
	return v
}

// Cursor walks the versions of one key from new to old. It is a value, so that a read that has to
// join several fragments allocates nothing. It is good for as long as the table is.
type Cursor struct {
	arena *arena
	v     ref
}

// Valid reports whether the cursor stands on an entry.
func (c *Cursor) Valid() bool { return c.v != 0 }

// Trailer returns sequence and kind of the entry.
func (c *Cursor) Trailer() ikey.Trailer { return ikey.Trailer(*c.arena.u64(c.v, versTrailer)) }

// Value returns the value of the entry; it lies in the arena.
func (c *Cursor) Value() []byte { return c.arena.value(c.v) }

// Next moves to the next older entry of the same key.
func (c *Cursor) Next() bool {
	c.v = c.arena.older(c.v)
	return c.v != 0
}
