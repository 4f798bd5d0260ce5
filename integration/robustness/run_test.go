// Package robustness runs traffic, faults and checkers against clusters of the built binaries: what it looks
// for and what it has found is in its README. It never imports a service.
package robustness

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/check"
	"github.com/pairdb/pairdb/integration/cluster"
	"github.com/pairdb/pairdb/integration/history"
	"github.com/pairdb/pairdb/integration/nemesis"
	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/integration/traffic"
)

const (
	// shortRun is how long each runner is under fire in a plain `go test`; `make robust` says another one.
	shortRun = 10 * time.Second
	// warm is how long the traffic runs before the first fault.
	warm = 3 * time.Second
	// hold is how long a fault lasts at most.
	hold = 3 * time.Second
	// converge is how soon after the last fault all replicas must be the same.
	converge = time.Minute
	// perSecond are the steps of all clients together.
	perSecond = 200
	// volumeBytes is the volume of the node whose disk gets full.
	volumeBytes = 768 << 20
	// maxTold are the violations that a report tells: more have the same reason.
	maxTold = 200
	// firstNodes keep everything: as many as a record has replicas.
	firstNodes = 3
)

// small has a node flush and merge all the time, read what it has written from tables, and compare itself
// with the others again and again.
var small = []string{
	"PAIRDB_MEMTABLE_BYTES=1MiB", "PAIRDB_TABLE_BYTES=1MiB", "PAIRDB_ROW_CACHE_BYTES=256KiB", "PAIRDB_BLOCK_CACHE_BYTES=2MiB",
	"PAIRDB_DISK_RESERVE_BYTES=4MiB", "PAIRDB_REPAIR_INTERVAL=5s",
}

// runner makes a cluster.
type runner func(context.Context, cluster.Options) (cluster.Cluster, error)

// run is one campaign and what came of it.
type run struct {
	t        *testing.T
	name     string
	seed     uint64
	duration time.Duration
	kinds    []string
	dir      string
	bin      string

	log     *os.File // output of the processes
	cluster cluster.Cluster
	history *history.Log

	mu     sync.Mutex
	report strings.Builder // guarded by mu
}

// say adds a line to the report.
func (r *run) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(&r.report, "%12s  ", r.history.Now().Round(time.Millisecond))
	fmt.Fprintf(&r.report, format+"\n", args...)
}

// seed is that of the environment, or one of this moment.
func seed(t *testing.T) uint64 {
	if s := os.Getenv("PAIRDB_ROBUST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, "PAIRDB_ROBUST_SEED is a number")
		return n
	}
	return uint64(time.Now().UnixNano())
}

// duration is that of one campaign: a share of what the environment gives all of them, or the short one.
func duration(t *testing.T) time.Duration {
	if s := os.Getenv("PAIRDB_ROBUST_DURATION"); s != "" {
		d, err := time.ParseDuration(s)
		require.NoError(t, err, "PAIRDB_ROBUST_DURATION is a duration")
		return d / explorers
	}
	return shortRun
}

// campaign has a cluster under traffic and faults, and judges it.
func campaign(t *testing.T, start runner, d time.Duration, kinds ...string) {
	t.Helper()
	if _, err := exec.LookPath("strace"); os.Getenv("CI") == "true" {
		require.NoError(t, err, "CI must run where calls can be made to fail: apt-get install strace")
	}
	dir, err := os.MkdirTemp(os.Getenv("PAIRDB_ROBUST_DIR"), "robust")
	require.NoError(t, err)
	r := &run{t: t, name: t.Name(), seed: seed(t), duration: d, kinds: kinds, dir: dir, bin: podtest.Binaries(t), history: history.New()}
	fmt.Printf("%s: seed %d, %s of faults; what a failure leaves is in %s\n", r.name, r.seed, d, dir)
	r.log, err = os.Create(filepath.Join(dir, "processes.log"))
	require.NoError(t, err)
	defer r.log.Close()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r.cluster, err = start(ctx, cluster.Options{Binaries: r.bin, Dir: filepath.Join(dir, "pods"), Nodes: firstNodes, Env: small, Log: r.log, DiskBytes: volumeBytes})
	if errors.Is(err, cluster.ErrNotHere) {
		r.clean()
		require.NotEqual(t, "true", os.Getenv("CI"), "CI must run where this is allowed: %v", err)
		t.Skip(err)
	}
	require.NoError(t, err)
	closed := false
	defer func() {
		if !closed {
			r.cluster.Close()
		}
	}()

	bad, summary := r.fire(ctx)
	r.cluster.Close()
	closed = true
	bad = append(bad, r.files()...)
	fmt.Print(summary)
	if len(bad) == 0 {
		r.clean()
		fmt.Printf("%s: no violation\n", r.name)
		return
	}
	r.keep(bad, summary)
	t.Fatalf("%d violations, the first: %s\n%s\nseed %d; report.txt, history.jsonl, processes.log and the data directories are in %s",
		len(bad), bad[0], r.replay(), r.seed, dir)
}

// replay says how to run the same choices again.
func (r *run) replay() string {
	return fmt.Sprintf("replay: PAIRDB_ROBUST_SEED=%d PAIRDB_ROBUST_DURATION=%s go test -count=1 -v -run '%s$' ./robustness", r.seed, explorers*r.duration, r.name)
}

// clean removes what the run made.
func (r *run) clean() {
	require.NoError(r.t, cluster.Unmount(filepath.Join(r.dir, "pods")))
	require.NoError(r.t, os.RemoveAll(r.dir))
}

// keep leaves everything that a person needs to understand a failure.
func (r *run) keep(bad []check.Violation, summary string) {
	pods := filepath.Join(r.dir, "pods")
	// What is on volumes of memory is copied before they go.
	for _, n := range r.cluster.Nodes() {
		if n.Disk() != nil {
			_ = n.Disk().Empty() // only the test's own file is in it
			out, err := exec.Command("cp", "-a", n.DataDir(), filepath.Join(r.dir, n.Name()+".data")).CombinedOutput()
			require.NoError(r.t, err, string(out))
		}
	}
	require.NoError(r.t, cluster.Unmount(pods))
	require.NoError(r.t, history.Save(filepath.Join(r.dir, "history.jsonl"), r.history.Ops()))
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n%s\n", r.name, r.replay(), summary)
	for _, v := range bad[:min(len(bad), maxTold)] {
		fmt.Fprintf(&b, "VIOLATION %s\n", v)
	}
	fmt.Fprintf(&b, "\nwhat happened:\n%s", r.report.String())
	require.NoError(r.t, os.WriteFile(filepath.Join(r.dir, "report.txt"), []byte(b.String()), 0o660))
}

// failed is a violation that is no breach of a rule on histories.
func failed(rule check.Rule, err error) []check.Violation {
	if err == nil {
		return nil
	}
	return []check.Violation{{Rule: rule, Text: err.Error()}}
}

// fire has traffic and faults, then peace, and judges what was answered.
func (r *run) fire(ctx context.Context) (bad []check.Violation, summary string) {
	t := r.t
	n, err := nemesis.New(nemesis.Options{Cluster: r.cluster, Seed: r.seed, Hold: hold, Say: r.say, Kinds: r.kinds})
	require.NoError(t, err)
	first := r.cluster.Nodes()
	require.NoError(t, members(ctx, first))
	nodes := func(of []cluster.Node) (out []traffic.Node) {
		for _, m := range of {
			out = append(out, traffic.Node{Name: m.Name(), Addr: m.Addr()})
		}
		return out
	}
	tr := traffic.Start(t.Context(), traffic.Options{
		Nodes: func() []traffic.Node { return nodes(n.Members()) }, Log: r.history, Seed: r.seed, PerSecond: perSecond,
	})
	wait(ctx, warm)
	before, err := usage(ctx, first)
	require.NoError(t, err)

	fire, cancel := context.WithTimeout(t.Context(), r.duration)
	recovered := n.Run(fire)
	cancel()
	recovered = errors.Join(recovered, n.Finish())
	tr.Stop()
	bad = append(bad, failed("not well again after the faults", recovered)...)
	bad = append(bad, failed("a process is not started again", n.Broken())...)

	ctx, cancel = context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	peace := time.Now()
	took, err := equal(ctx, first, converge)
	bad = append(bad, failed(check.Diverged, err)...)
	r.say("replicas are equal after %s: %v", took.Round(time.Millisecond), err)
	last, err := traffic.Final(ctx, r.history, nodes(first))
	bad = append(bad, failed(check.Lost, err)...)
	grown := r.growth(ctx, first, before)
	bad = append(bad, grown...)

	ops := r.history.Ops()
	judged := time.Now()
	causality := check.Causality(slices.Concat(ops, last))
	durable := check.Durable(ops, last)
	var names []string
	for _, m := range first {
		names = append(names, m.Name())
	}
	same := check.Equal(last, names)
	linearizable := registers(ops, last)
	bad = slices.Concat(bad, causality, durable, same, linearizable)

	var b strings.Builder
	fmt.Fprintf(&b, "%s: seed %d\n%s\n", r.name, r.seed, nemesis.Table(n.Counts()))
	fmt.Fprintf(&b, "%s\n", outcomes(ops))
	fmt.Fprintf(&b, "replicas equal %s after the last fault (%s with all reads), judged in %s\n",
		took.Round(time.Millisecond), judged.Sub(peace).Round(time.Millisecond), time.Since(judged).Round(time.Millisecond))
	fmt.Fprintf(&b, "violations: causality %d, durability %d, convergence %d, linearizability %d, growth %d\n",
		len(causality), len(durable), len(same), len(linearizable), len(grown))
	// A campaign in which nothing happened finds nothing.
	require.NotEmpty(t, n.Counts())
	counts := count(ops)
	require.Greater(t, counts["put ok"], int(r.duration/time.Second), "the traffic was hardly served")
	require.Greater(t, counts["read ok"], int(r.duration/time.Second), "the traffic was hardly served")
	return bad, b.String()
}

// registers judges the keys that are used at one node, with what that node has of them at the end.
func registers(ops, last []history.Op) []check.Violation {
	ops = slices.Clone(ops)
	for _, op := range last {
		if strings.HasPrefix(op.Key, traffic.RegisterPrefix+op.Node+"/") {
			ops = append(ops, op)
		}
	}
	return check.Linearizable(ops, func(key string) bool { return strings.HasPrefix(key, traffic.RegisterPrefix) })
}

// count counts operations by kind and outcome.
func count(ops []history.Op) map[string]int {
	counts := map[string]int{}
	for _, op := range ops {
		counts[string(op.Kind)+" "+string(op.Outcome)]++
	}
	return counts
}

// outcomes are the counts in words.
func outcomes(ops []history.Op) string {
	counts := count(ops)
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, counts[k]))
	}
	return fmt.Sprintf("%d operations: %s", len(ops), strings.Join(parts, ", "))
}

// wait lets time pass that is part of the scenario.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// files has every data directory checked, after a stop that was asked for: each file that is referenced is
// there and whole, and there is no table that nothing refers to.
func (r *run) files() (bad []check.Violation) {
	for _, n := range r.cluster.Nodes() {
		out, err := exec.Command(filepath.Join(r.bin, "storage-node"), "check", n.DataDir()).CombinedOutput()
		if err != nil || strings.Contains(string(out), "nothing refers to") {
			bad = append(bad, check.Violation{Rule: "data directory is damaged", Key: n.Name(), Text: fmt.Sprintf("%v: %s", err, out)})
		}
	}
	return bad
}

// growth compares what the processes hold with what they held, until it is no more or for half a minute.
func (r *run) growth(ctx context.Context, nodes []cluster.Node, before map[string]check.Usage) []check.Violation {
	var bad []check.Violation
	for deadline := time.Now().Add(30 * time.Second); ; wait(ctx, time.Second) {
		after, err := usage(ctx, nodes)
		if err != nil {
			bad = failed(check.Grown, err)
		} else if bad = check.Growth(before, after, check.Limits); len(bad) == 0 {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return bad
		}
	}
}
