package node

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// loads are what the gRPC servers of a node have in work: that for clients, and that for sidecars.
type loads struct {
	tcp, socket server.Load
}

// loadCollector shows them, beside the limits.
type loadCollector struct {
	loads     *loads
	pipelines func() (taken, waiting, limit int)

	inFlight, limit, refused, connections *prometheus.Desc
	streams, opened                       *prometheus.Desc
	writes, waiting, writesLimit          *prometheus.Desc
}

func newLoadCollector(labels prometheus.Labels, l *loads, pipelines func() (taken, waiting, limit int)) *loadCollector {
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("pairdb_"+name, help, variable, labels)
	}
	const where = ", by listener: tcp (clients), socket (sidecars)."
	return &loadCollector{
		loads: l, pipelines: pipelines,
		inFlight:    desc("grpc_requests_in_flight", "Calls that are worked on, streams among them"+where, "listener"),
		limit:       desc("grpc_requests_in_flight_limit", "Calls that may be worked on at once (PAIRDB_MAX_IN_FLIGHT)"+where, "listener"),
		refused:     desc("grpc_in_flight_refusals_total", "Calls that were refused because so many were worked on"+where, "listener"),
		connections: desc("grpc_connections_total", "Connections that were accepted"+where, "listener"),
		streams:     desc("grpc_streams_open", "Open streams, by listener and kind: pipeline, scan, watch, other (of operators and tools).", "listener", "kind"),
		opened:      desc("grpc_streams_total", "Streams that were opened, by listener and kind.", "listener", "kind"),
		writes:      desc("storage_pipeline_writes_in_flight", "Writes of pipelines that are not durable yet."),
		waiting:     desc("storage_pipelines_waiting", "Messages of pipelines that wait because so many writes are in work."),
		writesLimit: desc("storage_pipeline_writes_in_flight_limit", "Writes of pipelines that may be in work at once, over all of them (PAIRDB_MAX_IN_FLIGHT); 0 before the node serves."),
	}
}

// Describe implements prometheus.Collector.
func (c *loadCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.inFlight, c.limit, c.refused, c.connections, c.streams, c.opened, c.writes, c.waiting, c.writesLimit,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *loadCollector) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	for listener, l := range map[string]*server.Load{"tcp": &c.loads.tcp, "socket": &c.loads.socket} {
		now, limit := l.InFlight()
		send(c.inFlight, gauge, float64(now), listener)
		send(c.limit, gauge, float64(limit), listener)
		send(c.refused, counter, float64(l.Refused()), listener)
		send(c.connections, counter, float64(l.Connections()), listener)
		for k := range server.StreamKinds {
			open, opened := l.Streams(k)
			send(c.streams, gauge, float64(open), listener, k.String())
			send(c.opened, counter, float64(opened), listener, k.String())
		}
	}
	taken, waiting, limit := c.pipelines()
	send(c.writes, gauge, float64(taken))
	send(c.waiting, gauge, float64(waiting))
	send(c.writesLimit, gauge, float64(limit))
}

// picture is what the store and what stands beside it say at one scrape.
type picture struct {
	store     store.Counts
	tenants   tenant.Population
	snapshots int
}

// storeCollector shows what writes and reads turned out to be. While the engine is not open there is
// nothing.
type storeCollector struct {
	picture                                            func() (picture, bool)
	outcomes, remembered, replayed, misses, concurrent *prometheus.Desc
	scanRecords, scanBytes, watchChanges, watchBytes   *prometheus.Desc
	tenants, tenantsLimit, snapshots, snapshotsLimit   *prometheus.Desc
}

func newStoreCollector(labels prometheus.Labels, picture func() (picture, bool)) *storeCollector {
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("pairdb_"+name, help, variable, labels)
	}
	return &storeCollector{
		picture: picture,
		outcomes: desc("storage_write_outcomes_total",
			"Writes, deletes and repairs that were applied, each of a batch, by outcome: applied, duplicate, stale (dominated by what was there: nothing changed), sibling (kept beside a concurrent one), joined (a repair).", "outcome"),
		remembered:     desc("storage_idempotency_records_total", "Writes that were remembered under an idempotency key, for a day."),
		replayed:       desc("storage_idempotency_replays_total", "Repeats of such writes, which got the first answer and changed nothing."),
		misses:         desc("storage_read_misses_total", "Reads of keys without a live value, each of a batch: absent, deleted or expired."),
		concurrent:     desc("storage_read_siblings_total", "Reads that found concurrent values, each of a batch."),
		scanRecords:    desc("storage_scan_records_total", "Records that StreamKeys sent."),
		scanBytes:      desc("storage_scan_bytes_total", "Bytes of keys and records that StreamKeys sent."),
		watchChanges:   desc("storage_watch_changes_total", "Changes that Watch sent."),
		watchBytes:     desc("storage_watch_bytes_total", "Bytes of keys and records that Watch sent."),
		tenants:        desc("tenants", "Tenants that the node has a record of, by state: active, dropping, dropped.", "state"),
		tenantsLimit:   desc("tenants_limit", "Tenants that the node may have records of, dropped ones included."),
		snapshots:      desc("storage_snapshots_kept", "Named snapshots in the data directory."),
		snapshotsLimit: desc("storage_snapshots_kept_limit", "Named snapshots that there may be."),
	}
}

// Describe implements prometheus.Collector.
func (c *storeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.outcomes, c.remembered, c.replayed, c.misses, c.concurrent, c.scanRecords, c.scanBytes, c.watchChanges, c.watchBytes,
		c.tenants, c.tenantsLimit, c.snapshots, c.snapshotsLimit,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *storeCollector) Collect(ch chan<- prometheus.Metric) {
	p, ok := c.picture()
	if !ok {
		return
	}
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	n := p.store
	for outcome := causal.Applied; outcome <= causal.SiblingKept; outcome++ {
		send(c.outcomes, counter, float64(n.Outcomes[outcome]), strings.ToLower(outcome.String()))
	}
	send(c.outcomes, counter, float64(n.Joined), "joined")
	for d, v := range map[*prometheus.Desc]uint64{
		c.remembered: n.Remembered, c.replayed: n.Replayed, c.misses: n.Misses, c.concurrent: n.Concurrent, c.scanRecords: n.ScanRecords,
		c.scanBytes: n.ScanBytes, c.watchChanges: n.WatchChanges, c.watchBytes: n.WatchBytes,
	} {
		send(d, counter, float64(v))
	}
	for s := tenant.Active; s <= tenant.Dropped; s++ {
		send(c.tenants, gauge, float64(p.tenants.ByState[s]), s.String())
	}
	send(c.tenantsLimit, gauge, float64(p.tenants.Limit))
	send(c.snapshots, gauge, float64(p.snapshots))
	send(c.snapshotsLimit, gauge, maxSnapshots)
}
