package hot

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// clock is a time that the test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newClock() *clock { return &clock{now: time.Unix(1_000_000, 0)} }

// An operator who acts on a list in which a hot key is missing, or has a count below the true one, looks
// for the load in the wrong place.
func TestCountsAreWithinTheirBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := rapid.IntRange(1, 20).Draw(t, "capacity")
		ops := rapid.SliceOf(rapid.IntRange(0, 40)).Draw(t, "ops")
		s, truth := newSketch(capacity), map[string]uint64{}
		for _, op := range ops {
			name := fmt.Sprintf("t\x00k%d", op*op/7) // some more often than others
			truth[name]++
			s.add([]byte(name), op)
		}
		n := uint64(len(ops))
		require.Equal(t, n, s.total)
		require.LessOrEqual(t, len(s.byName), capacity)
		require.Len(t, s.smallest, len(s.byName))
		most := n / uint64(capacity)
		require.LessOrEqual(t, s.floor(), most)
		var sum uint64
		for name, c := range s.byName {
			require.Equal(t, name, c.name)
			require.GreaterOrEqual(t, c.count, truth[name], "below the true count")
			require.LessOrEqual(t, c.count-c.over, truth[name], "the part that is certain is not")
			require.LessOrEqual(t, c.over, most)
			sum += c.count
		}
		require.Equal(t, n, sum, "every operation is counted once")
		for name, count := range truth {
			if _, ok := s.byName[name]; !ok {
				require.LessOrEqual(t, count, s.floor(), "%s is frequent and has no counter", name)
			}
		}
	})
}

// Two windows must not lose what one of them knows: a count over both is never below the true one, and
// every key with more than twice the share of a counter is listed.
func TestListsOfTwoWindowsAreWithinTheirBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newClock()
		tracker := New(Options{Every: 1, Window: time.Minute, Now: c.Now})
		tracker.reads.now, tracker.reads.old = newSketch(8), newSketch(8)
		truth := map[string]uint64{}
		var n uint64
		for range 2 {
			for _, op := range rapid.SliceOf(rapid.IntRange(0, 30)).Draw(t, "ops") {
				key := fmt.Sprint("k", op*op/9)
				truth[key]++
				n++
				tracker.Read("t", key, op)
			}
			c.move(time.Minute)
		}
		c.move(-time.Second) // still in the second one
		listed := map[string]uint64{}
		for _, k := range tracker.Top(MaxKeys).Reads {
			require.GreaterOrEqual(t, k.Operations, truth[k.Key], "below the true count")
			listed[k.Key] = k.Operations
		}
		for key, count := range truth {
			if count > 2*(n/8)+2 {
				require.Contains(t, listed, key, "%d of %d", count, n)
			}
		}
	})
}

// What was hot an hour ago must not hide what is hot now.
func TestOperationsAreForgottenAfterTwoWindows(t *testing.T) {
	c := newClock()
	tracker := New(Options{Every: 1, Window: time.Minute, Now: c.Now})
	tracker.Read("t", "old", 100)
	tracker.Write("t", "old", 100)
	c.move(time.Minute)
	tracker.Read("t", "new", 10)
	r := tracker.Top(10)
	require.Equal(t, []Key{{"t", "new", 1, 10}, {"t", "old", 1, 100}}, r.Reads)
	require.Equal(t, []Key{{"t", "old", 1, 100}}, r.Writes)
	require.Equal(t, []Key{{"t", "old", 0, 100}, {"t", "new", 0, 10}}, r.Largest)
	require.Equal(t, time.Minute, r.Covers)
	c.move(time.Minute)
	r = tracker.Top(10)
	require.Equal(t, []Key{{"t", "new", 1, 10}}, r.Reads)
	require.Empty(t, r.Writes)
	require.Equal(t, []Key{{"t", "new", 0, 10}}, r.Largest)
	c.move(time.Hour)
	r = tracker.Top(10)
	require.Empty(t, slices.Concat(r.Reads, r.Writes, r.Largest))
	require.Equal(t, time.Minute, r.Covers)
}

// One look in 64 must be enough to find what a node is busy with.
func TestHotKeysAreFoundByChance(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	c := newClock()
	tracker := New(Options{Now: c.Now, Chance: rng.Uint32})
	const operations = 1 << 20
	truth := map[string]uint64{}
	zipf := rand.NewZipf(rng, 1.3, 1, 1<<20)
	for range operations {
		key := fmt.Sprint("k", zipf.Uint64())
		truth[key]++
		tracker.Read("t", key, 100)
	}
	type count struct {
		key string
		n   uint64
	}
	var order []count
	for key, n := range truth {
		order = append(order, count{key, n})
	}
	slices.SortFunc(order, func(a, b count) int { return cmp.Compare(b.n, a.n) })
	top := tracker.Top(5).Reads
	for i, k := range top {
		require.Equal(t, order[i].key, k.Key)
		require.InEpsilon(t, order[i].n, k.Operations, 0.15)
		require.Equal(t, 100, k.ValueBytes)
	}
}

// Keys that are asked for evenly are not hot, however many there are.
func TestEvenLoadListsNoKeys(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	tracker := New(Options{Every: 1, Now: newClock().Now})
	for range 200_000 {
		tracker.Write("t", fmt.Sprint(rng.Uint32N(1<<20)), 10)
	}
	require.Empty(t, tracker.Top(MaxKeys).Writes)
}

// The one value that fills the disk may be written once.
func TestLargeValuesAreAllLookedAt(t *testing.T) {
	never := func() uint32 { return 1 }
	tracker := New(Options{Now: newClock().Now, Chance: never})
	tracker.Write("t", "small", alwaysBytes-1)
	for i := range 3 * kept {
		tracker.Write("t", fmt.Sprintf("k%04d", i), alwaysBytes+i)
	}
	tracker.Read("u", "read", 10*alwaysBytes)
	r := tracker.Top(3)
	require.Equal(t, []Key{
		{"u", "read", 0, 10 * alwaysBytes}, {"t", "k0383", 0, alwaysBytes + 383}, {"t", "k0382", 0, alwaysBytes + 382},
	}, r.Largest)
	require.Empty(t, r.Writes, "counted without its chance, large values would seem hot")
}

// A key must not stay among the largest with a size that it does not have any more.
func TestSizeIsThatOfTheLastLook(t *testing.T) {
	tracker := New(Options{Every: 1, Now: newClock().Now})
	tracker.Write("t", "k", 1000)
	tracker.Write("t", "l", 500)
	tracker.Write("t", "k", 10)
	r := tracker.Top(10)
	require.Equal(t, []Key{{"t", "l", 0, 500}, {"t", "k", 0, 10}}, r.Largest)
	require.Equal(t, []Key{{"t", "k", 2, 10}, {"t", "l", 1, 500}}, r.Writes)
	require.Len(t, tracker.Top(1).Largest, 1)
	require.Empty(t, tracker.Top(-1).Writes)
}

// Keys come in memory that is used again for the next message.
func TestKeysAreCopied(t *testing.T) {
	tracker := New(Options{Every: 1, Now: newClock().Now})
	name := []byte("t\x00key")
	tracker.reads.now.add(name, 1)
	tracker.now.add(name, 1)
	copy(name, "xxxxx")
	r := tracker.Top(10)
	require.Equal(t, "key", r.Reads[0].Key)
	require.Equal(t, "key", r.Largest[0].Key)
}

func TestNilTrackerDoesNothing(t *testing.T) {
	var tracker *Tracker
	tracker.Read("t", "k", alwaysBytes)
	tracker.Write("t", "k", alwaysBytes)
	require.Empty(t, tracker.Top(10))
}

func TestTrackerIsSafeForConcurrentUse(t *testing.T) {
	c := newClock()
	tracker := New(Options{Every: 2, Window: time.Second, Now: c.Now})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				tracker.Read("t", strings.Repeat("k", i%50+1), i)
				tracker.Write("t", fmt.Sprint(w, i%10), i)
				if i%100 == 0 {
					c.move(100 * time.Millisecond)
					tracker.Top(10)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkRead is what a read pays; BenchmarkLook what one that is looked at does.
func BenchmarkRead(b *testing.B) {
	tracker := New(Options{})
	b.ReportAllocs()
	for b.Loop() {
		tracker.Read("tenant", "user:123456", 1000)
	}
}

func BenchmarkLook(b *testing.B) {
	tracker := New(Options{Every: 1})
	keys := make([]string, 4096)
	for i := range keys {
		keys[i] = fmt.Sprint("user:", i*i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		tracker.Read("tenant", keys[i%len(keys)], 1000)
	}
}
