package ownership

import (
	"maps"
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/ring"
)

// ground is what a node knows of its ranges apart from hand-overs. All ranges are in normal form, and
// lists of ranges are replaced, never changed.
type ground struct {
	incarnation string
	// known: the members were known at least once; then declared is what their ring gives the node.
	known    bool
	declared []ring.HashRange
	// given are ranges of other nodes, with those nodes. taken were accepted and are not in declared,
	// with the nodes that handed them over. Within each of them ranges don't overlap.
	given, taken []part
	// explicit are those of given whose new owner was a replica by the ring already, while this node was to stay: a
	// person's word, which stands.
	explicit []ring.HashRange
	// epochs are the highest known ones, with their ranges, which don't overlap.
	epochs map[uint64][]ring.HashRange
	// residue does not overlap.
	residue []residue
}

// part is a set of ranges that has to do with another node.
type part struct {
	ranges []ring.HashRange
	node   Owner
}

// residue is a Residue on its way.
type residue struct {
	Residue
	dropping bool
}

func (g *ground) clone() ground {
	out := *g
	out.given, out.taken, out.residue, out.epochs = slices.Clone(g.given), slices.Clone(g.taken), slices.Clone(g.residue), maps.Clone(g.epochs)
	if out.epochs == nil {
		out.epochs = map[uint64][]ring.HashRange{}
	}
	return out
}

// give notes that ranges are another node's, and which of them stay so.
func (g *ground) give(ranges []ring.HashRange, to Owner, explicit []ring.HashRange) {
	g.given = withPart(g.given, ranges, to)
	g.explicit = ring.Union(ring.Subtract(g.explicit, ranges), ring.Intersect(ranges, explicit))
}

// takeBack notes that ranges are no other node's any more.
func (g *ground) takeBack(ranges []ring.HashRange) {
	g.given = withoutPart(g.given, ranges)
	g.explicit = ring.Subtract(g.explicit, ranges)
}

// withPart adds ranges of a node, which are no other's then.
func withPart(parts []part, ranges []ring.HashRange, node Owner) []part {
	parts = withoutPart(parts, ranges)
	for i := range parts {
		if parts[i].node == node {
			parts[i].ranges = ring.Union(parts[i].ranges, ranges)
			return parts
		}
	}
	if len(ranges) == 0 {
		return parts
	}
	return append(parts, part{ranges, node})
}

// withoutPart takes ranges out.
func withoutPart(parts []part, ranges []ring.HashRange) []part {
	var out []part
	for _, p := range parts {
		if p.ranges = ring.Subtract(p.ranges, ranges); len(p.ranges) > 0 {
			out = append(out, p)
		}
	}
	return out
}

func allOf(parts []part) []ring.HashRange {
	lists := make([][]ring.HashRange, len(parts))
	for i, p := range parts {
		lists[i] = p.ranges
	}
	return ring.Union(lists...)
}

// epochOf returns the highest epoch that is known of ranges.
func (g *ground) epochOf(ranges []ring.HashRange) (highest uint64) {
	for epoch, of := range g.epochs {
		if epoch > highest && ring.Overlaps(of, ranges) {
			highest = epoch
		}
	}
	return highest
}

// raise notes an epoch of ranges; lower ones are forgotten.
func (g *ground) raise(ranges []ring.HashRange, epoch uint64) {
	for e, of := range g.epochs {
		if e > epoch {
			ranges = ring.Subtract(ranges, of)
			continue
		}
		if of = ring.Subtract(of, ranges); len(of) == 0 {
			delete(g.epochs, e)
		} else {
			g.epochs[e] = of
		}
	}
	if len(ranges) > 0 {
		g.epochs[epoch] = ring.Union(g.epochs[epoch], ranges)
	}
}

// addResidue adds what was left behind. Where some is already, the newest sequence, the oldest time, and
// a drop that began count.
func (g *ground) addResidue(add residue) {
	var out []residue
	put := func(r residue) {
		if len(r.Ranges) == 0 {
			return
		}
		for i := range out {
			if o := &out[i]; o.Sequence == r.Sequence && o.Since.Equal(r.Since) && o.dropping == r.dropping {
				o.Ranges = ring.Union(o.Ranges, r.Ranges)
				return
			}
		}
		out = append(out, r)
	}
	left := add.Ranges
	for _, e := range g.residue {
		both := residue{Residue{ring.Intersect(e.Ranges, left), max(e.Sequence, add.Sequence), e.Since}, e.dropping || add.dropping}
		if add.Since.Before(e.Since) {
			both.Since = add.Since
		}
		e.Ranges, left = ring.Subtract(e.Ranges, both.Ranges), ring.Subtract(left, both.Ranges)
		put(e)
		put(both)
	}
	add.Ranges = left
	put(add)
	g.residue = out
}

// dropResidue forgets what is left of ranges up to a sequence.
func (g *ground) dropResidue(ranges []ring.HashRange, sequence uint64) {
	var out []residue
	for _, e := range g.residue {
		if e.Sequence <= sequence {
			e.Ranges = ring.Subtract(e.Ranges, ranges)
		}
		if len(e.Ranges) > 0 {
			out = append(out, e)
		}
	}
	g.residue = out
}

// residueIn returns the parts of the residue in ranges.
func (g *ground) residueIn(ranges []ring.HashRange) (out []residue) {
	for _, e := range g.residue {
		if e.Ranges = ring.Intersect(e.Ranges, ranges); len(e.Ranges) > 0 {
			out = append(out, e)
		}
	}
	return out
}

// allResidue returns the ranges of the residue.
func (g *ground) allResidue() []ring.HashRange {
	lists := make([][]ring.HashRange, len(g.residue))
	for i, e := range g.residue {
		lists[i] = e.Ranges
	}
	return ring.Union(lists...)
}

// harmless reports whether everything that deletes something of a residue is still remembered
// everywhere, so that it may simply be joined with what others have.
func (e *residue) harmless(now time.Time, grace, skew time.Duration) bool {
	age := now.Sub(e.Since)
	return !e.dropping && age >= -skew && age < grace-2*skew
}

// equal reports whether both are the same on disk.
func (g *ground) equal(o *ground) bool {
	samePart := func(a, b part) bool { return a.node == b.node && slices.Equal(a.ranges, b.ranges) }
	sameResidue := func(a, b residue) bool {
		return a.Sequence == b.Sequence && a.Since.Equal(b.Since) && a.dropping == b.dropping && slices.Equal(a.Ranges, b.Ranges)
	}
	return g.incarnation == o.incarnation && g.known == o.known && slices.Equal(g.declared, o.declared) &&
		slices.Equal(g.explicit, o.explicit) && slices.EqualFunc(g.given, o.given, samePart) && slices.EqualFunc(g.taken, o.taken, samePart) &&
		maps.EqualFunc(g.epochs, o.epochs, slices.Equal[[]ring.HashRange]) && slices.EqualFunc(g.residue, o.residue, sameResidue)
}
