package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func drawRangeDeletes(t *rapid.T, most int) []ikey.RangeDelete {
	n := rapid.IntRange(0, most).Draw(t, "deletes")
	dels := make([]ikey.RangeDelete, n)
	for i := range dels {
		from := rapid.IntRange(0, 29).Draw(t, "from")
		to := rapid.IntRange(from, 30).Draw(t, "to") // from == to: an empty range removes nothing
		dels[i] = ikey.RangeDelete{
			Start: fmt.Appendf(nil, "k%02d", from), End: fmt.Appendf(nil, "k%02d", to),
			Seq: ikey.Seq(rapid.IntRange(1, 40).Draw(t, "seq")),
		}
	}
	return dels
}

// A range delete that the index forgets brings deleted data back; one that it stretches deletes
// what is there. The skyline must answer as a look at every delete does.
func TestRangeMaskEqualsEveryDelete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dels := drawRangeDeletes(t, 12)
		at := ikey.Seq(rapid.IntRange(0, 41).Draw(t, "at"))
		mask := newRangeMask(dels, at)
		index := newRangeIndex(dels)
		for range 64 {
			user := fmt.Appendf(nil, "k%02d", rapid.IntRange(0, 31).Draw(t, "key"))
			want := coveringLinear(dels, user, at)
			require.Equal(t, want, mask.at(user), "mask at %s", user)
			require.Equal(t, want, index.covering(user, at), "index at %s", user)
		}
		for i := 1; i < len(mask.spans); i++ {
			require.LessOrEqual(t, string(mask.spans[i-1].end), string(mask.spans[i].start))
		}
	})
}

// A table that is left out of a scan because a range delete hides it must hold nothing that counts.
func TestRangeMaskHidesOnlyWhatIsDeleted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dels := drawRangeDeletes(t, 6)
		mask := newRangeMask(dels, ikey.MaxSeq)
		from := rapid.IntRange(0, 30).Draw(t, "smallest")
		to := rapid.IntRange(from, 31).Draw(t, "largest")
		seq := ikey.Seq(rapid.IntRange(1, 40).Draw(t, "maxSeq"))
		smallest := ikey.Make(fmt.Appendf(nil, "k%02d", from), 1, ikey.KindSet)
		largest := ikey.Make(fmt.Appendf(nil, "k%02d", to), 1, ikey.KindSet)
		if !mask.hides(smallest, largest, seq) {
			return
		}
		for i := from; i <= to; i++ {
			require.Greater(t, coveringLinear(dels, fmt.Appendf(nil, "k%02d", i), ikey.MaxSeq), seq)
		}
	})
}

// pickHook has options call f, once, while a pick collects its facts, and returns a function that
// arms it and one that starts two picks, one after the other, and returns when they are over.
func pickHook(o *Options, f func()) (arm func(), picks func(t *testing.T, e *Engine)) {
	armed, calls := make(chan struct{}, 1), make(chan struct{}, 100)
	o.GCBefore = func() uint64 {
		select {
		case <-armed:
			f()
		default:
		}
		calls <- struct{}{}
		return 0
	}
	arm = func() { armed <- struct{}{} }
	return arm, func(t *testing.T, e *Engine) {
		for range 2 {
			for len(calls) > 0 {
				<-calls
			}
			notify(e.wake.schedule)
			<-calls
		}
		e.mu.Lock() // the second pick holds it until it has looked
		defer e.mu.Unlock()
	}
}

func deleteAll(t *testing.T, e *Engine, mode SyncMode) {
	t.Helper()
	var b Batch
	b.DeleteRange([]byte("\x00"), []byte("\xff"))
	require.NoError(t, e.Apply(&b, mode))
}

// Danger: a table goes because a range delete covers it, which came after a snapshot that came after
// the list of snapshots was made.
func TestDroppedTablesAreNoneThatASnapshotReads(t *testing.T) {
	o := quietOptions(vfs.NewMem())
	o.NoAutoCompaction = false
	var e *Engine
	var snap *Snapshot
	arm, picks := pickHook(&o, func() {
		snap = e.NewSnapshot()
		deleteAll(t, e, SyncDefault)
	})
	e = mustOpen(t, o)
	put(t, e, testKey(1), "v")
	require.NoError(t, e.Flush(context.Background()))
	arm()
	picks(t, e)
	requireValue(t, e, testKey(1), "")
	got, found, err := snap.Get(testKey(1), nil)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, rec("v"), got)
	require.NoError(t, snap.Close())
	picks(t, e)
	require.Eventually(t, func() bool { return len(mustTables(t, e)) == 0 }, eventually, tick, "nobody needs it any more")
	require.NoError(t, e.Close())
}

// Danger: a snapshot of the empty store, at sequence 0, passes for no snapshot at all, and hides the one
// that needs the tables.
func TestASnapshotOfTheEmptyStoreHidesNoOther(t *testing.T) {
	o := quietOptions(vfs.NewMem())
	o.NoAutoCompaction = false
	_, picks := pickHook(&o, nil)
	e := mustOpen(t, o)
	empty := e.NewSnapshot()
	put(t, e, testKey(1), "v")
	require.NoError(t, e.Flush(context.Background()))
	full := e.NewSnapshot()
	deleteAll(t, e, SyncGroup)
	picks(t, e)
	picks(t, e)
	got, found, err := full.Get(testKey(1), nil)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, rec("v"), got)
	require.NoError(t, full.Close())
	picks(t, e)
	require.Eventually(t, func() bool { return len(mustTables(t, e)) == 0 }, eventually, tick, "the empty one needs nothing")
	require.NoError(t, empty.Close())
	require.NoError(t, e.Close())
}

// Danger: a power cut takes the range delete, which nobody waited for, and finds the tables gone.
func TestTablesAreDroppedWhenTheRangeDeleteIsDurable(t *testing.T) {
	disk := crashfs.New()
	o := quietOptions(disk)
	o.Sync, o.NoAutoCompaction = SyncNever, false
	_, picks := pickHook(&o, nil)
	e := mustOpen(t, o)
	put(t, e, testKey(1), "v")
	require.NoError(t, e.Flush(context.Background()))
	deleteAll(t, e, SyncDefault)
	requireValue(t, e, testKey(1), "")
	picks(t, e)
	picks(t, e)
	image := disk.CrashImage(crashfs.DropUnsynced, rand.New(rand.NewPCG(1, 1)))
	require.NoError(t, e.syncWritten())
	picks(t, e)
	require.Eventually(t, func() bool { return len(mustTables(t, e)) == 0 }, eventually, tick, "it is durable now")
	require.NoError(t, e.Close())

	o.FS, o.GCBefore = image, nil
	e = mustOpen(t, o)
	requireValue(t, e, testKey(1), "v")
	require.NoError(t, e.Close())
}

func mustTables(t *testing.T, e *Engine) []TableInfo {
	t.Helper()
	tables, err := e.Tables()
	require.NoError(t, err)
	return tables
}
