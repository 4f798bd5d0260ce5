package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/libs/vfs"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
)

// What a node acknowledged must be there after a clean stop, and a clean stop must be one.
func TestNodeServesStopsAndComesBack(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	require.NoError(t, w.put("k", "v"))
	for _, name := range []string{"", "pairdb.storage.v1.StorageService", "storage.StorageNodeService"} {
		check, err := healthv1.NewHealthClient(w.conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: name})
		require.NoError(t, err)
		require.Equal(t, healthv1.HealthCheckResponse_SERVING, check.GetStatus())
	}
	require.NoError(t, w.end())
	require.Equal(t, []string{"readiness", "grpc", "socket", "watch", "engine", "events", "ops"}, w.log.values("stage stopped", "stage"), "nothing is taken from under those who still need it")

	w = startNode(t, cfg, realFS()).ready()
	require.Equal(t, "v", w.get("k"))
	require.NoError(t, w.end())
}

// A client that follows a node must find it again after a restart: nothing between is lost or comes twice, also
// when the snapshot was read before and the feed is joined after.
func TestFeedGoesOnAfterARestart(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	require.NoError(t, w.put("a", "in the snapshot"))
	keys, err := w.storage.StreamKeys(t.Context(), &storagev1.StreamKeysRequest{Tenant: "t"})
	require.NoError(t, err)
	snapshot, err := keys.Recv()
	require.NoError(t, err)
	require.Len(t, snapshot.GetRecords(), 1)
	follow := func(after uint64) (next func() *storagev1.WatchResponse) {
		feed, err := w.storage.Watch(t.Context(), &storagev1.WatchRequest{Tenant: "t", AfterSequence: after})
		require.NoError(t, err)
		return func() *storagev1.WatchResponse {
			for {
				m, err := feed.Recv()
				require.NoError(t, err)
				if len(m.GetChanges()) > 0 {
					return m
				}
			}
		}
	}
	next := follow(snapshot.GetSequence())
	require.NoError(t, w.put("b", "1"))
	first := next()
	require.Equal(t, "b", first.GetChanges()[0].GetRecord().GetKey())
	require.NoError(t, w.put("c", "2"))
	require.NoError(t, w.end())

	w = startNode(t, cfg, realFS()).ready()
	require.NoError(t, w.put("d", "3"))
	next = follow(first.GetSequence())
	var got []string
	for len(got) < 2 {
		for _, c := range next().GetChanges() {
			got = append(got, c.GetRecord().GetKey())
		}
	}
	require.Equal(t, []string{"c", "d"}, got)

	ahead, err := w.storage.Watch(t.Context(), &storagev1.WatchRequest{Tenant: "t", AfterSequence: 1 << 40})
	require.NoError(t, err)
	_, err = ahead.Recv()
	require.Equal(t, codes.OutOfRange, status.Code(err))
	require.Equal(t, "SEQUENCE_AHEAD", reason(err))
	require.NoError(t, w.end())
}

// While the log is replayed the node is alive, not ready, and clients are told to come back. A
// restart by an impatient probe would begin the replay anew, for ever.
func TestRecoveringNodeIsAliveAndNotReady(t *testing.T) {
	fs := realFS()
	fs.lockGate = make(chan struct{})
	w := startNode(t, testConfig(t), fs)
	code, body := w.probe("/ready")
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Contains(t, body, `"reason":"recovering"`)
	require.Contains(t, body, `"progress":0`)
	code, _ = w.probe("/health")
	require.Equal(t, http.StatusOK, code)
	err := w.put("k", "v")
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.Equal(t, "RECOVERING", reason(err))
	st, err := w.admin.Status(t.Context(), &adminv1.StatusRequest{})
	require.NoError(t, err)
	require.Equal(t, "recovering", st.GetState())
	check, err := healthv1.NewHealthClient(w.conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	require.NoError(t, err)
	require.Equal(t, healthv1.HealthCheckResponse_NOT_SERVING, check.GetStatus())
	_, text := w.probe("/metrics")
	require.NotContains(t, text, "pairdb_memtable_size_bytes")

	close(fs.lockGate)
	w.ready()
	require.NoError(t, w.put("k", "v"))
	require.NoError(t, w.end())
}

// A stop that comes while the engine opens must close it when it is open, not leave it behind.
func TestStopDuringRecoveryClosesTheEngine(t *testing.T) {
	fs := realFS()
	fs.lockGate = make(chan struct{})
	w := startNode(t, testConfig(t), fs)
	w.stop()
	eventually(t, "the socket's stage has stopped", func() bool { return len(w.log.values("stage stopped", "stage")) >= 3 })
	close(fs.lockGate)
	require.NoError(t, <-w.done)
	require.NotEmpty(t, w.log.values("closed", "msg"))
	lock, err := vfs.OS.Lock(filepath.Join(w.cfg.DataDir, "LOCK"))
	require.NoError(t, err)
	require.NoError(t, lock.Close())
}

// A request that was accepted before the stop must get its answer, and what it wrote must be there.
func TestRequestInFlightFinishesDuringShutdown(t *testing.T) {
	fs := realFS()
	cfg := testConfig(t)
	w := startNode(t, cfg, fs).ready()
	require.NoError(t, w.put("first", "v")) // so that there is a segment to write to
	fs.mu.Lock()
	fs.syncGate = make(chan struct{})
	fs.mu.Unlock()
	before, _ := w.metrics()
	answer := make(chan error, 1)
	go func() { answer <- w.put("k", "v") }()
	eventually(t, "the write waits for its sync", func() bool {
		m, _ := w.metrics()
		return fs.syncing.Load() > 0 && m.Groups > before.Groups // what syncs may be the next segment
	})
	w.stop()
	eventually(t, "readiness is off", func() bool { return len(w.log.values("stage stopped", "stage")) == 1 })
	code, body := w.probe("/ready")
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Contains(t, body, "stopping")
	close(fs.syncGate)
	require.NoError(t, <-answer)
	require.NoError(t, <-w.done)

	w = startNode(t, cfg, realFS()).ready()
	require.Equal(t, "v", w.get("k"))
	require.NoError(t, w.end())
}

// After a failed sync nothing is known about the disk: the node must not take another write, and
// must end with a code that says so.
func TestPoisonedNodeEndsWithTheDiskCode(t *testing.T) {
	fs := realFS()
	w := startNode(t, testConfig(t), fs).ready()
	require.NoError(t, w.put("k", "v"))
	fs.failSync.Store(true)
	err := w.put("k2", "v")
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	err = <-w.done
	require.ErrorContains(t, err, "poisoned")
	require.Equal(t, service.ExitDisk, service.ExitCode(err))
	require.NotEmpty(t, w.log.values("poisoned", "error"))

	fs.failSync.Store(false)
	again := startNode(t, w.cfg, fs).ready()
	require.Equal(t, "v", again.get("k"))
	require.NoError(t, again.end())
}

// Each of these must end the start with a message that says what to do, and its code.
func TestNodeRefusesWhatItCannotServe(t *testing.T) {
	cfg := testConfig(t)
	first := startNode(t, cfg, realFS()).ready()
	second := startNode(t, cfg, realFS())
	err := <-second.done
	require.ErrorContains(t, err, "in use by another process: stop it, or set PAIRDB_DATA_DIR")
	require.Equal(t, service.ExitLocked, service.ExitCode(err))
	require.NoError(t, first.end())

	other := *cfg
	other.NodeID = "n2"
	err = <-startNode(t, &other, realFS()).done
	require.ErrorContains(t, err, `belongs to node "n1"`)
	require.Equal(t, service.ExitLocked, service.ExitCode(err))

	require.NoError(t, os.WriteFile(filepath.Join(cfg.DataDir, "FORMAT"), []byte("pairdb 99\n"), 0o600))
	err = <-startNode(t, cfg, realFS()).done
	require.ErrorContains(t, err, "newer")
	require.Equal(t, service.ExitCorrupt, service.ExitCode(err))

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	blocked := *cfg
	blocked.DataDir = file
	err = <-startNode(t, &blocked, realFS()).done
	require.ErrorContains(t, err, "PAIRDB_DATA_DIR")
	require.Equal(t, service.ExitDisk, service.ExitCode(err))

	taken := *cfg
	taken.GRPCAddr = first.Addr()
	l, err := New(&taken, &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: service.NewRegistry("x")}, realFS())
	require.NoError(t, err) // the first node has ended: its port is free
	taken.GRPCAddr = l.Addr()
	_, err = New(&taken, &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: service.NewRegistry("x")}, realFS())
	require.ErrorContains(t, err, "PAIRDB_GRPC_ADDR")
	l.grpc.Stop()
	require.NoError(t, l.tcp.Close())
}

// Sidecars find the node, its identity and their service on the socket, and only there.
func TestSidecarsAreServedOnTheSocket(t *testing.T) {
	w := startNode(t, testConfig(t), realFS()).ready()
	conn, err := sidecar.Dial(w.cfg.Socket)
	require.NoError(t, err)
	defer conn.Close()
	id, err := sidecar.WaitForNode(t.Context(), conn)
	require.NoError(t, err)
	require.Equal(t, "n1", id.NodeID)
	require.Equal(t, "pairdb", id.ClusterID)
	require.NotZero(t, id.Session)
	_, err = adminv1.NewAdminServiceClient(conn).Status(t.Context(), &adminv1.StatusRequest{})
	require.NoError(t, err)
	_, err = compactionv1.NewCompactionServiceClient(w.conn).Heartbeat(t.Context(), &compactionv1.HeartbeatRequest{})
	require.Equal(t, codes.Unimplemented, status.Code(err), "workers have no business on TCP")

	// A worker that waits for jobs must not hold the shutdown up for the 20 s of its call.
	leased := make(chan error, 1)
	go func() {
		_, err := compactionv1.NewCompactionServiceClient(conn).Lease(context.Background(), &compactionv1.LeaseRequest{Worker: "w", FreeSlots: 1, TotalSlots: 1, Formats: []uint32{1}})
		leased <- err
	}()
	eventually(t, "the worker is seen", func() bool {
		s, err := w.admin.Status(t.Context(), &adminv1.StatusRequest{})
		require.NoError(t, err)
		return strings.Contains(fmt.Sprint(s.GetWorkers()), "w@")
	})
	start := time.Now()
	require.NoError(t, w.end())
	require.Less(t, time.Since(start), 5*time.Second)
	require.Error(t, <-leased)
	_, err = os.Stat(w.cfg.Socket)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// A table of who may call what that is not asked is none.
func TestSocketAsksTheTable(t *testing.T) {
	cfg := testConfig(t)
	cfg.SocketUIDs = config.SocketUIDs{uint32(os.Getuid()): {"node"}}
	w := startNode(t, cfg, realFS()).ready()
	conn, err := sidecar.Dial(cfg.Socket)
	require.NoError(t, err)
	defer conn.Close()
	_, err = sidecar.WaitForNode(t.Context(), conn)
	require.NoError(t, err)
	_, err = adminv1.NewAdminServiceClient(conn).Status(t.Context(), &adminv1.StatusRequest{})
	require.Equal(t, codes.PermissionDenied, status.Code(err))
	require.Equal(t, "PERMISSION_DENIED", reason(err))
	require.NoError(t, w.end())
}

func TestSnapshotsOfARunningNode(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	require.NoError(t, w.put("k", "before"))
	_, err := w.admin.Flush(t.Context(), &adminv1.FlushRequest{})
	require.NoError(t, err)
	made, err := w.admin.Snapshot(t.Context(), &adminv1.SnapshotRequest{Name: "s1"})
	require.NoError(t, err)
	require.Positive(t, made.GetSnapshot().GetSequence())
	require.NoError(t, w.put("k", "after"))
	tables, err := w.admin.Tables(t.Context(), &adminv1.TablesRequest{})
	require.NoError(t, err)
	require.Len(t, tables.GetTables(), 1)
	require.Equal(t, "t/k", tables.GetTables()[0].GetSmallest())
	require.NoError(t, w.end())

	// Restored under another name: it is adopted.
	restored := *cfg
	restored.DataDir, restored.NodeID = filepath.Join(t.TempDir(), "restored"), "n9"
	require.NoError(t, os.CopyFS(restored.DataDir, os.DirFS(filepath.Join(cfg.DataDir, made.GetSnapshot().GetPath()))))
	r := startNode(t, &restored, realFS()).ready()
	require.Equal(t, "before", r.get("k"))
	require.NoError(t, r.end())

	w = startNode(t, cfg, realFS()).ready()
	list, err := w.admin.ListSnapshots(t.Context(), &adminv1.ListSnapshotsRequest{})
	require.NoError(t, err)
	require.Len(t, list.GetSnapshots(), 1)
	_, err = w.admin.DeleteSnapshot(t.Context(), &adminv1.DeleteSnapshotRequest{Name: "s1"})
	require.NoError(t, err)
	require.Equal(t, "after", w.get("k"))
	require.NoError(t, w.end())
}

// Dashboards of the first design must go on working: its names are all there, and every metric that
// is registered is exposed.
func TestEveryMetricIsExposed(t *testing.T) {
	w := startNode(t, testConfig(t), realFS()).ready()
	require.NoError(t, w.put("k", "v"))
	require.Equal(t, "v", w.get("k"))
	_, text := w.probe("/metrics")
	for prefix, names := range map[string]string{
		"storage": "write_requests_total write_requests_duration_seconds write_requests_bytes read_requests_total " +
			"read_requests_duration_seconds read_requests_bytes repair_requests_total repair_requests_duration_seconds",
		"cache":     "hits_total misses_total evictions_total size_bytes entries_total",
		"memtable":  "size_bytes entries_total flushes_total flush_duration_seconds",
		"sstable":   "count_by_level size_bytes_by_level reads_total read_duration_seconds writes_total write_duration_seconds",
		"commitlog": "segments_total size_bytes appends_total append_duration_seconds syncs_total sync_duration_seconds",
		"compaction": "jobs_total job_duration_seconds bytes_processed_total bytes_written_total tables_input tables_output " +
			"workers installed_total",
	} {
		for _, name := range strings.Fields(names) {
			require.Contains(t, text, "# TYPE pairdb_"+prefix+"_"+name+" ")
		}
	}
	for _, n := range slices.Concat(engineNumbers, moreEngineNumbers) {
		require.Contains(t, text, "\npairdb_"+n.name+`{node_id="n1"} `)
	}
	for _, n := range healthNumbers {
		require.Contains(t, text, "\npairdb_"+n.name+`{node_id="n1"} `)
	}
	for _, reason := range degradedReasons {
		require.Contains(t, text, `pairdb_storage_degraded{node_id="n1",reason="`+reason+`"} `)
	}
	require.Contains(t, text, `pairdb_storage_write_requests_total{node_id="n1",result="success"} 1`)
	require.Contains(t, text, `pairdb_storage_read_requests_bytes_sum{node_id="n1"} 1`)
	require.Contains(t, text, `pairdb_coordinator_writes_total{node_id="n1",outcome="stale"} 0`)
	require.NotContains(t, text, `pairdb_commitlog_appends_total{node_id="n1"} 0`)
	require.NotContains(t, text, `pairdb_commitlog_segments_total{node_id="n1"} 0`)
	require.NoError(t, w.end())
}

// A scrape or a status that comes while the engine closes must not meet a closed engine.
func TestScrapesDuringShutdown(t *testing.T) {
	w := startNode(t, testConfig(t), realFS()).ready()
	require.NoError(t, w.put("k", "v"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			resp, err := http.Get("http://" + w.OpsAddr() + "/metrics") //nolint:noctx // a server of this process
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK && !errors.Is(err, io.EOF) {
				t.Errorf("scrape: %d", resp.StatusCode)
				return
			}
		}
	}()
	require.NoError(t, w.end())
	<-done
}
