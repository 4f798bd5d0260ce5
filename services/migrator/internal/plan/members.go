package plan

import (
	"cmp"
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/ring"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
)

// States that matter here, by short names.
const (
	joining  = clusterv1.MemberState_MEMBER_STATE_JOINING
	up       = clusterv1.MemberState_MEMBER_STATE_UP
	draining = clusterv1.MemberState_MEMBER_STATE_DRAINING
	drained  = clusterv1.MemberState_MEMBER_STATE_DRAINED
)

// member is a declared member as decisions see it.
type member struct {
	id, addr, zone, incarnation string
	virtualNodes                int
	state                       clusterv1.MemberState
	// alive: it answers now. since is when that changed, by the clock of the own node.
	alive bool
	since time.Time
	// declaredAt orders those that have declared the same.
	declaredAt int64
}

// members are those of a view, by id.
type members []member

func membersOf(view *adminv1.MembersResponse) members {
	var out members
	for _, m := range view.GetMembers() {
		d := m.GetDeclared()
		out = append(out, member{
			id: d.GetNodeId(), addr: d.GetGrpcAddr(), zone: d.GetZone(), incarnation: d.GetIncarnation(),
			virtualNodes: int(d.GetVirtualNodes()), state: d.GetState(), declaredAt: d.GetDeclaredAtMs(),
			alive: m.GetLiveness() == clusterv1.Liveness_LIVENESS_ALIVE || m.GetLiveness() == clusterv1.Liveness_LIVENESS_SUSPECT,
			since: time.UnixMilli(m.GetSinceMs()),
		})
	}
	slices.SortFunc(out, func(a, b member) int { return cmp.Compare(a.id, b.id) })
	return out
}

// get returns a member; false: it is not declared.
func (m members) get(id string) (member, bool) {
	i, ok := slices.BinarySearchFunc(m, id, func(e member, id string) int { return cmp.Compare(e.id, id) })
	if !ok {
		return member{}, false
	}
	return m[i], true
}

// owner reports whether a member owns ranges now.
func (m *member) owner() bool { return m.state == up || m.state == draining }

// ring returns the ring of the members that a function accepts.
func (m members) ring(factor int, accept func(member) bool) *ring.Ring {
	var on []ring.Member
	for _, e := range m {
		if accept(e) {
			on = append(on, ring.Member{NodeID: e.id, Zone: e.zone, VirtualNodes: e.virtualNodes})
		}
	}
	return ring.New(on, factor)
}

// first returns the member that comes first among those that have declared a state and are accepted: the
// earliest, then by id. false: there is none.
func (m members) first(state clusterv1.MemberState, accept func(member) bool) (member, bool) {
	var best *member
	for i := range m {
		e := &m[i]
		if e.state == state && accept(*e) && (best == nil || e.declaredAt < best.declaredAt) {
			best = e
		}
	}
	if best == nil {
		return member{}, false
	}
	return *best, true
}

// part is a range with its replicas on each of some rings.
type part struct {
	rng      ring.HashRange
	replicas [][]string
}

// boundaries returns where placements of the rings begin, ascending.
func boundaries(rings []*ring.Ring) []uint64 {
	var starts []uint64
	for _, r := range rings {
		for _, p := range r.Placements() {
			starts = append(starts, p.Range.Start)
		}
	}
	slices.Sort(starts)
	return slices.Compact(starts)
}

// parts cuts the ring where any of the rings has a boundary. Rings without members have no replicas.
func parts(rings ...*ring.Ring) []part {
	starts := boundaries(rings)
	out := make([]part, len(starts))
	for i, start := range starts {
		out[i].rng = ring.HashRange{Start: start, End: starts[(i+1)%len(starts)]}
		for _, r := range rings {
			out[i].replicas = append(out[i].replicas, r.Replicas(start))
		}
	}
	return out
}

// within cuts placements where any of the rings has a boundary. The replicas of each part are those of its
// placement, and then those on the rings.
func within(placements []ring.Placement, rings ...*ring.Ring) (out []part) {
	starts := boundaries(rings)
	for _, p := range placements {
		cuts := []uint64{p.Range.Start}
		for _, s := range starts {
			if s != p.Range.Start && p.Range.Contains(s) {
				cuts = append(cuts, s)
			}
		}
		// In the order of the range, which may wrap.
		slices.SortFunc(cuts, func(a, b uint64) int { return cmp.Compare(a-p.Range.Start, b-p.Range.Start) })
		for i, start := range cuts {
			e := part{rng: ring.HashRange{Start: start, End: p.Range.End}, replicas: [][]string{p.Replicas}}
			if i+1 < len(cuts) {
				e.rng.End = cuts[i+1]
			}
			for _, r := range rings {
				e.replicas = append(e.replicas, r.Replicas(start))
			}
			out = append(out, e)
		}
	}
	return out
}

// without returns the elements of a that are not in b, in their order.
func without(a []string, b ...string) (out []string) {
	for _, e := range a {
		if !slices.Contains(b, e) {
			out = append(out, e)
		}
	}
	return out
}

func fromWire(ranges []*datav1.HashRange) []ring.HashRange {
	out := make([]ring.HashRange, len(ranges))
	for i, r := range ranges {
		out[i] = ring.HashRange{Start: r.GetStart(), End: r.GetEnd()}
	}
	return out
}

func toWire(ranges []ring.HashRange) []*datav1.HashRange {
	out := make([]*datav1.HashRange, len(ranges))
	for i, r := range ranges {
		out[i] = &datav1.HashRange{Start: r.Start, End: r.End}
	}
	return out
}
