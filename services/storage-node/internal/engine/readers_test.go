package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// counterRecord is a record whose value is a number.
func counterRecord(t testing.TB, n uint64) []byte {
	r, err := causal.NewRecord([]causal.Sibling{{Clock: causal.Clock{{Node: "n", Counter: n + 1}}, Value: appendDecimal(nil, n), Timestamp: n}})
	if err != nil {
		t.Error(err)
	}
	return r.Encode(nil)
}

func counterOf(t testing.TB, record []byte) uint64 {
	r, err := causal.Decode(record)
	if err != nil || len(r.Siblings) != 1 {
		t.Errorf("record %x: %v", record, err)
		return 0
	}
	return decimal(r.Siblings[0].Value)
}

// Beside flushes, compactions and a row cache that is always full, a reader must never see a value
// older than one that was acknowledged before it asked: neither by a late fill of the cache, nor by a
// read state and a sequence of different moments, nor by tables in the wrong order.
func TestReadersNeverMissWhatWasAcknowledged(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	e, err := Open("db", Options{FS: vfs.NewMem(), Clock: systemClock{}, Rand: rand.New(rand.NewPCG(1, 1)),
		MemtableBytes: 16 << 10, TableBytes: 16 << 10, BaseBytes: 32 << 10, LogSegmentBytes: 64 << 10, L0Trigger: 2,
		L0Slow: 1000, L0Stop: 2000, RowCacheBytes: 8 << 10, BlockCacheBytes: 16 << 10, MaxOpenTables: 3,
		ReserveBytes: -1, DeleteBytesPerSecond: -1, Jobs: jobs.Options{Mode: jobs.ModeAlways, LocalRate: -1}})
	require.NoError(t, err)
	const writers, keysEach = 4, 25
	writes := 3_000
	if testing.Short() {
		writes = 300
	}
	key := func(k int) []byte { return fmt.Appendf(nil, "t\x00key%03d", k) }
	var acked [writers * keysEach]atomic.Uint64
	var stop atomic.Bool
	var write, read sync.WaitGroup
	for w := range writers {
		write.Go(func() {
			rng := rand.New(rand.NewPCG(2, uint64(w)))
			var b Batch
			for n := uint64(1); n <= uint64(writes); n++ {
				k := w*keysEach + rng.IntN(keysEach)
				b.Reset()
				if rng.IntN(4) == 0 {
					b.Merge(key(k), counterRecord(t, n))
				} else {
					b.Set(key(k), counterRecord(t, n))
				}
				if err := e.Apply(&b, SyncGroup); err != nil {
					t.Error(err)
					return
				}
				acked[k].Store(n)
			}
		})
	}
	for r := range 2 {
		read.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(r)))
			for !stop.Load() {
				if rng.IntN(50) == 0 {
					scanCounters(t, e, key, &acked)
					continue
				}
				k := rng.IntN(len(acked))
				floor := acked[k].Load()
				get := e.Get
				if rng.IntN(2) == 0 {
					get = func(key, dst []byte) ([]byte, bool, error) {
						value, found, _, err := e.GetLatest(key, dst)
						return value, found, err
					}
				}
				value, found, err := get(key(k), nil)
				if err != nil || !found && floor > 0 || found && counterOf(t, value) < floor {
					t.Errorf("key %d: found %v %x %v, %d was acknowledged", k, found, value, err, floor)
					return
				}
			}
		})
	}
	write.Wait()
	stop.Store(true)
	read.Wait()
	require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
	scanCounters(t, e, key, &acked)
	m := e.Metrics()
	t.Logf("%d flushes, %d installs, %d row hits", m.Flushes, m.Installs, m.RowCache.Hits)
	require.NotZero(t, m.Installs)
	require.NoError(t, e.Close())
	requireNothingPinned(t, e)
}

// scanCounters walks all keys; none may be older than what was acknowledged before.
func scanCounters(t testing.TB, e *Engine, key func(int) []byte, acked *[100]atomic.Uint64) {
	var floors [100]uint64
	for k := range floors {
		floors[k] = acked[k].Load()
	}
	it, err := e.NewIter(IterOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	seen := map[string]uint64{}
	for ok := it.First(); ok; ok = it.Next() {
		seen[string(it.Key())] = counterOf(t, it.Value())
	}
	if err := it.Close(); err != nil {
		t.Error(err)
	}
	for k, floor := range floors {
		if seen[string(key(k))] < floor {
			t.Errorf("walk: key %d is %d, %d was acknowledged", k, seen[string(key(k))], floor)
		}
	}
}
