package node

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
)

// moveCollector shows the moves and drains of the node. While the engine is not open there are none.
type moveCollector struct {
	counts                              func() (moves.Counts, bool)
	active, ended, bytes, lag, draining *prometheus.Desc
}

func newMoveCollector(labels prometheus.Labels, counts func() (moves.Counts, bool)) *moveCollector {
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("pairdb_"+name, help, variable, labels)
	}
	return &moveCollector{
		counts:   counts,
		active:   desc("move_active", "Moves from this node that are not over, by state.", "state"),
		ended:    desc("move_total", "Moves from this node that ended in a way; one that fails and is resumed counts again.", "purpose", "result"),
		bytes:    desc("move_bytes_total", "Bytes of keys and values that went to other nodes for moves from this one."),
		lag:      desc("move_lag_seconds", "How far the one that is farthest behind of those that follow this node is; grows while the migrator is silent."),
		draining: desc("drain_active", "1 while the node gives everything away."),
	}
}

// Describe sends all descriptions.
func (c *moveCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.active, c.ended, c.bytes, c.lag, c.draining} {
		ch <- d
	}
}

// Collect sends all metrics.
func (c *moveCollector) Collect(ch chan<- prometheus.Metric) {
	counts, ok := c.counts()
	if !ok {
		return
	}
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	for _, s := range moves.States {
		if !s.Ended() {
			send(c.active, gauge, float64(counts.Active[s]), strings.ToLower(s.String()))
		}
	}
	for _, p := range moves.Purposes {
		for _, r := range moves.Results {
			send(c.ended, counter, float64(counts.Ended[p][r]), strings.ToLower(p.String()), r.String())
		}
	}
	send(c.bytes, counter, float64(counts.Bytes))
	send(c.lag, gauge, counts.Lag.Seconds())
	send(c.draining, gauge, boolean(counts.Draining))
}
