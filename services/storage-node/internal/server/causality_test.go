package server

import (
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

var ifAbsent = &storagev1.Condition{When: &storagev1.Condition_Absent{Absent: true}}

func ifClock(c *datav1.VectorClock) *storagev1.Condition {
	return &storagev1.Condition{When: &storagev1.Condition_Clock{Clock: c}}
}

func ifValue(v string) *storagev1.Condition {
	sum := sha256.Sum256([]byte(v))
	return ifDigest(sum[:])
}

func ifDigest(b []byte) *storagev1.Condition {
	return &storagev1.Condition{When: &storagev1.Condition_ValueSha256{ValueSha256: b}}
}

// clockDetail returns the clock that a refusal carries, nil for none.
func clockDetail(err error) *datav1.VectorClock {
	for _, d := range status.Convert(err).Details() {
		if c, ok := d.(*datav1.VectorClock); ok {
			return c
		}
	}
	return nil
}

var conditionFailed = refusal{code: codes.FailedPrecondition, reason: "CONDITION_FAILED"}

// Who compares and sets must learn whether it did, and upon which clock to try again.
func TestConditionsOverTheWire(t *testing.T) {
	w := start(t)
	write := func(value string, c *storagev1.Condition) (*storagev1.WriteResponse, error) {
		return w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "k", Value: []byte(value), Condition: c})
	}
	_, err := write("0", ifValue(""))
	require.Equal(t, conditionFailed, refused(t, err))
	require.NotNil(t, clockDetail(err))
	require.Empty(t, clockDetail(err).GetEntries(), "the key was never seen")

	first, err := write("1", ifAbsent)
	require.NoError(t, err)
	_, err = write("2", ifAbsent)
	require.Equal(t, conditionFailed, refused(t, err))
	require.True(t, proto.Equal(first.GetClock(), clockDetail(err)))
	_, err = write("2", ifClock(&datav1.VectorClock{}))
	require.Equal(t, conditionFailed, refused(t, err))
	second, err := write("2", ifClock(first.GetClock()))
	require.NoError(t, err)
	_, err = w.storage.Delete(t.Context(), &storagev1.DeleteRequest{Tenant: "t", Key: "k", Condition: ifValue("1")})
	require.Equal(t, conditionFailed, refused(t, err))
	require.True(t, proto.Equal(second.GetClock(), clockDetail(err)))
	_, err = w.storage.Delete(t.Context(), &storagev1.DeleteRequest{Tenant: "t", Key: "k", Condition: ifValue("2")})
	require.NoError(t, err)
	_, err = write("3", ifAbsent)
	require.NoError(t, err, "a deleted key is absent")
	_, err = write("4", ifClock(&datav1.VectorClock{}))
	require.Equal(t, conditionFailed, refused(t, err), "and yet it was seen")

	// A clock that does not fit into headers is left out.
	_, err = w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "large", Causality: &storagev1.WriteRequest_Clock{Clock: clockOf(1000, 6)}})
	require.NoError(t, err)
	_, err = w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "large", Condition: ifAbsent})
	require.Equal(t, conditionFailed, refused(t, err))
	require.Nil(t, clockDetail(err))
}

// In a batch and over a stream a condition is one item's, and sees what stands in front of it.
func TestConditionsOfBatchesAndPipelines(t *testing.T) {
	w := start(t)
	put := func(key, value string, c *storagev1.Condition) *storagev1.BatchOp {
		return &storagev1.BatchOp{Key: key, Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: []byte(value), Condition: c}}}
	}
	ops := []*storagev1.BatchOp{
		put("a", "1", ifAbsent), put("a", "2", ifAbsent), put("a", "3", ifValue("1")), put("b", "1", ifDigest(nil)),
		{Key: "a", Op: &storagev1.BatchOp_Delete{Delete: &storagev1.DeleteOp{Condition: ifValue("2")}}},
		{Key: "a", Op: &storagev1.BatchOp_Delete{Delete: &storagev1.DeleteOp{Condition: ifValue("3")}}},
	}
	reasons := []string{"", "CONDITION_FAILED", "", "INVALID_ARGUMENT_CONDITION", "CONDITION_FAILED", ""}
	resp, err := w.storage.BatchWrite(t.Context(), &storagev1.BatchWriteRequest{Tenant: "t", Ops: ops})
	require.NoError(t, err)
	for i, r := range resp.GetResults() {
		require.Equal(t, reasons[i], r.GetError().GetReason(), "item %d", i)
	}
	require.Equal(t, int32(codes.FailedPrecondition), resp.GetResults()[1].GetError().GetCode())
	require.Zero(t, resp.GetResults()[1].GetError().GetRetryAfterMs())

	atomic := []*storagev1.BatchOp{put("c", "1", nil), put("a", "1", ifAbsent), put("a", "2", ifAbsent)}
	_, err = w.storage.BatchWrite(t.Context(), &storagev1.BatchWriteRequest{Tenant: "t", Ops: atomic, Atomic: true})
	require.Equal(t, conditionFailed, refused(t, err))
	require.ErrorContains(t, err, "operation 2:")
	read, err := w.storage.BatchRead(t.Context(), &storagev1.BatchReadRequest{Tenant: "t", Keys: []string{"a", "c"}})
	require.NoError(t, err)
	require.False(t, read.GetResults()[0].GetResponse().GetFound())
	require.False(t, read.GetResults()[1].GetResponse().GetFound())

	s := pipe(t, t.Context(), w)
	one := func(tag uint64, value string, c *storagev1.Condition) *storagev1.PipelineOp {
		return &storagev1.PipelineOp{Tag: tag, Key: "p", Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{Value: []byte(value), Condition: c}}}
	}
	send(t, s, one(1, "1", ifAbsent), one(2, "2", ifAbsent), one(3, "3", ifValue("1")), one(4, "4", &storagev1.Condition{}),
		&storagev1.PipelineOp{Tag: 5, Key: "p", Op: &storagev1.PipelineOp_Delete{Delete: &storagev1.DeleteOp{Condition: ifValue("2")}}},
		&storagev1.PipelineOp{Tag: 6, Key: "p", Op: &storagev1.PipelineOp_Delete{Delete: &storagev1.DeleteOp{Condition: ifValue("3")}}})
	got := take(t, s, 6)
	for tag, reason := range map[uint64]string{1: "", 2: "CONDITION_FAILED", 3: "", 4: "INVALID_ARGUMENT_CONDITION", 5: "CONDITION_FAILED", 6: ""} {
		require.Equal(t, reason, got[tag].GetError().GetReason(), "tag %d", tag)
		require.Equal(t, reason == "", got[tag].GetWrite() != nil, "tag %d", tag)
	}
	require.NoError(t, s.CloseSend())
}

// A client whose connection broke sends the request again, and must not write over what came since.
func TestIdempotencyKeysOverTheWire(t *testing.T) {
	w := start(t)
	r := &storagev1.WriteRequest{Tenant: "t", Key: "k", Value: []byte("1"), IdempotencyKey: "request-1", Condition: ifAbsent}
	first, err := w.storage.Write(t.Context(), r)
	require.NoError(t, err)
	require.False(t, first.GetReplayed())
	w.put("k", "2")
	again, err := w.storage.Write(t.Context(), r)
	require.NoError(t, err)
	require.True(t, again.GetReplayed())
	again.Replayed = false
	require.True(t, proto.Equal(first, again))

	reused := refusal{code: codes.FailedPrecondition, reason: "IDEMPOTENCY_KEY_REUSED"}
	r.Value = []byte("3")
	_, err = w.storage.Write(t.Context(), r)
	require.Equal(t, reused, refused(t, err))
	del := &storagev1.DeleteRequest{Tenant: "t", Key: "k", IdempotencyKey: "request-1"}
	_, err = w.storage.Delete(t.Context(), del)
	require.Equal(t, reused, refused(t, err))
	read, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.NoError(t, err)
	require.Equal(t, "2", string(read.GetValue()))

	del.IdempotencyKey = "request-2"
	gone, err := w.storage.Delete(t.Context(), del)
	require.NoError(t, err)
	w.put("k", "4")
	goneAgain, err := w.storage.Delete(t.Context(), del)
	require.NoError(t, err)
	require.True(t, goneAgain.GetReplayed())
	require.True(t, proto.Equal(gone.GetClock(), goneAgain.GetClock()))
}

// As every limit: from both sides, over the wire, and nothing is changed by what is refused.
func TestEveryLimitOfConditionsAndIdempotencyKeysHasTwoSides(t *testing.T) {
	w := start(t)
	twice := &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: "a", Counter: 1}, {NodeId: "a", Counter: 2}}}
	for i, c := range []struct {
		condition *storagev1.Condition
		key       string
		reason    string // "" is accepted
	}{
		{nil, "", ""},
		{nil, strings.Repeat("k", 128), ""},
		{nil, strings.Repeat("k", 129), "INVALID_ARGUMENT_IDEMPOTENCY_KEY"},
		{nil, "a\nb", "INVALID_ARGUMENT_IDEMPOTENCY_KEY"},
		{nil, "a\x00", "INVALID_ARGUMENT_IDEMPOTENCY_KEY"},
		{ifAbsent, "", ""},
		{&storagev1.Condition{}, "", "INVALID_ARGUMENT_CONDITION"},
		{&storagev1.Condition{When: &storagev1.Condition_Absent{}}, "", "INVALID_ARGUMENT_CONDITION"},
		{ifDigest(make([]byte, 31)), "", "INVALID_ARGUMENT_CONDITION"},
		{ifDigest(make([]byte, 32)), "", "CONDITION_FAILED"},
		{ifDigest(make([]byte, 33)), "", "INVALID_ARGUMENT_CONDITION"},
		{ifClock(&datav1.VectorClock{}), "", ""},
		{ifClock(clockOf(1000, 6)), "", "CONDITION_FAILED"},
		{ifClock(clockOf(1001, 6)), "", "INVALID_ARGUMENT_CLOCK"},
		{ifClock(clockOf(5000, 6)), "", "INVALID_ARGUMENT_CLOCK"},
		{ifClock(clockOf(1, 128)), "", "CONDITION_FAILED"},
		{ifClock(clockOf(1, 129)), "", "INVALID_ARGUMENT_CLOCK"},
		{ifClock(twice), "", "INVALID_ARGUMENT_CLOCK"},
	} {
		key := fmt.Sprint("k", i)
		_, err := w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: key, Condition: c.condition, IdempotencyKey: c.key})
		_, derr := w.storage.Delete(t.Context(), &storagev1.DeleteRequest{Tenant: "u", Key: key, Condition: c.condition, IdempotencyKey: c.key})
		read, rerr := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: key})
		require.NoError(t, rerr)
		require.Equal(t, c.reason == "", read.GetFound(), "case %d", i)
		if c.reason == "" {
			require.NoError(t, err, "case %d", i)
			require.NoError(t, derr, "case %d", i)
			continue
		}
		require.Equal(t, c.reason, refused(t, err).reason, "case %d", i)
		require.Equal(t, refused(t, err), refused(t, derr), "case %d", i)
	}
}

// A refusal rests on the state of the key: over a stream, too, it must not be told before that is
// durable. The read behind it overtakes it.
func TestPipelineTellsOfAFailedConditionWhenItsStateIsDurable(t *testing.T) {
	noLeak(t)
	w := start(t)
	w.put("k", "v")
	durable := make(chan struct{})
	w.engine.set(func(f *fakeEngine) { f.wait = func() error { <-durable; return nil } })
	s := pipe(t, t.Context(), w)
	send(t, s, &storagev1.PipelineOp{Tag: 1, Key: "k", Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{Condition: ifAbsent}}})
	send(t, s, readOp(2, "k"))
	require.Contains(t, take(t, s, 1), uint64(2))
	close(durable)
	require.Equal(t, "CONDITION_FAILED", take(t, s, 1)[1].GetError().GetReason())
	require.NoError(t, s.CloseSend())
	_, err := s.Recv()
	require.ErrorIs(t, err, io.EOF)
}
