package server

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// call is the context of a call, with what the guard knows of it. It is one allocation, with the deadline
// and the trail in it.
type call struct {
	context.Context // the caller's, or limited
	limited         lazyDeadline

	g      *guard
	method string
	began  time.Time
	span   trace.Span // of the call, if it is recorded; else nil
	// watched: somebody looks at the trail.
	watched bool
	trail   stages.Trail

	messages *rate.Limiter // of a recorded stream: which of its messages get spans
}

// callKey is under which the context of a call has the call itself.
type callKey struct{}

// callFrom returns the call of a context, or nil.
func callFrom(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// Value implements context.Context.
func (c *call) Value(key any) any {
	switch key.(type) {
	case stages.Key:
		if c.watched {
			return &c.trail
		}
		return (*stages.Trail)(nil)
	case callKey:
		return c
	}
	return c.Context.Value(key)
}

// begin makes the call of a context.
func (g *guard) begin(ctx context.Context, method string, now time.Time) *call {
	c := &call{Context: ctx, g: g, method: method, began: now}
	if g.tracer != nil {
		if s := trace.SpanFromContext(ctx); s.IsRecording() {
			c.span = s
		}
	}
	return c
}

// watch lets the call leave a trail, if somebody looks: the log of slow requests, or a span.
func (c *call) watch() {
	if c.watched = c.span != nil || c.g.slow.over > 0; !c.watched {
		return
	}
	c.trail.Begin(c.began)
	// What the call took before it was a message is known to the span alone.
	if s, ok := c.span.(interface{ StartTime() time.Time }); ok && s.StartTime().Before(c.began) {
		c.trail.Begin(s.StartTime())
		c.trail.Lap(stages.Decode, c.began)
	}
}

// limit gives the call a deadline if it brought none; release must be called at its end.
func (c *call) limit() {
	if _, ok := c.Deadline(); !ok {
		c.limited.Context, c.limited.deadline = c.Context, c.began.Add(c.g.timeout)
		c.Context = &c.limited
	}
}

func (c *call) release() {
	if c.limited.Context != nil {
		c.limited.release()
	}
}

// end says what there is to say about a call with one answer that is over.
func (c *call) end(req, resp any, code codes.Code, took time.Duration) {
	slow := c.g.slow.over > 0 && took >= c.g.slow.over
	if c.span == nil && !slow {
		return
	}
	s := subjectOf(req, resp)
	if c.span != nil {
		c.span.SetAttributes(s.attributes()...)
		c.stageSpans(c, &c.trail)
	}
	if slow && s.known {
		c.g.slow.log(c, c.method, s, code, took, &c.trail)
	}
}

// stageSpans makes a child span of the one in ctx for each stage of a trail.
func (c *call) stageSpans(ctx context.Context, t *stages.Trail) {
	for s := range stages.Count {
		p := t.Passed(s)
		if p.Times == 0 {
			continue
		}
		began := t.Start().Add(p.Began)
		options := []trace.SpanStartOption{trace.WithTimestamp(began)}
		if s == stages.Read || s == stages.Join {
			l := t.Lookups()
			options = append(options, trace.WithAttributes(
				attribute.Int64("pairdb.row_cache_hits", l.Rows), attribute.Int64("pairdb.memtable_hits", l.Memtables),
				attribute.Int64("pairdb.tables_searched", l.Tables), attribute.Int64("pairdb.tables_skipped", l.Skipped),
			))
		}
		if p.Times > 1 {
			options = append(options, trace.WithAttributes(attribute.Int64("pairdb.times", int64(p.Times))))
		}
		_, span := c.g.tracer.Start(ctx, s.String(), options...)
		span.End(trace.WithTimestamp(began.Add(p.Took)))
	}
}

// about returns what names a request in the logs: its id, and its trace if it is part of one.
func (g *guard) about(ctx context.Context) []slog.Attr {
	out := []slog.Attr{slog.String("request_id", g.requestID(ctx))}
	if id := traceID(ctx); id != "" {
		out = append(out, slog.String("trace_id", id))
	}
	return out
}

// traceID returns the trace that a call is part of: also one that this node exports nothing of.
func traceID(ctx context.Context) string {
	s := trace.SpanContextFromContext(ctx)
	if !s.IsValid() {
		parents := metadata.ValueFromIncomingContext(ctx, "traceparent")
		if len(parents) != 1 {
			return ""
		}
		remote := propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": parents[0]})
		s = trace.SpanContextFromContext(remote)
	}
	if !s.IsValid() {
		return ""
	}
	return s.TraceID().String()
}

// requestIDKey is the metadata key with which a client names its request for the logs.
const requestIDKey = "x-request-id"

// requestID returns the client's name for the request, or one of ours.
func (g *guard) requestID(ctx context.Context) string {
	const maxLength = 128
	if ids := metadata.ValueFromIncomingContext(ctx, requestIDKey); len(ids) > 0 {
		printable := strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return '?'
			}
			return r
		}, ids[0])
		return printable[:min(len(printable), maxLength)]
	}
	return g.localID()
}
