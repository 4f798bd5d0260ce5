package movement

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
	"github.com/pairdb/pairdb/libs/ring"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// through routes a key to one node if it keeps it by the ring, else to its first owner.
func (c *cluster) through(n *node, nodes ...*node) func(string) []*node {
	r := c.ring(3, nodes...)
	return func(key string) []*node {
		owners := c.owners(r, key)
		if slices.Contains(owners, n) {
			return []*node{n}
		}
		return owners[:1]
	}
}

// heirs routes a key that a node keeps by the ring of nodes to the one that keeps it instead where that node is
// not, and the others to their first owner: while it leaves, to who has what was written by through; before it
// joins, to who is to hand it over.
func (c *cluster) heirs(gone *node, nodes ...*node) func(string) []*node {
	before := c.by(nodes...)
	after := c.by(slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return n == gone })...)
	return func(key string) []*node {
		had := before(key)
		if !slices.Contains(had, gone) {
			return had[:1]
		}
		return slices.DeleteFunc(slices.Clone(after(key)), func(n *node) bool { return slices.Contains(had, n) })
	}
}

// by routes a key to its owners among nodes.
func (c *cluster) by(nodes ...*node) func(string) []*node {
	r := c.ring(3, nodes...)
	return func(key string) (out []*node) {
		for _, id := range r.Replicas(ring.Token(tenant, key)) {
			out = append(out, nodes[slices.IndexFunc(nodes, func(n *node) bool { return n.Name == id })])
		}
		return out
	}
}

// drain asks a node to give everything away.
func (c *cluster) drain(n *node, r *adminv1.DrainRequest) (*movev1.Drain, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	r.Kind = adminv1.DrainRequest_KIND_DECOMMISSION
	resp, err := n.admin().Drain(ctx, r)
	return resp.GetDrain(), err
}

// drainIs waits for the state of a drain.
func (c *cluster) drainIs(n *node, id string, s movev1.DrainState) *movev1.Drain {
	c.t.Helper()
	var last *adminv1.MovesResponse
	defer func() {
		if c.t.Failed() {
			c.t.Logf("%s was last seen with %v", n.Name, last)
		}
	}()
	var found *movev1.Drain
	podtest.Eventually(c.t, patience(2*moveLimit), "drain "+id+" is "+s.String(), func() bool {
		if r, err := c.moves(n, id); err == nil {
			last = r
		}
		for _, d := range last.GetDrains() {
			if d.GetId() == id {
				found = d
			}
		}
		return found.GetState() == s
	})
	return found
}

// gaveAway requires that a node refuses every key that it kept by the ring of nodes, and names somebody
// else.
func (c *cluster) gaveAway(n *node, nodes ...*node) {
	c.t.Helper()
	r := c.ring(3, nodes...)
	for i := range 100 {
		if !slices.Contains(c.owners(r, key(i)), n) {
			continue
		}
		_, err := n.client.Get(c.t.Context(), key(i))
		var e *client.Error
		require.ErrorAs(c.t, err, &e, key(i))
		require.Equal(c.t, "NOT_OWNER", e.Reason)
		require.NotNil(c.t, c.named(e.Metadata["owner_addr"]), "%v", e.Metadata)
		require.NotEqual(c.t, n.Name, e.Metadata["owner_node_id"])
		_, err = n.client.Put(c.t.Context(), key(i), []byte("late"))
		require.ErrorAs(c.t, err, &e)
		require.Equal(c.t, "NOT_OWNER", e.Reason)
	}
}

// A node that leaves takes nothing with it: what it acknowledged, up to the moment at which it named
// another owner, is there afterwards, and what was deleted is not.
func TestDrainedNodeLeavesNothingBehind(t *testing.T) {
	c := start(t, 4, quiet, unhurried)
	leaving := c.nodes[3]
	rest := c.others(leaving)
	tr := &traffic{c: c, keys: size(20_000, 5_000_000), still: size(5_000, 100_000), perSecond: 300, route: c.by(c.nodes...)}
	tr.load()
	tr.route = c.through(leaving, c.nodes...)
	tr.begin()
	d, err := c.drain(leaving, &adminv1.DrainRequest{Reason: "its rack goes"})
	require.NoError(t, err)
	_, err = c.drain(leaving, &adminv1.DrainRequest{Reason: "once more"})
	if err != nil {
		refused(t, "DRAIN_EXISTS", err)
	}
	d = c.drainIs(leaving, d.GetId(), movev1.DrainState_DRAIN_STATE_COMPLETED)
	require.Equal(t, d.GetMovesTotal(), d.GetMovesDone())
	require.Positive(t, d.GetMovesTotal())
	podtest.Eventually(t, 30*time.Second, "a while of writes after the drain", func() bool { return c.knows(leaving, clusterv1.MemberState_MEMBER_STATE_DRAINED, leaving) })
	tr.end()
	c.awaitAt(joinLimit, rest, clusterv1.MemberState_MEMBER_STATE_DRAINED, leaving)
	c.gaveAway(leaving, c.nodes...)
	tr.holds(c.heirs(leaving, c.nodes...))
	tr.settled(c.by(rest...))

	// The others have it without the one that left.
	leaving.Stop()
	tr.holds(c.heirs(leaving, c.nodes...))
}

// A node takes writes of keys that it does not own while it is up. When it leaves it takes no more of them, names who
// owns them, and what it took is at every owner when it is drained: nobody else had it.
func TestDrainedNodeTakesOthersRecordsHome(t *testing.T) {
	c := start(t, 4, quiet, unhurried)
	leaving := c.nodes[3]
	rest := c.others(leaving)
	owners := c.by(c.nodes...)
	next := 0
	foreign := func() string {
		for slices.Contains(owners(key(next)), leaving) {
			next++
		}
		next++
		return key(next - 1)
	}
	kept := map[string][]byte{} // nil: deleted
	for i := range size(500, 50_000) {
		k := foreign()
		r, err := leaving.client.Put(t.Context(), k, []byte("of "+k))
		require.NoError(t, err)
		if kept[k] = []byte("of " + k); i%10 == 0 {
			_, err = leaving.client.Delete(t.Context(), k, client.WithContext(r.Clock))
			require.NoError(t, err)
			kept[k] = nil
		}
	}
	d, err := c.drain(leaving, &adminv1.DrainRequest{Reason: "its rack goes"})
	require.NoError(t, err)
	var late *client.Error
	for err == nil {
		k := foreign()
		if _, err = leaving.client.Put(t.Context(), k, []byte("late "+k)); err == nil {
			kept[k] = []byte("late " + k)
		}
	}
	require.ErrorAs(t, err, &late)
	require.Equal(t, "NOT_OWNER", late.Reason)
	require.NotNil(t, c.named(late.Metadata["owner_addr"]), "%v", late.Metadata)
	c.drainIs(leaving, d.GetId(), movev1.DrainState_DRAIN_STATE_COMPLETED)
	leaving.Stop()
	after := c.by(rest...)
	for k, want := range kept {
		for _, n := range after(k) {
			got, err := n.client.Get(t.Context(), k)
			require.NoError(t, err, "%s at %s", k, n.Name)
			require.Equal(t, want != nil, got.Found, "%s at %s", k, n.Name)
			if got.Found {
				require.Equal(t, want, got.Bytes, "%s at %s", k, n.Name)
			}
		}
	}
}

// A drain that is called off must leave a node that serves what it served before: what was already given away is served
// by who got it, whoever asks the node is told, and it comes back. Until it has, the ring is wrong about who has what, and
// a node that joined would wait for ranges that the one it asks does not have.
func TestCancelledDrainLosesNothing(t *testing.T) {
	// One move after the other, so that some are over and others are not.
	c := start(t, 4, quiet, "PAIRDB_MIGRATOR_BYTES_PER_SECOND=262144", "PAIRDB_MIGRATOR_MOVES=1")
	leaving := c.nodes[3]
	tr := &traffic{c: c, keys: size(10_000, 200_000), perSecond: 200, route: c.by(c.nodes...)}
	tr.load()
	tr.route = c.through(leaving, c.nodes...)
	tr.begin()
	d, err := c.drain(leaving, &adminv1.DrainRequest{Reason: "by mistake"})
	require.NoError(t, err)
	c.awaitAt(joinLimit, c.nodes, clusterv1.MemberState_MEMBER_STATE_DRAINING, leaving)
	podtest.Eventually(t, patience(moveLimit), "some ranges have a new owner", func() bool {
		r, err := c.moves(leaving, d.GetId())
		return err == nil && r.GetDrains()[0].GetMovesDone() > 0
	})
	given := ""
	for i := 0; given == "" && i < tr.keys; i++ {
		if tr.route(key(i))[0] != leaving {
			continue
		}
		if _, err := leaving.client.Get(t.Context(), key(i)); err != nil {
			var e *client.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, "NOT_OWNER", e.Reason)
			require.NotNil(t, c.named(e.Metadata["owner_addr"]), "%v", e.Metadata)
			given = key(i)
		}
	}
	require.NotEmpty(t, given)
	c.callOff(leaving, d.GetId())
	d = c.drainIs(leaving, d.GetId(), movev1.DrainState_DRAIN_STATE_CANCELLED)
	require.Less(t, d.GetMovesDone(), d.GetMovesTotal(), "nothing was left to be called off")
	c.await(clusterv1.MemberState_MEMBER_STATE_UP, c.nodes...)
	podtest.Eventually(t, patience(moveLimit), "what was given comes back", func() bool {
		_, err := leaving.client.Get(t.Context(), given)
		return err == nil && len(c.bringing(leaving)) == 0
	})
	tr.end()
	tr.holds(tr.route)

	before, coming := tr.route, &node{Pod: &localpod.Pod{Name: "node-4"}} // as the next pod is called
	after := c.by(append(c.others(), coming)...)
	joiner := c.add()
	c.awaitAt(patience(2*moveLimit), c.nodes, clusterv1.MemberState_MEMBER_STATE_UP, joiner)
	tr.holds(func(key string) []*node {
		had := before(key)
		if slices.ContainsFunc(after(key), func(n *node) bool { return n.Name == had[0].Name }) {
			return had
		}
		return []*node{joiner} // to which it was handed over
	})
}

// bringing returns the moves to a node that are not over.
func (c *cluster) bringing(to *node) (out []*movev1.Move) {
	c.t.Helper()
	for _, n := range c.others(to) {
		r, err := c.moves(n, "")
		require.NoError(c.t, err)
		for _, m := range r.GetMoves() {
			if m.GetTarget().GetNodeId() == to.Name && m.GetState() < movev1.State_STATE_RELEASED {
				out = append(out, m)
			}
		}
	}
	return out
}

// Who got a part of what a drain gives away can be lost for good before the drain is over. Then that part is given to
// somebody else, although a move of the drain gave it already: otherwise the drain never ends, or ends with a copy less.
func TestDrainGivesAnewWhatWasLostMeanwhile(t *testing.T) {
	c := start(t, 5, quiet)
	leaving, lost, silent := c.nodes[4], c.nodes[0], c.nodes[1]
	tr := &traffic{c: c, keys: size(10_000, 500_000), route: c.by(c.nodes...)}
	tr.load()
	silent.Node.Halt() // so that not everything can be given away
	d, err := c.drain(leaving, &adminv1.DrainRequest{Reason: "its rack goes"})
	require.NoError(t, err)
	podtest.Eventually(t, patience(moveLimit), "one has its part", func() bool {
		r, err := c.moves(leaving, d.GetId())
		return err == nil && slices.ContainsFunc(r.GetMoves(), func(m *movev1.Move) bool {
			return m.GetTarget().GetNodeId() == lost.Name && m.GetState() == movev1.State_STATE_RELEASED
		})
	})
	before := c.by(c.nodes...)
	c.down(lost, leaving)
	c.remove(lost, leaving)
	require.NoError(t, silent.Node.Start())
	c.drainIs(leaving, d.GetId(), movev1.DrainState_DRAIN_STATE_COMPLETED)
	rest := c.others(leaving, lost)
	after := c.by(rest...)
	tr.holds(func(key string) (out []*node) { // its copies, as many as it had but for what the lost one took with it
		had := before(key)
		for _, n := range after(key) {
			if slices.Contains(had, n) || slices.Contains(had, leaving) && !slices.Contains(had, lost) {
				out = append(out, n)
			}
		}
		return out
	})
}
