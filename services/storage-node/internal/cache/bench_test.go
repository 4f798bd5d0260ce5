package cache

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/pairdb/pairdb/libs/ikey"
)

func BenchmarkRowsHit(b *testing.B) {
	r := NewRows(256 << 20)
	key, value := make([]byte, 24), make([]byte, 1024)
	for i := range uint64(100_000) {
		binary.BigEndian.PutUint64(key, i)
		r.Insert(key, value, 1)
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		rng := rand.New(rand.NewPCG(1, 2))
		key, dst := make([]byte, 24), make([]byte, 0, 2048)
		for pb.Next() {
			binary.BigEndian.PutUint64(key, rng.Uint64N(100_000))
			if _, ok := r.Get(key, dst, 2); !ok {
				b.Fatal("miss")
			}
		}
	})
}

func BenchmarkRowsInsertWhenFull(b *testing.B) {
	r := NewRows(32 << 20)
	key, value := make([]byte, 24), make([]byte, 1024)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		binary.BigEndian.PutUint64(key, uint64(i)*0x9e3779b97f4a7c15)
		r.Insert(key, value, 1)
	}
}

func BenchmarkRowsUpdate(b *testing.B) {
	r := NewRows(32 << 20)
	key, value := make([]byte, 24), make([]byte, 1024)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		binary.BigEndian.PutUint64(key, uint64(i)%10_000)
		r.Update(key, value, ikey.Seq(i+1), true)
	}
}

func BenchmarkBlocksHit(b *testing.B) {
	c := NewBlocks(256 << 20)
	for i := range uint64(50_000) {
		c.Put(i%100, i, make([]byte, 4096))
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		rng := rand.New(rand.NewPCG(1, 2))
		for pb.Next() {
			i := rng.Uint64N(50_000)
			c.Get(i%100, i)
		}
	})
}

// BenchmarkZipfHitRate prints the share of hits for a skewed workload in a cache for a tenth of it.
func BenchmarkZipfHitRate(b *testing.B) {
	r := NewRows(20 << 20)
	rng := rand.New(rand.NewPCG(1, 2))
	zipf := rand.NewZipf(rng, 1.01, 1, 200_000)
	key, value, dst := make([]byte, 24), make([]byte, 1000), make([]byte, 0, 2048)
	for b.Loop() {
		binary.BigEndian.PutUint64(key, zipf.Uint64())
		if _, ok := r.Get(key, dst, 2); !ok {
			r.Insert(key, value, 1)
		}
	}
	m := r.Metrics()
	b.ReportMetric(float64(m.Hits)/float64(m.Hits+m.Misses), "hits/op")
}
