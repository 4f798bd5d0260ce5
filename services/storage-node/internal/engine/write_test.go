package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/libs/vfs/errorfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
)

// gate holds operations of a disk up until it is opened.
type gate struct {
	mu     sync.Mutex
	match  func(crashfs.Op) bool
	open   chan struct{}
	atGate chan struct{} // gets a value for each operation that is held up
}

func newGate(disk *crashfs.FS) *gate {
	g := &gate{atGate: make(chan struct{}, 100)}
	disk.SetHook(func(op crashfs.Op) {
		g.mu.Lock()
		match, open := g.match, g.open
		g.mu.Unlock()
		if match != nil && match(op) {
			g.atGate <- struct{}{}
			<-open
		}
	})
	return g
}

func (g *gate) close(match func(crashfs.Op) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.match, g.open = match, make(chan struct{})
}

func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.open)
	g.match = nil
}

func logSync(op crashfs.Op) bool { return op.Kind == "sync" && strings.Contains(op.Name, "/log/") }

func quietOptions(fs vfs.FS) Options {
	o := smallOptions(fs)
	o.MemtableBytes, o.LogSegmentBytes, o.NoAutoCompaction = 1<<20, 4<<20, true
	o.SyncInterval = 1 << 40 // only who waits syncs
	return o
}

func TestWritersThatWaitTogetherShareOneSync(t *testing.T) {
	// One fsync for each of 64 writers is 64 times too slow, and the reason for group commit. What a
	// sync covers must not be more than was written when it began, either.
	disk := crashfs.New()
	g := newGate(disk)
	e := mustOpen(t, quietOptions(disk))
	put(t, e, testKey(0), "first") // the segment is there now
	before := e.Metrics().Syncs
	g.close(logSync)
	var wg sync.WaitGroup
	wg.Go(func() { put(t, e, testKey(1), "a") })
	<-g.atGate // it syncs; all others wait behind it
	const others = 20
	for i := range others {
		wg.Go(func() { put(t, e, testKey(10+i), "b") })
	}
	require.Eventually(t, func() bool {
		return e.Metrics().QueueLength == others // held until the sync ends
	}, eventually, tick)
	g.release()
	wg.Wait()
	require.LessOrEqual(t, e.Metrics().Syncs-before, uint64(2))
	for i := range others {
		requireValue(t, e, testKey(10+i), "b")
	}
	require.NoError(t, e.Close())
}

func TestGroupsThatAreNotHeldAreWrittenWhileASyncRuns(t *testing.T) {
	// The switch must not take durability away: who was written during a sync is not covered by it.
	disk := crashfs.New()
	g := newGate(disk)
	o := quietOptions(disk)
	o.NoHeldGroups = true
	e := mustOpen(t, o)
	put(t, e, testKey(0), "first")
	g.close(logSync)
	before := e.AppliedSeq()
	var wg sync.WaitGroup
	wg.Go(func() { put(t, e, testKey(1), "a") })
	require.Eventually(t, func() bool { return e.AppliedSeq() == before+1 }, eventually, tick)
	<-g.atGate // it, or that of the next segment: none ends
	const others = 20
	for i := range others {
		wg.Go(func() { put(t, e, testKey(10+i), "b") })
	}
	require.Eventually(t, func() bool { return e.AppliedSeq() == before+1+others }, eventually, tick)
	for i := range others {
		requireValue(t, e, testKey(10+i), "") // applied, but not durable
	}
	g.release()
	wg.Wait()
	for i := range others {
		requireValue(t, e, testKey(10+i), "b")
	}
	require.NoError(t, e.Close())
}

// waiterGroup starts writers that are held behind a sync that stands at the gate, and returns their
// errors.
func waiterGroup(t *testing.T, e *Engine, g *gate, writers int) <-chan error {
	t.Helper()
	g.close(logSync)
	errs := make(chan error, writers+1)
	write := func(i int) {
		var b Batch
		b.Set(testKey(i), rec("v"))
		errs <- e.Apply(&b, SyncGroup)
	}
	go write(1)
	<-g.atGate
	for i := range writers {
		go write(10 + i)
	}
	require.Eventually(t, func() bool { return e.Metrics().QueueLength == writers }, eventually, tick)
	return errs
}

func TestAGroupIsDurableWhenItIsSyncedAndApplied(t *testing.T) {
	// One member applies while another one syncs. Whoever is woken by the first of both reads nothing, or
	// what a crash takes back.
	for _, alone := range []bool{false, true} { // without overlap the one who syncs has applied before
		disk := crashfs.New()
		g := newGate(disk)
		o := quietOptions(disk)
		o.NoOverlappedApply = alone
		e := mustOpen(t, o)
		put(t, e, testKey(0), "first")
		const writers = 20
		errs := waiterGroup(t, e, g, writers)
		all, segment := e.AppliedSeq()+writers, commitlog.FileName(e.log.Segment())
		var early atomic.Bool
		disk.SetHook(func(op crashfs.Op) {
			if op.Kind == "sync" && strings.HasSuffix(op.Name, segment) && e.AppliedSeq() != all {
				early.Store(true)
			}
		})
		g.release()
		for range writers + 1 {
			require.NoError(t, <-errs)
			d := &e.durable
			d.mu.Lock()
			require.LessOrEqual(t, d.synced, min(d.logSynced, d.applied))
			d.mu.Unlock()
		}
		require.False(t, alone && early.Load())
		for i := range writers {
			requireValue(t, e, testKey(10+i), "v")
		}
		require.NoError(t, e.Close())
	}
}

func TestOnlySyncAndApplyTogetherWake(t *testing.T) {
	// The one that comes second must wake, whichever it is; the first must not.
	for name, syncFirst := range map[string]bool{"synced, then applied": true, "applied, then synced": false} {
		t.Run(name, func(t *testing.T) {
			e := &Engine{opts: Options{Sync: SyncGroup}}
			d, w := &e.durable, newWaiter()
			w.seq = 5
			d.waiting = []*waiter{&w}
			steps := []func(){
				func() { e.noteApplied(5) },
				func() {
					d.mu.Lock()
					defer d.mu.Unlock()
					d.logSynced = 5
					e.wakeLocked(nil)
				},
			}
			if syncFirst {
				slices.Reverse(steps)
			}
			steps[0]()
			require.Empty(t, w.signal)
			require.Zero(t, e.visible.Load())
			steps[1]()
			require.Equal(t, turnDone, <-w.signal)
			require.EqualValues(t, 5, e.visible.Load())
			require.Empty(t, d.waiting)
		})
	}
}

func TestAFailedSyncFailsAllWhoWait(t *testing.T) {
	// Somebody who is not told waits for ever; somebody who is told that all is well loses a write.
	disk := crashfs.New()
	g := newGate(disk)
	j := errorfs.None()
	o := quietOptions(nil)
	o.FS = errorfs.Wrap(disk, j)
	e := mustOpen(t, o)
	put(t, e, testKey(0), "first")
	const writers = 20
	errs := waiterGroup(t, e, g, writers)
	j.FailAll(errorfs.Syncs, errors.New("input/output error"))
	g.release()
	failed := 0
	for range writers + 1 {
		if err := <-errs; err != nil {
			require.ErrorIs(t, err, ErrPoisoned)
			failed++
		}
	}
	require.GreaterOrEqual(t, failed, writers, "the sync at the gate may have been asked for before")
	require.Error(t, e.Close())
}

func TestReadersSeeAWriteOnlyWhenItIsDurable(t *testing.T) {
	// A reader who saw a write and acted on it must find it after a crash.
	disk := crashfs.New()
	g := newGate(disk)
	e := mustOpen(t, quietOptions(disk))
	put(t, e, testKey(0), "old")
	tail, err := e.Tail(1)
	require.NoError(t, err)
	_, err = tail.Next(context.Background())
	require.NoError(t, err)
	g.close(logSync)
	var b Batch
	b.Set(testKey(0), rec("new"))
	p, err := e.Submit(&b)
	require.NoError(t, err)
	done := make(chan error)
	go func() { done <- p.Wait() }()
	<-g.atGate
	requireValue(t, e, testKey(0), "old")
	s := e.NewSnapshot()
	require.Less(t, s.Seq(), p.Seq())
	require.NoError(t, s.Close())
	latest, found, at, err := e.GetLatest(testKey(0), nil)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, rec("new"), latest)
	require.Equal(t, p.Seq(), at)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = tail.Next(ctx)
	require.ErrorIs(t, err, context.Canceled)
	g.release()
	require.NoError(t, <-done)
	requireValue(t, e, testKey(0), "new")
	c, err := tail.Next(context.Background())
	require.NoError(t, err)
	require.Equal(t, p.Seq(), c.Seq)
	require.NoError(t, tail.Close())
	require.NoError(t, e.Close())
}

func TestWithoutWaitingAWriteBecomesDurableByItself(t *testing.T) {
	// Submit without Wait must not leave a write invisible for ever.
	o := quietOptions(vfs.NewMem())
	o.SyncInterval = 1
	e := mustOpen(t, o)
	var b Batch
	b.Set(testKey(1), rec("x"))
	p, err := e.Submit(&b)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return e.VisibleSeq() >= p.Seq() }, eventually, tick)
	requireValue(t, e, testKey(1), "x")
	require.NoError(t, e.Close())
}

func TestSyncModesTradeDurabilityForSpeedOnly(t *testing.T) {
	// interval and never may lose the end in a power cut; they never lose order, and nothing when the
	// process ends.
	for _, mode := range []SyncMode{SyncInterval, SyncNever} {
		disk := crashfs.New()
		o := quietOptions(disk)
		o.Sync = mode
		e := mustOpen(t, o)
		for i := range 50 {
			put(t, e, testKey(i), "v")
			requireValue(t, e, testKey(i), "v")
		}
		image := disk.CrashImage(crashfs.DropUnsynced, rand.New(rand.NewPCG(1, 1)))
		killed, err := Open(testDir, quietOptions(image))
		require.NoError(t, err)
		content, err := contentOf(killed)
		require.NoError(t, err)
		for i := range content {
			require.Contains(t, content, i)
		}
		require.NoError(t, killed.Close())
		var b Batch
		b.Set(testKey(99), rec("durable"))
		require.NoError(t, e.Apply(&b, SyncGroup))
		image = disk.CrashImage(crashfs.DropUnsynced, rand.New(rand.NewPCG(1, 1)))
		killed, err = Open(testDir, quietOptions(image))
		require.NoError(t, err)
		requireValue(t, killed, testKey(99), "durable")
		requireValue(t, killed, testKey(49), "v")
		require.NoError(t, killed.Close())
		require.NoError(t, e.Close())
	}
}

func TestConditionalSetLosesAgainstWhateverCameBetween(t *testing.T) {
	// A Set shadows everything older, so one that was decided on an old read would erase what it has
	// not seen: a concurrent write, a fragment, an ingest.
	between := map[string]func(t *testing.T, e *Engine, key []byte){
		"set":   func(t *testing.T, e *Engine, key []byte) { put(t, e, key, "other") },
		"merge": func(t *testing.T, e *Engine, key []byte) { apply(t, e, func(b *Batch) { b.Merge(key, rec("m")) }) },
		"delete": func(t *testing.T, e *Engine, key []byte) {
			apply(t, e, func(b *Batch) { b.Delete(key) })
		},
		"range delete": func(t *testing.T, e *Engine, key []byte) {
			apply(t, e, func(b *Batch) { b.DeleteRange([]byte("t\x00"), []byte("t\x01")) })
		},
		"set, then rotation": func(t *testing.T, e *Engine, key []byte) {
			put(t, e, key, "other")
			require.NoError(t, e.rotateNonEmpty())
		},
		"set, then flush": func(t *testing.T, e *Engine, key []byte) {
			put(t, e, key, "other")
			require.NoError(t, e.Flush(context.Background()))
		},
		"ingest": func(t *testing.T, e *Engine, key []byte) { ingestKeys(t, e, string(key)) },
		"many range deletes elsewhere after it": func(t *testing.T, e *Engine, key []byte) {
			put(t, e, key, "other")
			for i := range maxRangeOps + 1 {
				apply(t, e, func(b *Batch) { b.DeleteRange(fmt.Appendf(nil, "u\x00%d", i), fmt.Appendf(nil, "u\x00%d~", i)) })
			}
		},
	}
	for name, other := range between {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			e := mustOpen(t, quietOptions(fs))
			key := testKey(7)
			put(t, e, key, "old")
			_, _, at, err := e.GetLatest(key, nil)
			require.NoError(t, err)
			put(t, e, testKey(8), "does not matter")
			apply(t, e, func(b *Batch) { b.SetIfUnchanged(key, rec("first"), at) })
			_, _, at, err = e.GetLatest(key, nil)
			require.NoError(t, err)
			other(t, e, key)
			var b Batch
			b.Set(testKey(9), rec("same batch"))
			b.SetIfUnchanged(key, rec("second"), at)
			require.ErrorIs(t, e.Apply(&b, SyncDefault), ErrConflict)
			requireValue(t, e, testKey(9), "") // nothing of the batch
			_, _, at, err = e.GetLatest(key, nil)
			require.NoError(t, err)
			apply(t, e, func(b *Batch) { b.SetIfUnchanged(key, rec("third"), at) })
			requireValue(t, e, key, "third")
			require.NoError(t, e.Close())
		})
	}
}

func apply(t testing.TB, e *Engine, fill func(*Batch)) {
	t.Helper()
	var b Batch
	fill(&b)
	require.NoError(t, e.Apply(&b, SyncDefault))
}

func TestConditionsHoldWithinOneGroup(t *testing.T) {
	// Two writers of one group have both read the old state; the second must not win by being in the
	// same group.
	e := mustOpen(t, quietOptions(vfs.NewMem()))
	put(t, e, testKey(1), "old")
	at := e.AppliedSeq()
	var first, second, third, unrelated Batch
	first.Merge(testKey(1), rec("m"))
	second.SetIfUnchanged(testKey(1), rec("s"), at)
	third.DeleteRange(testKey(5), testKey(6))
	unrelated.SetIfUnchanged(testKey(2), rec("u"), at)
	var inRange Batch
	inRange.SetIfUnchanged(testKey(5), rec("r"), at)
	group := []*request{{batch: &first}, {batch: &second}, {batch: &third}, {batch: &unrelated}, {batch: &inRange}}
	require.NoError(t, e.runAlone(func() error { e.commitGroup(group); return nil }))
	require.NoError(t, group[0].err)
	require.ErrorIs(t, group[1].err, ErrConflict)
	require.NoError(t, group[2].err)
	require.NoError(t, group[3].err)
	require.ErrorIs(t, group[4].err, ErrConflict)
	require.NoError(t, e.Close())
}

func TestConcurrentWritersOfOneKeyAllCount(t *testing.T) {
	// Read, decide, write if unchanged, again on conflict: the way of every client write. A lost update
	// here is a lost update for everybody.
	o := smallOptions(vfs.NewMem())
	e := mustOpen(t, o)
	const writers, each = 8, 40
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				for {
					old, found, at, err := e.GetLatest(testKey(1), nil)
					if err != nil {
						t.Error(err)
						return
					}
					n := 0
					if found {
						_, err = fmt.Sscanf(valueOf(old), "%d", &n)
					}
					if err != nil {
						t.Error(err)
						return
					}
					var b Batch
					b.SetIfUnchanged(testKey(1), rec(fmt.Sprint(n+1)), at)
					b.Set(testKey(100+w*each+i), rec("x"))
					err = e.Apply(&b, SyncDefault)
					if err == nil {
						break
					}
					if !isConflict(err) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	requireValue(t, e, testKey(1), fmt.Sprint(writers*each))
	require.NoError(t, e.Close())
	e = mustOpen(t, o)
	requireValue(t, e, testKey(1), fmt.Sprint(writers*each))
	for i := range writers * each {
		requireValue(t, e, testKey(100+i), "x")
	}
	require.NoError(t, e.Close())
}

func TestFailedSyncPoisonsAndShowsNothing(t *testing.T) {
	// After a failed fsync nobody knows what is on the disk. To retry and acknowledge, or to show the
	// write to readers, is how databases lost data for twenty years.
	disk := crashfs.New()
	inj := errorfs.None()
	var poisoned []error
	o := quietOptions(errorfs.Wrap(disk, inj))
	o.Events = func(ev Event) {
		if ev.Kind == EventPoisoned {
			poisoned = append(poisoned, ev.Err)
		}
	}
	e := mustOpen(t, o)
	put(t, e, testKey(1), "acknowledged")
	inj.FailAll(errorfs.Syncs, syscall.EIO)
	var b Batch
	b.Set(testKey(1), rec("lost"))
	require.ErrorIs(t, e.Apply(&b, SyncDefault), ErrPoisoned)
	requireValue(t, e, testKey(1), "acknowledged")
	for range 3 {
		err := e.Apply(&b, SyncDefault)
		require.ErrorIs(t, err, ErrPoisoned)
		require.ErrorIs(t, err, syscall.EIO, "the reason stays")
	}
	require.ErrorIs(t, e.Flush(context.Background()), ErrPoisoned)
	_, err := e.Ingest(context.Background(), nil)
	require.ErrorIs(t, err, ErrPoisoned)
	require.ErrorIs(t, e.SetNodeMeta(map[string]string{"a": "b"}), ErrPoisoned)
	require.ErrorIs(t, e.Checkpoint(context.Background(), "cp"), ErrPoisoned)
	requireValue(t, e, testKey(1), "acknowledged")
	require.Len(t, poisoned, 1)
	require.True(t, e.Metrics().Poisoned)
	require.Error(t, e.Close())
	requireNothingPinned(t, e)
	e, err = Open(testDir, quietOptions(disk.CrashImage(crashfs.DropUnsynced, rand.New(rand.NewPCG(1, 1)))))
	require.NoError(t, err)
	requireValue(t, e, testKey(1), "acknowledged")
	require.NoError(t, e.Close())
}

func TestFailedLogWriteAppliesNothing(t *testing.T) {
	// A write that failed must not be half there, and those after it must work.
	fs := &tornWrites{FS: vfs.NewMem(), match: "/log/"}
	o := quietOptions(fs)
	e := mustOpen(t, o)
	put(t, e, testKey(1), "a")
	fs.armed.Store(true)
	var b Batch
	b.Set(testKey(1), rec("b"))
	b.Set(testKey(2), rec("b"))
	require.ErrorIs(t, e.Apply(&b, SyncDefault), ErrLogWrite)
	requireValue(t, e, testKey(1), "a")
	requireValue(t, e, testKey(2), "")
	put(t, e, testKey(3), "c")
	require.NoError(t, e.Close())
	e = mustOpen(t, o)
	requireValue(t, e, testKey(1), "a")
	requireValue(t, e, testKey(3), "c")
	require.NoError(t, e.Close())
}

func TestBatchLargerThanAMemtableIsAtomic(t *testing.T) {
	// A batch that does not fit must neither be refused half way nor be split.
	fs := vfs.NewMem()
	o := smallOptions(fs)
	e := mustOpen(t, o)
	put(t, e, testKey(0), "small")
	var b Batch
	for i := range 300 {
		b.Set(testKey(i), rec(strings.Repeat("x", 300)))
	}
	require.NoError(t, e.Apply(&b, SyncDefault))
	put(t, e, testKey(1), "after")
	require.NoError(t, e.Flush(context.Background()))
	for i := 2; i < 300; i++ {
		requireValue(t, e, testKey(i), strings.Repeat("x", 300))
	}
	requireValue(t, e, testKey(1), "after")
	require.NoError(t, e.Close())
}

func TestHashSetIsASet(t *testing.T) {
	// A hash that is forgotten lets an overtaken Set pass.
	rapid.Check(t, func(t *rapid.T) {
		var s hashSet
		for range rapid.IntRange(1, 4).Draw(t, "rounds") {
			s.reset()
			want := map[uint64]bool{}
			for _, h := range rapid.SliceOfN(rapid.Uint64Range(0, 500), 0, 200).Draw(t, "hashes") {
				s.add(h * 0x10001)
				want[h*0x10001|1] = true
			}
			for h := range uint64(600) {
				if s.has(h*0x10001) != want[h*0x10001|1] {
					t.Fatalf("has(%d) is %v", h, !want[h*0x10001|1])
				}
			}
		}
	})
}

func FuzzIngestMarker(f *testing.F) {
	f.Add(ingestMarker{seq: 7, tables: []markedTable{{1, 2}, {3, 4}}}.encode())
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeIngestMarker(b)
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		require.Equal(t, b, m.encode())
	})
}
