package service

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry returns a metrics registry with what every process shows: build, Go runtime, process.
func NewRegistry(binary string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	b := ThisBuild()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "pairdb_build_info",
		Help: "Always 1; the labels describe the running binary.",
		ConstLabels: prometheus.Labels{
			"binary": binary, "version": b.Version, "revision": b.Revision, "go_version": b.Go,
		},
	})
	build.Set(1)
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}
