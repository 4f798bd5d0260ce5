// Package crash kills the real processes of a pod while it is written to. It never looks into the
// data directory.
package crash

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

const (
	batchRecords = 500
	loaders      = 4
	// A node must serve again this soon after it was killed.
	recoveryLimit = 5 * time.Second
)

func key(i int64) string { return fmt.Sprintf("user/%09d/profile", i*7919%1_000_000_007) }

func value(i int64) []byte {
	r := rand.New(rand.NewPCG(uint64(i), 17))
	b := make([]byte, 20+r.IntN(280))
	for j := range b {
		b[j] = 'a' + byte(r.IntN(26))
	}
	return b
}

// load writes batches loader, loader+loaders, … until stop, each again until it is acknowledged, and
// counts the acknowledged ones.
func load(ctx context.Context, c *client.Client, loader int64, acked *atomic.Int64) error {
	b := client.Batch{AtLeastOnce: true}
	for n := loader; ; n += loaders {
		b.Reset()
		for i := n * batchRecords; i < (n+1)*batchRecords; i++ {
			b.Put(key(i), value(i))
		}
		if err := c.Write(ctx, &b); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("batch %d: %w", n, err)
		}
		acked.Add(1)
	}
}

func TestKilledProcessesLoseNothing(t *testing.T) {
	// kill -9 of the node, the compactor, or both, at random moments of a bulk load: whatever was
	// acknowledged must be there and equal, each time.
	rounds := 20
	if n, err := strconv.Atoi(os.Getenv("PAIRDB_TEST_KILLS")); err == nil {
		rounds = n
	}
	pods, log := podtest.Start(t, localpod.Options{Env: []string{
		"PAIRDB_MEMTABLE_BYTES=8MiB", "PAIRDB_TABLE_BYTES=4MiB",
	}})
	pod := pods.All()[0]
	c := podtest.Client(t, pod.Addr, client.Options{RetryFor: time.Minute, Timeout: 20 * time.Second})

	ctx, stop := context.WithCancel(t.Context())
	var acked [loaders]atomic.Int64
	failed := make(chan error, loaders)
	for l := range loaders {
		go func() { failed <- load(ctx, c, int64(l), &acked[l]) }()
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	// The counters of a node begin anew with its process: the log has all of them.
	installed := func() int { return strings.Count(log.String(), "origin=external") }
	var worst time.Duration
	merged := 0
	for round := range rounds {
		before := total(&acked)
		target := before + 1 + r.Int64N(40)
		podtest.Eventually(t, 30*time.Second, "the load goes on", func() bool { return total(&acked) >= target })
		if round%5 == 4 {
			// Kills that come faster than merges would leave no merge to lose anything.
			podtest.Eventually(t, time.Minute, "the compactor installs a job", func() bool { return installed() > merged })
		}
		merged = installed()
		what, nodes := r.IntN(4), pod.Node.Restarts()
		if what != 1 {
			require.NoError(t, pod.Node.Kill())
			nodes++
		}
		if what == 1 || what == 2 {
			_ = pod.Compactor.Kill() // it may be starting again just now
		}
		// The pause before the next start grows when starts come soon after each other: it is not the node's.
		podtest.Eventually(t, time.Minute, "started again after kill -9", func() bool { return pod.Node.Restarts() == nodes })
		started := time.Now()
		podtest.Eventually(t, recoveryLimit, "serving again after kill -9", func() bool { return pod.IsReady(t.Context()) })
		worst = max(worst, time.Since(started))
		sample(t, c, r, &acked, round)
	}
	stop()
	for range loaders {
		require.NoError(t, <-failed)
	}
	checked := verifyAll(t, c, &acked)
	t.Logf("%d kills, %d acknowledged records all there, slowest recovery %s, jobs installed: external %d, local %d",
		rounds, checked, worst.Round(time.Millisecond), installed(), strings.Count(log.String(), "origin=local"))
	progress, err := c.Admin().Compact(t.Context(), &adminv1.CompactRequest{})
	require.NoError(t, err)
	for err == nil {
		_, err = progress.Recv()
	}
	require.ErrorIs(t, err, io.EOF)
	s, err := c.Admin().Status(t.Context(), &adminv1.StatusRequest{})
	require.NoError(t, err)
	require.Positive(t, s.Compaction.InstalledExternal)
	require.Equal(t, checked, verifyAll(t, c, &acked), "after a full compaction")
}

func total(acked *[loaders]atomic.Int64) int64 {
	var n int64
	for l := range acked {
		n += acked[l].Load()
	}
	return n
}

// batchNumber is the n-th acknowledged batch of a loader.
func batchNumber(loader, n int64) int64 { return loader + n*loaders }

// sample reads keys of acknowledged batches.
func sample(t *testing.T, c *client.Client, r *rand.Rand, acked *[loaders]atomic.Int64, round int) {
	t.Helper()
	var ids []int64
	var keys []string
	for len(ids) < 500 {
		l := r.IntN(loaders)
		done := acked[l].Load()
		if done == 0 {
			continue
		}
		i := batchNumber(int64(l), r.Int64N(done))*batchRecords + r.Int64N(batchRecords)
		ids, keys = append(ids, i), append(keys, key(i))
	}
	values, err := c.GetMany(t.Context(), keys)
	require.NoError(t, err)
	for j, v := range values {
		require.True(t, v.Found, "round %d: acknowledged key %s is lost", round, keys[j])
		require.Equal(t, string(value(ids[j])), string(v.Bytes), "round %d: key %s", round, keys[j])
		require.Empty(t, v.Siblings, "round %d: a single writer sees no sibling of its own: %s", round, keys[j])
	}
}

// verifyAll walks the whole tenant and checks that it holds all that was acknowledged, and nothing
// that was never written.
func verifyAll(t *testing.T, c *client.Client, acked *[loaders]atomic.Int64) int64 {
	t.Helper()
	missing := map[string]int64{}
	written := map[string]int64{} // keys of batches that were under way when the load stopped
	for l := range int64(loaders) {
		done := acked[l].Load()
		for n := range done + 1 {
			into := missing
			if n == done {
				into = written
			}
			for i := batchNumber(l, n) * batchRecords; i < (batchNumber(l, n)+1)*batchRecords; i++ {
				into[key(i)] = i
			}
		}
	}
	checked := int64(len(missing))
	for rec, err := range c.Scan(t.Context(), "", "") {
		require.NoError(t, err)
		i, ok := missing[rec.Key]
		if !ok {
			i, ok = written[rec.Key]
		}
		require.True(t, ok, "key %s was never written", rec.Key)
		v, found := client.Winner(rec)
		require.True(t, found)
		require.Equal(t, string(value(i)), string(v), rec.Key)
		delete(missing, rec.Key)
	}
	require.Empty(t, len(missing), "acknowledged records are lost")
	return checked
}
