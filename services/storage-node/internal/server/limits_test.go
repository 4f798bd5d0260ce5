package server

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// clockOf makes a clock with n entries whose node ids have the given length.
func clockOf(n, idBytes int) *datav1.VectorClock {
	c := &datav1.VectorClock{}
	for i := range n {
		id := fmt.Sprintf("%06d", i)
		c.Entries = append(c.Entries, &datav1.ClockEntry{NodeId: id + strings.Repeat("x", max(idBytes-len(id), 0)), Counter: 1})
	}
	return c
}

// A limit that is off by one, or checked on one path only, is found by the first client that meets
// it: each is crossed over the wire, from both sides.
func TestEveryLimitOfAWriteHasTwoSides(t *testing.T) {
	w := start(t)
	type change func(*storagev1.WriteRequest)
	value := func(n int) change { return func(r *storagev1.WriteRequest) { r.Value = make([]byte, n) } }
	key := func(k string) change { return func(r *storagev1.WriteRequest) { r.Key = k } }
	tenant := func(k string) change { return func(r *storagev1.WriteRequest) { r.Tenant = k } }
	clock := func(c *datav1.VectorClock) change {
		return func(r *storagev1.WriteRequest) { r.Causality = &storagev1.WriteRequest_Clock{Clock: c} }
	}
	seen := func(c *datav1.VectorClock) change {
		return func(r *storagev1.WriteRequest) { r.Causality = &storagev1.WriteRequest_Context{Context: c} }
	}
	ttl := func(n int64) change { return func(r *storagev1.WriteRequest) { r.TtlSeconds = n } }
	twice := &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: "a", Counter: 1}, {NodeId: "a", Counter: 2}}}
	zero := &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: "a"}}}
	for i, c := range []struct {
		change change
		reason string // "" is accepted
	}{
		{key("k"), ""},
		{key(strings.Repeat("k", 1024)), ""},
		{key("tab\tand\nnewline, ä, 世界"), ""},
		{key(""), "INVALID_ARGUMENT_KEY"},
		{key(strings.Repeat("k", 1025)), "INVALID_ARGUMENT_KEY"},
		{key("a\x00b"), "INVALID_ARGUMENT_KEY"},
		{key("a\x01"), "INVALID_ARGUMENT_KEY"},
		{key("a\x7f"), "INVALID_ARGUMENT_KEY"},
		{tenant(strings.Repeat("t", 256)), ""},
		{tenant(""), "INVALID_ARGUMENT_TENANT"},
		{tenant(strings.Repeat("t", 257)), "INVALID_ARGUMENT_TENANT"},
		{tenant("a:b"), "INVALID_ARGUMENT_TENANT"},
		{tenant("a\x00"), "INVALID_ARGUMENT_TENANT"},
		{tenant("a\tb"), "INVALID_ARGUMENT_TENANT"},
		{tenant("_system"), "INVALID_ARGUMENT_TENANT"},
		{value(0), ""},
		{value(10 << 20), ""},
		{value(10<<20 + 1), "INVALID_ARGUMENT_VALUE"},
		{clock(clockOf(1000, 6)), ""},
		{clock(clockOf(1001, 6)), "INVALID_ARGUMENT_CLOCK"},
		{clock(clockOf(5000, 6)), "INVALID_ARGUMENT_CLOCK"},
		{clock(clockOf(1, 128)), ""},
		{clock(clockOf(1, 129)), "INVALID_ARGUMENT_CLOCK"},
		{clock(&datav1.VectorClock{}), "INVALID_ARGUMENT_CLOCK"},
		{clock(twice), "INVALID_ARGUMENT_CLOCK"},
		{clock(zero), "INVALID_ARGUMENT_CLOCK"},
		{seen(clockOf(1000, 6)), ""},
		{seen(clockOf(1001, 6)), "INVALID_ARGUMENT_CLOCK"},
		{seen(&datav1.VectorClock{}), ""},
		{seen(zero), "INVALID_ARGUMENT_CLOCK"},
		{ttl(store.MaxTTL), ""},
		{ttl(store.MaxTTL + 1), "INVALID_ARGUMENT_TTL"},
		{ttl(-1), "INVALID_ARGUMENT_TTL"},
	} {
		r := &storagev1.WriteRequest{Tenant: "t", Key: fmt.Sprintf("key-%d", i), Value: []byte("v")}
		c.change(r)
		_, err := w.storage.Write(t.Context(), r)
		if c.reason == "" {
			require.NoError(t, err, "case %d", i)
			continue
		}
		require.Equal(t, refusal{code: codes.InvalidArgument, reason: c.reason}, refused(t, err), "case %d", i)
	}
}

func TestEveryLimitOfABatchHasTwoSides(t *testing.T) {
	w := start(t)
	puts := func(n, size int) *storagev1.BatchWriteRequest {
		r := &storagev1.BatchWriteRequest{Tenant: "t"}
		for i := range n {
			r.Ops = append(r.Ops, &storagev1.BatchOp{
				Key: fmt.Sprintf("%04d", i), Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: make([]byte, size)}},
			})
		}
		return r
	}
	for _, c := range []struct {
		ops, size int
		ok        bool
	}{
		{0, 0, true}, {1000, 10, true}, {1001, 10, false}, {100_000, 0, false},
		{2, 8<<20 - 4, true}, {2, 8<<20 - 3, false},
	} {
		resp, err := w.storage.BatchWrite(t.Context(), puts(c.ops, c.size))
		if c.ok {
			require.NoError(t, err)
			require.Len(t, resp.GetResults(), c.ops)
			continue
		}
		require.Equal(t, refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_BATCH"}, refused(t, err))
	}
	for _, n := range []int{1000, 1001} {
		_, err := w.storage.BatchRead(t.Context(), &storagev1.BatchReadRequest{Tenant: "t", Keys: make([]string, n)})
		if n == 1000 {
			require.NoError(t, err)
		} else {
			require.Equal(t, "INVALID_ARGUMENT_BATCH", refused(t, err).reason)
		}
	}
	// Far above the limit gRPC cuts the message off before it is in memory.
	_, err := w.storage.BatchWrite(t.Context(), puts(3, 8<<20))
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
}

// A small message must not become a large one in memory: an empty element takes two bytes on the wire
// and a hundred here.
func TestElementsOfAMessageAreCountedBeforeTheyAreMade(t *testing.T) {
	w := start(t)
	_, err := w.storage.BatchRead(t.Context(), &storagev1.BatchReadRequest{Tenant: "t", Keys: make([]string, maxParts)})
	require.Equal(t, "INVALID_ARGUMENT_BATCH", refused(t, err).reason)
	_, err = w.storage.BatchRead(t.Context(), &storagev1.BatchReadRequest{Tenant: "t", Keys: make([]string, maxParts+1)})
	require.Equal(t, refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_MESSAGE"}, refused(t, err))

	entries := &datav1.VectorClock{Entries: make([]*datav1.ClockEntry, maxParts)} // and the clock itself
	for i := range entries.Entries {
		entries.Entries[i] = &datav1.ClockEntry{}
	}
	_, err = w.storage.Delete(t.Context(), &storagev1.DeleteRequest{Tenant: "t", Key: "k", Causality: &storagev1.DeleteRequest_Clock{Clock: entries}})
	require.Equal(t, "INVALID_ARGUMENT_MESSAGE", refused(t, err).reason)
}

func TestEveryLimitOfARepairHasTwoSides(t *testing.T) {
	w := start(t)
	siblings := func(n int) []*datav1.Sibling {
		var out []*datav1.Sibling
		for i := range n {
			out = append(out, &datav1.Sibling{Dot: &datav1.ClockEntry{NodeId: fmt.Sprint("n", i), Counter: 1}, Value: []byte("v"), Timestamp: 1})
		}
		return out
	}
	ahead := siblings(1)
	ahead[0].Timestamp = uint64(time.Now().Add(2*time.Minute).UnixMilli()) << 16
	both := siblings(1)
	both[0].Clock = &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: "n0", Counter: 1}}}
	dead := siblings(1)
	dead[0].Tombstone = true
	for i, c := range []struct {
		siblings []*datav1.Sibling
		reason   string
	}{
		{siblings(1), ""},
		{siblings(store.MaxRepairSiblings), ""},
		{siblings(store.MaxRepairSiblings + 1), "INVALID_ARGUMENT_SIBLINGS"},
		{siblings(100_000), "INVALID_ARGUMENT_SIBLINGS"},
		{nil, "INVALID_ARGUMENT_SIBLINGS"},
		{ahead, "INVALID_ARGUMENT_TIMESTAMP"},
		{both, "INVALID_ARGUMENT_SIBLINGS"},
		{dead, "INVALID_ARGUMENT_SIBLINGS"},
	} {
		_, err := w.storage.Repair(t.Context(), &storagev1.RepairRequest{Record: &datav1.Record{Tenant: "t", Key: fmt.Sprint(i), Siblings: c.siblings}})
		if c.reason == "" {
			require.NoError(t, err, "case %d", i)
			continue
		}
		require.Equal(t, refusal{code: codes.InvalidArgument, reason: c.reason}, refused(t, err), "case %d", i)
	}
	_, err := w.storage.Repair(t.Context(), &storagev1.RepairRequest{})
	require.Equal(t, "INVALID_ARGUMENT_TENANT", refused(t, err).reason)
}

func TestEveryLimitOfARangeHasTwoSides(t *testing.T) {
	w := start(t)
	for i, c := range []struct {
		r      *storagev1.GetKeyRangeRequest
		reason string
	}{
		{&storagev1.GetKeyRangeRequest{Tenant: "t"}, ""},
		{&storagev1.GetKeyRangeRequest{Tenant: "t", MaxKeys: 10_000}, ""},
		{&storagev1.GetKeyRangeRequest{Tenant: "t", MaxKeys: 10_001}, "INVALID_ARGUMENT_MAX_KEYS"},
		{&storagev1.GetKeyRangeRequest{Tenant: "t", MaxKeys: -1}, "INVALID_ARGUMENT_MAX_KEYS"},
		{&storagev1.GetKeyRangeRequest{Tenant: "t", Range: &datav1.KeyRange{Start: "b", End: "a"}}, "INVALID_ARGUMENT_RANGE"},
		{&storagev1.GetKeyRangeRequest{Tenant: "t", Range: &datav1.KeyRange{Start: strings.Repeat("k", 1025)}}, "INVALID_ARGUMENT_RANGE"},
		{&storagev1.GetKeyRangeRequest{Tenant: "t", PageToken: "nonsense"}, "INVALID_ARGUMENT_PAGE_TOKEN"},
		{&storagev1.GetKeyRangeRequest{Tenant: "t", PageToken: strings.Repeat("A", 1<<20)}, "INVALID_ARGUMENT_PAGE_TOKEN"},
		{&storagev1.GetKeyRangeRequest{}, "INVALID_ARGUMENT_TENANT"},
	} {
		_, err := w.storage.GetKeyRange(t.Context(), c.r)
		if c.reason == "" {
			require.NoError(t, err, "case %d", i)
			continue
		}
		require.Equal(t, refusal{code: codes.InvalidArgument, reason: c.reason}, refused(t, err), "case %d", i)
	}
}

// More requests than memory is meant for must be told to come back, and be served when others have
// ended.
func TestRequestsInFlightAreLimited(t *testing.T) {
	w := start(t, func(_ *world, o *Options) { o.MaxInFlight = 2 })
	w.put("k", "v")
	entered, release := make(chan struct{}), make(chan struct{})
	w.engine.set(func(f *fakeEngine) { f.hook = func() { entered <- struct{}{}; <-release } })
	done := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := w.storage.Read(context.Background(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
			done <- err
		}()
		<-entered
	}
	_, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	got := refused(t, err)
	require.Equal(t, "OVERLOADED", got.reason)
	require.Positive(t, got.retry)
	w.engine.set(func(f *fakeEngine) { f.hook = nil })
	close(release)
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	_, err = w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.NoError(t, err)
}
