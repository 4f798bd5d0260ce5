package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

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
	keys := func(n, bytes int) (out []string) {
		key := strings.Repeat("k", bytes-2) // tag and length
		for range n {
			out = append(out, key)
		}
		return out
	}
	for i, c := range []struct {
		keys   []string
		reason string
	}{
		{keys(maxParts, bytesPerPart), "INVALID_ARGUMENT_BATCH"},
		{keys(maxParts+1, bytesPerPart), "INVALID_ARGUMENT_MESSAGE"},
		{keys(countFrom/2-2, 2), "INVALID_ARGUMENT_BATCH"}, // too small to be counted
		{keys(40_000, 2), "INVALID_ARGUMENT_MESSAGE"},
		{keys(40_000, 3), "INVALID_ARGUMENT_MESSAGE"},
		{keys(40_000, 4), "INVALID_ARGUMENT_BATCH"},
	} {
		_, err := w.storage.BatchRead(t.Context(), &storagev1.BatchReadRequest{Tenant: "t", Keys: c.keys})
		require.Equal(t, c.reason, refused(t, err).reason, "case %d", i)
	}

	entries := &datav1.VectorClock{Entries: make([]*datav1.ClockEntry, maxParts)} // and the clock itself
	for i := range entries.Entries {
		entries.Entries[i] = &datav1.ClockEntry{NodeId: "n", Counter: 1}
	}
	_, err := w.storage.Delete(t.Context(), &storagev1.DeleteRequest{Tenant: "t", Key: "k", Causality: &storagev1.DeleteRequest_Clock{Clock: entries}})
	require.Equal(t, "INVALID_ARGUMENT_MESSAGE", refused(t, err).reason)
}

// The largest requests that have a meaning, of the smallest parts that have one, must pass.
func TestLargestMeaningfulRequestIsNotTakenForAHostileOne(t *testing.T) {
	w := start(t)
	small := &storagev1.BatchWriteRequest{Tenant: "t"}
	for i := range 1000 {
		clock := &datav1.VectorClock{}
		for j := range 1000 {
			clock.Entries = append(clock.Entries, &datav1.ClockEntry{NodeId: strconv.FormatInt(int64(j), 36), Counter: 1})
		}
		small.Ops = append(small.Ops, &storagev1.BatchOp{Key: strconv.FormatInt(int64(i), 36),
			Op: &storagev1.BatchOp_Delete{Delete: &storagev1.DeleteOp{Causality: &storagev1.DeleteOp_Clock{Clock: clock}}}})
	}
	require.Greater(t, countParts(marshalled(t, small), small.ProtoReflect().Descriptor(), 0), 1_000_000)
	resp, err := w.storage.BatchWrite(t.Context(), small)
	require.NoError(t, err)
	for _, r := range resp.GetResults() {
		require.Equal(t, "", r.GetError().GetReason())
	}
}

func marshalled(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	require.NoError(t, err)
	return b
}

// Whatever comes in, memory is a small multiple of its size, and a refusal changes nothing.
func TestHostileMessagesTakeLittleMemory(t *testing.T) {
	const allowed = 40 // bytes for each of the message
	w := start(t)
	parts := func(n int, outer ...byte) []byte { return bytes.Repeat(outer, n) }
	field := func(number protowire.Number, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), content)
	}
	entry := []byte{0x0a, 2, 0x10, 1}
	for name, c := range map[string]struct {
		method  string
		message []byte
	}{
		"empty keys":                 {storagev1.StorageService_BatchRead_FullMethodName, parts(10<<20-10, 0x12, 0)},
		"empty operations":           {storagev1.StorageService_BatchWrite_FullMethodName, parts(10<<20-10, 0x12, 0)},
		"operations":                 {storagev1.StorageService_BatchWrite_FullMethodName, parts(4<<20, 0x12, 2, 0x12, 0)},
		"1,001 operations":           {storagev1.StorageService_BatchWrite_FullMethodName, parts(1001, 0x12, 5, 0x0a, 1, 'k', 0x12, 0)},
		"empty entries":              {storagev1.StorageService_Write_FullMethodName, field(4, parts(5<<20, 0x0a, 0))},
		"small entries":              {storagev1.StorageService_Write_FullMethodName, field(4, parts(1<<20-10, entry...))},
		"1,001 entries":              {storagev1.StorageService_Write_FullMethodName, field(4, parts(1001, entry...))},
		"empty siblings":             {storagev1.StorageService_Repair_FullMethodName, field(1, parts(5<<20, 0x1a, 0))},
		"siblings":                   {storagev1.StorageService_Repair_FullMethodName, field(1, parts(1<<19, 0x1a, 4, 0x0a, 2, 0x0a, 0))},
		"hash ranges":                {storagev1.StorageService_StreamKeys_FullMethodName, field(3, parts(5<<20, 0x0a, 0))},
		"long token":                 {storagev1.StorageService_GetKeyRange_FullMethodName, field(4, parts(19<<20, 'A'))},
		"unknown field":              {storagev1.StorageService_Read_FullMethodName, field(99, parts(19<<20, 'A'))},
		"pipelined empty operations": {storagev1.StorageService_Pipeline_FullMethodName, parts(10<<20-10, 0x12, 0)},
		"pipelined entries":          {storagev1.StorageService_Pipeline_FullMethodName, field(2, field(4, field(2, parts(1<<20-10, entry...))))},
		"pipelined empty entries":    {storagev1.StorageService_Pipeline_FullMethodName, field(2, field(4, field(2, parts(5<<20, 0x0a, 0))))},
		"pipelined siblings":         {storagev1.StorageService_Pipeline_FullMethodName, field(2, field(6, parts(1<<19, 0x0a, 4, 0x0a, 2, 0x0a, 0)))},
	} {
		t.Run(name, func(t *testing.T) {
			raw := grpc.ForceCodecV2(rawCodec{encoding.GetCodecV2("proto")})
			desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
			ask := func() error {
				stream, err := w.conn.NewStream(t.Context(), desc, c.method, raw)
				require.NoError(t, err)
				require.NoError(t, stream.SendMsg(c.message))
				require.NoError(t, stream.CloseSend())
				var answer ignored
				for err = nil; err == nil; {
					err = stream.RecvMsg(&answer)
				}
				return err
			}
			_ = ask() // pools and windows are warm
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := ask()
			runtime.ReadMemStats(&after)
			if !errors.Is(err, io.EOF) { // pipelines answer each operation
				require.Contains(t, refused(t, err).reason, "INVALID_ARGUMENT")
			}
			took := after.TotalAlloc - before.TotalAlloc
			t.Logf("%d bytes for a message of %d", took, len(c.message))
			require.LessOrEqual(t, took, uint64(allowed*len(c.message)+1<<20))
			require.Empty(t, w.engine.data)
		})
	}
}

// ignored is an answer that nobody reads.
type ignored struct{}

// A message that is too large is cut off before it is in memory, with a status that says so; one byte less
// is looked at.
func TestMessagesAreLargeAsTheLimitAtMost(t *testing.T) {
	w := start(t)
	request := func(bytes int) *storagev1.WriteRequest {
		r := &storagev1.WriteRequest{Tenant: "t", Key: "k"}
		r.Value = make([]byte, bytes-len(marshalled(t, r))-5) // its tag and length
		require.Len(t, marshalled(t, r), bytes)
		return r
	}
	_, err := w.storage.Write(t.Context(), request(maxRequestBytes))
	require.Equal(t, "INVALID_ARGUMENT_VALUE", refused(t, err).reason)
	_, err = w.storage.Write(t.Context(), request(maxRequestBytes+1))
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	require.ErrorContains(t, err, "larger than max")

	s := pipe(t, t.Context(), w)
	require.NoError(t, s.Send(&storagev1.PipelineRequest{Tenant: "t", Ops: []*storagev1.PipelineOp{putOp(1, "k", strings.Repeat("v", maxRequestBytes))}}))
	_, err = s.Recv()
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	require.ErrorContains(t, err, "larger than max")
	require.Empty(t, w.engine.data)
	w.put("k", "the connection goes on")
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
	entered, release := make(chan struct{}, 3), make(chan struct{})
	w.engine.set(func(f *fakeEngine) { f.hook = func() { entered <- struct{}{}; <-release } })
	letGo := sync.OnceFunc(func() { close(release) })
	defer letGo()
	done := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := w.storage.Read(context.Background(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
			done <- err
		}()
		<-entered
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	got := refused(t, err)
	require.Equal(t, "OVERLOADED", got.reason)
	require.Positive(t, got.retry)
	w.engine.set(func(f *fakeEngine) { f.hook = nil })
	letGo()
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	_, err = w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.NoError(t, err)
}
