package identity

import "github.com/prometheus/client_golang/prometheus"

// collector shows a Source, or that there is none.
type collector struct {
	s                          *Source // nil: connections are not encrypted
	expires, reloads, refusals *prometheus.Desc
}

// NewCollector returns the metrics of a Source; nil is a process without TLS.
func NewCollector(s *Source, labels prometheus.Labels) prometheus.Collector {
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("pairdb_tls_"+name, help, variable, labels)
	}
	return &collector{
		s:        s,
		expires:  desc("certificate_expiry_timestamp_seconds", "When the certificate in use is over, in Unix time; 0 without TLS."),
		reloads:  desc("certificate_reloads_total", "Changes of the files of the certificate: result ok (it is in use) or failed (the one before stays).", "result"),
		refusals: desc("refusals_total", "Connections (what=handshake) and calls (what=call) that were refused for the certificate of who made them.", "what"),
	}
}

func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.expires, c.reloads, c.refusals} {
		out <- d
	}
}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	var expires, ok, failed, handshakes, calls float64
	if s := c.s; s != nil {
		expires = float64(s.Expires().Unix())
		ok, failed = float64(s.reloads.Load()), float64(s.failures.Load())
		handshakes, calls = float64(s.refusals.handshakes.Load()), float64(s.refusals.calls.Load())
	}
	counter := func(d *prometheus.Desc, v float64, label string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, label)
	}
	out <- prometheus.MustNewConstMetric(c.expires, prometheus.GaugeValue, expires)
	counter(c.reloads, ok, "ok")
	counter(c.reloads, failed, "failed")
	counter(c.refusals, handshakes, "handshake")
	counter(c.refusals, calls, "call")
}
