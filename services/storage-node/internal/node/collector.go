package node

import (
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/services/storage-node/internal/cache"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
)

// collector shows the engine's own numbers. It asks the engine once a scrape; between scrapes they
// cost what the engine's counters cost. While the engine is not open there are none.
type collector struct {
	metrics func() (engine.Metrics, bool)
	numbers []number
	levels  [2]*prometheus.Desc // tables, bytes
	caches  [5]*prometheus.Desc // hits, misses, evictions, bytes, entries
	jobs    *prometheus.Desc
	install *prometheus.Desc
}

// number is a metric without labels of its own.
type number struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*engine.Metrics) float64
}

// engineNumber describes a number before it has its labels.
type engineNumber struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*engine.Metrics) float64
}

func newCollector(labels prometheus.Labels, metrics func() (engine.Metrics, bool)) *collector {
	c := &collector{metrics: metrics}
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("pairdb_"+name, help, variable, labels)
	}
	for _, n := range slices.Concat(engineNumbers, moreEngineNumbers) {
		c.numbers = append(c.numbers, number{desc(n.name, n.help), n.kind, n.value})
	}
	c.levels = [2]*prometheus.Desc{
		desc("sstable_count_by_level", "Live tables of a level.", "level"),
		desc("sstable_size_bytes_by_level", "Bytes of live tables of a level.", "level"),
	}
	c.caches = [5]*prometheus.Desc{
		desc("cache_hits_total", "Lookups that the cache answered.", "cache"),
		desc("cache_misses_total", "Lookups that the cache could not answer.", "cache"),
		desc("cache_evictions_total", "Entries that the cache gave up for others.", "cache"),
		desc("cache_size_bytes", "Bytes in the cache.", "cache"),
		desc("cache_entries_total", "Entries in the cache.", "cache"),
	}
	c.jobs = desc("compaction_jobs_total", "Compaction jobs, and attempts of them, that ended in a way.", "status")
	c.install = desc("compaction_installed_total", "Installed compaction jobs, by who merged: the compactor (external) or the node (local).", "origin")
	return c
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// engineNumbers are the metrics that are one number of the engine.
var engineNumbers = []engineNumber{
	{"memtable_size_bytes", "Bytes in the memtable that takes writes.", gauge, func(m *engine.Metrics) float64 { return float64(m.MemtableBytes) }},
	{"memtable_entries_total", "Entries in the memtable that takes writes.", gauge, func(m *engine.Metrics) float64 { return float64(m.MemtableEntries) }},
	{"memtable_immutables", "Memtables that wait for their flush.", gauge, func(m *engine.Metrics) float64 { return float64(m.Immutables) }},
	{"memtable_immutable_size_bytes", "Bytes in memtables that wait for their flush.", gauge, func(m *engine.Metrics) float64 { return float64(m.ImmutableBytes) }},
	{"memtable_flushes_total", "Memtables that became tables.", counter, func(m *engine.Metrics) float64 { return float64(m.Flushes) }},
	{"memtable_flush_failures_total", "Flushes that failed and are tried again.", counter, func(m *engine.Metrics) float64 { return float64(m.FlushFailures) }},

	{"commitlog_segments_total", "Live segments of the commit log.", gauge, func(m *engine.Metrics) float64 { return float64(m.LogSegments) }},
	{"commitlog_size_bytes", "Bytes of live segments of the commit log.", gauge, func(m *engine.Metrics) float64 { return float64(m.LogLiveBytes) }},
	{"commitlog_batches_total", "Batches written to the commit log.", counter, func(m *engine.Metrics) float64 { return float64(m.Batches) }},
	{"commitlog_queue_length", "Batches that wait for the commit log.", gauge, func(m *engine.Metrics) float64 { return float64(m.QueueLength) }},
	{"commitlog_torn_tails_total", "Unfinished ends of the commit log that were cut at open.", counter, func(m *engine.Metrics) float64 { return float64(m.TornTails) }},
	{"commitlog_recovery_seconds", "How long the last open took.", gauge, func(m *engine.Metrics) float64 { return m.RecoveryTime.Seconds() }},

	{"storage_writes_refused_total", "Writes that were refused because flushes, compactions or the disk are behind.", counter, func(m *engine.Metrics) float64 { return float64(m.Refused) }},
	{"storage_writes_delayed_total", "Writes that were delayed for the same reasons.", counter, func(m *engine.Metrics) float64 { return float64(m.Delayed) }},
	{"storage_write_delay_seconds_total", "Time that writes were delayed.", counter, func(m *engine.Metrics) float64 { return m.DelayTime.Seconds() }},
	{"storage_write_conflicts_total", "Writes that were decided again because the key changed meanwhile.", counter, func(m *engine.Metrics) float64 { return float64(m.Conflicts) }},
	{"storage_poisoned", "1 after a failed sync: the node takes no writes and ends.", gauge, func(m *engine.Metrics) float64 { return boolean(m.Poisoned) }},
	{"storage_visible_sequence", "Sequence of the newest durable write.", gauge, func(m *engine.Metrics) float64 { return float64(m.VisibleSeq) }},
	{"storage_disk_free_bytes", "Free bytes of the file system of the data directory.", gauge, func(m *engine.Metrics) float64 { return float64(m.DiskFreeBytes) }},
	{"storage_disk_total_bytes", "Size of the file system of the data directory.", gauge, func(m *engine.Metrics) float64 { return float64(m.DiskTotalBytes) }},
	{"storage_snapshots_open", "Snapshots that streams and pages hold.", gauge, func(m *engine.Metrics) float64 { return float64(m.Reads.Snapshots) }},
	{"storage_iterators_open", "Open iterators.", gauge, func(m *engine.Metrics) float64 { return float64(m.Reads.Iterators) }},

	{"sstable_filter_skips_total", "Tables that point reads did not search because a filter ruled them out.", counter, func(m *engine.Metrics) float64 { return float64(m.Reads.FilterSkips) }},
	{"sstable_probes_total", "Tables that point reads searched.", counter, func(m *engine.Metrics) float64 { return float64(m.Reads.TableProbes) }},
	{"sstable_open", "Open table readers.", gauge, func(m *engine.Metrics) float64 { return float64(m.Reads.OpenTables) }},
	{"sstable_quarantined", "Damaged tables that are set aside.", gauge, func(m *engine.Metrics) float64 { return float64(m.Quarantined) }},
	{"sstable_corrupt_reads_total", "Reads that met damage.", counter, func(m *engine.Metrics) float64 { return float64(m.Reads.CorruptReads) }},
	{"sstable_deleted_total", "Tables that were deleted because nothing needs them.", counter, func(m *engine.Metrics) float64 { return float64(m.DeletedTables) }},
	{"sstable_obsolete_size_bytes", "Bytes of tables that wait for their deletion.", gauge, func(m *engine.Metrics) float64 { return float64(m.ObsoleteBytes) }},

	{"compaction_workers", "Compactors that poll or hold leases; the node itself is not counted.", gauge, func(m *engine.Metrics) float64 { return float64(m.Board.ExternalWorkers) }},
	{"compaction_queue_length", "Compaction jobs that are not done.", gauge, func(m *engine.Metrics) float64 { return float64(len(m.Board.Jobs)) }},
	{"compaction_debt_bytes", "Bytes that compactions have to move until the tree has its shape.", gauge, func(m *engine.Metrics) float64 { return float64(m.DebtBytes) }},
	{"compaction_moves_total", "Changes of the tree without a merge: a table that moved to another level, or tables that a range delete covers.", counter, func(m *engine.Metrics) float64 { return float64(m.Moves) }},
	{"compaction_reserved_bytes", "Disk space promised to running jobs.", gauge, func(m *engine.Metrics) float64 { return float64(m.Board.ReservedBytes) }},
	{"compaction_bytes_processed_total", "Bytes that installed compaction jobs read.", counter, func(m *engine.Metrics) float64 {
		return float64(m.Board.Totals.BytesInExternal + m.Board.Totals.BytesInLocal)
	}},
	{"compaction_bytes_written_total", "Bytes that installed compaction jobs wrote.", counter, func(m *engine.Metrics) float64 {
		return float64(m.Board.Totals.BytesOutExternal + m.Board.Totals.BytesOutLocal)
	}},
}

// Describe sends all descriptions.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, n := range c.numbers {
		ch <- n.desc
	}
	for _, d := range c.levels {
		ch <- d
	}
	for _, d := range c.caches {
		ch <- d
	}
	ch <- c.jobs
	ch <- c.install
}

// Collect asks the engine and sends all metrics.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	m, ok := c.metrics()
	if !ok {
		return
	}
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	for _, n := range c.numbers {
		send(n.desc, n.kind, n.value(&m))
	}
	for level, l := range m.Reads.Levels {
		send(c.levels[0], gauge, float64(l.Tables), strconv.Itoa(level))
		send(c.levels[1], gauge, float64(l.Bytes), strconv.Itoa(level))
	}
	for name, cache := range map[string]cache.Metrics{"row": m.RowCache, "block": m.BlockCache} {
		send(c.caches[0], counter, float64(cache.Hits), name)
		send(c.caches[1], counter, float64(cache.Misses), name)
		send(c.caches[2], counter, float64(cache.Evictions), name)
		send(c.caches[3], gauge, float64(cache.Bytes), name)
		send(c.caches[4], gauge, float64(cache.Entries), name)
	}
	t := m.Board.Totals
	for status, n := range map[string]uint64{
		"installed": t.InstalledExternal + t.InstalledLocal, "rejected": t.Rejected, "expired": t.Expired, "stalled": t.Stalled,
		"abandoned": t.Abandoned, "fenced": t.Fenced, "cancelled": t.Cancelled, "quarantined": t.Quarantined,
	} {
		send(c.jobs, counter, float64(n), status)
	}
	send(c.install, counter, float64(t.InstalledExternal), "external")
	send(c.install, counter, float64(t.InstalledLocal), "local")
}
