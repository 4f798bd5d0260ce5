package worker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

// Metrics of a worker. Every series is there from the start: one that comes with its first event has no
// rate.
type Metrics struct {
	connected, running, slots prometheus.Gauge
	jobs                      *prometheus.CounterVec
	seconds                   *prometheus.HistogramVec
	bytes                     *prometheus.CounterVec
	entries                   *prometheus.CounterVec
	polls                     *prometheus.CounterVec
	leases                    prometheus.Counter
	heartbeats                *prometheus.CounterVec
	abandons                  *prometheus.CounterVec
	throttled                 prometheus.Counter
}

// The closed sets of labels.
var (
	kinds        = []string{"merge", "scrub"}
	results      = []string{"installed", "rejected", "fenced", "stopped", "shutdown", "failed", "unknown"}
	abandonNames = map[compactionv1.AbandonRequest_Reason]string{
		compactionv1.AbandonRequest_REASON_NO_SPACE:           "no_space",
		compactionv1.AbandonRequest_REASON_IO_ERROR:           "io_error",
		compactionv1.AbandonRequest_REASON_CORRUPT_INPUT:      "corrupt_input",
		compactionv1.AbandonRequest_REASON_SHUTDOWN:           "shutdown",
		compactionv1.AbandonRequest_REASON_UNSUPPORTED_FORMAT: "unsupported_format",
	}
)

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "pairdb_compactor_" + name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "pairdb_compactor_" + name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pairdb_compactor_" + name, Help: help}, labels)
	}
	m := &Metrics{
		connected: gauge("connected", "1 while the storage node answers."),
		running:   gauge("running_jobs", "Jobs under way."),
		slots:     gauge("slots", "Jobs that may be under way at once (PAIRDB_COMPACTOR_SLOTS, and no more than processors)."),
		jobs:      counters("jobs_total", "Jobs that ended, by kind and result: installed, rejected, fenced, stopped, shutdown, failed, unknown.", "kind", "result"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pairdb_compactor_job_seconds", Help: "How long jobs took, verification by the node included.",
			Buckets:                     prometheus.ExponentialBuckets(0.05, 2, 14), // 50 ms to 7 min
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
		}, []string{"kind"}),
		bytes:      counters("bytes_total", "Bytes of tables, read and written.", "direction"),
		entries:    counters("entries_total", "Entries by what became of them: out, shadowed, joined, collected, dropped (not owned any more).", "fate"),
		polls:      counters("polls_total", "Calls that asked for jobs, by answer: jobs, empty (after 20 s without one), error.", "result"),
		leases:     counter("leases_total", "Jobs that the node leased to this worker."),
		heartbeats: counters("heartbeats_total", "Heartbeats of jobs, by answer: continue, stop, error.", "result"),
		abandons:   counters("abandons_total", "Jobs that were given back, by reason: no_space, io_error, corrupt_input, shutdown, unsupported_format.", "reason"),
		throttled:  counter("throttled_seconds_total", "Time that jobs waited for their share of PAIRDB_COMPACTION_BYTES_PER_SECOND."),
	}
	m.begin()
	return m
}

// begin makes the series of every label.
func (m *Metrics) begin() {
	for _, kind := range kinds {
		m.seconds.WithLabelValues(kind)
		for _, result := range results {
			m.jobs.WithLabelValues(kind, result)
		}
	}
	for vec, values := range map[*prometheus.CounterVec][]string{
		m.bytes: {"read", "written"}, m.entries: {"out", "shadowed", "joined", "collected", "dropped"},
		m.polls: {"jobs", "empty", "error"}, m.heartbeats: {"continue", "stop", "error"},
	} {
		for _, v := range values {
			vec.WithLabelValues(v)
		}
	}
	for _, reason := range abandonNames {
		m.abandons.WithLabelValues(reason)
	}
}

// Register adds the metrics to a registry.
func (m *Metrics) Register(r prometheus.Registerer) {
	r.MustRegister(m.connected, m.running, m.slots, m.jobs, m.seconds, m.bytes, m.entries, m.polls, m.leases, m.heartbeats, m.abandons, m.throttled)
}

// polled notes the answer to a call for jobs.
func (m *Metrics) polled(jobs int, err error) {
	result := "empty"
	switch {
	case err != nil:
		result = "error"
	case jobs > 0:
		result = "jobs"
	}
	m.polls.WithLabelValues(result).Inc()
	m.leases.Add(float64(jobs))
}

// beat notes the answer to a heartbeat.
func (m *Metrics) beat(r *compactionv1.HeartbeatResponse, err error) {
	result := "stop"
	switch {
	case err != nil:
		result = "error"
	case r.GetVerdict() == compactionv1.HeartbeatResponse_VERDICT_CONTINUE:
		result = "continue"
	}
	m.heartbeats.WithLabelValues(result).Inc()
}

// count notes the end of an attempt.
func (m *Metrics) count(a *attempt, s *compactionv1.JobStats, result string) {
	kind := kindName(a.g.Job.Kind)
	m.jobs.WithLabelValues(kind, result).Inc()
	m.seconds.WithLabelValues(kind).Observe(time.Since(a.started).Seconds())
	m.bytes.WithLabelValues("read").Add(float64(s.GetBytesRead()))
	m.bytes.WithLabelValues("written").Add(float64(s.GetBytesWritten()))
	for fate, n := range map[string]uint64{
		"out": s.GetEntriesOut(), "shadowed": s.GetShadowed(), "joined": s.GetJoined(), "collected": s.GetCollected(), "dropped": s.GetDropped(),
	} {
		m.entries.WithLabelValues(fate).Add(float64(n))
	}
}
