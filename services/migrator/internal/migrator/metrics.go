package migrator

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/services/migrator/internal/move"
	"github.com/pairdb/pairdb/services/migrator/internal/plan"
)

// Metrics of a migrator: its own, those of its moves and those of what it does without being told.
type Metrics struct {
	connected, running, slots prometheus.Gauge
	move                      *move.Metrics
	plan                      *plan.Metrics
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "pairdb_migrator_" + name, Help: help})
	}
	return &Metrics{
		connected: gauge("connected", "1 while the storage node answers."),
		running:   gauge("running_moves", "Moves under way, those that follow among them."),
		slots:     gauge("slots", "Moves that may be under way at once (PAIRDB_MIGRATOR_MOVES); those that have caught up and follow do not count."),
		move:      move.NewMetrics(), plan: plan.NewMetrics(),
	}
}

// Register adds the metrics to a registry.
func (m *Metrics) Register(r prometheus.Registerer) {
	r.MustRegister(m.connected, m.running, m.slots)
	m.move.Register(r)
	m.plan.Register(r)
}
