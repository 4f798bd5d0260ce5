package membership

import (
	"fmt"
	"slices"
)

// next are the states that a member may declare of itself after another, besides staying where it is:
// JOINING → UP → DRAINING → DRAINED, and back to UP when a drain is cancelled.
var next = map[State][]State{
	Joining:  {Up},
	Up:       {Draining},
	Draining: {Up, Drained},
}

// Declare returns what a member declares next about itself. known is what the map holds of it, the
// zero Declaration when nothing; want carries the facts and the state, its Version and DeclaredAt are
// not looked at; at is the time, in milliseconds since the Unix epoch.
//
// When want says nothing new, known is returned as it is. Otherwise the version rises by one. A member
// that is not known, and a new incarnation of one that is, begin as Joining. A state that may not
// follow is ErrTransition: what was removed or drained does not come back with the same incarnation.
func Declare(known, want Declaration, at int64) (Declaration, error) {
	want.Version, want.DeclaredAt = known.Version, known.DeclaredAt
	if want == known {
		return known, nil
	}
	begins := known.Version == 0 || want.Incarnation != known.Incarnation
	switch {
	case known.Version != 0 && known.NodeID != want.NodeID:
		return Declaration{}, fmt.Errorf("%w: %s declares %s", ErrTransition, want.NodeID, known.NodeID)
	case begins && want.State != Joining:
		return Declaration{}, fmt.Errorf("%w: %s is new and begins as %s, not as %s", ErrTransition, want.NodeID, Joining, want.State)
	case !begins && (known.State == Removed || want.State != known.State && !slices.Contains(next[known.State], want.State)):
		return Declaration{}, fmt.Errorf("%w: %s from %s to %s", ErrTransition, want.NodeID, known.State, want.State)
	}
	return advance(known, want, at)
}

// Remove returns the declaration by which an operator takes a member out. Removing it again changes
// nothing.
func Remove(known Declaration, at int64) (Declaration, error) {
	if known.State == Removed {
		return known, nil
	}
	gone := known
	gone.State = Removed
	return advance(known, gone, at)
}

// advance gives a changed declaration its version and time.
func advance(known, d Declaration, at int64) (Declaration, error) {
	if known.Version == ^uint64(0) {
		return Declaration{}, fmt.Errorf("%w: %s has no version left", ErrTransition, known.NodeID)
	}
	d.Version, d.DeclaredAt = known.Version+1, at
	return d, d.Validate()
}
