package gossip

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Types of messages that are counted, a closed set.
const (
	msgPing             = "ping"               // a probe of ours that was answered
	msgPingAnswered     = "ping_answered"      // a probe of another that we answered
	msgPushPullSent     = "push_pull_sent"     // our state, sent
	msgPushPullReceived = "push_pull_received" // the state of another
	msgAlive            = "alive"              // somebody says that a member is there
	msgJoin             = "join"               // a member came
	msgUpdate           = "update"             // a member says something new of itself
	msgLeave            = "leave"              // a member went, or was given up
	msgDeclarations     = "declarations"       // declarations, received
)

// Metrics of gossip.
type Metrics struct {
	total, healthy prometheus.Gauge
	members        *prometheus.GaugeVec
	joined         prometheus.Gauge
	messages       *prometheus.CounterVec
	roundTrip      prometheus.Histogram
	refused        *prometheus.CounterVec
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	m := &Metrics{
		total: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pairdb_gossip_members_total", Help: "Declared members of the cluster, this one included, without those that were removed.",
		}),
		healthy: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pairdb_gossip_members_healthy", Help: "Members of pairdb_gossip_members_total that answer, this one included.",
		}),
		members: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pairdb_gossip_members", Help: "Members of pairdb_gossip_members_total by what is seen of them: alive, suspect, down, unseen, left.",
		}, []string{"liveness"}),
		joined: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pairdb_gossip_joined", Help: "1 when a seed has answered or none was needed.",
		}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pairdb_gossip_messages_total",
			Help: "Messages by type: ping (answered to us), ping_answered (by us), push_pull_sent, push_pull_received, alive, join, update, leave, declarations.",
		}, []string{"type"}),
		roundTrip: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pairdb_gossip_messages_duration_seconds", Help: "Round trips of probes that were answered directly.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 14), // 100 µs to 0.8 s; later than 0.5 s is no direct answer
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pairdb_gossip_refused_total",
			Help: "What was refused and changed nothing, by reason: label, encryption, packet, meta, state, message, members, duplicate-id.",
		}, []string{"reason"}),
	}
	for _, t := range []string{msgPing, msgPingAnswered, msgPushPullSent, msgPushPullReceived, msgAlive, msgJoin, msgUpdate, msgLeave, msgDeclarations} {
		m.messages.WithLabelValues(t)
	}
	for _, reason := range refusedReasons {
		m.refused.WithLabelValues(reason)
	}
	m.show(View{})
	return m
}

// Register adds the metrics to a registry.
func (m *Metrics) Register(r prometheus.Registerer) {
	r.MustRegister(m.total, m.healthy, m.members, m.joined, m.messages, m.roundTrip, m.refused)
}

// show sets the gauges from a view.
func (m *Metrics) show(v View) {
	counts := [livenesses]int{}
	total := 0
	for _, member := range v.Members {
		if !member.gone() {
			counts[member.Liveness]++
			total++
		}
	}
	for l, n := range counts {
		m.members.WithLabelValues(Liveness(l).String()).Set(float64(n))
	}
	m.total.Set(float64(total))
	m.healthy.Set(float64(counts[Alive]))
	joined := 0.0
	if v.Joined {
		joined = 1
	}
	m.joined.Set(joined)
}
