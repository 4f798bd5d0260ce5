package servicetest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
)

// historic are the metrics of the first design. Dashboards know them: their names and labels stay.
var historic = strings.Fields(`
	pairdb_storage_write_requests_total pairdb_storage_write_requests_duration_seconds pairdb_storage_write_requests_bytes
	pairdb_storage_read_requests_total pairdb_storage_read_requests_duration_seconds pairdb_storage_read_requests_bytes
	pairdb_storage_repair_requests_total pairdb_storage_repair_requests_duration_seconds
	pairdb_cache_hits_total pairdb_cache_misses_total pairdb_cache_evictions_total pairdb_cache_size_bytes pairdb_cache_entries_total
	pairdb_memtable_size_bytes pairdb_memtable_entries_total pairdb_memtable_flushes_total pairdb_memtable_flush_duration_seconds
	pairdb_sstable_count_by_level pairdb_sstable_size_bytes_by_level pairdb_sstable_reads_total pairdb_sstable_read_duration_seconds
	pairdb_sstable_writes_total pairdb_sstable_write_duration_seconds
	pairdb_commitlog_segments_total pairdb_commitlog_size_bytes pairdb_commitlog_appends_total pairdb_commitlog_append_duration_seconds
	pairdb_commitlog_syncs_total pairdb_commitlog_sync_duration_seconds
	pairdb_compaction_jobs_total pairdb_compaction_job_duration_seconds pairdb_compaction_bytes_processed_total
	pairdb_compaction_bytes_written_total pairdb_compaction_tables_input pairdb_compaction_tables_output
	pairdb_gossip_members_total pairdb_gossip_members_healthy pairdb_gossip_messages_total pairdb_gossip_messages_duration_seconds
	pairdb_system_disk_usage_bytes pairdb_system_disk_available_bytes pairdb_system_disk_usage_percent
	pairdb_system_memory_usage_bytes pairdb_system_goroutines_total`)

// Metrics checks that the section of docs/METRICS.md about a binary says what its registry has; with
// -update it writes it. The process must be as complete as it gets: what registers later is missing.
//
// Every metric must have its series from the start: make the children of a vector for all values of its
// labels, which are a closed set. A counter that comes with its first event has no rate for it.
func Metrics(t *testing.T, binary string, r *prometheus.Registry) {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	var rows, names []string
	for _, f := range families {
		names = append(names, f.GetName())
		if ours(f.GetName()) {
			rows = append(rows, metricRow(t, f))
		}
	}
	for _, name := range described(t, r) {
		require.Contains(t, names, name, "%s is registered and has no series: make them for all values of its labels", name)
	}
	head := fmt.Sprintf("## %s\n\n| metric | type | labels | unit | historic | what it says |\n|---|---|---|---|---|---|\n", binary)
	Section(t, "docs/METRICS.md", binary, head+strings.Join(rows, ""))
}

// ours reports whether a metric is not one of the Go runtime, the process or the metrics' own handler.
func ours(name string) bool { return strings.HasPrefix(name, "pairdb_") }

func metricRow(t *testing.T, f *dto.MetricFamily) string {
	t.Helper()
	name := f.GetName()
	require.NotEmpty(t, f.GetHelp(), "%s says nothing", name)
	kind := strings.ToLower(f.GetType().String())
	var labels []string
	for _, m := range f.GetMetric() {
		if h := m.GetHistogram(); h != nil && h.Schema != nil {
			kind = "histogram, native too"
		}
		for _, l := range m.GetLabel() {
			if l.GetName() != "node_id" && !slices.Contains(labels, "`"+l.GetName()+"`") {
				labels = append(labels, "`"+l.GetName()+"`")
			}
		}
	}
	mark := ""
	if slices.Contains(historic, name) {
		mark = "yes"
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s | %s | %s |\n", name, kind, strings.Join(labels, ", "), metricUnit(name), mark, strings.ReplaceAll(f.GetHelp(), "|", `\|`))
}

// metricUnit returns the unit that a name has in it; what has none is a number of things, or 0 and 1.
func metricUnit(name string) string {
	for _, unit := range []string{"seconds", "bytes", "percent"} {
		if slices.Contains(strings.Split(name, "_"), unit) {
			return unit
		}
	}
	return ""
}

// described returns the names of everything that is registered, with series or without.
func described(t *testing.T, r *prometheus.Registry) []string {
	t.Helper()
	descs := make(chan *prometheus.Desc)
	go func() {
		r.Describe(descs)
		close(descs)
	}()
	var out []string
	for d := range descs {
		_, rest, ok := strings.Cut(d.String(), "fqName: ")
		require.True(t, ok, "%s", d)
		quoted, err := strconv.QuotedPrefix(rest)
		require.NoError(t, err)
		name, err := strconv.Unquote(quoted)
		require.NoError(t, err)
		if ours(name) {
			out = append(out, name)
		}
	}
	return out
}
