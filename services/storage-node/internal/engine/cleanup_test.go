package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
)

func merge(t testing.TB, e *Engine, key, value []byte) {
	t.Helper()
	var b Batch
	b.Merge(key, value)
	require.NoError(t, e.Apply(&b, SyncDefault))
}

// half is the half of the ring that is cleaned.
var half = ring.HashRange{Start: 1 << 63}

func inHalf(key []byte) bool {
	token, ok := compact.TokenOf(key)
	return ok && half.Contains(token)
}

func dropHalf(seq ikey.Seq) []compact.HashCut { return []compact.HashCut{{Range: half, Seq: seq}} }

// Danger: a cleanup takes what is the node's, or leaves of what is not, in a table, a memtable or a cache,
// an old value that comes back to life when the range is regained.
func TestCleanupRemovesWhatIsNotOwnedAndNothingElse(t *testing.T) {
	fs := vfs.NewMem()
	for name, o := range map[string]Options{"quiet": quietOptions(fs), "busy": smallOptions(vfs.NewMem())} {
		t.Run(name, func(t *testing.T) {
			e := mustOpen(t, o)
			put(t, e, []byte("_system\x00k"), "own")
			fill(t, e, 3)
			for i := range 40 {
				merge(t, e, testKey(i), otherRecord("fragment"))
			}
			put(t, e, testKey(100), "in memory")
			put(t, e, testKey(103), "in memory")
			for i := range 40 { // rows are cached
				_, found, err := e.Get(testKey(i), nil)
				require.NoError(t, err)
				require.True(t, found)
			}
			var steps []CleanupProgress
			require.NoError(t, e.Cleanup(context.Background(), dropHalf(e.VisibleSeq()), 0, func(p CleanupProgress) { steps = append(steps, p) }))
			gone := 0
			for _, i := range append(sequence(40), 100, 103) {
				_, found, err := e.Get(testKey(i), nil)
				require.NoError(t, err)
				require.Equal(t, !inHalf(testKey(i)), found, "key %d", i)
				if !found {
					gone++
				}
			}
			require.Greater(t, gone, 5)
			require.Less(t, gone, 38)
			requireValue(t, e, []byte("_system\x00k"), "own")
			require.EqualValues(t, gone, e.Metrics().Dropped)
			require.EqualValues(t, gone, steps[len(steps)-1].Dropped)

			// What comes later is not joined with what was there.
			for i := range 40 {
				if inHalf(testKey(i)) {
					merge(t, e, testKey(i), otherRecord("late"))
					got, found, err := e.Get(testKey(i), nil)
					require.NoError(t, err)
					require.True(t, found)
					require.Equal(t, otherRecord("late"), got)
				}
			}
			require.NoError(t, e.Close())
			e = mustOpen(t, o) // nor does the log bring anything back
			for i := range 40 {
				got, found, err := e.Get(testKey(i), nil)
				require.NoError(t, err)
				require.True(t, found)
				if inHalf(testKey(i)) {
					require.Equal(t, otherRecord("late"), got)
				}
			}
			require.NoError(t, e.Close())
			requireNothingPinned(t, e)
		})
	}
}

// sequence returns 0 to n-1.
func sequence(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// otherRecord is a record of another actor than rec's.
func otherRecord(value string) []byte {
	r, err := causal.NewRecord([]causal.Sibling{{Dot: causal.Dot{Node: "other", Counter: 1}, Value: []byte(value), Timestamp: 1 << 16}})
	if err != nil {
		panic(err)
	}
	return r.Encode(nil)
}

// Danger: a write that is acknowledged during a cleanup is taken with what was there before.
func TestCleanupKeepsWhatIsWrittenMeanwhile(t *testing.T) {
	o := smallOptions(vfs.NewMem())
	o.Jobs.LocalRate = 4 << 20 // long enough for writes in between
	e := mustOpen(t, o)
	fill(t, e, 4)
	cut := e.VisibleSeq()
	var during atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	var last [40]string
	go func() {
		defer close(done)
		rng := rand.New(rand.NewPCG(1, 1))
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			i := rng.IntN(40)
			last[i] = fmt.Sprintf("new-%d", n)
			put(t, e, testKey(i), last[i])
			during.Add(1)
		}
	}()
	require.NoError(t, e.Cleanup(context.Background(), dropHalf(cut), 0, nil))
	require.Eventually(t, func() bool { return during.Load() > 100 }, eventually, tick)
	close(stop)
	<-done
	// Once more with the same cut: it has nothing left to take.
	dropped := e.Metrics().Dropped
	require.NoError(t, e.Cleanup(context.Background(), dropHalf(cut), 0, nil))
	require.Equal(t, dropped, e.Metrics().Dropped)
	for i := range 40 {
		switch {
		case last[i] != "":
			requireValue(t, e, testKey(i), last[i])
		case inHalf(testKey(i)):
			requireValue(t, e, testKey(i), "")
		default:
			requireValue(t, e, testKey(i), fmt.Sprintf("3-%d", i))
		}
	}
	require.NoError(t, e.Close())
}

// Danger: an export reads half of a key's history; or the cleanup says that it is done while a snapshot
// had it leave something.
func TestCleanupLeavesWhatASnapshotSeesAndSaysSo(t *testing.T) {
	e := mustOpen(t, quietOptions(vfs.NewMem()))
	fill(t, e, 1)
	s := e.NewSnapshot()
	fill(t, e, 1)
	cut := e.VisibleSeq()
	require.ErrorIs(t, e.Cleanup(context.Background(), dropHalf(cut), 0, nil), ErrSnapshotHolds)
	for i := range 40 {
		got, found, err := s.Get(testKey(i), nil)
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, rec(fmt.Sprintf("0-%d", i)), got)
		requireValue(t, e, testKey(i), fmt.Sprintf("0-%d", i)) // and nobody sees anything older
	}
	require.NoError(t, s.Close())
	require.NoError(t, e.Cleanup(context.Background(), dropHalf(cut), 0, nil))
	for i := range 40 {
		_, found, err := e.Get(testKey(i), nil)
		require.NoError(t, err)
		require.Equal(t, !inHalf(testKey(i)), found)
	}
	require.NoError(t, e.Close())
	requireNothingPinned(t, e)
}

// Danger: a cleanup that a crash breaks off leaves what nothing ever takes, or has taken what it should
// not; or one that was cancelled goes on dropping.
func TestCleanupGoesOnAfterACrash(t *testing.T) {
	disk := crashfs.New()
	e := mustOpen(t, smallOptions(disk))
	fill(t, e, 6)
	cut := e.VisibleSeq()
	ctx, cancel := context.WithCancel(context.Background())
	err := e.Cleanup(ctx, dropHalf(cut), 0, func(CleanupProgress) { cancel() })
	require.ErrorIs(t, err, context.Canceled)
	image := disk.CrashImage(crashfs.DropUnsynced, rand.New(rand.NewPCG(3, 4)))
	require.NoError(t, e.Close())

	e = mustOpen(t, smallOptions(image))
	for i := range 40 {
		if !inHalf(testKey(i)) {
			requireValue(t, e, testKey(i), fmt.Sprintf("5-%d", i))
		}
	}
	put(t, e, testKey(0), "again")
	require.NoError(t, e.Cleanup(context.Background(), dropHalf(cut), 0, nil))
	for i := 1; i < 40; i++ {
		_, found, err := e.Get(testKey(i), nil)
		require.NoError(t, err)
		require.Equal(t, !inHalf(testKey(i)), found, "key %d", i)
	}
	requireValue(t, e, testKey(0), "again")
	require.NoError(t, e.Close())
}

// Danger: a range with a cut in the future takes what is yet to be written.
func TestCleanupCutsEndAtWhatIsVisible(t *testing.T) {
	e := mustOpen(t, quietOptions(vfs.NewMem()))
	fill(t, e, 1)
	dropped := false
	require.NoError(t, e.Cleanup(context.Background(), dropHalf(ikey.MaxSeq), 0, func(CleanupProgress) {
		if !dropped {
			dropped = true
			for i := range 40 {
				put(t, e, testKey(i), "newer")
			}
		}
	}))
	require.True(t, dropped)
	require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
	for i := range 40 {
		requireValue(t, e, testKey(i), "newer")
	}
	require.NoError(t, e.Cleanup(context.Background(), nil, 0, nil), "nothing to do")
	require.NoError(t, e.Close())
	require.ErrorIs(t, e.Cleanup(context.Background(), dropHalf(1), 0, nil), ErrClosed)
}

// Danger: a replica that was away brings a deleted value back, because the delete was collected before it
// had it; or, held back, it has its table rewritten without an end.
func TestCutsHoldTombstonesBackUntilReplicasHaveThem(t *testing.T) {
	o := smallOptions(vfs.NewMem())
	o.GCBefore = func() uint64 { return 1 << 40 }
	var cuts atomic.Pointer[[]compact.HashCut]
	cuts.Store(&[]compact.HashCut{})
	o.Cuts = func() ([]compact.HashCut, bool) { return *cuts.Load(), true }
	e := mustOpen(t, o)
	var b Batch
	for i := range 40 {
		b.Set(testKey(i), tombstone(1))
	}
	b.Set([]byte("_system\x00k"), tombstone(1))
	require.NoError(t, e.Apply(&b, SyncDefault))
	require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
	require.Equal(t, 40, tombstones(t, e), "those of the ring")

	installs := e.Metrics().Installs
	notify(e.wake.schedule)
	require.Never(t, func() bool { return e.Metrics().Installs > installs }, 20*tick, tick)

	// Half of the ring was compared.
	half := []compact.HashCut{{Range: half, Seq: e.VisibleSeq()}}
	cuts.Store(&half)
	require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
	want := 0
	for i := range 40 {
		if !inHalf(testKey(i)) {
			want++
		}
	}
	require.Equal(t, want, tombstones(t, e))
	all := []compact.HashCut{{Seq: e.VisibleSeq()}}
	cuts.Store(&all)
	require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
	require.Zero(t, tombstones(t, e))
	require.NoError(t, e.Close())
}

// tombstones counts them in all tables.
func tombstones(t testing.TB, e *Engine) (n int) {
	t.Helper()
	tables, err := e.Tables()
	require.NoError(t, err)
	for _, table := range tables {
		n += int(table.Tombstones)
	}
	return n
}

// Danger: an entry of a clock is forgotten because an older sequence is taken for that of the record.
func TestNewestSeqIsThatOfTheNewestEntry(t *testing.T) {
	e := mustOpen(t, quietOptions(vfs.NewMem()))
	key := testKey(1)
	requireSeq := func(want ikey.Seq) {
		t.Helper()
		seq, found, err := e.NewestSeq(key)
		require.NoError(t, err)
		require.Equal(t, want != 0, found)
		require.Equal(t, want, seq)
	}
	requireSeq(0)
	put(t, e, key, "v")
	first := e.VisibleSeq()
	requireSeq(first)
	put(t, e, testKey(2), "other")
	requireSeq(first)
	require.NoError(t, e.Flush(context.Background()))
	requireSeq(first)
	merge(t, e, key, otherRecord("late"))
	second := e.VisibleSeq()
	require.Greater(t, second, first)
	requireSeq(second)
	require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
	requireSeq(second)
	apply(t, e, func(b *Batch) { b.Delete(key) })
	requireSeq(0)
	require.NoError(t, e.Close())
	_, _, err := e.NewestSeq(key)
	require.ErrorIs(t, err, ErrClosed)
}
