package jobs

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
)

// recordPlan is somePlan with values that a real merge can read.
func recordPlan(e *testEngine, prefix string, n int) *Plan {
	value := func(s string) string {
		r := causal.Record{Siblings: []causal.Sibling{{
			Clock: causal.Clock{{Node: "n", Counter: 1}}, Value: []byte(strings.Repeat(s, 100)), Timestamp: 1 << 16,
		}}}
		return string(r.Encode(nil))
	}
	var a, b []entry
	for i := range n {
		key := fmt.Sprintf("%s%06d", prefix, i)
		a = append(a, entry{key, 100, value("old")})
		if i%2 == 0 {
			b = append(b, entry{key, 200, value("new")})
		}
	}
	return e.plan(e.table(b...), e.table(a...))
}

func modeAuto(o *Options) { o.Mode = ModeAuto }

func TestLocalExecutorWaitsForThirtySecondsWithoutWorkers(t *testing.T) {
	// Too early, and the node merges in its own heap although a worker is about to come; never, and
	// a pod without compactor stops.
	inBubble(t, modeAuto, func(f *fixture) {
		p := recordPlan(f.e, "k", 100)
		id := f.offer(p)
		time.Sleep(29 * time.Second)
		require.Equal(f, StateQueued, f.job(id).State)
		require.False(f, f.e.saw(EventWorkersGone))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		f.requireOver(id, StateInstalled)
		require.True(f, f.e.saw(EventWorkersGone))
		totals := f.b.Status().Totals
		require.Equal(f, uint64(1), totals.InstalledLocal)
		require.Zero(f, totals.InstalledExternal)
		require.Equal(f, uint64(1), totals.WorkersGone)
		require.NotZero(f, totals.BytesOutLocal)
		verifyTree(f.T, f.fs, f.e)

		// A worker is back: the next job is its own.
		w := someWorker("w")
		poll := make(chan Lease, 1)
		go func() { poll <- f.lease(w) }()
		synctest.Wait()
		require.True(f, f.e.saw(EventWorkersBack))
		f.offer(recordPlan(f.e, "m", 100))
		l := <-poll
		require.Equal(f, Installed, f.finish(l).Outcome)
		require.Equal(f, uint64(1), f.b.Status().Totals.InstalledExternal)
	})
}

func TestWorkerThatIsBusyIsNotAbsent(t *testing.T) {
	// All slots of the one worker are taken: it does not poll, but it is there.
	inBubble(t, modeAuto, func(f *fixture) {
		first := f.offer(recordPlan(f.e, "a", 10))
		l := f.lease(someWorker("w"))
		second := f.offer(recordPlan(f.e, "b", 10))
		for i := range 20 {
			time.Sleep(5 * time.Second)
			require.False(f, f.b.Heartbeat(l.Key, int64(i)+1).Stop)
		}
		require.Equal(f, StateLeased, f.job(first).State)
		require.Equal(f, StateQueued, f.job(second).State)
		require.Equal(f, 1, f.b.Status().ExternalWorkers)
	})
}

func TestLocalExecutorJoinsUnderPressure(t *testing.T) {
	inBubble(t, func(o *Options) { modeAuto(o); o.Formats = []uint32{1, 99} }, func(f *fixture) {
		poll := make(chan struct{})
		w := someWorker("w")
		w.Formats = []uint32{99} // is there, and can't help
		go func() {
			defer close(poll)
			for range 3 {
				_, _ = f.b.Lease(ctxb, w)
			}
		}()
		id := f.offer(recordPlan(f.e, "k", 100))
		time.Sleep(40 * time.Second)
		require.Equal(f, StateQueued, f.job(id).State)
		f.b.SetUrgent(true)
		synctest.Wait()
		f.requireOver(id, StateInstalled)
		f.b.SetUrgent(false)
		<-poll
	})
}

// Danger: a compactor of another release polls for ever, counts as present, and nothing is merged.
func TestWorkerWithoutACommonFormatIsRefusedAndReplaced(t *testing.T) {
	inBubble(t, modeAuto, func(f *fixture) {
		w := someWorker("newer")
		w.Formats = []uint32{2}
		id := f.offer(recordPlan(f.e, "k", 100))
		for range 60 { // a minute of restarts
			_, err := f.b.Lease(ctxb, w)
			require.ErrorIs(f, err, ErrInvalidWorker)
			require.ErrorContains(f, err, "it knows the table formats [2], this node [1]")
			time.Sleep(time.Second)
		}
		require.Zero(f, f.b.Status().ExternalWorkers)
		f.requireOver(id, StateInstalled)
	})
}

func TestModesNeverAndAlways(t *testing.T) {
	// "never" hides nothing: with no worker nothing is merged, for however long.
	inBubble(t, nil, func(f *fixture) {
		id := f.offer(recordPlan(f.e, "k", 10))
		f.b.SetUrgent(true)
		time.Sleep(time.Hour)
		require.Equal(f, StateQueued, f.job(id).State)
	})
	inBubble(t, func(o *Options) { o.Mode = ModeAlways }, func(f *fixture) {
		id := f.offer(recordPlan(f.e, "k", 10))
		synctest.Wait()
		f.requireOver(id, StateInstalled)
	})
	for text, want := range map[string]Mode{"auto": ModeAuto, "never": ModeNever, "always": ModeAlways} {
		m, err := ParseMode(text)
		require.NoError(t, err)
		require.Equal(t, want, m)
	}
	_, err := ParseMode("sometimes")
	require.Error(t, err)
}

func TestLocalExecutorIsThrottled(t *testing.T) {
	// A merge at full speed in the node's own process takes the disk away from reads.
	inBubble(t, func(o *Options) { o.Mode = ModeAlways; o.LocalRate = 64 << 10 }, func(f *fixture) {
		start := time.Now()
		p := recordPlan(f.e, "k", 20_000)
		bytes := p.Job.Inputs[0].Size + p.Job.Inputs[1].Size
		id := f.offer(p)
		for {
			if _, _, over := f.e.state(id); over {
				break
			}
			time.Sleep(time.Second)
		}
		f.requireOver(id, StateInstalled)
		require.GreaterOrEqual(f, time.Since(start), time.Duration(bytes)*time.Second/(64<<10))
		require.Zero(f, f.b.Status().Totals.Stalled)
	})
}

func TestLocalExecutorGivesItsJobBackAtShutdown(t *testing.T) {
	inBubble(t, func(o *Options) { o.Mode = ModeAlways; o.LocalRate = 1 << 10 }, func(f *fixture) {
		id := f.offer(recordPlan(f.e, "k", 2000))
		time.Sleep(10 * time.Second)
		require.Equal(f, StateLeased, f.job(id).State)
		start := time.Now()
		require.NoError(f, f.b.Close())
		require.Zero(f, time.Since(start))
		f.requireOver(id, StateCancelled)
	})
}

func TestLocalExecutorObeysTheEndOfItsLease(t *testing.T) {
	// It is a worker as any other: a cancelled job stops it.
	inBubble(t, func(o *Options) { o.Mode = ModeAlways; o.LocalRate = 1 << 10 }, func(f *fixture) {
		slow := f.offer(recordPlan(f.e, "k", 2000))
		time.Sleep(10 * time.Second)
		f.b.Cancel(func(*Plan) bool { return true }, "dropped")
		f.requireOver(slow, StateCancelled)
		next := f.offer(recordPlan(f.e, "m", 2))
		time.Sleep(11 * time.Second) // two heartbeats
		f.requireOver(next, StateInstalled)
	})
}

func TestLocalExecutorReportsDamagedInputs(t *testing.T) {
	inBubble(t, func(o *Options) { o.Mode = ModeAlways }, func(f *fixture) {
		p := recordPlan(f.e, "k", 200)
		f.corrupt(p.Job.Inputs[0].Num)
		id := f.offer(p)
		synctest.Wait()
		f.requireOver(id, StateQuarantined)
		require.Len(f, f.e.quarantined, 1)
		require.Equal(f, p.Job.Inputs[0].Num, f.e.quarantined[0].Num)
	})
}

func TestLocalExecutorSurvivesAFullDisk(t *testing.T) {
	inBubble(t, func(o *Options) { o.Mode = ModeAlways }, func(f *fixture) {
		f.fs.SetUsage(vfs.Usage{TotalBytes: 1 << 30})
		id := f.offer(recordPlan(f.e, "k", 200))
		time.Sleep(time.Hour)
		require.Equal(f, StateQueued, f.job(id).State)
		require.Zero(f, f.job(id).Attempts)
		f.fs.SetUsage(vfs.Usage{TotalBytes: 1 << 30, FreeBytes: 1 << 30})
		time.Sleep(2 * time.Minute)
		f.requireOver(id, StateInstalled)
	})
}

// scrubs is a ScrubSource over a testEngine's tables.
type scrubs struct {
	e    *testEngine
	pins map[uint64]int
}

func (s *scrubs) next(after uint64) (compact.Input, func(), bool) {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	var best, first uint64
	for num := range s.e.tables {
		if num > after && (best == 0 || num < best) {
			best = num
		}
		if first == 0 || num < first {
			first = num
		}
	}
	if best == 0 {
		best = first
	}
	if best == 0 {
		return compact.Input{}, nil, false
	}
	m := s.e.tables[best]
	s.pins[best]++
	return compact.Input{Num: best, Size: int64(m.Size), Digest: m.Digest, Smallest: m.Smallest, Largest: m.Largest},
		func() {
			s.e.mu.Lock()
			defer s.e.mu.Unlock()
			s.pins[best]--
		}, true
}

func withScrubs(s *scrubs) func(*Options) {
	return func(o *Options) {
		s.e, s.pins = o.Installer.(*testEngine), map[uint64]int{}
		o.Scrub = s.next
	}
}

// scrub waits for the next scrub of a worker.
func (f *fixture) scrub() Lease {
	f.Helper()
	for range 10 {
		ls, err := f.b.Lease(ctxb, someWorker("w"))
		require.NoError(f, err)
		if len(ls) == 1 {
			require.Equal(f, compact.Scrub, ls[0].Job.Kind)
			return ls[0]
		}
	}
	require.FailNow(f, "no scrub")
	return Lease{}
}

func TestIdleWorkersScrubTableAfterTable(t *testing.T) {
	// Damage that nobody reads is found when the other copies are gone, too.
	s := &scrubs{}
	inBubble(t, withScrubs(s), func(f *fixture) {
		p := f.e.somePlan("k")
		f.e.table(entry{"z", 1, "x"})
		var seen []uint64
		start := time.Now()
		for range 4 {
			l := f.scrub()
			require.Equal(f, int64(8<<20), l.Job.MaxBytesPerSecond)
			seen = append(seen, l.Job.Inputs[0].Num)
			require.True(f, f.b.Holds(l.Job.Inputs[0].Num))
			require.Equal(f, Installed, f.complete(l.Key, Report{}).Outcome)
			require.Equal(f, AlreadyInstalled, f.complete(l.Key, Report{}).Outcome)
		}
		require.Equal(f, []uint64{1, 2, 3, 1}, seen)
		require.InDelta(f, 4*time.Minute, time.Since(start), float64(4*time.Second))
		require.Equal(f, uint64(4), f.b.Status().Totals.Scrubbed)

		// A merge goes first, and takes a table away from a scrub.
		l := f.scrub()
		require.Equal(f, uint64(2), l.Job.Inputs[0].Num)
		f.offer(p)
		require.True(f, f.b.Heartbeat(l.Key, 1).Stop)
		time.Sleep(2 * time.Minute)
		require.Equal(f, compact.Merge, f.lease(someWorker("w")).Job.Kind)
		for _, pins := range s.pins {
			require.Zero(f, pins)
		}
	})
}

func TestScrubFindsDamageThatTheNodeConfirms(t *testing.T) {
	s := &scrubs{}
	inBubble(t, withScrubs(s), func(f *fixture) {
		f.e.somePlan("k")
		l := f.scrub()
		claim := []compact.CorruptInput{{Num: l.Job.Inputs[0].Num, Reason: "flipped"}}
		require.Equal(f, Rejected, f.complete(l.Key, Report{Corrupt: claim}).Outcome)
		require.Empty(f, f.e.quarantined)

		l = f.scrub()
		f.corrupt(l.Job.Inputs[0].Num)
		claim[0].Num = l.Job.Inputs[0].Num
		require.Equal(f, Installed, f.complete(l.Key, Report{Corrupt: claim}).Outcome)
		require.Len(f, f.e.quarantined, 1)
		require.Equal(f, uint64(1), f.b.Status().Totals.CorruptTables)

		l = f.scrub() // dies
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Empty(f, f.b.Status().Jobs, "a scrub is not tried again: its turn comes")
		for _, pins := range s.pins {
			require.Zero(f, pins)
		}
	})
}
