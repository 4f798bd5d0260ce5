package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/libs/vfs/errorfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// outcome of a change in a run with a fault.
type outcome uint8

const (
	acked   outcome = iota // must be there
	refused                // must not be there while the engine runs; after a restart it may be, whole
)

// failedJob are the events that tell of a fault in a job.
var failedJob = map[jobs.EventKind]bool{jobs.EventRejected: true, jobs.EventAbandoned: true, jobs.EventNoSpace: true,
	jobs.EventQuarantined: true, jobs.EventCleanup: true}

// faultRun is a fixed workload on a disk that fails once.
type faultRun struct {
	t       *testing.T
	disk    *crashfs.FS
	fs      vfs.FS
	e       *Engine
	rng     *rand.Rand
	changes [][]op
	results []outcome
	errors  int
	events  atomic.Int64 // with an error
	over    bool         // poisoned: the process ends
}

func newFaultRun(t *testing.T, inj *errorfs.Injector) *faultRun {
	disk := crashfs.New()
	return &faultRun{t: t, disk: disk, fs: errorfs.Wrap(disk, inj), rng: rand.New(rand.NewPCG(5, 6))}
}

func (f *faultRun) options(fs vfs.FS) Options {
	o := crashOptions(f.disk, f.rng)
	o.FS, o.LogOnDemand, o.Clock = fs, true, newHurriedClock(20)
	o.Events = func(ev Event) {
		if ev.Err != nil || ev.Job != nil && failedJob[ev.Job.Kind] {
			f.events.Add(1)
		}
	}
	return o
}

// open opens the engine; a fault in it is reported, and the next attempt works.
func (f *faultRun) open() {
	for range 3 {
		e, err := Open(testDir, f.options(f.fs))
		if err == nil {
			f.e = e
			return
		}
		f.errors++
	}
	require.FailNow(f.t, "the engine does not open after one fault")
}

// note classifies the error of an operation.
func (f *faultRun) note(err error) {
	if err == nil {
		return
	}
	f.errors++
	if f.e.poisoned.Load() != nil {
		require.ErrorIs(f.t, f.e.poisonErr(), ErrPoisoned)
		f.over = true
	}
}

func (f *faultRun) change(ops []op, run func() error) {
	err := run()
	f.changes = append(f.changes, ops)
	if err == nil {
		f.results = append(f.results, acked)
	} else {
		f.results = append(f.results, refused)
	}
	f.note(err)
}

func (f *faultRun) write(n int) {
	w := &workload{rng: f.rng}
	for range n {
		if f.over {
			return
		}
		ops := w.ops()
		var b Batch
		for _, o := range ops {
			addTo(&b, o)
		}
		f.change(ops, func() error { return f.e.Apply(&b, SyncGroup) })
	}
}

func (f *faultRun) do(run func() error) {
	if !f.over {
		f.note(run())
	}
}

// run does a little of everything, in the same order each time.
func (f *faultRun) run() {
	ctx := context.Background()
	f.open()
	f.do(func() error { return f.e.PinTail("p", 1) })
	f.write(12)
	f.do(func() error { return f.e.Flush(ctx) })
	f.write(6)
	f.do(func() error { return f.e.Compact(ctx, nil, nil, nil) })
	f.ingest()
	f.do(func() error { return f.e.Checkpoint(ctx, "checkpoint") })
	f.write(8)
	f.do(func() error { return f.e.SetNodeMeta(map[string]string{"a": "b"}) })
	f.do(func() error { _, err := contentOf(f.e); return err })
	f.check()
	if err := f.e.Close(); err != nil {
		f.errors++
	}
	if f.over {
		return
	}
	f.open()
	f.check()
	f.write(4)
	f.check()
	if err := f.e.Close(); err != nil {
		f.errors++
	}
}

func (f *faultRun) ingest() {
	if f.over {
		return
	}
	o := op{kind: ikey.KindMerge, key: "t\x00k30", record: randomRecord(f.rng, 50)}
	file, err := f.disk.Create("incoming.sst", 0o660)
	require.NoError(f.t, err)
	table := sstable.NewWriter(file, sstable.WriterOptions{})
	require.NoError(f.t, table.Add(ikey.Make([]byte(o.key), 1, ikey.KindMerge), o.record))
	_, err = table.Finish()
	require.NoError(f.t, err)
	require.NoError(f.t, file.Close())
	f.change([]op{o}, func() error { _, err := f.e.Ingest(context.Background(), []string{"incoming.sst"}); return err })
}

// check compares what readers see. A read may fail because of the fault, but never lie.
func (f *faultRun) check() {
	if f.over {
		return
	}
	content, err := contentOf(f.e)
	if err != nil {
		f.errors++
		if content, err = contentOf(f.e); err != nil && errors.Is(err, ErrCorrupt) {
			return // quarantined by mistake would be a lie as well; the check after the restart sees it
		}
		require.NoError(f.t, err)
	}
	f.requireState(content, "while running")
}

// requireState checks that the content is that of all acknowledged changes, with any of the refused
// ones.
func (f *faultRun) requireState(content map[string]string, when string) {
	var doubtful []int
	for i, r := range f.results {
		if r == refused {
			doubtful = append(doubtful, i)
		}
	}
	require.LessOrEqual(f.t, len(doubtful), 4, "one fault refused many changes: %s", when)
	for choice := range 1 << len(doubtful) {
		m := newModel()
		for i, ops := range f.changes {
			apply := f.results[i] == acked
			for bit, d := range doubtful {
				apply = apply || d == i && choice&(1<<bit) != 0
			}
			if apply {
				m.apply(ops, ikey.Seq(i+1))
			}
		}
		if sameContent(content, m) {
			return
		}
	}
	require.FailNow(f.t, "the content is not that of the acknowledged changes", when)
}

// recovered opens the disk without faults, as it is after the process ended and as it is after a power
// cut.
func (f *faultRun) recovered() {
	for _, mode := range []crashfs.Mode{crashfs.KeepAll, crashfs.DropUnsynced, crashfs.RandomEverything} {
		image := f.disk.CrashImage(mode, f.rng)
		e, err := Open(testDir, checkOptions(image, f.rng))
		require.NoError(f.t, err, "open after %v", mode)
		content, err := contentOf(e)
		require.NoError(f.t, err)
		f.requireState(content, mode.String())
		require.NoError(f.t, e.Close())
	}
}

func TestOneFailingOperationIsReportedOrHarmless(t *testing.T) {
	// Disks fail, and get full. Each operation fails once: no acknowledged write may be lost for it, no
	// refused one be there by half, nothing may panic or hang, and the engine must open again.
	faults := []struct {
		name string
		at   func(i int) *errorfs.Injector
	}{
		{"EIO", func(i int) *errorfs.Injector { return errorfs.OnIndex(i, errorfs.Mutating, syscall.EIO) }},
		{"ENOSPC", func(i int) *errorfs.Injector { return errorfs.OnIndex(i, errorfs.Writes, vfs.ErrNoSpace) }},
		{"short write", func(i int) *errorfs.Injector { return errorfs.ShortWrite(i, syscall.EIO) }},
		{"read EIO", func(i int) *errorfs.Injector { return errorfs.OnIndex(i, errorfs.Reads, syscall.EIO) }},
	}
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel() // most of a run waits for retries
			runs, quiet, missed := 0, 0, 0
			for i := 0; missed < 3; i++ {
				inj := fault.at(i)
				f := newFaultRun(t, inj)
				f.run()
				fired, what := inj.Fired()
				if !fired {
					missed++
					f.recovered()
					continue
				}
				runs++
				if f.errors == 0 && f.events.Load() == 0 {
					quiet++
				}
				f.recovered()
				if t.Failed() {
					t.Logf("operation %d: %s", i, what)
					return
				}
			}
			t.Logf("%d operations failed, one a run; in %d runs nobody had to be told", runs, quiet)
		})
	}
}

func TestFullDiskIsSurvived(t *testing.T) {
	// A full disk is not the end: reads go on, writes are refused with an error that says why, and
	// when there is space again everything works, without a restart.
	for _, when := range []string{"log", "flush"} {
		t.Run(when, func(t *testing.T) {
			inj := errorfs.None()
			disk := crashfs.New()
			o := crashOptions(disk, rand.New(rand.NewPCG(1, 1)))
			o.FS = errorfs.Wrap(disk, inj)
			e := mustOpen(t, o)
			for i := range 20 {
				put(t, e, testKey(i), "before")
			}
			inj.SetFull(true)
			if when == "flush" {
				require.Error(t, e.Flush(context.Background()))
			}
			var failed error
			for i := 20; i < 2000 && failed == nil; i++ {
				var b Batch
				b.Set(testKey(i), rec(fmt.Sprint(i)))
				failed = e.Apply(&b, SyncGroup)
			}
			require.ErrorIs(t, failed, ErrDiskFull)
			requireValue(t, e, testKey(3), "before")
			inj.SetFull(false)
			require.Eventually(t, func() bool {
				var b Batch
				b.Set(testKey(5000), rec("after"))
				return e.Apply(&b, SyncGroup) == nil
			}, eventually, tick)
			requireValue(t, e, testKey(5000), "after")
			require.NoError(t, e.Flush(context.Background()))
			require.NoError(t, e.Close())
			e = mustOpen(t, o)
			requireValue(t, e, testKey(5000), "after")
			requireValue(t, e, testKey(3), "before")
			require.NoError(t, e.Close())
		})
	}
}
