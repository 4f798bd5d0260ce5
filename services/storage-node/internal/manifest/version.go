package manifest

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
)

// NumLevels is how many levels a version has.
const NumLevels = 7

// Version is one state of the tables. Its fields are immutable. Whoever got it from Set.Current or
// took Ref gives it back with Unref.
type Version struct {
	// Levels[0] is ordered by age, the newest last; the others by key, disjoint.
	Levels [NumLevels][]*Table

	bytes [NumLevels]uint64
	set   *Set
	refs  atomic.Int64
}

// gone is what refs becomes when the last reference went, so that a late tryRef fails.
const gone = -1 << 40

// NewVersion makes a version that belongs to no set, for pure functions and their tests: it sorts
// the tables of each level. Ref and Unref of it do nothing but count.
func NewVersion(levels [NumLevels][]*Table) *Version {
	v := &Version{Levels: levels}
	v.refs.Store(1)
	for level := range v.Levels {
		v.sortLevel(level)
		v.sumLevel(level)
	}
	return v
}

func (v *Version) sortLevel(level int) {
	if level == 0 {
		slices.SortFunc(v.Levels[0], compareL0)
	} else {
		slices.SortFunc(v.Levels[level], compareKeys)
	}
}

func (v *Version) sumLevel(level int) {
	v.bytes[level] = 0
	for _, t := range v.Levels[level] {
		v.bytes[level] += t.Size
	}
}

// Ref takes another reference; the caller has one.
func (v *Version) Ref() {
	if v.refs.Add(1) <= 1 {
		panic("manifest: reference to a version that is gone")
	}
}

func (v *Version) tryRef() bool {
	if v.refs.Add(1) <= 0 {
		v.refs.Add(-1)
		return false
	}
	return true
}

// Unref gives a reference back. With the last one of all versions and pins that name it, a table is
// reported obsolete.
func (v *Version) Unref() {
	n := v.refs.Add(-1)
	if n < 0 && n > gone/2 {
		panic("manifest: version released twice")
	}
	if n != 0 || !v.refs.CompareAndSwap(0, gone) || v.set == nil {
		return
	}
	v.set.versions.Add(-1)
	var last []*file
	for _, tables := range v.Levels {
		for _, t := range tables {
			if t.file.unref() {
				last = append(last, t.file)
			}
		}
	}
	if len(last) > 0 {
		v.set.obsolete(last)
	}
}

// Bytes returns the size of all tables of a level.
func (v *Version) Bytes(level int) uint64 { return v.bytes[level] }

// TotalBytes returns the size of all tables.
func (v *Version) TotalBytes() (n uint64) {
	for _, b := range v.bytes {
		n += b
	}
	return n
}

// Count returns how many tables there are.
func (v *Version) Count() (n int) {
	for _, tables := range v.Levels {
		n += len(tables)
	}
	return n
}

// Find returns the table with a number and its level, or nil. It looks at every table.
func (v *Version) Find(num uint64) (*Table, int) {
	for level, tables := range v.Levels {
		for _, t := range tables {
			if t.Num == num {
				return t, level
			}
		}
	}
	return nil, 0
}

// Overlapping returns the tables of a level that overlap s, in the order of the level. The slice
// must not be changed.
func (v *Version) Overlapping(level int, s Span) []*Table {
	tables := v.Levels[level]
	if level == 0 {
		var out []*Table
		for _, t := range tables {
			if t.Span().Overlaps(s) {
				out = append(out, t)
			}
		}
		return out
	}
	from := sort.Search(len(tables), func(i int) bool { return !tables[i].Span().endsBefore(s) })
	to := from + sort.Search(len(tables)-from, func(i int) bool { return s.endsBefore(tables[from+i].Span()) })
	return tables[from:to:to]
}

// Span returns the span of all tables of a level, and false if there are none.
func (v *Version) Span(level int) (Span, bool) {
	tables := v.Levels[level]
	if len(tables) == 0 {
		return Span{}, false
	}
	s := tables[0].Span()
	for _, t := range tables[1:] {
		s = s.Union(t.Span())
	}
	return s, true
}

// String prints the version as golden files do.
func (v *Version) String() string {
	var b strings.Builder
	for level, tables := range v.Levels {
		if len(tables) == 0 {
			continue
		}
		fmt.Fprintf(&b, "L%d:\n", level)
		for _, t := range tables {
			fmt.Fprintf(&b, "  %s\n", t)
		}
	}
	if b.Len() == 0 {
		return "empty\n"
	}
	return b.String()
}

// CheckInvariants returns the first invariant of the package comment that v does not keep.
func CheckInvariants(v *Version) error {
	seen := make(map[uint64]int, v.Count())
	for level, tables := range v.Levels {
		for _, t := range tables {
			if at, twice := seen[t.Num]; twice {
				return fmt.Errorf("table %06d stands at level %d and level %d", t.Num, at, level)
			}
			seen[t.Num] = level
			if err := t.check(); err != nil {
				return fmt.Errorf("level %d: table %06d: %w", level, t.Num, err)
			}
		}
		if err := checkOrder(level, tables); err != nil {
			return err
		}
	}
	return nil
}

func checkOrder(level int, tables []*Table) error {
	for i := 1; i < len(tables); i++ {
		a, b := tables[i-1], tables[i]
		if level == 0 {
			if compareL0(a, b) >= 0 {
				return fmt.Errorf("level 0: table %06d (seq %d-%d) must not stand before %06d (seq %d-%d)",
					a.Num, a.MinSeq, a.MaxSeq, b.Num, b.MinSeq, b.MaxSeq)
			}
		} else if !a.Span().endsBefore(b.Span()) {
			return fmt.Errorf("level %d: table %06d overlaps or follows %06d", level, a.Num, b.Num)
		}
	}
	return nil
}
