package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

const (
	testDir = "data"

	// How long tests wait for a condition, and how often they look.
	eventually = 20 * time.Second
	tick       = time.Millisecond
)

// smallOptions make everything happen with little data.
func smallOptions(fs vfs.FS) Options {
	return Options{
		FS: fs, Clock: systemClock{}, Rand: rand.New(rand.NewPCG(1, 2)),
		LogSegmentBytes: 32 << 10, MemtableBytes: 16 << 10, TableBytes: 8 << 10, BaseBytes: 32 << 10,
		BlockCacheBytes: 1 << 20, RowCacheBytes: 1 << 20, FlushRetry: time.Millisecond, SyncInterval: time.Millisecond,
		SpacePoll: time.Millisecond, ReserveBytes: -1, DeleteBytesPerSecond: -1,
		Jobs: jobs.Options{Mode: jobs.ModeAlways, VerifyProbability: 1, LocalRate: -1},
	}
}

func mustOpen(t testing.TB, o Options) *Engine {
	t.Helper()
	e, err := Open(testDir, o)
	require.NoError(t, err)
	return e
}

// rec returns a valid record with a value.
func rec(value string) []byte {
	r, err := causal.NewRecord([]causal.Sibling{{Dot: causal.Dot{Node: "n", Counter: 1}, Value: []byte(value), Timestamp: 1 << 16}})
	if err != nil {
		panic(err)
	}
	return r.Encode(nil)
}

func testKey(i int) []byte { return fmt.Appendf(nil, "t\x00key%06d", i) }

func put(t testing.TB, e *Engine, key []byte, value string) {
	t.Helper()
	var b Batch
	b.Set(key, rec(value))
	require.NoError(t, e.Apply(&b, SyncDefault))
}

// requireValue checks what Get returns; "" is absent.
func requireValue(t testing.TB, e *Engine, key []byte, want string) {
	t.Helper()
	got, found, err := e.Get(key, nil)
	require.NoError(t, err)
	require.Equal(t, want != "", found, "found %q", key)
	if found {
		require.Equal(t, rec(want), got, "value of %q", key)
	}
}

func TestWritesSurviveFlushCompactionAndReopen(t *testing.T) {
	// The whole way of a write: log, memtable, table, compaction, recovery. A break anywhere loses
	// acknowledged data.
	fs := vfs.NewMem()
	o := smallOptions(fs)
	e := mustOpen(t, o)
	const n = 2000
	for i := range n {
		put(t, e, testKey(i%700), fmt.Sprintf("value-%d", i))
	}
	check := func() {
		for i := range 700 {
			last := i
			for last+700 < n {
				last += 700
			}
			requireValue(t, e, testKey(i), fmt.Sprintf("value-%d", last))
		}
		requireValue(t, e, testKey(5000), "")
	}
	check()
	require.NoError(t, e.Close())
	requireNothingPinned(t, e)
	e = mustOpen(t, o)
	check()
	require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
	check()
	m := e.Metrics()
	require.Positive(t, m.Installs+m.Moves)
	require.NoError(t, e.Close())
	requireNothingPinned(t, e)
	o.KeepMemtablesAtClose = true
	e = mustOpen(t, o)
	check()
	put(t, e, testKey(1), "again")
	require.NoError(t, e.Close())
	e = mustOpen(t, o)
	requireValue(t, e, testKey(1), "again")
	require.NoError(t, e.Close())
	requireNothingPinned(t, e)
}
