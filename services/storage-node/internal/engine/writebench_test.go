package engine

import (
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/pairdb/pairdb/libs/vfs"
)

// benchWrites puts values of 1 KiB under random keys of 24 bytes on the real disk.
func benchWrites(b *testing.B, mode SyncMode, writers int) {
	o := Options{FS: vfs.OS, Clock: systemClock{}, Rand: rand.New(rand.NewPCG(1, 2)), Sync: mode, ReserveBytes: -1}
	o.Jobs.LocalRate = -1
	e, err := Open(b.TempDir(), o)
	if err != nil {
		b.Fatal(err)
	}
	value := rec(string(randomValue(o.Rand, 1000)))
	var seed atomic.Uint64
	b.SetBytes(int64(len(value)))
	b.SetParallelism(writers)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		rng := rand.New(rand.NewPCG(seed.Add(1), 3))
		key := []byte("tenant\x00................")
		var batch Batch
		for pb.Next() {
			binary.BigEndian.PutUint64(key[7:], rng.Uint64()|0x0101010101010101)
			batch.Reset()
			batch.Set(key, value)
			if err := e.Apply(&batch, SyncDefault); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
	m := e.Metrics()
	b.ReportMetric(float64(m.Batches)/float64(max(m.Syncs, 1)), "writes/sync")
	if err := e.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkFillNoSync(b *testing.B)     { benchWrites(b, SyncNever, 1) }
func BenchmarkDurableWrite2(b *testing.B)  { benchWrites(b, SyncGroup, 1) }
func BenchmarkDurableWrite64(b *testing.B) { benchWrites(b, SyncGroup, 32) }
