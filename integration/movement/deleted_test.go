package movement

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// grace is the shortest that the configuration allows.
const grace = time.Minute

// compact merges everything of a node, so that what may be collected is: two keys at both ends of all have
// the tables in between rewritten.
func (c *cluster) compact(n *node, round int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	for _, end := range []string{"key", "key0"} {
		_, err := n.client.Put(ctx, end, fmt.Append(nil, round))
		require.NoError(c.t, err)
	}
	_, err := n.admin().Flush(ctx, &adminv1.FlushRequest{})
	require.NoError(c.t, err)
	stream, err := n.admin().Compact(ctx, &adminv1.CompactRequest{})
	require.NoError(c.t, err)
	for {
		_, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(c.t, err)
	}
}

// remembered returns for how many keys a node has anything stored, and for how many a live value.
func (c *cluster) remembered(n *node, keys int) (known, alive int) {
	c.t.Helper()
	names := make([]string, keys)
	for i := range names {
		names[i] = key(i)
	}
	values, err := n.client.GetMany(c.t.Context(), names)
	require.NoError(c.t, err)
	for _, v := range values {
		if v.Clock != nil {
			known++
		}
		if v.Found {
			alive++
		}
	}
	return known, alive
}

// A tombstone that is collected before every replica has it lets the value come back from the one that was
// away: what was deleted stays deleted, however long that one was gone.
func TestDeletedStaysDeletedWithAReplicaThatWasAway(t *testing.T) {
	if testing.Short() {
		t.Skip("the shortest grace is a minute")
	}
	const keys = 500
	// Clocks that may differ by a minute count twice on top of the grace, and rows in memory outlive tables.
	c := start(t, 3, often, "PAIRDB_GC_GRACE="+grace.String(), "PAIRDB_MAX_CLOCK_SKEW=1s", "PAIRDB_ROW_CACHE_BYTES=0")
	tr := &traffic{c: c, keys: keys, route: only(c.nodes...)}
	tr.load()
	tr.holds(only(c.nodes...))
	away := c.nodes[2]
	rest := c.others(away)
	away.Halt()

	for i := range keys {
		tr.truths[i].clock["writer-9"] = 1
		tr.truths[i].values = nil
		for _, n := range rest {
			_, err := n.client.Delete(t.Context(), key(i), client.WithClock(vector(tr.truths[i].clock)))
			require.NoError(t, err)
		}
	}
	deleted := time.Now()
	podtest.Eventually(t, 2*grace, "the grace is over", func() bool { return time.Since(deleted) > grace+5*time.Second })
	for _, n := range rest {
		c.compact(n, 0)
		known, alive := c.remembered(n, keys)
		require.Zero(t, alive)
		require.Equal(t, keys, known, "%s has forgotten deletions that %s has not seen", n.Name, away.Name)
	}

	c.back(away)
	podtest.Eventually(t, bar(convergeLimit), "the one that was away has no value any more", func() bool {
		_, alive := c.remembered(away, keys)
		return alive == 0
	})
	// From here on they may be forgotten, and must not come back when they are.
	equal, round := time.Now(), 0
	forgotten := map[string]int{}
	defer func() {
		if t.Failed() {
			t.Logf("forgotten by node: %v", forgotten)
			for _, n := range c.nodes {
				r, err := n.admin().Ranges(context.Background(), &adminv1.RangesRequest{})
				if err == nil {
					t.Logf("%s: %d ranges, the first is %v", n.Name, len(r.GetRanges()), r.GetRanges()[0])
				}
			}
		}
	}()
	podtest.Eventually(t, 3*grace, "the deletions are forgotten", func() bool {
		done := true
		round++
		for _, n := range c.nodes {
			c.compact(n, round)
			known, alive := c.remembered(n, keys)
			require.Zero(t, alive, "%s has values that were deleted", n.Name)
			forgotten[n.Name] = keys - known
			done = done && known == 0
		}
		return done
	})
	fmt.Printf("%s: forgotten on all %s after they were equal\n", t.Name(), time.Since(equal).Round(time.Second))
	for _, n := range c.nodes {
		_, alive := c.remembered(n, keys)
		require.Zero(t, alive)
	}
}
