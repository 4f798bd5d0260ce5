package jobs

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
)

// modelWorker is a worker that keeps every lease it ever got, and uses old ones as well.
type modelWorker struct {
	held []Lease
}

// TestAnyInterleavingInstallsEachJobOnceAndGivesEverythingBack drives a board by random calls of
// workers that are honest, late, lying, dead and doubled, with random time between. The danger: some
// order of calls that nobody thought of installs a job twice, loses its pins, or leaks headroom.
func TestAnyInterleavingInstallsEachJobOnceAndGivesEverythingBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		steps := rapid.SliceOfN(rapid.IntRange(0, 99), 20, 120).Draw(rt, "steps")
		synctest.Test(t, func(t *testing.T) { runModel(t, seed, steps) })
	})
}

func runModel(t *testing.T, seed uint64, steps []int) {
	r := rand.New(rand.NewPCG(seed, 7))
	fs := vfs.NewMem()
	f := &fixture{T: t, fs: fs, e: newTestEngine(t, fs)}
	o := testOptions(fs, f.e)
	o.Poll = time.Second
	o.Mode = []Mode{ModeAuto, ModeNever, ModeAlways}[r.IntN(3)]
	var err error
	f.b, err = NewBoard(o)
	require.NoError(t, err)
	defer f.b.Close() //nolint:errcheck // closed below as well

	installs := map[uint64]int{}
	f.e.beforeMove = func(p *Plan) error { // called without a lock of the engine
		f.e.mu.Lock()
		defer f.e.mu.Unlock()
		if installs[p.Job.ID]++; installs[p.Job.ID] > 1 {
			return fmt.Errorf("job %d is installed twice", p.Job.ID)
		}
		return nil
	}
	var offered []uint64
	workers := make([]modelWorker, 3)
	for i, s := range steps {
		w := &workers[r.IntN(len(workers))]
		switch {
		case s < 20:
			offered = append(offered, f.offer(recordPlan(f.e, fmt.Sprintf("p%03d-", i), 4)))
		case s < 45:
			me := someWorker(fmt.Sprint("w", r.IntN(3)))
			me.FreeSlots = 1 + r.IntN(3)
			me.TotalSlots = 3
			ls, err := f.b.Lease(ctxb, me)
			require.NoError(t, err)
			w.held = append(w.held, ls...)
		case s < 55:
			time.Sleep(time.Duration(r.IntN(20)) * time.Second)
		case s < 60:
			f.b.SetUrgent(r.IntN(2) == 0)
		case s < 62:
			pick := r.Uint64N(5)
			f.b.Cancel(func(p *Plan) bool { return p.Job.ID%5 == pick }, "model")
		case len(w.held) == 0:
		default:
			f.use(r, s, w.held[r.IntN(len(w.held))])
		}
		f.checkBoard()
	}
	require.NoError(t, f.b.Close())
	checkClosed(t, f.b, fs)
	for _, id := range offered {
		s, _, over := f.e.state(id)
		require.True(t, over, "job %d is not released", id)
		require.Equal(t, s == StateInstalled, installs[id] == 1, "job %d is %v and was installed %d times", id, s, installs[id])
	}
	require.Len(t, f.e.released, len(offered))
}

// use does something with a lease that may be long over.
func (f *fixture) use(r *rand.Rand, s int, l Lease) {
	if l.Job.Kind != compact.Merge {
		return
	}
	a := f.attempt(l)
	switch {
	case s < 70:
		f.b.Heartbeat(l.Key, r.Int64N(1000))
	case s < 75:
		f.b.Abandon(l.Key, AbandonReason(1+r.IntN(5)), "model", []compact.CorruptInput{{Num: l.Job.Inputs[0].Num}})
	case s < 85: // a lie
		f.complete(l.Key, Report{Outputs: []compact.Output{{Index: 1 + r.IntN(4)}}, Stats: compact.Stats{EntriesIn: 6}})
	default: // the work, if the place is still there
		if _, err := f.fs.Stat(a.path(1)); err != nil || f.b.Heartbeat(l.Key, 1).Stop {
			require.Equal(f, Fenced, orElse(f.complete(l.Key, Report{}).Outcome, AlreadyInstalled, Fenced))
			return
		}
		// A second use of a lease finds its outputs written already.
		if info, err := f.fs.Stat(a.path(1)); err != nil || info.Size() > 0 {
			return
		}
		f.complete(l.Key, a.honest(1))
	}
	synctest.Wait()
}

func orElse[T comparable](v, is, then T) T {
	if v == is {
		return then
	}
	return v
}

// checkBoard checks what holds at any time.
func (f *fixture) checkBoard() {
	f.b.mu.Lock()
	defer f.b.mu.Unlock()
	var reserved uint64
	leases := map[workerID]int{}
	inputs := 0
	for id, j := range f.b.jobs {
		require.False(f, j.state.Terminal())
		require.Equal(f, j.active, j.state == StateLeased || j.state == StateVerifying)
		reserved += j.reserved
		if j.active {
			leases[j.worker]++
		} else {
			require.Zero(f, j.reserved)
		}
		for _, in := range j.plan.Job.Inputs {
			require.Equal(f, id, f.b.inputs[in.Num])
			inputs++
		}
	}
	require.Len(f, f.b.inputs, inputs)
	require.Equal(f, reserved, f.b.reserved)
	for id, w := range f.b.workers {
		require.Equal(f, leases[id], w.leases, "leases of %v", id)
	}
	for _, id := range slices.Sorted(maps.Keys(f.b.jobs)) {
		_, _, over := f.e.state(id)
		require.False(f, over, "job %d is released and on the board", id)
	}
}
