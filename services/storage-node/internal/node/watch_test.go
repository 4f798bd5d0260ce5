package node

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/libs/vfs"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/memory"
)

// next returns the next event of health of a kind.
func (w *testNode) next(kind string) toldEvent {
	w.t.Helper()
	for {
		select {
		case e := <-w.told:
			if e.kind == kind {
				return e
			}
		case <-time.After(20 * time.Second):
			w.t.Fatalf("no event %s", kind)
		}
	}
}

// The danger: a disk that fills takes the node with it, nobody is told, or it needs a restart when there is
// room again.
func TestDiskFillsAndEmptiesUnderANode(t *testing.T) {
	fs := realFS()
	fs.usage.Store(disk(10))
	w := startNode(t, testConfig(t), fs).ready()
	require.NoError(t, w.put("k", "v"))
	value := strings.Repeat("v", 100<<10)

	fs.usage.Store(disk(91))
	changed := w.next(event.DiskThrottled).payload.(*eventv1.DiskChanged)
	require.InDelta(t, 91, changed.GetUsedPercent(), 0.1)
	require.EqualValues(t, 100<<30, changed.GetTotalBytes())
	degraded := w.next(event.NodeDegraded).payload.(*eventv1.NodeDegraded)
	require.Equal(t, "disk", degraded.GetReasons()[len(degraded.GetReasons())-1].GetName())
	require.NoError(t, w.put("small", "v"))
	err := w.put("large", value)
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	require.Equal(t, "DISK_THROTTLED", reason(err))
	_, err = w.admin.CreateTenant(t.Context(), &adminv1.CreateTenantRequest{Name: "new"})
	require.NoError(t, err, "the node's own records are not held back")

	fs.usage.Store(disk(97))
	w.next(event.DiskFull)
	err = w.put("small", "v")
	require.Equal(t, "DISK_FULL", reason(err))
	require.Equal(t, "v", w.get("k"))
	_, err = w.storage.Delete(t.Context(), &storagev1.DeleteRequest{Tenant: "t", Key: "small"})
	require.NoError(t, err)
	require.Empty(t, w.get("small"))
	code, body := w.probe("/ready")
	require.Equal(t, http.StatusOK, code, "reads are served")
	require.Contains(t, body, `"reason":"disk"`)
	st, err := w.admin.Status(t.Context(), &adminv1.StatusRequest{})
	require.NoError(t, err)
	require.Contains(t, strings.Join(st.GetDegraded(), "\n"), "disk: full: 97.0 % used")
	require.Equal(t, "refused", st.GetWritePressure())
	_, text := w.probe("/metrics")
	require.Contains(t, text, `pairdb_storage_disk_state{node_id="n1",state="full"} 1`)
	require.Contains(t, text, `pairdb_storage_disk_state{node_id="n1",state="ok"} 0`)
	require.Contains(t, text, `pairdb_storage_degraded{node_id="n1",reason="disk"} 1`)
	require.Contains(t, text, `pairdb_storage_ready{node_id="n1"} 1`)

	fs.usage.Store(disk(50))
	w.next(event.DiskRecovered)
	require.NoError(t, w.put("large", value))
	require.Equal(t, value, w.get("large"))
	require.NoError(t, w.end())
}

// The danger: the kernel kills a node that could have given its caches back; and one that gave them back
// keeps refusing writes.
func TestMemoryRunsShortAndComesBack(t *testing.T) {
	w := startNode(t, testConfig(t), realFS()).ready()
	require.NoError(t, w.put("k", "v"))
	numbers := func() engine.Metrics {
		m, ok := w.metrics()
		require.True(t, ok)
		return m
	}
	full := numbers().BlockCache.CapacityBytes

	w.machine.usedMiB.Store(900)
	eventually(t, "caches shrink", func() bool { return numbers().BlockCache.CapacityBytes <= full/2 })
	eventually(t, "the memtable is flushed", func() bool { return numbers().Flushes > 0 })
	require.NoError(t, w.put("k2", "v"))

	w.machine.usedMiB.Store(980)
	eventually(t, "writes are refused", func() bool { return reason(w.put("k3", "v")) == "MEMORY_PRESSURE" })
	require.Equal(t, "v", w.get("k"))
	_, body := w.probe("/ready")
	require.Contains(t, body, `"reason":"memory"`)
	_, text := w.probe("/metrics")
	require.Contains(t, text, `pairdb_storage_memory_state{node_id="n1",state="critical"} 1`)

	w.machine.usedMiB.Store(100)
	eventually(t, "writes are taken again", func() bool { return w.put("k3", "v") == nil })
	eventually(t, "caches come back", func() bool { return numbers().BlockCache.CapacityBytes > full/8 })
	require.NoError(t, w.end())
}

// The danger: a node that can no longer write keeps getting writes because it answers probes.
func TestDataDirectoryThatCannotBeWrittenUnreadiesTheNode(t *testing.T) {
	w := startNode(t, testConfig(t), realFS()).ready()
	fail := func(err error) { w.fs.failProbe.Store(&err) }
	fail(syscall.EROFS)
	w.Node.probe()
	code, body := w.probe("/ready")
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Contains(t, body, `"reason":"data-dir"`)
	code, _ = w.probe("/health")
	require.Equal(t, http.StatusOK, code, "a restart would not help")
	fail(vfs.ErrNoSpace)
	w.Node.probe()
	w.ready() // reads go on with a full disk
	w.fs.failProbe.Store(nil)
	w.Node.probe()
	require.NoFileExists(t, w.cfg.DataDir+"/"+probeFile)
	require.NotEmpty(t, w.log.values("data directory", "error"))
	require.NoError(t, w.end())
}

// The danger: a disk that hangs holds up every client of the node for ever, while its probes are fine.
func TestNodeEndsWhenTheDiskHangsForTooLong(t *testing.T) {
	fs := realFS()
	cfg := testConfig(t)
	cfg.StallLimit, cfg.ShutdownTimeout = 2*time.Second, 2*time.Second
	w := startNode(t, cfg, fs).ready()
	require.NoError(t, w.put("k", "v"))
	fs.mu.Lock()
	fs.syncGate = make(chan struct{})
	fs.mu.Unlock()
	answer := make(chan error, 1)
	go func() { answer <- w.put("k2", "v") }()
	eventually(t, "the metric says so", func() bool {
		_, text := w.probe("/metrics")
		return !strings.Contains(text, "\n"+`pairdb_storage_stalled_seconds{node_id="n1"} 0`+"\n")
	})
	err := <-w.done
	require.ErrorContains(t, err, "PAIRDB_STALL_LIMIT")
	require.Equal(t, service.ExitDisk, service.ExitCode(err))
	close(fs.syncGate)
	<-answer // whatever it is: the connection was cut off
	eventually(t, "what was left behind has ended", func() bool { return len(w.log.values("closed", "msg")) > 0 })
}

// The danger: a health-agent that sees nothing until the replay is over takes a recovering pod for a dead
// one.
func TestSocketAnswersDuringRecovery(t *testing.T) {
	fs := realFS()
	cfg := testConfig(t)
	w := startNode(t, cfg, fs).ready()
	require.NoError(t, w.put("k", "v"))
	require.NoError(t, w.end())

	fs.syncGate = make(chan struct{}) // the replay ends with a sync
	w = startNode(t, cfg, fs)
	conn, err := sidecar.Dial(cfg.Socket)
	require.NoError(t, err)
	defer conn.Close()
	first, err := sidecar.WaitForNode(t.Context(), conn)
	require.NoError(t, err)
	agent := nodev1.NewNodeServiceClient(conn)
	h, err := agent.Health(t.Context(), &nodev1.HealthRequest{Sidecar: "health-agent"})
	require.NoError(t, err)
	require.Equal(t, "recovering", h.GetState())
	require.Equal(t, "recovering", h.GetNotReady()[0].GetName())
	_, err = compactionv1.NewCompactionServiceClient(conn).Heartbeat(t.Context(), &compactionv1.HeartbeatRequest{})
	require.Equal(t, codes.Unavailable, status.Code(err), "workers come back")
	code, body := w.probe("/health/startup")
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Contains(t, body, `"reason":"recovering"`)

	close(fs.syncGate)
	w.ready()
	code, _ = w.probe("/health/startup")
	require.Equal(t, http.StatusOK, code)
	h, err = agent.Health(t.Context(), &nodev1.HealthRequest{Sidecar: "health-agent"})
	require.NoError(t, err)
	require.Equal(t, "serving", h.GetState())
	require.InDelta(t, 1, h.GetRecoveryProgress(), 0)
	require.Empty(t, h.GetNotReady())
	require.Positive(t, h.GetDisk().GetTotalBytes())
	eventually(t, "memory and files are known", func() bool {
		h, err = agent.Health(t.Context(), &nodev1.HealthRequest{})
		require.NoError(t, err)
		return h.GetMemory().GetLimitBytes() > 0 && h.GetOpenFiles() > 0
	})
	require.Positive(t, h.GetOpenFilesLimit())
	require.Equal(t, "health-agent", h.GetSidecars()[0].GetName())
	again, err := sidecar.WaitForNode(t.Context(), conn)
	require.NoError(t, err)
	require.Equal(t, first, again, "the session is that of the process, not of the engine")
	_, text := w.probe("/metrics")
	require.Contains(t, text, `pairdb_storage_sidecar_last_seen_seconds{node_id="n1",sidecar="health-agent"} `)
	require.NoError(t, w.end())
}

// The danger: a reason that comes and goes makes an event each time, and an operator learns to ignore them.
func TestReasonsAreToldWhenTheyHaveSettled(t *testing.T) {
	var seen told
	look := func(times int, names ...string) (told bool) {
		var reasons []service.Reason
		for i, n := range names {
			reasons = append(reasons, service.Reason{Name: n, Detail: strings.Repeat("x", i)})
		}
		for range times {
			told = seen.changed(reasons)
		}
		return told
	}
	require.False(t, look(5, "compaction"))
	require.False(t, look(100), "it has gone before it was told, and nothing is as before")
	require.False(t, look(1, "disk", "compaction"))
	require.False(t, look(4, "disk", "compaction"))
	require.True(t, look(1, "compaction", "disk"), "the order does not count")
	require.False(t, look(100, "disk", "compaction"), "once")
	require.False(t, look(5))
	require.True(t, look(1), "all is well again")
}

func TestStatesOfMemoryAreTheEngines(t *testing.T) {
	// A state without its counterpart would switch protection off.
	for s := memory.OK; s <= memory.Critical; s++ {
		require.EqualValues(t, s, engineMemory[s])
	}
	require.Len(t, engineMemory, 3)
	require.Len(t, diskEvents, int(engine.SpaceFull)+1)
}

// A write test that fails half-way must leave nothing behind that the next one trips over.
func TestWriteTestCleansUpAndSaysWhatFailed(t *testing.T) {
	mem := vfs.NewMem()
	require.Error(t, writeTest(mem, "missing"))
	require.NoError(t, mem.MkdirAll("data", 0o770))
	for range 2 {
		require.NoError(t, writeTest(mem, "data"))
		names, err := mem.List("data")
		require.NoError(t, err)
		require.Empty(t, names)
	}
}
