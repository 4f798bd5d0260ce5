package memtable

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pairdb/pairdb/libs/ikey"
)

func benchKeys(n int, sorted bool) [][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	keys := make([][]byte, n)
	for i, p := range rng.Perm(n) {
		if sorted {
			p = i
		}
		keys[i] = fmt.Appendf(nil, "tenant\x00user%013d", p)
	}
	return keys
}

func fill(b *testing.B, keys [][]byte, value []byte) *Table {
	t := New(256 << 20)
	for i, k := range keys {
		if !t.Add(ikey.Make(k, ikey.Seq(i+1), ikey.KindSet), value) {
			b.Fatal("full")
		}
	}
	return t
}

func BenchmarkAdd(b *testing.B) {
	for _, c := range []struct {
		name   string
		sorted bool
		value  int
	}{{"random/100B", false, 100}, {"random/1KiB", false, 1024}, {"sorted/100B", true, 100}} {
		b.Run(c.name, func(b *testing.B) {
			keys, value := benchKeys(64<<10, c.sorted), make([]byte, c.value)
			t := New(96 << 20)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%len(keys) == 0 {
					t.Unref()
					t.Reset()
				}
				t.Add(ikey.Make(keys[i%len(keys)], ikey.Seq(i+1), ikey.KindSet), value)
			}
		})
	}
}

func BenchmarkOverwrite(b *testing.B) {
	keys, value := benchKeys(10_000, false), make([]byte, 100)
	t := New(64 << 20)
	for i := 0; b.Loop(); i++ {
		if !t.Add(ikey.Make(keys[i%len(keys)], ikey.Seq(i+1), ikey.KindSet), value) {
			t.Unref()
			t.Reset()
		}
	}
}

func BenchmarkGet(b *testing.B) {
	keys := benchKeys(256<<10, false)
	t := fill(b, keys, make([]byte, 100))
	b.Run("hit", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, _, ok := t.Get(keys[i*7919%len(keys)], ikey.MaxSeq); !ok {
				b.Fatal("miss")
			}
		}
	})
	absent := make([][]byte, len(keys))
	for i := range absent {
		absent[i] = append([]byte{}, keys[i]...)
		absent[i] = append(absent[i], 'x')
	}
	b.Run("miss", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, _, ok := t.Get(absent[i*7919%len(keys)], ikey.MaxSeq); ok {
				b.Fatal("hit")
			}
		}
	})
}

func BenchmarkIter(b *testing.B) {
	keys := benchKeys(256<<10, false)
	t := fill(b, keys, make([]byte, 100))
	var it Iter
	it.Init(t)
	b.Run("seek", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			it.SeekGE(ikey.Search(keys[i*7919%len(keys)], ikey.MaxSeq))
		}
	})
	b.Run("next", func(b *testing.B) {
		it.First()
		for b.Loop() {
			if !it.Next() {
				it.First()
			}
		}
	})
}
