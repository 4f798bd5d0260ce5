package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/iterator"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
)

func TestFailedFlushNeverLosesItsMemtable(t *testing.T) {
	// A failed flush whose memtable the next one overwrote cost another node 54,330 of 130,000
	// acknowledged keys. Writers must stall instead, say why, and go on when flushes work again.
	failing := &failingCreate{FS: vfs.NewMem(), match: "/sst/"}
	o := smallOptions(failing)
	o.MaxImmutables, o.LogSegmentBytes, o.NoAutoCompaction = 2, 8<<20, true
	e := mustOpen(t, o)
	failing.on.Store(true)
	written := 1
	var err error
	for ; err == nil && written < 5000; written++ {
		var b Batch
		b.Set(testKey(written), rec(strings.Repeat("x", 100)))
		err = e.Apply(&b, SyncDefault)
	}
	require.ErrorIs(t, err, ErrStalled)
	var stalled *StalledError
	require.ErrorAs(t, err, &stalled)
	require.Positive(t, stalled.RetryAfter)
	require.Contains(t, stalled.Error(), "injected")
	require.Equal(t, o.MaxImmutables, e.Metrics().Immutables)
	require.Positive(t, e.Metrics().Stalls)
	require.Positive(t, e.Metrics().StallTime)
	require.Error(t, e.Flush(context.Background()))
	for i := 1; i < written-1; i++ {
		requireValue(t, e, testKey(i), strings.Repeat("x", 100))
	}
	failing.on.Store(false)
	require.NoError(t, e.Flush(context.Background()))
	put(t, e, testKey(written), "after")
	for i := 1; i < written-1; i++ {
		requireValue(t, e, testKey(i), strings.Repeat("x", 100))
	}
	require.Positive(t, e.Metrics().FlushFailures)
	require.NoError(t, e.Close())
}

func TestWhatIsMadeAheadCanBeLeftOut(t *testing.T) {
	// A switch that does nothing tells whoever compares with it that the technique brings nothing.
	for _, off := range []bool{false, true} {
		o := quietOptions(vfs.NewMem())
		o.NoSpareMemtable, o.NoTableWarming = off, off
		e := mustOpen(t, o)
		spares := func() int {
			e.arenas.mu.Lock()
			defer e.arenas.mu.Unlock()
			return len(e.arenas.spare)
		}
		put(t, e, testKey(1), "v")
		require.NoError(t, e.Flush(context.Background()))
		if off {
			require.Zero(t, e.tables.opens.Load())
		} else {
			require.EqualValues(t, 1, e.tables.opens.Load())
			require.Eventually(t, func() bool { return spares() == 1 }, eventually, tick)
		}
		requireValue(t, e, testKey(1), "v")
		e.arenas.keepSpare(o.MemtableBytes)
		require.Equal(t, off, spares() == 0)
		require.NoError(t, e.Close())
	}
}

func TestFlushWritesOnlyWhatIsDurable(t *testing.T) {
	// A table with a write whose log is not durable would survive a power cut that the write before it
	// does not.
	disk := crashfs.New()
	g := newGate(disk)
	e := mustOpen(t, quietOptions(disk))
	put(t, e, testKey(0), "v")
	var b Batch
	b.Set(testKey(1), rec("not yet durable"))
	_, err := e.Submit(&b)
	require.NoError(t, err)
	g.close(logSync)
	done := make(chan error)
	go func() { done <- e.Flush(context.Background()) }()
	<-g.atGate // the flush syncs the log before it makes a table
	names, err := disk.List("data/sst")
	require.NoError(t, err)
	require.Empty(t, names)
	g.release()
	require.NoError(t, <-done)
	require.NoError(t, e.Close())
}

func TestFlushKeepsWhatSnapshotsSee(t *testing.T) {
	// What a flush drops as shadowed is gone for every snapshot.
	rapid.Check(t, func(t *rapid.T) {
		var entries []iterator.Entry
		kinds := []ikey.Kind{ikey.KindSet, ikey.KindMerge, ikey.KindDelete}
		for seq := range rapid.IntRange(1, 30).Draw(t, "n") {
			k := ikey.Make([]byte{"ab"[rapid.IntRange(0, 1).Draw(t, "key")]}, ikey.Seq(seq+1), rapid.SampledFrom(kinds).Draw(t, "kind"))
			entries = append(entries, iterator.Entry{Key: k, Value: fmt.Appendf(nil, "%d", seq+1)})
		}
		var snapshots []ikey.Seq
		for s := range 31 {
			if rapid.IntRange(0, 4).Draw(t, "snapshot") == 0 {
				snapshots = append(snapshots, ikey.Seq(s))
			}
		}
		slices.SortFunc(entries, func(a, b iterator.Entry) int { return ikey.Compare(a.Key, b.Key) })
		var kept []iterator.Entry
		err := writeNewest(iterator.Slice(entries), snapshots, func(k ikey.Key, v []byte) error {
			kept = append(kept, iterator.Entry{Key: k.Clone(), Value: v})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range append(snapshots, ikey.MaxSeq) {
			for _, user := range []string{"a", "b"} {
				want, got := stack(entries, user, at), stack(kept, user, at)
				if want != got {
					t.Fatalf("key %s at %d: %s, without shadowed entries %s", user, at, want, got)
				}
			}
		}
	})
}

// stack prints what a reader at a sequence joins for a key: fragments, then a Set or a Delete.
func stack(entries []iterator.Entry, user string, at ikey.Seq) (s string) {
	for _, e := range entries { // newest first
		if string(e.Key.User) != user || e.Key.Seq() > at {
			continue
		}
		s += e.Key.String() + " "
		if e.Key.Kind() != ikey.KindMerge {
			return s
		}
	}
	return s
}

func TestRotationSyncsBeforeTheNextSegment(t *testing.T) {
	// Many rotations, segments and flushes in one go: what the log gave up must be in tables.
	disk := crashfs.New()
	o := smallOptions(disk)
	o.Sync, o.LogRecycled = SyncNever, 3
	e := mustOpen(t, o)
	for i := range 3000 {
		put(t, e, testKey(i%500), fmt.Sprintf("%d-%s", i, strings.Repeat("y", i%90)))
	}
	m := e.log.Metrics()
	require.Positive(t, m.Rotations)
	require.Positive(t, m.Recycled)
	require.Less(t, m.LiveSegments, uint64(12), "the log is trimmed behind the flushes")
	require.NoError(t, e.Close())
	e = mustOpen(t, o)
	for i := 2500; i < 3000; i++ {
		requireValue(t, e, testKey(i%500), fmt.Sprintf("%d-%s", i, strings.Repeat("y", i%90)))
	}
	require.NoError(t, e.Close())
}
