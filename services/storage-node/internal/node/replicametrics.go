package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/services/storage-node/internal/replica"
)

// replicaCollector shows what left and entered the node in bulk. While the engine is not open there is
// nothing.
type replicaCollector struct {
	counts         func() (replica.Counts, bool)
	counters       []replicaCounter
	streams, trees *prometheus.Desc
}

type replicaCounter struct {
	desc *prometheus.Desc
	of   func(*replica.Counts) uint64
}

func newReplicaCollector(labels prometheus.Labels, counts func() (replica.Counts, bool)) *replicaCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("pairdb_replica_"+name, help, nil, labels)
	}
	c := &replicaCollector{
		counts:  counts,
		streams: desc("ingest_streams", "Streams of records that come in from other nodes now."),
		trees:   desc("trees", "Trees of digests that are kept for comparing."),
	}
	for _, m := range []struct {
		name, help string
		of         func(*replica.Counts) uint64
	}{
		{"exported_records_total", "Records of snapshots that were sent for moves.", func(c *replica.Counts) uint64 { return c.ExportedRecords }},
		{"exported_bytes_total", "Bytes of keys and values of snapshots that were sent for moves.", func(c *replica.Counts) uint64 { return c.ExportedBytes }},
		{"followed_records_total", "Changes that were sent for moves.", func(c *replica.Counts) uint64 { return c.FollowedRecords }},
		{"followed_bytes_total", "Bytes of keys and values of changes that were sent for moves.", func(c *replica.Counts) uint64 { return c.FollowedBytes }},
		{"ingested_records_total", "Records of other nodes that were joined with those of this one.", func(c *replica.Counts) uint64 { return c.IngestedRecords }},
		{"ingested_bytes_total", "Bytes of keys and values of other nodes that were joined with those of this one.", func(c *replica.Counts) uint64 { return c.IngestedBytes }},
		{"skipped_records_total", "Records of other nodes that were passed over because their tenant is dropped.", func(c *replica.Counts) uint64 { return c.SkippedRecords }},
		{"renewed_trees_total", "Trees for which only what had changed since an earlier one was hashed.", func(c *replica.Counts) uint64 { return c.RenewedTrees }},
		{"digested_records_total", "Records that were hashed to compare nodes.", func(c *replica.Counts) uint64 { return c.DigestedRecords }},
		{"digested_bytes_total", "Bytes of keys and values that were hashed to compare nodes.", func(c *replica.Counts) uint64 { return c.DigestedBytes }},
		{"fetched_records_total", "Single records that were sent because two nodes differed.", func(c *replica.Counts) uint64 { return c.FetchedRecords }},
		{"fetched_bytes_total", "Bytes of keys and values of single records that were sent.", func(c *replica.Counts) uint64 { return c.FetchedBytes }},
	} {
		c.counters = append(c.counters, replicaCounter{desc(m.name, m.help), m.of})
	}
	return c
}

// Describe sends all descriptions.
func (c *replicaCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.counters {
		ch <- m.desc
	}
	ch <- c.streams
	ch <- c.trees
}

// Collect sends all metrics.
func (c *replicaCollector) Collect(ch chan<- prometheus.Metric) {
	counts, ok := c.counts()
	if !ok {
		return
	}
	for _, m := range c.counters {
		ch <- prometheus.MustNewConstMetric(m.desc, counter, float64(m.of(&counts)))
	}
	ch <- prometheus.MustNewConstMetric(c.streams, gauge, float64(counts.Streams))
	ch <- prometheus.MustNewConstMetric(c.trees, gauge, float64(counts.Trees))
}
