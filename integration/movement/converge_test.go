package movement

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// What replicas share is compared again and again, and mostly nobody has written to it: that must not be read and
// hashed each time, or disks are busy with it day and night.
func TestComparingWhatRestsHashesNothing(t *testing.T) {
	c := start(t, 2, "PAIRDB_REPAIR_INTERVAL=1s")
	tr := &traffic{c: c, keys: size(5_000, 100_000), route: c.by(c.nodes...)}
	tr.load()
	counts := func() (hashed, renewed [2]float64) {
		for i, n := range c.nodes {
			hashed[i], renewed[i] = podtest.Value(t, n.OpsAddr, "pairdb_replica_digested_records_total"), podtest.Value(t, n.OpsAddr, "pairdb_replica_renewed_trees_total")
		}
		return hashed, renewed
	}
	var hashed, renewed [2]float64
	podtest.Eventually(t, patience(time.Minute), "trees are renewed, and nothing is hashed any more", func() bool {
		was, from := hashed, renewed
		time.Sleep(3 * time.Second) // some comparisons
		hashed, renewed = counts()
		return hashed == was && renewed[0] > from[0] && renewed[1] > from[1]
	})
	tr.comesTo(bar(convergeLimit), "nothing has changed", c.by(c.nodes...))
}

// Coordinators deliver no hints and repair nothing when they read: what a node missed, or is new to it,
// must come by itself, or it is lost with the next disk.
func TestNodesConvergeByThemselves(t *testing.T) {
	c := start(t, 3)
	var live atomic.Pointer[[]*node] // who is written to, if it owns the key by who is a member
	var owners atomic.Pointer[func(string) []*node]
	route := func(nodes []*node, alive []*node) {
		by := c.by(nodes...)
		owners.Store(&by)
		live.Store(&alive)
	}
	route(c.nodes, c.nodes)
	tr := &traffic{c: c, keys: size(20_000, 100_000), perSecond: 300, route: func(key string) []*node {
		return slices.DeleteFunc(slices.Clone((*owners.Load())(key)), func(n *node) bool { return !slices.Contains(*live.Load(), n) })
	}}
	tr.load()

	away := c.nodes[1]
	route(c.nodes, c.others(away))
	tr.begin()
	c.down(away, *live.Load()...)
	c.back(away)
	tr.end()
	tr.comesTo(bar(convergeLimit), "a node was away", c.by(c.nodes...))

	three := c.nodes
	route(three, three)
	tr.begin()
	c.add()
	c.awaitAt(patience(2*moveLimit), c.nodes, clusterv1.MemberState_MEMBER_STATE_UP, c.nodes...)
	tr.end()
	tr.comesTo(bar(convergeLimit), "a node was added", c.by(c.nodes...))

	gone := c.nodes[0]
	rest := c.others(gone)
	route(c.nodes, rest)
	tr.begin()
	c.down(gone, *live.Load()...)
	c.remove(gone, rest[0])
	tr.end()
	tr.comesTo(bar(convergeLimit), "a node was removed", c.by(rest...))

	replaced := rest[0]
	route(rest, c.others(gone, replaced))
	tr.begin()
	c.down(replaced, *live.Load()...)
	c.replace(replaced)
	c.awaitAt(patience(2*moveLimit), rest, clusterv1.MemberState_MEMBER_STATE_UP, rest...)
	tr.end()
	tr.comesTo(bar(convergeLimit), "a node was replaced", c.by(rest...))
	// Each replica stamps a write with its own time until they were compared, and the next comparison is an
	// hour away: it is asked for, and once more, because the first one may end with one of the others before
	// it has heard something from the next.
	for _, id := range []string{"at-the-end", "once-more"} {
		r, err := rest[0].admin().Repair(t.Context(), &adminv1.RepairRequest{Id: id})
		require.NoError(t, err)
		for _, m := range r.GetMoves() {
			require.True(t, c.reached(rest[0], m.GetId(), movev1.State_STATE_RELEASED))
		}
	}
	for _, n := range rest[1:] {
		c.equal(bar(convergeLimit), everything(), rest[0], n)
	}
}
