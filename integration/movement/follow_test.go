package movement

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// quiet keeps nodes from comparing each other by themselves, whatever happens to them: nothing mends what a
// move has lost before the test looks.
const quiet = "PAIRDB_REPAIR_PAUSED=true"

// unhurried has a move of the short tests take some seconds, so that much is written meanwhile.
var unhurried = fmt.Sprint("PAIRDB_MIGRATOR_BYTES_PER_SECOND=", size(1<<20, 64<<20))

// often has them compare each other all the time: for tests of what repair brings.
const often = "PAIRDB_REPAIR_INTERVAL=5s"

// A copy that misses a write, a deletion or a conflict is found out when the original is gone.
func TestReplicateOnceUnderWrites(t *testing.T) {
	c := start(t, 2, quiet)
	from, to := c.nodes[0], c.nodes[1]
	tr := &traffic{c: c, keys: size(20_000, 5_000_000), perSecond: 400, route: only(from)}
	tr.load()
	tr.begin()
	m := c.replicate(from, &adminv1.ReplicateRequest{Id: "once", What: everything(), Targets: []*movev1.Target{target(to)}})
	m = c.untilState(from, m.GetId(), movev1.State_STATE_RELEASED)
	tr.end()
	require.NotZero(t, m.GetVerifiedAtMs(), "it is over and was never compared")
	require.GreaterOrEqual(t, m.GetProgress().GetCopiedRecords(), int64(tr.keys))

	// What was written since its end is brought by another one, and then both are equal.
	m = c.replicate(from, &adminv1.ReplicateRequest{Id: "again", What: everything(), Targets: []*movev1.Target{target(to)}})
	c.untilState(from, m.GetId(), movev1.State_STATE_RELEASED)
	tr.holds(only(from, to))
	c.equal(bar(10*time.Second), everything(), from, to)

	// The same once more is a repeat; the id with something else is not.
	same := c.replicate(from, &adminv1.ReplicateRequest{Id: "once", What: everything(), Targets: []*movev1.Target{target(to)}})
	require.Equal(t, movev1.State_STATE_RELEASED, same.GetState())
	_, err := c.tryReplicate(from, &adminv1.ReplicateRequest{Id: "once", What: half(true), Targets: []*movev1.Target{target(to)}})
	refused(t, "MOVE_EXISTS", err)
}

// A follower that lags is one that serves old data; one that stops is one that nobody misses until it is
// needed.
func TestFollowerKeepsUpUntilItIsFinished(t *testing.T) {
	c := start(t, 2, quiet)
	from, to := c.nodes[0], c.nodes[1]
	tr := &traffic{c: c, keys: size(10_000, 5_000_000), perSecond: 400, route: only(from)}
	tr.load()
	tr.begin()
	m := c.replicate(from, &adminv1.ReplicateRequest{Id: "follow", What: everything(), Targets: []*movev1.Target{target(to)}, Mode: movev1.Mode_MODE_FOLLOW})
	c.until(from, m.GetId(), "is verified and tailing", func(m *movev1.Move) bool {
		return m.GetState() == movev1.State_STATE_TAILING && m.GetVerifiedAtMs() != 0
	})
	var lags []int64
	podtest.Eventually(t, 30*time.Second, "the lag was looked at for a while", func() bool {
		m := c.move(from, m.GetId())
		if m.GetState() == movev1.State_STATE_TAILING && m.GetProgress().GetLagMs() >= 0 {
			lags = append(lags, m.GetProgress().GetLagMs())
		}
		return len(lags) >= 200
	})
	slices.Sort(lags)
	fmt.Printf("%s: lag p50 %d ms, p95 %d ms, most %d ms\n", t.Name(), lags[100], lags[190], lags[199])
	if long { // as for every rate: not beside the tests of other packages
		require.Less(t, lags[190], int64(1000))
	}
	tr.end()

	begun := time.Now()
	tr.comesTo(bar(10*time.Second), "the follower", only(to))
	c.equal(bar(10*time.Second), everything(), from, to)
	fmt.Printf("%s: equal %s after the last write\n", t.Name(), time.Since(begun).Round(time.Millisecond))

	for range 2 { // a repeat is none
		c.finish(from, m.GetId())
	}
	m = c.untilState(from, m.GetId(), movev1.State_STATE_RELEASED)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := from.client.Put(ctx, "after", []byte("the end"))
	require.NoError(t, err)
	v, err := to.client.Get(ctx, "after")
	require.NoError(t, err)
	require.False(t, v.Found, "it follows still")
}
