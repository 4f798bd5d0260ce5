package ownership

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// ringOf is what members of declared give.
func ringOf(ids ...string) *ring.Ring {
	var all []ring.Member
	for _, id := range ids {
		all = append(all, ring.Member{NodeID: id, VirtualNodes: 4})
	}
	return ring.New(all, 2)
}

func own(r *ring.Ring, id string) []ring.HashRange { return ring.RangesIn(r.RangesOf(id)) }

// Danger: a node thinks that it owns what it does not, and others believe it.
func TestOwnedRangesAreThoseOfTheRingAndOfHandOvers(t *testing.T) {
	n := open(t)
	require.False(t, n.View().Known)
	require.NoError(t, n.SetMembers(bg, up("n2", "n3")), "the node is not declared")
	require.False(t, n.View().Known)
	foreign := up("n1", "n2")
	foreign[0].Incarnation = "i0"
	require.NoError(t, n.SetMembers(bg, foreign), "another one of its name is")
	require.False(t, n.View().Known)

	all := up("n1", "n2", "n3", "n4")
	all[3].State = membership.Joining
	require.NoError(t, n.SetMembers(bg, all))
	r := ringOf("n1", "n2", "n3")
	require.True(t, n.View().Known)
	require.Equal(t, own(r, "n1"), ring.RangesIn(n.View().Owned))
	for _, p := range n.View().Owned {
		require.Equal(t, r.Replicas(p.Range.Start), p.Replicas)
	}
	all[1].State = membership.Draining
	require.NoError(t, n.SetMembers(bg, all))
	require.Equal(t, own(r, "n1"), ring.RangesIn(n.View().Owned), "who drains still owns")

	// n2 hands a range over that the ring does not give to n1, and n1 one to n4.
	taken := ring.Subtract(own(r, "n2"), own(r, "n1"))
	_, err := n.Prepare(bg, "m1", taken, n2)
	require.NoError(t, err)
	require.NoError(t, n.Accept(bg, "m1", "n2", 1))
	away := n.View().Owned[0].Range
	_, _, err = n.Fence(bg, "m2", []ring.HashRange{away})
	require.NoError(t, err)
	require.NoError(t, n.Give(bg, "m2", Owner{NodeID: "n4"}, 2))
	want := ring.Subtract(ring.Union(own(r, "n1"), taken), []ring.HashRange{away})
	for range 2 {
		require.Equal(t, want, ring.RangesIn(n.View().Owned))
		for _, p := range n.View().Owned {
			require.Contains(t, p.Replicas, "n1")
			if ring.In(taken, p.Range.Start) {
				require.NotContains(t, p.Replicas, "n2")
			}
		}
		n = n.restart(t)
		require.NoError(t, n.SetMembers(bg, all))
	}
}

// Danger: a node that has nothing yet says that a key is not there, while others have it.
func TestJoiningNodeAnswersForWhatItAccepted(t *testing.T) {
	n := open(t)
	all := up("n1", "n2", "n3")
	all[0].State = membership.Joining
	require.NoError(t, n.SetMembers(bg, all))
	taken := []ring.HashRange{{Start: 10, End: 20}}
	_, err := n.Prepare(bg, "m1", taken, n2)
	require.NoError(t, err)
	require.NoError(t, n.Accept(bg, "m1", "n2", 1))
	for range 2 {
		for _, write := range []bool{false, true} {
			require.NoError(t, n.Admit(10, write))
			require.NoError(t, n.Admit(19, write))
			require.Equal(t, store.ReasonRangeMoving, store.ReasonOf(n.Admit(9, write)))
			require.Equal(t, store.ReasonRangeMoving, store.ReasonOf(n.Admit(20, write)))
		}
		n = n.restart(t)
		require.NoError(t, n.SetMembers(bg, all))
	}
	all[0].State = membership.Up
	require.NoError(t, n.SetMembers(bg, all))
	require.NoError(t, n.Admit(9, false))

	// The first of its cluster has nobody to wait for.
	first := open(t)
	alone := up("n1", "n2")
	alone[0].State, alone[1].State = membership.Joining, membership.Joining
	require.NoError(t, first.SetMembers(bg, alone))
	require.NoError(t, first.Admit(9, true))
}

// Danger: as above, while nobody has said yet that there are others; or a node that is alone waits for ever.
func TestANodeThatAwaitsNewsAnswersForNothing(t *testing.T) {
	refused := func(n *node, want bool) {
		t.Helper()
		require.Equal(t, want, store.ReasonOf(n.Admit(9, false)) == store.ReasonRangeMoving)
		require.Equal(t, want, store.ReasonOf(n.Admit(9, true)) == store.ReasonRangeMoving)
	}
	alone := up("n1", "n2")
	alone[0].State, alone[1].State = membership.Joining, membership.Joining
	n := open(t)
	require.NoError(t, n.Await(bg))
	refused(n, true)
	require.NoError(t, n.SetMembers(bg, alone))
	require.True(t, n.Awaiting())
	refused(n, true)
	require.NoError(t, n.Alone(bg))
	require.False(t, n.Awaiting())
	refused(n, false)

	for state, want := range map[membership.State]bool{membership.Joining: true, membership.Up: false} {
		n := open(t)
		require.NoError(t, n.Await(bg))
		all := up("n1", "n2", "n3", "n4")
		all[0].State = state
		require.NoError(t, n.SetMembers(bg, all))
		require.False(t, n.Awaiting(), "it knows")
		refused(n, want)
	}

	n = open(t)
	n.o.AtOnce = true
	require.NoError(t, n.Await(bg))
	refused(n, false)
}

// Danger: what a node lost is forgotten, and comes back to life years later.
func TestLostRangesAreResidueAtOnce(t *testing.T) {
	n := open(t)
	require.NoError(t, n.SetMembers(bg, up("n1", "n2")))
	require.NoError(t, n.write("k"))
	require.Empty(t, n.View().Residue)
	require.NoError(t, n.SetMembers(bg, up("n1", "n2", "n3")))
	lost := ring.Subtract([]ring.HashRange{{}}, own(ringOf("n1", "n2", "n3"), "n1"))
	require.Equal(t, [][]ring.HashRange{lost}, n.forgotten, "equality of them counts no more")
	for range 2 {
		require.Len(t, n.View().Residue, 1)
		require.Equal(t, lost, n.View().Residue[0].Ranges)
		require.Equal(t, lost, n.View().CleanupNeeded())
		require.Less(t, uint64(0), n.View().Residue[0].Sequence)
		require.NoError(t, n.write(keyIn(lost, 0)), "who still sends here is served")
		n = n.restart(t)
	}
	// The ring says the same after a restart: nothing happens twice.
	require.NoError(t, n.SetMembers(bg, up("n1", "n2", "n3")))
	require.Len(t, n.View().Residue, 1)
	require.Empty(t, n.forgotten)
	var out []Residue
	require.NoError(t, n.Cleanup(bg, func(_ context.Context, all []Residue) error { out = all; return nil }))
	require.Len(t, out, 1)
	require.Empty(t, n.View().Residue)
	n = n.restart(t)
	require.Empty(t, n.View().Residue)
}

// Danger: a node that was away for a moment throws away what only it has; one that was away for long
// brings back what everybody has deleted.
func TestARegainedRangeKeepsYoungResidueAndWaitsForOldToGo(t *testing.T) {
	two, three := up("n1", "n2"), up("n1", "n2", "n3")
	lost := ring.Subtract([]ring.HashRange{{}}, own(ringOf("n1", "n2", "n3"), "n1"))
	key := keyIn(lost, 0)
	for name, c := range map[string]struct {
		away time.Duration
		old  bool
	}{"a moment": {time.Minute, false}, "just below the grace": {grace - 3*time.Minute, false}, "the grace, by clocks that differ": {grace - time.Minute, true}, "long": {100 * grace, true}, "clocks that went back": {-time.Hour, true}} {
		t.Run(name, func(t *testing.T) {
			n := open(t)
			require.NoError(t, n.SetMembers(bg, two))
			require.NoError(t, n.write(key))
			require.NoError(t, n.SetMembers(bg, three))
			n.wall.move(c.away)
			require.NoError(t, n.SetMembers(bg, two))
			if !c.old {
				require.Empty(t, n.View().Residue)
				require.False(t, n.Active())
				require.NoError(t, n.read(key))
				return
			}
			for range 2 {
				require.Equal(t, lost, n.View().Regained)
				requireReason(t, store.ReasonRangeMoving, n.read(key))
				requireReason(t, store.ReasonRangeMoving, n.write(key))
				requireReason(t, store.ReasonRangeMoving, n.Exchange([]ring.HashRange{{}}))
				requireReason(t, store.ReasonRangeMoving, n.ingest(lost))
				n = n.restart(t)
				require.NoError(t, n.SetMembers(bg, two))
			}
			require.Empty(t, n.broom.dropped, "the ring alone drops nothing")
			requireReason(t, store.ReasonRangeMoving, n.Exchange(lost))
			require.NoError(t, n.makeWay(bg, n.takeWanted()))
			require.Len(t, n.broom.dropped, 1)
			require.NoError(t, n.Exchange(lost))
			require.NoError(t, n.ingest(lost))
			require.NoError(t, n.write(key))
		})
	}
}

// Danger: the last copy of a range is dropped because it is old.
func TestResidueWithoutAnotherReplicaStays(t *testing.T) {
	n := open(t)
	require.NoError(t, n.SetMembers(bg, up("n1", "n2", "n3")))
	require.NoError(t, n.SetMembers(bg, up("n1", "n2", "n3", "n4")))
	require.NotEmpty(t, n.View().Residue)
	n.wall.move(100 * grace)
	gone := up("n1")
	for _, id := range []string{"n2", "n3", "n4"} {
		gone = append(gone, declared(id, membership.Removed))
	}
	require.NoError(t, n.SetMembers(bg, gone))
	require.Empty(t, n.View().Residue)
	require.False(t, n.Active())
	require.Empty(t, n.broom.dropped)
	require.Contains(t, n.log.String(), "ranges have no other replica")
}

// Danger: a range that was given to a node that is gone has no owner, or the ring gives a range back and
// the node sends everybody away for ever.
func TestTheRingGivesBackWhatWasGiven(t *testing.T) {
	all := up("n1", "n2", "n3")
	all[2].State = membership.Joining
	r := ringOf("n1", "n2", "n3")
	moves := ring.Subtract([]ring.HashRange{{}}, own(r, "n1"))
	begin := func(t *testing.T) *node {
		n := open(t)
		require.NoError(t, n.SetMembers(bg, all))
		_, _, err := n.Fence(bg, "m", moves)
		require.NoError(t, err)
		require.NoError(t, n.Give(bg, "m", Owner{NodeID: "n3"}, 1))
		requireReason(t, store.ReasonNotOwner, n.write(keyIn(moves, 0)))
		return n
	}
	t.Run("the joiner is removed", func(t *testing.T) {
		n := begin(t)
		gone := slices.Clone(all)
		gone[2].State = membership.Removed
		require.NoError(t, n.SetMembers(bg, gone))
		require.Empty(t, n.View().Given)
		require.NoError(t, n.write(keyIn(moves, 0)))
		require.Equal(t, []ring.HashRange{{}}, ring.RangesIn(n.View().Owned))
	})
	for name, restart := range map[string]func(n *node, t *testing.T) *node{
		"": func(n *node, _ *testing.T) *node { return n }, " after a restart": (*node).restart,
	} {
		t.Run("the joiner comes back without its disk"+name, func(t *testing.T) {
			for accepted, back := range map[string]bool{all[2].Incarnation: true, "": false, "another": false} {
				n := open(t)
				require.NoError(t, n.SetMembers(bg, all))
				_, _, err := n.Fence(bg, "m", moves)
				require.NoError(t, err)
				require.NoError(t, n.Give(bg, "m", Owner{NodeID: "n3", Incarnation: accepted}, 1))
				n = restart(n, t)
				require.NoError(t, n.SetMembers(bg, all))
				requireReason(t, store.ReasonNotOwner, n.write(keyIn(moves, 0)))
				anew := slices.Clone(all)
				anew[2].Incarnation = "later"
				require.NoError(t, n.SetMembers(bg, anew))
				if !back { // who knows which one has it
					requireReason(t, store.ReasonNotOwner, n.write(keyIn(moves, 0)))
					continue
				}
				require.NoError(t, n.write(keyIn(moves, 0)))
				require.Equal(t, []ring.HashRange{{}}, ring.RangesIn(n.View().Owned))
			}
		})
		t.Run("who has accepted is gone before it is known here"+name, func(t *testing.T) {
			for _, state := range []membership.State{membership.Removed, membership.Drained} {
				n := open(t)
				gone := slices.Clone(all)
				gone[2].State = state
				require.NoError(t, n.SetMembers(bg, gone))
				_, _, err := n.Fence(bg, "m", moves)
				require.NoError(t, err)
				requireReason(t, store.ReasonRangeMoving, n.write(keyIn(moves, 0)))
				require.NoError(t, n.Give(bg, "m", Owner{NodeID: "n3", Incarnation: all[2].Incarnation}, 1))
				require.NoError(t, n.Give(bg, "m", Owner{NodeID: "n3", Incarnation: all[2].Incarnation}, 1), "a repeat")
				n = restart(n, t)
				require.NoError(t, n.SetMembers(bg, gone))
				require.NoError(t, n.write(keyIn(moves, 0)))
				require.Empty(t, n.View().Given)
				require.Empty(t, n.View().CleanupNeeded())
			}
		})
	}
	t.Run("the joiner is up, and another one leaves", func(t *testing.T) {
		n := begin(t)
		now := up("n1", "n2", "n3")
		require.NoError(t, n.SetMembers(bg, now))
		requireReason(t, store.ReasonNotOwner, n.write(keyIn(moves, 0)))
		now[1].State = membership.Removed
		require.NoError(t, n.SetMembers(bg, now))
		require.NoError(t, n.write(keyIn(moves, 0)))
	})
	t.Run("a drain is called off half way", func(t *testing.T) {
		n := begin(t)
		now := up("n1", "n2", "n3")
		now[0].State = membership.Draining
		now[2].State = membership.Joining
		require.NoError(t, n.SetMembers(bg, now))
		now[0].State = membership.Up
		require.NoError(t, n.SetMembers(bg, now))
		requireReason(t, store.ReasonNotOwner, n.write(keyIn(moves, 0)))
	})
}

// Danger: a node that gave a range to one that joined beside a third is its replica again when that third one goes, and
// sends everybody away for ever: there is a copy less than anybody knows.
func TestARangeWhoseRecipientIsAReplicaBesideTheNodeIsItsAgain(t *testing.T) {
	moves := ring.Subtract([]ring.HashRange{{}}, own(ringOf("n1", "n2", "n3"), "n1"))
	key := keyIn(moves, 0)
	give := func(t *testing.T, all []membership.Declaration) *node {
		n := open(t)
		require.NoError(t, n.SetMembers(bg, all))
		_, _, err := n.Fence(bg, "m", moves)
		require.NoError(t, err)
		require.NoError(t, n.Give(bg, "m", Owner{NodeID: "n3"}, 1))
		n.forgotten = nil
		return n
	}
	for name, restart := range map[string]func(n *node, t *testing.T) *node{
		"": func(n *node, _ *testing.T) *node { return n }, "after a restart": (*node).restart,
	} {
		t.Run("the third one is removed before the joiner is up"+name, func(t *testing.T) {
			all := up("n1", "n2", "n3")
			all[2].State = membership.Joining
			n := give(t, all)
			all = slices.Clone(all)
			all[1].State = membership.Removed
			require.NoError(t, n.SetMembers(bg, all))
			requireReason(t, store.ReasonNotOwner, n.write(key)) // only the joiner has what came since
			n = restart(n, t)
			all = slices.Clone(all)
			all[2].State = membership.Up
			require.NoError(t, n.SetMembers(bg, all))
			require.Empty(t, n.View().Given)
			require.NoError(t, n.write(key))
			require.Equal(t, []ring.HashRange{{}}, ring.RangesIn(n.View().Owned))
			require.Equal(t, [][]ring.HashRange{moves}, n.forgotten, "it was not equal with anybody")
			require.Empty(t, n.View().CleanupNeeded())
		})
		t.Run("a drain that was called off, and the third one is removed"+name, func(t *testing.T) {
			all := up("n1", "n2", "n3")
			all[0].State = membership.Draining
			n := open(t)
			require.NoError(t, n.SetMembers(bg, all))
			mine := ring.Subtract(own(ringOf("n1", "n2", "n3"), "n1"), own(ringOf("n1", "n2", "n3"), "n3"))
			_, _, err := n.Fence(bg, "m", mine)
			require.NoError(t, err)
			require.NoError(t, n.Give(bg, "m", Owner{NodeID: "n3"}, 1))
			n = restart(n, t)
			all = up("n1", "n2", "n3")
			require.NoError(t, n.SetMembers(bg, all))
			require.Equal(t, mine, n.View().Given, "the ring does not name the other one")
			all = slices.Clone(all)
			all[1].State = membership.Removed
			require.NoError(t, n.SetMembers(bg, all))
			require.Empty(t, n.View().Given)
			require.NoError(t, n.write(keyIn(mine, 0)))
		})
		t.Run("the third one is removed while the node drains"+name, func(t *testing.T) {
			all := up("n1", "n2", "n3")
			all[2].State = membership.Joining
			n := give(t, all)
			all = up("n1", "n2", "n3")
			all[0].State, all[1].State = membership.Draining, membership.Removed
			require.NoError(t, n.SetMembers(bg, all))
			require.Equal(t, moves, n.View().Given, "it leaves")
			n = restart(n, t)
			require.NoError(t, n.SetMembers(bg, all))
			all = slices.Clone(all)
			all[0].State = membership.Up
			require.NoError(t, n.SetMembers(bg, all))
			require.Empty(t, n.View().Given)
		})
		t.Run("a drain that was forced gave it to a replica, and was called off"+name, func(t *testing.T) {
			all := up("n1", "n3")
			all[0].State = membership.Draining
			n := give(t, all)
			n = restart(n, t)
			require.NoError(t, n.SetMembers(bg, up("n1", "n3")))
			require.Empty(t, n.View().Given)
			require.NoError(t, n.write(key))
		})
		t.Run("a person gave it to a replica"+name, func(t *testing.T) {
			all := up("n1", "n3")
			n := give(t, all)
			n = restart(n, t)
			all = slices.Clone(all)
			all[1].GRPCAddr = "elsewhere:1"
			require.NoError(t, n.SetMembers(bg, all))
			require.Equal(t, moves, n.View().Given, "that stands")
			requireReason(t, store.ReasonNotOwner, n.write(key))
		})
	}
}

// Danger: a node that leaves takes a range over, is drained, and takes it along.
func TestANodeThatLeavesTakesNothingOver(t *testing.T) {
	n := open(t)
	all := up("n1", "n2", "n3")
	require.NoError(t, n.SetMembers(bg, all))
	_, err := n.Prepare(bg, "before", q(1), n2)
	require.NoError(t, err)
	for _, s := range []membership.State{membership.Draining, membership.Drained} {
		all = slices.Clone(all)
		all[0].State = s
		require.NoError(t, n.SetMembers(bg, all))
		_, err = n.Prepare(bg, "m", q(0), n2)
		requireReason(t, store.ReasonTargetUnfit, err)
		_, err = n.Prepare(bg, "before", q(1), n2)
		require.NoError(t, err, "what was prepared is")
	}
	all = slices.Clone(all)
	all[0].State = membership.Up
	require.NoError(t, n.SetMembers(bg, all))
	_, err = n.Prepare(bg, "m", q(0), n2)
	require.NoError(t, err)
}

// Danger: what is accepted from a node that drains belongs to nobody when that is gone.
func TestAcceptedRangesStayWhenTheRingFollows(t *testing.T) {
	n := open(t)
	all := up("n1", "n2", "n3")
	all[1].State = membership.Draining
	require.NoError(t, n.SetMembers(bg, all))
	gains := ring.Subtract([]ring.HashRange{{}}, own(ringOf("n1", "n2", "n3"), "n1"))
	_, err := n.Prepare(bg, "m", gains, n2)
	require.NoError(t, err)
	require.NoError(t, n.Accept(bg, "m", "n2", 1))
	n.forgotten = nil
	all[1].State = membership.Drained
	require.NoError(t, n.SetMembers(bg, all))
	require.Equal(t, []ring.HashRange{{}}, ring.RangesIn(n.View().Owned))
	require.Empty(t, n.state.Load().ground.taken, "the ring gives them")
	require.Empty(t, n.View().Residue)
	require.Empty(t, n.forgotten, "it had them before")
}

// Danger: a drop that began is forgotten over a crash, and half of a range is taken for all of it.
func TestADropThatBeganIsCompleted(t *testing.T) {
	n := open(t)
	require.NoError(t, n.SetMembers(bg, up("n1", "n2")))
	require.NoError(t, n.SetMembers(bg, up("n1", "n2", "n3")))
	boom := errors.New("boom")
	require.ErrorIs(t, n.Cleanup(bg, func(context.Context, []Residue) error { return boom }), boom)
	n = n.restart(t)
	require.NoError(t, n.SetMembers(bg, up("n1", "n2")))
	require.NotEmpty(t, n.View().Regained, "however young it is")
	requireReason(t, store.ReasonRangeMoving, n.Exchange([]ring.HashRange{{}}))
	require.NoError(t, n.makeWay(bg, n.takeWanted()))
	require.Empty(t, n.View().Regained)
}

// Danger: what comes in while residue is dropped goes with it.
func TestWhatIsLostDuringADropStays(t *testing.T) {
	n := open(t)
	require.NoError(t, n.SetMembers(bg, up("n1", "n2")))
	require.NoError(t, n.SetMembers(bg, up("n1", "n2", "n3")))
	require.NoError(t, n.Cleanup(bg, func(_ context.Context, all []Residue) error {
		require.NoError(t, n.write("k"))
		return n.change(bg, func(next *state) ([]string, error) { // the same ranges once more, with newer records
			again := residue{Residue: all[0]}
			again.Sequence = n.o.Sequence()
			next.ground.addResidue(again)
			return nil, nil
		})
	}))
	require.Len(t, n.View().Residue, 1)
}

// Danger: a node that is to get a range back waits for a person.
func TestResidueInTheWayIsDroppedInTheBackground(t *testing.T) {
	n := open(t)
	require.NoError(t, n.SetMembers(bg, up("n1", "n2")))
	require.NoError(t, n.SetMembers(bg, up("n1", "n2", "n3")))
	n.wall.move(100 * grace)
	ranges := n.View().CleanupNeeded()
	n.broom.fail = errors.New("the disk is full")
	ctx, cancel := context.WithCancel(bg)
	var wg sync.WaitGroup
	wg.Go(func() { n.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	_, err := n.Prepare(bg, "m", ranges, n2)
	requireReason(t, store.ReasonRangeMoving, err)
	n.broom.mu.Lock()
	n.broom.fail = nil
	n.broom.mu.Unlock()
	require.Eventually(t, func() bool {
		_, err := n.Prepare(bg, "m", ranges, n2)
		if err != nil {
			requireReason(t, store.ReasonRangeMoving, err)
		}
		return err == nil
	}, 10*time.Second, time.Millisecond)
	n.broom.mu.Lock()
	defer n.broom.mu.Unlock()
	require.Len(t, n.broom.dropped, 1)
}

// Danger: a change is lost because what must be told before could not be.
func TestNothingChangesWhenEqualityCannotBeForgotten(t *testing.T) {
	n := open(t)
	boom := errors.New("boom")
	require.NoError(t, n.SetMembers(bg, up("n1", "n2")))
	n.o.Forget = func(context.Context, []ring.HashRange) error { return boom }
	require.ErrorIs(t, n.SetMembers(bg, up("n1", "n2", "n3")), boom)
	require.Empty(t, n.View().Residue)
	_, _, err := n.Fence(bg, "m", q(0))
	require.NoError(t, err)
	require.ErrorIs(t, n.Give(bg, "m", n2, 1), boom)
	require.Empty(t, n.View().Given)
	n.o.Forget = func(context.Context, []ring.HashRange) error { return nil }
	require.NoError(t, n.SetMembers(bg, up("n1", "n2", "n3")))
	require.NotEmpty(t, n.View().Residue)
	require.NoError(t, n.Give(bg, "m", n2, 1))
}

// Danger: a token is in two parts or in none after many changes.
func TestPartsEpochsAndResidueNeverOverlap(t *testing.T) {
	genRanges := rapid.Custom(func(t *rapid.T) []ring.HashRange {
		return ring.Normal([]ring.HashRange{{
			Start: rapid.Uint64Range(0, 12).Draw(t, "start") << 60, End: rapid.Uint64Range(0, 12).Draw(t, "end") << 60,
		}})
	})
	rapid.Check(t, func(t *rapid.T) {
		g := ground{epochs: map[uint64][]ring.HashRange{}}
		tokens := make([]uint64, 16)
		type left struct {
			seq      uint64
			since    int64
			dropping bool
		}
		owner, epoch, rest := map[uint64]string{}, map[uint64]uint64{}, map[uint64]left{}
		for i := range tokens {
			tokens[i] = uint64(i)<<60 + 5
		}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			ranges := genRanges.Draw(t, "ranges")
			in := func(f func(tok uint64)) {
				for _, tok := range tokens {
					if ring.In(ranges, tok) {
						f(tok)
					}
				}
			}
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				id := "n" + strconv.Itoa(rapid.IntRange(1, 3).Draw(t, "node"))
				g.given = withPart(g.given, ranges, Owner{NodeID: id})
				in(func(tok uint64) { owner[tok] = id })
			case 1:
				g.given = withoutPart(g.given, ranges)
				in(func(tok uint64) { delete(owner, tok) })
			case 2:
				e := rapid.Uint64Range(1, 4).Draw(t, "epoch")
				g.raise(ranges, e)
				in(func(tok uint64) { epoch[tok] = max(epoch[tok], e) })
			case 3:
				l := left{rapid.Uint64Range(1, 5).Draw(t, "sequence"), rapid.Int64Range(1, 5).Draw(t, "since"), rapid.Bool().Draw(t, "dropping")}
				g.addResidue(residue{Residue{ranges, l.seq, time.UnixMilli(l.since)}, l.dropping})
				in(func(tok uint64) {
					had, ok := rest[tok]
					if !ok {
						had = l
					}
					rest[tok] = left{max(had.seq, l.seq), min(had.since, l.since), had.dropping || l.dropping}
				})
			case 4:
				seq := rapid.Uint64Range(0, 5).Draw(t, "up to")
				g.dropResidue(ranges, seq)
				in(func(tok uint64) {
					if rest[tok].seq <= seq {
						delete(rest, tok)
					}
				})
			}
		}
		// Once as it is, and once as it comes back from the disk.
		b, err := g.encode(3)
		require.NoError(t, err)
		back, revision, err := decodeGround(b)
		require.NoError(t, err)
		require.EqualValues(t, 3, revision)
		for _, g := range []ground{g, back} {
			for _, tok := range tokens {
				got := ""
				for _, p := range g.given {
					if ring.In(p.ranges, tok) {
						require.Empty(t, got)
						got = p.node.NodeID
					}
				}
				require.Equal(t, owner[tok], got)
				require.Equal(t, epoch[tok], g.epochOf([]ring.HashRange{{Start: tok, End: tok + 1}}))
				var found *residue
				for i, e := range g.residue {
					if ring.In(e.Ranges, tok) {
						require.Nil(t, found)
						found = &g.residue[i]
					}
				}
				want, ok := rest[tok]
				require.Equal(t, ok, found != nil)
				if ok {
					require.Equal(t, want, left{found.Sequence, found.Since.UnixMilli(), found.dropping})
				}
			}
		}
	})
}

// FuzzDecode: any bytes are an error, or a record that is stored as it is understood.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{"format":1,"revision":2,"stage":"prepared","ranges":[[1,2]],"epoch":3,"peer":{"node_id":"n2"},"at_ms":5}`,
		`{"format":1,"revision":2,"incarnation":"i","known":true,"declared":[[5,5]],"given":[{"ranges":[[1,2]],"node":{"node_id":"n2"}}],"epochs":[{"ranges":[[1,2]],"epoch":3}],"residue":[{"ranges":[[9,1]],"sequence":4,"since_ms":5,"dropping":true}]}`,
		`{"format":1,"stage":"what"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if fact, revision, err := decodeFact(b); err == nil {
			again, err := fact.encode(revision)
			require.NoError(t, err)
			back, _, err := decodeFact(again)
			require.NoError(t, err)
			require.Equal(t, fact, back)
		}
		if g, revision, err := decodeGround(b); err == nil {
			again, err := g.encode(revision)
			require.NoError(t, err)
			back, _, err := decodeGround(again)
			require.NoError(t, err)
			require.True(t, g.equal(&back))
		}
	})
}

// Danger: a write that a node was given although it owns nothing of its range is lost with the disk of a node that
// has left, or read there by nobody. A node that stays takes it: coordinators may have their reasons.
func TestANodeThatLeavesTakesNoWritesOfOthersRanges(t *testing.T) {
	n := open(t)
	all := up("n1", "n2", "n3", "n4")
	for i := range all {
		all[i].GRPCAddr = all[i].NodeID + ":8080"
	}
	r := ringOf("n1", "n2", "n3", "n4")
	mine := own(r, "n1")
	others := ring.Subtract([]ring.HashRange{{}}, mine)
	foreign, theirs := others[0].Start, mine[0].Start
	refused := func(token uint64, write bool) {
		t.Helper()
		err := n.Admit(token, write)
		require.Equal(t, store.ReasonNotOwner, store.ReasonOf(err))
		var e *store.Error
		require.ErrorAs(t, err, &e)
		require.Contains(t, r.Replicas(token), e.Metadata["owner_node_id"])
		require.Equal(t, e.Metadata["owner_node_id"]+":8080", e.Metadata["owner_addr"])
	}
	require.NoError(t, n.SetMembers(bg, all))
	require.NoError(t, n.Admit(foreign, true))
	require.False(t, n.OwnRangesOnly())

	all[0].State = membership.Draining
	for range 2 {
		require.NoError(t, n.SetMembers(bg, all))
		require.True(t, n.OwnRangesOnly())
		refused(foreign, true)
		require.NoError(t, n.Admit(foreign, false), "it may be the only one that has the record")
		require.NoError(t, n.Admit(theirs, true), "its own ranges are its own until they are handed over")
		n = n.restart(t)
	}
	// What it has taken over before is its own.
	taken := []ring.HashRange{{Start: foreign, End: foreign + 1}}
	_, err := n.Prepare(bg, "m1", taken, n2)
	require.NoError(t, err)
	require.NoError(t, n.Accept(bg, "m1", "n2", 1))
	require.NoError(t, n.SetMembers(bg, all))
	require.NoError(t, n.Admit(foreign, true))
	refused(foreign+1, true)

	// The drain is called off.
	all[0].State = membership.Up
	require.NoError(t, n.SetMembers(bg, all))
	require.NoError(t, n.Admit(foreign+1, true))
	require.False(t, n.OwnRangesOnly())

	// It has left: nothing is written or read there.
	r = ringOf("n2", "n3", "n4")
	for _, s := range []membership.State{membership.Drained, membership.Removed} {
		all[0].State = s
		require.NoError(t, n.SetMembers(bg, all))
		for _, token := range []uint64{foreign + 1, theirs} {
			refused(token, true)
			refused(token, false)
		}
	}
}
