package worker

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	"github.com/pairdb/pairdb/libs/compact"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

// attempts returns the spans of attempts that have ended.
func attempts(out *tracetest.InMemoryExporter) []tracetest.SpanStub {
	return slices.DeleteFunc(slices.Clone(out.GetSpans()), func(s tracetest.SpanStub) bool { return s.Name != "attempt" })
}

// A merge that is slow or fails must be found from the node's job, and from the lease that it came of.
func TestAttemptIsASpanThatNamesItsJobAndItsLease(t *testing.T) {
	out := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(out))
	inPod(t, 2, func(o *Options) { o.Tracer = provider.Tracer("test") }, func(t *testing.T, p *pod) {
		p.node.mu.Lock()
		p.node.header = metadata.Pairs("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		p.node.mu.Unlock()
		p.node.give(p.simple(1, 50))
		synctest.Wait()
		require.Len(t, p.node.completes, 1)
		ended := attempts(out)
		require.Len(t, ended, 1)
		a := ended[0]
		require.False(t, a.Parent.IsValid(), "a trace of its own: the lease is over long before it")
		require.Len(t, a.Links, 1)
		require.Equal(t, "b7ad6b7169203331", a.Links[0].SpanContext.SpanID().String())
		about := attribute.NewSet(a.Attributes...)
		job, ok := about.Value("pairdb.job")
		require.True(t, ok)
		require.Equal(t, compact.AttemptName(1, 1), job.AsString())
		result, _ := about.Value("pairdb.job_result")
		require.Equal(t, "installed", result.AsString())
		var merge []tracetest.SpanStub
		for _, s := range out.GetSpans() {
			if s.Name == "merge" {
				merge = append(merge, s)
			}
		}
		require.Len(t, merge, 1)
		require.Equal(t, a.SpanContext.SpanID(), merge[0].Parent.SpanID())

		// What fails is marked, and what comes without a trace of the node has no link.
		p.node.mu.Lock()
		p.node.header = nil
		p.node.onComplete = func(*compactionv1.CompleteRequest) (*compactionv1.CompleteResponse, error) {
			return &compactionv1.CompleteResponse{Verdict: compactionv1.CompleteResponse_VERDICT_REJECTED}, nil
		}
		p.node.mu.Unlock()
		p.node.give(p.simple(2, 5))
		synctest.Wait()
		a = attempts(out)[1]
		require.Empty(t, a.Links)
		require.Equal(t, "rejected", a.Status.Description)
	})
}

// Heartbeats and the report must be in the trace of the attempt: the node's spans of them are then found
// there.
func TestCallsOfAnAttemptAreInItsTrace(t *testing.T) {
	provider := sdktrace.NewTracerProvider()
	var seen []trace.SpanContext
	inPod(t, 1, func(o *Options) {
		o.Tracer = provider.Tracer("test")
		o.Client = spying{o.Client, &seen}
	}, func(t *testing.T, p *pod) {
		p.node.give(p.simple(1, 5))
		synctest.Wait()
		require.Len(t, p.node.completes, 1)
		require.Len(t, seen, 1)
		require.True(t, seen[0].IsValid())
	})
}
