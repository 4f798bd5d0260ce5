package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// realEngine is the engine as this package declares it, as in package node.
type realEngine struct{ *engine.Engine }

func (e realEngine) NewBatch() Batch { return new(engine.Batch) }

func (e realEngine) Submit(b Batch) (ikey.Seq, error) {
	p, err := e.Engine.Submit(b.(*engine.Batch))
	if errors.Is(err, engine.ErrConflict) {
		return 0, ErrConflict
	}
	return p.Seq(), err
}

func (e realEngine) NewIter(lower, upper []byte) (Iter, error) {
	return e.Engine.NewIter(engine.IterOptions{Lower: lower, Upper: upper})
}

func (e realEngine) NewSnapshot() Snapshot { return realSnapshot{e.Engine.NewSnapshot()} }

func (e realEngine) Tail(from ikey.Seq) (Tail, error) {
	t, err := e.Engine.Tail(from)
	if err != nil {
		return nil, realTailError(err)
	}
	return realTail{t}, nil
}

type realTail struct{ *engine.Tail }

func (t realTail) Next(ctx context.Context) (TailChange, error) {
	c, err := t.Tail.Next(ctx)
	return TailChange(c), realTailError(err)
}

func realTailError(err error) error {
	if errors.Is(err, engine.ErrOutOfRange) {
		return fmt.Errorf("%w: %w", ErrOutOfRange, err)
	}
	return err
}

type realSnapshot struct{ *engine.Snapshot }

func (s realSnapshot) NewIter(lower, upper []byte) (Iter, error) {
	return s.Snapshot.NewIter(engine.IterOptions{Lower: lower, Upper: upper})
}

type realClock struct{}

func (realClock) Now() time.Time                         { return time.Now() }
func (realClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

func openReal(t testing.TB, fs vfs.FS, memtableBytes int) *engine.Engine {
	e, err := engine.Open("data", engine.Options{
		FS: fs, Clock: realClock{}, Rand: rand.New(rand.NewPCG(1, 2)),
		MaxBatchBytes: 48 << 20, MemtableBytes: memtableBytes, LogSegmentBytes: int64(memtableBytes), ReserveBytes: -1,
		Jobs: jobs.Options{Mode: jobs.ModeAlways, LocalRate: -1},
	})
	require.NoError(t, err)
	return e
}

// Danger: the store and the engine understand their contract differently: conflicts, fragments,
// iterators, sequences, flushes, a restart.
func TestTheStoreOverTheRealEngine(t *testing.T) {
	fs := vfs.NewMem()
	e := openReal(t, fs, 1<<20)
	s := open(t, realEngine{e}, Options{})
	model := map[string]string{}
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 40 {
		var ops []Op
		for range 50 {
			key, value := fmt.Sprintf("k%03d", rng.IntN(300)), fmt.Sprint(round, rng.IntN(1000), string(make([]byte, rng.IntN(2000))))
			if rng.IntN(10) == 0 {
				ops = append(ops, Op{Kind: Delete, Key: key})
				delete(model, key)
				continue
			}
			ops = append(ops, Op{Kind: Put, Key: key, Value: []byte(value)})
			model[key] = value
		}
		r, err := s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: ops, Atomic: round%2 == 0})
		require.NoError(t, err)
		for i := range r {
			require.NoError(t, r[i].Err)
			require.Equal(t, causal.Applied, r[i].Outcome)
		}
		switch round % 10 {
		case 4:
			require.NoError(t, e.Flush(bg))
		case 9:
			require.NoError(t, e.Close())
			e = openReal(t, fs, 1<<20)
			s = open(t, realEngine{e}, Options{})
		}
	}
	defer func() { require.NoError(t, e.Close()) }()

	got, err := stream(t, s, StreamRequest{Tenant: "t"}, 0)
	require.NoError(t, err)
	require.Len(t, got.records, len(model))
	for key, want := range model {
		r := read(t, s, key)
		require.Equal(t, want, string(r.Value))
		require.Empty(t, r.Siblings)
	}
	page, err := s.KeyRange(bg, KeyRangeRequest{Tenant: "t"})
	require.NoError(t, err)
	require.Len(t, page.Keys, len(model))

	// A fragment above the set, the decision of a stale write upon both, and a merge of them.
	sib := causal.Sibling{Dot: causal.Dot{Node: "m", Counter: 1}, Value: []byte("there")}
	for key := range model {
		require.NoError(t, s.Repair(bg, RepairRequest{Tenant: "t", Key: key, Siblings: []causal.Sibling{sib}}))
		r := read(t, s, key)
		require.Len(t, r.Siblings, 2)
		c := r.Clock.With(causal.Dot{Node: "c", Counter: 1}, 0)
		require.Equal(t, causal.Applied, put(t, s, key, "merged", plain(c...)).Outcome)
		require.Equal(t, causal.Duplicate, put(t, s, key, "merged", plain(c...)).Outcome)
		require.Equal(t, causal.Stale, put(t, s, key, "old", plain(causal.Entry{Node: "c", Counter: 1})).Outcome)
	}
}

// Danger: writers, repairs and flushes that run together lose a write, or refuse one for contention.
func TestWritersAndRepairsTogetherOverTheRealEngine(t *testing.T) {
	e := openReal(t, vfs.NewMem(), 1<<20)
	defer func() { require.NoError(t, e.Close()) }()
	s := open(t, realEngine{e}, Options{Limits: causal.Limits{MaxSiblings: 10_000}})
	const writers, each = 4, 50
	var wg sync.WaitGroup
	for g := range writers {
		wg.Go(func() {
			for i := range each {
				key, value := fmt.Sprint("k", i%5), fmt.Sprint(g, "/", i)
				if _, err := s.Write(bg, WriteRequest{Tenant: "t", Key: key, Value: []byte(value), Causality: seen(nil)}); err != nil {
					t.Errorf("write: %v", err)
				}
				sib := []causal.Sibling{{Dot: causal.Dot{Node: fmt.Sprint("m", g), Counter: uint64(i + 1)}, Value: []byte("r" + value)}}
				if err := s.Repair(bg, RepairRequest{Tenant: "t", Key: key, Siblings: sib}); err != nil {
					t.Errorf("repair: %v", err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 5 {
			if err := e.Flush(bg); err != nil {
				t.Errorf("flush: %v", err)
			}
		}
	})
	wg.Wait()
	total := 0
	for i := range 5 {
		total += len(read(t, s, fmt.Sprint("k", i)).Siblings)
	}
	require.Equal(t, 2*writers*each, total)
}

func BenchmarkRealBatchWrite1000(b *testing.B) {
	e := openReal(b, vfs.NewMem(), 64<<20)
	defer func() { require.NoError(b, e.Close()) }()
	s := open(b, realEngine{e}, Options{Now: time.Now})
	ops, n := make([]Op, 1000), 0
	value := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		for i := range ops {
			n++
			ops[i] = Op{Kind: Put, Key: fmt.Sprintf("user-%010d", n*7919%1_000_000_007), Value: value}
		}
		if _, err := s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: ops, OmitClocks: true}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/item")
}
