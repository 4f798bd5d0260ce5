package server

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/causal"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// What is written by hand must be what the generated code would have written.
func TestPipelineAnswersAreWhatTheGeneratedCodeWrites(t *testing.T) {
	clocks := []causal.Clock{nil, {{Node: "a", Counter: 1}}, {{Node: "a", Counter: 1 << 63}, {Node: "b/12", Counter: 300}}}
	values := [][]byte{nil, {}, []byte("v"), bytes.Repeat([]byte("v"), 127), bytes.Repeat([]byte("v"), 128), bytes.Repeat([]byte("v"), 20_000)}
	a := newAnswers()
	var want storagev1.PipelineResponse
	for _, clock := range clocks {
		for _, value := range values {
			for _, tag := range []uint64{0, 1, 1 << 40} {
				for _, ts := range []uint64{0, 5, 1 << 63} {
					r := &store.ReadResult{Found: ts > 0, Value: value, Clock: clock, Timestamp: ts, ExpiresAt: int64(ts >> 1)}
					require.NoError(t, a.read(tag, r))
					want.Results = append(want.Results, &storagev1.PipelineResult{Tag: tag, Result: &storagev1.PipelineResult_Read{Read: readToProto(r)}})
				}
			}
		}
		w := &store.WriteResult{Outcome: causal.SiblingKept, Clock: clock, Siblings: 3 * len(clock)}
		a.write(7, w)
		want.Results = append(want.Results, &storagev1.PipelineResult{Tag: 7, Result: &storagev1.PipelineResult_Write{Write: &storagev1.WriteResponse{
			Outcome: outcomeToProto(w.Outcome), Clock: clockToProto(clock), Siblings: uint32(w.Siblings)}}})
	}
	a.write(8, &store.WriteResult{})
	want.Results = append(want.Results, &storagev1.PipelineResult{Tag: 8, Result: &storagev1.PipelineResult_Write{Write: &storagev1.WriteResponse{}}})
	a.fail(9, errOverloaded)
	want.Results = append(want.Results, &storagev1.PipelineResult{Tag: 9, Result: &storagev1.PipelineResult_Error{Error: itemError(errOverloaded)}})
	require.Equal(t, len(want.Results), a.count)
	var got storagev1.PipelineResponse
	require.NoError(t, proto.Unmarshal(*a.buf, &got))
	require.True(t, proto.Equal(&want, &got))
	size := proto.Size(&want)
	require.Len(t, *a.buf, size, "nothing is longer than it must be")
}

// An answer that the transport would refuse must become an error of its operation.
func TestPipelineAnswerThatIsTooLarge(t *testing.T) {
	a := newAnswers()
	require.NoError(t, a.read(1, &store.ReadResult{Found: true, Value: make([]byte, maxPipelineResult-100)}))
	require.ErrorIs(t, a.read(1, &store.ReadResult{Found: true, Value: make([]byte, maxPipelineResult)}), errPipelineResult)
	siblings := []causal.Sibling{{Value: make([]byte, maxPipelineResult/2)}, {Value: make([]byte, maxPipelineResult/2)}}
	require.ErrorIs(t, a.read(1, &store.ReadResult{Found: true, Siblings: siblings}), errPipelineResult)
	require.Equal(t, 1, a.count)
}

// The numbers of the fields are in the code, so they must be those of the format.
func TestPipelineFieldNumbers(t *testing.T) {
	for name, number := range map[string]int{
		"PipelineRequest.tenant": requestTenant, "PipelineRequest.ops": requestOps, "PipelineRequest.omit_clocks": requestOmitClocks,
		"PipelineOp.tag": opTag, "PipelineOp.key": opKey, "PipelineOp.read": opReadField, "PipelineOp.put": opPut, "PipelineOp.delete": opDelete,
		"BatchReadResponse.results": batchResults, "BatchReadResult.response": batchResponse,
		"PutOp.value": putValue, "PutOp.ttl_seconds": putTTL,
		"PipelineResponse.results": responseResults,
		"PipelineResult.tag":       resultTag, "PipelineResult.read": resultRead, "PipelineResult.write": resultWrite,
		"ReadResponse.found": readFound, "ReadResponse.value": readValue, "ReadResponse.clock": readClock,
		"ReadResponse.timestamp": readTimestamp, "ReadResponse.expires_at": readExpiresAt,
		"WriteResponse.outcome": writeOutcome, "WriteResponse.clock": writeClock, "WriteResponse.siblings": writeSiblings,
	} {
		found := false
		for i := range storagev1.File_pairdb_storage_v1_storage_proto.Messages().Len() {
			m := storagev1.File_pairdb_storage_v1_storage_proto.Messages().Get(i)
			for j := range m.Fields().Len() {
				f := m.Fields().Get(j)
				if fmt.Sprintf("%s.%s", m.Name(), f.Name()) == name {
					require.EqualValues(t, number, f.Number(), name)
					found = true
				}
			}
		}
		require.True(t, found, name)
	}
}

// FuzzPipelineInput compares the reading by hand with the generated code: both accept the same
// messages, and see the same operations in them.
func FuzzPipelineInput(f *testing.F) {
	seed := &storagev1.PipelineRequest{Tenant: "t", OmitClocks: true, Ops: []*storagev1.PipelineOp{
		putOp(1, "k", "v"), readOp(2, "k"), deleteOp(3, "k"), {Tag: 4},
		{Tag: 5, Key: "c", Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{Value: []byte("v"), TtlSeconds: 9, Causality: &storagev1.PutOp_Clock{Clock: clockOf(2, 6)}}}},
		{Tag: 6, Key: "r", Op: &storagev1.PipelineOp_Repair{Repair: &storagev1.RepairOp{}}},
		{Tag: 7, Key: "a", Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{Value: []byte("v"), Condition: ifAbsent}}},
		{Tag: 8, Key: "a", Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{Condition: &storagev1.Condition{}}}},
		{Tag: 9, Key: "a", Op: &storagev1.PipelineOp_Delete{Delete: &storagev1.DeleteOp{Condition: ifClock(clockOf(2, 6))}}},
		{Tag: 10, Key: "a", Op: &storagev1.PipelineOp_Delete{Delete: &storagev1.DeleteOp{Condition: ifValue("v")}}},
	}}
	b, err := proto.Marshal(seed)
	require.NoError(f, err)
	f.Add(b)
	for _, op := range seed.GetOps() {
		b, err := proto.Marshal(&storagev1.PipelineRequest{Ops: []*storagev1.PipelineOp{op}})
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add([]byte{0x12, 0x04, 0x22, 0x00, 0x22, 0x00})                   // two puts in one
	f.Add([]byte{0x12, 0x06, 0x22, 0x02, 0x08, 0x01, 0x1a, 0x00})       // another type of field
	f.Add([]byte{0x12, 0x05, 0x22, 0x03, 0x0a, 0x01, 0x76, 0x0a, 0x00}) // tenant behind the operations
	f.Fuzz(func(t *testing.T, b []byte) {
		var want storagev1.PipelineRequest
		wantErr := proto.Unmarshal(b, &want)
		var in pipelineInput
		gotErr := in.begin(b)
		if gotErr == nil {
			i := 0
			for in.next() {
				if wantErr == nil {
					require.Less(t, i, len(want.GetOps()))
					compareOp(t, want.GetOps()[i], &in)
				}
				i++
			}
			if gotErr = in.err; gotErr == nil && wantErr == nil {
				require.Len(t, want.GetOps(), i)
				require.Equal(t, want.GetOmitClocks(), in.omitClocks)
				require.Equal(t, want.GetTenant()[:min(len(want.GetTenant()), store.MaxTenantBytes+1)], in.tenant)
			}
		}
		if len(want.GetOps()) <= store.MaxBatchOps {
			require.Equal(t, wantErr == nil, gotErr == nil, "%v, %v", wantErr, gotErr)
		}
	})
}

func compareOp(t *testing.T, want *storagev1.PipelineOp, in *pipelineInput) {
	t.Helper()
	require.Equal(t, want.GetTag(), in.tag)
	require.Equal(t, want.GetKey(), in.op.Key)
	kind := store.OpKind(0)
	switch o := want.GetOp().(type) {
	case *storagev1.PipelineOp_Read:
		kind = opRead
	case *storagev1.PipelineOp_Put:
		kind = store.Put
		require.Equal(t, o.Put.GetTtlSeconds(), in.op.TTL)
		require.True(t, bytes.Equal(o.Put.GetValue(), in.op.Value))
		require.Equal(t, causality(o.Put.GetClock(), o.Put.GetContext()), in.op.Causality)
		require.Equal(t, conditionFromProto(o.Put.GetCondition()), in.op.Condition)
	case *storagev1.PipelineOp_Delete:
		kind = store.Delete
		require.Equal(t, causality(o.Delete.GetClock(), o.Delete.GetContext()), in.op.Causality)
		require.Equal(t, conditionFromProto(o.Delete.GetCondition()), in.op.Condition)
	case *storagev1.PipelineOp_Repair:
		kind = store.Repair
		require.Len(t, in.op.Siblings, min(len(o.Repair.GetSiblings()), store.MaxRepairSiblings+1))
	}
	require.Equal(t, kind, in.kind)
}

// Calls are answered without the generated types, and must be read as if they had been used.
func TestEncodedReadsAreWhatTheGeneratedCodeReads(t *testing.T) {
	w := start(t)
	w.put("plain", "v")
	w.put("empty", "")
	w.put("large", string(make([]byte, 1<<20)))
	for range 2 {
		_, err := w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "siblings", Value: []byte("s"), TtlSeconds: 900,
			Causality: &storagev1.WriteRequest_Context{Context: &datav1.VectorClock{}}})
		require.NoError(t, err)
	}
	_, err := w.storage.Delete(t.Context(), &storagev1.DeleteRequest{Tenant: "t", Key: "gone"})
	require.NoError(t, err)
	keys := []string{"plain", "", "empty", "large", "siblings", "gone", "absent"}
	batch, err := w.storage.BatchRead(t.Context(), &storagev1.BatchReadRequest{Tenant: "t", Keys: keys})
	require.NoError(t, err)
	for i, key := range keys {
		if key == "" {
			require.Equal(t, "INVALID_ARGUMENT_KEY", batch.GetResults()[i].GetError().GetReason())
			require.Nil(t, batch.GetResults()[i].GetResponse())
			continue
		}
		res, err := w.server.open.Load().Store.Read(t.Context(), "t", key, nil)
		require.NoError(t, err)
		want := readToProto(&res)
		require.True(t, proto.Equal(want, batch.GetResults()[i].GetResponse()), key)
		one, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: key})
		require.NoError(t, err)
		require.True(t, proto.Equal(want, one), key)
	}
}
