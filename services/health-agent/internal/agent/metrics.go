package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/services/health-agent/internal/gossip"
	"github.com/pairdb/pairdb/services/health-agent/internal/verdict"
)

// Metrics of the agent, those of gossip included.
type Metrics struct {
	live, ready, reachable prometheus.Gauge
	degraded               *prometheus.GaugeVec
	reports                *prometheus.CounterVec
	gossip                 *gossip.Metrics
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	m := &Metrics{
		live:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "pairdb_health_live", Help: "1 while the verdict is that the node must not be started again."}),
		ready:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "pairdb_health_ready", Help: "1 while the verdict is that the node should get requests."}),
		reachable: prometheus.NewGauge(prometheus.GaugeOpts{Name: "pairdb_health_node_reachable", Help: "1 while the storage node answers."}),
		degraded: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pairdb_health_degraded", Help: "1 for each word of what does not work as it should while requests are served.",
		}, []string{"reason"}),
		reports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pairdb_health_reports_total", Help: "Reports to the storage node by result: ok, failed.",
		}, []string{"result"}),
		gossip: gossip.NewMetrics(),
	}
	for _, w := range verdict.All() {
		m.degraded.WithLabelValues(string(w))
	}
	for _, result := range []string{"ok", "failed"} {
		m.reports.WithLabelValues(result)
	}
	return m
}

// Register adds the metrics to a registry, with the node's id as a label of each.
func (m *Metrics) Register(r prometheus.Registerer, nodeID string) {
	r = prometheus.WrapRegistererWith(prometheus.Labels{"node_id": nodeID}, r)
	r.MustRegister(m.live, m.ready, m.reachable, m.degraded, m.reports)
	m.gossip.Register(r)
}

func (m *Metrics) show(v verdict.Verdict, reachable bool) {
	m.live.Set(number(v.Live))
	m.ready.Set(number(v.Ready))
	m.reachable.Set(number(reachable))
	bits := verdict.Bits(v.Degraded)
	for i, w := range verdict.All() {
		m.degraded.WithLabelValues(string(w)).Set(number(bits&(1<<i) != 0))
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
