package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	codeInvalid  = storagenodev1.ErrorCode_ERROR_CODE_INVALID_REQUEST
	codeInternal = storagenodev1.ErrorCode_ERROR_CODE_INTERNAL
	codeDraining = storagenodev1.ErrorCode_ERROR_CODE_NODE_DRAINING
	codePressure = storagenodev1.ErrorCode_ERROR_CODE_MEMORY_PRESSURE
	codeDiskFull = storagenodev1.ErrorCode_ERROR_CODE_DISK_FULL
	codeCorrupt  = storagenodev1.ErrorCode_ERROR_CODE_CORRUPTED_DATA
)

// vc makes a clock of a coordinator: id, counter, id, counter, …
func vc(pairs ...any) *storagenodev1.VectorClock {
	c := &storagenodev1.VectorClock{}
	for i := 0; i < len(pairs); i += 2 {
		c.Entries = append(c.Entries, &storagenodev1.VectorClockEntry{
			CoordinatorNodeId: pairs[i].(string), LogicalTimestamp: int64(pairs[i+1].(int)),
		})
	}
	return c
}

// clockText prints a clock for comparison.
func clockText(c *storagenodev1.VectorClock) string {
	var out []string
	for _, e := range c.GetEntries() {
		out = append(out, fmt.Sprintf("%s:%d", e.GetCoordinatorNodeId(), e.GetLogicalTimestamp()))
	}
	return strings.Join(out, " ")
}

// coordinate writes as a coordinator does; the status must be OK.
func (w *world) coordinate(key, value string, clock *storagenodev1.VectorClock) *storagenodev1.WriteResponse {
	w.t.Helper()
	resp, err := w.contract.Write(w.t.Context(), &storagenodev1.WriteRequest{TenantId: "t", Key: key, Value: []byte(value), VectorClock: clock})
	require.NoError(w.t, err)
	return resp
}

func (w *world) contractRead(key string) *storagenodev1.ReadResponse {
	w.t.Helper()
	resp, err := w.contract.Read(w.t.Context(), &storagenodev1.ReadRequest{TenantId: "t", Key: key})
	require.NoError(w.t, err)
	return resp
}

// Each outcome of a coordinator's write is acknowledged, and none loses a value that nobody has seen.
func TestContractWritesKeepWhatIsConcurrent(t *testing.T) {
	w := start(t)
	first := w.coordinate("k", "one", vc("c2", 1, "c1", 1))
	require.True(t, first.GetSuccess())
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, first.GetOutcome())
	require.Equal(t, "c1:1 c2:1", clockText(first.GetUpdatedVectorClock()))

	repeat := w.coordinate("k", "one", vc("c1", 1, "c2", 1))
	require.True(t, repeat.GetSuccess())
	require.Equal(t, storagev1.Outcome_OUTCOME_DUPLICATE, repeat.GetOutcome())

	stale := w.coordinate("k", "old", vc("c1", 1))
	require.True(t, stale.GetSuccess(), "what is dominated is done")
	require.Equal(t, storagev1.Outcome_OUTCOME_STALE, stale.GetOutcome())
	require.Equal(t, "c1:1 c2:1", clockText(stale.GetUpdatedVectorClock()))
	require.Equal(t, "one", string(w.contractRead("k").GetValue()))

	conflict := w.coordinate("k", "two", vc("c1", 1, "c2", 1))
	require.True(t, conflict.GetSuccess())
	require.Equal(t, storagev1.Outcome_OUTCOME_SIBLING, conflict.GetOutcome(), "the same clock with another value is a conflict")
	concurrent := w.coordinate("k", "three", vc("c3", 7))
	require.Equal(t, storagev1.Outcome_OUTCOME_SIBLING, concurrent.GetOutcome())
	require.EqualValues(t, 3, concurrent.GetSiblingCount())

	read := w.contractRead("k")
	require.True(t, read.GetSuccess())
	require.True(t, read.GetFound())
	require.Equal(t, "c1:1 c2:1 c3:7", clockText(read.GetVectorClock()), "the joined clock")
	require.EqualValues(t, 3, read.GetSiblingCount())
	require.Equal(t, read.GetValue(), read.GetSiblings()[0].GetValue(), "the winner comes first")

	merged := w.coordinate("k", "merged", vc("c1", 2, "c2", 1, "c3", 7))
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, merged.GetOutcome(), "the next write supersedes them all")
	read = w.contractRead("k")
	require.Equal(t, "merged", string(read.GetValue()))
	require.Empty(t, read.GetSiblings())
	require.Zero(t, read.GetSiblingCount())
}

// Coordinators read before they write: an error for a key that is not there yet would make each new key
// a write without a quorum.
func TestContractReadOfAnAbsentKeyIsAnAnswer(t *testing.T) {
	w := start(t)
	absent := w.contractRead("new")
	require.True(t, proto.Equal(&storagenodev1.ReadResponse{Success: true}, absent), "%v", absent)

	w.coordinate("k", "v", vc("c1", 1))
	deleted, err := w.contract.Delete(t.Context(), &storagenodev1.DeleteRequest{TenantId: "t", Key: "k", VectorClock: vc("c1", 2)})
	require.NoError(t, err)
	require.True(t, deleted.GetSuccess())
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, deleted.GetOutcome())
	require.Equal(t, "c1:2", clockText(deleted.GetUpdatedVectorClock()))
	gone := w.contractRead("k")
	require.True(t, gone.GetSuccess())
	require.False(t, gone.GetFound())
	require.Empty(t, gone.GetValue())
	require.Equal(t, "c1:2", clockText(gone.GetVectorClock()), "so that the next write supersedes the tombstone")
	require.True(t, gone.GetSiblings()[0].GetTombstone())

	empty := w.coordinate("e", "", vc("c1", 1))
	require.True(t, empty.GetSuccess())
	require.True(t, w.contractRead("e").GetFound(), "an empty value is one")
}

// Without a clock, or with an empty one as some clients send it, the node coordinates the write: it
// supersedes what this node knows. Clients of both services see each other's writes.
func TestContractWriteWithoutAClockIsBlind(t *testing.T) {
	w := start(t)
	w.coordinate("k", "1", vc("c1", 5))
	for i, clock := range []*storagenodev1.VectorClock{nil, {}, vc("c1", 0)} {
		resp := w.coordinate("k", fmt.Sprint("blind", i), clock)
		require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, resp.GetOutcome())
		require.Len(t, resp.GetUpdatedVectorClock().GetEntries(), 2)
		require.Equal(t, fmt.Sprint("blind", i), string(w.contractRead("k").GetValue()))
	}
	w.put("k", "native")
	read := w.contractRead("k")
	require.Equal(t, "native", string(read.GetValue()))
	clock := read.GetVectorClock()
	clock.Entries = append(clock.Entries, vc("c9", 1).Entries...)
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, w.coordinate("k", "last", clock).GetOutcome())
	native, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.NoError(t, err)
	require.Equal(t, "last", string(native.GetValue()))
}

// Repair joins: what is newer stays, what is older goes, and a deletion that is repaired is not
// collected before what it deletes.
func TestContractRepairJoins(t *testing.T) {
	w := start(t)
	repair := func(r *storagenodev1.RepairRequest) *storagenodev1.RepairResponse {
		r.TenantId, r.Key = "t", "k"
		resp, err := w.contract.Repair(t.Context(), r)
		require.NoError(t, err)
		return resp
	}
	w.coordinate("k", "local", vc("c1", 2))
	require.True(t, repair(&storagenodev1.RepairRequest{Value: []byte("old"), VectorClock: vc("c1", 1)}).GetSuccess())
	require.Equal(t, "local", string(w.contractRead("k").GetValue()))
	require.True(t, repair(&storagenodev1.RepairRequest{Value: []byte("beside"), VectorClock: vc("c2", 1)}).GetSuccess())
	require.EqualValues(t, 2, w.contractRead("k").GetSiblingCount())
	for range 2 { // a repeat changes nothing
		require.True(t, repair(&storagenodev1.RepairRequest{Value: []byte("new"), VectorClock: vc("c1", 2, "c2", 1, "c3", 1)}).GetSuccess())
		read := w.contractRead("k")
		require.Equal(t, "new", string(read.GetValue()))
		require.Zero(t, read.GetSiblingCount())
	}
	before := uint64(time.Now().UnixMilli()) << 16
	require.True(t, repair(&storagenodev1.RepairRequest{IsTombstone: true, VectorClock: vc("c1", 3, "c2", 1, "c3", 1)}).GetSuccess())
	read := w.contractRead("k")
	require.False(t, read.GetFound())
	require.GreaterOrEqual(t, read.GetSiblings()[0].GetTimestamp(), before)

	for name, r := range map[string]*storagenodev1.RepairRequest{
		"no clock":             {Value: []byte("v")},
		"a clock of zeros":     {Value: []byte("v"), VectorClock: vc("c1", 0)},
		"tombstone with value": {Value: []byte("v"), VectorClock: vc("c1", 9), IsTombstone: true},
	} {
		resp := repair(r)
		require.False(t, resp.GetSuccess(), name)
		require.Equal(t, codeInvalid, resp.GetErrorCode(), name)
		require.NotEmpty(t, resp.GetErrorMessage(), name)
	}
	require.False(t, w.contractRead("k").GetFound(), "bad input changes nothing")
}

// A value that came by repair must not look newer than its original, or replicas disagree about the
// winner.
func TestContractRepairDoesNotChangeTheTimeOfAValue(t *testing.T) {
	w := start(t)
	w.coordinate("k", "v", vc("c1", 1))
	native, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.NoError(t, err)
	_, err = w.contract.Repair(t.Context(), &storagenodev1.RepairRequest{TenantId: "t", Key: "k", Value: []byte("v"), VectorClock: vc("c1", 1)})
	require.NoError(t, err)
	again, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.NoError(t, err)
	require.True(t, proto.Equal(native, again))
}

// A value that the node coordinated has a dot, which the contract can't express: repaired, it stands there
// twice. It must be the same value for every reader, and go with the next write.
func TestContractRepairOfANodesOwnWriteIsHarmless(t *testing.T) {
	w := start(t)
	w.put("k", "native")
	clock := w.contractRead("k").GetVectorClock()
	resp, err := w.contract.Repair(t.Context(), &storagenodev1.RepairRequest{TenantId: "t", Key: "k", Value: []byte("native"), VectorClock: clock})
	require.NoError(t, err)
	require.True(t, resp.GetSuccess())
	read := w.contractRead("k")
	require.Equal(t, "native", string(read.GetValue()))
	require.EqualValues(t, 2, read.GetSiblingCount())
	require.Equal(t, clockText(clock), clockText(read.GetVectorClock()))
	clock.Entries = append(clock.Entries, vc("c1", 1).Entries...)
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, w.coordinate("k", "next", clock).GetOutcome())
	require.Zero(t, w.contractRead("k").GetSiblingCount())
}

// Each limit is crossed from both sides; what is refused must change nothing, and say so in the answer.
func TestContractLimitsHaveTwoSides(t *testing.T) {
	w := start(t)
	many := func(n int) *storagenodev1.VectorClock {
		c := &storagenodev1.VectorClock{}
		for i := range n {
			c.Entries = append(c.Entries, vc(fmt.Sprintf("c%04d", i), 1).Entries...)
		}
		return c
	}
	type change func(*storagenodev1.WriteRequest)
	key := func(k string) change { return func(r *storagenodev1.WriteRequest) { r.Key = k } }
	tenant := func(k string) change { return func(r *storagenodev1.WriteRequest) { r.TenantId = k } }
	clock := func(c *storagenodev1.VectorClock) change {
		return func(r *storagenodev1.WriteRequest) { r.VectorClock = c }
	}
	idempotency := func(k string) change { return func(r *storagenodev1.WriteRequest) { r.IdempotencyKey = k } }
	// A value such that the whole request has so many bytes.
	size := func(n int) change {
		return func(r *storagenodev1.WriteRequest) {
			r.Value = make([]byte, n-100)
			r.Value = make([]byte, n-100+n-proto.Size(r))
		}
	}
	for i, c := range []struct {
		change change
		want   string // the reason; "" is accepted
	}{
		{key(strings.Repeat("k", 1024)), ""},
		{key(""), "INVALID_ARGUMENT_KEY"},
		{key(strings.Repeat("k", 1025)), "INVALID_ARGUMENT_KEY"},
		{key("a\x00b"), "INVALID_ARGUMENT_KEY"},
		{tenant(strings.Repeat("t", 256)), ""},
		{tenant(""), "INVALID_ARGUMENT_TENANT"},
		{tenant(strings.Repeat("t", 257)), "INVALID_ARGUMENT_TENANT"},
		{tenant("a:b"), "INVALID_ARGUMENT_TENANT"},
		{clock(many(1000)), ""},
		{clock(many(1001)), "INVALID_ARGUMENT_CLOCK"},
		{clock(vc(strings.Repeat("c", 128), 1)), ""},
		{clock(vc(strings.Repeat("c", 129), 1)), "INVALID_ARGUMENT_CLOCK"},
		{clock(vc("", 1)), "INVALID_ARGUMENT_CLOCK"},
		{clock(vc("", 0)), "INVALID_ARGUMENT_CLOCK"},
		{clock(vc("a", math.MaxInt64)), ""},
		{clock(vc("a", 0, "b", 1)), ""},
		{clock(vc("a", -1)), "INVALID_ARGUMENT_CLOCK"},
		{clock(vc("a", 1, "b", math.MinInt64)), "INVALID_ARGUMENT_CLOCK"},
		{clock(vc("a", 1, "a", 1)), "INVALID_ARGUMENT_CLOCK"},
		{clock(vc("a", 1, "b", 1, "a", 0)), "INVALID_ARGUMENT_CLOCK"},
		{idempotency(strings.Repeat("i", 128)), ""},
		{idempotency(strings.Repeat("i", 129)), "INVALID_ARGUMENT_IDEMPOTENCY_KEY"},
		{idempotency("a\nb"), "INVALID_ARGUMENT_IDEMPOTENCY_KEY"},
		{size(4 << 20), ""},
		{size(4<<20 + 1), "INVALID_ARGUMENT_MESSAGE"},
		{size(11 << 20), "INVALID_ARGUMENT_MESSAGE"},
	} {
		r := &storagenodev1.WriteRequest{TenantId: "t", Key: fmt.Sprint("key-", i), Value: []byte("v"), VectorClock: vc("c", 1)}
		c.change(r)
		resp, err := w.contract.Write(t.Context(), r)
		require.NoError(t, err, "case %d: the status is OK", i)
		require.Equal(t, c.want == "", resp.GetSuccess(), "case %d: %v", i, resp)
		require.Equal(t, c.want, resp.GetError().GetReason(), "case %d", i)
		deleted, err := w.contract.Delete(t.Context(), &storagenodev1.DeleteRequest{
			TenantId: r.GetTenantId(), Key: r.GetKey(), VectorClock: r.GetVectorClock(), IdempotencyKey: r.GetIdempotencyKey(),
		})
		require.NoError(t, err, "case %d", i)
		if c.want == "" {
			require.Empty(t, resp.GetErrorMessage(), "case %d", i)
			continue
		}
		require.Equal(t, codeInvalid, resp.GetErrorCode(), "case %d", i)
		require.NotEmpty(t, resp.GetErrorMessage(), "case %d", i)
		if c.want != "INVALID_ARGUMENT_MESSAGE" {
			require.False(t, deleted.GetSuccess(), "case %d", i)
			require.Equal(t, codeInvalid, deleted.GetErrorCode(), "case %d", i)
			require.Equal(t, c.want, deleted.GetError().GetReason(), "case %d", i)
		}
		if c.want == "INVALID_ARGUMENT_CLOCK" || c.want == "INVALID_ARGUMENT_IDEMPOTENCY_KEY" {
			require.Empty(t, w.contractRead(r.GetKey()).GetVectorClock(), "case %d changed something", i)
		}
	}
	bad, err := w.contract.Read(t.Context(), &storagenodev1.ReadRequest{TenantId: "t"})
	require.NoError(t, err)
	require.False(t, bad.GetSuccess())
	require.Equal(t, codeInvalid, bad.GetErrorCode())
}

// The contract's numbers are signed: what they can't express must come out smaller, because who raises a
// clock that is too large supersedes what nobody has seen.
func TestContractNeverSendsALargerClock(t *testing.T) {
	w := start(t)
	_, err := w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "k", Value: []byte("v"),
		Causality: &storagev1.WriteRequest_Clock{Clock: &datav1.VectorClock{Entries: []*datav1.ClockEntry{
			{NodeId: "a", Counter: math.MaxInt64}, {NodeId: "b", Counter: math.MaxInt64 + 1}, {NodeId: "c", Counter: math.MaxUint64},
		}}}})
	require.NoError(t, err)
	read := w.contractRead("k")
	require.Equal(t, fmt.Sprintf("a:%d b:%d c:%d", math.MaxInt64, math.MaxInt64, math.MaxInt64), clockText(read.GetVectorClock()))
	clock := read.GetVectorClock()
	clock.Entries = append(clock.Entries, vc("x", 1).Entries...)
	require.Equal(t, storagev1.Outcome_OUTCOME_SIBLING, w.coordinate("k", "other", clock).GetOutcome(), "nothing is lost")
}

// Coordinators are pods whose names never end: their old entries go with a client's write, not with a
// repair, which would find the same difference for ever.
func TestContractPrunesOldEntriesOnWritesOnly(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	w := start(t, func(w *world, _ *Options) { w.now = func() time.Time { return now } })
	clock := vc()
	for i := range 64 {
		clock.Entries = append(clock.Entries, vc(fmt.Sprintf("pod-%03d", i), 1).Entries...)
	}
	require.Len(t, w.coordinate("k", "v", clock).GetUpdatedVectorClock().GetEntries(), 64)

	now = now.Add(30*24*time.Hour + time.Second)
	raised := func(r *storagenodev1.VectorClock, id string) *storagenodev1.VectorClock {
		r.Entries = append(r.Entries, vc(id, 1).Entries...)
		return r
	}
	more := raised(w.contractRead("k").GetVectorClock(), "pod-new")
	_, err := w.contract.Repair(t.Context(), &storagenodev1.RepairRequest{TenantId: "t", Key: "repaired", Value: []byte("v"), VectorClock: more})
	require.NoError(t, err)
	require.Len(t, w.contractRead("repaired").GetVectorClock().GetEntries(), 65, "a repair prunes nothing")

	resp := w.coordinate("k", "next", more)
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, resp.GetOutcome(), "compared before it is pruned")
	require.Equal(t, "pod-new:1", clockText(resp.GetUpdatedVectorClock()))
	again := w.coordinate("k", "more", vc("pod-new", 2))
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, again.GetOutcome())
}

// An entry that is still raised stays, however many there are.
func TestContractKeepsFreshEntries(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	w := start(t, func(w *world, _ *Options) { w.now = func() time.Time { return now } })
	clock := vc()
	for i := range 80 {
		clock.Entries = append(clock.Entries, vc(fmt.Sprintf("pod-%03d", i), 1).Entries...)
		require.Len(t, w.coordinate("k", "v", clock).GetUpdatedVectorClock().GetEntries(), i+1)
		now = now.Add(time.Hour)
	}
}

// Whatever fails, before the handler or in it: a coordinator gets an answer with status OK and the
// nearest code, and a caller that asks for statuses gets those.
func TestContractErrorsTravelInTheAnswer(t *testing.T) {
	w := start(t)
	want := map[string]storagenodev1.ErrorCode{
		"CANCELLED": codeInternal, "DEADLINE_EXCEEDED": codeInternal, "RECOVERING": codeInternal, "ENGINE_POISONED": codeInternal,
		"LOG_WRITE": codeInternal, "NOT_AVAILABLE": codeInternal, "STOPPING": codeDraining, "DISK_FULL": codeDiskFull,
		"DISK_THROTTLED": codeDiskFull, "MEMORY_PRESSURE": codePressure,
		"OVERLOADED": codePressure, "SLOW_READER": codePressure, "CORRUPTED_DATA": codeCorrupt,
		"TOO_MANY_SIBLINGS": codeInvalid, "RESPONSE_TOO_LARGE": codeInvalid, "TOO_MANY_SNAPSHOTS": codeInvalid,
		"SNAPSHOT_EXISTS": codeInvalid, "SNAPSHOT_NOT_FOUND": codeInvalid,
	}
	for _, r := range append(slices.Clone(table), internal) {
		err, reason := r.err, r.reason
		if err == nil {
			err, reason = &store.Error{Reason: r.store, Message: "because"}, string(r.store)
		}
		code := want[reason]
		switch {
		case strings.HasPrefix(reason, "INVALID_ARGUMENT"):
			code = codeInvalid
		case reason == "INTERNAL":
			code = codeInternal
		}
		if code == 0 {
			continue // of calls that the contract does not have
		}
		w.engine.set(func(f *fakeEngine) { f.fail = fmt.Errorf("deep: %w", err) })
		read := w.contractRead("k")
		require.False(t, read.GetSuccess(), reason)
		require.Equal(t, code, read.GetErrorCode(), reason)
		require.Equal(t, reason, read.GetError().GetReason())
		require.NotEmpty(t, read.GetErrorMessage(), reason)
		write := w.coordinate("k", "v", vc("c", 1))
		require.False(t, write.GetSuccess(), reason)
		require.Equal(t, code, write.GetErrorCode(), reason)

		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-pairdb-errors", "status")
		_, got := w.contract.Read(ctx, &storagenodev1.ReadRequest{TenantId: "t", Key: "k"})
		require.Equal(t, refusal{r.code, reason, r.retry}, refused(t, got))
	}
}

// Every reason that can reach a coordinator is known to the test above.
func TestContractCodesCoverTheTable(t *testing.T) {
	for _, r := range append(slices.Clone(table), internal) {
		if r.store != "" {
			r.reason = string(r.store)
		}
		require.NotEqual(t, storagenodev1.ErrorCode_ERROR_CODE_UNSPECIFIED, contractCode(r), r.reason)
	}
	require.Equal(t, storagenodev1.ErrorCode_ERROR_CODE_TENANT_NOT_FOUND, contractCode(row{code: codes.NotFound, reason: "TENANT_NOT_FOUND"}))
	require.Equal(t, storagenodev1.ErrorCode_ERROR_CODE_KEY_NOT_FOUND, contractCode(row{code: codes.NotFound, reason: "KEY_NOT_FOUND"}))
}

// A damaged record must never pass for an absent key, also in a stream and in a page.
func TestContractNeverCallsDamageAbsent(t *testing.T) {
	w := start(t)
	w.engine.data[string(ikey.AppendEngineKey(nil, "t", "k"))] = []byte("rot")
	read := w.contractRead("k")
	require.False(t, read.GetSuccess())
	require.Equal(t, codeCorrupt, read.GetErrorCode())
	require.Equal(t, codeCorrupt, w.coordinate("k", "v", vc("c", 1)).GetErrorCode())
	_, err := w.contract.GetKeyRange(t.Context(), &storagenodev1.GetKeyRangeRequest{TenantId: "t"})
	require.Equal(t, codes.DataLoss, refused(t, err).code)
	_, err = w.contractStream(&storagenodev1.StreamKeysRequest{TenantId: "t"})
	require.Equal(t, codes.DataLoss, refused(t, err).code)
}

// calls are the unary calls of the contract whose answer says success or not.
var contractCalls = map[string]func(storagenodev1.StorageNodeServiceClient, context.Context, ...grpc.CallOption) (proto.Message, error){
	"Write": func(c storagenodev1.StorageNodeServiceClient, ctx context.Context, o ...grpc.CallOption) (proto.Message, error) {
		return c.Write(ctx, &storagenodev1.WriteRequest{TenantId: "t", Key: "k"}, o...)
	},
	"Read": func(c storagenodev1.StorageNodeServiceClient, ctx context.Context, o ...grpc.CallOption) (proto.Message, error) {
		return c.Read(ctx, &storagenodev1.ReadRequest{TenantId: "t", Key: "k"}, o...)
	},
	"Delete": func(c storagenodev1.StorageNodeServiceClient, ctx context.Context, o ...grpc.CallOption) (proto.Message, error) {
		return c.Delete(ctx, &storagenodev1.DeleteRequest{TenantId: "t", Key: "k"}, o...)
	},
	"Repair": func(c storagenodev1.StorageNodeServiceClient, ctx context.Context, o ...grpc.CallOption) (proto.Message, error) {
		return c.Repair(ctx, &storagenodev1.RepairRequest{TenantId: "t", Key: "k", VectorClock: vc("c", 1)}, o...)
	},
	"ReplicateData": func(c storagenodev1.StorageNodeServiceClient, ctx context.Context, o ...grpc.CallOption) (proto.Message, error) {
		return c.ReplicateData(ctx, &storagenodev1.ReplicateDataRequest{TenantId: "t", TargetNodeId: "n2"}, o...)
	},
	"DrainNode": func(c storagenodev1.StorageNodeServiceClient, ctx context.Context, o ...grpc.CallOption) (proto.Message, error) {
		return c.DrainNode(ctx, &storagenodev1.DrainNodeRequest{Graceful: true}, o...)
	},
	"StartStreaming": func(c storagenodev1.StorageNodeServiceClient, ctx context.Context, o ...grpc.CallOption) (proto.Message, error) {
		return c.StartStreaming(ctx, &storagenodev1.StartStreamingRequest{TargetNodeId: "n2"}, o...)
	},
	"StopStreaming": func(c storagenodev1.StorageNodeServiceClient, ctx context.Context, o ...grpc.CallOption) (proto.Message, error) {
		return c.StopStreaming(ctx, &storagenodev1.StopStreamingRequest{TargetNodeId: "n2"}, o...)
	},
	"NotifyStreamingComplete": func(c storagenodev1.StorageNodeServiceClient, ctx context.Context, o ...grpc.CallOption) (proto.Message, error) {
		return c.NotifyStreamingComplete(ctx, &storagenodev1.NotifyStreamingCompleteRequest{SourceNodeId: "n2"}, o...)
	},
}

// said returns what an answer says: success, the words, and our reason.
func said(t *testing.T, m proto.Message) (success bool, words, reason string) {
	t.Helper()
	r := m.ProtoReflect()
	get := func(name protoreflect.Name) protoreflect.Value { return r.Get(r.Descriptor().Fields().ByName(name)) }
	name := protoreflect.Name("error_message")
	if r.Descriptor().Fields().ByName(name) == nil {
		name = "message"
	}
	detail := get("error").Message()
	return get("success").Bool(), get(name).String(), detail.Get(detail.Descriptor().Fields().ByName("reason")).String()
}

// A node that replays its log answers; a coordinator that got a status would take it for dead.
func TestContractAnswersWhileTheNodeRecovers(t *testing.T) {
	w := start(t, func(w *world, _ *Options) { w.phase, w.ready = StateRecovering, false })
	for _, name := range []string{"Write", "Read", "Delete", "Repair"} {
		resp, err := contractCalls[name](w.contract, t.Context())
		require.NoError(t, err, name)
		success, words, reason := said(t, resp)
		require.False(t, success, name)
		require.NotEmpty(t, words, name)
		require.Equal(t, "RECOVERING", reason, name)
	}
	health, err := w.contract.HealthCheck(t.Context(), &storagenodev1.HealthCheckRequest{})
	require.NoError(t, err)
	require.False(t, health.GetHealthy())
	require.Equal(t, "unhealthy", health.GetStatus())
	require.Equal(t, "recovering", health.GetMetrics()["state"])
	require.Equal(t, "why", health.GetMetrics()["reason"])
	require.NotContains(t, health.GetMetrics(), "table_count")
	_, err = w.contract.GetKeyRange(t.Context(), &storagenodev1.GetKeyRangeRequest{TenantId: "t"})
	require.Equal(t, "RECOVERING", refused(t, err).reason, "an empty page would be a wrong answer")
	_, err = w.contractStream(&storagenodev1.StreamKeysRequest{TenantId: "t"})
	require.Equal(t, "RECOVERING", refused(t, err).reason)
}

// What is refused before the handler is an answer as well: overload, and bytes that are no message.
func TestContractAnswersForErrorsBeforeTheHandler(t *testing.T) {
	w := start(t, func(_ *world, o *Options) { o.MaxInFlight = 1 })
	entered, release := make(chan struct{}), make(chan struct{})
	w.engine.set(func(f *fakeEngine) { f.hook = func() { entered <- struct{}{}; <-release } })
	done := make(chan error, 1)
	go func() {
		_, err := w.contract.Read(context.Background(), &storagenodev1.ReadRequest{TenantId: "t", Key: "k"})
		done <- err
	}()
	<-entered
	for name, call := range contractCalls {
		resp, err := call(w.contract, t.Context())
		require.NoError(t, err, name)
		success, words, reason := said(t, resp)
		require.False(t, success, name)
		require.Contains(t, words, "PAIRDB_MAX_IN_FLIGHT", name)
		require.Equal(t, "OVERLOADED", reason, name)
	}
	health, err := w.contract.HealthCheck(t.Context(), &storagenodev1.HealthCheckRequest{})
	require.NoError(t, err)
	require.True(t, health.GetHealthy(), "it serves")
	require.Equal(t, "degraded", health.GetStatus())
	require.Contains(t, health.GetMetrics()["error"], "PAIRDB_MAX_IN_FLIGHT")
	_, err = w.contract.GetStreamStatus(t.Context(), &storagenodev1.GetStreamStatusRequest{})
	require.Equal(t, "OVERLOADED", refused(t, err).reason, "no stream would be a wrong answer")
	w.engine.set(func(f *fakeEngine) { f.hook = nil })
	close(release)
	require.NoError(t, <-done)

	raw := grpc.ForceCodecV2(rawCodec{encoding.GetCodecV2("proto")})
	message := []byte{0x0a, 1, 't', 0x12, 1, 0xff} // invalid UTF-8 in a key
	var write storagenodev1.WriteResponse
	require.NoError(t, w.conn.Invoke(t.Context(), storagenodev1.StorageNodeService_Write_FullMethodName, message, &write, raw))
	require.False(t, write.GetSuccess())
	require.Equal(t, codeInvalid, write.GetErrorCode())
	require.Equal(t, "INVALID_ARGUMENT_MESSAGE", write.GetError().GetReason())
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-pairdb-errors", "status")
	err = w.conn.Invoke(ctx, storagenodev1.StorageNodeService_Write_FullMethodName, message, &write, raw)
	require.Equal(t, refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_MESSAGE"}, refused(t, err))
}

// A panic is an answer too, and metrics see every error as what it is.
func TestContractErrorsAreObservedAsErrors(t *testing.T) {
	w := start(t)
	w.engine.hook = func() { panic("broken invariant") }
	read := w.contractRead("k")
	require.Equal(t, codeInternal, read.GetErrorCode())
	require.NotContains(t, read.GetErrorMessage(), "invariant")
	w.engine.set(func(f *fakeEngine) { f.hook = nil })
	w.contractRead("k")
	w.mu.Lock()
	defer w.mu.Unlock()
	require.Equal(t, codes.Internal, w.calls[0].Code)
	require.Equal(t, codes.OK, w.calls[1].Code)
}

// Every call of the contract is served: one that is forgotten would be a status.
func TestContractServesEveryCall(t *testing.T) {
	w := start(t)
	for _, m := range storagenodev1.StorageNodeService_ServiceDesc.Methods {
		method := "/" + storagenodev1.StorageNodeService_ServiceDesc.ServiceName + "/" + m.MethodName
		err := w.conn.Invoke(t.Context(), method, &storagenodev1.HealthCheckRequest{}, &storagenodev1.HealthCheckResponse{})
		if path.Base(method) == "GetKeyRange" {
			require.Equal(t, codes.InvalidArgument, status.Code(err))
			continue
		}
		require.NotEqual(t, codes.Unimplemented, status.Code(err), method)
	}
}

func TestContractHealthTellsTheState(t *testing.T) {
	w := start(t)
	w.engine.numbers = engine.Metrics{DiskFreeBytes: 7, DiskTotalBytes: 9, Pressure: engine.Pressure{Refuse: true}, VisibleSeq: 3}
	for _, c := range []struct {
		phase    State
		ready    bool
		problems []string
		healthy  bool
		status   string
	}{
		{StateServing, true, nil, true, "healthy"},
		{StateServing, true, []string{"compaction: no compactor is connected", "pressure: \xff"}, true, "degraded"},
		{StateServing, false, []string{"stalled"}, false, "unhealthy"},
		{StatePoisoned, false, []string{"poisoned"}, false, "unhealthy"},
		{StateStopping, false, nil, false, "unhealthy"},
	} {
		w.phase, w.ready, w.problems = c.phase, c.ready, c.problems
		got, err := w.contract.HealthCheck(t.Context(), &storagenodev1.HealthCheckRequest{})
		require.NoError(t, err)
		require.Equal(t, c.healthy, got.GetHealthy(), "%v", c)
		require.Equal(t, c.status, got.GetStatus(), "%v", c)
		facts := got.GetMetrics()
		require.Equal(t, c.phase.String(), facts["state"])
		require.Equal(t, strings.ToValidUTF8(strings.Join(c.problems, "; "), "?"), facts["degraded"])
		if c.phase == StateServing {
			require.Equal(t, "7", facts["disk_free_bytes"])
			require.Equal(t, "refused", facts["write_pressure"])
			require.Equal(t, "3", facts["visible_sequence"])
		} else {
			require.NotContains(t, facts, "disk_free_bytes")
		}
	}
}

// Pages continue at a plain key: no key may be repeated or left out, whatever is written between them.
func TestContractPagesContinueAtAPlainKey(t *testing.T) {
	for _, pageKeys := range []int32{1, 2, 7, 100, 101} {
		w := start(t)
		var want []string
		for i := range 100 {
			key := fmt.Sprintf("k%03d", i)
			want = append(want, key)
			w.coordinate(key, "v", vc("c", 1))
		}
		w.coordinate("j", "outside", vc("c", 1))
		w.coordinate("l", "outside", vc("c", 1))
		var got []string
		next := "k"
		for page := 0; ; page++ {
			resp, err := w.contract.GetKeyRange(t.Context(), &storagenodev1.GetKeyRangeRequest{
				TenantId: "t", KeyRangeStart: next, KeyRangeEnd: "l", MaxKeys: pageKeys,
			})
			require.NoError(t, err)
			require.LessOrEqual(t, len(resp.GetKeys()), int(pageKeys))
			got = append(got, resp.GetKeys()...)
			require.Equal(t, resp.GetHasMore(), resp.GetNextKey() != "")
			if !resp.GetHasMore() {
				break
			}
			require.Greater(t, resp.GetNextKey(), next, "the walk goes on")
			next = resp.GetNextKey()
			w.coordinate("k", "before what was read", vc("c", 1))
			require.Less(t, page, 200)
		}
		require.Equal(t, want, got, "pages of %d", pageKeys)
	}
}

// A page that ends early, at the limits of the store, must still say where the next one begins.
func TestContractPagesEndEarlyWithoutLosingAKey(t *testing.T) {
	w := start(t)
	want := map[string]bool{}
	for i := range 3000 { // 3 MiB of keys: pages end by bytes
		key := fmt.Sprintf("%04d%s", i, strings.Repeat("k", 1000))
		want[key] = true
		w.engine.data[string(ikey.AppendEngineKey(nil, "t", key))] = plainRecord("v", false)
	}
	for i := range 250_000 { // pages end by what they looked at
		w.engine.data[string(ikey.AppendEngineKey(nil, "t", fmt.Sprintf("dead%06d", i)))] = plainRecord("", true)
	}
	w.engine.data[string(ikey.AppendEngineKey(nil, "t", "last"))] = plainRecord("v", false)
	want["last"] = true
	for _, pageKeys := range []int32{0, 10_000} {
		seen := map[string]int{}
		next, pages, empty := "", 0, 0
		for {
			resp, err := w.contract.GetKeyRange(t.Context(), &storagenodev1.GetKeyRangeRequest{TenantId: "t", KeyRangeStart: next, MaxKeys: pageKeys})
			require.NoError(t, err)
			for _, key := range resp.GetKeys() {
				seen[key]++
			}
			if pages++; len(resp.GetKeys()) == 0 {
				empty++
			}
			if !resp.GetHasMore() {
				break
			}
			require.Greater(t, resp.GetNextKey(), next)
			next = resp.GetNextKey()
		}
		require.Greater(t, pages, 2)
		require.Len(t, seen, len(want))
		for key := range want {
			require.Equal(t, 1, seen[key])
		}
		require.Positive(t, empty, "one page has only dead keys")
	}
	exact := start(t)
	for i := range 10_001 {
		exact.engine.data[string(ikey.AppendEngineKey(nil, "t", fmt.Sprintf("%05d", i)))] = plainRecord("v", false)
	}
	resp, err := exact.contract.GetKeyRange(t.Context(), &storagenodev1.GetKeyRangeRequest{TenantId: "t", MaxKeys: 10_000})
	require.NoError(t, err)
	require.True(t, resp.GetHasMore())
	rest, err := exact.contract.GetKeyRange(t.Context(), &storagenodev1.GetKeyRangeRequest{TenantId: "t", KeyRangeStart: resp.GetNextKey(), MaxKeys: 10_000})
	require.NoError(t, err)
	require.Equal(t, 10_001, len(resp.GetKeys())+len(rest.GetKeys()))
	require.False(t, rest.GetHasMore())
}

// plainRecord is the encoded record of one sibling with the clock c:1.
func plainRecord(value string, tombstone bool) []byte {
	s := causal.Sibling{Clock: causal.Clock{{Node: "c", Counter: 1}}, Value: []byte(value), Tombstone: tombstone, Timestamp: 1000 * 1000 << 16}
	return causal.Record{Siblings: []causal.Sibling{s}}.Encode(nil)
}

func TestContractRangeLimitsAreStatuses(t *testing.T) {
	w := start(t)
	for i, c := range []struct {
		r      *storagenodev1.GetKeyRangeRequest
		reason string
	}{
		{&storagenodev1.GetKeyRangeRequest{TenantId: "t", MaxKeys: 10_000}, ""},
		{&storagenodev1.GetKeyRangeRequest{TenantId: "t", MaxKeys: 10_001}, "INVALID_ARGUMENT_MAX_KEYS"},
		{&storagenodev1.GetKeyRangeRequest{TenantId: "t", MaxKeys: -1}, "INVALID_ARGUMENT_MAX_KEYS"},
		{&storagenodev1.GetKeyRangeRequest{TenantId: "t", KeyRangeStart: "b", KeyRangeEnd: "a"}, "INVALID_ARGUMENT_RANGE"},
		{&storagenodev1.GetKeyRangeRequest{}, "INVALID_ARGUMENT_TENANT"},
	} {
		_, err := w.contract.GetKeyRange(t.Context(), c.r)
		if c.reason == "" {
			require.NoError(t, err, "case %d", i)
			continue
		}
		require.Equal(t, refusal{code: codes.InvalidArgument, reason: c.reason}, refused(t, err), "case %d", i)
	}
	for _, size := range []int32{0, 1, 10_000} {
		_, err := w.contractStream(&storagenodev1.StreamKeysRequest{TenantId: "t", BatchSize: size})
		require.NoError(t, err)
	}
	for _, size := range []int32{-1, 10_001} {
		_, err := w.contractStream(&storagenodev1.StreamKeysRequest{TenantId: "t", BatchSize: size})
		require.Equal(t, refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_BATCH"}, refused(t, err))
	}
}

func (w *world) contractStream(r *storagenodev1.StreamKeysRequest) (entries []*storagenodev1.KeyValueEntry, err error) {
	w.t.Helper()
	stream, err := w.contract.StreamKeys(w.t.Context(), r)
	require.NoError(w.t, err)
	for {
		entry, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return entries, err
		}
		entries = append(entries, entry)
	}
}

// Who copies a range by a stream must get everything that decides about a key: the joined clock, the
// winner, deletions and values that have expired.
func TestContractStreamSendsEachKeyOnce(t *testing.T) {
	w := start(t)
	for i := range 300 {
		w.coordinate(fmt.Sprintf("k%03d", i), strings.Repeat("v", 1000), vc("c", 1))
	}
	w.coordinate("k000", "beside", vc("d", 1))
	_, err := w.contract.Delete(t.Context(), &storagenodev1.DeleteRequest{TenantId: "t", Key: "k001", VectorClock: vc("c", 2)})
	require.NoError(t, err)
	w.engine.data[string(ikey.AppendEngineKey(nil, "t", "k002"))] = causal.Record{Siblings: []causal.Sibling{{
		Clock: causal.Clock{{Node: "c", Counter: 1}}, Value: []byte("expired"), Timestamp: 5000 << 16, ExpiresAt: 6,
	}}}.Encode(nil)

	entries, err := w.contractStream(&storagenodev1.StreamKeysRequest{TenantId: "t", KeyRangeStart: "k", KeyRangeEnd: "k200"})
	require.NoError(t, err)
	require.Len(t, entries, 200)
	now := time.Now().Unix()
	for i, e := range entries {
		require.Equal(t, "t", e.GetTenantId())
		require.Equal(t, fmt.Sprintf("k%03d", i), e.GetKey())
		if i == 2 {
			continue
		}
		require.InDelta(t, now, e.GetTimestamp(), 60, "seconds")
		require.Equal(t, i == 1, e.GetIsTombstone())
	}
	require.Equal(t, "c:1 d:1", clockText(entries[0].GetVectorClock()))
	require.EqualValues(t, 2, entries[0].GetSiblingCount())
	require.Equal(t, entries[0].GetValue(), entries[0].GetSiblings()[0].GetValue())
	require.Empty(t, entries[1].GetValue())
	require.Equal(t, "c:2", clockText(entries[1].GetVectorClock()))
	require.True(t, entries[2].GetIsTombstone(), "expired")
	require.EqualValues(t, 5, entries[2].GetTimestamp())
	require.Equal(t, "c:1", clockText(entries[2].GetVectorClock()))
	require.Equal(t, "c:1", clockText(entries[3].GetVectorClock()))
	require.Zero(t, entries[3].GetSiblingCount())
}

// A record that a coordinator can't receive is an error that names it, on the read and in the stream:
// leaving it out would look like its absence.
func TestContractValuesThatDoNotFitAreErrors(t *testing.T) {
	w := start(t)
	w.coordinate("a", "small", vc("c", 1))
	write := func(key string, n int, causality *storagev1.WriteRequest_Context) {
		r := &storagev1.WriteRequest{Tenant: "t", Key: key, Value: make([]byte, n)}
		if causality != nil {
			r.Causality = causality
		}
		_, err := w.storage.Write(t.Context(), r)
		require.NoError(t, err)
	}
	write("b", 4<<20, nil)
	read := w.contractRead("b")
	require.False(t, read.GetSuccess())
	require.Equal(t, "RESPONSE_TOO_LARGE", read.GetError().GetReason())
	require.Equal(t, codeInvalid, read.GetErrorCode())
	require.Empty(t, read.GetValue())
	write("b", 4<<20-200, nil)
	legacy := grpc.MaxCallRecvMsgSize(4 << 20)
	fits, err := w.contract.Read(t.Context(), &storagenodev1.ReadRequest{TenantId: "t", Key: "b"}, legacy)
	require.NoError(t, err)
	require.True(t, fits.GetSuccess())
	require.Len(t, fits.GetValue(), 4<<20-200)

	// The winner fits and its siblings do not.
	seen := &storagev1.WriteRequest_Context{Context: &datav1.VectorClock{}}
	for range 3 {
		write("c", 2<<20, seen)
	}
	lean, err := w.contract.Read(t.Context(), &storagenodev1.ReadRequest{TenantId: "t", Key: "c"}, legacy)
	require.NoError(t, err)
	require.True(t, lean.GetSuccess())
	require.Len(t, lean.GetValue(), 2<<20)
	require.Empty(t, lean.GetSiblings())
	require.EqualValues(t, 3, lean.GetSiblingCount())

	write("d", 5<<20, nil)
	w.coordinate("e", "behind it", vc("c", 1))
	entries, err := w.contractStream(&storagenodev1.StreamKeysRequest{TenantId: "t"})
	require.Equal(t, refusal{code: codes.ResourceExhausted, reason: "RESPONSE_TOO_LARGE"}, refused(t, err))
	require.Equal(t, "d", facts(err)["key"], "which one it is")
	require.Len(t, entries, 3, "what is before it was sent")
	require.Len(t, entries[2].GetValue(), 2<<20)
	require.EqualValues(t, 3, entries[2].GetSiblingCount())
}

// Streams of a coordinator end with the node, and do not hold it for a reader that takes nothing.
func TestContractStreamGivesUpASlowReader(t *testing.T) {
	w := start(t, func(w *world, _ *Options) { w.server.stall = 100 * time.Millisecond })
	for i := range 400 {
		w.coordinate(fmt.Sprintf("k%03d", i), strings.Repeat("v", 32<<10), vc("c", 1))
	}
	stream, err := w.contract.StreamKeys(t.Context(), &storagenodev1.StreamKeysRequest{TenantId: "t"})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		last := w.calls[len(w.calls)-1]
		return last.Method == storagenodev1.StorageNodeService_StreamKeys_FullMethodName && last.Code == codes.ResourceExhausted
	}, 10*time.Second, 10*time.Millisecond)
	for err == nil {
		_, err = stream.Recv()
	}
	require.Equal(t, "SLOW_READER", refused(t, err).reason)
}

// Whatever a coordinator sends as a clock is refused, or means the same afterwards: as many writes of
// each coordinator, in the form that the store compares.
func TestContractClocksAreRefusedOrMeanTheSame(t *testing.T) {
	id := rapid.SampledFrom([]string{"", "a", "b", "c", "ä", strings.Repeat("x", 128), strings.Repeat("x", 129)})
	counter := rapid.OneOf(rapid.Int64Range(-1, 3), rapid.Just(int64(math.MaxInt64)), rapid.Just(int64(math.MinInt64)))
	rapid.Check(t, func(t *rapid.T) {
		in, want, good := &storagenodev1.VectorClock{}, map[string]int64{}, true
		for range rapid.IntRange(0, 5).Draw(t, "entries") {
			e := &storagenodev1.VectorClockEntry{CoordinatorNodeId: id.Draw(t, "id"), LogicalTimestamp: counter.Draw(t, "counter")}
			in.Entries = append(in.Entries, e)
			_, twice := want[e.GetCoordinatorNodeId()]
			good = good && !twice && e.GetLogicalTimestamp() >= 0 && len(e.GetCoordinatorNodeId()) >= 1 && len(e.GetCoordinatorNodeId()) <= 128
			want[e.GetCoordinatorNodeId()] = e.GetLogicalTimestamp()
		}
		clock, err := contractClockFromProto(in)
		if !good {
			require.Equal(t, store.ReasonClock, store.ReasonOf(err))
			return
		}
		require.NoError(t, err)
		require.NoError(t, clock.Validate())
		out := contractClockToProto(clock)
		for _, e := range out.GetEntries() {
			require.Equal(t, want[e.GetCoordinatorNodeId()], e.GetLogicalTimestamp())
			delete(want, e.GetCoordinatorNodeId())
		}
		for name, n := range want {
			require.Zero(t, n, "entry %q is lost", name)
		}
	})
}

// An application that repeats its request does it through a coordinator, which raises its clock anew: the
// repeat must not come back over what was written since.
func TestContractRemembersIdempotencyKeys(t *testing.T) {
	w := start(t)
	write := func(value, idempotency string, clock *storagenodev1.VectorClock) *storagenodev1.WriteResponse {
		t.Helper()
		resp, err := w.contract.Write(t.Context(), &storagenodev1.WriteRequest{
			TenantId: "t", Key: "k", Value: []byte(value), VectorClock: clock, IdempotencyKey: idempotency,
		})
		require.NoError(t, err)
		return resp
	}
	first := write("one", "request-1", vc("c", 1))
	require.True(t, first.GetSuccess())
	require.True(t, write("two", "request-2", vc("c", 2)).GetSuccess())
	repeat := write("one", "request-1", vc("c", 3))
	require.True(t, proto.Equal(first, repeat), "%v", repeat)
	require.Equal(t, "two", string(w.contractRead("k").GetValue()))

	other := write("three", "request-1", vc("c", 4))
	require.False(t, other.GetSuccess())
	require.Equal(t, codeInvalid, other.GetErrorCode())
	require.Equal(t, "IDEMPOTENCY_KEY_REUSED", other.GetError().GetReason())
	deleted, err := w.contract.Delete(t.Context(), &storagenodev1.DeleteRequest{TenantId: "t", Key: "k", VectorClock: vc("c", 4), IdempotencyKey: "request-2"})
	require.NoError(t, err)
	require.Equal(t, "IDEMPOTENCY_KEY_REUSED", deleted.GetError().GetReason())
	require.Equal(t, "c:2", clockText(w.contractRead("k").GetVectorClock()), "what is refused changes nothing")
}
