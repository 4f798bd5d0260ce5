package move

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// What moves must be seen while it moves, and what stops it by its cause: an alert has nothing else.
func TestMetricsAndSpansSayWhatAMoveDoes(t *testing.T) {
	out := tracetest.NewInMemoryExporter()
	w := newWorld(t, handOver())
	w.o.Metrics = NewMetrics()
	w.o.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSyncer(out)).Tracer("test")
	m := w.o.Metrics
	w.fill(30)
	w.source.mv.MaxBytesPerSecond = 64 << 10
	w.target.refusal, w.target.refuseAccept = "disk full", true
	p := w.begin()
	require.Eventually(t, func() bool { return testutil.ToFloat64(m.retries.WithLabelValues("refused")) > 0 }, time.Minute, time.Millisecond)
	w.target.set(func() { w.target.refusal = "" })
	require.Eventually(t, func() bool { return testutil.ToFloat64(m.putOff) > 0 }, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool { return w.source.write("tailed", "x") == nil }, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool { return testutil.ToFloat64(m.records.WithLabelValues("tail")) > 0 }, time.Minute, time.Millisecond)
	w.target.set(func() { w.target.refuseAccept = false })
	p.end(t)
	w.complete()
	require.InDelta(t, 30, testutil.ToFloat64(m.records.WithLabelValues("copy")), 0)
	require.Positive(t, testutil.ToFloat64(m.bytes.WithLabelValues("copy")))
	require.Positive(t, testutil.ToFloat64(m.bytes.WithLabelValues("tail")))
	require.Positive(t, testutil.ToFloat64(m.waited))
	require.Positive(t, testutil.ToFloat64(m.compared.WithLabelValues("equal")))
	require.Equal(t, 1, testutil.CollectAndCount(m.fenced))
	for _, s := range []string{"pinned", "copying", "tailing", "verifying", "fenced", "accepted", "committed"} {
		require.Positive(t, testutil.ToFloat64(m.changes.WithLabelValues(s)), s)
	}

	names := map[string]bool{}
	failed := false
	for _, s := range out.GetSpans() {
		names[s.Name] = true
		failed = failed || s.Status.Code == codes.Error && strings.Contains(s.Status.Description, "disk full")
	}
	for _, want := range []string{"move planned", "move copying", "move tailing", "move accepted", "move committed"} {
		require.True(t, names[want], "%s is missing in %v", want, names)
	}
	require.True(t, failed, "what stopped a step is in its span")
}

// A label that is made up as it comes is a series without a past; a lag that is not measured is none.
func TestSeriesAreThereFromTheStart(t *testing.T) {
	m := NewMetrics()
	r := prometheus.NewRegistry()
	m.Register(r)
	before, err := testutil.GatherAndCount(r)
	require.NoError(t, err)
	m.Moves([]*movev1.Move{{State: movev1.State_STATE_FENCED}, {State: movev1.State_STATE_FAILED}})
	m.Lag(3 * time.Second)
	m.comparedKeys(10, 2)
	require.InDelta(t, 1, testutil.ToFloat64(m.moves.WithLabelValues("fenced")), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.moves.WithLabelValues("failed")), 0)
	require.InDelta(t, 3, testutil.ToFloat64(m.lag), 0)
	require.InDelta(t, 8, testutil.ToFloat64(m.compared.WithLabelValues("equal")), 0)
	require.InDelta(t, 2, testutil.ToFloat64(m.compared.WithLabelValues("repaired")), 0)
	for _, err := range []error{errNews, errRefused, errFenceLong, ofNode(errMalformed), ofTarget(errMalformed)} {
		require.Contains(t, causes, causeOf(err))
	}
	after, err := testutil.GatherAndCount(r)
	require.NoError(t, err)
	require.Equal(t, before, after)
}
