package movement

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// memory returns the bytes that a process has for itself: pages of mapped files, which cost nothing, are left
// out.
func memory(t *testing.T, p *localpod.Process) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	require.NoError(t, err)
	_, rest, found := bytes.Cut(b, []byte("RssAnon:"))
	require.True(t, found, "%s", b)
	fields := bytes.Fields(rest)
	kib, err := strconv.ParseInt(string(fields[0]), 10, 64)
	require.NoError(t, err)
	return kib << 10
}

// A target that is slower than its source must slow the move down. Whoever takes what the other can't, into
// memory, dies of it, and of the largest node first.
func TestSlowTargetCostsNobodyMemory(t *testing.T) {
	// Small caches and memtables: what is left to grow is what is on its way.
	c := start(t, 2, quiet, "PAIRDB_MIGRATOR_BYTES_PER_SECOND=0", "PAIRDB_ROW_CACHE_BYTES=0", "PAIRDB_BLOCK_CACHE_BYTES=4MiB", "PAIRDB_MEMTABLE_BYTES=4MiB")
	from, to := c.nodes[0], c.nodes[1]
	const record, allowed = 16_000, 48 << 20
	tr := &traffic{c: c, keys: size(6_000, 100_000), filling: record, perSecond: 20, route: only(from)}
	tr.load()
	network := podtest.NewProxy(t, to.Addr)
	network.Limit(2 << 20)
	processes := map[string]*localpod.Process{"source": from.Node, "migrator": from.Migrator, "target": to.Node}
	before, most := map[string]int64{}, map[string]int64{}
	for name, p := range processes {
		before[name] = memory(t, p)
	}
	watch := func(what string, d time.Duration) {
		begun := time.Now()
		podtest.Eventually(t, d+moveLimit, what, func() bool {
			for name, p := range processes {
				most[name] = max(most[name], memory(t, p)-before[name])
			}
			return time.Since(begun) >= d
		})
	}
	tr.begin()
	m := c.replicate(from, &adminv1.ReplicateRequest{Id: "slow", What: everything(), Targets: []*movev1.Target{{NodeId: to.Name, Addr: network.Addr}}})
	c.reached(from, m.GetId(), movev1.State_STATE_COPYING)
	watch("the network is slow", time.Duration(size(8, 120))*time.Second)
	network.Limit(0)
	require.NoError(t, to.Node.Signal(syscall.SIGSTOP))
	watch("the target does nothing", time.Duration(size(4, 30))*time.Second)
	require.NoError(t, to.Node.Signal(syscall.SIGCONT))
	m = c.move(from, m.GetId())
	require.Equal(t, movev1.State_STATE_COPYING, m.GetState(), "nothing was held back: %v", m)
	for name := range processes {
		fmt.Printf("%s: the %s has grown by %.1f MiB, of %d MiB that wait\n", t.Name(), name, float64(most[name])/(1<<20), int64(tr.keys)*record>>20)
		require.Less(t, most[name], int64(allowed), name)
	}
	tr.end()
	c.untilState(from, m.GetId(), movev1.State_STATE_RELEASED)
	c.settle(from, to, m.GetId())
}
