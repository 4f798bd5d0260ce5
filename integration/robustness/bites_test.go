package robustness

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/check"
	"github.com/pairdb/pairdb/integration/cluster"
	"github.com/pairdb/pairdb/integration/history"
	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/integration/traffic"
	"github.com/pairdb/pairdb/libs/client"
)

// A campaign that finds nothing is worth what it would have found: a node that loses its disk under the
// traffic, behind the back of the suite, must be noticed by each checker that can.
func TestALostDiskIsNoticed(t *testing.T) {
	dir, err := os.MkdirTemp("", "robust")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	env := append(slices.Clone(small), "PAIRDB_JOIN=at-once", "PAIRDB_REPAIR_INTERVAL=0")
	c, err := cluster.Local(ctx, cluster.Options{Binaries: podtest.Binaries(t), Dir: dir, Nodes: firstNodes, Env: env})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	all := c.Nodes()
	require.NoError(t, members(ctx, all))
	var nodes []traffic.Node
	for _, n := range all {
		nodes = append(nodes, traffic.Node{Name: n.Name(), Addr: n.Addr()})
	}
	r := &run{t: t, cluster: c, bin: podtest.Binaries(t), history: history.New()}
	tr := traffic.Start(t.Context(), traffic.Options{Nodes: func() []traffic.Node { return nodes }, Log: r.history, Seed: 1, PerSecond: perSecond})
	acknowledged := func(by int) int {
		return len(slices.DeleteFunc(slices.Clone(r.history.Ops()), func(op history.Op) bool {
			return op.Node != all[by].Name() || op.Kind == history.Read || op.Outcome != history.OK
		}))
	}
	podtest.Eventually(t, 40*time.Second, "writes are acknowledged", func() bool {
		return acknowledged(1) > 100 && leftRegister(r.history.Ops(), all[1].Name())
	})
	before, err := usage(ctx, all)
	require.NoError(t, err)

	for _, b := range cluster.Binaries {
		all[1].Process(b).Halt()
	}
	had := acknowledged(1)
	entries, err := os.ReadDir(all[1].DataDir())
	require.NoError(t, err)
	for _, e := range entries {
		require.NoError(t, os.RemoveAll(filepath.Join(all[1].DataDir(), e.Name())))
	}
	for _, b := range cluster.Binaries {
		require.NoError(t, all[1].Process(b).Start())
	}
	podtest.Eventually(t, 30*time.Second, "it serves and takes writes again", func() bool { return acknowledged(1) > had+100 })
	tr.Stop()

	ops := r.history.Ops()
	forgotten := check.Causality(ops)
	require.True(t, slices.ContainsFunc(forgotten, func(v check.Violation) bool { return v.Rule == check.Forgotten }), "the node forgot, and nobody noticed")
	last, err := traffic.Final(ctx, r.history, nodes)
	require.NoError(t, err)
	require.NotEmpty(t, registers(ops, last), "registers of the node lost their values, and nobody noticed")
	require.NotEmpty(t, check.Durable(ops, last), "what only that node had is gone, and nobody noticed")
	require.NotEmpty(t, check.Equal(last, []string{"node-0", "node-1", "node-2"}), "the nodes differ, and nobody noticed")
	_, err = equal(ctx, all, time.Second)
	require.ErrorContains(t, err, "not the same", "the digests differ, and nobody noticed")
	after, err := usage(ctx, all)
	require.NoError(t, err)
	require.Empty(t, check.Growth(before, after, check.Limits))
	require.NotEmpty(t, check.Growth(before, after, check.Usage{Descriptors: -1000, Goroutines: -1000, Bytes: -1 << 40}))

	// And the files: one more than are referenced, and one less.
	flush(t, all[0].Addr())
	c.Close()
	require.Empty(t, r.files())
	sst := filepath.Join(all[0].DataDir(), "sst")
	tables, err := filepath.Glob(filepath.Join(sst, "*.sst"))
	require.NoError(t, err)
	require.NotEmpty(t, tables)
	bytes, err := os.ReadFile(tables[0])
	require.NoError(t, err)
	stray := filepath.Join(sst, "999999.sst")
	require.NoError(t, os.WriteFile(stray, bytes, 0o660))
	require.Len(t, r.files(), 1, "a file that nothing refers to")
	require.NoError(t, os.Remove(stray))
	require.Empty(t, r.files())
	require.NoError(t, os.Remove(tables[0]))
	require.Len(t, r.files(), 1, "a reference to a file that is gone")
}

// leftRegister reports whether a register of a node has a value that nobody will overwrite: one of a generation
// of keys that is over.
func leftRegister(ops []history.Op, node string) bool {
	last, newest := map[string]history.Op{}, ""
	for _, op := range ops {
		rest, ok := strings.CutPrefix(op.Key, traffic.RegisterPrefix+node+"/")
		if !ok || op.Kind == history.Read || op.Outcome == history.Failed {
			continue
		}
		last[op.Key] = op
		generation, _, _ := strings.Cut(rest, "/")
		newest = max(newest, traffic.RegisterPrefix+node+"/"+generation)
	}
	for key, op := range last {
		if !strings.HasPrefix(key, newest) && op.Kind == history.Put && op.Outcome == history.OK {
			return true
		}
	}
	return false
}

// flush has a node write its memtable to a table.
func flush(t *testing.T, addr string) {
	t.Helper()
	c := podtest.Client(t, addr, client.Options{})
	_, err := c.Admin().Flush(t.Context(), nil)
	require.NoError(t, err)
}
