package hashindex_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/sstable/hashindex"
)

// A key that has room must be found, and absent keys must seldom cost a look at a wrong value.
func TestFindReturnsNearlyAllKeysAndFewOthers(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 100, 50_000} {
		rng := rand.New(rand.NewPCG(uint64(n), 1))
		var b hashindex.Builder
		places := map[uint64]hashindex.Place{}
		for range n {
			h, p := rng.Uint64(), hashindex.Place{Offset: rng.Uint32(), Length: uint16(rng.Uint32())}
			places[h] = p
			b.Add(h, p)
		}
		lines := b.Build([]byte("before"))
		require.Len(t, lines, len("before")+b.SizeBytes())
		lines = lines[len("before"):]
		missing := 0
		for h, p := range places {
			c := hashindex.Find(lines, h)
			if !slices.Contains(c.All(), p) {
				missing++
			}
		}
		require.LessOrEqual(t, missing, n/50, "%d keys", n)
		wrong := 0
		for range 100_000 {
			c := hashindex.Find(lines, rng.Uint64())
			wrong += len(c.All())
		}
		require.Less(t, wrong, 200, "%d keys: false candidates of 100,000", n)
	}
}

// Many keys of one line must not be written outside of it.
func TestEqualHashesOverflowIntoOneLine(t *testing.T) {
	var b hashindex.Builder
	for i := range 40 {
		b.Add(1<<63, hashindex.Place{Offset: uint32(i)})
	}
	lines := b.Build(nil)
	c := hashindex.Find(lines, 1<<63)
	require.Len(t, c.All(), 4, "so many are tried, the others are found another way")
}

// A damaged line may lead anywhere; looking at it must be harmless.
func FuzzFind(f *testing.F) {
	f.Add([]byte{}, uint64(0))
	f.Add(make([]byte, 3*hashindex.LineBytes), uint64(1)<<63)
	f.Fuzz(func(t *testing.T, b []byte, hash uint64) {
		c := hashindex.Find(b, hash)
		if len(c.All()) > 4 {
			t.Fatal("too many candidates")
		}
	})
}

func Example() {
	var b hashindex.Builder
	b.Add(0x1122334455667788, hashindex.Place{Offset: 4096, Length: 700})
	lines := b.Build(nil)
	c := hashindex.Find(lines, 0x1122334455667788)
	fmt.Println(c.All())
	// Output: [{4096 700}]
}

func BenchmarkFind(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	var builder hashindex.Builder
	hashes := make([]uint64, 1_000_000)
	for i := range hashes {
		hashes[i] = rng.Uint64()
		builder.Add(hashes[i], hashindex.Place{Offset: uint32(i)})
	}
	lines := builder.Build(nil)
	i := 0
	for b.Loop() {
		c := hashindex.Find(lines, hashes[i%len(hashes)])
		if c.All() == nil {
			b.Fatal("nothing")
		}
		i += 7919
	}
}
