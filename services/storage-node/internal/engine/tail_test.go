package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
)

func TestTailGivesEveryChangeOnceInOrder(t *testing.T) {
	// A follower that misses or doubles a change, across segments, flushes and restarts, is another
	// database.
	fs := vfs.NewMem()
	o := smallOptions(fs)
	o.L0Slow, o.L0Stop = 1000, 2000 // each range delete fills a memtable
	e := mustOpen(t, o)
	require.NoError(t, e.PinTail("f", 1))
	tail, err := e.Tail(1)
	require.NoError(t, err)
	type seen struct {
		seq ikey.Seq
		key string
	}
	got := make(chan seen, 10_000)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		for {
			c, err := tail.Next(ctx)
			if err != nil {
				done <- err
				return
			}
			got <- seen{c.Seq, string(c.Key)}
		}
	}()
	var want []string
	write := func(e *Engine, n int) {
		for i := range n {
			k := fmt.Sprintf("t\x00%d-%d", len(want), i)
			var b Batch
			b.Set([]byte(k), rec(strings.Repeat("v", 150)))
			b.Delete([]byte(k + "x"))
			b.DeleteRange([]byte(k+"y"), []byte(k+"z"))
			require.NoError(t, e.Apply(&b, SyncDefault))
			want = append(want, k, k+"x", k+"y")
		}
	}
	write(e, 300)
	var last ikey.Seq
	for _, k := range want {
		s := <-got
		require.Equal(t, k, s.key)
		require.Greater(t, s.seq, last)
		last = s.seq
	}
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.NoError(t, tail.Close())
	require.NoError(t, tail.Close())
	require.NoError(t, e.Close())

	e = mustOpen(t, o)
	write(e, 100)
	feed := readFeed(t, e, 1)
	require.Len(t, feed, len(want))
	for i, c := range feed {
		require.Equal(t, want[i], string(c.Key))
	}
	middle := feed[len(feed)/2].Seq
	feed = readFeed(t, e, middle)
	require.Equal(t, middle, feed[0].Seq)
	require.Len(t, feed, len(want)-len(want)/2)
	require.NoError(t, e.PinTail("f", middle))
	m := e.Metrics()
	require.Equal(t, 1, m.TailPins)
	require.NoError(t, e.UnpinTail("f"))
	require.NoError(t, e.UnpinTail("f"))
	require.NoError(t, e.Close())
}

func TestTailEndsWithTheEngine(t *testing.T) {
	// A follower that waits must not keep Close, or a goroutine, for ever.
	e := mustOpen(t, smallOptions(vfs.NewMem()))
	tail, err := e.Tail(1)
	require.NoError(t, err)
	done := make(chan error)
	go func() {
		_, err := tail.Next(context.Background())
		done <- err
	}()
	require.NoError(t, e.Close())
	require.ErrorIs(t, <-done, ErrClosed)
	require.NoError(t, tail.Close())
	_, err = e.Tail(1)
	require.ErrorIs(t, err, ErrClosed)
}

func TestPinsThatHoldTooMuchBreak(t *testing.T) {
	// A follower that is gone for good must not fill the disk. Who comes back late must be told, not
	// shown a feed with a hole.
	fs := vfs.NewMem()
	o := smallOptions(fs)
	o.TailRetentionBytes = 64 << 10
	var broken []string
	o.Events = func(ev Event) {
		if ev.Kind == EventPinBroken {
			broken = append(broken, ev.Reason)
		}
	}
	e := mustOpen(t, o)
	require.NoError(t, e.PinTail("gone", 1))
	put(t, e, testKey(1), "v")
	tail, err := e.Tail(1)
	require.NoError(t, err)
	for i := range 2000 {
		put(t, e, testKey(i%50), strings.Repeat("w", 100))
	}
	require.NoError(t, e.Flush(context.Background()))
	require.Less(t, e.log.Metrics().LiveBytes, uint64(200<<10))
	require.Equal(t, []string{"gone"}, broken)
	for {
		if _, err = tail.Next(context.Background()); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, ErrOutOfRange)
	require.NoError(t, tail.Close())
	_, err = e.Tail(1)
	require.ErrorIs(t, err, ErrOutOfRange)
	require.ErrorIs(t, e.PinTail("again", 1), ErrOutOfRange)
	require.NoError(t, e.PinTail("again", e.VisibleSeq()+1))
	require.Empty(t, readFeed(t, e, e.VisibleSeq()+1))
	require.NoError(t, e.Close())
	e = mustOpen(t, o)
	require.Equal(t, []string{"gone"}, broken, "a broken pin is forgotten")
	require.NoError(t, e.Close())
}

func TestPinsAreLimitedAndNamed(t *testing.T) {
	// Each pin is a fact in the manifest: without a limit they fill it.
	o := smallOptions(vfs.NewMem())
	o.MaxTailPins = 2
	e := mustOpen(t, o)
	require.ErrorIs(t, e.PinTail("", 1), ErrInvalidKey)
	require.ErrorIs(t, e.PinTail(strings.Repeat("x", 200), 1), ErrInvalidKey)
	require.NoError(t, e.PinTail("a", 1))
	require.NoError(t, e.PinTail("b", 1))
	require.ErrorIs(t, e.PinTail("c", 1), ErrTooManyPins)
	require.NoError(t, e.PinTail("b", 5))
	require.NoError(t, e.UnpinTail("a"))
	require.NoError(t, e.PinTail("c", 1))
	require.NoError(t, e.Close())
}

func TestTailThatIsAskedTooEarlyLosesNothing(t *testing.T) {
	// Who only looks whether there is something must find it later: a frame that is not durable yet must
	// not be taken for handed out.
	disk := crashfs.New()
	g := newGate(disk)
	e := mustOpen(t, quietOptions(disk))
	put(t, e, testKey(0), "old")
	tail, err := e.Tail(e.VisibleSeq() + 1)
	require.NoError(t, err)
	g.close(logSync)
	var want []string
	var pending []Pending
	for i := range 3 {
		var b Batch
		b.Set(testKey(i), rec("new"))
		b.Set(testKey(10+i), rec("new"))
		p, err := e.Submit(&b)
		require.NoError(t, err)
		pending = append(pending, p)
		want = append(want, string(testKey(i)), string(testKey(10+i)))
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for range 5 {
		_, err = tail.Next(over)
		require.ErrorIs(t, err, context.Canceled)
	}
	done := make(chan error)
	go func() { done <- pending[2].Wait() }()
	<-g.atGate
	_, err = tail.Next(over)
	require.ErrorIs(t, err, context.Canceled)
	g.release()
	require.NoError(t, <-done)
	for _, key := range want {
		c, err := tail.Next(over)
		require.NoError(t, err)
		require.Equal(t, key, string(c.Key))
	}
	require.NoError(t, tail.Close())
	require.NoError(t, e.Close())
}

func TestFeedRangeIsWhatTailTakes(t *testing.T) {
	// A client that fell behind is told from where on it can be served: a wrong number sends it round in
	// circles, or leaves it with a hole.
	o := quietOptions(vfs.NewMem())
	o.LogSegmentBytes = 32 << 10
	check := func(e *Engine) {
		require.Eventually(t, func() bool { // the trim comes after the flush
			segments := e.log.Segments()
			return len(segments) == 0 || segments[0].Number >= e.manifest.LogFloor()
		}, 10*time.Second, time.Millisecond)
		oldest, newest, err := e.FeedRange()
		require.NoError(t, err)
		require.Equal(t, e.VisibleSeq(), newest)
		require.LessOrEqual(t, oldest, newest+1)
		tail, err := e.Tail(oldest)
		require.NoError(t, err)
		require.NoError(t, tail.Close())
		feed := readFeed(t, e, oldest)
		require.Len(t, feed, int(newest+1-oldest))
		if oldest > 1 {
			_, err = e.Tail(oldest - 1)
			require.ErrorIs(t, err, ErrOutOfRange)
		}
	}
	e := mustOpen(t, o)
	check(e)
	for round := range 6 {
		for i := range 200 {
			put(t, e, testKey(i), strings.Repeat("v", 100*round))
		}
		if round%2 == 1 {
			require.NoError(t, e.Flush(context.Background()))
		}
		check(e)
		if round == 3 {
			require.NoError(t, e.Close())
			e = mustOpen(t, o)
			check(e)
		}
	}
	oldest, _, err := e.FeedRange()
	require.NoError(t, err)
	require.Greater(t, oldest, ikey.Seq(200), "something was trimmed")
	require.NoError(t, e.Close())
	_, _, err = e.FeedRange()
	require.ErrorIs(t, err, ErrClosed)
}

func TestTailAtTheEndHoldsNoLargeFrame(t *testing.T) {
	// A follower that has nothing to do must not keep the largest batch that it ever saw: hundreds of them
	// would be the node's memory.
	o := quietOptions(vfs.NewMem())
	o.MemtableBytes, o.LogSegmentBytes, o.MaxBatchBytes = 64<<20, 64<<20, 16<<20
	e := mustOpen(t, o)
	put(t, e, testKey(0), "v")
	const tails, large = 8, 8 << 20
	over, cancel := context.WithCancel(context.Background())
	cancel()
	noise := make([]byte, large)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	for name, value := range map[string]string{"packed": strings.Repeat("v", large), "as it is": string(noise)} {
		from := e.VisibleSeq() + 1
		put(t, e, testKey(1), value)
		before := heapBytes()
		var open []*Tail
		for range tails {
			tail, err := e.Tail(from)
			require.NoError(t, err)
			c, err := tail.Next(over)
			require.NoError(t, err)
			require.Greater(t, len(c.Value), large)
			_, err = tail.Next(over)
			require.ErrorIs(t, err, context.Canceled)
			open = append(open, tail)
		}
		require.Less(t, heapBytes()-before, int64(tails<<20), name)
		put(t, e, testKey(2), "small")
		for _, tail := range open {
			c, err := tail.Next(over)
			require.NoError(t, err)
			require.Equal(t, testKey(2), c.Key)
			require.NoError(t, tail.Close())
		}
	}
	require.NoError(t, e.Close())
}

func heapBytes() int64 {
	runtime.GC()
	runtime.GC() // pools take two
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
