package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/pairdb/pairdb/libs/service"
)

var _ service.OpenTracing = Open

// Open begins to export spans if the environment asks for it, and returns nil if not. It does not connect:
// the first spans do. What goes wrong with the export is logged, at most once a minute.
func Open(ctx context.Context, o service.TracingOptions) (*service.Tracing, error) {
	on, err := wanted(os.Getenv)
	if err != nil || !on {
		return nil, err
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(
			attribute.String("service.name", "pairdb-"+o.Name),
			attribute.String("service.version", o.Build.Version),
		),
		resource.WithTelemetrySDK(), resource.WithHost(), resource.WithProcessPID(),
		resource.WithFromEnv(), // the last word
	)
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("exporter of spans: %w", err)
	}
	otel.SetErrorHandler(&quiet{log: o.Log})
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	o.Log.Info("spans are exported", "endpoint", endpoint(), "sampler", sampler())
	calls := []otelgrpc.Option{
		otelgrpc.WithTracerProvider(provider),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()), // Prometheus has the metrics
		otelgrpc.WithPropagators(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
		otelgrpc.WithFilter(noProbe),
	}
	return &service.Tracing{
		Provider: provider,
		Server:   []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(calls...))},
		Dial:     []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(calls...))},
		Close: func(ctx context.Context) error {
			err := provider.Shutdown(ctx)
			if ctx.Err() == nil {
				return err
			}
			// What is on its way is cut off, instead of being tried again for a minute.
			return errors.Join(err, exporter.Shutdown(ctx))
		},
	}, nil
}

// noProbe leaves out what asks every second whether the process is there.
func noProbe(i *stats.RPCTagInfo) bool {
	return !strings.HasPrefix(i.FullMethodName, "/grpc.health.v1.")
}

// endpoint is where spans go, without what may be secret in a URL.
func endpoint() string {
	for _, key := range []string{tracesEndpointKey, endpointKey} {
		if v := strings.TrimSpace(os.Getenv(key)); v != "" {
			if at := strings.LastIndex(v, "@"); at >= 0 {
				return "…" + v[at:]
			}
			return v
		}
	}
	return ""
}

func sampler() string {
	s := strings.TrimSpace(os.Getenv(samplerKey))
	if s == "" {
		return "parentbased_always_on"
	}
	if arg := strings.TrimSpace(os.Getenv(samplerArgKey)); arg != "" {
		return s + " " + arg
	}
	return s
}

// quietFor is between two lines about an export that does not work: it is tried every few seconds, and a
// collector may be away for a day.
const quietFor = time.Minute

// quiet hears the complaints of the SDK.
type quiet struct {
	log        *slog.Logger
	next       atomic.Int64 // Unix nanoseconds
	suppressed atomic.Int64
}

// Handle implements otel.ErrorHandler.
func (q *quiet) Handle(err error) {
	now := time.Now()
	next := q.next.Load()
	if now.UnixNano() < next || !q.next.CompareAndSwap(next, now.Add(quietFor).UnixNano()) {
		q.suppressed.Add(1)
		return
	}
	q.log.Warn("spans were not exported", "error", err, "suppressed", q.suppressed.Swap(0))
}
