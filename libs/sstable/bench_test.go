package sstable

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable/filter"
	"github.com/pairdb/pairdb/libs/vfs"
)

// A point read that allocates is paid for by the garbage collector under load.
func TestCachedPointReadAllocatesNothing(t *testing.T) {
	es := numbered(5000, 100)
	for _, partition := range []int{0, 2000} {
		fs, _ := build(t, WriterOptions{Compression: S2, FilterBitsPerKey: 10, IndexPartitionBytes: partition}, es, nil)
		r := reopen(t, fs, ReaderOptions{Cache: mapCache{}})
		i := 0
		get := func() {
			e := es[i%len(es)]
			i += 7
			if !r.MayContain(filter.Hash(e.k.User)) {
				t.Fatal("filter denies a key")
			}
			if _, _, ok, err := r.Get(e.k.User, filter.Hash(e.k.User), ikey.MaxSeq, nil); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		for range es {
			get() // fill the cache
		}
		require.Zero(t, testing.AllocsPerRun(1000, get))
		require.NoError(t, r.Close())
	}
}

var benchTables = map[string]WriterOptions{
	"none": {FilterBitsPerKey: 10},
	"s2":   {FilterBitsPerKey: 10, Compression: S2},
	"zstd": {FilterBitsPerKey: 10, Compression: Zstd},
}

func benchReader(b *testing.B, o WriterOptions, valueBytes int, cache BlockCache) (*Reader, []entry) {
	es := numbered(20000, valueBytes)
	fs, _ := build(b, o, es, nil)
	r := reopen(b, fs, ReaderOptions{Cache: cache})
	b.Cleanup(func() { require.NoError(b, r.Close()) })
	return r, es
}

func BenchmarkGetCached(b *testing.B) {
	for _, size := range []int{100, 1000} {
		b.Run(fmt.Sprintf("value=%d", size), func(b *testing.B) {
			r, es := benchReader(b, WriterOptions{FilterBitsPerKey: 10}, size, mapCache{})
			rng := rand.New(rand.NewPCG(1, 1))
			for _, e := range es {
				_, _, _, _ = r.Get(e.k.User, filter.Hash(e.k.User), ikey.MaxSeq, nil)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, _, ok, _ := r.Get(es[rng.IntN(len(es))].k.User, filter.Hash(es[rng.IntN(len(es))].k.User), ikey.MaxSeq, nil); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}

func BenchmarkGetFromFile(b *testing.B) {
	for name, o := range benchTables {
		b.Run(name, func(b *testing.B) {
			r, es := benchReader(b, o, 1000, nil)
			rng := rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, ok, _ := r.Get(es[rng.IntN(len(es))].k.User, filter.Hash(es[rng.IntN(len(es))].k.User), ikey.MaxSeq, nil); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}

func BenchmarkMiss(b *testing.B) {
	r, _ := benchReader(b, WriterOptions{FilterBitsPerKey: 10}, 10, nil)
	keys := make([][]byte, 1024)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "tenant\x00none%08d", i)
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		_ = r.MayContain(filter.Hash(keys[i&1023]))
		i++
	}
}

func BenchmarkScan(b *testing.B) {
	for _, kind := range []string{"cached", "sequential-s2"} {
		b.Run(kind, func(b *testing.B) {
			o, cache := WriterOptions{}, BlockCache(mapCache{})
			if kind != "cached" {
				o, cache = WriterOptions{Compression: S2}, nil
			}
			r, es := benchReader(b, o, 100, cache)
			it := r.NewIter()
			if cache == nil {
				it = r.NewScan(ScanOptions{})
			}
			b.ReportAllocs()
			b.SetBytes(int64(len(es[0].k.User) + 100))
			it.First()
			for b.Loop() {
				if !it.Next() {
					it.First()
				}
			}
			require.NoError(b, it.Close())
		})
	}
}

func BenchmarkSeek(b *testing.B) {
	r, es := benchReader(b, WriterOptions{}, 100, mapCache{})
	rng := rand.New(rand.NewPCG(1, 1))
	it := r.NewIter()
	b.ReportAllocs()
	for b.Loop() {
		if !it.SeekGE(ikey.Search(es[rng.IntN(len(es))].k.User, ikey.MaxSeq)) {
			b.Fatal("not found")
		}
	}
	require.NoError(b, it.Close())
}

func BenchmarkWrite(b *testing.B) {
	for name, o := range benchTables {
		b.Run(name, func(b *testing.B) {
			es := numbered(5000, 1000)
			b.SetBytes(5000 * 1019)
			b.ReportAllocs()
			for b.Loop() {
				_, m := build(b, o, es, nil)
				b.ReportMetric(float64(m.Size)/(5000*1019), "size/raw")
			}
		})
	}
}

// A point read of a value of 1 KiB that is not in a cache: with all values in data blocks, with value
// blocks, and through a mapping.
func BenchmarkGetLongValue(b *testing.B) {
	for _, c := range []struct {
		name   string
		values int
		mapped bool
	}{{"together", 0, false}, {"apart", 512, false}, {"together-mapped", 0, true}, {"apart-mapped", 512, true}} {
		b.Run(c.name, func(b *testing.B) {
			es := longValues(50_000)
			name := filepath.Join(b.TempDir(), "t.sst")
			f, err := vfs.OS.Create(name, 0o660)
			require.NoError(b, err)
			w := NewWriter(f, WriterOptions{Compression: S2, ValueBlockBytes: c.values, FilterBitsPerKey: 10})
			for _, e := range es {
				require.NoError(b, w.Add(e.k, []byte(e.v)))
			}
			_, err = w.Finish()
			require.NoError(b, err)
			cache := mapCache{}
			if c.values == 0 {
				cache = nil // there data blocks are 29 MiB, here 2
			}
			o := ReaderOptions{}
			if cache != nil {
				o.Cache = cache
			}
			r, err := Open(f, o)
			require.NoError(b, err)
			if c.mapped {
				_, err := r.Map()
				require.NoError(b, err)
			}
			rng := rand.New(rand.NewPCG(3, 4))
			scratch := make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, ok, _ := r.Get(es[rng.IntN(len(es))].k.User, filter.Hash(es[rng.IntN(len(es))].k.User), ikey.MaxSeq, scratch); !ok {
					b.Fatal("a key is missing")
				}
			}
		})
	}
}
