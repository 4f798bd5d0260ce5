package jobs

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
)

// inventions have right checksums, bounds and counts: only who merges the inputs as well can tell.
var inventions = []lie{
	{"another value", codeContent, func(a *attempt) Report {
		left, right := a.split()
		right[0].value += "!"
		a.write(1, left)
		a.write(2, right)
		return a.report()
	}},
	{"a key eaten, counted as shadowed", codeContent, func(a *attempt) Report {
		left, right := a.split()
		a.write(1, left)
		a.write(2, append(right[:1:1], right[2:]...))
		return a.report()
	}},
	{"a key changed", codeContent, func(a *attempt) Report {
		left, right := a.split()
		left[1].key += "x"
		a.write(1, left)
		a.write(2, right)
		return a.report()
	}},
	{"a sequence changed, within the limits", codeContent, func(a *attempt) Report {
		left, right := a.split()
		right[1].seq = right[0].seq
		a.write(1, left)
		a.write(2, right)
		return a.report()
	}},
	{"counted as joined what was shadowed", codeContent, func(a *attempt) Report {
		r := a.honest(2)
		r.Stats.Joined, r.Stats.Shadowed = r.Stats.Shadowed, 0
		return r
	}},
	{"everything collected", codeContent, func(a *attempt) Report {
		_, in := merged(a.t, a.fs, a.dir, a.l.Job)
		r := a.report()
		r.Stats.EntriesIn, r.Stats.Shadowed, r.Stats.Collected = in, 0, in
		return r
	}},
}

func TestInventedResultsAreRejectedByAnAudit(t *testing.T) {
	// A compactor with a bug of its own writes tables without a flaw that hold something else.
	for _, l := range inventions {
		t.Run(l.name, func(t *testing.T) {
			inBubble(t, func(o *Options) { o.AuditProbability = 1 }, func(f *fixture) { requireRejected(f, l) })
		})
	}
}

func TestOnceCaughtAlwaysAudited(t *testing.T) {
	inBubble(t, nil, func(f *fixture) {
		f.b.caught = true
		requireRejected(f, inventions[0])
	})
	// By itself it stays: the first invention that is seen has all later merges done again.
	inBubble(t, func(o *Options) { o.AuditProbability = 1 }, func(f *fixture) {
		requireRejected(f, inventions[0])
		f.b.o.AuditProbability = 0
		requireRejected(f, inventions[1])
	})
	// Nobody is audited without a reason, if the node is told so.
	inBubble(t, nil, func(f *fixture) {
		f.offer(f.e.somePlan("k"))
		l := f.lease(someWorker("liar"))
		require.Equal(f, Installed, f.complete(l.Key, inventions[0].tell(f.attempt(l))).Outcome)
	})
}

// countingDrops counts the pages of outputs that are given up.
type countingDrops struct {
	vfs.FS
	drops *atomic.Int64
}

type droppable struct {
	vfs.File
	drops *atomic.Int64
}

func (d droppable) DontNeed(off, n int64) { d.drops.Add(1) }

func (c countingDrops) Open(name string) (vfs.File, error) {
	f, err := c.FS.Open(name)
	if err == nil && strings.Contains(name, compact.StagingDir) {
		f = droppable{f, c.drops}
	}
	return f, err
}

func (c countingDrops) OpenForeign(name string, seal bool) (vfs.File, error) {
	f, err := c.FS.OpenForeign(name, seal)
	if err == nil {
		f = droppable{f, c.drops}
	}
	return f, err
}

func TestWhatIsVerifiedStaysInThePageCache(t *testing.T) {
	// A merge replaces tables that clients read: if its outputs were cold, all of them would wait for the disk.
	var drops atomic.Int64
	inBubble(t, func(o *Options) { o.AuditProbability, o.FS = 1, countingDrops{o.FS, &drops} }, func(f *fixture) {
		f.offer(f.e.somePlan("k"))
		require.Equal(f, Installed, f.finish(f.lease(someWorker("w"))).Outcome)
	})
	require.Zero(t, drops.Load())
}
