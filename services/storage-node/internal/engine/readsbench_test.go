package engine

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/services/storage-node/internal/cache"
)

// benchKeys keys of 24 bytes with values of benchValue bytes: 1 % in level 0 and the memtable, the
// rest in level 6, in tables of some 4 MiB.
const (
	benchKeys  = 200_000
	benchValue = 200
)

func benchKey(dst []byte, i int) []byte {
	return fmt.Appendf(dst[:0], "bench\x00user%014d", i*7919%benchKeys)
}

func benchShelf(b *testing.B, blockCache int64) *shelf {
	b.Helper()
	s := newShelf(b, blockCache, 100)
	rng := rand.New(rand.NewPCG(1, 1))
	value := randomValue(rng, benchValue)
	o := sstable.WriterOptions{Compression: sstable.S2, FilterBitsPerKey: 10}
	var part []entry
	for i := range benchKeys {
		key := fmt.Appendf(nil, "bench\x00user%014d", i)
		part = append(part, entry{key: ikey.Make(key, 1, ikey.KindSet), value: value})
		if len(part) == 20_000 || i == benchKeys-1 {
			s.table(6, part, o)
			part = part[:0]
		}
	}
	for level := range 2 {
		part = nil
		for i := level; i < benchKeys; i += 200 {
			part = append(part, entry{key: ikey.Make(fmt.Appendf(nil, "bench\x00user%014d", i), ikey.Seq(2+level), ikey.KindSet), value: value})
		}
		s.table(0, part, o)
	}
	s.memtable(part[:100])
	s.publish(10)
	b.Cleanup(s.close)
	return s
}

// benchGet reads keys that name makes, over and over, after one round to warm up.
func benchGet(b *testing.B, s *shelf, keys int, found bool, name func(dst []byte, i int) []byte) {
	dst, key := make([]byte, 0, 4<<10), make([]byte, 0, 64)
	names := make([][]byte, keys)
	for i := range names {
		names[i] = append([]byte(nil), name(key, i)...)
	}
	read := func(i int) {
		_, ok, err := s.e.Get(names[i%keys], dst)
		if err != nil || ok != found {
			b.Fatalf("get %q: %v %v", names[i%keys], ok, err)
		}
	}
	for i := range keys {
		read(i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		read(i)
	}
}

func BenchmarkGetRowCache(b *testing.B) {
	s := benchShelf(b, 64<<20)
	s.e.rows = cache.NewRows(64 << 20)
	benchGet(b, s, 10_000, true, benchKey)
}

func BenchmarkGetBlockCache(b *testing.B) {
	benchGet(b, benchShelf(b, 256<<20), benchKeys, true, benchKey)
}

func BenchmarkGetMiss(b *testing.B) {
	benchGet(b, benchShelf(b, 256<<20), benchKeys, false, func(dst []byte, i int) []byte {
		return append(benchKey(dst, i), 'x')
	})
}

func BenchmarkGetMissParallel(b *testing.B) {
	s := benchShelf(b, 256<<20)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		dst, key := make([]byte, 0, 4<<10), make([]byte, 0, 64)
		for i := 0; pb.Next(); i++ {
			if _, ok, err := s.e.Get(append(benchKey(key, i), 'x'), dst); ok || err != nil {
				b.Error(ok, err)
				return
			}
		}
	})
}

// BenchmarkScan100 seeks and reads 100 records.
func BenchmarkScan100(b *testing.B) {
	s := benchShelf(b, 256<<20)
	key := make([]byte, 0, 64)
	scan := func(i int) {
		it, err := s.e.NewIter(IterOptions{})
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for ok := it.SeekGE(benchKey(key, i)); ok && n < 100; ok = it.Next() {
			n += min(len(it.Value()), 1)
		}
		if err := it.Close(); err != nil {
			b.Fatal(err)
		}
	}
	for i := range 5_000 {
		scan(i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		scan(i)
	}
}
