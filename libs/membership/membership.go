package membership

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"
)

// Limits of a map and of its declarations.
const (
	// MaxMembers bounds a map, removed members included: gossip among more wants other means.
	MaxMembers = 1000
	// MaxBytes bounds an encoded map. 1,000 declarations of usual lengths have 150 KiB.
	MaxBytes = 512 << 10
	// MaxNodeIDBytes bounds a node id, as in the configuration of a node.
	MaxNodeIDBytes = 100
	// MaxIncarnationBytes bounds an incarnation.
	MaxIncarnationBytes = 100
	// MaxAddrBytes bounds an address: the longest name that DNS has, a colon and a port.
	MaxAddrBytes = 260
	// MaxZoneBytes bounds a zone.
	MaxZoneBytes = 100
	// MaxVirtualNodes bounds the places of one member on the ring.
	MaxVirtualNodes = 1024
)

var (
	// ErrInvalid says that a declaration is outside of its limits.
	ErrInvalid = errors.New("invalid declaration")
	// ErrTooMany says that a map would have more than MaxMembers.
	ErrTooMany = errors.New("too many members")
	// ErrTransition says that a member may not declare this after what it declared last.
	ErrTransition = errors.New("transition is not allowed")
)

// State is what a member declares about itself. The numbers are on disk and on the wire, and their
// order decides between equal versions.
type State uint8

// The states of a member, in the order of its life.
const (
	// Joining takes over its ranges and does not answer for them yet.
	Joining State = 1
	// Up answers for its ranges.
	Up State = 2
	// Draining gives its ranges away.
	Draining State = 3
	// Drained has given them away and can be stopped for good.
	Drained State = 4
	// Removed was taken out by an operator. It stays in the map.
	Removed State = 5
)

var stateNames = [...]string{Joining: "JOINING", Up: "UP", Draining: "DRAINING", Drained: "DRAINED", Removed: "REMOVED"}

func (s State) String() string {
	if s >= Joining && int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Declaration is what a cluster remembers of a member for good.
type Declaration struct {
	// NodeID is 1 to MaxNodeIDBytes letters, digits, dashes, underscores and dots.
	NodeID string
	// Version rises with each change of the declaration, from 1 on.
	Version uint64
	// State is what it declares.
	State State
	// Incarnation is of its data directory: a new one under an old name is another member.
	Incarnation string
	// GRPCAddr is where clients and other nodes reach it, host:port.
	GRPCAddr string
	// Zone is where it stands; replicas are spread over zones. It may be empty.
	Zone string
	// VirtualNodes is its number of places on the ring, 1 to MaxVirtualNodes.
	VirtualNodes int
	// DeclaredAt is in milliseconds since the Unix epoch, by the clock of who declared it.
	DeclaredAt int64
}

// Validate returns an ErrInvalid that names the first field outside of its limits, or nil.
func (d Declaration) Validate() error {
	switch {
	case !ValidNodeID(d.NodeID):
		return fmt.Errorf("%w: node id %.120q", ErrInvalid, d.NodeID)
	case d.Version == 0:
		return fmt.Errorf("%w: %s has version 0", ErrInvalid, d.NodeID)
	case d.State < Joining || d.State > Removed:
		return fmt.Errorf("%w: %s is in state %d", ErrInvalid, d.NodeID, d.State)
	case !validText(d.Incarnation, MaxIncarnationBytes):
		return fmt.Errorf("%w: incarnation of %s", ErrInvalid, d.NodeID)
	case !validText(d.GRPCAddr, MaxAddrBytes):
		return fmt.Errorf("%w: address of %s", ErrInvalid, d.NodeID)
	case !validText(d.Zone, MaxZoneBytes):
		return fmt.Errorf("%w: zone of %s", ErrInvalid, d.NodeID)
	case d.VirtualNodes < 1 || d.VirtualNodes > MaxVirtualNodes:
		return fmt.Errorf("%w: %s has %d virtual nodes, 1 to %d are allowed", ErrInvalid, d.NodeID, d.VirtualNodes, MaxVirtualNodes)
	case d.DeclaredAt < 0:
		return fmt.Errorf("%w: %s was declared at %d", ErrInvalid, d.NodeID, d.DeclaredAt)
	}
	return nil
}

func validText(s string, maxBytes int) bool { return len(s) <= maxBytes && utf8.ValidString(s) }

// ValidNodeID reports whether a name can be a node id: 1 to MaxNodeIDBytes letters, digits, dashes,
// underscores and dots.
func ValidNodeID(id string) bool {
	for _, r := range []byte(id) {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.') {
			return false
		}
	}
	return len(id) >= 1 && len(id) <= MaxNodeIDBytes
}

// Newer reports whether d counts and other does not; both are of one node. It is a strict total
// order: of two that differ exactly one is newer.
func (d Declaration) Newer(other Declaration) bool { return d.compare(other) > 0 }

func (d Declaration) compare(o Declaration) int {
	return cmp.Or(
		cmp.Compare(d.Version, o.Version),
		cmp.Compare(d.State, o.State),
		cmp.Compare(d.Incarnation, o.Incarnation),
		cmp.Compare(d.GRPCAddr, o.GRPCAddr),
		cmp.Compare(d.Zone, o.Zone),
		cmp.Compare(d.VirtualNodes, o.VirtualNodes),
		cmp.Compare(d.DeclaredAt, o.DeclaredAt),
	)
}

// Map is the declared members of a cluster by node id. It is not safe for concurrent use; nil is an
// empty map that can be read.
type Map map[string]Declaration

// Merge joins declarations into the map and returns those that changed it, by node id. Those that are
// already known, or older than what is known, change nothing. An invalid declaration, or more members
// than MaxMembers, is an error, and then nothing has changed.
func (m Map) Merge(declarations ...Declaration) ([]Declaration, error) {
	changed := Map{}
	members := len(m)
	for _, d := range declarations {
		if err := d.Validate(); err != nil {
			return nil, err
		}
		known, ok := changed[d.NodeID]
		if !ok {
			if known, ok = m[d.NodeID]; !ok {
				members++
			}
		}
		if !ok || d.Newer(known) {
			changed[d.NodeID] = d
		}
	}
	if members > MaxMembers {
		return nil, fmt.Errorf("%w: %d, at most %d", ErrTooMany, members, MaxMembers)
	}
	maps.Copy(m, changed)
	return changed.Sorted(), nil
}

// Sorted returns the declarations by node id.
func (m Map) Sorted() []Declaration {
	return slices.SortedFunc(maps.Values(m), func(a, b Declaration) int { return cmp.Compare(a.NodeID, b.NodeID) })
}

// Clone returns a copy that can be changed on its own; it is never nil.
func (m Map) Clone() Map {
	c := make(Map, len(m))
	maps.Copy(c, m)
	return c
}
