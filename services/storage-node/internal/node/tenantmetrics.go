package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// tenantCollector shows what tenants used. How many have a name there is bounded by the registry.
type tenantCollector struct {
	usage                                      func() []tenant.Usage
	requests, bytes, refused, stored, inFlight *prometheus.Desc
}

func newTenantCollector(labels prometheus.Labels, usage func() []tenant.Usage) *tenantCollector {
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("pairdb_tenant_"+name, help+" tenant=\""+tenant.Others+"\" is all without a name here.", variable, labels)
	}
	return &tenantCollector{
		usage:    usage,
		requests: desc("requests_total", "Requests of a tenant that were taken up: a message of writes is one, an operation that reads too.", "tenant"),
		bytes:    desc("bytes_total", "Bytes of keys and values that requests of a tenant brought or read.", "tenant"),
		refused:  desc("quota_refusals_total", "Requests of a tenant that were refused, by the quota that they were over.", "tenant", "quota"),
		stored:   desc("stored_bytes", "Estimate of what tables hold of a tenant that is known.", "tenant"),
		inFlight: desc("requests_in_flight", "Requests of a tenant that are worked on, and its open streams.", "tenant"),
	}
}

// Describe sends all descriptions.
func (c *tenantCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.requests, c.bytes, c.refused, c.stored, c.inFlight} {
		ch <- d
	}
}

// Collect sends all metrics.
func (c *tenantCollector) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	for _, u := range c.usage() {
		send(c.requests, counter, float64(u.Requests), u.Name)
		send(c.bytes, counter, float64(u.Bytes), u.Name)
		send(c.stored, gauge, float64(u.StoredBytes), u.Name)
		send(c.inFlight, gauge, float64(u.InFlight), u.Name)
		for i, quota := range tenant.Quotas {
			send(c.refused, counter, float64(u.Refused[i]), u.Name, quota)
		}
	}
}
