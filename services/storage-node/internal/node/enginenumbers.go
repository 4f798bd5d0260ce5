package node

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/services/storage-node/internal/cache"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// This file has the numbers of the engine that say how far it is from its limits.

// whole makes a reader of a whole number.
func whole[N int | int64 | uint64](f func(*engine.Metrics) N) func(*engine.Metrics) float64 {
	return func(m *engine.Metrics) float64 { return float64(f(m)) }
}

// moreEngineNumbers are metrics that are one number of the engine: limits, what stands before them, and
// what the stages of writes, reads and merges did.
var moreEngineNumbers = []engineNumber{
	{"memtable_immutables_limit", "Memtables that may wait for their flush; with so many, writes wait.", gauge, whole(func(m *engine.Metrics) int { return m.Limits.Immutables })},
	{"memtable_rotations_total", "Memtables that were full and made way for the next.", counter, whole(func(m *engine.Metrics) uint64 { return m.Rotations })},
	{"memtable_flushed_bytes_total", "Bytes of tables that flushes wrote.", counter, whole(func(m *engine.Metrics) uint64 { return m.FlushBytes })},

	{"commitlog_groups_total", "Groups of batches that were written together.", counter, whole(func(m *engine.Metrics) uint64 { return m.Groups })},
	{"commitlog_payload_bytes_total", "Bytes of groups as they were written, packed.", counter, whole(func(m *engine.Metrics) uint64 { return m.Log.PayloadBytes })},
	{"commitlog_written_bytes_total", "Bytes written to the commit log, with frames and padding.", counter, whole(func(m *engine.Metrics) uint64 { return m.Log.WrittenBytes })},
	{"commitlog_failed_writes_total", "Writes to the commit log that failed; none of them was acknowledged.", counter, whole(func(m *engine.Metrics) uint64 { return m.Log.FailedWrites })},
	{"commitlog_rotations_total", "Segments that were full and made way for the next.", counter, whole(func(m *engine.Metrics) uint64 { return m.Log.Rotations })},
	{"commitlog_segments_created_total", "Segments that were made from nothing.", counter, whole(func(m *engine.Metrics) uint64 { return m.Log.Created })},
	{"commitlog_segments_recycled_total", "Segments that were made from one that was not needed any more.", counter, whole(func(m *engine.Metrics) uint64 { return m.Log.Recycled })},
	{"commitlog_segments_prewritten_total", "Segments whose blocks were written ahead, which makes syncs cheaper.", counter, whole(func(m *engine.Metrics) uint64 { return m.Log.Prewritten })},
	{"commitlog_segments_removed_total", "Segments that were deleted.", counter, whole(func(m *engine.Metrics) uint64 { return m.Log.Removed })},
	{"commitlog_segments_spare", "Segments that are kept to be used again.", gauge, whole(func(m *engine.Metrics) uint64 { return m.Log.SpareSegments })},
	{"commitlog_segments_pinned", "Holds on segments by followers of the change feed.", gauge, whole(func(m *engine.Metrics) uint64 { return m.Log.Pins })},
	{"commitlog_torn_bytes_total", "Bytes of unfinished ends that were cut at open.", counter, whole(func(m *engine.Metrics) uint64 { return m.TornTailBytes })},

	{"storage_changes_total", "Changes of keys that were committed.", counter, whole(func(m *engine.Metrics) uint64 { return m.Changes })},
	{"storage_change_bytes_total", "Bytes of committed changes, keys and records.", counter, whole(func(m *engine.Metrics) uint64 { return m.BatchBytes })},
	{"storage_write_stalls_total", "Times that all writes waited for a flush.", counter, whole(func(m *engine.Metrics) uint64 { return m.Stalls })},
	{"storage_write_stall_seconds_total", "Time that all writes waited for a flush.", counter, func(m *engine.Metrics) float64 { return m.StallTime.Seconds() }},
	{"storage_write_delay_seconds", "How long each write is delayed now.", gauge, func(m *engine.Metrics) float64 { return m.Pressure.Delay.Seconds() }},
	{"storage_applied_sequence", "Sequence of the newest write that is applied, durable or not.", gauge, whole(func(m *engine.Metrics) uint64 { return m.AppliedSeq })},
	{"storage_flushed_sequence", "Sequence up to which every write is in tables.", gauge, whole(func(m *engine.Metrics) uint64 { return m.FlushedSeq })},
	{"storage_tails_open", "Followers of the change feed that are open; watches are among them.", gauge, whole(func(m *engine.Metrics) int { return m.OpenTails })},
	{"storage_tail_pins", "Named pins of the change feed, which hold the log through restarts.", gauge, whole(func(m *engine.Metrics) int { return m.TailPins })},
	{"storage_tail_pins_limit", "Named pins that there may be.", gauge, whole(func(m *engine.Metrics) int { return m.Limits.TailPins })},
	{"storage_tail_retention_bytes", "Bytes of log that followers may hold beyond what recovery needs; then they break.", gauge, whole(func(m *engine.Metrics) int64 { return m.Limits.TailRetentionBytes })},
	{"storage_read_states_open", "Pictures of memtables and tables that readers hold.", gauge, whole(func(m *engine.Metrics) int64 { return m.Reads.ReadStates })},
	{"storage_versions_open", "Versions of the tree that readers, jobs and snapshots hold.", gauge, whole(func(m *engine.Metrics) int { return m.Versions })},
	{"storage_merged_reads_total", "Point reads that joined fragments which repairs left.", counter, whole(func(m *engine.Metrics) uint64 { return m.Reads.MergedReads })},

	{"sstable_open_limit", "Table readers that may be open.", gauge, whole(func(m *engine.Metrics) int { return m.Limits.OpenTables })},
	{"sstable_opens_total", "Table readers that were opened.", counter, whole(func(m *engine.Metrics) uint64 { return m.Reads.TableOpens })},
	{"sstable_obsolete", "Tables that wait for their deletion.", gauge, whole(func(m *engine.Metrics) int { return m.ObsoleteTables })},
	{"sstable_deleted_bytes_total", "Bytes of tables that were deleted because nothing needs them.", counter, whole(func(m *engine.Metrics) uint64 { return m.DeletedBytes })},
	{"sstable_ingests_total", "Sets of tables that were taken in as files.", counter, whole(func(m *engine.Metrics) uint64 { return m.Ingests })},
	{"sstable_ingested_total", "Tables that were taken in as files.", counter, whole(func(m *engine.Metrics) uint64 { return m.IngestedTables })},
	{"sstable_ingested_bytes_total", "Bytes of tables that were taken in as files.", counter, whole(func(m *engine.Metrics) uint64 { return m.IngestedBytes })},

	{"compaction_offered_total", "Compaction jobs that were offered to workers.", counter, whole(func(m *engine.Metrics) uint64 { return m.Board.Totals.Offered })},
	{"compaction_queue_limit", "Compaction jobs that are not done that there may be.", gauge, whole(func(m *engine.Metrics) int { return m.Board.MaxJobs })},
	{"compaction_worker_slots", "Jobs that the compactors which were seen lately take at once.", gauge, whole(func(m *engine.Metrics) (n int) {
		for _, w := range m.Board.Workers {
			if !w.Local {
				n += w.TotalSlots
			}
		}
		return n
	})},
	{"compaction_worker_losses_total", "Times that no compactor was seen for half a minute.", counter, whole(func(m *engine.Metrics) uint64 { return m.Board.Totals.WorkersGone })},
	{"compaction_space_refusals_total", "Times that a job had to wait for disk space for its outputs.", counter, whole(func(m *engine.Metrics) uint64 { return m.Board.Totals.HeadroomRefusals })},
	{"compaction_scrubbed_total", "Tables whose checksums were verified by a worker.", counter, whole(func(m *engine.Metrics) uint64 { return m.Board.Totals.Scrubbed })},
	{"compaction_corrupt_tables_total", "Damaged tables that a worker reported and the node has seen itself.", counter, whole(func(m *engine.Metrics) uint64 { return m.Board.Totals.CorruptTables })},
	{"compaction_level0_slow_tables", "Tables in level 0 from which on writes are delayed.", gauge, whole(func(m *engine.Metrics) int { return m.Limits.L0SlowTables })},
	{"compaction_level0_stop_tables", "Tables in level 0 from which on writes are refused.", gauge, whole(func(m *engine.Metrics) int { return m.Limits.L0StopTables })},
	{"compaction_debt_slow_bytes", "Compaction debt from which on writes are delayed.", gauge, whole(func(m *engine.Metrics) int64 { return m.Limits.DebtSlowBytes })},
	{"compaction_debt_stop_bytes", "Compaction debt from which on writes are refused.", gauge, whole(func(m *engine.Metrics) int64 { return m.Limits.DebtStopBytes })},
}

// stateCollector shows what of the engine has labels: jobs and pressure by state, levels and caches
// against their targets, and how many batches share a write of the log.
type stateCollector struct {
	metrics                                            func() (engine.Metrics, bool)
	made                                               time.Time
	jobs, leases, pressure, score, target              *prometheus.Desc
	capacity, inserts, refused, jobBytes, groupBatches *prometheus.Desc
}

func newStateCollector(labels prometheus.Labels, metrics func() (engine.Metrics, bool)) *stateCollector {
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("pairdb_"+name, help, variable, labels)
	}
	return &stateCollector{
		metrics:      metrics,
		made:         time.Now(),
		jobs:         desc("compaction_jobs", "Compaction jobs that are not done, by state: queued, leased, verifying, local (for the node alone).", "state"),
		leases:       desc("compaction_leases", "Leases that are held, by who holds them: the compactor (external) or the node (local).", "origin"),
		pressure:     desc("storage_write_pressure", "1 for what happens to writes now: none, delayed, refused.", "state"),
		score:        desc("sstable_level_score", "How full a level is: above 1 it is to be compacted.", "level"),
		target:       desc("sstable_level_target_bytes", "Bytes that a level should have at most; 0 for level 0, which is counted in tables, and for levels that are not used.", "level"),
		capacity:     desc("cache_capacity_bytes", "Bytes that the cache may have.", "cache"),
		inserts:      desc("cache_inserts_total", "Entries that the cache took.", "cache"),
		refused:      desc("cache_refused_total", "Entries that the cache did not take: too large, or read before a write that came first.", "cache"),
		jobBytes:     desc("compaction_installed_bytes_total", "Bytes of tables that installed compaction jobs read and wrote, by who merged.", "origin", "direction"),
		groupBatches: desc("commitlog_group_batches", "Batches that were written to the commit log together, and share a sync."),
	}
}

// Describe sends all descriptions.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.jobs, c.leases, c.pressure, c.score, c.target, c.capacity, c.inserts, c.refused, c.jobBytes, c.groupBatches} {
		ch <- d
	}
}

// Collect asks the engine and sends all metrics.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	m, ok := c.metrics()
	if !ok {
		return
	}
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	var byState [jobs.StateLocal + 1]int
	for i := range m.Board.Jobs {
		if s := m.Board.Jobs[i].State; !s.Terminal() {
			byState[s]++
		}
	}
	for s, n := range byState {
		send(c.jobs, gauge, float64(n), jobs.State(s).String())
	}
	var leases [jobs.Local + 1]int
	for _, w := range m.Board.Workers {
		if w.Local {
			leases[jobs.Local] += w.Leases
		} else {
			leases[jobs.External] += w.Leases
		}
	}
	for o, n := range leases {
		send(c.leases, gauge, float64(n), jobs.Origin(o).String())
	}
	c.collectPressure(send, &m)
	t := m.Board.Totals
	send(c.jobBytes, counter, float64(t.BytesInExternal), "external", "read")
	send(c.jobBytes, counter, float64(t.BytesOutExternal), "external", "written")
	send(c.jobBytes, counter, float64(t.BytesInLocal), "local", "read")
	send(c.jobBytes, counter, float64(t.BytesOutLocal), "local", "written")
	ch <- newGroupHistogram(c.groupBatches, &m, c.made)
}

// collectPressure sends what writes and reads stand before: pressure, levels and caches.
func (c *stateCollector) collectPressure(send func(*prometheus.Desc, prometheus.ValueType, float64, ...string), m *engine.Metrics) {
	p := m.Pressure
	send(c.pressure, gauge, boolean(!p.Refuse && p.Delay == 0), "none")
	send(c.pressure, gauge, boolean(!p.Refuse && p.Delay > 0), "delayed")
	send(c.pressure, gauge, boolean(p.Refuse), "refused")
	for level := range m.Levels {
		send(c.score, gauge, m.Levels[level].Score, strconv.Itoa(level))
		send(c.target, gauge, float64(m.Levels[level].TargetBytes), strconv.Itoa(level))
	}
	for name, cache := range map[string]cache.Metrics{"row": m.RowCache, "block": m.BlockCache} {
		send(c.capacity, gauge, float64(cache.CapacityBytes), name)
		send(c.inserts, counter, float64(cache.Inserts), name)
		send(c.refused, counter, float64(cache.Refused), name)
	}
}

// groupHistogram is a histogram of the engine's own counts, with classic and native buckets: the engine
// counts by powers of two, which are the native buckets of schema 0.
type groupHistogram struct {
	prometheus.Metric
	classic []*dto.Bucket
}

func newGroupHistogram(desc *prometheus.Desc, m *engine.Metrics, since time.Time) groupHistogram {
	native := map[int]int64{}
	var classic []*dto.Bucket
	var total uint64
	for i, n := range m.GroupSizes {
		total += n
		if n > 0 {
			native[i] = int64(n)
		}
		if i < engine.GroupSizeBuckets-1 {
			classic = append(classic, &dto.Bucket{UpperBound: proto.Float64(float64(uint64(1) << i)), CumulativeCount: proto.Uint64(total)})
		}
	}
	const schema, zeroThreshold = 0, 0.5 // no group is smaller than 1
	return groupHistogram{
		prometheus.MustNewConstNativeHistogram(desc, total, float64(m.GroupedBatches), native, nil, 0, schema, zeroThreshold, since),
		classic,
	}
}

// Write implements prometheus.Metric.
func (h groupHistogram) Write(out *dto.Metric) error {
	err := h.Metric.Write(out)
	out.GetHistogram().Bucket = h.classic
	return err
}
