package ownership

import (
	"context"
	"log/slog"
	"maps"
	"math"
	"slices"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
)

// SetMembers says who is declared. What it means for the ranges of the node is durable when it returns.
// As long as the node itself, with its incarnation, is not among them, nothing changes.
func (r *Registry) SetMembers(ctx context.Context, all []membership.Declaration) error {
	own := slices.IndexFunc(all, func(d membership.Declaration) bool { return d.NodeID == r.o.NodeID })
	if own < 0 || all[own].Incarnation != r.o.Incarnation {
		return nil
	}
	if last := r.members.Load(); last != nil && slices.Equal(*last, all) {
		return nil
	}
	all = slices.Clone(all)
	var owners []ring.Member
	here := map[string]string{} // incarnations of nodes that have ranges, or are about to
	for _, d := range all {
		switch d.State {
		case membership.Up, membership.Draining:
			owners = append(owners, ring.Member{NodeID: d.NodeID, Zone: d.Zone, VirtualNodes: d.VirtualNodes})
			here[d.NodeID] = d.Incarnation
		case membership.Joining:
			here[d.NodeID] = d.Incarnation
		}
	}
	placed := ring.New(owners, r.o.ReplicationFactor)
	// Others have everything until it is up; where there is none, the node is the first of its cluster.
	joining := all[own].State == membership.Joining && len(owners) > 0 && !r.o.AtOnce
	leaves := r.leavingAs(all[own].State, all, placed)
	if leaves == nil {
		r.ownOnly.Store(false)
	}
	err := r.change(ctx, func(next *state) ([]string, error) {
		next.ring, next.members, next.joining, next.leaving = placed, all, joining, leaves
		next.unheard = next.unheard && all[own].State == membership.Joining && len(owners) == 0
		return nil, r.follow(ctx, next, placed, here)
	})
	if err != nil {
		return err
	}
	if leaves != nil {
		if err := r.store.Quiesce(ctx); err != nil {
			return err
		}
		r.ownOnly.Store(true)
	}
	r.members.Store(&all)
	return nil
}

// OwnRangesOnly reports whether writes of ranges that were never the node's are refused, since it leaves, and none
// that was admitted before is under way.
func (r *Registry) OwnRangesOnly() bool { return r.ownOnly.Load() }

// Stale returns the ranges whose residue others may have forgotten deletes of, in normal form: it may only be
// dropped.
func (r *Registry) Stale() (out []ring.HashRange) {
	for _, e := range r.state.Load().ground.residue {
		if !e.harmless(r.o.Now(), r.o.Grace, r.o.MaxClockSkew) {
			out = ring.Union(out, e.Ranges)
		}
	}
	return out
}

// leavingAs returns what a node that was declared to leave takes no part in; nil: it stays.
func (r *Registry) leavingAs(declared membership.State, all []membership.Declaration, placed *ring.Ring) *leaving {
	gone := declared == membership.Drained || declared == membership.Removed
	if !gone && declared != membership.Draining {
		return nil
	}
	owners := map[string]Owner{}
	for _, d := range all {
		if d.State == membership.Up {
			owners[d.NodeID] = Owner{NodeID: d.NodeID, Addr: d.GRPCAddr}
		}
	}
	ranges := map[string][]ring.HashRange{}
	for _, p := range placed.Within(ring.Subtract([]ring.HashRange{{}}, ring.RangesIn(placed.RangesOf(r.o.NodeID)))) {
		first := p.Replicas[0] // of a range whose replicas all drain
		for _, id := range p.Replicas {
			if owners[id].NodeID != "" {
				first = id
				break
			}
		}
		ranges[first] = append(ranges[first], p.Range)
	}
	l := &leaving{gone: gone}
	for _, id := range slices.Sorted(maps.Keys(ranges)) {
		o := owners[id]
		o.NodeID = id
		l.others = append(l.others, part{ranges: ring.Normal(ranges[id]), node: o})
	}
	return l
}

// Await has requests refused until it is known whether the ranges of a node that joins have owners: until
// SetMembers names some, or says that the node is up, or Alone is called. It does not outlive a restart.
func (r *Registry) Await(ctx context.Context) error { return r.setUnheard(ctx, !r.o.AtOnce) }

// Alone ends Await: nobody was heard of who could own anything.
func (r *Registry) Alone(ctx context.Context) error { return r.setUnheard(ctx, false) }

// Awaiting reports whether Await has not ended.
func (r *Registry) Awaiting() bool { return r.state.Load().unheard }

func (r *Registry) setUnheard(ctx context.Context, unheard bool) error {
	return r.change(ctx, func(next *state) ([]string, error) {
		next.unheard = unheard
		return nil, nil
	})
}

// follow makes the ground of a state that of another ring.
func (r *Registry) follow(ctx context.Context, next *state, placed *ring.Ring, here map[string]string) error {
	g := &next.ground
	before := g.declared
	g.declared = ring.RangesIn(placed.RangesOf(r.o.NodeID))
	gained, lost := ring.Subtract(g.declared, before), ring.Subtract(before, g.declared)
	// What the ring gives anew is the node's, whoever had it meanwhile; and so is what was given to a node that is
	// gone, or came back without its disk, or that the ring names beside this one, which stays: it was to stand in its
	// place.
	back := gained
	for _, p := range g.given {
		theirs := p.ranges
		life, alive := here[p.node.NodeID]
		has := alive && (p.node.Incarnation == "" || p.node.Incarnation == life)
		switch {
		case has && next.leaving != nil:
			continue
		case has:
			theirs = ring.Subtract(ring.Intersect(theirs, next.shared(r.o.NodeID, p.node.NodeID)), g.explicit)
		}
		back = ring.Union(back, ring.Intersect(theirs, g.declared))
	}
	// What was accepted is had already: the ring only follows.
	if changed := ring.Union(ring.Subtract(back, allOf(g.taken)), lost); g.known && len(changed) > 0 {
		if err := r.o.Forget(ctx, changed); err != nil {
			return err
		}
	}
	g.known = true
	g.takeBack(back)
	g.taken = withoutPart(g.taken, g.declared)
	if left := ring.Subtract(lost, ring.Union(allOf(g.given), allOf(g.taken))); len(left) > 0 {
		g.addResidue(residue{Residue: Residue{Ranges: left, Sequence: r.o.Sequence(), Since: r.o.Now()}})
	}
	if len(back)+len(lost) > 0 {
		next.tell(slog.LevelInfo, "ranges by the members", "ranges", len(g.declared), "gained", len(back), "lost", len(lost))
	}
	r.regain(next, placed)
	return nil
}

// declared returns what a node was declared as last; the zero value if it was not.
func (s *state) declared(id string) membership.Declaration {
	for _, d := range s.members {
		if d.NodeID == id {
			return d
		}
	}
	return membership.Declaration{}
}

// shared returns the ranges that the ring gives both of two nodes.
func (s *state) shared(a, b string) (out []ring.HashRange) {
	if s.ring == nil {
		return nil
	}
	for _, p := range s.ring.RangesOf(a) {
		if slices.Contains(p.Replicas, b) {
			out = append(out, p.Range)
		}
	}
	return ring.Normal(out)
}

// regain makes residue that is harmless, or of which there is no other replica, a part of its range
// again.
func (r *Registry) regain(next *state, placed *ring.Ring) {
	g := &next.ground
	mine := ring.Subtract(g.declared, allOf(g.given))
	var alone []ring.HashRange
	for _, p := range placed.RangesOf(r.o.NodeID) {
		if len(p.Replicas) == 1 {
			alone = append(alone, p.Range)
		}
	}
	alone = ring.Intersect(alone, mine)
	for _, e := range g.residueIn(mine) {
		if e.harmless(r.o.Now(), r.o.Grace, r.o.MaxClockSkew) {
			g.dropResidue(e.Ranges, math.MaxUint64)
			continue
		}
		if only := ring.Intersect(e.Ranges, alone); len(only) > 0 && !r.busy() {
			next.tell(slog.LevelWarn, "ranges have no other replica: what this node held of them stays", "ranges", len(only), "since", e.Since)
			g.dropResidue(only, math.MaxUint64)
		}
	}
}

// busy reports whether residue is being dropped.
func (r *Registry) busy() bool {
	if !r.cleaning.TryAcquire(1) {
		return true
	}
	r.cleaning.Release(1)
	return false
}
