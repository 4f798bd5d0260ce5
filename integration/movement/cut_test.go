package movement

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// again is what a target gets twice. A migrator that dies takes its own count with it; the target's tells.
type again struct {
	c      *cluster
	to     *node
	before float64
}

func (c *cluster) countAgain(to *node) again {
	c.t.Helper()
	return again{c: c, to: to, before: podtest.Value(c.t, to.OpsAddr, "pairdb_replica_ingested_bytes_total")}
}

// little requires that a move which is over has sent at most a twentieth of its bytes again, and returns how
// many. filling is the size of a record, of which verifications have sent some.
func (a again) little(m *movev1.Move, filling int) int64 {
	a.c.t.Helper()
	got := int64(podtest.Value(a.c.t, a.to.OpsAddr, "pairdb_replica_ingested_bytes_total") - a.before)
	p := m.GetProgress()
	once := p.GetCopiedBytes() + p.GetTailedBytes()
	more := got - once - p.GetRepairedKeys()*int64(filling)
	require.LessOrEqual(a.c.t, more, once/20, "%s got %d bytes: %v", a.to.Name, got, p)
	require.GreaterOrEqual(a.c.t, got, once, "more was acknowledged than came")
	return more
}

const (
	// large are the values of tests that count bytes.
	large = 4000
	// paced is how fast their moves are: as much as is under way at once is little beside the whole then.
	paced = 16 << 20
)

// A migrator that is killed knows nothing any more of what it has sent: all that was acknowledged, but for the
// last piece, must be known to the source, or each restart of a pod sends the data of its node again.
func TestKilledMigratorSendsLittleAgain(t *testing.T) {
	c := start(t, 2, quiet)
	from, to := c.nodes[0], c.nodes[1]
	tr := &traffic{c: c, keys: size(10_000, 50_000), filling: large, route: only(from)}
	tr.load()
	for s := movev1.State_STATE_PLANNED; s <= movev1.State_STATE_COMMITTED; s++ {
		if s == movev1.State_STATE_FENCED || s == movev1.State_STATE_ACCEPTED {
			continue // of hand-overs
		}
		if !long && s < movev1.State_STATE_COPYING {
			continue
		}
		a := c.countAgain(to)
		id := fmt.Sprintf("killed-%d", s)
		c.replicate(from, &adminv1.ReplicateRequest{Id: id, What: everything(), Targets: []*movev1.Target{target(to)}, MaxBytesPerSecond: paced})
		exactly := c.reached(from, id, s)
		if s == movev1.State_STATE_COPYING {
			c.until(from, id, "is half way", func(m *movev1.Move) bool { return m.GetProgress().GetCopiedRecords() > int64(tr.keys/2) })
		}
		require.NoError(t, from.Migrator.Kill())
		m := c.untilState(from, id, movev1.State_STATE_RELEASED)
		more := a.little(m, large)
		fmt.Printf("%s: killed at %s (exactly: %t): %d bytes again of %d\n", t.Name(), s, exactly, more, m.GetProgress().GetCopiedBytes())
		require.Equal(t, int64(tr.keys), m.GetProgress().GetCopiedRecords())
	}
	tr.holds(only(to))
}

// A network that is away for a while, and tells nobody, must cost a move that while and nothing else: no
// acknowledged byte twice, no state but the one it had, and no write lost.
func TestMoveGoesOnAfterTheNetworkWasCut(t *testing.T) {
	c := start(t, 2, quiet)
	from, to := c.nodes[0], c.nodes[1]
	network := podtest.NewProxy(t, to.Addr)
	tr := &traffic{c: c, keys: size(10_000, 40_000), filling: large, perSecond: 100, route: only(from)}
	tr.load()
	away := 3 * time.Second
	if long {
		away = 30 * time.Second
	}
	for _, cut := range []struct {
		state movev1.State
		// lost: connections are gone when the network is back, as behind a router that has forgotten them.
		lost bool
	}{
		{movev1.State_STATE_COPYING, true},
		{movev1.State_STATE_COPYING, false},
		{movev1.State_STATE_TAILING, true},
		{movev1.State_STATE_TAILING, false},
		{movev1.State_STATE_VERIFYING, true},
		{movev1.State_STATE_VERIFYING, false},
	} {
		a := c.countAgain(to)
		id := fmt.Sprintf("cut-%d-%t", cut.state, cut.lost)
		r := &adminv1.ReplicateRequest{
			Id: id, What: everything(), Targets: []*movev1.Target{{NodeId: to.Name, Addr: network.Addr}}, MaxBytesPerSecond: paced,
		}
		if cut.state == movev1.State_STATE_TAILING {
			r.Mode = movev1.Mode_MODE_FOLLOW
		}
		tr.begin()
		c.replicate(from, r)
		exactly := c.reached(from, id, cut.state)
		if cut.state == movev1.State_STATE_COPYING {
			c.until(from, id, "is half way", func(m *movev1.Move) bool { return m.GetProgress().GetCopiedRecords() > int64(tr.keys/2) })
		}
		network.Cut()
		begun := time.Now()
		last := c.move(from, id)
		podtest.Eventually(t, away+moveLimit, "the cut was long enough", func() bool {
			m := c.move(from, id)
			require.GreaterOrEqual(t, m.GetState(), last.GetState(), "it begins anew: %s", m.GetReason())
			last = m
			return time.Since(begun) >= away
		})
		if cut.lost {
			network.Break()
		}
		network.Mend()
		mended := time.Now()
		if cut.state == movev1.State_STATE_TAILING {
			m := c.until(from, id, "has caught up", func(m *movev1.Move) bool {
				return m.GetState() == movev1.State_STATE_TAILING && m.GetProgress().GetLagMs() >= 0 && m.GetProgress().GetLagMs() < 1000 && m.GetVerifiedAtMs() != 0
			})
			require.NotZero(t, m.GetVerifiedAtMs())
			c.finish(from, id)
		}
		m := c.untilState(from, id, movev1.State_STATE_RELEASED)
		tr.end()
		more := a.little(m, large)
		fmt.Printf("%s: cut for %s at %s (exactly: %t, connections lost: %t), over %s after it: %d bytes again of %d\n", t.Name(), away, cut.state, exactly,
			cut.lost, time.Since(mended).Round(10*time.Millisecond), more, m.GetProgress().GetCopiedBytes())
		require.NotZero(t, m.GetVerifiedAtMs())
		require.GreaterOrEqual(t, m.GetProgress().GetCopiedRecords(), int64(tr.keys)-1, "it was not copied, or begun anew")
		c.settle(from, to, id)
		tr.holds(only(from, to))
		if !long {
			break
		}
	}
}

// finish ends a move that follows.
func (c *cluster) finish(n *node, id string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	_, err := n.admin().FinishMove(ctx, &adminv1.FinishMoveRequest{Id: id})
	require.NoError(c.t, err)
}

// settle brings what was written behind the end of a move, and requires that both nodes are equal.
func (c *cluster) settle(from, to *node, id string) {
	c.t.Helper()
	m := c.replicate(from, &adminv1.ReplicateRequest{Id: id + "-rest", What: everything(), Targets: []*movev1.Target{target(to)}})
	c.untilState(from, m.GetId(), movev1.State_STATE_RELEASED)
	c.equal(bar(10*time.Second), everything(), from, to)
}
