package causal

import (
	"bytes"
	"errors"
	"fmt"
)

// Outcome says what a client write does to a key.
type Outcome uint8

// The outcomes of a client write.
const (
	// Applied: the write is the only sibling now.
	Applied Outcome = iota + 1
	// Duplicate: the same write was there already; the record is unchanged.
	Duplicate
	// Stale: a sibling that had seen this write was there already; the record is unchanged.
	Stale
	// SiblingKept: the write stands beside at least one concurrent sibling.
	SiblingKept
)

// String returns the name of the outcome as the wire has it.
func (o Outcome) String() string {
	switch o {
	case Applied:
		return "APPLIED"
	case Duplicate:
		return "DUPLICATE"
	case Stale:
		return "STALE"
	case SiblingKept:
		return "SIBLING"
	}
	return fmt.Sprintf("OUTCOME(%d)", uint8(o))
}

// Write is a client's write. It is one of three: with a plain Clock that a coordinator made, with
// the Context of an earlier read, or blind.
type Write struct {
	Value     []byte
	Tombstone bool
	// Timestamp is hybrid logical; it is also the time by which clock entries are pruned.
	Timestamp uint64
	// ExpiresAt is an absolute Unix second, 0 is never.
	ExpiresAt int64
	// Clock is the whole clock of the write, already raised by a coordinator; empty if there is
	// none.
	Clock Clock
	// Context is what the client had read; it counts if HasContext, even when empty.
	Context    Clock
	HasContext bool
	// Dot is this write as the node numbers it; it counts if there is no Clock.
	Dot Dot
}

// Limits bound what client writes may add to a key.
type Limits struct {
	// MaxSiblings is how many siblings a write may leave, unless it leaves no more than there were.
	MaxSiblings int
	// PruneAbove is the number of clock entries up to which nothing is pruned.
	PruneAbove int
	// PruneAfter: of a larger clock, entries that were not raised for this many seconds before the
	// write are forgotten. 0 prunes nothing.
	PruneAfter int64
}

// DefaultLimits are those of the wire contract: 64 siblings, clocks of 64 entries, 30 days.
var DefaultLimits = Limits{MaxSiblings: 64, PruneAbove: 64, PruneAfter: 30 * 24 * 3600}

var (
	// ErrTooManySiblings is in every *TooManySiblingsError.
	ErrTooManySiblings = errors.New("too many siblings")
	// ErrDotSeen says that the write's dot was already seen by what it builds on. A dot is given
	// once: someone made up a clock.
	ErrDotSeen = errors.New("dot was seen before it was written")
)

// TooManySiblingsError refuses a concurrent write and carries what has to be merged first.
type TooManySiblingsError struct {
	Limit  int
	Record Record
}

// Error says the limit and the number of siblings.
func (e *TooManySiblingsError) Error() string {
	return fmt.Sprintf("%v: the key has %d, at most %d allowed; merge them", ErrTooManySiblings, len(e.Record.Siblings), e.Limit)
}

// Is makes the error an ErrTooManySiblings.
func (e *TooManySiblingsError) Is(target error) bool { return target == ErrTooManySiblings }

// Apply decides a client write upon the state of its key. It is pure; the result shares memory
// with old and w. Errors: ErrInvalid, ErrDotSeen, *TooManySiblingsError.
//
// A plain clock is compared with every sibling. Otherwise the write supersedes the siblings whose
// dot, or for want of one whose whole clock, is in the context (all of them, if the write is
// blind), and its clock is the context joined with their full clocks: so contexts stay causally
// closed and whoever has seen the write has seen what it replaced.
//
// Clocks are pruned here and only here, after they were compared.
func Apply(old Record, w Write, l Limits) (Record, Outcome, error) {
	next := Sibling{Value: w.Value, Timestamp: w.Timestamp, ExpiresAt: w.ExpiresAt, Tombstone: w.Tombstone}
	plain := len(w.Clock) > 0
	if plain {
		next.Clock = w.Clock
	} else {
		next.Dot = w.Dot
		next.Clock = knowledge(old, w)
		if next.Clock.Contains(w.Dot) {
			return old, 0, fmt.Errorf("%w: %s:%d", ErrDotSeen, w.Dot.Node, w.Dot.Counter)
		}
	}
	if err := next.Validate(); err != nil {
		return old, 0, err
	}
	out := make([]Sibling, 0, len(old.Siblings)+1)
	for i := range old.Siblings {
		s := &old.Siblings[i]
		switch {
		case plain && s.sameWrite(&next):
			return old, Duplicate, nil
		case plain && next.below(s):
			return old, Stale, nil
		case !s.below(&next):
			out = append(out, *s)
		}
	}
	if len(out)+1 > l.MaxSiblings && len(out)+1 > len(old.Siblings) {
		return old, 0, &TooManySiblingsError{Limit: l.MaxSiblings, Record: old}
	}
	next.Clock = raise(next.Clock, old, w)
	next.prune(old.Siblings, l)
	return insert(out, next), outcomeOf(len(out)), nil
}

func outcomeOf(others int) Outcome {
	if others == 0 {
		return Applied
	}
	return SiblingKept
}

func (s *Sibling) sameWrite(o *Sibling) bool {
	return s.Dot == o.Dot && s.Tombstone == o.Tombstone && compareClocks(s.Clock, o.Clock) == 0 && bytes.Equal(s.Value, o.Value)
}

// knowledge returns the clock of a write without a plain one.
func knowledge(old Record, w Write) Clock {
	if !w.HasContext {
		return old.Clock()
	}
	c := w.Context
	for i := range old.Siblings {
		s := &old.Siblings[i]
		seen := s.Dot.IsZero() && s.Clock.within(w.Context) || !s.Dot.IsZero() && w.Context.Contains(s.Dot)
		if seen {
			c = c.Join(s.Full())
		}
	}
	return c
}

// raise returns c with each entry's time of raising: as known where the entry is not above what is
// stored, else that of the write. For what the write only hands on that is an upper bound.
func raise(c Clock, old Record, w Write) Clock {
	if len(c) == 0 {
		return c
	}
	now := seconds(w.Timestamp)
	out := make(Clock, len(c))
	copy(out, c)
	known := old.Clock()
	j := 0
	for i := range out {
		for j < len(known) && known[j].Node < out[i].Node {
			j++
		}
		out[i].Raised = now
		if j < len(known) && known[j].Node == out[i].Node && known[j].Counter >= out[i].Counter && known[j].Raised > 0 {
			out[i].Raised = known[j].Raised
		}
	}
	return out
}

// prune forgets the clock entries that were not raised for long, unless the sibling would then seem
// to be known to another one, also to one that it supersedes and that a replica may still hold.
func (s *Sibling) prune(others []Sibling, l Limits) {
	if l.PruneAfter <= 0 || len(s.Clock) <= l.PruneAbove {
		return
	}
	before := seconds(s.Timestamp) - l.PruneAfter
	kept := make(Clock, 0, len(s.Clock))
	for _, e := range s.Clock {
		if e.Raised >= before {
			kept = append(kept, e)
		}
	}
	pruned := *s
	pruned.Clock = kept
	if s.Dot.IsZero() && len(kept) == 0 || superseded(&pruned, others) {
		return
	}
	s.Clock = kept
}

// insert puts s into sorted siblings of which none is below it.
func insert(siblings []Sibling, s Sibling) Record {
	i := 0
	for i < len(siblings) && compareSiblings(&siblings[i], &s) < 0 {
		i++
	}
	siblings = append(siblings, Sibling{})
	copy(siblings[i+1:], siblings[i:])
	siblings[i] = s
	return Record{Siblings: siblings}
}
