package causal

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	// MaxClockEntries is the largest number of entries of one clock.
	MaxClockEntries = 1000
	// MaxNodeIDBytes is the longest id of an actor.
	MaxNodeIDBytes = 128

	// maxUnix is the last second that a hybrid logical timestamp can express: 48 bits of
	// milliseconds, the year 10889.
	maxUnix = (1<<48 - 1) / 1000
)

// ErrInvalid says that a clock, a sibling or a record breaks a rule of this package.
var ErrInvalid = errors.New("invalid")

// Entry says how many writes of one actor a clock contains.
type Entry struct {
	// Node is the actor, 1 to MaxNodeIDBytes bytes.
	Node string
	// Counter is the last write of the actor that is contained, with all before it; at least 1.
	Counter uint64
	// Raised is when the entry was last raised, in Unix seconds by the timestamp of the write that
	// did it, or an upper bound of it; 0 is unknown. It takes no part in comparisons.
	Raised int64
}

// Dot is one write of one actor. The zero Dot is no write.
type Dot struct {
	Node    string
	Counter uint64
}

// IsZero reports whether d is no write.
func (d Dot) IsZero() bool { return d == Dot{} }

// Clock is a vector clock: entries ascending by Node, each Node once. Clocks are not changed in
// place once they are shared.
type Clock []Entry

// Order is how two clocks relate.
type Order uint8

// The four relations of two clocks.
const (
	// Equal clocks contain the same writes.
	Equal Order = iota
	// Before: the first is contained in the second, and less.
	Before
	// After: the second is contained in the first, and less.
	After
	// Concurrent: each has seen a write that the other has not.
	Concurrent
)

// String returns the name of the relation.
func (o Order) String() string {
	return [...]string{"equal", "before", "after", "concurrent"}[o&3]
}

// NewClock sorts entries, in place, into a clock and validates it.
func NewClock(entries []Entry) (Clock, error) {
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Node, b.Node) })
	c := Clock(entries)
	return c, c.Validate()
}

// Validate reports with ErrInvalid what is wrong with the clock: order, size, ids, counters.
func (c Clock) Validate() error {
	if len(c) > MaxClockEntries {
		return fmt.Errorf("%w clock: %d entries, at most %d allowed", ErrInvalid, len(c), MaxClockEntries)
	}
	for i, e := range c {
		if err := validateDot(Dot{e.Node, e.Counter}); err != nil {
			return err
		}
		if e.Raised < 0 || e.Raised > maxUnix {
			return fmt.Errorf("%w clock: entry %q raised at %d", ErrInvalid, e.Node, e.Raised)
		}
		if i > 0 && c[i-1].Node >= e.Node {
			return fmt.Errorf("%w clock: node id %q out of order or twice", ErrInvalid, e.Node)
		}
	}
	return nil
}

func validateDot(d Dot) error {
	if len(d.Node) == 0 || len(d.Node) > MaxNodeIDBytes {
		return fmt.Errorf("%w clock: node id of %d bytes, 1 to %d allowed", ErrInvalid, len(d.Node), MaxNodeIDBytes)
	}
	if d.Counter == 0 {
		return fmt.Errorf("%w clock: counter 0 of node id %q, at least 1 allowed", ErrInvalid, d.Node)
	}
	return nil
}

// find returns the position of node, or where it would stand.
func (c Clock) find(node string) (int, bool) {
	if len(c) <= 8 {
		for i := range c {
			if c[i].Node >= node {
				return i, c[i].Node == node
			}
		}
		return len(c), false
	}
	return slices.BinarySearchFunc(c, node, func(e Entry, n string) int { return strings.Compare(e.Node, n) })
}

// Get returns the counter of node, 0 if the clock has none.
func (c Clock) Get(node string) uint64 {
	if i, ok := c.find(node); ok {
		return c[i].Counter
	}
	return 0
}

// Contains reports whether the clock has seen d.
func (c Clock) Contains(d Dot) bool { return c.Get(d.Node) >= d.Counter }

// within reports whether every write in c is in o.
func (c Clock) within(o Clock) bool {
	if len(c) > len(o) {
		return false
	}
	j := 0
	for i := range c {
		for j < len(o) && o[j].Node < c[i].Node {
			j++
		}
		if j == len(o) || o[j].Node != c[i].Node || o[j].Counter < c[i].Counter {
			return false
		}
		j++
	}
	return true
}

// Compare returns how c relates to o; Raised does not count.
func (c Clock) Compare(o Clock) Order {
	le, ge := c.within(o), o.within(c)
	switch {
	case le && ge:
		return Equal
	case le:
		return Before
	case ge:
		return After
	}
	return Concurrent
}

// Join returns the smallest clock that contains both. Of entries with equal counters the later
// Raised counts, else that of the higher counter. The result may share memory with c or o.
func (c Clock) Join(o Clock) Clock {
	if len(o) == 0 {
		return c
	}
	if len(c) == 0 {
		return o
	}
	out := make(Clock, 0, len(c)+len(o))
	i, j := 0, 0
	for i < len(c) && j < len(o) {
		switch a, b := c[i], o[j]; {
		case a.Node < b.Node:
			out, i = append(out, a), i+1
		case a.Node > b.Node:
			out, j = append(out, b), j+1
		default:
			out, i, j = append(out, joinEntry(a, b)), i+1, j+1
		}
	}
	out = append(out, c[i:]...)
	return append(out, o[j:]...)
}

func joinEntry(a, b Entry) Entry {
	if b.Counter > a.Counter || b.Counter == a.Counter && b.Raised > a.Raised {
		return b
	}
	return a
}

// With returns the clock with d added, raised at the given second. The result does not share
// memory with c if it differs.
func (c Clock) With(d Dot, raised int64) Clock {
	i, ok := c.find(d.Node)
	e := Entry{Node: d.Node, Counter: d.Counter, Raised: raised}
	if ok {
		if e = joinEntry(c[i], e); e == c[i] {
			return c
		}
		out := slices.Clone(c)
		out[i] = e
		return out
	}
	out := make(Clock, 0, len(c)+1)
	out = append(out, c[:i]...)
	out = append(out, e)
	return append(out, c[i:]...)
}

// compareClocks is a total order on clocks, Raised ignored: entry by entry, then by length.
func compareClocks(a, b Clock) int {
	for i := range min(len(a), len(b)) {
		if c := compareDots(Dot{a[i].Node, a[i].Counter}, Dot{b[i].Node, b[i].Counter}); c != 0 {
			return c
		}
	}
	return len(a) - len(b)
}

func compareDots(a, b Dot) int {
	if c := strings.Compare(a.Node, b.Node); c != 0 {
		return c
	}
	switch {
	case a.Counter < b.Counter:
		return -1
	case a.Counter > b.Counter:
		return 1
	}
	return 0
}
