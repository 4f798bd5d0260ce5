package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/pairdb/pairdb/libs/ikey"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/hot"
)

// recorded is a world whose calls have spans, and where these arrive.
func recorded(t *testing.T, sampler sdktrace.Sampler, setup ...func(*world, *Options)) (*world, *tracetest.InMemoryExporter) {
	t.Helper()
	out := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(out), sdktrace.WithSampler(sampler))
	w := start(t, append([]func(*world, *Options){func(w *world, o *Options) {
		w.more = []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithTracerProvider(provider), otelgrpc.WithPropagators(propagation.TraceContext{})))}
		o.Tracer = provider.Tracer("test")
	}}, setup...)...)
	return w, out
}

// ended waits for the span of a call, which ends after the client has its answer, and returns its
// children by start, and it.
func ended(t *testing.T, out *tracetest.InMemoryExporter, name string) (children []tracetest.SpanStub, call tracetest.SpanStub) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, s := range out.GetSpans() {
			if s.Name == name {
				call = s
				return true
			}
		}
		return false
	}, 10*time.Second, time.Millisecond)
	return below(out, call), call
}

func below(out *tracetest.InMemoryExporter, parent tracetest.SpanStub) []tracetest.SpanStub {
	spans := slices.DeleteFunc(slices.Clone(out.GetSpans()), func(s tracetest.SpanStub) bool {
		return s.Parent.SpanID() != parent.SpanContext.SpanID()
	})
	slices.SortStableFunc(spans, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	return spans
}

func spanNames(spans []tracetest.SpanStub) (out []string) {
	for _, s := range spans {
		out = append(out, s.Name)
	}
	return out
}

func attributesOf(s tracetest.SpanStub) map[string]string {
	out := map[string]string{}
	for _, a := range s.Attributes {
		out[string(a.Key)] = a.Value.String()
	}
	return out
}

// A trace that ends at the door of the node says that it is slow, and not why.
func TestSampledCallHasASpanForEachStage(t *testing.T) {
	w, out := recorded(t, sdktrace.AlwaysSample())
	w.put("secret-key", "secret-value")
	stages, call := ended(t, out, "pairdb.storage.v1.StorageService/Write")
	require.Equal(t, []string{"decode", "limits", "lock", "join", "sync"}, spanNames(stages))
	at := call.StartTime
	for _, s := range stages {
		require.Equal(t, call.SpanContext.TraceID(), s.SpanContext.TraceID())
		require.False(t, s.StartTime.Before(at), "%s begins before the stage in front of it", s.Name)
		require.False(t, s.EndTime.Before(s.StartTime))
		require.False(t, s.EndTime.After(call.EndTime), "%s ends after the call", s.Name)
		at = s.StartTime
	}
	about := attributesOf(call)
	require.Equal(t, "t", about["pairdb.tenant"])
	require.Equal(t, ikey.KeyHash("secret-key"), about["pairdb.key_hash"])
	require.Equal(t, "12", about["pairdb.value_bytes"])

	out.Reset()
	_, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "secret-key"})
	require.NoError(t, err)
	stages, _ = ended(t, out, "pairdb.storage.v1.StorageService/Read")
	require.Equal(t, []string{"decode", "limits", "read"}, spanNames(stages))

	out.Reset()
	_, err = w.contract.Read(t.Context(), &storagenodev1.ReadRequest{TenantId: "t", Key: "secret-key"})
	require.NoError(t, err)
	stages, _ = ended(t, out, "storage.StorageNodeService/Read")
	require.Equal(t, []string{"decode", "limits", "read"}, spanNames(stages))
	for _, s := range out.GetSpans() {
		require.NotContains(t, fmt.Sprint(s.Attributes, s.Events, s.Status), "secret", "a span shows data")
	}
}

// Sampling is what makes tracing affordable: what is not sampled must not be recorded either.
func TestCallThatIsNotSampledHasNoSpans(t *testing.T) {
	w, out := recorded(t, sdktrace.NeverSample())
	w.put("k", "v")
	w.put("k", "v") // the first one is over by now
	require.Empty(t, out.GetSpans())
}

// A pipeline lasts for days: its span alone says nothing, and a span for each message too much.
func TestMessagesOfASampledPipelineHaveSpansWithinALimit(t *testing.T) {
	w, out := recorded(t, sdktrace.AlwaysSample())
	stream, err := w.storage.Pipeline(t.Context())
	require.NoError(t, err)
	for i := range 5 * tracedMessages {
		require.NoError(t, stream.Send(&storagev1.PipelineRequest{Tenant: "t", Ops: []*storagev1.PipelineOp{readOp(1, "k"), putOp(2, fmt.Sprint("k", i), "v")}}))
		for n := 0; n < 2; {
			m, err := stream.Recv()
			require.NoError(t, err)
			n += len(m.GetResults())
		}
	}
	require.NoError(t, stream.CloseSend())
	_, err = stream.Recv()
	require.Error(t, err)
	messages, _ := ended(t, out, "pairdb.storage.v1.StorageService/Pipeline")
	count := map[string]int{}
	for _, m := range messages {
		count[m.Name]++
		switch m.Name {
		case "pipeline reads":
			require.Contains(t, spanNames(below(out, m)), "read")
		case "pipeline writes":
			require.Equal(t, []string{"limits", "lock", "join", "sync"}, spanNames(below(out, m)))
			require.Equal(t, "1", attributesOf(m)["pairdb.keys"])
		}
	}
	for _, name := range []string{"pipeline reads", "pipeline writes"} {
		require.Positive(t, count[name])
		require.Less(t, count[name], 4*tracedMessages)
	}
}

// lines is a log that a test reads.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// of returns the lines with a message.
func (l *lines) of(t *testing.T, message string) (out []map[string]any) {
	t.Helper()
	for line := range strings.Lines(l.String()) {
		var m map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &m))
		if m["msg"] == message {
			out = append(out, m)
		}
	}
	return out
}

// logged is a setup that writes a log.
func logged(l *lines, slow time.Duration, keys bool) func(*world, *Options) {
	return func(w *world, o *Options) {
		o.Log = slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
		o.SlowRequest, o.LogKeys = slow, keys
	}
}

// Who is told that a request was slow asks next: which one, and where did the time go.
func TestSlowRequestIsLoggedWithItsStages(t *testing.T) {
	l := &lines{}
	w := start(t, logged(l, time.Nanosecond, false))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "order-17",
		"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	_, err := w.storage.Write(ctx, &storagev1.WriteRequest{Tenant: "t", Key: "secret", Value: []byte("12345")})
	require.NoError(t, err)
	slow := l.of(t, "slow request")
	require.Len(t, slow, 1)
	require.Equal(t, "WARN", slow[0]["level"])
	require.Equal(t, "/pairdb.storage.v1.StorageService/Write", slow[0]["method"])
	require.Equal(t, "t", slow[0]["tenant"])
	require.Equal(t, ikey.KeyHash("secret"), slow[0]["key_hash"])
	require.EqualValues(t, 5, slow[0]["value_bytes"])
	require.EqualValues(t, 1, slow[0]["keys"])
	require.Equal(t, "OK", slow[0]["code"])
	require.Equal(t, "order-17", slow[0]["request_id"])
	require.Equal(t, "0af7651916cd43dd8448eb211c80319c", slow[0]["trace_id"], "also when this node exports no spans")
	require.NotEmpty(t, slow[0]["took"])
	stages := slow[0]["stages"].(map[string]any)
	for _, s := range []string{"limits", "lock", "join", "sync"} {
		require.Contains(t, stages, s)
	}
	require.NotContains(t, l.String(), "secret")

	// Items, ranges, and what failed; but not what operators ask for, which takes as long as it takes.
	_, err = w.storage.BatchRead(t.Context(), &storagev1.BatchReadRequest{Tenant: "t", Keys: []string{"secret", "b"}})
	require.NoError(t, err)
	_, err = w.contract.GetKeyRange(t.Context(), &storagenodev1.GetKeyRangeRequest{TenantId: "t"})
	require.NoError(t, err)
	_, err = w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t"})
	require.Error(t, err)
	_, err = w.admin.Flush(t.Context(), &adminv1.FlushRequest{})
	require.NoError(t, err)
	slow = l.of(t, "slow request")
	require.Len(t, slow, 4)
	require.EqualValues(t, 2, slow[1]["keys"])
	require.EqualValues(t, 5, slow[1]["value_bytes"])
	require.Equal(t, "/storage.StorageNodeService/GetKeyRange", slow[2]["method"])
	require.NotContains(t, slow[2], "key_hash")
	require.Equal(t, codes.InvalidArgument.String(), slow[3]["code"])
}

func TestSlowMessageOfAPipelineIsLogged(t *testing.T) {
	l := &lines{}
	w := start(t, logged(l, time.Nanosecond, false))
	stream, err := w.storage.Pipeline(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&storagev1.PipelineRequest{Tenant: "t", Ops: []*storagev1.PipelineOp{
		readOp(1, "read-secret"), putOp(2, "write-secret", "value-secret"), putOp(3, "other-secret", ""),
	}}))
	for n := 0; n < 3; {
		m, err := stream.Recv()
		require.NoError(t, err)
		n += len(m.GetResults())
	}
	require.NoError(t, stream.CloseSend())
	_, err = stream.Recv()
	require.Error(t, err)
	slow := l.of(t, "slow request")
	require.Len(t, slow, 2)
	require.Equal(t, "/pairdb.storage.v1.StorageService/Pipeline (reads)", slow[0]["method"])
	require.Equal(t, ikey.KeyHash("read-secret"), slow[0]["key_hash"])
	require.Equal(t, "/pairdb.storage.v1.StorageService/Pipeline (writes)", slow[1]["method"])
	require.Equal(t, ikey.KeyHash("write-secret"), slow[1]["key_hash"])
	require.EqualValues(t, 2, slow[1]["keys"])
	require.EqualValues(t, 12, slow[1]["value_bytes"])
	require.Contains(t, slow[1]["stages"], "sync")
	require.NotContains(t, l.String(), "-secret")
}

func TestNoRequestIsSlowByDefaultOfZero(t *testing.T) {
	l := &lines{}
	w := start(t, logged(l, 0, false))
	w.put("k", "v")
	require.Empty(t, l.of(t, "slow request"))
	l = &lines{}
	w = start(t, logged(l, time.Hour, false))
	w.put("k", "v")
	require.Empty(t, l.of(t, "slow request"))
}

// A disk that hangs makes every request slow; the log that says so is on a disk.
func TestLinesAboutSlowRequestsAreLimitedAndCounted(t *testing.T) {
	l := &lines{}
	w := start(t, logged(l, time.Nanosecond, false))
	sent := 0
	put := func() { w.put("k", "v"); sent++ }
	for range 10 * slowPerSecond {
		put()
	}
	require.Less(t, len(l.of(t, "slow request")), 5*slowPerSecond)
	// None is forgotten: lines and those that they count are all.
	told := func() int {
		n := 0
		for _, line := range l.of(t, "slow request") {
			n++
			if s, ok := line["suppressed"].(float64); ok {
				n += int(s)
			}
		}
		return n
	}
	require.Eventually(t, func() bool { put(); return told() == sent }, 10*time.Second, 20*time.Millisecond)
}

// A key in a log is data of a tenant in a place that has none of its protection.
func TestKeysAreLoggedOnlyWhenAskedFor(t *testing.T) {
	for _, reveal := range []bool{false, true} {
		l := &lines{}
		w := start(t, logged(l, time.Nanosecond, reveal))
		w.put("marker-key", "marker-value")
		w.engine.set(func(f *fakeEngine) { f.data["t\x00marker-key"] = []byte("no record") })
		_, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "marker-key"})
		require.Equal(t, "CORRUPTED_DATA", refused(t, err).reason)
		require.Equal(t, "marker-key", facts(err)["key"], "the client may know")
		require.NotContains(t, err.Error(), "marker")
		require.Len(t, l.of(t, "request failed"), 1)
		require.Equal(t, reveal, strings.Contains(l.String(), "marker-key"))
		require.NotContains(t, l.String(), "marker-value", "values are never logged")
		require.Contains(t, l.of(t, "request failed")[0]["error"], ikey.KeyHash("marker-key"))
	}
}

// What a client says it was refused must be found in the log.
func TestLinesAboutARequestNameItAndItsTrace(t *testing.T) {
	l := &lines{}
	w := start(t, logged(l, 0, false))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "order-18",
		"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
	w.engine.set(func(f *fakeEngine) { f.fail = fmt.Errorf("broken") })
	_, err := w.storage.Write(ctx, &storagev1.WriteRequest{Tenant: "t", Key: "k"})
	require.Equal(t, codes.Internal, refused(t, err).code)
	w.engine.set(func(f *fakeEngine) { f.fail = nil; f.hook = func() { panic("bug") } })
	_, err = w.storage.Write(ctx, &storagev1.WriteRequest{Tenant: "t", Key: "k"})
	require.Equal(t, codes.Internal, refused(t, err).code)
	_, err = w.storage.Write(ctx, &storagev1.WriteRequest{Tenant: "t"})
	require.Equal(t, codes.InvalidArgument, refused(t, err).code)
	for message, n := range map[string]int{"request failed": 2, "panic in a request": 1, "request refused": 1} {
		found := l.of(t, message)
		require.Len(t, found, n, message)
		for _, line := range found {
			require.Contains(t, line["request_id"], "order-18", message)
			require.Equal(t, "0af7651916cd43dd8448eb211c80319c", line["trace_id"], message)
		}
	}
	w.engine.set(func(f *fakeEngine) { f.hook = nil })
	_, err = w.storage.Write(metadata.AppendToOutgoingContext(t.Context(), "traceparent", "nonsense"), &storagev1.WriteRequest{Tenant: "t"})
	require.Error(t, err)
	last := l.of(t, "request refused")[1]
	require.NotContains(t, last, "trace_id")
	require.Contains(t, last["request_id"], "local-")
}

// An operator raises the level because something is wrong, and must get it back as it was.
func TestLogLevelIsChangedWhileTheNodeRuns(t *testing.T) {
	l := &lines{}
	w := start(t, func(w *world, o *Options) {
		w.phase = StateRecovering // before there is a backend
		o.Log = slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: &w.level}))
	})
	set := func(level string) string {
		r, err := w.admin.SetLogLevel(t.Context(), &adminv1.SetLogLevelRequest{Level: level})
		require.NoError(t, err)
		return r.GetPrevious()
	}
	require.Equal(t, "info", set(""))
	require.Equal(t, "info", set("error"))
	require.Equal(t, slog.LevelError, w.level.Level())
	require.Equal(t, "error", set("debug"))
	require.Equal(t, "debug", set("info"))
	require.Equal(t, "info", set(""))
	changes := l.of(t, "log level changed")
	require.Len(t, changes, 3, "each change is seen, whichever level is louder")
	require.Equal(t, "error", changes[0]["to"])
	require.Equal(t, "info", changes[0]["from"])
	for _, wrong := range []string{"loud", "INFO", "warn+1", " info", strings.Repeat("x", 1000)} {
		_, err := w.admin.SetLogLevel(t.Context(), &adminv1.SetLogLevelRequest{Level: wrong})
		require.Equal(t, refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_LOG_LEVEL"}, refused(t, err))
		require.Less(t, len(err.Error()), 200)
	}
	require.Equal(t, slog.LevelInfo, w.level.Level())
}

// The list is only worth something if all ways to the data are in it.
func TestHotListsOperationsOfEveryService(t *testing.T) {
	w := start(t, func(w *world, _ *Options) { w.hot = hot.New(hot.Options{Every: 1}) })
	ctx := t.Context()
	w.put("w", "12345")
	_, err := w.storage.Delete(ctx, &storagev1.DeleteRequest{Tenant: "t", Key: "d"})
	require.NoError(t, err)
	_, err = w.storage.BatchWrite(ctx, &storagev1.BatchWriteRequest{Tenant: "t", Ops: []*storagev1.BatchOp{
		{Key: "w", Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: []byte("123")}}},
		{Key: "", Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{}}}, // refused
	}})
	require.NoError(t, err)
	_, err = w.contract.Write(ctx, &storagenodev1.WriteRequest{TenantId: "t", Key: "w", Value: []byte("1234567"),
		VectorClock: &storagenodev1.VectorClock{Entries: []*storagenodev1.VectorClockEntry{{CoordinatorNodeId: "c", LogicalTimestamp: 1}}}})
	require.NoError(t, err)
	_, err = w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "w"})
	require.NoError(t, err)
	_, err = w.storage.BatchRead(ctx, &storagev1.BatchReadRequest{Tenant: "t", Keys: []string{"w", "absent"}})
	require.NoError(t, err)
	_, err = w.contract.Read(ctx, &storagenodev1.ReadRequest{TenantId: "t", Key: "w"})
	require.NoError(t, err)
	stream, err := w.storage.Pipeline(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.Send(&storagev1.PipelineRequest{Tenant: "t", Ops: []*storagev1.PipelineOp{readOp(1, "w"), putOp(2, "w", "1")}}))
	for n := 0; n < 2; {
		m, err := stream.Recv()
		require.NoError(t, err)
		n += len(m.GetResults())
	}
	require.NoError(t, stream.CloseSend())

	r, err := w.admin.Hot(ctx, &adminv1.HotRequest{RevealKeys: true})
	require.NoError(t, err)
	require.Len(t, r.GetReads(), 2)
	require.Equal(t, "w", r.GetReads()[0].GetKey())
	require.Equal(t, "t", r.GetReads()[0].GetTenant())
	require.EqualValues(t, 4, r.GetReads()[0].GetRequests())
	require.Equal(t, "absent", r.GetReads()[1].GetKey())
	require.Len(t, r.GetWrites(), 2)
	require.EqualValues(t, 4, r.GetWrites()[0].GetRequests())
	require.EqualValues(t, 1, r.GetWrites()[0].GetValueBytes(), "as it was last seen")
	require.Positive(t, r.GetWindowSeconds())

	r, err = w.admin.Hot(ctx, &adminv1.HotRequest{Limit: 1})
	require.NoError(t, err)
	require.Len(t, r.GetReads(), 1)
	require.Equal(t, ikey.KeyHash("w"), r.GetReads()[0].GetKey(), "hashed unless asked for")
	for _, limit := range []int32{-1, hot.MaxKeys + 1} {
		_, err = w.admin.Hot(ctx, &adminv1.HotRequest{Limit: limit})
		require.Equal(t, codes.InvalidArgument, refused(t, err).code)
	}
}

// BenchmarkTracing is what a read costs with the log of slow requests, and with spans that are off, not
// sampled and sampled.
func BenchmarkTracing(b *testing.B) {
	discard := tracetest.NewNoopExporter()
	with := func(s sdktrace.Sampler) *sdktrace.TracerProvider {
		return sdktrace.NewTracerProvider(sdktrace.WithBatcher(discard), sdktrace.WithSampler(s))
	}
	for _, c := range []struct {
		name     string
		slow     time.Duration
		provider *sdktrace.TracerProvider
	}{
		{"off", 0, nil}, {"slow-log", 500 * time.Millisecond, nil},
		{"unsampled", 500 * time.Millisecond, with(sdktrace.NeverSample())}, {"sampled", 500 * time.Millisecond, with(sdktrace.AlwaysSample())},
	} {
		b.Run(c.name, func(b *testing.B) {
			var more []grpc.ServerOption
			o := Options{SlowRequest: c.slow}
			if c.provider != nil {
				o.Tracer = c.provider.Tracer("bench")
				more = append(more, grpc.StatsHandler(otelgrpc.NewServerHandler(
					otelgrpc.WithTracerProvider(c.provider), otelgrpc.WithMeterProvider(noop.NewMeterProvider()))))
			}
			read := storagev1.NewStorageServiceClient(benchServerWith(b, o, more...))
			inFlight(b, 16, func(ctx context.Context) error {
				_, err := read.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k"})
				return err
			})
		})
	}
}
