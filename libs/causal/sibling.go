package causal

import (
	"bytes"
	"fmt"
)

// Sibling is one of the concurrent values of a key.
type Sibling struct {
	// Clock is what the writer had seen; without a Dot it is the whole clock of the value.
	Clock Clock
	// Dot is the write itself when a storage node coordinated it. Clock does not contain it.
	Dot Dot
	// Value is nil or empty for a tombstone.
	Value []byte
	// Timestamp is hybrid logical: milliseconds since the Unix epoch << 16 | logical counter.
	Timestamp uint64
	// ExpiresAt is an absolute Unix second; from it on the value is treated like a tombstone. 0 is
	// never.
	ExpiresAt int64
	// Tombstone marks a deletion.
	Tombstone bool
}

// Validate reports with ErrInvalid which rule the sibling breaks.
func (s *Sibling) Validate() error {
	if err := s.Clock.Validate(); err != nil {
		return err
	}
	switch {
	case s.Dot.IsZero() && len(s.Clock) == 0:
		return fmt.Errorf("%w sibling: neither clock nor dot", ErrInvalid)
	case s.ExpiresAt < 0 || s.ExpiresAt > maxUnix:
		return fmt.Errorf("%w sibling: expiry %d, 0 to %d allowed", ErrInvalid, s.ExpiresAt, int64(maxUnix))
	case s.Tombstone && (len(s.Value) > 0 || s.ExpiresAt != 0):
		return fmt.Errorf("%w sibling: tombstone with a value or an expiry", ErrInvalid)
	case s.Dot.IsZero():
		return nil
	}
	if err := validateDot(s.Dot); err != nil {
		return err
	}
	if s.Clock.Contains(s.Dot) {
		return fmt.Errorf("%w sibling: its clock contains its own dot %s:%d", ErrInvalid, s.Dot.Node, s.Dot.Counter)
	}
	return nil
}

// Full returns the clock with the dot: every write that this sibling stands for.
func (s *Sibling) Full() Clock {
	if s.Dot.IsZero() {
		return s.Clock
	}
	return s.Clock.With(s.Dot, seconds(s.Timestamp))
}

// Live reports whether the sibling is neither a tombstone nor expired at the given Unix second.
func (s *Sibling) Live(nowUnix int64) bool {
	return !s.Tombstone && (s.ExpiresAt == 0 || nowUnix < s.ExpiresAt)
}

// seenBy reports full(s) ≤ c.
func (s *Sibling) seenBy(c Clock) bool {
	return (s.Dot.IsZero() || c.Contains(s.Dot)) && s.Clock.within(c)
}

// below reports whether o supersedes s; see the package comment for the order.
func (s *Sibling) below(o *Sibling) bool {
	if !s.seenBy(o.Clock) {
		return false
	}
	return !o.Dot.IsZero() || s.lessThan(o.Clock)
}

// lessThan reports full(s) ≠ c, given full(s) ≤ c.
func (s *Sibling) lessThan(c Clock) bool {
	for _, e := range c {
		if e.Counter > s.Clock.Get(e.Node) && (e.Node != s.Dot.Node || e.Counter > s.Dot.Counter) {
			return true
		}
	}
	return false
}

// compareSiblings is the order in a record: total on what makes a sibling itself.
func compareSiblings(a, b *Sibling) int {
	if c := compareDots(a.Dot, b.Dot); c != 0 {
		return c
	}
	if c := compareClocks(a.Clock, b.Clock); c != 0 {
		return c
	}
	if a.Tombstone != b.Tombstone {
		if b.Tombstone {
			return -1
		}
		return 1
	}
	return bytes.Compare(a.Value, b.Value)
}

// joinAttributes joins what two equal siblings carry beside their identity.
func joinAttributes(a, b Sibling) Sibling {
	a.Timestamp = max(a.Timestamp, b.Timestamp)
	if a.ExpiresAt == 0 || b.ExpiresAt == 0 {
		a.ExpiresAt = 0
	} else {
		a.ExpiresAt = max(a.ExpiresAt, b.ExpiresAt)
	}
	for i := range a.Clock {
		if b.Clock[i].Raised > a.Clock[i].Raised {
			a.Clock = a.Clock.Join(b.Clock)
			break
		}
	}
	return a
}

// seconds returns the Unix second of a hybrid logical timestamp.
func seconds(ts uint64) int64 { return int64(ts >> 16 / 1000) }
