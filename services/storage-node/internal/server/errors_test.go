package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/causal"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Clients decide by code, reason and retry delay: each row of the table must arrive as it stands
// there, wrapped or not.
func TestEveryRowOfTheErrorTableArrives(t *testing.T) {
	w := start(t)
	for _, r := range table {
		err, reason := r.err, r.reason
		if err == nil {
			err, reason = &store.Error{Reason: r.store, Message: "because"}, string(r.store)
		}
		t.Run(string(reason)+"/"+err.Error(), func(t *testing.T) {
			w.engine.set(func(f *fakeEngine) { f.fail = fmt.Errorf("deep: %w", err) })
			_, got := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
			require.Equal(t, refusal{r.code, reason, r.retry}, refused(t, got))

			w.engine.set(func(f *fakeEngine) { f.fail = err })
			resp, got := w.storage.BatchRead(t.Context(), &storagev1.BatchReadRequest{Tenant: "t", Keys: []string{"k"}})
			require.NoError(t, got)
			item := resp.GetResults()[0].GetError()
			require.Equal(t, int32(r.code), item.GetCode())
			require.Equal(t, reason, item.GetReason())
		})
	}
}

// The reasons are a contract: two rows with one meaning must not disagree.
func TestReasonsOfTheTableAreConsistent(t *testing.T) {
	byReason := map[string]codes.Code{}
	for _, r := range table {
		reason := r.reason + string(r.store)
		require.NotEmpty(t, reason)
		require.Equal(t, strings.ToUpper(reason), reason)
		if code, ok := byReason[reason]; ok {
			require.Equal(t, code, r.code, reason)
		}
		byReason[reason] = r.code
		if strings.HasPrefix(reason, "INVALID_ARGUMENT") {
			require.Equal(t, codes.InvalidArgument, r.code, reason)
			require.Zero(t, r.retry, reason)
		}
	}
}

// The engine knows best when to come back.
func TestRetryDelayOfTheErrorCounts(t *testing.T) {
	w := start(t)
	w.engine.fail = &engine.StalledError{Reason: "24 tables in level 0", RetryAfter: 3 * time.Second}
	_, err := w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "k"})
	require.Equal(t, refusal{codes.ResourceExhausted, "OVERLOADED", 3 * time.Second}, refused(t, err))
	require.ErrorContains(t, err, "24 tables in level 0")
	w.engine.fail = &store.Error{Reason: store.ReasonOverloaded, RetryAfter: time.Minute}
	_, err = w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "k"})
	require.Equal(t, time.Minute, refused(t, err).retry)
}

// What no row names is a fault of ours: the client learns that much, the log the rest.
func TestUnknownErrorsAreInternalAndDoNotLeak(t *testing.T) {
	var log strings.Builder
	w := start(t, func(_ *world, o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	w.engine.fail = errors.New("open /secret/path")
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", strings.Repeat("x", 300))
	_, err := w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.Equal(t, refusal{code: codes.Internal, reason: "INTERNAL"}, refused(t, err))
	require.NotContains(t, err.Error(), "secret")
	require.Contains(t, log.String(), "open /secret/path")
	require.Contains(t, log.String(), "request_id="+strings.Repeat("x", 128)+"\n")

	_, err = w.storage.Read(metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "req-7"), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.Error(t, err)
	require.Contains(t, log.String(), "request_id=req-7")
}

// One bad request must not end the process that serves all others.
func TestPanicIsAnErrorOfOneCall(t *testing.T) {
	w := start(t)
	w.engine.hook = func() { panic("broken invariant") }
	_, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.Equal(t, codes.Internal, refused(t, err).code)
	stream, err := w.storage.StreamKeys(t.Context(), &storagev1.StreamKeysRequest{Tenant: "t"})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.Error(t, err) // EOF: a snapshot needs no engine call
	w.engine.set(func(f *fakeEngine) { f.hook = nil })
	w.put("k", "v")
}

// The client that has to merge gets what it has to merge, where it fits.
func TestTooManySiblingsCarriesTheSiblings(t *testing.T) {
	w := start(t)
	record := causal.Record{Siblings: []causal.Sibling{{Clock: causal.Clock{{Node: "a", Counter: 1}}, Value: []byte("v")}}}
	w.engine.fail = &store.Error{Reason: store.ReasonTooManySiblings, Message: "64", Record: record}
	_, err := w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "k"})
	require.Equal(t, refusal{code: codes.ResourceExhausted, reason: "TOO_MANY_SIBLINGS"}, refused(t, err))
	var got *datav1.Record
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(*datav1.Record); ok {
			got = r
		}
	}
	require.Equal(t, "v", string(got.GetSiblings()[0].GetValue()))

	record.Siblings[0].Value = make([]byte, maxDetailBytes)
	_, err = w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "k"})
	require.Len(t, status.Convert(err).Details(), 1, "headers are no place for megabytes")
}

// rawCodec sends bytes as they are.
type rawCodec struct{ encoding.CodecV2 }

func (rawCodec) Name() string { return "proto" }
func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	if b, ok := v.([]byte); ok {
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	return c.CodecV2.Marshal(v)
}
func (c rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if _, ok := v.(*ignored); ok {
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// gRPC would call a message that can't be parsed INTERNAL, without a reason.
func TestMalformedMessagesAreInvalidArguments(t *testing.T) {
	w := start(t)
	raw := grpc.ForceCodecV2(rawCodec{encoding.GetCodecV2("proto")})
	for name, message := range map[string][]byte{
		"invalid UTF-8 in a key": {0x0a, 1, 't', 0x12, 1, 0xff},
		"truncated field":        {0x0a, 100, 't'},
		"the complaint's field":  append(append([]byte{}, complaintTag...), 2, 'h', 'i'),
	} {
		t.Run(name, func(t *testing.T) {
			err := w.conn.Invoke(t.Context(), storagev1.StorageService_Write_FullMethodName, message, &storagev1.WriteResponse{}, raw)
			require.Equal(t, refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_MESSAGE"}, refused(t, err))
			stream, err := w.conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, storagev1.StorageService_StreamKeys_FullMethodName, raw)
			require.NoError(t, err)
			require.NoError(t, stream.SendMsg(message))
			require.NoError(t, stream.CloseSend())
			err = stream.RecvMsg(&storagev1.StreamKeysResponse{})
			require.Equal(t, refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_MESSAGE"}, refused(t, err))
		})
	}
}

func TestUnknownMethodHasAReason(t *testing.T) {
	w := start(t)
	err := w.conn.Invoke(t.Context(), "/pairdb.storage.v1.StorageService/Unknown", &storagev1.ReadRequest{}, &storagev1.ReadResponse{})
	require.Equal(t, refusal{code: codes.Unimplemented, reason: "UNIMPLEMENTED"}, refused(t, err))
}

// While the commit log is replayed clients must come back, not give up; Status still answers.
func TestRecoveringNodeTellsClientsToComeBack(t *testing.T) {
	w := start(t, func(w *world, _ *Options) { w.phase = StateRecovering })
	_, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	got := refused(t, err)
	require.Equal(t, "RECOVERING", got.reason)
	require.Equal(t, codes.Unavailable, got.code)
	require.Positive(t, got.retry)
	stream, err := w.storage.StreamKeys(t.Context(), &storagev1.StreamKeysRequest{Tenant: "t"})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.Equal(t, "RECOVERING", refused(t, err).reason)
}

// A deadline or a cancellation of the client ends the work and is answered as what it is.
func TestDeadlineAndCancellationAreHonoured(t *testing.T) {
	w := start(t)
	entered, release := make(chan struct{}), make(chan struct{})
	w.engine.hook = func() { entered <- struct{}{}; <-release }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := w.storage.BatchRead(ctx, &storagev1.BatchReadRequest{Tenant: "t", Keys: make([]string, 1)})
		if err == nil {
			_, err = w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k"})
		}
		done <- err
	}()
	<-entered
	cancel()
	require.Equal(t, codes.Canceled, status.Code(<-done))
	close(release)

	expired, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	_, err := w.storage.Read(expired, &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
}
