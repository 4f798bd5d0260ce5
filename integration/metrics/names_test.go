package metrics

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/localpod"
)

// historic are the 44 names of the first design, by the process that shows them. Existing dashboards read
// them: none may ever go or change.
var historic = []struct{ process, prefix, names string }{
	{"storage-node", "storage", "write_requests_total write_requests_duration_seconds write_requests_bytes read_requests_total " +
		"read_requests_duration_seconds read_requests_bytes repair_requests_total repair_requests_duration_seconds"},
	{"storage-node", "cache", "hits_total misses_total evictions_total size_bytes entries_total"},
	{"storage-node", "memtable", "size_bytes entries_total flushes_total flush_duration_seconds"},
	{"storage-node", "sstable", "count_by_level size_bytes_by_level reads_total read_duration_seconds writes_total write_duration_seconds"},
	{"storage-node", "commitlog", "segments_total size_bytes appends_total append_duration_seconds syncs_total sync_duration_seconds"},
	{"storage-node", "compaction", "jobs_total job_duration_seconds bytes_processed_total bytes_written_total tables_input tables_output"},
	{"storage-node", "system", "disk_usage_bytes disk_available_bytes disk_usage_percent memory_usage_bytes goroutines_total"},
	{"health-agent", "gossip", "members_total members_healthy messages_total messages_duration_seconds"},
}

func historicNames() (out []string) {
	for _, h := range historic {
		for _, name := range strings.Fields(h.names) {
			out = append(out, "pairdb_"+h.prefix+"_"+name)
		}
	}
	return out
}

func TestHistoricNamesAreAllThere(t *testing.T) {
	// A name that is missing is a panel that says "no data", which nobody notices before the night it
	// is needed. The endpoints of a pod together carry all 44.
	names := historicNames()
	require.Len(t, names, 44)
	pods, _ := podtest.Start(t, localpod.Options{})
	h := newHistory(pods.All()[0])
	missing := func() []string {
		h.look(t.Context())
		have := h.names()
		return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(have, n) })
	}
	deadline := time.Now().Add(20 * time.Second) // sidecars start after their node
	for len(missing()) > 0 && time.Now().Before(deadline) {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
	require.Empty(t, missing(), "historic metrics that no endpoint of the pod shows")
	for _, row := range page(t) {
		require.Equal(t, slices.Contains(names, row.name), row.historic, "docs/METRICS.md marks %s", row.name)
	}
}

// lintExceptions are historic names that promtool would have otherwise: they were gauges from the first
// day on.
var lintExceptions = []string{
	`pairdb_cache_entries_total non-counter metrics should not have "_total" suffix`,
	`pairdb_commitlog_segments_total non-counter metrics should not have "_total" suffix`,
	`pairdb_gossip_members_total non-counter metrics should not have "_total" suffix`,
	`pairdb_memtable_entries_total non-counter metrics should not have "_total" suffix`,
	`pairdb_system_goroutines_total non-counter metrics should not have "_total" suffix`,
}

func TestPromtoolFindsNothingElse(t *testing.T) {
	// Names that follow no rule are names that nobody finds, and units that are not said are read wrong.
	promtool, err := exec.LookPath("promtool")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("promtool is missing: apt-get install prometheus")
	} else if err != nil {
		t.Skip("promtool is missing, the names of metrics are not checked: apt-get install prometheus")
	}
	pods, _ := podtest.Start(t, localpod.Options{})
	names := historicNames()
	var all []string
	for _, addr := range endpoints(pods.All()[0]) {
		var text []byte
		podtest.Eventually(t, 20*time.Second, addr+" answers", func() bool {
			text, err = podtest.Page(t.Context(), addr)
			return err == nil
		})
		cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(string(text))
		out, err := cmd.CombinedOutput()
		const lintFailed = 3
		if err != nil {
			require.Equal(t, lintFailed, cmd.ProcessState.ExitCode(), "%s", out)
		}
		for line := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
			if line != "" {
				all = append(all, line)
			}
		}
	}
	for _, line := range all {
		require.Contains(t, lintExceptions, line)
	}
	for _, line := range lintExceptions {
		name, _, _ := strings.Cut(line, " ")
		require.Contains(t, names, name, "only historic names may be wrong")
	}
}
