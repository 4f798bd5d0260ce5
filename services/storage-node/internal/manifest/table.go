package manifest

import (
	"bytes"
	"fmt"
	"sync/atomic"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
)

// Origin says how a table came to be. Its values are part of the format.
type Origin uint8

const (
	// OriginFlush is a flushed memtable.
	OriginFlush Origin = 1
	// OriginIngest is a table that was ingested.
	OriginIngest Origin = 2
	// OriginExternal was written by a worker process.
	OriginExternal Origin = 3
	// OriginLocal was written by the compaction inside of the node.
	OriginLocal Origin = 4

	maxOrigin = OriginLocal
)

// String returns the name that status prints.
func (o Origin) String() string {
	switch o {
	case OriginFlush:
		return "flush"
	case OriginIngest:
		return "ingest"
	case OriginExternal:
		return "external"
	case OriginLocal:
		return "local"
	}
	return fmt.Sprintf("origin(%d)", uint8(o))
}

// Table is a table file in a version. It is immutable once it was applied.
type Table struct {
	Num uint64
	sstable.Meta
	Origin Origin
	// Quarantined tables were found damaged: they stay where they are, are not read and not
	// compacted.
	Quarantined bool

	file *file // shared by all versions of the entry; set by Apply
}

// file counts who needs a table file: versions and pins.
type file struct {
	refs atomic.Int64
	set  *Set
	num  uint64
	size uint64
}

// Pin keeps the file from becoming obsolete, beyond the life of the version that the table was
// found in, until Unpin. The caller holds that version, or another pin.
func (t *Table) Pin() {
	if t.file.refs.Add(1) <= 1 {
		panic("manifest: pin of an obsolete table")
	}
}

// Unpin gives a Pin back.
func (t *Table) Unpin() {
	if t.file.unref() {
		t.file.set.obsolete([]*file{t.file})
	}
}

func (f *file) unref() (last bool) {
	n := f.refs.Add(-1)
	if n < 0 {
		panic("manifest: table released twice")
	}
	return n == 0
}

// Span is a range of engine keys. A nil Start or End is unbounded. End belongs to it unless
// Exclusive.
type Span struct {
	Start, End []byte
	Exclusive  bool
}

// Overlaps reports whether a key can be in both.
func (s Span) Overlaps(o Span) bool { return !s.endsBefore(o) && !o.endsBefore(s) }

// endsBefore reports whether all of s is before the start of o.
func (s Span) endsBefore(o Span) bool {
	if s.End == nil || o.Start == nil {
		return false
	}
	c := bytes.Compare(s.End, o.Start)
	return c < 0 || c == 0 && s.Exclusive
}

// Contains reports whether all of o is in s.
func (s Span) Contains(o Span) bool {
	if s.Start != nil && (o.Start == nil || bytes.Compare(o.Start, s.Start) < 0) {
		return false
	}
	if s.End == nil {
		return true
	}
	if o.End == nil {
		return false
	}
	c := bytes.Compare(o.End, s.End)
	return c < 0 || c == 0 && (!s.Exclusive || o.Exclusive)
}

// Union returns the smallest span that contains both.
func (s Span) Union(o Span) Span {
	u := s
	if s.Start != nil && (o.Start == nil || bytes.Compare(o.Start, s.Start) < 0) {
		u.Start = o.Start
	}
	if s.End == nil {
		return u
	}
	if o.End == nil {
		u.End, u.Exclusive = nil, false
	} else if c := bytes.Compare(o.End, s.End); c > 0 {
		u.End, u.Exclusive = o.End, o.Exclusive
	} else if c == 0 {
		u.Exclusive = s.Exclusive && o.Exclusive
	}
	return u
}

// String prints the span for people.
func (s Span) String() string {
	start, end, closing := "-", "-", "]"
	if s.Start != nil {
		start = fmt.Sprintf("%q", s.Start)
	}
	if s.End != nil {
		end = fmt.Sprintf("%q", s.End)
	}
	if s.Exclusive {
		closing = ")"
	}
	return "[" + start + " " + end + closing
}

// Span returns the keys that the table covers with entries and range deletes.
func (t *Table) Span() Span {
	return Span{Start: t.Smallest.User, End: t.Largest.User, Exclusive: sstable.IsExclusive(t.Largest)}
}

// String prints the table as golden files do.
func (t *Table) String() string {
	s := fmt.Sprintf("%06d:[%s-%s] seq %d-%d size %d entries %d", t.Num, t.Smallest, t.Largest,
		t.MinSeq, t.MaxSeq, t.Size, t.Entries)
	if t.Merges > 0 {
		s += fmt.Sprintf(" merges %d", t.Merges)
	}
	if t.RangeDeletes > 0 {
		s += fmt.Sprintf(" rangedels %d", t.RangeDeletes)
	}
	if t.Tombstones > 0 {
		s += fmt.Sprintf(" tombstones %d oldest %d", t.Tombstones, t.OldestCollectible)
	}
	s += " " + t.Origin.String()
	if t.Quarantined {
		s += " quarantined"
	}
	return s
}

// compareL0 is the order of level 0: by largest sequence, older first. Tables that were ingested
// together share theirs and don't overlap.
func compareL0(a, b *Table) int {
	switch {
	case a.MaxSeq != b.MaxSeq:
		return cmpUint(uint64(a.MaxSeq), uint64(b.MaxSeq))
	case a.MinSeq != b.MinSeq:
		return cmpUint(uint64(a.MinSeq), uint64(b.MinSeq))
	}
	return cmpUint(a.Num, b.Num)
}

// compareKeys is the order of the deeper levels.
func compareKeys(a, b *Table) int { return ikey.Compare(a.Smallest, b.Smallest) }

func cmpUint(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
