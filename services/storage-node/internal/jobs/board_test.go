package jobs

import (
	"context"
	"fmt"
	"path"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
)

func TestJobIsInstalledOnceByAnHonestWorker(t *testing.T) {
	// The way that everything else deviates from.
	inBubble(t, nil, func(f *fixture) {
		p := f.e.somePlan("k")
		id := f.offer(p)
		require.True(f, f.b.Holds(p.Job.Inputs[0].Num))
		l := f.lease(someWorker("w"))
		require.Equal(f, Key{f.b.Session(), id, 1}, l.Key)
		names, err := f.fs.List(path.Dir(f.attempt(l).path(1)))
		require.NoError(f, err)
		require.Equal(f, []string{"0001.sst", "0002.sst", "0003.sst", "0004.sst"}, names)
		require.Equal(f, uint64(p.Job.Inputs[0].Size+p.Job.Inputs[1].Size)*11/10, f.b.Status().ReservedBytes)

		require.Equal(f, Direction{}, f.b.Heartbeat(l.Key, 10))
		require.Equal(f, int64(10), f.job(id).DoneBytes)
		require.Equal(f, Verdict{Outcome: Installed}, f.complete(l.Key, f.attempt(l).honest(3)))
		f.requireOver(id, StateInstalled)
		require.Len(f, f.e.tables, 3)
		require.False(f, f.b.Holds(p.Job.Inputs[0].Num))
		totals := f.b.Status().Totals
		require.Equal(f, uint64(1), totals.InstalledExternal)
		require.Zero(f, totals.InstalledLocal)
	})
}

func TestOfferRefusesPlansThatCannotBeJobs(t *testing.T) {
	// A bad plan must not wait in the queue until a worker fails on it.
	inBubble(t, func(o *Options) { o.MaxQueued = 1; o.MaxInputBytes = 1 << 20 }, func(f *fixture) {
		good := f.e.somePlan("a")
		for name, change := range map[string]func(p *Plan){
			"no inputs":   func(p *Plan) { p.Job.Inputs = nil },
			"twice":       func(p *Plan) { p.Job.Inputs[1] = p.Job.Inputs[0] },
			"empty table": func(p *Plan) { p.Job.Inputs[0].Size = 0 },
			"too large":   func(p *Plan) { p.Job.Inputs[0].Size = 1 << 20 },
			"sequences":   func(p *Plan) { p.MinSeq = p.MaxSeq + 1 },
			"a scrub":     func(p *Plan) { p.Job.Kind = compact.Scrub },
		} {
			p := *good
			p.Job.Inputs = append([]compact.Input(nil), good.Job.Inputs...)
			change(&p)
			_, err := f.b.Offer(&p)
			require.ErrorIs(f, err, ErrInvalidPlan, name)
		}
		f.offer(good)
		_, err := f.b.Offer(f.e.somePlan("b"))
		require.ErrorIs(f, err, ErrQueueFull)
		require.Equal(f, 1, f.b.Cancel(func(*Plan) bool { return true }, "test"))
		f.offer(f.e.plan(good.Job.Inputs...))
	})
}

func TestTableIsInOneJobOnly(t *testing.T) {
	// Two workers on one input would each install an edit that deletes it.
	inBubble(t, nil, func(f *fixture) {
		a := f.e.somePlan("a")
		f.offer(a)
		_, err := f.b.Offer(f.e.plan(a.Job.Inputs[1]))
		require.ErrorIs(f, err, ErrBusy)
	})
}

func TestLeaseExpiresAndTheLateWorkerIsFenced(t *testing.T) {
	// A worker that died must not hold its tables, one that comes back must not install them twice.
	inBubble(t, nil, func(f *fixture) {
		id := f.offer(f.e.somePlan("k"))
		old := f.lease(someWorker("slow"))
		late := f.attempt(old).honest(1)
		time.Sleep(14 * time.Second)
		require.Equal(f, StateLeased, f.job(id).State)
		time.Sleep(time.Second)
		require.Equal(f, Fenced, f.complete(old.Key, late).Outcome)
		require.True(f, f.b.Heartbeat(old.Key, 1).Stop)
		require.Equal(f, StateQueued, f.job(id).State)

		l := f.lease(someWorker("new"))
		require.Equal(f, uint32(2), l.Key.Epoch)
		require.Equal(f, Fenced, f.complete(old.Key, late).Outcome)
		require.Equal(f, Installed, f.finish(l).Outcome)
		require.Equal(f, Fenced, f.complete(old.Key, late).Outcome)
		require.Equal(f, uint64(1), f.b.Status().Totals.Expired)
	})
}

func TestSweeperExpiresWhenNobodyCalls(t *testing.T) {
	// The only worker died: nobody's call would notice.
	inBubble(t, nil, func(f *fixture) {
		id := f.offer(f.e.somePlan("k"))
		f.lease(someWorker("dead"))
		time.Sleep(15*time.Second + sweepInterval)
		synctest.Wait()
		require.Equal(f, StateQueued, f.job(id).State)
		require.True(f, f.e.saw(EventExpired))
	})
}

func TestHeartbeatKeepsALeaseButNotAStalledOne(t *testing.T) {
	// A worker whose merge hangs heartbeats for ever; only bytes count as life.
	inBubble(t, nil, func(f *fixture) {
		id := f.offer(f.e.somePlan("k"))
		l := f.lease(someWorker("hung"))
		for i := range 11 {
			time.Sleep(5 * time.Second)
			require.False(f, f.b.Heartbeat(l.Key, 7).Stop, "after %d s", 5*(i+1))
		}
		time.Sleep(5 * time.Second) // progress was noted with the first heartbeat
		require.False(f, f.b.Heartbeat(l.Key, 7).Stop)
		time.Sleep(5 * time.Second)
		require.True(f, f.b.Heartbeat(l.Key, 7).Stop)
		require.Equal(f, uint64(1), f.b.Status().Totals.Stalled)
		require.Contains(f, f.job(id).LastFailure, "no progress")
	})
}

func TestProgressBeyondTheInputsIsNoProgress(t *testing.T) {
	// A liar could keep a job for ever by counting up.
	inBubble(t, nil, func(f *fixture) {
		f.offer(f.e.somePlan("k"))
		l := f.lease(someWorker("liar"))
		stopped := time.Duration(0)
		for done := int64(1); stopped < 2*time.Minute; done *= 1000 {
			time.Sleep(5 * time.Second)
			stopped += 5 * time.Second
			if f.b.Heartbeat(l.Key, max(done, 1<<40)).Stop {
				break
			}
		}
		require.Less(f, stopped, 2*time.Minute)
	})
	inBubble(t, nil, func(f *fixture) {
		f.offer(f.e.somePlan("k"))
		l := f.lease(someWorker("liar"))
		elapsed := time.Duration(0)
		for done := int64(1); !f.b.Heartbeat(l.Key, done).Stop; done++ {
			time.Sleep(5 * time.Second)
			elapsed += 5 * time.Second
		}
		require.LessOrEqual(f, elapsed, time.Hour)
	})
}

func TestKeysOfNobodyAreFenced(t *testing.T) {
	// A guessed or garbled key must change nothing.
	inBubble(t, nil, func(f *fixture) {
		id := f.offer(f.e.somePlan("k"))
		l := f.lease(someWorker("w"))
		r := f.attempt(l).honest(1)
		for _, k := range []Key{
			{}, {l.Key.Session + 1, l.Key.ID, l.Key.Epoch}, {l.Key.Session, l.Key.ID + 1, l.Key.Epoch},
			{l.Key.Session, l.Key.ID, l.Key.Epoch + 1}, {l.Key.Session, l.Key.ID, 0},
		} {
			require.Equal(f, Fenced, f.complete(k, r).Outcome, "%+v", k)
			require.True(f, f.b.Heartbeat(k, 0).Stop, "%+v", k)
			f.b.Abandon(k, AbandonIOError, "", nil)
		}
		require.Equal(f, StateLeased, f.job(id).State)
		require.Equal(f, Installed, f.complete(l.Key, r).Outcome)
	})
}

func TestRepeatedCompleteIsAlreadyInstalled(t *testing.T) {
	// The answer to the first report got lost: the worker must learn that it is done, not do it again.
	inBubble(t, nil, func(f *fixture) {
		f.offer(f.e.somePlan("k"))
		l := f.lease(someWorker("w"))
		r := f.attempt(l).honest(2)
		require.Equal(f, Installed, f.complete(l.Key, r).Outcome)
		for range 3 {
			require.Equal(f, AlreadyInstalled, f.complete(l.Key, r).Outcome)
		}
		require.Len(f, f.e.tables, 2)
	})
}

func TestJobBeingVerifiedCannotExpireAndAnswersRepetitions(t *testing.T) {
	// An installation of more than a lease would be done by two epochs.
	inBubble(t, nil, func(f *fixture) {
		release := make(chan struct{})
		f.e.beforeMove = func(*Plan) error { <-release; return nil }
		id := f.offer(f.e.somePlan("k"))
		l := f.lease(someWorker("w"))
		r := f.attempt(l).honest(1)
		first, second := make(chan Verdict, 1), make(chan Verdict, 1)
		go func() { v, _ := f.b.Complete(ctxb, l.Key, r); first <- v }()
		synctest.Wait()
		// The first caller's connection breaks, the report is repeated.
		ctx, cancel := context.WithCancel(ctxb)
		cancel()
		_, err := f.b.Complete(ctx, l.Key, r)
		require.ErrorIs(f, err, context.Canceled)
		go func() { v, _ := f.b.Complete(ctxb, l.Key, r); second <- v }()
		time.Sleep(10 * time.Minute)
		require.Equal(f, StateVerifying, f.job(id).State)
		require.False(f, f.b.Heartbeat(l.Key, 0).Stop)
		close(release)
		require.Equal(f, Installed, (<-first).Outcome)
		require.Equal(f, AlreadyInstalled, (<-second).Outcome)
	})
}

func TestLongPollWaitsForWorkAndEnds(t *testing.T) {
	// A poll that misses an offer wastes 20 s; one that never ends leaks.
	inBubble(t, nil, func(f *fixture) {
		start := time.Now()
		ls, err := f.b.Lease(ctxb, someWorker("w"))
		require.NoError(f, err)
		require.Empty(f, ls)
		require.Equal(f, 20*time.Second, time.Since(start))

		got := make(chan Lease, 1)
		go func() { got <- f.lease(someWorker("w")) }()
		synctest.Wait()
		require.True(f, f.b.Status().Workers[0].Polling)
		start = time.Now()
		f.offer(f.e.somePlan("k"))
		<-got
		require.Zero(f, time.Since(start))

		ctx, cancel := context.WithCancel(ctxb)
		go cancel()
		_, err = f.b.Lease(ctx, someWorker("x"))
		require.ErrorIs(f, err, context.Canceled)
	})
}

func TestWorkersOutOfLimitsAreRefused(t *testing.T) {
	// What a worker says of itself ends in logs, labels and loops.
	inBubble(t, nil, func(f *fixture) {
		for name, change := range map[string]func(w *Worker){
			"no name":      func(w *Worker) { w.Name = "" },
			"long name":    func(w *Worker) { w.Name = string(make([]byte, 129)) },
			"control":      func(w *Worker) { w.Name = "a\nb" },
			"not UTF-8":    func(w *Worker) { w.Name = "\xff" },
			"no slots":     func(w *Worker) { w.FreeSlots = 0 },
			"more free":    func(w *Worker) { w.FreeSlots = 2 },
			"many slots":   func(w *Worker) { w.FreeSlots, w.TotalSlots = 257, 257 },
			"no formats":   func(w *Worker) { w.Formats = nil },
			"many formats": func(w *Worker) { w.Formats = make([]uint32, 65) },
		} {
			w := someWorker("w")
			change(&w)
			_, err := f.b.Lease(ctxb, w)
			require.ErrorIs(f, err, ErrInvalidWorker, name)
		}
		for i := range maxWorkers + 10 { // names are not a way to fill the memory
			ctx, cancel := context.WithCancel(ctxb)
			cancel()
			_, err := f.b.Lease(ctx, someWorker(fmt.Sprint("w", i)))
			require.ErrorIs(f, err, context.Canceled)
		}
		require.LessOrEqual(f, len(f.b.Status().Workers), maxWorkers)
	})
}

func TestHighestPriorityFirstAndFormatsAreRespected(t *testing.T) {
	inBubble(t, nil, func(f *fixture) {
		low, high, first := f.e.somePlan("a"), f.e.somePlan("b"), f.e.somePlan("c")
		high.Priority, first.Priority = 2, 2
		foreign := f.e.somePlan("d")
		foreign.Priority, foreign.Job.Table.Format = 9, 7
		f.offer(foreign)
		f.offer(low)
		f.offer(high)
		f.offer(first)
		w := someWorker("w")
		w.FreeSlots, w.TotalSlots = 8, 8
		ls, err := f.b.Lease(ctxb, w)
		require.NoError(f, err)
		var ids []uint64
		for _, l := range ls {
			ids = append(ids, l.Job.ID)
		}
		require.Equal(f, []uint64{high.Job.ID, first.Job.ID, low.Job.ID}, ids)
	})
}

func TestTwoWorkersNeverShareAJob(t *testing.T) {
	inBubble(t, nil, func(f *fixture) {
		const jobs = 20
		for i := range jobs {
			f.offer(f.e.somePlan(fmt.Sprintf("p%02d-", i)))
		}
		seen := make(chan Key, jobs)
		for i := range 4 {
			go func() {
				w := someWorker(fmt.Sprint("w", i))
				for {
					ls, err := f.b.Lease(ctxb, w)
					if err != nil || len(ls) == 0 {
						return
					}
					for _, l := range ls {
						seen <- l.Key
						f.finish(l)
					}
				}
			}()
		}
		keys := map[uint64]bool{}
		for range jobs {
			k := <-seen
			require.Equal(f, uint32(1), k.Epoch)
			require.False(f, keys[k.ID], "job %d leased twice", k.ID)
			keys[k.ID] = true
		}
		time.Sleep(21 * time.Second) // the workers' last polls end
		synctest.Wait()
		require.Equal(f, uint64(jobs), f.b.Status().Totals.InstalledExternal)
	})
}

func TestThreeFailuresAndOneLocalThenQuarantine(t *testing.T) {
	// A table that kills every worker must not be tried for ever, and must not stop other ranges.
	inBubble(t, nil, func(f *fixture) { // ModeNever: no local attempt
		bad := f.offer(f.e.somePlan("bad"))
		for i := range 3 {
			require.Equal(f, i, f.job(bad).Attempts)
			l := f.lease(someWorker("w"))
			f.b.Abandon(l.Key, AbandonIOError, "boom", nil)
		}
		f.requireOver(bad, StateQuarantined)
		_, reason, _ := f.e.state(bad)
		require.Contains(f, reason, "boom")
		require.True(f, f.e.saw(EventQuarantined))
		good := f.offer(f.e.somePlan("good"))
		require.Equal(f, Installed, f.finish(f.lease(someWorker("w"))).Outcome)
		f.requireOver(good, StateInstalled)
	})
	inBubble(t, func(o *Options) { o.Mode = ModeAuto }, func(f *fixture) {
		f.e.beforeMove = func(*Plan) error { return errTest }
		bad := f.offer(f.e.somePlan("bad"))
		for range 3 {
			l := f.lease(someWorker("w"))
			require.Equal(f, Rejected, f.finish(l).Outcome)
		}
		synctest.Wait() // the local executor has it, as the last one
		f.requireOver(bad, StateQuarantined)
		require.True(f, f.e.saw(EventLocal))
		require.Equal(f, uint64(4), f.b.Status().Totals.Rejected)
	})
}

func TestShutdownAndNoSpaceCostNoAttempt(t *testing.T) {
	// Ten rolling restarts, or a full disk for an hour, must not quarantine a healthy table.
	inBubble(t, nil, func(f *fixture) {
		id := f.offer(f.e.somePlan("k"))
		for range 10 {
			l := f.lease(someWorker("w"))
			f.b.Abandon(l.Key, AbandonShutdown, "", nil)
		}
		require.Zero(f, f.job(id).Attempts)
		var waits []time.Duration
		for range 6 {
			l := f.lease(someWorker("w"))
			f.b.Abandon(l.Key, AbandonNoSpace, "", nil)
			start := time.Now()
			for {
				ls, err := f.b.Lease(ctxb, someWorker("w"))
				require.NoError(f, err)
				if len(ls) > 0 {
					waits = append(waits, time.Since(start).Round(time.Second))
					f.b.Abandon(ls[0].Key, AbandonShutdown, "", nil)
					break
				}
			}
		}
		require.Equal(f, []time.Duration{5e9, 10e9, 20e9, 40e9, 60e9, 60e9}, waits)
		require.Zero(f, f.job(id).Attempts)
	})
}

func TestLeaseKeepsHeadroom(t *testing.T) {
	// A merge that fills the disk stops the writes that it was meant to help.
	inBubble(t, func(o *Options) { o.ReserveBytes = 4 << 20 }, func(f *fixture) {
		a, b := f.e.somePlan("a"), f.e.somePlan("b")
		need := uint64(a.Job.Inputs[0].Size+a.Job.Inputs[1].Size) * 11 / 10
		f.offer(a)
		f.offer(b)
		f.fs.SetUsage(vfs.Usage{TotalBytes: 1 << 30, FreeBytes: 1<<20 + need + need/2})
		first := f.lease(someWorker("w"))
		ctx, cancel := context.WithTimeout(ctxb, 10*time.Second)
		defer cancel()
		_, err := f.b.Lease(ctx, someWorker("w"))
		require.ErrorIs(f, err, context.DeadlineExceeded, "there is room for one")
		require.Equal(f, uint64(1), f.b.Status().Totals.HeadroomRefusals)
		require.True(f, f.e.saw(EventNoSpace))
		require.Equal(f, Installed, f.finish(first).Outcome)
		f.lease(someWorker("w"))
	})
}

func TestCancelEndsAJobWhereverItIs(t *testing.T) {
	// A dropped range must not be written back by a merge of before.
	all := func(*Plan) bool { return true }
	inBubble(t, nil, func(f *fixture) {
		queued := f.offer(f.e.somePlan("a"))
		f.b.Cancel(all, "range dropped")
		f.requireOver(queued, StateCancelled)

		leased := f.offer(f.e.somePlan("b"))
		l := f.lease(someWorker("w"))
		r := f.attempt(l).honest(1)
		f.b.Cancel(all, "range dropped")
		f.requireOver(leased, StateCancelled)
		require.True(f, f.b.Heartbeat(l.Key, 1).Stop)
		require.Equal(f, Fenced, f.complete(l.Key, r).Outcome)

		verified := f.offer(f.e.somePlan("c"))
		l = f.lease(someWorker("w"))
		r = f.attempt(l).honest(1)
		f.e.check = func(*Plan) error { f.b.Cancel(all, "range dropped"); return nil }
		v := f.complete(l.Key, r)
		require.Equal(f, Rejected, v.Outcome)
		require.Contains(f, v.Reason, "range dropped")
		f.requireOver(verified, StateCancelled)
	})
}

func TestObsoletePlanIsCancelledNotRetried(t *testing.T) {
	// The version has moved on: trying again can't help.
	for name, where := range map[string]func(e *testEngine){
		"before verification": func(e *testEngine) { e.check = func(*Plan) error { return errTest } },
		"in the installation": func(e *testEngine) {
			e.beforeMove = func(*Plan) error { return fmt.Errorf("%w: table 1 is gone", ErrObsolete) }
		},
	} {
		inBubble(t, nil, func(f *fixture) {
			where(f.e)
			id := f.offer(f.e.somePlan("k"))
			require.Equal(f, Rejected, f.finish(f.lease(someWorker("w"))).Outcome, name)
			f.requireOver(id, StateCancelled)
		})
	}
}

func TestCloseEndsPollsLeasesAndPins(t *testing.T) {
	inBubble(t, func(o *Options) { o.Formats = []uint32{1, 9} }, func(f *fixture) {
		ids := []uint64{f.offer(f.e.somePlan("a")), f.offer(f.e.somePlan("b"))}
		l := f.lease(someWorker("w"))
		other := someWorker("other")
		other.Formats = []uint32{9}
		polled := make(chan error, 1)
		go func() { _, err := f.b.Lease(ctxb, other); polled <- err }()
		synctest.Wait()
		require.NoError(f, f.b.Close())
		require.NoError(f, f.b.Close())
		require.ErrorIs(f, <-polled, ErrClosed)
		for _, id := range ids {
			f.requireOver(id, StateCancelled)
		}
		require.True(f, f.b.Heartbeat(l.Key, 1).Stop)
		require.Equal(f, Fenced, f.complete(l.Key, Report{}).Outcome)
		_, err := f.b.Offer(f.e.somePlan("c"))
		require.ErrorIs(f, err, ErrClosed)
		_, err = f.b.Lease(ctxb, someWorker("w"))
		require.ErrorIs(f, err, ErrClosed)
	})
}

func TestRestartVoidsLeasesAndWipesStaging(t *testing.T) {
	// Leases are not on disk: what an old process granted must be nobody's.
	inBubble(t, nil, func(f *fixture) {
		p := f.e.somePlan("k")
		f.offer(p)
		l := f.lease(someWorker("w"))
		a := f.attempt(l)
		r := a.honest(1)

		// The process dies; another one opens the same directory.
		o := testOptions(f.fs, newTestEngine(t, f.fs))
		o.Rand.Uint64()
		b, err := NewBoard(o)
		require.NoError(f, err)
		require.NotEqual(f, f.b.Session(), b.Session())
		_, err = f.fs.Stat(a.path(1))
		require.Error(f, err)
		v, err := b.Complete(ctxb, l.Key, r)
		require.NoError(f, err)
		require.Equal(f, Fenced, v.Outcome)
		require.True(f, b.Heartbeat(l.Key, 1).Stop)
		require.NoError(f, b.Close())
	})
}

func TestRateReachesTheWorkerWithAHeartbeat(t *testing.T) {
	inBubble(t, func(o *Options) { o.Rate = 1000 }, func(f *fixture) {
		f.offer(f.e.somePlan("k"))
		l := f.lease(someWorker("w"))
		require.Equal(f, int64(1000), l.Job.MaxBytesPerSecond)
		f.b.SetRate(5)
		require.Equal(f, int64(5), f.b.Heartbeat(l.Key, 1).MaxBytesPerSecond)
	})
}

// removals is a file system that tells when a tree is removed.
type removals struct {
	vfs.FS
	before func(name string)
}

func (r *removals) RemoveAll(name string) error {
	if r.before != nil {
		r.before(name)
	}
	return r.FS.RemoveAll(name)
}

func TestVerdictBelongsToItsAttempt(t *testing.T) {
	// While the callers of a rejected report wait for the end of its wipe, another worker has the
	// job already, and may have reported it: the answers must not get mixed up.
	fs := &removals{}
	inBubble(t, func(o *Options) { fs.FS = o.FS; o.FS = fs }, func(f *fixture) {
		f.offer(f.e.somePlan("k"))
		l := f.lease(someWorker("liar"))
		fs.before = func(string) {
			fs.before = nil
			require.Equal(f, Installed, f.finish(f.lease(someWorker("honest"))).Outcome)
		}
		require.Equal(f, Rejected, f.complete(l.Key, Report{}).Outcome)
		require.Nil(f, fs.before)
	})
}

func TestPromisedSpaceShrinksWithTheWork(t *testing.T) {
	// Writes must leave a running merge the space that it was promised, but not that twice: once promised
	// and once written.
	inBubble(t, nil, func(f *fixture) {
		p := f.e.somePlan("k")
		f.offer(p)
		require.Zero(f, f.b.PromisedBytes(), "nobody has it yet")
		l := f.lease(someWorker("w"))
		inputs := p.Job.Inputs[0].Size + p.Job.Inputs[1].Size
		require.Equal(f, f.b.Status().ReservedBytes, f.b.PromisedBytes())
		f.b.Heartbeat(l.Key, inputs/2)
		require.InDelta(f, float64(inputs-inputs/2)*1.1, float64(f.b.PromisedBytes()), 2)
		f.b.Heartbeat(l.Key, inputs)
		require.Zero(f, f.b.PromisedBytes())
		require.Equal(f, Installed, f.finish(l).Outcome)
		require.Zero(f, f.b.PromisedBytes())
	})
}

func TestCompactorsAreCountedWhileTheyAreHeard(t *testing.T) {
	// A compactor between two polls is there; one that was not heard for a lease is not.
	inBubble(t, nil, func(f *fixture) {
		count, last := f.b.Compactors()
		require.Zero(f, count)
		require.Zero(f, last)
		f.offer(f.e.somePlan("k"))
		l := f.lease(someWorker("w"))
		began := time.Now()
		count, last = f.b.Compactors()
		require.Equal(f, 1, count)
		require.Equal(f, began, last)
		require.Equal(f, Installed, f.finish(l).Outcome)
		time.Sleep(time.Minute) // of the bubble
		count, last = f.b.Compactors()
		require.Zero(f, count)
		require.Less(f, last.Sub(began), time.Minute)
	})
}
