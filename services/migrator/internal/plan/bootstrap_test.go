package plan

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ring"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

func brought(b bringing, s movev1.State) *movev1.Move {
	return &movev1.Move{
		Id: b.id, State: s, HandOver: b.handOver, Parent: "bootstrap-x", Target: &movev1.Target{NodeId: "n-0"},
		What: &movev1.Selection{HashRanges: toWire(b.ranges)},
	}
}

// Danger: a node that joins is up without a range that is its own, and answers "not found" for it; or a
// node that does not leave a range hands it over.
func TestABootstrapBringsEachRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := cluster(t, 2)
		m.set("n-0", func(e *member) { e.state = joining })
		factor := rapid.IntRange(1, 4).Draw(t, "factor")
		for i := range m[1:] { // some were away for long
			if rapid.IntRange(0, 3).Draw(t, "down") == 0 {
				m[i+1].alive, m[i+1].since = false, noon.Add(-time.Hour)
			}
		}
		a := arriving{self: "n-0", parent: "bootstrap-x", members: m, factor: factor, now: noon, moves: map[string][]*movev1.Move{}}
		before := m.ring(factor, func(e member) bool { return e.owner() })
		after := m.ring(factor, func(member) bool { return true })
		b := a.plan()
		var all []ring.HashRange
		for _, c := range b.create {
			require.True(t, c.source.alive)
			require.False(t, ring.Overlaps(all, c.ranges), "a range comes from one node")
			all = ring.Union(all, c.ranges)
			a.moves[c.source.id] = append(a.moves[c.source.id], brought(c, movev1.State_STATE_RELEASED))
		}
		lost := false
		for _, p := range parts(before, after) {
			at := p.rng.Start
			if !slices.Contains(p.replicas[1], "n-0") {
				require.False(t, ring.In(all, at))
				continue
			}
			if !ring.In(all, at) {
				lost = true
				for _, id := range p.replicas[0] {
					e, _ := m.get(id)
					require.False(t, e.alive, "%s could give %d", id, at)
				}
			}
			for _, c := range b.create {
				if ring.In(c.ranges, at) {
					require.Contains(t, p.replicas[0], c.source.id, "the source has what it gives")
					require.Equal(t, c.handOver, !slices.Contains(p.replicas[1], c.source.id), "who leaves hands over, and nobody else")
				}
			}
		}
		again := a.plan()
		require.Equal(t, !lost, again.complete)
		require.Equal(t, lost, again.waits != "")
		require.Empty(t, again.create)
	})
}

// Danger: after a change of the ring, ranges are missing that nobody brings any more.
func TestABootstrapIsPlannedAnewWhenTheRingChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := cluster(t, 3)
		m.set("n-0", func(e *member) { e.state = joining })
		a := arriving{self: "n-0", parent: "bootstrap-x", members: m, factor: rapid.IntRange(1, 3).Draw(t, "factor"), now: noon, moves: map[string][]*movev1.Move{}}
		for step := 0; ; step++ {
			require.Less(t, step, 60, "it ends")
			b := a.plan()
			if b.complete {
				break
			}
			for _, c := range b.create {
				for _, other := range a.moves[c.source.id] {
					require.NotEqual(t, other.GetId(), c.id)
				}
				a.moves[c.source.id] = append(a.moves[c.source.id], brought(c, movev1.State_STATE_PLANNED))
			}
			for _, list := range a.moves {
				for _, move := range list {
					switch rapid.IntRange(0, 5).Draw(t, "goes on") {
					case 0:
						if step < 20 && !ended(move) {
							move.State = movev1.State_STATE_CANCELLED
						}
					case 1:
					default:
						if !ended(move) {
							move.State = []movev1.State{0, 4, 5, 5, 5, 8, 7, 8, 9}[move.GetState()]
						}
					}
				}
			}
			if step < 20 && rapid.IntRange(0, 3).Draw(t, "change") == 0 {
				i := rapid.IntRange(1, len(m)-1).Draw(t, "who")
				to := rapid.SampledFrom([]memberState{up, up, drained}).Draw(t, "to")
				a.members[i].state = to
				a.members[i].alive, a.members[i].since = rapid.Bool().Draw(t, "alive"), noon.Add(-time.Hour)
			}
			if step == 20 {
				for i := range a.members[1:] {
					a.members[i+1].state, a.members[i+1].alive = up, true
				}
			}
		}
		var here []ring.HashRange
		for _, list := range a.moves {
			here = ring.Union(here, rangesOf(list, reached))
		}
		after := a.members.ring(a.factor, func(e member) bool { return e.owner() || e.id == "n-0" })
		if len(a.members.ring(a.factor, func(e member) bool { return e.owner() }).Placements()) > 0 {
			require.True(t, ring.Covers(here, ring.RangesIn(after.RangesOf("n-0"))))
		}
	})
}

// Danger: two nodes that join at once plan for two different rings; a node takes the ring for itself while
// others own it; one that is down for a moment loses what only it has.
func TestWhatABootstrapWaitsFor(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(a *arriving)
		check  func(t *testing.T, b takeOver)
	}{
		{"nothing", func(*arriving) {}, func(t *testing.T, b takeOver) {
			require.Empty(t, b.waits)
			require.NotEmpty(t, b.create)
			require.Equal(t, "bootstrap-x-n-1", b.create[0].id)
			require.False(t, b.complete)
		}},
		{"the declaration is not heard yet", func(a *arriving) { a.members[0].state = up }, func(t *testing.T, b takeOver) {
			require.Contains(t, b.waits, "not heard")
		}},
		{"it is the only one", func(a *arriving) { a.members = a.members[:1] }, func(t *testing.T, b takeOver) {
			require.True(t, b.alone && b.complete)
		}},
		{"all join: a new cluster", func(a *arriving) {
			for i := range a.members {
				a.members[i].state = joining
			}
		}, func(t *testing.T, b takeOver) { require.True(t, b.alone && b.complete) }},
		{"all others are down", func(a *arriving) {
			for i := range a.members[1:] {
				a.members[i+1].alive = false
			}
		}, func(t *testing.T, b takeOver) {
			require.False(t, b.alone || b.complete)
			require.NotEmpty(t, b.waits)
			require.Empty(t, b.create)
		}},
		{"another one joins first", func(a *arriving) { a.members[1].state, a.members[1].declaredAt = joining, -5 }, func(t *testing.T, b takeOver) {
			require.Equal(t, "n-1 joins first", b.waits)
			require.Empty(t, b.create)
		}},
		{"another one was first and is gone", func(a *arriving) {
			a.members[1].state, a.members[1].declaredAt, a.members[1].alive = joining, -5, false
		}, func(t *testing.T, b takeOver) {
			require.Empty(t, b.waits)
			require.NotEmpty(t, b.create)
		}},
		{"another one drains", func(a *arriving) { a.members[1].state = draining }, func(t *testing.T, b takeOver) {
			require.Equal(t, "n-1 drains first", b.waits)
			require.Empty(t, b.create)
		}},
		{"another one drains, but this has begun", func(a *arriving) {
			a.moves["n-1"] = []*movev1.Move{brought(bringing{id: "m", ranges: []ring.HashRange{{Start: 1, End: 2}}}, movev1.State_STATE_COPYING)}
			a.members[1].state = draining
		}, func(t *testing.T, b takeOver) { require.NotContains(t, b.waits, "drains first") }},
		{"one that is to hand over is down for a moment", func(a *arriving) {
			for i := range a.members[1:] {
				a.members[i+1].alive, a.members[i+1].since = i == 0, noon.Add(-time.Minute)
			}
		}, func(t *testing.T, b takeOver) {
			require.Contains(t, b.waits, "does not answer")
			for _, c := range b.create {
				require.Equal(t, "n-1", c.source.id)
				require.True(t, c.handOver)
			}
		}},
		{"one is not heard", func(a *arriving) { a.unheard = []string{"n-1", "n-2", "n-3"} }, func(t *testing.T, b takeOver) {
			require.Contains(t, b.waits, "has not said")
			require.Empty(t, b.create)
			require.False(t, b.complete)
		}},
		{"a move failed", func(a *arriving) {
			for _, c := range a.plan().create {
				a.moves[c.source.id] = []*movev1.Move{brought(c, movev1.State_STATE_FAILED)}
			}
		}, func(t *testing.T, b takeOver) {
			require.Contains(t, b.waits, "failed")
			require.Empty(t, b.create)
			require.False(t, b.complete)
		}},
		{"moves are under way", func(a *arriving) {
			for _, c := range a.plan().create {
				a.moves[c.source.id] = []*movev1.Move{brought(c, movev1.State_STATE_VERIFYING)}
			}
		}, func(t *testing.T, b takeOver) {
			require.Empty(t, b.waits)
			require.Empty(t, b.create)
			require.False(t, b.complete)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := draw3()
			m[0].state = joining
			a := arriving{self: "n-0", parent: "bootstrap-x", members: m, factor: 2, now: noon, moves: map[string][]*movev1.Move{}}
			c.change(&a)
			c.check(t, a.plan())
		})
	}
}
