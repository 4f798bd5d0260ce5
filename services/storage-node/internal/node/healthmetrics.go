package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/memory"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

// healthCollector shows how the node is, in every phase: what probes answer, and the disk, memory, files
// and goroutines that they are judged by.
type healthCollector struct {
	n       *Node
	numbers []healthNumber

	disk, memory, degraded, sidecar *prometheus.Desc
}

// healthNumber is a metric without labels of its own.
type healthNumber struct {
	desc  *prometheus.Desc
	value func(v *server.Vitals, goroutines int) float64
}

// healthNumbers are the metrics that are one number.
var healthNumbers = []struct {
	name, help string
	value      func(v *server.Vitals, goroutines int) float64
}{
	{"system_disk_usage_bytes", "Used bytes of the file system of the data directory.", func(v *server.Vitals, _ int) float64 { return float64(v.Disk.TotalBytes - v.Disk.FreeBytes) }},
	{"system_disk_available_bytes", "Bytes of that file system that this process may still use.", func(v *server.Vitals, _ int) float64 { return float64(v.Disk.FreeBytes) }},
	{"system_disk_usage_percent", "Used part of that file system, 0 to 100.", func(v *server.Vitals, _ int) float64 { return v.Disk.UsedPercent }},
	{"system_memory_usage_bytes", "Memory of the container without its page cache, or of the process where there is no limit.", func(v *server.Vitals, _ int) float64 { return float64(v.Memory.UsedBytes) }},
	{"system_memory_limit_bytes", "Limit of that memory: of the container, or what the machine has.", func(v *server.Vitals, _ int) float64 { return float64(v.Memory.LimitBytes) }},
	{"system_goroutines_total", "Goroutines.", func(_ *server.Vitals, goroutines int) float64 { return float64(goroutines) }},
	{"system_open_files", "File descriptors that are open.", func(v *server.Vitals, _ int) float64 { return float64(v.OpenFiles) }},
	{"system_open_files_limit", "File descriptors that may be open.", func(v *server.Vitals, _ int) float64 { return float64(v.OpenFilesLimit) }},
	{"storage_stalled_seconds", "Time in which writes that wait have not moved; 0 while none waits.", func(v *server.Vitals, _ int) float64 { return v.Stalled.Seconds() }},
	{"storage_ready", "1 if the node should get requests.", func(v *server.Vitals, _ int) float64 { return boolean(len(v.NotReady) == 0) }},
	{"storage_live", "1 unless the process should be started again.", func(v *server.Vitals, _ int) float64 { return boolean(len(v.NotLive) == 0) }},
}

func newHealthCollector(labels prometheus.Labels, n *Node) *healthCollector {
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("pairdb_"+name, help, variable, labels)
	}
	c := &healthCollector{
		n:        n,
		disk:     desc("storage_disk_state", "1 for the state that the disk is in: ok, warning, throttled, full.", "state"),
		memory:   desc("storage_memory_state", "1 for the state that memory is in: ok, high, critical.", "state"),
		degraded: desc("storage_degraded", "1 for each reason for which the node is degraded.", "reason"),
		sidecar:  desc("storage_sidecar_last_seen_seconds", "Time since a sidecar last called; absent for one that never did.", "sidecar"),
	}
	for _, h := range healthNumbers {
		c.numbers = append(c.numbers, healthNumber{desc(h.name, h.help), h.value})
	}
	return c
}

// Describe sends all descriptions.
func (c *healthCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, n := range c.numbers {
		ch <- n.desc
	}
	for _, d := range []*prometheus.Desc{c.disk, c.memory, c.degraded, c.sidecar} {
		ch <- d
	}
}

// Collect sends what NodeService.Health would answer now.
func (c *healthCollector) Collect(ch chan<- prometheus.Metric) {
	v := c.n.vitals()
	c.n.state.mu.Lock()
	goroutines := c.n.state.goroutines
	c.n.state.mu.Unlock()
	send := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, gauge, value, labels...)
	}
	for _, n := range c.numbers {
		send(n.desc, n.value(&v, goroutines))
	}
	for s := engine.SpaceOK; s <= engine.SpaceFull; s++ {
		send(c.disk, boolean(v.Disk.State == s.String()), s.String())
	}
	for s := memory.OK; s <= memory.Critical; s++ {
		send(c.memory, boolean(v.Memory.State == s.String()), s.String())
	}
	holds := map[string]bool{}
	for _, r := range v.Degraded {
		holds[r.Name] = true
	}
	for _, name := range degradedReasons {
		send(c.degraded, boolean(holds[name]), name)
	}
	for _, s := range v.Sidecars {
		send(c.sidecar, s.Ago.Round(time.Millisecond).Seconds(), s.Name)
	}
}
