package store

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ring"
)

// owners refuses keys of tenant t by their names: those in moving for writes, those in gone altogether.
type owners struct {
	active       atomic.Bool
	asked        atomic.Int64
	moving, gone map[uint64]bool
}

func newOwners(moving, gone []string) *owners {
	o := &owners{moving: map[uint64]bool{}, gone: map[uint64]bool{}}
	for _, k := range moving {
		o.moving[ring.Token("t", k)] = true
	}
	for _, k := range gone {
		o.gone[ring.Token("t", k)] = true
	}
	o.active.Store(true)
	return o
}

func (o *owners) Active() bool { return o.active.Load() }

func (o *owners) Admit(token uint64, write bool) error {
	o.asked.Add(1)
	switch {
	case o.gone[token]:
		return refuse(ReasonNotOwner, "gone")
	case o.moving[token] && write:
		return refuse(ReasonRangeMoving, "moving")
	}
	return nil
}

// Danger: one way of writing or reading goes past the fence, and what it acknowledged stays behind.
func TestEachRequestForAKeyThatIsNotServedIsRefused(t *testing.T) {
	o := newOwners([]string{"moving"}, []string{"gone"})
	o.active.Store(false)
	f := newFake()
	s := open(t, f, Options{Owners: o})
	for _, k := range []string{"here", "moving", "gone"} {
		put(t, s, k, "old", Causality{})
	}
	require.Zero(t, o.asked.Load(), "nothing is refused, so nobody hashes")
	o.active.Store(true)
	before := f.submits
	for key, want := range map[string]Reason{"moving": ReasonRangeMoving, "gone": ReasonNotOwner} {
		_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: key, Value: []byte("new")})
		requireReason(t, want, err)
		_, err = s.Write(bg, WriteRequest{Tenant: "t", Key: key, Value: []byte("new"), IdempotencyKey: "once"})
		requireReason(t, want, err)
		_, err = s.Delete(bg, DeleteRequest{Tenant: "t", Key: key})
		requireReason(t, want, err)
		err = s.Repair(bg, RepairRequest{Tenant: "t", Key: key, Siblings: []causal.Sibling{{Dot: causal.Dot{Node: "x", Counter: 1}, Timestamp: 1}}})
		requireReason(t, want, err)
		_, err = s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Atomic: true, Ops: []Op{{Kind: Put, Key: "here"}, {Kind: Put, Key: key}}})
		requireReason(t, want, err)
		require.ErrorContains(t, err, "operation 1")
	}
	require.Equal(t, before, f.submits, "nothing of all that was written")

	// Reads of what is moving pass.
	got, err := s.Read(bg, "t", "moving", nil)
	require.NoError(t, err)
	require.Equal(t, "old", string(got.Value))
	_, err = s.Read(bg, "t", "gone", nil)
	requireReason(t, ReasonNotOwner, err)
	many, err := s.BatchRead(bg, "t", []string{"here", "moving", "gone"})
	require.NoError(t, err)
	require.NoError(t, many[0].Err)
	require.NoError(t, many[1].Err)
	requireReason(t, ReasonNotOwner, many[2].Err)
}

// Danger: an item of a batch that is refused takes another one's place, or its lock stays.
func TestItemsThatAreNotServedLeaveTheOthersOfTheirBatch(t *testing.T) {
	o := newOwners([]string{"k3", "k5"}, []string{"k7"})
	s := open(t, newFake(), Options{Owners: o})
	for round := range 3 {
		ops := make([]Op, 20)
		for i := range ops {
			ops[i] = Op{Kind: Put, Key: "k" + strconv.Itoa(i%10), Value: []byte(strconv.Itoa(i))}
		}
		results, err := s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: ops})
		require.NoError(t, err)
		for i, r := range results {
			switch i % 10 {
			case 3, 5:
				requireReason(t, ReasonRangeMoving, r.Err)
			case 7:
				requireReason(t, ReasonNotOwner, r.Err)
			default:
				require.NoError(t, r.Err)
				got, err := s.Read(bg, "t", ops[i].Key, nil)
				require.NoError(t, err)
				require.Equal(t, strconv.Itoa(10+i%10), string(got.Value), "round %d", round)
			}
		}
		require.NoError(t, s.Quiesce(bg), "every lock is free")
	}
	_, err := s.System("_own").Write(bg, "k7", []byte("v"), Causality{})
	require.NoError(t, err, "what the node itself stores is nobody's else")
}

// Danger: a write that was let in before the fence is applied after it.
func TestQuiesceWaitsForWritesThatWereAdmitted(t *testing.T) {
	o := newOwners([]string{"k"}, nil)
	o.active.Store(false)
	f := newFake()
	s := open(t, f, Options{Owners: o})
	inside, goOn := make(chan struct{}), make(chan struct{})
	f.beforeSubmit = func(int) {
		close(inside)
		<-goOn
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("v")}) })
	<-inside
	o.active.Store(true) // the fence
	quiet := make(chan struct{})
	wg.Go(func() {
		defer close(quiet)
		if s.Quiesce(bg) != nil {
			t.Error("quiesce failed")
		}
	})
	select {
	case <-quiet:
		t.Fatal("a write is under way")
	default:
	}
	close(goOn)
	<-quiet
	f.mu.Lock()
	require.Equal(t, 1, f.submits)
	f.mu.Unlock()
	wg.Wait()
	ended, cancel := context.WithCancel(bg)
	cancel()
	require.ErrorIs(t, s.Quiesce(ended), context.Canceled)
	_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "k"})
	require.True(t, errors.As(err, new(*Error)))
}

// What asking costs: without anything to refuse it is one load, with it a hash.
func BenchmarkReadWithOwners(b *testing.B) {
	for name, o := range map[string]*owners{"none": nil, "inactive": newOwners(nil, nil), "active": newOwners(nil, nil)} {
		b.Run(name, func(b *testing.B) {
			s := benchStore(b, true)
			if o != nil {
				o.active.Store(name == "active")
				s.opts.Owners = o
			}
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				r, err := s.Read(bg, "t", "k", buf)
				if err != nil {
					b.Fatal(err)
				}
				buf = r.Buf
			}
		})
	}
}
