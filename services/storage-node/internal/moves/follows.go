package moves

import "slices"

// By says who changes the state of a move.
type By uint8

const (
	// ByMigrator is Advance.
	ByMigrator By = iota + 1
	// ByNode is a call of the node that does what the state says.
	ByNode
)

// kind is what the life of a move depends on.
type kind uint8

const (
	kindCopy     kind = iota // once, stays where it is
	kindHandOver             // once, handed over
	kindFollow               // follows
	kindRepair               // compares only
)

func kindOf(s *Spec) kind {
	switch {
	case s.Purpose == PurposeRepair:
		return kindRepair
	case s.HandOver:
		return kindHandOver
	case s.Mode == Follow:
		return kindFollow
	}
	return kindCopy
}

// forward is which states may follow which by the word of the migrator, for all that are sent. Staying
// where it is, failing, and beginning anew come on top.
var forward = map[State][]State{
	Pinned:    {Copying},
	Copying:   {Tailing},
	Tailing:   {Verifying},
	Verifying: {Tailing},
}

// Follows reports whether a state may follow another one in the life of a move. It is a pure function and
// says nothing about the facts that a step needs besides, nor about Cancel and Resume.
func Follows(s *Spec, from, to State, by By) bool {
	k := kindOf(s)
	if !k.has(from) || !k.has(to) || from.Ended() || from == Failed {
		return false
	}
	switch by {
	case ByMigrator:
		return k.migrator(from, to)
	case ByNode:
		return k.node(from, to)
	}
	return false
}

// has reports whether a state is one of the life of a move.
func (k kind) has(s State) bool {
	switch {
	case k == kindRepair && s >= Pinned && s <= Tailing:
		return false
	case k != kindHandOver && (s == Fenced || s == Accepted):
		return false
	}
	return s.known()
}

// node says what may follow by a call of the node.
func (k kind) node(from, to State) bool {
	switch to {
	case Pinned:
		return from == Planned
	case Fenced:
		return from == Verifying
	case Committed:
		return from == Accepted
	case Released:
		return from == Committed
	case Verifying:
		return from == Fenced // lifted
	}
	return false
}

// migrator says what may follow by the word of the migrator.
func (k kind) migrator(from, to State) bool {
	switch {
	case to == from || to == Failed:
		return true
	case to == Planned:
		// Begins anew: its place in the log is lost. Not when ranges are in between.
		return from < Fenced
	case k == kindRepair:
		return from == Planned && to == Verifying || from == Verifying && to == Committed
	case to == Accepted:
		return from == Fenced
	case to == Committed:
		return k != kindHandOver && (from == Verifying || k == kindFollow && from == Tailing)
	}
	return slices.Contains(forward[from], to)
}

// cancelable says what a cancel does to a move in a state: at is the state where it stood if it failed.
func cancelable(at State) (now, marked bool) {
	switch {
	case at < Fenced:
		return true, false
	case at == Fenced:
		return false, true
	}
	return false, false
}
