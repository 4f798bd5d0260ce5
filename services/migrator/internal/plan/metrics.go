package plan

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/services/migrator/internal/compare"
)

// Results of a comparison with a replica, as metrics name them.
const (
	resultEqual     = "equal"     // every range was, or is since what differed was exchanged
	resultExchanged = "exchanged" // some keys are written to so often that they were never seen equal, and are on both sides
	resultUnequal   = "unequal"   // some differ still
	resultFailed    = "failed"    // a node did not answer, or refused
	resultRefused   = "refused"   // a node takes no data now
	resultTooOld    = "too_old"   // ranges were apart for longer than the grace
)

// Metrics of automatic comparisons.
type Metrics struct {
	runs                      *prometheus.CounterVec
	compared, repaired, bytes prometheus.Counter
	last, waiting             prometheus.Gauge
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	m := &Metrics{
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pairdb_migrator_repair_runs_total",
			Help: "Comparisons with another replica by result: equal, exchanged, unequal, failed, refused, too_old.",
		}, []string{"result"}),
		compared: prometheus.NewCounter(prometheus.CounterOpts{Name: "pairdb_migrator_repair_compared_keys_total", Help: "Keys that were compared with another replica."}),
		repaired: prometheus.NewCounter(prometheus.CounterOpts{Name: "pairdb_migrator_repair_repaired_keys_total", Help: "Of these, sent to either side because they differed."}),
		bytes:    prometheus.NewCounter(prometheus.CounterOpts{Name: "pairdb_migrator_repair_sent_bytes_total", Help: "Of keys and values of these."}),
		last:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "pairdb_migrator_repair_last_duration_seconds", Help: "How long the last comparison with another replica took."}),
		waiting:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "pairdb_migrator_repair_waiting_peers", Help: "Replicas that are due to be compared with."}),
	}
	for _, result := range []string{resultEqual, resultExchanged, resultUnequal, resultFailed, resultRefused, resultTooOld} {
		m.runs.WithLabelValues(result)
	}
	return m
}

// Register adds the metrics to a registry.
func (m *Metrics) Register(r prometheus.Registerer) {
	r.MustRegister(m.runs, m.compared, m.repaired, m.bytes, m.last, m.waiting)
}

func (m *Metrics) ran(result string, p compare.Progress, took time.Duration) {
	m.runs.WithLabelValues(result).Inc()
	m.compared.Add(float64(p.ComparedKeys))
	m.repaired.Add(float64(p.RepairedKeys))
	m.bytes.Add(float64(p.SentBytes))
	m.last.Set(took.Seconds())
}
