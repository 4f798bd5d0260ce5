package ring

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strconv"
)

// Member is a node with its places on the ring.
type Member struct {
	// NodeID is what its places are hashed from: unique.
	NodeID string
	// Zone is where it stands: replicas are spread over zones. Members without one share a zone.
	Zone string
	// VirtualNodes is the number of its places; less than 1 is 1.
	VirtualNodes int
}

// Placement is a range whose keys all have the same replicas.
type Placement struct {
	Range HashRange
	// Replicas are node ids, clockwise from the range on; shared, nobody changes them.
	Replicas []string
}

// Ring says which nodes keep a key. It is immutable and safe for concurrent use.
type Ring struct {
	factor int     // copies that there are
	zones  int     // that members stand in
	places []place // by token
	// placements cover the ring, by their ends; neighbours differ in their replicas.
	placements []Placement
}

// place is a virtual node. It owns the tokens up to its own, exclusive of it: ranges are half-open.
type place struct {
	token  uint64
	member *Member
}

// New returns the ring of members, of which each key has replicationFactor, or all when there are fewer.
// Virtual node i of node n stands at the first eight bytes of SHA-256("<n>-vnode-<i>"), as coordinators
// compute it. A key belongs to the first places clockwise of its token, on distinct nodes, and first on
// distinct zones: a second node of a zone comes only when every zone has one.
func New(members []Member, replicationFactor int) *Ring {
	r := &Ring{factor: min(max(replicationFactor, 1), len(members))}
	members = slices.Clone(members)
	zones := map[string]bool{}
	for i := range members {
		m := &members[i]
		zones[m.Zone] = true
		for v := range max(m.VirtualNodes, 1) {
			sum := sha256.Sum256([]byte(m.NodeID + "-vnode-" + strconv.Itoa(v)))
			r.places = append(r.places, place{binary.BigEndian.Uint64(sum[:8]), m})
		}
	}
	r.zones = len(zones)
	slices.SortFunc(r.places, func(a, b place) int {
		if c := cmp.Compare(a.token, b.token); c != 0 {
			return c
		}
		return cmp.Compare(a.member.NodeID, b.member.NodeID)
	})
	r.placements = r.place()
	return r
}

// place returns the placements of all ranges between two places.
func (r *Ring) place() (out []Placement) {
	n := len(r.places)
	for i := range r.places {
		start, end := r.places[(i+n-1)%n].token, r.places[i].token
		if start == end && n > 1 && i > 0 {
			continue // two places on one token: the range between them is empty
		}
		p := Placement{Range: HashRange{Start: start, End: end}, Replicas: r.from(i)}
		if last := len(out) - 1; last >= 0 && slices.Equal(out[last].Replicas, p.Replicas) {
			out[last].Range.End = end
			continue
		}
		out = append(out, p)
	}
	// The first range wraps: it may go on where the last one ends.
	if last := len(out) - 1; last > 0 && slices.Equal(out[last].Replicas, out[0].Replicas) {
		out[0].Range.Start = out[last].Range.Start
		out = out[:last]
	}
	if len(out) == 1 {
		out[0].Range = HashRange{}
	}
	return out
}

// from returns the replicas of the range that ends at a place. It stops as soon as they are known: a walk
// over all places, for each of them, would take minutes in a large cluster.
func (r *Ring) from(i int) []string {
	chosen, later := make([]*Member, 0, r.factor), make([]*Member, 0, r.factor)
	zones := make(map[string]bool, r.zones)
	known := func(m *Member) bool { return slices.Contains(chosen, m) || slices.Contains(later, m) }
	for k := range r.places {
		m := r.places[(i+k)%len(r.places)].member
		switch {
		case zones[m.Zone]:
			// The nearest ones alone can be needed; a node that comes twice would be among them already.
			if len(later) < r.factor && !known(m) {
				later = append(later, m)
			}
		default:
			zones[m.Zone] = true
			chosen = append(chosen, m)
		}
		if len(chosen) == r.factor || len(chosen) == r.zones && len(chosen)+len(later) >= r.factor {
			break
		}
	}
	chosen = append(chosen, later...)
	out := make([]string, 0, r.factor)
	for _, m := range chosen[:min(len(chosen), r.factor)] {
		out = append(out, m.NodeID)
	}
	return out
}

// Placements returns all ranges with their replicas, in ring order: they cover the ring once, and
// neighbours differ. It is shared; nobody changes it. A ring without members has none.
func (r *Ring) Placements() []Placement { return r.placements }

// Replicas returns the nodes that keep a token; none without members.
func (r *Ring) Replicas(token uint64) []string {
	// Ends ascend but for the first range, which may wrap.
	i, _ := slices.BinarySearchFunc(r.placements, token, func(p Placement, t uint64) int {
		if p.Range.End <= t {
			return -1
		}
		return 1
	})
	if len(r.placements) == 0 {
		return nil
	}
	if i == len(r.placements) {
		i = 0
	}
	return r.placements[i].Replicas
}

// RangesOf returns the ranges that a node keeps.
func (r *Ring) RangesOf(nodeID string) (out []Placement) {
	for _, p := range r.placements {
		if slices.Contains(p.Replicas, nodeID) {
			out = append(out, p)
		}
	}
	return out
}
