package tracing

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// carrierKey is the metadata key of W3C Trace Context.
const carrierKey = "traceparent"

// Answer puts the span of a call into the header of its answer, so that the caller can link to it what it
// does later: a job that is leased now. Without a recorded span it does nothing.
func Answer(ctx context.Context) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	_ = grpc.SetHeader(ctx, metadata.New(carrier)) // only what links is lost: the header was sent already
}

// FromAnswer returns the links to the span that Answer put into a header; none is no error.
func FromAnswer(header metadata.MD) []trace.Link {
	parents := header.Get(carrierKey)
	if len(parents) != 1 {
		return nil
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{carrierKey: parents[0]})
	s := trace.SpanContextFromContext(ctx)
	if !s.IsValid() {
		return nil
	}
	return []trace.Link{{SpanContext: s}}
}
