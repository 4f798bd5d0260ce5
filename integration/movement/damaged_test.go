package movement

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// damage changes a bit of a table of a node, and returns the name of its file.
func (c *cluster) damage(n *node) string {
	c.t.Helper()
	n.Stop() // what it has in memory becomes a table
	table := podtest.File(c.t, n.DataDir, "sst/*.sst")
	podtest.Flip(c.t, table, 100_000)
	c.back(n)
	return filepath.Base(table)
}

// callOff cancels a move or a drain.
func (c *cluster) callOff(n *node, id string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	_, err := n.admin().CancelMove(ctx, &adminv1.CancelMoveRequest{Id: id, Reason: "a test"})
	require.NoError(c.t, err)
}

// What a node can't read it must not pass over in silence: a copy without it would be called equal by whoever counts
// on it, and the only good one be given up. Another replica has it.
func TestDamagedTableEndsAMoveThatAnotherReplicaFinishes(t *testing.T) {
	c := start(t, 3, quiet)
	damaged, whole, to := c.nodes[0], c.nodes[1], c.nodes[2]
	tr := &traffic{c: c, keys: 20_000, route: only(damaged, whole)}
	tr.load()
	table := c.damage(damaged)

	m := c.replicate(damaged, &adminv1.ReplicateRequest{Id: "damaged", What: everything(), Targets: []*movev1.Target{target(to)}})
	fails := func() {
		t.Helper()
		m := c.untilState(damaged, m.GetId(), movev1.State_STATE_FAILED)
		require.Contains(t, m.GetReason(), table)
		require.Zero(t, m.GetVerifiedAtMs())
	}
	fails()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := damaged.admin().ResumeMove(ctx, &adminv1.ResumeMoveRequest{Id: m.GetId()})
	require.NoError(t, err)
	fails()

	rest := c.replicate(whole, &adminv1.ReplicateRequest{Id: "whole", What: everything(), Targets: []*movev1.Target{target(to)}})
	rest = c.untilState(whole, rest.GetId(), movev1.State_STATE_RELEASED)
	require.NotZero(t, rest.GetVerifiedAtMs())
	c.callOff(damaged, m.GetId())
	c.untilState(damaged, m.GetId(), movev1.State_STATE_CANCELLED)
	tr.holds(only(whole, to))
	require.True(t, damaged.IsReady(t.Context()), "it serves what it can read")
}

// A node that can't read what it has can't hand it over. Its drain says so instead of leaving data behind, and the way
// out is that of a node that is lost: the others have what it has.
func TestDrainOfADamagedNodeSaysSoAndItIsRemoved(t *testing.T) {
	c := start(t, 4, often)
	damaged := c.nodes[3]
	rest := c.others(damaged)
	tr := &traffic{c: c, keys: 20_000, route: c.by(c.nodes...)}
	tr.load()
	table := c.damage(damaged)
	d, err := c.drain(damaged, &adminv1.DrainRequest{Reason: "its rack goes"})
	require.NoError(t, err)
	podtest.Eventually(t, moveLimit, "the drain names the table", func() bool {
		r, err := c.moves(damaged, d.GetId())
		return err == nil && len(r.GetDrains()) == 1 && strings.Contains(r.GetDrains()[0].GetReason(), table)
	})
	c.callOff(damaged, d.GetId())
	c.drainIs(damaged, d.GetId(), movev1.DrainState_DRAIN_STATE_CANCELLED)
	c.down(damaged, rest...)
	c.remove(damaged, rest[0])
	tr.comesTo(bar(convergeLimit), "the damaged node was removed", c.by(rest...))
}

// A node that joins must not be up without what a damaged one should have handed over. When that one is removed the
// others give it.
func TestJoinBesideADamagedNodeWaitsUntilItIsRemoved(t *testing.T) {
	c := start(t, 3, often)
	damaged := c.nodes[0]
	rest := c.others(damaged)
	tr := &traffic{c: c, keys: 20_000, route: only(c.nodes...)}
	tr.load()
	c.damage(damaged)
	joiner := c.add()
	podtest.Eventually(t, moveLimit, "the others have handed over", func() bool {
		for _, n := range rest {
			r, err := c.moves(n, "")
			if err != nil || len(r.GetMoves()) == 0 || r.GetMoves()[0].GetState() != movev1.State_STATE_RELEASED {
				return false
			}
		}
		return true
	})
	require.True(t, c.knows(rest[0], clusterv1.MemberState_MEMBER_STATE_JOINING, joiner), "it is up without what the damaged node has")
	c.down(damaged, rest...)
	c.remove(damaged, rest[0])
	rest = append(rest, joiner)
	c.awaitAt(joinLimit, rest, clusterv1.MemberState_MEMBER_STATE_UP, joiner)
	tr.comesTo(bar(convergeLimit), "the damaged node was removed", only(rest...))
}
