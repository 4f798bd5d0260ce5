package plan

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/ring"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// patience is for how long a node that is down may still come back before others give what it should: only
// it can hand over. A rolling restart takes seconds to a minute.
const patience = 2 * time.Minute

// arriving is what the plan of a node that joins depends on.
type arriving struct {
	self string
	// parent is what the moves of this bootstrap are called.
	parent  string
	members members
	factor  int
	now     time.Time
	// moves are those of the parent by the node that has them, as far as it was heard.
	moves map[string][]*movev1.Move
	// unheard are nodes whose moves are not known.
	unheard []string
}

// takeOver is what is to be done next for a node that joins.
type takeOver struct {
	// create are moves that are to be made at other nodes.
	create []bringing
	// waits says why nothing goes on; empty: it goes on by itself.
	waits string
	// alone: nobody else owns anything.
	alone bool
	// complete: everything is here.
	complete bool
}

// bringing is a move that is to be made at another node, to this one.
type bringing struct {
	id     string
	source member
	// handOver: the source stops being an owner.
	handOver bool
	ranges   []ring.HashRange
}

// plan says what is next. It is a pure function.
//
// For each range that this node has on the ring with it, the replica that leaves the range hands it over.
// If none leaves (there are fewer members than copies), or the one that does was down for longer than
// patience, any replica that is up gives a copy. Of nodes that join at the same time one goes after the
// other, by when they declared it, and not while another one drains: each plan is about the ring as it is.
func (a *arriving) plan() takeOver {
	me, ok := a.members.get(a.self)
	if !ok || me.state != joining {
		return takeOver{waits: "the cluster has not heard yet that this node joins"}
	}
	now := a.members.ring(a.factor, func(m member) bool { return m.owner() })
	if len(now.Placements()) == 0 {
		return takeOver{alone: true, complete: true}
	}
	alive := func(m member) bool { return m.alive || m.id == a.self }
	if first, _ := a.members.first(joining, alive); first.id != a.self {
		return takeOver{waits: fmt.Sprintf("%s joins first", first.id)}
	}
	if first, ok := a.members.first(draining, alive); ok && !a.began() {
		return takeOver{waits: fmt.Sprintf("%s drains first", first.id)}
	}
	next := a.members.ring(a.factor, func(m member) bool { return m.owner() || m.id == a.self })
	var have []ring.HashRange // here, or on its way from a node that may be waited for
	var t takeOver
	under := false
	for id, list := range a.moves {
		source, _ := a.members.get(id)
		for _, m := range list {
			ranges := fromWire(m.GetWhat().GetHashRanges())
			switch {
			case reached(m):
				have = append(have, ranges...)
			case ended(m):
			case !source.owner() || a.lost(source):
				// Others give it now. If it comes back, what it brings is joined.
			default:
				under = true
				have = append(have, ranges...)
				if m.GetState() == movev1.State_STATE_FAILED {
					t.waits = fmt.Sprintf("move %s of %s failed: %s", m.GetId(), id, m.GetReason())
				}
			}
		}
	}
	have = ring.Normal(have)
	type from struct {
		id       string
		handOver bool
	}
	want := map[from][]ring.HashRange{}
	for _, p := range parts(now, next) {
		if !slices.Contains(p.replicas[1], a.self) || ring.Covers(have, []ring.HashRange{p.rng}) {
			continue
		}
		id, handOver, why := a.source(p.replicas[0], p.replicas[1])
		if id == "" {
			t.waits = why
			continue
		}
		want[from{id, handOver}] = append(want[from{id, handOver}], p.rng)
	}
	order := slices.SortedFunc(maps.Keys(want), func(x, y from) int {
		switch {
		case x.id != y.id:
			if x.id < y.id {
				return -1
			}
			return 1
		case x.handOver == y.handOver:
			return 0
		case x.handOver:
			return -1
		}
		return 1
	})
	for _, f := range order {
		source, _ := a.members.get(f.id)
		if slices.Contains(a.unheard, f.id) {
			t.waits = fmt.Sprintf("%s has not said what it moves here", f.id)
			continue
		}
		taken := map[string]bool{}
		for _, m := range a.moves[f.id] {
			taken[m.GetId()] = true
		}
		for _, b := range t.create {
			taken[b.id] = true
		}
		prefix := a.parent + "-"
		if !f.handOver {
			prefix += "copy-"
		}
		for _, ranges := range chunked(ring.Subtract(want[f], have)) {
			b := bringing{source: source, handOver: f.handOver, ranges: ranges}
			b.id = moveID(prefix, f.id, func(id string) bool { return taken[id] })
			taken[b.id] = true
			t.create = append(t.create, b)
		}
	}
	t.complete = len(want) == 0 && !under && t.waits == ""
	return t
}

// began reports whether this bootstrap has made moves: it goes on with them whatever happens beside.
func (a *arriving) began() bool {
	for _, list := range a.moves {
		if len(list) > 0 {
			return true
		}
	}
	return false
}

// lost reports whether a node was away for so long that it is not waited for.
func (a *arriving) lost(m member) bool { return !m.alive && a.now.Sub(m.since) > patience }

// source says who gives a range, of which have are the replicas now and next those with this node.
func (a *arriving) source(have, next []string) (id string, handOver bool, why string) {
	if leaves := without(have, next...); len(leaves) > 0 {
		m, _ := a.members.get(leaves[0])
		switch {
		case m.alive:
			return m.id, true, ""
		case !a.lost(m):
			return "", false, fmt.Sprintf("%s is to hand over and does not answer", m.id)
		}
	}
	var fallback string
	for _, id := range have {
		m, _ := a.members.get(id)
		if m.alive && m.state == up {
			return id, false, ""
		}
		if m.alive {
			fallback = id
		}
	}
	if fallback != "" {
		return fallback, false, ""
	}
	return "", false, fmt.Sprintf("of the replicas of a range (%v) none answers", have)
}
