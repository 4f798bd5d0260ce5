package plan

import (
	"fmt"
	"maps"
	"slices"

	"github.com/pairdb/pairdb/libs/ring"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// leaving is what the plan of a drain depends on.
type leaving struct {
	self, drain string
	members     members
	factor      int
	// owned are the ranges that the node says it has, with their replicas, later than moves were asked for: those of the
	// ring without what it gave away, and with what it took over before the ring says so. None: it has given away
	// everything, or does not know yet.
	owned []ring.Placement
	// moves are those of the drain, and all others that are not over; when owned is empty, all that the node
	// remembers.
	moves []*movev1.Move
}

// giveAway is what is to be done next for a drain.
type giveAway struct {
	// create and cancel are moves. Ranges of a move that is cancelled are planned anew when it is over.
	create []handOver
	cancel []string
	// waits says why nothing goes on, or what must come first; empty: it goes on by itself.
	waits string
	// done and total count moves.
	done, total int
	// complete: nothing is left to be moved, and no move is under way.
	complete bool
}

// handOver is a move that is to be made.
type handOver struct {
	id     string
	target member
	ranges []ring.HashRange
	copy   bool // of ranges that are not the node's to hand over
}

// plan says what is next. It is a pure function.
//
// The next owner of a range is the node that the ring without this one adds to its replicas. A node that
// drains too is no next owner: then it is the one that the ring without all that drain adds. A range for
// which there is none, because there are fewer members than copies (the drain was forced), is handed over to
// a replica that stays and is alive: it has the range already, but only a fence proves that it has
// everything that was acknowledged here.
//
// Of nodes that drain at the same time one goes after the other, by when they declared it: two plans
// together would give a range to one node twice, and it would have a copy less.
func (l *leaving) plan() giveAway {
	me, ok := l.members.get(l.self)
	if !ok || me.state != draining {
		return giveAway{waits: "the cluster has not heard yet that this node drains"}
	}
	var g giveAway
	mine := func(m *movev1.Move) bool { return m.GetParent() == l.drain && m.GetHandOver() }
	for _, m := range l.moves {
		if mine(m) && reached(m) {
			g.done++
		}
	}
	if first, _ := l.members.first(draining, func(member) bool { return true }); first.id != l.self {
		g.waits = fmt.Sprintf("%s drains first", first.id)
		for _, m := range l.moves {
			if mine(m) && cancellable(m) {
				g.cancel = append(g.cancel, m.GetId())
			}
		}
		g.total = g.done
		return g
	}
	want, missing := l.owners()
	if !l.plausible() {
		// A node that says that it owns nothing has given everything away by moves, or is not to be believed.
		missing = "it is not known what this node owns"
	}
	if missing != "" {
		g.waits = missing
	}
	l.follow(&g, want, mine)
	// What a move is giving is not given by another one. What was given is the node's again if it owns it: who had it
	// is gone.
	busy := rangesOf(l.moves, func(m *movev1.Move) bool { return m.GetHandOver() && !ended(m) && !reached(m) })
	taken := map[string]bool{}
	for _, m := range l.moves {
		taken[m.GetId()] = true
	}
	for _, id := range slices.Sorted(maps.Keys(want)) {
		for _, ranges := range chunked(ring.Subtract(want[id], busy)) {
			target, _ := l.members.get(id)
			h := handOver{id: moveID(l.drain+".", id, func(id string) bool { return taken[id] }), target: target, ranges: ranges}
			taken[h.id] = true
			g.create = append(g.create, h)
		}
	}
	under := 0
	for _, m := range l.moves {
		if mine(m) && !ended(m) && !reached(m) && !slices.Contains(g.cancel, m.GetId()) {
			under++
		}
	}
	g.total = g.done + under + len(g.create)
	g.complete = missing == "" && len(g.create) == 0 && len(g.cancel) == 0 && len(busy) == 0
	return g
}

// plausible reports whether what the node says that it owns can be.
func (l *leaving) plausible() bool {
	if len(l.owned) > 0 {
		return true
	}
	now := l.members.ring(l.factor, func(m member) bool { return m.owner() })
	given := rangesOf(l.moves, func(m *movev1.Move) bool { return m.GetHandOver() && reached(m) })
	return ring.Covers(given, ring.RangesIn(now.RangesOf(l.self)))
}

// owners returns the ranges of the node by their next owners, and why there is none for some.
func (l *leaving) owners() (want map[string][]ring.HashRange, missing string) {
	next := l.members.ring(l.factor, func(m member) bool { return m.owner() && m.id != l.self })
	last := l.members.ring(l.factor, func(m member) bool { return m.state == up && m.id != l.self })
	want = map[string][]ring.HashRange{}
	for _, p := range within(l.owned, next, last) {
		have := p.replicas[0]
		id, why := l.owner(have, p.replicas[1], p.replicas[2])
		if id == "" {
			missing = why
			continue
		}
		want[id] = append(want[id], p.rng)
	}
	for id := range want {
		want[id] = ring.Normal(want[id])
	}
	return want, missing
}

// owner chooses the next owner of a range that have owns, of which next do when the node is gone, and last
// when all that drain are.
func (l *leaving) owner(have, next, last []string) (id, why string) {
	for _, candidates := range [][]string{without(next, have...), without(last, have...)} {
		for _, id := range candidates {
			if m, _ := l.members.get(id); m.state == up {
				return id, ""
			}
		}
	}
	stay := without(have, l.self)
	for _, id := range stay {
		if m, _ := l.members.get(id); m.state == up && m.alive {
			return id, ""
		}
	}
	if len(stay) == 0 {
		return "", "no other member is up: nobody could take what this node has"
	}
	return "", fmt.Sprintf("of the other replicas of a range (%v) none is up and alive", stay)
}

// follow looks after moves that are under way: one whose target is not the next owner of its ranges any
// more is cancelled as long as it can be, one that failed or waits for its target is told.
func (l *leaving) follow(g *giveAway, want map[string][]ring.HashRange, mine func(*movev1.Move) bool) {
	for _, m := range l.moves {
		if !mine(m) || ended(m) || reached(m) {
			continue
		}
		target, known := l.members.get(m.GetTarget().GetNodeId())
		switch ranges := fromWire(m.GetWhat().GetHashRanges()); {
		case cancellable(m) && !ring.Covers(want[m.GetTarget().GetNodeId()], ranges):
			g.cancel = append(g.cancel, m.GetId())
		case m.GetState() == movev1.State_STATE_FAILED:
			g.waits = fmt.Sprintf("move %s failed: %s", m.GetId(), m.GetReason())
		case g.waits == "" && (!known || !target.alive):
			g.waits = fmt.Sprintf("%s does not answer", m.GetTarget().GetNodeId())
		}
	}
}
