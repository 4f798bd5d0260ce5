package store

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
)

func batch(t require.TestingT, s *Store, atomic bool, ops ...Op) []OpResult {
	r, err := s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: ops, Atomic: atomic})
	require.NoError(t, err)
	return r
}

// Danger: the second operation on a key overwrites the first unseen, or both reach the engine.
func TestOperationsOnOneKeySeeEachOther(t *testing.T) {
	for _, atomic := range []bool{false, true} {
		f := newFake()
		s := open(t, f, Options{})
		put(t, s, "k", "0", Causality{})
		m := causal.Sibling{Dot: causal.Dot{Node: "m", Counter: 1}, Value: []byte("m")}
		r := batch(t, s, atomic,
			Op{Kind: Put, Key: "k", Value: []byte("1"), Causality: seen(nil)},
			Op{Kind: Put, Key: "other", Value: []byte("x")},
			Op{Kind: Repair, Key: "k", Siblings: []causal.Sibling{m}},
			Op{Kind: Put, Key: "k", Value: []byte("2"), Causality: seen(nil)},
			Op{Kind: Put, Key: "gone", Value: []byte("2")},
			Op{Kind: Delete, Key: "gone"},
		)
		require.Equal(t, causal.SiblingKept, r[0].Outcome)
		require.Equal(t, 2, r[0].Siblings)
		require.Equal(t, causal.Applied, r[1].Outcome)
		require.Equal(t, 4, r[3].Siblings)
		require.Len(t, read(t, s, "k").Siblings, 4)
		require.Equal(t, causal.Applied, r[5].Outcome)
		require.False(t, read(t, s, "gone").Found)
		require.Equal(t, 2, f.submits)
		require.Len(t, f.keys["t\x00k"], 2)
	}
}

// Danger: half of an atomic batch is applied, or the refusal does not say which operation.
func TestAnAtomicBatchIsRefusedAsAWhole(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{Limits: causal.Limits{MaxSiblings: 1}})
	put(t, s, "full", "1", Causality{})
	for name, bad := range map[string]Op{
		"invalid":  {Kind: Put, Key: ""},
		"siblings": {Kind: Put, Key: "full", Causality: seen(nil)},
	} {
		_, err := s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Atomic: true, Ops: []Op{{Kind: Put, Key: "a"}, bad, {Kind: Put, Key: "b"}}})
		require.ErrorContains(t, err, "operation 1:", name)
		require.False(t, read(t, s, "a").Found)
		require.Equal(t, 1, f.submits)

		r := batch(t, s, false, Op{Kind: Put, Key: name + "a"}, bad, Op{Kind: Put, Key: name + "b"})
		require.NoError(t, r[0].Err)
		require.Error(t, r[1].Err)
		require.NoError(t, r[2].Err)
		require.True(t, read(t, s, name+"b").Found)
		f.submits = 1
	}
}

// Danger: siblings that are there make a batch larger than the engine takes, and nothing can be
// written any more.
func TestABatchThatOutgrowsTheEngineIsSplitOrRefused(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{EngineBatchBytes: 3000})
	big := strings.Repeat("x", 900)
	ops := func(prefix string) (out []Op) {
		for i := range 7 {
			out = append(out, Op{Kind: Put, Key: fmt.Sprint(prefix, i), Value: []byte(big)})
		}
		return out
	}
	for i, r := range batch(t, s, false, ops("a")...) {
		require.NoError(t, r.Err)
		require.Equal(t, big, string(read(t, s, fmt.Sprint("a", i)).Value))
	}
	require.Equal(t, 3, f.submits)
	_, err := s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Atomic: true, Ops: ops("b")})
	require.Equal(t, ReasonBatch, ReasonOf(err))
	require.False(t, read(t, s, "b0").Found)

	for range 3 {
		put(t, s, "k", big, seen(nil))
	}
	_, err = s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte(big), Causality: seen(nil)})
	require.Equal(t, ReasonTooManySiblings, ReasonOf(err))
	require.Equal(t, causal.Applied, put(t, s, "k", big, Causality{}).Outcome)
}

// Danger: an overloaded engine's refusal is spread over the items, and nobody waits and repeats.
func TestRefusalOfTheWholeBatchIsTheErrorOfTheCall(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	f.failed = errPowerCut
	_, err := s.BatchWrite(t.Context(), BatchWriteRequest{Tenant: "t", Ops: []Op{{Kind: Put, Key: "a"}, {Kind: Put, Key: "b"}}})
	require.ErrorIs(t, err, f.failed)
}

// Danger: what was submitted before a split batch failed is reported as failed, or the reverse.
func TestASplitBatchReportsWhatFailed(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{EngineBatchBytes: 1500})
	f.beforeSubmit = func(n int) {
		if n == 2 {
			f.mu.Lock()
			f.failed = errPowerCut
			f.mu.Unlock()
		}
	}
	r := batch(t, s, false, Op{Kind: Put, Key: "a", Value: make([]byte, 1000)}, Op{Kind: Put, Key: "b", Value: make([]byte, 1000)})
	failed := 0
	for i, key := range []string{"a", "b"} {
		require.Equal(t, r[i].Err == nil, read(t, s, key).Found)
		if r[i].Err != nil {
			require.ErrorIs(t, r[i].Err, errPowerCut)
			failed++
		}
	}
	require.Equal(t, 1, failed)
}

// Danger: batches that lock the same keys in different orders wait for each other for ever.
func TestOverlappingBatchesDoNotDeadlock(t *testing.T) {
	s := open(t, newFake(), Options{})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				var ops []Op
				for k := range 20 {
					ops = append(ops, Op{Kind: Put, Key: fmt.Sprint((k*(2*g+1) + i) % 20)})
				}
				batch(t, s, i%2 == 0, ops...)
			}
		})
	}
	wg.Wait()
	for k := range 20 {
		require.Empty(t, read(t, s, fmt.Sprint(k)).Siblings)
	}
}

// Danger: values of a batch read share memory, or its answer is larger than a message may be.
func TestBatchReadKeepsItsValuesApartAndItsSizeBounded(t *testing.T) {
	s := open(t, newFake(), Options{})
	var keys []string
	for i := range 300 {
		key := fmt.Sprint("k", i)
		put(t, s, key, strings.Repeat(key, i%40*50), Causality{})
		keys = append(keys, key, "absent")
	}
	got, err := s.BatchRead(bg, "t", keys)
	require.NoError(t, err)
	for i := range 300 {
		require.NoError(t, got[2*i].Err)
		require.Equal(t, strings.Repeat(keys[2*i], i%40*50), string(got[2*i].Value))
		require.False(t, got[2*i+1].Found)
	}
	large := make([]byte, MaxValueBytes)
	for _, k := range []string{"x", "y", "z"} {
		put(t, s, k, string(large), Causality{})
	}
	got, err = s.BatchRead(bg, "t", []string{"k1", "x", "y", "z", "k2", ""})
	require.NoError(t, err)
	require.NoError(t, got[0].Err)
	require.NoError(t, got[1].Err)
	for _, r := range got[2:5] {
		require.Equal(t, ReasonResponseTooLarge, ReasonOf(r.Err))
		require.Nil(t, r.Value)
	}
	require.Equal(t, ReasonKey, ReasonOf(got[5].Err))
}

// Danger: damaged bytes are answered as an absent key, or returned.
func TestADamagedRecordIsAnError(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	put(t, s, "k", "v", Causality{})
	f.keys["t\x00k"][0].value[0] = 0x7f
	_, err := s.Read(bg, "t", "k", nil)
	require.Equal(t, ReasonCorruptedData, ReasonOf(err))
	require.ErrorIs(t, err, causal.ErrMalformed)
	_, err = s.Write(bg, WriteRequest{Tenant: "t", Key: "k"})
	require.Equal(t, ReasonCorruptedData, ReasonOf(err))
	_, err = s.KeyRange(bg, KeyRangeRequest{Tenant: "t"})
	require.Equal(t, ReasonCorruptedData, ReasonOf(err))
	require.Equal(t, ReasonCorruptedData, ReasonOf(s.Stream(bg, StreamRequest{Tenant: "t"}, nil)))
	require.Zero(t, f.iters)
}

// Danger: a result of Submit is told before it is durable, or a wait for one submission returns while
// an older one is not.
func TestSubmitReturnsBeforeItIsDurable(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	f.hold()
	var pending Pending
	require.True(t, pending.Done())
	require.NoError(t, pending.Wait())
	for i := range 3 {
		results := make([]OpResult, 2)
		p, err := s.Submit(bg, BatchWriteRequest{Tenant: "t", Ops: []Op{
			{Kind: Put, Key: "k", Value: fmt.Append(nil, i)}, {Kind: Put, Key: ""},
		}}, results)
		require.NoError(t, err)
		require.Equal(t, causal.Applied, results[0].Outcome)
		require.Equal(t, ReasonKey, ReasonOf(results[1].Err))
		require.False(t, p.Done())
		require.Equal(t, p, p.Later(pending))
		require.Equal(t, p, pending.Later(p))
		pending = p
	}
	require.False(t, read(t, s, "k").Found, "readers see what is durable")
	// The answer that changes nothing waits for what it rests on.
	clock := causal.Clock{{Node: "c", Counter: 1}}
	results := make([]OpResult, 2)
	p, err := s.Submit(bg, BatchWriteRequest{Tenant: "t", Ops: []Op{
		{Kind: Put, Key: "c", Value: []byte("v"), Causality: Causality{Clock: clock}},
	}}, results[:1])
	require.NoError(t, err)
	again, err := s.Submit(bg, BatchWriteRequest{Tenant: "t", Ops: []Op{
		{Kind: Put, Key: "c", Value: []byte("v"), Causality: Causality{Clock: clock}},
	}}, results[1:])
	require.NoError(t, err)
	require.Equal(t, causal.Duplicate, results[1].Outcome)
	require.False(t, again.Done())
	require.Equal(t, again, again.Later(p), "it is no earlier than the write that it repeats")

	done := make(chan error)
	go func() { done <- again.Wait() }()
	f.release()
	require.NoError(t, <-done)
	require.Equal(t, "2", string(read(t, s, "k").Value))
	_, err = s.Submit(bg, BatchWriteRequest{Tenant: "t", Ops: make([]Op, MaxBatchOps+1)}, nil)
	require.Equal(t, ReasonBatch, ReasonOf(err))
}
