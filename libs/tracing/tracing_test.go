package tracing_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/tracing"
	"github.com/pairdb/pairdb/libs/tracing/tracingtest"
)

// environment sets the OTEL_… variables to these alone.
func environment(t *testing.T, vars ...string) {
	t.Helper()
	for _, kv := range os.Environ() {
		if key, value, _ := strings.Cut(kv, "="); strings.HasPrefix(key, "OTEL_") {
			t.Setenv(key, value) // restores it at the end
			require.NoError(t, os.Unsetenv(key))
		}
	}
	for _, kv := range vars {
		key, value, _ := strings.Cut(kv, "=")
		t.Setenv(key, value)
	}
}

func open(t *testing.T, log *slog.Logger) *service.Tracing {
	t.Helper()
	tr, err := tracing.Open(t.Context(), service.TracingOptions{Name: "demo", Build: service.Build{Version: "v7"}, Log: log})
	require.NoError(t, err)
	return tr
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// A binary that sends what its requests are about to somebody who happens to listen would be a leak; one
// that tries would be noise.
func TestNothingIsExportedUnlessAsked(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close() //nolint:errcheck // a test's
	url := "http://" + l.Addr().String()
	for _, vars := range [][]string{
		{},
		{"OTEL_TRACES_SAMPLER=always_on", "OTEL_SERVICE_NAME=x"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url, "OTEL_SDK_DISABLED=true"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url, "OTEL_TRACES_EXPORTER=none"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT= ", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="},
	} {
		environment(t, vars...)
		tr := open(t, discard())
		require.Nil(t, tr, vars)
		require.False(t, tr.Enabled())
		require.Empty(t, tr.ServerOptions(), "a handler costs every call something")
		require.Empty(t, tr.DialOptions())
		_, span := tr.Tracer("x").Start(t.Context(), "nothing")
		require.False(t, span.IsRecording())
		span.End()
	}
	require.NoError(t, l.(*net.TCPListener).SetDeadline(time.Now().Add(50*time.Millisecond)))
	_, err = l.Accept()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "somebody has connected")
}

// The SDK replaces what it can't read by defaults: all requests traced, and sent to this machine.
func TestWrongEnvironmentIsRefused(t *testing.T) {
	const good = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"
	for _, c := range []struct {
		vars []string
		want string
	}{
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=collector:4317"}, "http://host:4317"},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://"}, "http://host:4317"},
		{[]string{good, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=ftp://x"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"},
		{[]string{good, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"}, "grpc is what"},
		{[]string{good, "OTEL_TRACES_EXPORTER=jaeger"}, "otlp or none"},
		{[]string{good, "OTEL_TRACES_SAMPLER=sometimes"}, "parentbased_traceidratio"},
		{[]string{good, "OTEL_TRACES_SAMPLER=traceidratio", "OTEL_TRACES_SAMPLER_ARG=1%"}, "from 0 to 1"},
		{[]string{good, "OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=2"}, "from 0 to 1"},
		{[]string{good, "OTEL_RESOURCE_ATTRIBUTES=a"}, "OTEL_RESOURCE_ATTRIBUTES"},
	} {
		environment(t, c.vars...)
		_, err := tracing.Open(t.Context(), service.TracingOptions{Name: "demo", Log: discard()})
		require.ErrorContains(t, err, c.want, "%v", c.vars)

		var out, errs bytes.Buffer
		p := &service.Program{
			Name: "demo", Tracing: tracing.Open, Stdout: &out, Stderr: &errs,
			Run: func(context.Context, *service.Runtime) error { t.Fatal("runs"); return nil },
		}
		require.Equal(t, service.ExitUsage, p.Main(t.Context(), nil))
		require.Contains(t, errs.String(), c.want)
	}
}

// echo is a service that is called in a trace: the collector's own, which answers.
type echo struct {
	collectorv1.UnimplementedTraceServiceServer
	tracer trace.Tracer
}

func (e echo) Export(ctx context.Context, _ *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	tracing.Answer(ctx)
	_, span := e.tracer.Start(ctx, "inside")
	span.End()
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// serve starts a server of echo whose calls make spans, and returns a client of it whose calls do.
func serve(t *testing.T, tr *service.Tracing) collectorv1.TraceServiceClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer(tr.ServerOptions()...)
	collectorv1.RegisterTraceServiceServer(s, echo{tracer: tr.Tracer("echo")})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), append(tr.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		s.Stop()
		<-served
	})
	return collectorv1.NewTraceServiceClient(conn)
}

const exportName = "opentelemetry.proto.collector.trace.v1.TraceService/Export"

// A trace that falls apart between two processes tells nothing about either.
func TestCallsOfTwoProcessesAreOneTrace(t *testing.T) {
	c := tracingtest.Start(t)
	environment(t, append(c.Environment(), "OTEL_RESOURCE_ATTRIBUTES=zone=a", "OTEL_SERVICE_NAME=named")...)
	var header metadata.MD
	var out, errs bytes.Buffer
	p := &service.Program{
		Name: "demo", Tracing: tracing.Open, Stdout: &out, Stderr: &errs,
		Run: func(ctx context.Context, rt *service.Runtime) error {
			require.True(t, rt.Tracing.Enabled())
			ctx, root := rt.Tracing.Tracer("test").Start(ctx, "root")
			_, err := serve(t, rt.Tracing).Export(ctx, &collectorv1.ExportTraceServiceRequest{}, grpc.Header(&header))
			root.End()
			return err
		},
	}
	require.Zero(t, p.Main(t.Context(), nil), errs.String())
	require.Contains(t, errs.String(), `"stage":"tracing"`)

	root := c.Named("root") // there without waiting: the end of the program sends what is left
	require.Len(t, root, 1)
	require.Equal(t, "named", root[0].Service)
	require.Empty(t, root[0].ParentID)
	call := c.Below(root[0])
	require.Len(t, call, 1)
	require.Equal(t, exportName, call[0].Name)
	answered := c.Below(call[0])
	require.Len(t, answered, 1)
	require.Equal(t, exportName, answered[0].Name)
	require.Equal(t, root[0].TraceID, answered[0].TraceID)
	inside := c.Below(answered[0])
	require.Len(t, inside, 1)
	require.Equal(t, "inside", inside[0].Name)

	links := tracing.FromAnswer(header)
	require.Len(t, links, 1)
	require.Equal(t, answered[0].SpanID, links[0].SpanContext.SpanID().String())
	require.Empty(t, tracing.FromAnswer(metadata.MD{}))
	require.Empty(t, tracing.FromAnswer(metadata.Pairs("traceparent", "nonsense")))
}

func TestSamplerOfTheEnvironmentIsObeyed(t *testing.T) {
	c := tracingtest.Start(t)
	environment(t, append(c.Environment(), "OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=0")...)
	tr := open(t, discard())
	_, err := serve(t, tr).Export(t.Context(), &collectorv1.ExportTraceServiceRequest{})
	require.NoError(t, err)
	require.NoError(t, tr.Close(t.Context()))
	require.Empty(t, c.Spans())
}

// A collector that is away must not be felt by anybody but the one who looks for spans.
func TestUnreachableCollectorCostsNoRequestAndNoEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections and never answers: worse than none
	require.NoError(t, err)
	environment(t, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+l.Addr().String(), "OTEL_BSP_SCHEDULE_DELAY=1", "OTEL_BSP_MAX_QUEUE_SIZE=100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=50")
	before := goleak.IgnoreCurrent()
	tr := open(t, discard())
	tracer := tr.Tracer("test")
	start := time.Now()
	for range 10_000 { // a hundred times the queue
		_, span := tracer.Start(t.Context(), "s")
		span.End()
	}
	require.Less(t, time.Since(start), 5*time.Second)
	start = time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.Error(t, tr.Close(ctx))
	require.Less(t, time.Since(start), 5*time.Second)
	require.NoError(t, l.Close())
	goleak.VerifyNone(t, before)
}

// text is a log that the exporter writes beside the test.
type text struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *text) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *text) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// A collector that is away for a day must not fill the log.
func TestFailedExportsAreLoggedOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	url := "http://" + l.Addr().String()
	require.NoError(t, l.Close()) // nobody there
	environment(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+url, "OTEL_EXPORTER_OTLP_TIMEOUT=50", "OTEL_BSP_SCHEDULE_DELAY=1")
	log := &text{}
	tr := open(t, slog.New(slog.NewTextHandler(log, nil)))
	for range 3 {
		_, span := tr.Tracer("test").Start(t.Context(), "s")
		span.End()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_ = tr.Provider.(interface{ ForceFlush(context.Context) error }).ForceFlush(ctx) // fails, which is the point
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_ = tr.Close(ctx)
	require.LessOrEqual(t, strings.Count(log.String(), "spans were not exported"), 1, log.String())
	require.Contains(t, log.String(), "spans are exported")
}
