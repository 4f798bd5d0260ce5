// Package tracing looks at the traces of a pod of the built binaries, as a collector gets them. It never
// imports a service.
package tracing

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
	"github.com/pairdb/pairdb/libs/tracing/tracingtest"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

const compaction = "pairdb.compaction.v1.CompactionService/"

// Two processes work on one compaction: what the one does must be found from what the other did.
func TestCompactionOfAPodIsTracedAcrossItsProcesses(t *testing.T) {
	collector := tracingtest.Start(t)
	pods, _ := podtest.Start(t, localpod.Options{Env: append(collector.Environment(), "PAIRDB_COMPACTION_LOCAL=never")})
	pod := pods.All()[0]
	c := podtest.Client(t, pod.Addr, client.Options{})
	for round := range 3 {
		for i := range 50 {
			_, err := c.Put(t.Context(), fmt.Sprint("k", i), []byte(strings.Repeat(fmt.Sprint(round), 100)))
			require.NoError(t, err)
		}
		_, err := c.Admin().Flush(t.Context(), &adminv1.FlushRequest{})
		require.NoError(t, err)
	}
	stream, err := c.Admin().Compact(t.Context(), &adminv1.CompactRequest{})
	require.NoError(t, err)
	for err == nil {
		_, err = stream.Recv()
	}
	installed := func() []tracingtest.Span {
		return slices.DeleteFunc(collector.Named("attempt"), func(s tracingtest.Span) bool { return s.Attributes["pairdb.job_result"] != "installed" })
	}
	podtest.Eventually(t, 30*time.Second, "an attempt is traced", func() bool { return len(installed()) > 0 })
	pods.Stop() // what is left is sent

	attempt := installed()[0]
	require.Equal(t, "pairdb-compactor", attempt.Service)
	require.Empty(t, attempt.ParentID)
	require.NotEmpty(t, attempt.Attributes["pairdb.job"])

	// The lease: a span of the node, that says which jobs it gave, below a call of the compactor.
	require.Len(t, attempt.Links, 1)
	leases := slices.DeleteFunc(collector.Named(compaction+"Lease"), func(s tracingtest.Span) bool { return s.SpanID != attempt.Links[0] })
	require.Len(t, leases, 1)
	require.Equal(t, "pairdb-storage-node", leases[0].Service)
	require.Contains(t, leases[0].Attributes["pairdb.jobs"], attempt.Attributes["pairdb.job"])
	require.NotEmpty(t, leases[0].ParentID)

	// The report: below the attempt, first as a call of the compactor, then in the node.
	calls := slices.DeleteFunc(collector.Below(attempt), func(s tracingtest.Span) bool { return s.Name != compaction+"Complete" })
	require.Len(t, calls, 1)
	require.Equal(t, "pairdb-compactor", calls[0].Service)
	taken := collector.Below(calls[0])
	require.Len(t, taken, 1)
	require.Equal(t, "pairdb-storage-node", taken[0].Service)
	require.Equal(t, attempt.Attributes["pairdb.job"], taken[0].Attributes["pairdb.job"])
	require.Equal(t, attempt.TraceID, taken[0].TraceID)

	// Writes have their stages.
	write := collector.Named("pairdb.storage.v1.StorageService/Write")
	require.NotEmpty(t, write)
	var stages []string
	for _, s := range collector.Below(write[0]) {
		stages = append(stages, s.Name)
	}
	require.Subset(t, stages, []string{"limits", "join", "queue", "log", "memtable", "sync"})
}
