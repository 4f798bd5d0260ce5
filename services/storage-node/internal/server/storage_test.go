package server

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// What goes in over the wire must come out of it: values, clocks, siblings, tombstones.
func TestWriteReadDeleteOverTheWire(t *testing.T) {
	w := start(t)
	ctx := t.Context()
	absent, err := w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.NoError(t, err)
	require.False(t, absent.GetFound())
	require.Nil(t, absent.GetClock(), "a key that was never seen has no clock")

	first := w.put("k", "one")
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, first.GetOutcome())
	require.EqualValues(t, 1, first.GetSiblings())
	second, err := w.storage.Write(ctx, &storagev1.WriteRequest{Tenant: "t", Key: "k", Value: []byte("two"),
		Causality: &storagev1.WriteRequest_Context{Context: &datav1.VectorClock{}}})
	require.NoError(t, err)
	require.Equal(t, storagev1.Outcome_OUTCOME_SIBLING, second.GetOutcome())

	read, err := w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.NoError(t, err)
	require.True(t, read.GetFound())
	require.Len(t, read.GetSiblings(), 2)
	require.Equal(t, read.GetValue(), read.GetSiblings()[0].GetValue(), "the winner comes first")
	require.NotNil(t, read.GetSiblings()[0].GetDot())

	merged, err := w.storage.Write(ctx, &storagev1.WriteRequest{Tenant: "t", Key: "k", Value: []byte("three"), TtlSeconds: 3600,
		Causality: &storagev1.WriteRequest_Context{Context: read.GetClock()}})
	require.NoError(t, err)
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, merged.GetOutcome())
	read, err = w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.NoError(t, err)
	require.Equal(t, "three", string(read.GetValue()))
	require.Positive(t, read.GetExpiresAt())
	require.Positive(t, read.GetTimestamp())
	require.Empty(t, read.GetSiblings())

	_, err = w.storage.Delete(ctx, &storagev1.DeleteRequest{Tenant: "t", Key: "k", Causality: &storagev1.DeleteRequest_Context{Context: read.GetClock()}})
	require.NoError(t, err)
	read, err = w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.NoError(t, err)
	require.False(t, read.GetFound())
	require.NotNil(t, read.GetClock(), "a tombstone is known")
	require.True(t, read.GetSiblings()[0].GetTombstone())
}

// A coordinator's clock is compared as it is: the same is a repeat, an older one is stale.
func TestPlainClocksOverTheWire(t *testing.T) {
	w := start(t)
	write := func(value string, entries ...*datav1.ClockEntry) storagev1.Outcome {
		resp, err := w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "k", Value: []byte(value),
			Causality: &storagev1.WriteRequest_Clock{Clock: &datav1.VectorClock{Entries: entries}}})
		require.NoError(t, err)
		return resp.GetOutcome()
	}
	b1, a2, a1 := &datav1.ClockEntry{NodeId: "b", Counter: 1}, &datav1.ClockEntry{NodeId: "a", Counter: 2}, &datav1.ClockEntry{NodeId: "a", Counter: 1}
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, write("v", b1, a2)) // in any order
	require.Equal(t, storagev1.Outcome_OUTCOME_DUPLICATE, write("v", a2, b1))
	require.Equal(t, storagev1.Outcome_OUTCOME_STALE, write("old", a1))
	require.Equal(t, storagev1.Outcome_OUTCOME_SIBLING, write("other", a2, b1))
}

// An item that is refused must not take the others with it, unless they are one.
func TestBatchAnswersEachItem(t *testing.T) {
	w := start(t)
	ops := []*storagev1.BatchOp{
		{Key: "a", Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: []byte("1")}}},
		{Key: "", Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: []byte("1")}}},
		{Key: "b", Op: &storagev1.BatchOp_Delete{Delete: &storagev1.DeleteOp{}}},
		{Key: "c"},
		{Key: "d", Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Causality: &storagev1.PutOp_Clock{Clock: clockOf(1001, 6)}}}},
		{Key: "e", Op: &storagev1.BatchOp_Repair{Repair: &storagev1.RepairOp{Siblings: []*datav1.Sibling{{Dot: &datav1.ClockEntry{NodeId: "x", Counter: 1}, Value: []byte("r"), Timestamp: 5}}}}},
	}
	reasons := []string{"", "INVALID_ARGUMENT_KEY", "", "INVALID_ARGUMENT_BATCH", "INVALID_ARGUMENT_CLOCK", ""}
	resp, err := w.storage.BatchWrite(t.Context(), &storagev1.BatchWriteRequest{Tenant: "t", Ops: ops})
	require.NoError(t, err)
	for i, r := range resp.GetResults() {
		require.Equal(t, reasons[i], r.GetError().GetReason(), "item %d", i)
	}
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, resp.GetResults()[0].GetOutcome())
	require.NotNil(t, resp.GetResults()[0].GetClock())

	_, err = w.storage.BatchWrite(t.Context(), &storagev1.BatchWriteRequest{Tenant: "t", Ops: ops, Atomic: true})
	require.Equal(t, "INVALID_ARGUMENT_KEY", refused(t, err).reason)

	read, err := w.storage.BatchRead(t.Context(), &storagev1.BatchReadRequest{Tenant: "t", Keys: []string{"a", "", "e", "zz"}})
	require.NoError(t, err)
	require.Equal(t, "1", string(read.GetResults()[0].GetResponse().GetValue()))
	require.Equal(t, int32(codes.InvalidArgument), read.GetResults()[1].GetError().GetCode())
	require.Equal(t, "r", string(read.GetResults()[2].GetResponse().GetValue()))
	require.False(t, read.GetResults()[3].GetResponse().GetFound())

	quiet, err := w.storage.BatchWrite(t.Context(), &storagev1.BatchWriteRequest{Tenant: "t", Ops: ops[:1], OmitClocks: true})
	require.NoError(t, err)
	require.Nil(t, quiet.GetResults()[0].GetClock())
}

// Pages must neither repeat nor skip a key that was there all the time, whatever is written between
// them.
func TestPagesAreStableUnderWrites(t *testing.T) {
	w := start(t)
	want := map[string]bool{}
	for i := range 100 {
		key := fmt.Sprintf("k%03d", i)
		want[key] = true
		w.put(key, "v")
	}
	seen := map[string]int{}
	token := ""
	for page := 0; ; page++ {
		resp, err := w.storage.GetKeyRange(t.Context(), &storagev1.GetKeyRangeRequest{
			Tenant: "t", Range: &datav1.KeyRange{Start: "k", End: "l"}, MaxKeys: 7, PageToken: token, IncludeClocks: true,
		})
		require.NoError(t, err)
		for _, k := range resp.GetKeys() {
			seen[k.GetKey()]++
			require.NotNil(t, k.GetClock())
		}
		w.put(fmt.Sprintf("k%03d-new", page*7), "v")     // behind, at and before the page
		w.put(fmt.Sprintf("j%03d", page), "v")           // outside
		w.put(fmt.Sprintf("k%03d", page*5%100), "again") // an overwrite
		if token = resp.GetNextPageToken(); token == "" {
			break
		}
		require.Less(t, page, 100)
	}
	for key := range want {
		require.Equal(t, 1, seen[key], key)
	}
	for key := range seen {
		require.True(t, strings.HasPrefix(key, "k"), key)
	}
}

func (w *world) stream(r *storagev1.StreamKeysRequest) (records []*datav1.Record, last string, err error) {
	w.t.Helper()
	stream, err := w.storage.StreamKeys(w.t.Context(), r)
	require.NoError(w.t, err)
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return records, last, nil
		}
		if err != nil {
			return records, last, err
		}
		records, last = append(records, msg.GetRecords()...), msg.GetCursor()
	}
}

func TestStreamSendsTheRangeAndResumes(t *testing.T) {
	w := start(t)
	for i := range 200 {
		w.put(fmt.Sprintf("k%03d", i), strings.Repeat("v", 1000))
	}
	all, _, err := w.stream(&storagev1.StreamKeysRequest{Tenant: "t"})
	require.NoError(t, err)
	require.Len(t, all, 200)
	require.Equal(t, "t", all[0].GetTenant())

	stream, err := w.storage.StreamKeys(t.Context(), &storagev1.StreamKeysRequest{Tenant: "t"})
	require.NoError(t, err)
	first, err := stream.Recv()
	require.NoError(t, err)
	require.Less(t, len(first.GetRecords()), 200, "messages are small")
	rest, _, err := w.stream(&storagev1.StreamKeysRequest{Tenant: "t", Cursor: first.GetCursor()})
	require.NoError(t, err)
	require.Len(t, rest, 200-len(first.GetRecords()))
	require.Equal(t, fmt.Sprintf("k%03d", len(first.GetRecords())), rest[0].GetKey())

	whole := &storagev1.StreamKeysRequest_HashRanges{HashRanges: &storagev1.HashRanges{Ranges: []*datav1.HashRange{{}}}}
	ring, _, err := w.stream(&storagev1.StreamKeysRequest{Tenant: "t", What: whole})
	require.NoError(t, err)
	require.Len(t, ring, 200)
	half := &storagev1.StreamKeysRequest_HashRanges{HashRanges: &storagev1.HashRanges{Ranges: []*datav1.HashRange{{End: 1 << 63}}}}
	part, _, err := w.stream(&storagev1.StreamKeysRequest{Tenant: "t", What: half})
	require.NoError(t, err)
	require.NotEmpty(t, part)
	require.Less(t, len(part), 200)

	none := &storagev1.StreamKeysRequest_HashRanges{HashRanges: &storagev1.HashRanges{}}
	_, _, err = w.stream(&storagev1.StreamKeysRequest{Tenant: "t", What: none})
	require.Equal(t, "INVALID_ARGUMENT_RANGE", refused(t, err).reason, "no range must not mean all")
	many := &storagev1.StreamKeysRequest_HashRanges{HashRanges: &storagev1.HashRanges{Ranges: make([]*datav1.HashRange, store.MaxHashRanges+1)}}
	for i := range many.HashRanges.Ranges {
		many.HashRanges.Ranges[i] = &datav1.HashRange{}
	}
	_, _, err = w.stream(&storagev1.StreamKeysRequest{Tenant: "t", What: many})
	require.Equal(t, "INVALID_ARGUMENT_RANGE", refused(t, err).reason)
	_, _, err = w.stream(&storagev1.StreamKeysRequest{Tenant: "u", Cursor: first.GetCursor()})
	require.Equal(t, "INVALID_ARGUMENT_CURSOR", refused(t, err).reason)
}

// A reader that takes nothing must hold a window's worth of memory, not the range; and not for ever.
func TestSlowReaderOfAStreamHoldsAWindowAndIsGivenUp(t *testing.T) {
	w := start(t, func(w *world, _ *Options) { w.server.stall = 100 * time.Millisecond })
	const size, count = 32 << 10, 400 // 12.5 MiB
	for i := range count {
		w.put(fmt.Sprintf("k%03d", i), strings.Repeat("v", size))
	}
	stream, err := w.storage.StreamKeys(t.Context(), &storagev1.StreamKeysRequest{Tenant: "t"})
	require.NoError(t, err)
	// The call ends on the server although nothing is received.
	require.Eventually(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		last := w.calls[len(w.calls)-1]
		return last.Method == storagev1.StorageService_StreamKeys_FullMethodName && last.Code == codes.ResourceExhausted
	}, 10*time.Second, 10*time.Millisecond)
	received := 0
	var msg *storagev1.StreamKeysResponse
	for {
		if msg, err = stream.Recv(); err != nil {
			break
		}
		received += len(msg.GetRecords())
	}
	require.Equal(t, "SLOW_READER", refused(t, err).reason)
	require.Less(t, received*size, 2<<20, "no more was sent than windows and buffers hold")
}

// A shutdown must not wait for a reader of a million keys: the stream ends, and resumes elsewhere.
func TestStreamsEndWhenTheNodeLeaves(t *testing.T) {
	w := start(t)
	for i := range 100 {
		w.put(fmt.Sprintf("k%03d", i), strings.Repeat("v", 64<<10))
	}
	stream, err := w.storage.StreamKeys(t.Context(), &storagev1.StreamKeysRequest{Tenant: "t"})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	w.server.Leave()
	for err == nil {
		_, err = stream.Recv()
	}
	require.Equal(t, "STOPPING", refused(t, err).reason)
	w.put("k", "calls with one answer go on until the listener closes")
}

// Metrics see every call, with its code.
func TestCallsAreObserved(t *testing.T) {
	w := start(t)
	w.put("k", "v")
	_, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{})
	require.Error(t, err)
	w.mu.Lock()
	defer w.mu.Unlock()
	require.Len(t, w.calls, 2)
	require.Equal(t, storagev1.StorageService_Write_FullMethodName, w.calls[0].Method)
	require.Equal(t, codes.OK, w.calls[0].Code)
	require.Positive(t, w.calls[0].Took)
	require.Equal(t, codes.InvalidArgument, w.calls[1].Code)
}
