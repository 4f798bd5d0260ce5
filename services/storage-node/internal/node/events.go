package node

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// events turns the engine's events into log lines, into durations for metrics, and into the state
// that probes see. The engine calls it with one event at a time.
type events struct {
	log   *slog.Logger
	state *state
	// poisoned is called once, with the reason.
	poisoned func(error)

	flushDuration, jobDuration prometheus.Histogram
	tablesIn, tablesOut        prometheus.Histogram
	ofEngine, ofBoard          *prometheus.CounterVec // by kind, a closed set
	// replayed of toReplay bytes of the commit log are: they are there while the engine's own numbers are
	// not yet.
	replayed, toReplay prometheus.Gauge
	lastProgress       int64 // tenths of the recovery that were logged
}

func newEvents(log *slog.Logger, s *state, labels prometheus.Labels, poisoned func(error)) *events {
	byKind := func(name, help string, last int, kind func(int) string) *prometheus.CounterVec {
		vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pairdb_" + name, Help: help, ConstLabels: labels}, []string{"kind"})
		for k := range last + 1 {
			vec.WithLabelValues(kind(k))
		}
		return vec
	}
	seconds := prometheus.ExponentialBucketsRange(0.01, 600, 16)
	count := prometheus.ExponentialBuckets(1, 2, 8)
	return &events{
		log: log, state: s, poisoned: poisoned,
		replayed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pairdb_commitlog_recovery_replayed_bytes", ConstLabels: labels, Help: "Bytes of the commit log that this start has replayed so far.",
		}),
		toReplay: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pairdb_commitlog_recovery_bytes", ConstLabels: labels, Help: "Bytes of the commit log that this start has to replay.",
		}),
		flushDuration: histogram("memtable_flush_duration_seconds", "Time to write a memtable to tables.", labels, seconds),
		jobDuration:   histogram("compaction_job_duration_seconds", "Time from the lease of a compaction job to its installation.", labels, seconds),
		tablesIn:      histogram("compaction_tables_input", "Tables that an installed compaction job read.", labels, count),
		tablesOut:     histogram("compaction_tables_output", "Tables that an installed compaction job wrote.", labels, count),
		ofEngine: byKind("storage_events_total", "Events of the engine, as they are in the log, by kind.", int(engine.EventClosed),
			func(k int) string { return engine.EventKind(k).String() }),
		ofBoard: byKind("compaction_events_total", "Events of compaction jobs, leases and workers, as they are in the log, by kind.", int(jobs.EventCleanup),
			func(k int) string { return jobs.EventKind(k).String() }),
	}
}

func (v *events) collectors() []prometheus.Collector {
	return []prometheus.Collector{v.flushDuration, v.jobDuration, v.tablesIn, v.tablesOut, v.ofEngine, v.ofBoard, v.replayed, v.toReplay}
}

// handle takes one event.
func (v *events) handle(e engine.Event) {
	v.ofEngine.WithLabelValues(e.Kind.String()).Inc()
	switch e.Kind {
	case engine.EventRecovery:
		v.recovery(e)
		return
	case engine.EventJob:
		if e.Job != nil {
			v.job(*e.Job)
		}
		return
	case engine.EventFlushed:
		v.flushDuration.Observe(e.Duration.Seconds())
	case engine.EventPressure:
		v.state.set(func(s *state) { s.pressure = e.Reason })
	case engine.EventDiskSpace:
		v.state.set(func(s *state) {
			s.disk, s.usage = e.Space, vfs.Usage{TotalBytes: uint64(e.Total), FreeBytes: uint64(e.Bytes)}
		})
	case engine.EventQuarantined:
		v.state.set(func(s *state) { s.quarantined++ })
	}
	v.log.LogAttrs(context.Background(), level(e.Kind), e.Kind.String(), attributes(e)...)
	if e.Kind == engine.EventPoisoned {
		v.poisoned(e.Err)
	}
}

// recovery notes how far the replay of the log is, and logs every tenth of it.
func (v *events) recovery(e engine.Event) {
	v.state.set(func(s *state) { s.recovered, s.recoverTotal = e.Bytes, e.Total })
	v.replayed.Set(float64(e.Bytes))
	v.toReplay.Set(float64(e.Total))
	if e.Total <= 0 {
		return
	}
	if tenth := e.Bytes * 10 / e.Total; tenth > v.lastProgress || e.Bytes == 0 {
		v.lastProgress = tenth
		v.log.Info(e.Kind.String(), "bytes", e.Bytes, "total_bytes", e.Total)
	}
}

// level says how loud an event is.
func level(k engine.EventKind) slog.Level {
	switch k {
	case engine.EventPoisoned, engine.EventQuarantined:
		return slog.LevelError
	case engine.EventFlushFailed, engine.EventTornTail, engine.EventScheduleFailed, engine.EventPressure,
		engine.EventDiskSpace, engine.EventDeleteFailed, engine.EventPinBroken:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// attributes lists what an event says.
func attributes(e engine.Event) []slog.Attr {
	var out []slog.Attr
	if e.Reason != "" {
		out = append(out, slog.String("reason", e.Reason))
	}
	if e.Err != nil {
		out = append(out, slog.String("error", e.Err.Error()))
	}
	for _, n := range []struct {
		key   string
		value int64
	}{{"bytes", e.Bytes}, {"total_bytes", e.Total}, {"tables", int64(e.Tables)}, {"table", int64(e.Table)}, {"sequence", int64(e.Seq)}} {
		if n.value != 0 {
			out = append(out, slog.Int64(n.key, n.value))
		}
	}
	if e.Duration > 0 {
		out = append(out, slog.Duration("took", e.Duration))
	}
	return out
}

// job logs what became of compaction jobs. Leases and heartbeats are many: they are for debugging.
func (v *events) job(e jobs.Event) {
	v.ofBoard.WithLabelValues(e.Kind.String()).Inc()
	level := slog.LevelDebug
	switch e.Kind {
	case jobs.EventInstalled:
		level = slog.LevelInfo
		v.jobDuration.Observe(e.Duration.Seconds())
		v.tablesIn.Observe(float64(e.Inputs))
		v.tablesOut.Observe(float64(e.Outputs))
	case jobs.EventWorkersGone:
		level = slog.LevelWarn
		v.state.set(func(s *state) { s.noWorkers = true })
	case jobs.EventWorkersBack:
		level = slog.LevelInfo
		v.state.set(func(s *state) { s.noWorkers = false })
	case jobs.EventRejected, jobs.EventExpired, jobs.EventStalled, jobs.EventAbandoned, jobs.EventLocal, jobs.EventNoSpace, jobs.EventCleanup:
		level = slog.LevelWarn
	case jobs.EventQuarantined, jobs.EventCorrupt:
		level = slog.LevelError
	}
	attrs := []slog.Attr{slog.String("kind", e.Kind.String())}
	if e.Key.ID != 0 {
		attrs = append(attrs, slog.String("job", e.Key.String()), slog.String("origin", e.Origin.String()))
	}
	if e.Worker != "" {
		attrs = append(attrs, slog.String("worker", e.Worker))
	}
	if e.Reason != "" {
		attrs = append(attrs, slog.String("reason", e.Reason))
	}
	if e.Inputs > 0 || e.Outputs > 0 {
		attrs = append(attrs, slog.Int("inputs", e.Inputs), slog.Int("outputs", e.Outputs),
			slog.Int64("bytes_in", e.BytesIn), slog.Int64("bytes_out", e.BytesOut))
	}
	if e.Duration > 0 {
		attrs = append(attrs, slog.Duration("took", e.Duration))
	}
	v.log.LogAttrs(context.Background(), level, "compaction", attrs...)
}
