package worker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

// Metrics of a worker.
type Metrics struct {
	connected, running prometheus.Gauge
	jobs               *prometheus.CounterVec
	seconds            *prometheus.HistogramVec
	bytes              *prometheus.CounterVec
	entries            *prometheus.CounterVec
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	return &Metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pairdb_compactor_connected", Help: "1 while the storage node answers.",
		}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pairdb_compactor_running_jobs", Help: "Jobs under way.",
		}),
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pairdb_compactor_jobs_total",
			Help: "Jobs that ended, by kind and result: installed, rejected, fenced, stopped, shutdown, failed, unknown.",
		}, []string{"kind", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pairdb_compactor_job_seconds", Help: "How long jobs took, verification by the node included.",
			Buckets: prometheus.ExponentialBuckets(0.05, 2, 14), // 50 ms to 7 min
		}, []string{"kind"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pairdb_compactor_bytes_total", Help: "Bytes of tables, read and written.",
		}, []string{"direction"}),
		entries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pairdb_compactor_entries_total", Help: "Entries by what became of them: out, shadowed, joined, collected.",
		}, []string{"fate"}),
	}
}

// Register adds the metrics to a registry.
func (m *Metrics) Register(r prometheus.Registerer) {
	r.MustRegister(m.connected, m.running, m.jobs, m.seconds, m.bytes, m.entries)
}

// count notes the end of an attempt.
func (m *Metrics) count(a *attempt, s *compactionv1.JobStats, result string) {
	kind := kindName(a.g.Job.Kind)
	m.jobs.WithLabelValues(kind, result).Inc()
	m.seconds.WithLabelValues(kind).Observe(time.Since(a.started).Seconds())
	m.bytes.WithLabelValues("read").Add(float64(s.GetBytesRead()))
	m.bytes.WithLabelValues("written").Add(float64(s.GetBytesWritten()))
	for fate, n := range map[string]uint64{
		"out": s.GetEntriesOut(), "shadowed": s.GetShadowed(), "joined": s.GetJoined(), "collected": s.GetCollected(),
	} {
		m.entries.WithLabelValues(fate).Add(float64(n))
	}
}
