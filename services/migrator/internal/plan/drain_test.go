package plan

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ring"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

var whole = []ring.HashRange{{}}

// cluster draws members, all up and alive, of which n-0 is the one that is looked at.
func cluster(t *rapid.T, atLeast int) members {
	var m members
	for i := range rapid.IntRange(atLeast, 7).Draw(t, "members") {
		m = append(m, member{
			id: fmt.Sprintf("n-%d", i), addr: fmt.Sprintf("n-%d:8080", i), state: up, alive: true, declaredAt: int64(i),
			zone: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "zone"), virtualNodes: rapid.IntRange(1, 12).Draw(t, "places"),
		})
	}
	return m
}

func (m members) set(id string, f func(*member)) {
	for i := range m {
		if m[i].id == id {
			f(&m[i])
		}
	}
}

// made is the move of a plan, in a state.
func made(h handOver, drain string, s movev1.State) *movev1.Move {
	return &movev1.Move{
		Id: h.id, State: s, HandOver: true, Parent: drain, Target: &movev1.Target{NodeId: h.target.id},
		What: &movev1.Selection{HashRanges: toWire(h.ranges)},
	}
}

// own has the node own what the ring gives it, without what moves have given away.
func (l *leaving) own() *leaving {
	now := l.members.ring(l.factor, func(m member) bool { return m.owner() })
	gone := rangesOf(l.moves, func(m *movev1.Move) bool { return m.GetHandOver() && reached(m) })
	l.owned = nil
	for _, p := range now.RangesOf(l.self) {
		for _, r := range ring.Subtract([]ring.HashRange{p.Range}, gone) {
			l.owned = append(l.owned, ring.Placement{Range: r, Replicas: p.Replicas})
		}
	}
	return l
}

// Danger: a drain ends although a range of the node has no next owner, or was given to a node that does
// not own it on the ring that is left: then a record has a copy less, or none.
func TestADrainGivesEachRangeToItsNextOwner(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := cluster(t, 2)
		m.set("n-0", func(e *member) { e.state = draining })
		factor := rapid.IntRange(1, 4).Draw(t, "factor")
		l := leaving{self: "n-0", drain: "drain-x", members: m, factor: factor}
		g := l.own().plan()
		require.Empty(t, g.waits)
		require.Equal(t, len(g.create), g.total)
		given := map[string][]ring.HashRange{}
		var all []ring.HashRange
		for _, h := range g.create {
			require.LessOrEqual(t, len(h.ranges), maxRanges)
			require.False(t, ring.Overlaps(all, h.ranges), "a range is given twice")
			all = ring.Union(all, h.ranges)
			given[h.target.id] = ring.Union(given[h.target.id], h.ranges)
			l.moves = append(l.moves, made(h, "drain-x", movev1.State_STATE_COMMITTED))
		}
		before := m.ring(factor, func(member) bool { return true })
		after := m.ring(factor, func(e member) bool { return e.id != "n-0" })
		for _, p := range parts(before, after) {
			at := p.rng.Start
			if !slices.Contains(p.replicas[0], "n-0") {
				require.False(t, ring.In(all, at), "%d is not the node's", at)
				continue
			}
			holders := without(p.replicas[0], "n-0")
			for id, ranges := range given {
				if ring.In(ranges, at) {
					holders = append(holders, id)
				}
			}
			require.Subset(t, holders, p.replicas[1], "all next owners of %d have it", at)
			require.True(t, ring.In(all, at), "%d is handed over, so that nothing acknowledged is left behind", at)
		}
		g = l.own().plan()
		require.True(t, g.complete)
		require.Equal(t, g.total, g.done)
	})
}

// Danger: members that change meanwhile leave ranges without an owner, or a drain that never ends.
func TestADrainIsPlannedAnewWhenTheRingChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := cluster(t, 3)
		m.set("n-0", func(e *member) { e.state = draining })
		l := leaving{self: "n-0", drain: "drain-x", members: m, factor: rapid.IntRange(1, 3).Draw(t, "factor")}
		for step := 0; ; step++ {
			require.Less(t, step, 60, "it ends")
			g := l.own().plan()
			if g.complete {
				break
			}
			for _, h := range g.create {
				require.False(t, slices.ContainsFunc(l.moves, func(m *movev1.Move) bool { return m.GetId() == h.id }), "the id %s is new", h.id)
				busy := rangesOf(l.moves, func(m *movev1.Move) bool { return m.GetState() != movev1.State_STATE_CANCELLED })
				require.False(t, ring.Overlaps(busy, h.ranges), "no two moves of one range")
				l.moves = append(l.moves, made(h, "drain-x", movev1.State_STATE_PLANNED))
			}
			for _, move := range l.moves {
				switch {
				case slices.Contains(g.cancel, move.GetId()):
					require.Less(t, move.GetState(), movev1.State_STATE_FENCED)
					move.State = movev1.State_STATE_CANCELLED
				case ended(move):
				case step > 20 || rapid.Bool().Draw(t, "goes on"):
					move.State = []movev1.State{0, 4, 5, 5, 5, 6, 7, 8, 9}[move.GetState()]
				}
			}
			if step < 20 && rapid.IntRange(0, 3).Draw(t, "change") == 0 {
				id := fmt.Sprintf("n-%d", rapid.IntRange(1, len(m)-1).Draw(t, "who"))
				to := rapid.SampledFrom([]memberState{up, up, joining, drained}).Draw(t, "to")
				l.members.set(id, func(e *member) { e.state = to })
			}
			if step == 20 {
				for i := range l.members[1:] {
					l.members[i+1].state = up
				}
			}
		}
		before := l.members.ring(l.factor, func(member) bool { return true })
		handed := rangesOf(l.moves, reached)
		require.True(t, ring.Covers(handed, ring.RangesIn(before.RangesOf("n-0"))), "all that the node has at the end has a new owner")
	})
}

func draw3() members {
	var m members
	for i := range 4 {
		m = append(m, member{id: fmt.Sprintf("n-%d", i), addr: "x:1", state: up, alive: true, virtualNodes: 8, declaredAt: int64(10 - i)})
	}
	m[0].state = draining
	return m
}

// Danger: the planner goes on where it must wait, or waits where it can go on.
func TestWhatADrainWaitsFor(t *testing.T) {
	for _, c := range []struct {
		name string
		// keep what change has set the node to own.
		keep   bool
		change func(l *leaving)
		check  func(t *testing.T, g giveAway)
	}{
		{"the declaration is not heard yet", false, func(l *leaving) { l.members.set("n-0", func(m *member) { m.state = up }) }, func(t *testing.T, g giveAway) {
			require.Contains(t, g.waits, "not heard")
			require.Empty(t, g.create)
		}},
		{"another node drains and was first", false, func(l *leaving) {
			l.members.set("n-2", func(m *member) { m.state = draining })
			l.moves = []*movev1.Move{
				made(handOver{id: "drain-x.n-1", target: member{id: "n-1"}, ranges: []ring.HashRange{{Start: 1, End: 2}}}, "drain-x", movev1.State_STATE_COPYING),
				made(handOver{id: "drain-x.n-3", target: member{id: "n-3"}, ranges: []ring.HashRange{{Start: 2, End: 3}}}, "drain-x", movev1.State_STATE_FENCED),
			}
		}, func(t *testing.T, g giveAway) {
			require.Equal(t, "n-2 drains first", g.waits)
			require.Empty(t, g.create)
			require.Equal(t, []string{"drain-x.n-1"}, g.cancel, "what is fenced goes on")
		}},
		{"another node drains and comes later: it gets nothing", false, func(l *leaving) {
			l.members.set("n-2", func(m *member) { m.state, m.declaredAt = draining, 99 })
		}, func(t *testing.T, g giveAway) {
			require.Empty(t, g.waits)
			require.NotEmpty(t, g.create)
			for _, h := range g.create {
				require.NotEqual(t, "n-2", h.target.id)
			}
		}},
		{"a target does not answer", false, func(l *leaving) {
			l.moves = nil
			for _, h := range l.plan().create {
				l.moves = append(l.moves, made(h, "drain-x", movev1.State_STATE_COPYING))
			}
			l.members.set(l.moves[0].GetTarget().GetNodeId(), func(m *member) { m.alive = false })
		}, func(t *testing.T, g giveAway) {
			require.Contains(t, g.waits, "does not answer")
			require.Empty(t, g.create)
			require.Empty(t, g.cancel)
			require.False(t, g.complete)
		}},
		{"a move failed", false, func(l *leaving) {
			for _, h := range l.plan().create {
				l.moves = append(l.moves, made(h, "drain-x", movev1.State_STATE_FAILED))
				l.moves[0].Reason, l.moves[0].ResumeState = "disk full", movev1.State_STATE_COPYING
			}
		}, func(t *testing.T, g giveAway) {
			require.Contains(t, g.waits, "failed")
			require.False(t, g.complete)
		}},
		{"its failed move was called off: planned anew, under another name", false, func(l *leaving) {
			for _, h := range l.plan().create {
				l.moves = append(l.moves, made(h, "drain-x", movev1.State_STATE_CANCELLED))
			}
		}, func(t *testing.T, g giveAway) {
			require.NotEmpty(t, g.create)
			for _, h := range g.create {
				require.Equal(t, "drain-x."+h.target.id+".2", h.id)
			}
		}},
		{"all is given but another hand-over is under way", false, func(l *leaving) {
			for _, h := range l.plan().create {
				l.moves = append(l.moves, made(h, "drain-x", movev1.State_STATE_RELEASED))
			}
			l.moves = append(l.moves, made(handOver{id: "other", target: member{id: "n-1"}, ranges: whole}, "bootstrap-1", movev1.State_STATE_TAILING))
		}, func(t *testing.T, g giveAway) {
			require.False(t, g.complete)
			require.Empty(t, g.create)
		}},
		{"the node does not know what it owns", true, func(l *leaving) { l.owned = nil }, func(t *testing.T, g giveAway) {
			require.Contains(t, g.waits, "not known")
			require.False(t, g.complete)
			require.Empty(t, g.create)
		}},
		{"nobody else is there", false, func(l *leaving) { l.members = l.members[:1] }, func(t *testing.T, g giveAway) {
			require.Contains(t, g.waits, "nobody could take")
			require.False(t, g.complete)
			require.Empty(t, g.create)
		}},
		{"fewer members than copies: a replica that stays gets what was acknowledged here", false, func(l *leaving) { l.members = l.members[:2] }, func(t *testing.T, g giveAway) {
			require.Len(t, g.create, 1)
			require.Equal(t, "n-1", g.create[0].target.id)
			require.Equal(t, whole, g.create[0].ranges)
		}},
		{"and that replica is down", false, func(l *leaving) {
			l.members = l.members[:2]
			l.members[1].alive = false
		}, func(t *testing.T, g giveAway) {
			require.Contains(t, g.waits, "none is up and alive")
			require.False(t, g.complete)
			require.Empty(t, g.create)
		}},
		{"what the node does not own any more is not given again", true, func(l *leaving) {
			l.owned = []ring.Placement{{Range: l0[0], Replicas: []string{"n-0", "n-1", "n-2"}}}
		}, func(t *testing.T, g giveAway) {
			require.NotEmpty(t, g.create)
			for _, h := range g.create {
				require.True(t, ring.Covers(l0, h.ranges))
				require.Equal(t, "n-3", h.target.id)
			}
		}},
		{"what was given to a node that is gone is the node's again, and given anew", true, func(l *leaving) {
			l.factor = 2
			for _, h := range l.own().plan().create {
				l.moves = append(l.moves, made(h, "drain-x", movev1.State_STATE_RELEASED))
			}
			first := l.moves[0]
			l.members.set(first.GetTarget().GetNodeId(), func(m *member) { m.state = drained })
			now := l.members.ring(2, func(m member) bool { return m.owner() })
			l.owned = nil
			for _, p := range now.RangesOf("n-0") { // and what the others were given is still theirs
				for _, r := range ring.Intersect([]ring.HashRange{p.Range}, fromWire(first.GetWhat().GetHashRanges())) {
					l.owned = append(l.owned, ring.Placement{Range: r, Replicas: p.Replicas})
				}
			}
		}, func(t *testing.T, g giveAway) {
			require.False(t, g.complete)
			require.NotEmpty(t, g.create)
			for _, h := range g.create {
				require.Contains(t, []string{"drain-x.n-2", "drain-x.n-3", "drain-x.n-2.2", "drain-x.n-3.2"}, h.id)
			}
		}},
		{"what the node took over from another one, which the ring does not say, goes to who has it by the ring", true, func(l *leaving) {
			l.factor, l.owned = 1, nil
			now := l.members.ring(1, func(member) bool { return true })
			for _, p := range now.Placements() {
				if p.Replicas[0] == "n-1" {
					l.owned = append(l.owned, ring.Placement{Range: p.Range, Replicas: []string{"n-0"}})
				}
			}
		}, func(t *testing.T, g giveAway) {
			require.Len(t, g.create, 1)
			require.Equal(t, "n-1", g.create[0].target.id)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := leaving{self: "n-0", drain: "drain-x", members: draw3(), factor: 3}
			c.change(l.own())
			if !c.keep {
				l.own()
			}
			c.check(t, l.plan())
		})
	}
}

var l0 = []ring.HashRange{{Start: 0, End: 1 << 62}}

// Danger: a name that is no id is refused for ever, or two nodes share one.
func TestMoveIDs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		node := rapid.StringMatching(`[A-Za-z0-9._-]{1,100}`).Draw(t, "node")
		taken := map[string]bool{}
		for range 12 {
			id := moveID("bootstrap-abcdefgh-copy-", node, func(id string) bool { return taken[id] })
			require.Regexp(t, `^[a-z0-9.-]{1,64}$`, id)
			require.False(t, taken[id])
			taken[id] = true
		}
	})
	require.Equal(t, "bootstrap-0a1b2c3d", bootstrapID("0a1b2c3d4e5f"))
	for _, odd := range []string{"", "ABCDEFGHIJ", "a", "äöüäöü"} {
		require.Regexp(t, `^bootstrap-[a-z0-9-]{1,8}$`, bootstrapID(odd))
	}
	require.Equal(t, "drain-x.n-1", moveID("drain-x.", "n-1", func(string) bool { return false }))
	require.NotEqual(t, word("N_1", 20), word("n_1", 20))
	require.NotEqual(t, word("n_1", 20), word("n-1", 20))
}

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
