package service

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
)

// Tracing is where the spans of a binary go. nil is a binary that exports none: its methods then return
// what costs nothing. A Program that names an OpenTracing gets one if the environment asks for it.
//
// The type is here and what fills it in package tracing, so that who only needs a configuration does not
// inherit an exporter.
type Tracing struct {
	// Provider makes tracers.
	Provider trace.TracerProvider
	// Server and Dial make a span for each call, and carry the trace from one process to the other.
	Server []grpc.ServerOption
	Dial   []grpc.DialOption
	// Close sends what is left and ends. It returns when ctx ends at the latest.
	Close func(ctx context.Context) error
}

// TracingOptions are what an export of spans says about the binary.
type TracingOptions struct {
	// Name of the binary, and its build.
	Name  string
	Build Build
	// Log hears of spans that could not be sent.
	Log *slog.Logger
}

// OpenTracing begins to export spans, or returns nil if the environment asks for none. It connects to
// nothing: a collector that is away must not keep a binary from starting. Its error is a wrong
// configuration.
type OpenTracing func(ctx context.Context, o TracingOptions) (*Tracing, error)

// ServerOptions are for a gRPC server: none when spans are not exported.
func (t *Tracing) ServerOptions() []grpc.ServerOption {
	if t == nil {
		return nil
	}
	return t.Server
}

// DialOptions are for a gRPC connection: none when spans are not exported.
func (t *Tracing) DialOptions() []grpc.DialOption {
	if t == nil {
		return nil
	}
	return t.Dial
}

// Enabled reports whether spans are exported.
func (t *Tracing) Enabled() bool { return t != nil }

// Tracer returns a tracer for a part of the binary. Its spans go nowhere when none are exported.
func (t *Tracing) Tracer(name string) trace.Tracer {
	if t == nil {
		return noop.NewTracerProvider().Tracer(name)
	}
	return t.Provider.Tracer(name)
}

// tracingLimit is how long the last spans may take to leave. A collector in the same cluster takes
// milliseconds; together with the shutdown of a storage node, 25 s by default, it stays below the 30 s
// that Kubernetes grants.
const tracingLimit = 2 * time.Second

// openTracing opens the export of a program that can export.
func (p *Program) openTracing(ctx context.Context, log *slog.Logger) (*Tracing, error) {
	if p.Tracing == nil {
		return nil, nil
	}
	t, err := p.Tracing(ctx, TracingOptions{Name: p.Name, Build: ThisBuild(), Log: log})
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	return t, nil
}

// stop is the last stage of the shutdown: by then nothing makes spans any more. Spans that are lost are
// no failure of the binary.
func (t *Tracing) stop(log *slog.Logger) {
	if t == nil {
		return
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), tracingLimit)
	defer cancel()
	if err := t.Close(ctx); err != nil {
		log.Warn("the last spans were not sent", "error", err, "took", time.Since(start))
		return
	}
	log.Info("stage stopped", "stage", "tracing", "took", time.Since(start))
}
