package plan

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ring"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/compare"
)

// simulate runs a scenario in virtual time.
func simulate(t *testing.T, factor int, f func(ctx context.Context, s *sim, add func(id string, state memberState) *simNode)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		var group sync.WaitGroup
		defer group.Wait()
		defer cancel()
		s := newSim(t, factor)
		f(ctx, s, func(id string, state memberState) *simNode { return s.add(ctx, &group, id, state) })
	})
}

// is waits for what a node has declared.
func (s *sim) is(limit time.Duration, id string, state memberState) {
	s.t.Helper()
	s.until(limit, fmt.Sprintf("%s is %s", id, state), func() bool { return s.nodes[id].declared == state })
}

// four has a, b, c and d join an empty cluster.
func (s *sim) four(add func(id string, state memberState) *simNode) {
	s.t.Helper()
	add("a", joining)
	s.is(20*time.Second, "a", up)
	for _, id := range []string{"b", "c", "d"} {
		add(id, joining)
	}
	for _, id := range []string{"b", "c", "d"} {
		s.is(time.Minute, id, up)
	}
}

func (n *simNode) startDrain() {
	n.change(func() {
		n.drain = &movev1.Drain{Id: "drain-" + n.id, State: movev1.DrainState_DRAIN_STATE_REQUESTED, Version: 1}
	})
}

// Danger: a new cluster never serves, a node that joins serves before it has its ranges, or a node that
// drains is told as drained while it still has some.
func TestNodesJoinAndLeave(t *testing.T) {
	simulate(t, 2, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
		s.four(add)
		s.mu.Lock()
		s.nodes["c"].moves = append(s.nodes["c"].moves, &movev1.Move{Id: "x", State: movev1.State_STATE_CANCELLED})
		s.mu.Unlock()
		s.nodes["b"].startDrain()
		s.nodes["a"].startDrain()
		for _, id := range []string{"a", "b"} {
			s.is(time.Minute, id, drained)
			s.until(10*time.Second, "it is told", func() bool {
				d := s.nodes[id].drain
				return d.GetState() == movev1.DrainState_DRAIN_STATE_COMPLETED && d.GetMovesDone() == d.GetMovesTotal() && d.GetMovesDone() > 0
			})
			require.True(t, s.tenants > 0)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, id := range []string{"c", "d"} { // two copies of two members: each has all
			require.True(t, ring.Covers(ring.RangesIn(s.nodes[id].owned()), whole), s.nodes[id].id)
		}
	})
}

// Danger: a bootstrap or a drain that met a fault never ends, or ends without what is missing.
func TestPlansGoOnAfterFaults(t *testing.T) {
	for _, call := range []string{"Moves", "Replicate", "Declare", "Tenants", "Configuration"} {
		t.Run(call, func(t *testing.T) {
			simulate(t, 2, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
				s.broken = call
				for _, id := range []string{"a", "b", "c"} {
					add(id, up)
				}
				add("d", joining)
				s.nodes["a"].startDrain()
				time.Sleep(30 * time.Second)
				s.mu.Lock()
				require.Equal(t, joining, s.nodes["d"].declared)
				if call != "Tenants" { // of which drains have no need
					require.NotEqual(t, drained, s.nodes["a"].declared)
				}
				for _, n := range s.nodes {
					n.broken = map[string]bool{}
				}
				s.mu.Unlock()
				s.is(time.Minute, "d", up)
				s.is(time.Minute, "a", drained)
			})
		})
	}
}

// Danger: what a drain gave to a node that was removed since stays with the node that drains, for ever, and the drain
// does not end; or it ends, and the range has a copy less.
func TestADrainGivesAnewWhatWasGivenToANodeThatIsGone(t *testing.T) {
	simulate(t, 2, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
		for _, id := range []string{"a", "b", "c", "d"} {
			add(id, up)
		}
		s.change(func() { s.nodes["c"].alive = false })
		s.nodes["a"].startDrain()
		s.until(time.Minute, "b has its part, and c has not", func() bool { return len(s.nodes["a"].given["b"]) > 0 && s.nodes["a"].drain.GetReason() != "" })
		var lost []ring.HashRange
		s.change(func() {
			lost = s.nodes["a"].given["b"]
			s.nodes["b"].declared, s.nodes["b"].alive, s.nodes["c"].alive = 5, false, true
		})
		s.is(time.Minute, "a", drained)
		s.mu.Lock()
		defer s.mu.Unlock()
		anew := rangesOf(s.nodes["a"].moves, func(m *movev1.Move) bool { return reached(m) && m.GetTarget().GetNodeId() != "b" })
		require.True(t, ring.Covers(anew, lost), "%v of %v", anew, lost)
	})
}

// Danger: a target or a source that is gone blocks a plan for ever, or a new member's ranges are planned
// by an old ring.
func TestPlansFollowTheMembers(t *testing.T) {
	simulate(t, 2, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
		for _, id := range []string{"a", "b", "c", "d"} {
			add(id, up)
		}
		s.change(func() { s.nodes["b"].alive = false })
		s.nodes["a"].startDrain()
		s.until(time.Minute, "it waits for b", func() bool {
			d := s.nodes["a"].drain
			return d.GetReason() != "" && d.GetMovesDone() > 0
		})
		s.mu.Lock()
		require.Equal(t, draining, s.nodes["a"].declared)
		s.mu.Unlock()
		// An operator takes b out: its part goes to others.
		s.change(func() { s.nodes["b"].declared = 5 })
		s.is(time.Minute, "a", drained)

		// A source of a bootstrap goes away in the middle.
		s.change(func() { s.nodes["c"].slow = true })
		add("e", joining)
		s.until(time.Minute, "c brings something", func() bool { return len(s.nodes["c"].moves) > 0 })
		s.change(func() { s.nodes["c"].alive, s.nodes["c"].since = false, time.Now() })
		time.Sleep(time.Minute)
		s.mu.Lock()
		require.Equal(t, joining, s.nodes["e"].declared, "it may come back")
		s.mu.Unlock()
		s.is(5*time.Minute, "e", up)
	})
}

// Danger: the node of an existing coordinator plans against it.
func TestACoordinatedNodeLeavesPlanningToItsCoordinator(t *testing.T) {
	simulate(t, 2, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
		for _, id := range []string{"a", "b", "c"} {
			n := add(id, up)
			s.mu.Lock()
			n.config.Coordinated = true
			s.mu.Unlock()
		}
		s.nodes["a"].startDrain()
		time.Sleep(time.Minute)
		s.mu.Lock()
		defer s.mu.Unlock()
		require.Equal(t, up, s.nodes["a"].declared)
		require.Empty(t, s.nodes["a"].moves)
		require.NotEmpty(t, s.compared, "replicas are compared all the same")
	})
}

// Danger: a replica that was away answers from old data until somebody looks at it; or a pair is compared
// twice by both of its nodes, all the time.
func TestReplicasAreComparedWhenTheyComeBack(t *testing.T) {
	simulate(t, 3, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
		for _, id := range []string{"a", "b", "c"} {
			add(id, up)
		}
		pairs := map[string]int{"a b": 1, "a c": 1, "b c": 1}
		s.until(20*time.Second, "each pair once", func() bool { return len(s.compared) == 3 })
		time.Sleep(20 * time.Second)
		s.mu.Lock()
		require.Equal(t, pairs, s.compared)
		clear(s.compared)
		s.mu.Unlock()
		s.change(func() { s.nodes["c"].alive = false })
		time.Sleep(time.Minute)
		s.mu.Lock()
		require.Empty(t, s.compared)
		s.mu.Unlock()
		s.change(func() { s.nodes["c"].alive = true })
		s.until(20*time.Second, "it is compared with both", func() bool { return s.compared["a c"] == 1 && s.compared["b c"] == 1 })
		time.Sleep(4 * time.Hour)
		s.mu.Lock()
		defer s.mu.Unlock()
		require.GreaterOrEqual(t, s.compared["a b"], 3, "and again each interval")
		require.LessOrEqual(t, s.compared["a b"], 5)
		require.Empty(t, s.compared["b a"]+s.compared["c a"]+s.compared["c b"])
	})
}

// Danger: an operator who pauses repair finds his disks busy with it all the same, or a node that neither
// joins nor leaves.
func TestPausedRepairComparesNothingAndNodesJoinAndLeave(t *testing.T) {
	simulate(t, 2, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
		s.paused = true
		for _, id := range []string{"a", "b", "c"} {
			add(id, up)
		}
		add("d", joining)
		s.is(time.Minute, "d", up)
		s.change(func() { s.nodes["c"].alive = false })
		time.Sleep(time.Minute)
		s.change(func() { s.nodes["c"].alive = true })
		s.nodes["b"].startDrain()
		s.is(time.Minute, "b", drained)
		time.Sleep(4 * time.Hour)
		s.mu.Lock()
		defer s.mu.Unlock()
		require.Empty(t, s.compared)
	})
}

// Danger: one pair that can't be compared keeps others from it, or is asked without a pause.
func TestAPairThatFailsIsTriedAgain(t *testing.T) {
	for _, call := range []string{"Describe", "Tenants", "Digest", "Equal", "Ranges", "refusal"} {
		t.Run(call, func(t *testing.T) {
			simulate(t, 3, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
				for _, id := range []string{"a", "b", "c"} {
					add(id, up)
				}
				s.mu.Lock()
				s.nodes["b"].broken[call] = true
				if call == "refusal" {
					s.nodes["b"].refusal = "disk full"
				}
				s.mu.Unlock()
				runs := func(results ...string) (n float64) { // of whichever node of a pair was first
					for _, node := range s.nodes {
						for _, result := range results {
							n += testutil.ToFloat64(node.metrics.runs.WithLabelValues(result))
						}
					}
					return n
				}
				s.until(time.Minute, "the others are, and it fails", func() bool {
					return s.compared["a c"] == 1 && runs(resultFailed, resultRefused) > 0
				})
				s.mu.Lock()
				require.Zero(t, s.compared["a b"])
				s.nodes["b"].broken[call], s.nodes["b"].refusal = false, ""
				s.mu.Unlock()
				s.until(2*time.Minute, "and then it", func() bool { return s.compared["a b"] == 1 && s.compared["b c"] == 1 })
				synctest.Wait()
				require.Positive(t, runs(resultEqual))
			})
		})
	}
}

// Danger: an operator can't see what comparisons find and cost.
func TestMetricsOfRepairs(t *testing.T) {
	m := NewMetrics()
	m.ran(resultExchanged, compare.Progress{ComparedKeys: 7, RepairedKeys: 3, SentBytes: 90}, 2*time.Second)
	m.ran(resultEqual, compare.Progress{ComparedKeys: 1}, time.Second)
	m.waiting.Set(4)
	for want, c := range map[float64]prometheus.Collector{
		8: m.compared, 3: m.repaired, 90: m.bytes, 1: m.last, 4: m.waiting,
	} {
		require.InDelta(t, want, testutil.ToFloat64(c), 0)
	}
	require.InDelta(t, 1, testutil.ToFloat64(m.runs.WithLabelValues(resultExchanged)), 0)
	require.Zero(t, testutil.ToFloat64(m.runs.WithLabelValues(resultFailed)))
}

// Danger: a node that only does not see its cluster yet takes the whole ring for itself.
func TestANodeLooksAroundBeforeItIsAlone(t *testing.T) {
	simulate(t, 2, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
		began := time.Now()
		n := add("a", joining)
		s.mu.Lock()
		n.verdict = []string{"seeds"}
		s.mu.Unlock()
		s.change(func() {})
		s.is(time.Minute, "a", up)
		require.Greater(t, time.Since(began), settleSeeds)
	})
}
