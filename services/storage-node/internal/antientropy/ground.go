package antientropy

import (
	"cmp"
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
)

// ground is what follows from the declared members alone.
type ground struct {
	// others says that another member is declared which was not drained or removed.
	others bool
	// owned are the ranges of this node with their replicas.
	owned []ring.Placement
	// shared are, by peer, the ranges whose facts count (see parts): both are up, and replicas of them now
	// and if all who are joining were up.
	shared map[string][]ring.HashRange
	// stable are those ranges of this node that it keeps in the same sense.
	stable []ring.HashRange
}

// inRing reports whether a member owns ranges.
func inRing(d membership.Declaration) bool {
	return d.State == membership.Up || d.State == membership.Draining
}

func newGround(self string, members membership.Map, factor int) ground {
	g := ground{shared: map[string][]ring.HashRange{}}
	var now, soon []ring.Member
	for _, d := range members.Sorted() {
		m := ring.Member{NodeID: d.NodeID, Zone: d.Zone, VirtualNodes: d.VirtualNodes}
		if inRing(d) {
			now = append(now, m)
		}
		if inRing(d) || d.State == membership.Joining {
			soon = append(soon, m)
			g.others = g.others || d.NodeID != self
		}
	}
	if own, ok := members[self]; !ok || !inRing(own) {
		return g
	}
	today := ring.New(now, factor)
	g.owned = today.RangesOf(self)
	if members[self].State != membership.Up {
		return g
	}
	future := today
	if len(soon) > len(now) {
		future = ring.New(soon, factor)
	}
	for _, d := range members {
		if d.State == membership.Up {
			both := parts(ring.Intersect(common(today, self, d.NodeID), common(future, self, d.NodeID)))
			if d.NodeID == self {
				g.stable = both
			} else if len(both) > 0 {
				g.shared[d.NodeID] = both
			}
		}
	}
	return g
}

// common returns the ranges that two nodes keep.
func common(r *ring.Ring, a, b string) (out []ring.HashRange) {
	for _, p := range r.RangesOf(a) {
		if slices.Contains(p.Replicas, b) {
			out = append(out, p.Range)
		}
	}
	return out
}

// cuts returns what every other replica of each range of this node has.
func (g ground) cuts(self string, peers map[string]peer) []compact.HashCut {
	var out []compact.HashCut
	for _, p := range g.owned {
		for _, part := range parts(ring.Intersect([]ring.HashRange{p.Range}, g.stable)) {
			out = append(out, cutsOf(part, self, p.Replicas, peers)...)
		}
	}
	return compact.LimitCuts(compact.UniteCuts(out), compact.MaxHashCuts)
}

// cutsOf returns the cuts of a part of a range.
func cutsOf(part ring.HashRange, self string, replicas []string, peers map[string]peer) (out []compact.HashCut) {
	borders := []uint64{part.Start}
	for _, name := range replicas {
		for _, f := range peers[name].facts.in([]ring.HashRange{part}) {
			borders = append(borders, f.Start)
			if f.End != 0 {
				borders = append(borders, f.End)
			}
		}
	}
	slices.Sort(borders)
	borders = slices.Compact(borders)
	for i, start := range borders {
		if start == part.End && i > 0 {
			break // the end of the last fact
		}
		end := part.End
		if i+1 < len(borders) {
			end = borders[i+1]
		}
		cut, all := ikey.MaxSeq, true
		for _, name := range replicas {
			if name == self {
				continue
			}
			f, ok := peers[name].facts.of(start)
			cut, all = min(cut, f.seq), all && ok
		}
		if all {
			out = append(out, compact.HashCut{Range: ring.HashRange{Start: start, End: end}, Seq: cut})
		}
	}
	return out
}

// ranges returns what is known of each range of this node.
func (g ground) ranges(self string, peers map[string]peer) []Range {
	out := make([]Range, 0, len(g.owned))
	for _, p := range g.owned {
		x := Range{Range: p.Range, Replicas: p.Replicas, EqualWith: make([]time.Time, len(p.Replicas))}
		oldest := int64(-1)
		for i, name := range p.Replicas {
			if name == self {
				continue
			}
			at := peers[name].facts.since(parts([]ring.HashRange{p.Range}))
			if at > 0 {
				x.EqualWith[i] = time.UnixMilli(at)
			}
			if oldest < 0 || at < oldest {
				oldest, x.Behind = at, name
			}
		}
		if oldest > 0 {
			x.EqualAt = time.UnixMilli(oldest)
		}
		out = append(out, x)
	}
	return out
}

// since returns when the oldest part of ranges was equal, 0 if one never was.
func (f facts) since(ranges []ring.HashRange) int64 {
	known := f.in(ranges)
	if len(known) == 0 || !ring.Covers(known.ranges(), ranges) {
		return 0
	}
	return slices.MinFunc(known, func(a, b fact) int { return cmp.Compare(a.at, b.at) }).at
}

// hides says how declarations have changed in a way that could hide that somebody lost a range and got it
// back; empty if they have not.
func hides(self string, old, now membership.Map) string {
	if len(old) == 0 {
		return ""
	}
	if o, n := old[self], now[self]; o.Incarnation != n.Incarnation {
		return "this node has another data directory"
	}
	for name, o := range old {
		if n, ok := now[name]; !ok && inRing(o) {
			return name + " is not declared any more"
		} else if ok && inRing(o) && inRing(n) && o.Incarnation == n.Incarnation && n.Version > o.Version+1 {
			return name + " declared more than is known"
		}
	}
	for name, n := range now {
		o, known := old[name]
		gone := n.State == membership.Drained || n.State == membership.Removed
		if gone && !known {
			return name + " came and went"
		}
		if gone && o.Incarnation != n.Incarnation && !inRing(o) {
			return name + " came back and went"
		}
	}
	return ""
}

// reappeared reports whether a member may have given ranges away in between: it was draining.
func reappeared(old, now membership.Declaration) bool {
	return old.State != membership.Up || now.State != membership.Up
}
