// Package memtable is the ordered map that holds the newest writes until they are flushed to a
// table file. It never forgets or replaces an entry, and never touches a disk.
//
// Representation: one arena without pointers. Each distinct engine key is a node of a skiplist;
// the entries of a key hang below its node, newest first (versions.go). Forward links carry four
// bytes of the key they lead to, taken after the prefix that all keys have in common (hint.go), so
// that most steps of a search touch one cache line and not two. Point reads go through a hash
// table and never search (hash.go); rewriting a key that is already there does not either.
//
// Concurrency: one writer at a time (the engine's commit order), any number of readers without
// locks. An object in the arena is filled before an atomic store makes it reachable, and what
// changes afterwards changes through atomics only. A reader that runs beside the writer may or may
// not see entries that are added meanwhile; entries that were there when its operation began it
// does see. Values and keys that are handed out lie in the arena: they are valid until Reset.
//
// Lifetime: New returns a table with one reference. Readers take Ref and give back Unref; when
// Unref reports the last one, the owner may Reset the table and use its memory again.
package memtable

import (
	"bytes"
	"math"
	"sort"
	"sync/atomic"

	"github.com/pairdb/pairdb/libs/ikey"
)

// rangeDeleteCharge is what a range delete adds to SizeBytes beyond its bounds: each one costs
// every reader a comparison and the next one a copy of the list, so a table full of them is flushed
// after some thousands.
const rangeDeleteCharge = 16 << 10

// Table is a memtable.
type Table struct {
	arena      arena
	head       ref
	buckets    []uint64 // atomic access
	bucketMask uint64

	height  atomic.Int32
	hints   atomic.Pointer[hinting]
	entries atomic.Int64
	merges  atomic.Int64
	// mergeLow and mergeHigh are the nodes of the smallest and largest key with a Merge.
	mergeLow, mergeHigh atomic.Uint32
	rangeDeletes        atomic.Pointer[[]ikey.RangeDelete]
	rangeDeleteBytes    atomic.Int64
	refs                atomic.Int32

	// Of the writer.
	splice  splice
	rand    uint64
	keys    int
	learned int
}

// New returns an empty table whose entries may take arenaBytes (1 KiB … 8 GiB) and that has one
// reference.
func New(arenaBytes int) *Table {
	t := &Table{}
	t.arena.init(arenaBytes)
	n := uint64(64)
	for n < uint64(t.arena.capacity()/arenaBytesPerBucket) {
		n <<= 1
	}
	t.buckets = make([]uint64, n)
	t.bucketMask = n - 1
	t.start()
	return t
}

func (t *Table) start() {
	t.arena.used.Store(8)
	t.head, _ = t.arena.alloc(nodeLinks + maxHeight*linkBytes)
	*t.arena.u32(t.head, nodeKeyLen) = 0
	*t.arena.u32(t.head, nodeHeight) = maxHeight
	for level := range maxHeight {
		t.arena.setLink(t.head, level, 0)
	}
	t.height.Store(1)
	t.hints.Store(&hinting{})
	t.entries.Store(0)
	t.merges.Store(0)
	t.mergeLow.Store(0)
	t.mergeHigh.Store(0)
	t.rangeDeletes.Store(nil)
	t.rangeDeleteBytes.Store(0)
	t.splice = splice{}
	t.rand = 0x9e3779b97f4a7c15
	t.keys, t.learned = 0, 0
	t.refs.Store(1)
}

// Ref takes a reference.
func (t *Table) Ref() {
	if t.refs.Add(1) <= 1 {
		panic("memtable: reference to a released table")
	}
}

// Unref gives a reference back and reports whether it was the last: then Reset is allowed.
func (t *Table) Unref() bool {
	n := t.refs.Add(-1)
	if n < 0 {
		panic("memtable: released twice")
	}
	return n == 0
}

// Reset empties the table, keeps its memory, and leaves one reference. Nobody may hold a reference
// or anything that was handed out.
func (t *Table) Reset() {
	if t.refs.Load() != 0 {
		panic("memtable: reset of a table in use")
	}
	clear(t.buckets)
	t.start()
}

// Populate touches the memory of an empty table, so that no Add pays for the first use of a page.
func (t *Table) Populate() {
	const pageWords = 4096 / 8
	free := t.arena.words[t.arena.used.Load()/8:]
	for i := 0; i < len(free); i += pageWords {
		free[i] = 0
	}
	clear(t.buckets)
}

// EntryBytes returns the most that an entry can take of the arena. The engine reserves a batch with
// it: if the sum is at most AvailableBytes, no Add of the batch fails.
func EntryBytes(keyLen, valueLen int) int {
	return nodeLinks + maxHeight*linkBytes + keyLen + 7 + versValue + valueLen + 7
}

// AvailableBytes returns what is left of the arena.
func (t *Table) AvailableBytes() int { return t.arena.capacity() - int(t.arena.used.Load()) }

// Add copies an entry into the table. It returns false, and changes nothing, if the entry does not
// fit. Entries may come in any order; those of one key cost least with rising sequences. The same
// entry twice is one entry; two values under one key and sequence are a broken invariant.
func (t *Table) Add(k ikey.Key, value []byte) bool {
	if len(k.User) > math.MaxInt32 || len(value) > math.MaxInt32 {
		return false
	}
	hash := Hash(k.User)
	if n := t.lookup(hash, k.User); n != 0 {
		return t.addVersion(n, uint64(k.Trailer), value)
	}
	n := t.newNode(k.User, hash, uint64(k.Trailer), value, t.findSplice(k.User))
	if n == 0 {
		return false
	}
	t.count(uint64(k.Trailer), n)
	return true
}

func (t *Table) count(trailer uint64, n ref) {
	t.entries.Add(1)
	if ikey.Trailer(trailer).Kind() != ikey.KindMerge {
		return
	}
	key := t.arena.nodeKey(n)
	if low := ref(t.mergeLow.Load()); low == 0 || bytes.Compare(key, t.arena.nodeKey(low)) < 0 {
		t.mergeLow.Store(uint32(n))
	}
	if high := ref(t.mergeHigh.Load()); high == 0 || bytes.Compare(key, t.arena.nodeKey(high)) > 0 {
		t.mergeHigh.Store(uint32(n))
	}
	t.merges.Add(1)
}

// Get returns the newest entry of user with a sequence of at most seq.
func (t *Table) Get(user []byte, seq ikey.Seq) (ikey.Trailer, []byte, bool) {
	return t.GetHashed(Hash(user), user, seq)
}

// GetHashed is Get for callers that ask several tables for one key: hash is Hash(user).
func (t *Table) GetHashed(hash uint64, user []byte, seq ikey.Seq) (ikey.Trailer, []byte, bool) {
	c := t.FindHashed(hash, user, seq)
	if !c.Valid() {
		return 0, nil, false
	}
	return c.Trailer(), c.Value(), true
}

// FindHashed returns a cursor on the newest entry of user with a sequence of at most seq.
func (t *Table) FindHashed(hash uint64, user []byte, seq ikey.Seq) Cursor {
	n := t.lookup(hash, user)
	if n == 0 {
		return Cursor{}
	}
	return Cursor{arena: &t.arena, v: t.seekVersion(n, uint64(ikey.MakeTrailer(seq, 0xff)))}
}

// AddRangeDelete adds a range delete; it copies the bounds. An empty range is ignored.
func (t *Table) AddRangeDelete(d ikey.RangeDelete) {
	if bytes.Compare(d.Start, d.End) >= 0 {
		return
	}
	d.Start, d.End = bytes.Clone(d.Start), bytes.Clone(d.End)
	old := t.RangeDeletes()
	at := sort.Search(len(old), func(i int) bool {
		c := bytes.Compare(old[i].Start, d.Start)
		return c > 0 || c == 0 && old[i].Seq < d.Seq
	})
	list := make([]ikey.RangeDelete, 0, len(old)+1)
	list = append(append(append(list, old[:at]...), d), old[at:]...)
	t.rangeDeletes.Store(&list)
	t.rangeDeleteBytes.Add(int64(rangeDeleteCharge + len(d.Start) + len(d.End)))
}

// RangeDeletes returns the range deletes, ascending by Start, then newest first. The slice is
// immutable.
func (t *Table) RangeDeletes() []ikey.RangeDelete {
	if list := t.rangeDeletes.Load(); list != nil {
		return *list
	}
	return nil
}

// RangeDeleteSeq returns the sequence of the newest range delete at or below readSeq that covers
// user, or 0: an entry of user with a smaller sequence is deleted.
func (t *Table) RangeDeleteSeq(user []byte, readSeq ikey.Seq) ikey.Seq {
	var newest ikey.Seq
	for _, d := range t.RangeDeletes() {
		if bytes.Compare(d.Start, user) > 0 {
			break
		}
		if d.Seq > newest && d.Seq <= readSeq && bytes.Compare(user, d.End) < 0 {
			newest = d.Seq
		}
	}
	return newest
}

// SizeBytes returns what the table takes: the used part of the arena, and a charge for each range
// delete.
func (t *Table) SizeBytes() int {
	return int(t.arena.used.Load()) - 8 - (nodeLinks + maxHeight*linkBytes) + int(t.rangeDeleteBytes.Load())
}

// Entries returns how many entries the table has, without range deletes.
func (t *Table) Entries() int { return int(t.entries.Load()) }

// Empty reports whether the table has neither entries nor range deletes.
func (t *Table) Empty() bool { return t.entries.Load() == 0 && t.rangeDeletes.Load() == nil }

// Merges returns how many fragments the table has and, if there are any, the smallest and the
// largest key with one: compactions of that range must not drop tombstones.
func (t *Table) Merges() (count int, smallest, largest []byte) {
	count = int(t.merges.Load())
	if count == 0 {
		return 0, nil, nil
	}
	return count, t.arena.nodeKey(ref(t.mergeLow.Load())), t.arena.nodeKey(ref(t.mergeHigh.Load()))
}
