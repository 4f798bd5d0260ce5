package engine

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
)

func TestGroupSizesAreCountedUpToTheirPowerOfTwo(t *testing.T) {
	// A size in the wrong bucket says that writers do not share syncs, or that they do.
	for n, bucket := range map[int]int{1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 8: 3, 9: 4, 1 << 15: 15, 1<<15 + 1: 16, 1 << 20: 16} {
		var g groupSizes
		g.add(n)
		require.Equal(t, uint64(1), g.groups[bucket].Load(), "%d batches", n)
		require.Equal(t, uint64(n), g.batches.Load())
	}
}

func TestFollowersAreCountedWhileTheyFollow(t *testing.T) {
	// Followers hold the log: who does not see them does not know why it grows.
	e := mustOpen(t, smallOptions(vfs.NewMem()))
	put(t, e, testKey(1), "v")
	tail, err := e.Tail(1)
	require.NoError(t, err)
	require.NoError(t, e.PinTail("backup", 1))
	m := e.Metrics()
	require.Equal(t, []int{1, 1}, []int{m.OpenTails, m.TailPins})
	require.Positive(t, m.Log.Pins)
	require.Positive(t, m.Limits.TailPins)
	require.NoError(t, tail.Close())
	require.NoError(t, e.UnpinTail("backup"))
	m = e.Metrics()
	require.Equal(t, []int{0, 0}, []int{m.OpenTails, m.TailPins})
	require.NoError(t, e.Close())
}

func TestTablesThatWaitForTheirDeletionAreCounted(t *testing.T) {
	// Space that is not given back is missed by whoever looks at the disk, and found here.
	o := smallOptions(vfs.NewMem())
	o.DeleteBytesPerSecond = 1 // the first one is deleted, the others wait for hours
	e := mustOpen(t, o)
	for i := range 200 {
		put(t, e, testKey(i%50), "v")
		if i%50 == 49 {
			require.NoError(t, e.Flush(context.Background()))
		}
	}
	require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
	require.Eventually(t, func() bool {
		m := e.Metrics()
		return m.ObsoleteTables > 0 && m.ObsoleteBytes > 0 && m.DeletedTables > 0
	}, eventually, tick)
	require.NoError(t, e.Close())
}
