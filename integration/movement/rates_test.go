package movement

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// What it costs to read everything over the network is what a copy must be measured by: one that takes
// much longer leaves the data on one node for longer. Parts are read to nobody and copied in turn, so that
// both see the same machine.
func TestCopyIsNearlyAsFastAsReading(t *testing.T) {
	const parts = 4
	for _, filling := range []int{100, 1000, 10_000} {
		t.Run(fmt.Sprint(filling), func(t *testing.T) {
			c := start(t, 2, quiet, "PAIRDB_MIGRATOR_BYTES_PER_SECOND=0")
			from, to := c.nodes[0], c.nodes[1]
			each := size(16<<20, 256<<20) / (filling + 50)
			tr := &traffic{c: c, keys: parts * each, filling: filling, route: only(from)}
			tr.load()
			var reading, copying time.Duration
			best := 0.0
			for i := range parts {
				what := &datav1.KeyRange{Start: key(i * each), End: key((i + 1) * each)}
				read := c.readTime(from, what, each)
				copied := c.copyTime(from, to, fmt.Sprint("fast-", i), what)
				reading, copying, best = reading+read, copying+copied, max(best, read.Seconds()/copied.Seconds())
			}
			ratio := reading.Seconds() / copying.Seconds()
			fmt.Printf("%s: %d records: read in %s, copied in %s (%.2f of it, %.2f at best)\n", t.Name(), tr.keys,
				reading.Round(time.Millisecond), copying.Round(time.Millisecond), ratio, best)
			if long { // cores that are shared with the tests of other packages are no place for a bar
				require.GreaterOrEqual(t, ratio, 0.6)
			}
			tr.holds(only(to))
		})
	}
}

// readTime reads a range to nobody and returns how long that took.
func (c *cluster) readTime(from *node, what *datav1.KeyRange, keys int) time.Duration {
	c.t.Helper()
	begun := time.Now()
	stream, err := storagev1.NewStorageServiceClient(from.conn).StreamKeys(c.t.Context(), &storagev1.StreamKeysRequest{
		Tenant: tenant, IncludeTombstones: true, What: &storagev1.StreamKeysRequest_Range{Range: what},
	})
	require.NoError(c.t, err)
	records := 0
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(c.t, err)
		records += len(r.GetRecords())
	}
	took := time.Since(begun)
	require.Equal(c.t, keys, records)
	return took
}

// copyTime copies a range and returns how long that took, from the order until only changes were left.
func (c *cluster) copyTime(from, to *node, id string, what *datav1.KeyRange) time.Duration {
	c.t.Helper()
	begun := time.Now()
	m := c.replicate(from, &adminv1.ReplicateRequest{Id: id, What: &movev1.Selection{Tenant: tenant, Range: what}, Targets: []*movev1.Target{target(to)}})
	c.reached(from, m.GetId(), movev1.State_STATE_TAILING)
	took := time.Since(begun)
	c.untilState(from, m.GetId(), movev1.State_STATE_RELEASED)
	return took
}

// A limit that does not hold is traffic that users feel; one that is kept below is time in which data has
// too few copies.
func TestLimitOfAMoveIsKept(t *testing.T) {
	c := start(t, 2, quiet)
	from, to := c.nodes[0], c.nodes[1]
	const limit = 2 << 20
	tr := &traffic{c: c, keys: size(16_000, 60_000), filling: 1000, route: only(from)}
	tr.load()
	m := c.replicate(from, &adminv1.ReplicateRequest{Id: "slow", What: everything(), Targets: []*movev1.Target{target(to)}, MaxBytesPerSecond: limit})
	c.reached(from, m.GetId(), movev1.State_STATE_COPYING)
	begun := time.Now()
	c.reached(from, m.GetId(), movev1.State_STATE_TAILING)
	took := time.Since(begun)
	m = c.untilState(from, m.GetId(), movev1.State_STATE_RELEASED)
	rate := float64(m.GetProgress().GetCopiedBytes()) / took.Seconds()
	fmt.Printf("%s: %.2f of the limit\n", t.Name(), rate/limit)
	tolerance := 0.1 + 0.5/took.Seconds() // a burst and the look at it may take half a second
	require.LessOrEqual(t, rate/limit, 1+tolerance)
	if long { // a machine with other work may not reach it
		require.GreaterOrEqual(t, rate/limit, 1-tolerance)
	}
}

// readers returns the latency of reads while f runs.
func (c *cluster) readers(n *node, keys int, f func()) (p99 time.Duration) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan []time.Duration)
	go func() {
		var took []time.Duration
		for i := 0; ctx.Err() == nil; i++ {
			begun := time.Now()
			if _, err := n.client.Get(ctx, key(i*7919%keys)); err == nil {
				took = append(took, time.Since(begun))
			}
			time.Sleep(time.Millisecond) // the rate of a light load, not a wait for anything
		}
		done <- took
	}()
	f()
	cancel()
	took := <-done
	require.NotEmpty(c.t, took)
	slices.Sort(took)
	return took[len(took)*99/100]
}

// niceness returns those of the threads of a process, each once.
func niceness(t *testing.T, p *localpod.Process) []int {
	t.Helper()
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
	require.NoError(t, err)
	var found []int
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the thread has ended
		}
		require.NoError(t, err)
		_, rest, named := strings.Cut(string(b), ") ") // what the process is called may have anything in it
		require.True(t, named, "%s", b)
		nice, err := strconv.Atoi(strings.Fields(rest)[16]) // the 19th, of which the name was the second
		require.NoError(t, err)
		found = append(found, nice)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// When a move and a request want the same processor, the request must get it.
func TestMigratorGivesWayToTheNode(t *testing.T) {
	n := start(t, 1).nodes[0]
	require.Equal(t, []int{0}, niceness(t, n.Node))
	require.Equal(t, []int{10}, niceness(t, n.Migrator))
}

// takeWhatIsLeft lets a process run only on processors that nobody else wants just then.
func takeWhatIsLeft(t *testing.T, p *localpod.Process) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p.PID()))
	require.NoError(t, err)
	require.NotEmpty(t, threads)
	for _, thread := range threads { // later ones are like the one that starts them
		id, err := strconv.Atoi(filepath.Base(thread))
		require.NoError(t, err)
		err = unix.SchedSetAttr(id, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
		if !errors.Is(err, unix.ESRCH) { // the thread has ended
			require.NoError(t, err)
		}
	}
}

// A move at its default limit must not be what users wait for: reads take at most twice as long. Turns with a
// move and without one alternate, because the machine has other work too. The target's pod would be on another
// machine and only gets what the source and its user leave of this one.
func TestReadsGoOnBesideAMove(t *testing.T) {
	c := start(t, 2, quiet)
	from, to := c.nodes[0], c.nodes[1]
	for _, p := range []*localpod.Process{to.Node, to.Migrator, to.HealthAgent} {
		takeWhatIsLeft(t, p)
	}
	tr := &traffic{c: c, keys: size(30_000, 500_000), filling: 1000, route: only(from)}
	tr.load()
	var alone, beside []time.Duration
	for turn := range 3 {
		alone = append(alone, c.readers(from, tr.keys, func() { time.Sleep(time.Duration(size(2, 20)) * time.Second) })) // what is measured, not awaited
		beside = append(beside, c.readers(from, tr.keys, func() {
			m := c.replicate(from, &adminv1.ReplicateRequest{Id: fmt.Sprint("beside-", turn), What: everything(), Targets: []*movev1.Target{target(to)}})
			c.untilState(from, m.GetId(), movev1.State_STATE_RELEASED)
		}))
	}
	slices.Sort(alone)
	slices.Sort(beside)
	fmt.Printf("%s: p99 of reads: %s alone, %s beside a move (%.1f times)\n", t.Name(), alone[1], beside[1], beside[1].Seconds()/alone[1].Seconds())
	if long {
		require.LessOrEqual(t, beside[1], 2*alone[1])
	}
}
