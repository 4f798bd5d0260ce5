package move

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// Metrics of a migrator's moves. Every series is there from the start: one that comes with its first
// event has no rate.
type Metrics struct {
	moves    *prometheus.GaugeVec
	changes  *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	records  *prometheus.CounterVec
	resent   prometheus.Counter
	retries  *prometheus.CounterVec
	lag      prometheus.Gauge
	waited   prometheus.Counter
	putOff   prometheus.Counter
	fenced   prometheus.Histogram
	compared *prometheus.CounterVec
}

// The closed sets of labels.
var (
	states = stateNames()
	phases = []string{"copy", "tail", "repair"}
	causes = []string{"node", "target", "stalled", "refused", "changed", "pin", "other"}
	fates  = []string{"equal", "repaired"}
)

// stateNames returns the states by their numbers, from 1 on.
func stateNames() []string {
	out := make([]string, len(movev1.State_name)-1)
	for i := range out {
		out[i] = stateName(movev1.State(i + 1))
	}
	return out
}

// stateName is the word of a state in labels and logs.
func stateName(s movev1.State) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "STATE_"))
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "pairdb_migrator_" + name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pairdb_migrator_" + name, Help: help}, labels)
	}
	m := &Metrics{
		moves: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pairdb_migrator_moves", Help: "Moves of the node that are not over, by state; those that wait for their turn too.",
		}, []string{"state"}),
		changes: counters("state_changes_total", "States that moves have come to.", "state"),
		bytes:   counters("bytes_total", "Bytes of keys and values that targets have acknowledged, by phase: copy, tail, repair.", "phase"),
		records: counters("records_total", "Records that targets have acknowledged, by phase: copy, tail, repair.", "phase"),
		resent:  counter("resent_bytes_total", "Bytes that were sent again because nobody knew whether the target had them."),
		retries: counters("retries_total", "Steps that were tried again, by cause: node (the pod's own is away), target (it is away, or a stream broke), stalled (it acknowledges nothing), refused (it takes no data now), changed (somebody else changed the move), pin (the log was gone), other.", "cause"),
		lag: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pairdb_migrator_lag_seconds", Help: "How far the target that is furthest behind is behind this node; 0 when nothing is tailed.",
		}),
		waited: counter("throttled_seconds_total", "Time that streams waited for PAIRDB_MIGRATOR_BYTES_PER_SECOND and the limits of moves."),
		putOff: counter("handovers_put_off_total", "Hand-overs that took too long inside of the fence, or were called off in it, and were taken back."),
		fenced: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pairdb_migrator_fence_seconds", Help: "How long the writes of a range were refused at its hand-over.",
			Buckets:                     prometheus.ExponentialBuckets(0.01, 2, 13), // 10 ms to 41 s
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
		}),
		compared: counters("compared_keys_total", "Keys that were compared with a target, by what was found: equal, repaired.", "result"),
	}
	for vec, values := range map[*prometheus.CounterVec][]string{
		m.changes: states, m.bytes: phases, m.records: phases, m.retries: causes, m.compared: fates,
	} {
		for _, v := range values {
			vec.WithLabelValues(v)
		}
	}
	for _, s := range states {
		m.moves.WithLabelValues(s)
	}
	return m
}

// Register adds the metrics to a registry.
func (m *Metrics) Register(r prometheus.Registerer) {
	r.MustRegister(m.moves, m.changes, m.bytes, m.records, m.resent, m.retries, m.lag, m.waited, m.putOff, m.fenced, m.compared)
}

// Moves notes the moves that are not over.
func (m *Metrics) Moves(all []*movev1.Move) {
	count := make(map[string]int, len(states))
	for _, v := range all {
		count[stateName(v.GetState())]++
	}
	for _, s := range states {
		m.moves.WithLabelValues(s).Set(float64(count[s]))
	}
}

// Lag notes how far the target that is furthest behind is behind.
func (m *Metrics) Lag(d time.Duration) { m.lag.Set(d.Seconds()) }

func (m *Metrics) throttled(d time.Duration) { m.waited.Add(d.Seconds()) }

// comparedKeys notes what a comparison has found since it was last told.
func (m *Metrics) comparedKeys(compared, repaired int64) {
	m.compared.WithLabelValues("repaired").Add(float64(repaired))
	m.compared.WithLabelValues("equal").Add(float64(max(compared-repaired, 0)))
}
