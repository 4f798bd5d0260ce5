package engine

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
)

func TestShortMemoryIsGivenBackAndTakenAgain(t *testing.T) {
	// A node that keeps its memtables and caches while the kernel looks for somebody to kill is the one.
	o := quietOptions(vfs.NewMem())
	o.MemtableBytes, o.LogSegmentBytes = 64<<10, 64<<10
	o.RowCacheBytes, o.BlockCacheBytes = 1<<20, 1<<20
	e := mustOpen(t, o)
	for i := range 100 {
		put(t, e, testKey(i), strings.Repeat("v", 100))
		requireValue(t, e, testKey(i), strings.Repeat("v", 100))
	}
	require.NoError(t, e.Flush(context.Background()))
	for i := range 100 {
		requireValue(t, e, testKey(i), strings.Repeat("v", 100))
	}
	put(t, e, testKey(1), "in the memtable")
	flushes, full := e.Metrics().Flushes, e.Metrics().RowCache.CapacityBytes

	e.SetMemory(MemoryHigh)
	e.ResizeCaches(0.125)
	require.Eventually(t, func() bool { return e.Metrics().Flushes > flushes }, eventually, tick, "the memtable is flushed early")
	require.LessOrEqual(t, e.Metrics().RowCache.CapacityBytes, full/8)
	require.LessOrEqual(t, e.Metrics().RowCache.Bytes, full/8)
	require.LessOrEqual(t, e.Metrics().BlockCache.CapacityBytes, int64(1<<20/8))
	rotations := e.Metrics().Rotations
	for i := range 250 { // more than a quarter of a memtable, less than half
		put(t, e, testKey(i), strings.Repeat("w", 50))
	}
	require.Greater(t, e.Metrics().Rotations, rotations, "memtables are smaller")
	e.arenas.mu.Lock()
	require.Empty(t, e.arenas.spare, "no memory is kept for the next one")
	e.arenas.mu.Unlock()

	e.SetMemory(MemoryCritical)
	var b Batch
	b.Set(testKey(1), rec("x"))
	require.ErrorIs(t, e.Apply(&b, SyncGroup), ErrMemoryPressure)
	b.Removal()
	require.ErrorIs(t, e.Apply(&b, SyncGroup), ErrMemoryPressure, "a tombstone takes memory like any write")
	require.True(t, e.Metrics().Pressure.Memory)
	requireValue(t, e, testKey(2), strings.Repeat("w", 50))

	e.SetMemory(MemoryOK)
	e.ResizeCaches(1)
	put(t, e, testKey(1), "again")
	require.Equal(t, full, e.Metrics().RowCache.CapacityBytes)
	require.NoError(t, e.Flush(context.Background()))
	rotations = e.Metrics().Rotations
	for i := range 250 {
		put(t, e, testKey(i), fmt.Sprintf("%050d", i))
	}
	require.Equal(t, rotations, e.Metrics().Rotations, "memtables have their size again")
	require.NoError(t, e.Close())
}

func TestProgressTellsAHungDiskFromAnIdleOne(t *testing.T) {
	// An idle store must not look hung, nor a hung one idle.
	disk := crashfs.New()
	g := newGate(disk)
	e := mustOpen(t, quietOptions(disk))
	put(t, e, testKey(1), "v")
	require.Eventually(t, func() bool { return e.Progress().Waiting == 0 }, eventually, tick, "nobody waits")
	before := e.Progress().Steps
	g.close(logSync)
	done := make(chan error, 1)
	go func() {
		var b Batch
		b.Set(testKey(2), rec("v"))
		done <- e.Apply(&b, SyncGroup)
	}()
	<-g.atGate
	// What stands at the gate first may be the sync of a segment that is made ready, not that of the batch.
	require.Eventually(t, func() bool { return e.Progress().Waiting > 0 }, eventually, tick, "the batch waits")
	var last Progress
	require.Eventually(t, func() bool {
		now := e.Progress()
		stands := now == last
		last = now
		return stands
	}, eventually, tick, "nothing moves from one look to the next")
	g.release()
	require.NoError(t, <-done)
	require.Greater(t, e.Progress().Steps, before)
	require.NoError(t, e.Close())
}

func TestPressureIsThatOfTheLatestState(t *testing.T) {
	// Whoever has judged before a state ended must not have the last word: writes would be refused for ever,
	// and with them all that would have pressure judged again.
	var j judgement
	var full atomic.Bool
	full.Store(true)
	judge := func() Pressure { return Pressure{Refuse: full.Load()} }
	looked, goOn := make(chan struct{}), make(chan struct{})
	var told []bool
	tell := func(_, now Pressure) { told = append(told, now.Refuse) }
	var judges sync.WaitGroup
	judges.Go(func() {
		j.replace(func() Pressure {
			p := judge()
			close(looked)
			<-goOn
			return p
		}, tell)
	})
	<-looked
	full.Store(false)
	later := make(chan struct{})
	judges.Go(func() {
		defer close(later)
		j.replace(judge, tell)
	})
	select {
	case <-later:
		t.Error("the later judge has overtaken the earlier one")
	case <-time.After(20 * time.Millisecond):
	}
	close(goOn)
	judges.Wait()
	require.False(t, j.Load().Refuse)
	require.Equal(t, []bool{true, false}, told)
}
