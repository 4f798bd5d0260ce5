package plan

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ring"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// Danger: a drain ends while a record that only this node has was not copied to all of its owners, or never ends
// because owners come and go.
func TestCopiesOfOthersRangesReachTheirOwners(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := cluster(t, 2)
		m.set("n-0", func(e *member) { e.state = draining })
		l := leaving{self: "n-0", drain: "drain-x", members: m, factor: rapid.IntRange(1, 3).Draw(t, "factor")}
		for step := 0; ; step++ {
			require.Less(t, step, 60, "it ends")
			g := giveAway{complete: true}
			l.copies(&g, l.foreign())
			if g.complete && step >= 20 {
				break
			}
			for _, h := range g.create {
				require.False(t, slices.ContainsFunc(l.moves, func(m *movev1.Move) bool { return m.GetId() == h.id }), "the id %s is new", h.id)
				require.LessOrEqual(t, len(h.ranges), maxRanges)
				require.True(t, h.copy)
				copied := made(h, "drain-x", movev1.State_STATE_PLANNED)
				copied.HandOver = false
				l.moves = append(l.moves, copied)
			}
			for _, move := range l.moves {
				switch {
				case slices.Contains(g.cancel, move.GetId()):
					move.State = movev1.State_STATE_CANCELLED
				case ended(move):
				case step > 20 || rapid.Bool().Draw(t, "goes on"):
					move.State = []movev1.State{0, 2, 3, 8, 8, 8, 8, 8, 9}[move.GetState()]
				}
			}
			for i := range l.members[1:] {
				l.members[i+1].alive = step >= 19 || rapid.IntRange(0, 3).Draw(t, "alive") > 0
			}
		}
		owners := m.ring(l.factor, func(e member) bool { return e.id != "n-0" })
		for _, p := range owners.Within(l.foreign()) {
			for _, id := range p.Replicas {
				has := rangesOf(l.moves, func(m *movev1.Move) bool { return reached(m) && m.GetTarget().GetNodeId() == id })
				require.True(t, ring.Covers(has, []ring.HashRange{p.Range}), "%s has %v", id, p.Range)
			}
		}
	})
}

// Danger: a node that is lost at the end of its drain stays DRAINING for the others, for ever: its directory says that
// it must not start again.
func TestADrainIsOverWhenAnotherMemberHasHeardIt(t *testing.T) {
	simulate(t, 2, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
		for _, id := range []string{"a", "b", "c"} {
			add(id, up)
		}
		b, c := s.nodes["b"], s.nodes["c"]
		s.change(func() { b.broken["Members"], c.broken["Members"] = true, true })
		a := s.nodes["a"]
		a.startDrain()
		s.is(time.Minute, "a", drained)
		s.until(time.Minute, "it says what it waits for", func() bool { return strings.Contains(a.drain.GetReason(), "no other member has heard") })
		require.Equal(t, movev1.DrainState_DRAIN_STATE_MOVING, a.drain.GetState())
		s.change(func() { delete(c.broken, "Members") })
		s.until(time.Minute, "it is over", func() bool { return a.drain.GetState() == movev1.DrainState_DRAIN_STATE_COMPLETED })
	})
}

// Danger: what nobody else has goes with the node; or what was deleted meanwhile comes back from it.
func TestADrainCopiesWhatWasNeverItsOwn(t *testing.T) {
	simulate(t, 2, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
		for _, id := range []string{"a", "b", "c", "d"} {
			add(id, up)
		}
		a := s.nodes["a"]
		var stray, old, recent []ring.HashRange
		s.change(func() {
			now := membersOf(s.view(a)).ring(s.factor, func(m member) bool { return m.owner() })
			foreign := ring.Subtract(whole, ring.RangesIn(now.RangesOf("a")))
			stray, old, recent = foreign[:1], foreign[len(foreign)-1:], foreign[1:2]
			a.strays, a.residue, a.recent = stray, old, recent
			a.broken["Cleanup"], a.broken["Digest"] = true, true
		})
		a.startDrain()
		for _, call := range []string{"Cleanup", "Digest"} {
			time.Sleep(time.Minute)
			s.change(func() {
				require.Equal(t, draining, a.declared, "%s fails", call)
				delete(a.broken, call)
			})
		}
		s.is(time.Minute, "a", drained)
		s.mu.Lock()
		defer s.mu.Unlock()
		after := membersOf(s.view(a)).ring(s.factor, func(m member) bool { return m.owner() })
		for _, p := range after.Within(ring.Union(stray, recent)) {
			for _, id := range p.Replicas {
				require.True(t, ring.Covers(s.nodes[id].copied, []ring.HashRange{p.Range}), "%s has %v", id, p.Range)
			}
		}
		for id, n := range s.nodes {
			require.False(t, ring.Overlaps(n.copied, old), "%s has what was to be dropped", id)
		}
	})
}

// Danger: what a clean-up has dropped in part is copied: a value without the delete that came after it.
func TestADrainCopiesNothingThatIsHalfDropped(t *testing.T) {
	simulate(t, 2, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
		for _, id := range []string{"a", "b", "c", "d"} {
			add(id, up)
		}
		a := s.nodes["a"]
		s.change(func() {
			now := membersOf(s.view(a)).ring(s.factor, func(m member) bool { return m.owner() })
			a.recent, a.halfway = ring.Subtract(whole, ring.RangesIn(now.RangesOf("a"))), true
		})
		a.startDrain()
		time.Sleep(time.Minute)
		s.change(func() {
			require.Equal(t, draining, a.declared)
			a.halfway = false
		})
		s.is(time.Minute, "a", drained)
		s.mu.Lock()
		defer s.mu.Unlock()
		for id, n := range s.nodes {
			require.Empty(t, n.copied, id)
		}
	})
}
