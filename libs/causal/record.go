package causal

import (
	"bytes"
	"fmt"
	"slices"
)

// Record is the state of one key: siblings in ascending order, none below another. The zero Record
// is a key that was never written, and neutral to Join.
type Record struct {
	Siblings []Sibling
}

// NewRecord makes a record of siblings as they arrived: in any order, with repetitions, with some
// that others supersede. It reorders the slice. ErrInvalid says which sibling breaks which rule.
func NewRecord(siblings []Sibling) (Record, error) {
	for i := range siblings {
		if err := siblings[i].Validate(); err != nil {
			return Record{}, fmt.Errorf("sibling %d: %w", i, err)
		}
	}
	return reduce(siblings), nil
}

// Validate reports with ErrInvalid whether the record could be the result of a Join.
func (r Record) Validate() error {
	for i := range r.Siblings {
		if err := r.Siblings[i].Validate(); err != nil {
			return err
		}
	}
	return r.validateOrder()
}

func (r Record) validateOrder() error {
	for i := range r.Siblings {
		if i > 0 && compareSiblings(&r.Siblings[i-1], &r.Siblings[i]) >= 0 {
			return fmt.Errorf("%w record: siblings out of order", ErrInvalid)
		}
		for j := range i {
			if a, b := &r.Siblings[i], &r.Siblings[j]; a.below(b) || b.below(a) {
				return fmt.Errorf("%w record: one sibling supersedes another", ErrInvalid)
			}
		}
	}
	return nil
}

// reduce sorts siblings in place, joins equal ones and drops those that are below another.
func reduce(all []Sibling) Record {
	if len(all) < 2 {
		return Record{Siblings: all}
	}
	slices.SortFunc(all, func(a, b Sibling) int { return compareSiblings(&a, &b) })
	n := 1
	for i := 1; i < len(all); i++ {
		if compareSiblings(&all[n-1], &all[i]) == 0 {
			all[n-1] = joinAttributes(all[n-1], all[i])
			continue
		}
		all[n] = all[i]
		n++
	}
	all = all[:n]
	// A sibling that is dropped needs no further look: what it supersedes is also below the one
	// that superseded it.
	kept := 0
	for i := range all {
		if superseded(&all[i], all[:kept]) || superseded(&all[i], all[i+1:]) {
			continue
		}
		all[kept] = all[i]
		kept++
	}
	return Record{Siblings: all[:kept]}
}

func superseded(s *Sibling, by []Sibling) bool {
	for i := range by {
		if s.below(&by[i]) {
			return true
		}
	}
	return false
}

// Join returns what both records together say about the key. It changes neither; the result shares
// clocks and values with them.
func Join(a, b Record) Record {
	if len(a.Siblings) == 0 {
		return b
	}
	if len(b.Siblings) == 0 {
		return a
	}
	all := make([]Sibling, 0, len(a.Siblings)+len(b.Siblings))
	return reduce(append(append(all, a.Siblings...), b.Siblings...))
}

// Equal reports whether the records are the same, attributes included.
func (r Record) Equal(o Record) bool {
	return slices.EqualFunc(r.Siblings, o.Siblings, func(a, b Sibling) bool {
		return a.Dot == b.Dot && slices.Equal(a.Clock, b.Clock) && bytes.Equal(a.Value, b.Value) &&
			a.Timestamp == b.Timestamp && a.ExpiresAt == b.ExpiresAt && a.Tombstone == b.Tombstone
	})
}

// Clock returns the join of all full clocks: the context of a write that has seen everything here.
func (r Record) Clock() Clock {
	var c Clock
	for i := range r.Siblings {
		c = c.Join(r.Siblings[i].Full())
	}
	return c
}

// MaxTimestamp returns the latest timestamp of a sibling, 0 if there is none.
func (r Record) MaxTimestamp() uint64 {
	var ts uint64
	for i := range r.Siblings {
		ts = max(ts, r.Siblings[i].Timestamp)
	}
	return ts
}

// Live returns the siblings that are neither tombstones nor expired at the given Unix second, in
// the order of the record. It allocates only if it has to leave some out.
func (r Record) Live(nowUnix int64) []Sibling {
	for i := range r.Siblings {
		if r.Siblings[i].Live(nowUnix) {
			continue
		}
		out := slices.Clone(r.Siblings[:i])
		for _, s := range r.Siblings[i+1:] {
			if s.Live(nowUnix) {
				out = append(out, s)
			}
		}
		return out
	}
	return r.Siblings
}

// Winner returns the index of the sibling that an application which wants only one should see:
// the highest (timestamp, dot, clock, value). -1 if there is none. It is a choice of readers and
// has no part in Join.
func Winner(siblings []Sibling) int {
	best := -1
	for i := range siblings {
		if best < 0 || siblings[i].Timestamp > siblings[best].Timestamp ||
			siblings[i].Timestamp == siblings[best].Timestamp && compareSiblings(&siblings[i], &siblings[best]) > 0 {
			best = i
		}
	}
	return best
}

// Collect returns r without tombstones older than gcBefore and without values that expired before
// it, and how many that were. gcBefore is a hybrid logical timestamp. The caller knows whether it
// may: nothing older of the key may exist anywhere that this record supersedes.
func Collect(r Record, gcBefore uint64) (Record, int) {
	var kept []Sibling
	dropped := 0
	for i := range r.Siblings {
		at, ok := collectible(&r.Siblings[i])
		if ok && at < gcBefore {
			if dropped == 0 {
				kept = append(make([]Sibling, 0, len(r.Siblings)-1), r.Siblings[:i]...)
			}
			dropped++
		} else if dropped > 0 {
			kept = append(kept, r.Siblings[i])
		}
	}
	if dropped == 0 {
		return r, 0
	}
	return Record{Siblings: kept}, dropped
}

// collectible returns the timestamp that gcBefore must have passed for s to be collected.
func collectible(s *Sibling) (uint64, bool) {
	switch {
	case s.Tombstone:
		return s.Timestamp, true
	case s.ExpiresAt > 0:
		return expiryHLC(s.ExpiresAt), true
	}
	return 0, false
}

// expiryHLC cannot overflow: Validate bounds expiries by maxUnix.
func expiryHLC(unix int64) uint64 { return uint64(unix) * 1000 << 16 }
