package crash

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/bare"
	"github.com/pairdb/pairdb/integration/journal"
	"github.com/pairdb/pairdb/integration/podtest"
)

const (
	writer = "w"
	// lifeSteps are a life with six flushes, two merges, a snapshot and some new log segments;
	// beforeSteps have left something to recover; afterSteps flush and merge what was recovered.
	lifeSteps, beforeSteps, afterSteps = 72, 50, 36
	// A life takes less than a second; this is for a machine that does other things.
	lifeLimit = time.Minute
)

// long is set for the long form.
var long = os.Getenv("PAIRDB_LONG") != ""

// run is the life of one node in a directory of its own.
type run struct {
	*testing.T
	pod   bare.Pod
	log   *podtest.Log
	acked []bool
	// faulty: steps may fail and the node go on.
	faulty bool
	// told are the errors that the client got, exit the exit code of what was traced.
	told []error
	exit int
}

// newRun begins with an empty directory, or with a copy of the volume of another run.
func newRun(t *testing.T, from *run, env ...string) *run {
	t.Helper()
	dir, err := os.MkdirTemp("", "pod") // t.TempDir can be longer than the address of a unix socket
	require.NoError(t, err)
	log := &podtest.Log{}
	r := &run{T: t, log: log, pod: bare.Pod{Binaries: podtest.Binaries(t), Dir: dir, Env: env, Log: log}}
	t.Cleanup(func() {
		if !t.Failed() {
			require.NoError(t, os.RemoveAll(dir))
			return
		}
		text := log.String()
		t.Logf("the directory stays: %s\n%s", dir, text[max(0, len(text)-8<<10):])
	})
	if from != nil {
		require.NoError(t, os.CopyFS(r.pod.Data(), os.DirFS(from.pod.Data())))
		r.acked = slices.Clone(from.acked)
	}
	return r
}

func (r *run) tracer(injection string) tracer {
	return tracer{filepath.Join(r.pod.Dir, "trace"), injection}
}

// node starts a node that ends with the test.
func (r *run) node(under ...string) *bare.Process {
	r.Helper()
	p, err := r.pod.Node(under...)
	require.NoError(r, err)
	r.Cleanup(p.Kill)
	return p
}

func (r *run) compactor(under ...string) *bare.Process {
	r.Helper()
	p, err := r.pod.Compactor(under...)
	require.NoError(r, err)
	r.Cleanup(p.Kill)
	return p
}

// steps does steps up to number end, or until a process ends, and reports whether all were done.
// Whatever fails must come from that end, unless the run is faulty.
func (r *run) steps(node, mortal *bare.Process, end int) bool {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), lifeLimit)
	defer cancel()
	stopped := make(chan struct{})
	defer func() { cancel(); <-stopped }()
	go func() {
		defer close(stopped)
		select {
		case <-mortal.Ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	died := func(err error) bool {
		r.told = append(r.told, err)
		wait := 10 * time.Second
		if r.faulty {
			wait = 300 * time.Millisecond // a poisoned node ends by itself; another one goes on
		}
		select {
		case <-mortal.Ended:
			return true
		case <-time.After(wait):
			require.True(r, r.faulty, "an error, and nobody has died: %v", err)
			return false
		}
	}
	c, err := r.pod.Serving(ctx, node)
	if err != nil {
		require.True(r, died(err), "%v", err)
		return false
	}
	defer func() { require.NoError(r, c.Close()) }()
	for n := len(r.acked); n < end; n++ {
		err := journal.Write(ctx, c, writer, n)
		if err != nil && died(err) {
			return false
		}
		r.acked = append(r.acked, err == nil)
		if err := journal.Upkeep(ctx, c, writer, n); err != nil && died(err) {
			return false
		}
	}
	return true
}

// end has a process end as Kubernetes does.
func (r *run) end(p *bare.Process) {
	r.Helper()
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.Ended:
	case <-time.After(lifeLimit):
		require.Fail(r, "a process does not end")
	}
	r.exit = p.ExitCode()
}

// check compares what the node has with what was acknowledged.
func (r *run) check(node *bare.Process) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), lifeLimit)
	defer cancel()
	c, err := r.pod.Serving(ctx, node)
	require.NoError(r, err, "it must open again")
	require.NoError(r, journal.Check(ctx, c, writer, r.acked))
	require.NoError(r, c.Close())
}

// requireKept opens what is left, compares it, goes on with it and kills it once more.
func (r *run) requireKept(withCompactor bool) {
	r.Helper()
	r.verify()
	node := r.node()
	r.check(node)
	r.acked, r.faulty = append(r.acked, false), false // the step that was under way
	if withCompactor {
		compactor := r.compactor()
		defer compactor.Kill()
	}
	require.True(r, r.steps(node, node, len(r.acked)+afterSteps))
	r.check(node)
	node.Kill()
	r.verify()
}

// verify runs the node's own check, once there is something to check: a directory that is being made has
// no FORMAT yet, and the next start makes it.
func (r *run) verify() {
	r.Helper()
	if _, err := os.Stat(filepath.Join(r.pod.Data(), "FORMAT")); os.IsNotExist(err) {
		require.Empty(r, r.acked, "a node served from a directory that is not complete")
		return
	}
	require.NoError(r, r.pod.Verify(r.Context()))
}

// scene is a life with a process that is traced.
type scene struct {
	name string
	// play lives that life under a tracer, and leaves no process.
	play func(t *testing.T, injection string) *run
	// compactor: what is left is merged by one.
	compactor bool
}

// faulty injections let the process live.
func faulty(injection string) bool {
	return injection != "" && !strings.Contains(injection, ":signal=KILL:")
}

func scenes(t *testing.T) []scene {
	before := newRun(t, nil, "PAIRDB_COMPACTION_LOCAL=always")
	node := before.node()
	require.True(t, before.steps(node, node, beforeSteps))
	node.Kill()
	life := func(r *run, injection string, end int) *run {
		r.faulty = faulty(injection)
		node := r.node(r.tracer(injection).command()...)
		r.steps(node, node, end)
		r.end(node)
		return r
	}
	return []scene{
		{name: "a new node", play: func(t *testing.T, injection string) *run {
			return life(newRun(t, nil, "PAIRDB_COMPACTION_LOCAL=always"), injection, lifeSteps)
		}},
		{name: "a node that recovers", play: func(t *testing.T, injection string) *run {
			r := newRun(t, before, "PAIRDB_COMPACTION_LOCAL=always")
			r.acked = append(r.acked, false)
			return life(r, injection, beforeSteps+13)
		}},
		{name: "a compactor", compactor: true, play: func(t *testing.T, injection string) *run {
			local := "never"
			if faulty(injection) {
				local = "auto" // a job that fails three times is the node's then
			}
			r := newRun(t, nil, "PAIRDB_COMPACTION_LOCAL="+local)
			r.faulty = faulty(injection)
			node := r.node()
			compactor := r.compactor(r.tracer(injection).command()...)
			r.steps(node, compactor, lifeSteps)
			r.end(compactor)
			r.check(node)
			node.Kill()
			return r
		}},
	}
}

// where returns the call at a point of a trace; ok is false if the run did not come there.
func where(calls []call, p point) (c call, ok bool) {
	count := map[string]int{}
	for _, c := range calls {
		if c.name == p.name {
			if count[c.thread]++; count[c.thread] == p.n {
				return c, true
			}
		}
	}
	return call{}, false
}

// matters reports whether a call changes the volume, or says something to somebody.
func (r *run) matters(c call) bool {
	if c.name == "openat" && !strings.Contains(c.text, "O_CREAT") {
		return false
	}
	return strings.Contains(c.text, r.pod.Data()) || strings.Contains(c.text, "<socket:") || strings.Contains(c.text, "<UNIX")
}

// chosen is every point in the long form; otherwise about count of them, as many of each name.
func chosen(all []point, count int) []point {
	if long {
		return all
	}
	byName := map[string][]point{}
	for _, p := range all {
		byName[p.name] = append(byName[p.name], p)
	}
	each := max(count/len(byName), 1)
	var some []point
	for _, of := range byName {
		some = append(some, spread(of, each)...)
	}
	return some
}

// spread takes at most count points, from all parts of a row.
func spread(row []point, count int) []point {
	count = min(count, len(row))
	some := make([]point, count)
	for i := range some {
		some[i] = row[(2*i+1)*len(row)/(2*count)]
	}
	return some
}

func TestProcessesKilledAtAnySystemCallLoseNothing(t *testing.T) {
	// Not a model of the process and not a simulated disk: the binary that is shipped dies between two
	// system calls. What it had answered must be there, what it had deleted must stay away, and the next
	// process must go on with it. (The kernel keeps what was written: power cuts are integration/power.)
	requireStrace(t)
	short := map[string]int{"a new node": 24, "a node that recovers": 13, "a compactor": 10}
	killed, wrote := 0, 0
	for _, s := range scenes(t) {
		t.Run(s.name, func(t *testing.T) {
			rehearsal := s.play(t, "")
			require.Empty(t, rehearsal.told)
			rehearsal.requireKept(s.compactor)
			reached := points(rehearsal.tracer("").calls(t))
			kinds := map[string]int{}
			for _, p := range chosen(reached, short[s.name]) {
				t.Run(fmt.Sprintf("%s %d", p.name, p.n), func(t *testing.T) {
					r := s.play(t, fmt.Sprintf("%s:signal=KILL:when=%d", p.name, p.n))
					if c, ok := where(r.tracer("").calls(t), p); ok {
						killed++
						if kinds[p.name]++; r.matters(c) {
							wrote++
						}
					}
					r.requireKept(s.compactor)
				})
			}
			t.Logf("killed before %v", kinds)
		})
	}
	t.Logf("%d kills, %d of them before a call that changes the volume or answers somebody", killed, wrote)
	least := 30
	if long {
		least = 300
	}
	require.GreaterOrEqual(t, killed, least)
	require.GreaterOrEqual(t, wrote, least/3)
}
