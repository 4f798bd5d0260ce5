package movement

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// A node that joins answers for its ranges only when it has them; a key that is written meanwhile must
// not be left at the one that had it before. Each is written there alone, and nothing but the hand-over
// brings it to the new one.
func TestNewNodeTakesItsRangesUnderWrites(t *testing.T) {
	c := start(t, 3, quiet, unhurried)
	tr := &traffic{c: c, keys: size(20_000, 5_000_000), still: size(5_000, 100_000), perSecond: 300, route: c.by(c.nodes...)}
	tr.load()
	coming := &node{Pod: &localpod.Pod{Name: "node-3"}} // as the next pod is called
	tr.route = c.heirs(coming, append(c.others(), coming)...)
	tr.begin()
	joiner := c.add()
	c.awaitAt(patience(2*moveLimit), []*node{joiner}, clusterv1.MemberState_MEMBER_STATE_UP, joiner)
	tr.settled(among(c.by(c.nodes...), joiner))
	c.awaitAt(patience(2*moveLimit), c.nodes, clusterv1.MemberState_MEMBER_STATE_UP, joiner)
	tr.end()
	tr.holds(c.through(joiner, c.nodes...))
}

// A node that was replaced has nothing under an old name: nobody may take it for one that has everything.
func TestReplacedNodeIsFilledBeforeItAnswers(t *testing.T) {
	c := start(t, 3, often)
	tr := &traffic{c: c, keys: size(10_000, 1_000_000), still: size(5_000, 100_000), perSecond: 200, route: c.by(c.nodes...)}
	tr.load()
	replaced := c.nodes[2]
	tr.route = only(c.nodes[0])
	tr.begin()
	replaced.Halt()
	c.replace(replaced)
	c.awaitAt(patience(2*moveLimit), []*node{replaced}, clusterv1.MemberState_MEMBER_STATE_UP, replaced)
	tr.settled(only(replaced))
	c.awaitAt(patience(2*moveLimit), c.nodes, clusterv1.MemberState_MEMBER_STATE_UP, replaced)
	tr.end()
	tr.comesTo(bar(patience(convergeLimit)), "after the replacement", c.by(c.nodes...))
}

// A node that joins has nothing yet: an answer of it that a key is not there would be a wrong one, also
// before it has heard that there are others.
func TestJoiningNodeDoesNotCallKeysAbsent(t *testing.T) {
	c := start(t, 3, "PAIRDB_MIGRATOR_BYTES_PER_SECOND=1MiB")
	tr := &traffic{c: c, keys: 5_000, filling: 1000, route: c.by(c.nodes...)}
	tr.load()
	replaced := c.nodes[2]
	replaced.Halt()
	require.NoError(t, replaced.Wipe())
	require.NoError(t, replaced.Start())
	asked, unready := 0, false
	podtest.Eventually(t, patience(2*moveLimit), "it is up", func() bool {
		v, err := replaced.client.Get(t.Context(), key(asked%tr.keys))
		if err != nil {
			var e *client.Error
			require.ErrorAs(t, err, &e)
			if e.Code == codes.Unavailable && e.Reason != "RANGE_MOVING" {
				return false // it starts
			}
			require.Contains(t, []string{"NOT_OWNER", "RANGE_MOVING"}, e.Reason, "%v", err)
			if asked == 0 {
				unready = !replaced.IsReady(t.Context())
			}
			asked++
			return false
		}
		require.True(t, v.Found, "%s is absent here, after %d refusals", key(asked%tr.keys), asked)
		return c.knows(replaced, clusterv1.MemberState_MEMBER_STATE_UP, replaced)
	})
	require.Positive(t, asked, "it was up at once")
	require.True(t, unready, "it was ready before it knew what is its own")
}

// A node that dies while it joins, and its disk with it, must not keep out those that come after it: what it asked for
// is called off, and its ranges go to the next one.
func TestNodeThatDiedWhileItJoinedKeepsNobodyOut(t *testing.T) {
	c := start(t, 3, quiet, unhurried)
	tr := &traffic{c: c, keys: size(20_000, 1_000_000), route: only(c.nodes...)}
	tr.load()
	dead := c.add()
	podtest.Eventually(t, moveLimit, "moves to it are under way", func() bool { return len(c.bringing(dead)) > 0 })
	rest := c.others(dead)
	c.down(dead, rest...)
	c.remove(dead, rest[0])
	next := c.add()
	rest = append(rest, next)
	c.awaitAt(patience(2*moveLimit), rest, clusterv1.MemberState_MEMBER_STATE_UP, next)
	tr.holds(func(key string) []*node { return among(c.by(rest...), next)(key) })
	for _, n := range rest {
		r, err := c.moves(n, "")
		require.NoError(t, err)
		for _, m := range r.GetMoves() {
			require.Contains(t, []movev1.State{movev1.State_STATE_RELEASED, movev1.State_STATE_CANCELLED}, m.GetState(), "%s pins the log of %s for nobody", m.GetId(), n.Name)
		}
	}
}

// A node that loses its disk while it joins has lost what it took over already. Who gave it away is its owner again:
// otherwise each names the other one, and nobody can ever fill it.
func TestNodeThatLosesItsDiskWhileItJoinsIsFilledAnew(t *testing.T) {
	c := start(t, 3, quiet)
	tr := &traffic{c: c, keys: size(20_000, 1_000_000), route: only(c.nodes...)}
	tr.load()
	silent := c.nodes[2] // so that it can't have everything
	silent.Migrator.Halt()
	joiner := c.add()
	podtest.Eventually(t, patience(moveLimit), "it has what the other two gave it", func() bool {
		return !slices.ContainsFunc(c.nodes[:2], func(n *node) bool {
			r, err := c.moves(n, "")
			return err != nil || !slices.ContainsFunc(r.GetMoves(), func(m *movev1.Move) bool {
				return m.GetTarget().GetNodeId() == joiner.Name && m.GetHandOver() && m.GetState() == movev1.State_STATE_RELEASED
			})
		})
	})
	require.True(t, c.knows(c.nodes[0], clusterv1.MemberState_MEMBER_STATE_JOINING, joiner))
	joiner.Halt()
	c.replace(joiner)
	require.NoError(t, silent.Migrator.Start())
	c.awaitAt(patience(2*moveLimit), c.nodes, clusterv1.MemberState_MEMBER_STATE_UP, joiner)
	tr.holds(c.by(c.nodes...))
}
