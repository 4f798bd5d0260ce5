package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/libs/vfs"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
)

// gatedFS is the real file system with two valves: the lock of the data directory and the syncs of
// the commit log can be held up, and the syncs can fail.
type gatedFS struct {
	vfs.FS
	mu       sync.Mutex    // guards the next two
	lockGate chan struct{} // Lock waits until it is closed; nil is open
	syncGate chan struct{}
	syncing  atomic.Int64 // syncs that wait
	failSync atomic.Bool
}

func (g *gatedFS) wait(gate *chan struct{}) {
	g.mu.Lock()
	c := *gate
	g.mu.Unlock()
	if c != nil {
		<-c
	}
}

func (g *gatedFS) Lock(name string) (io.Closer, error) {
	g.wait(&g.lockGate)
	return g.FS.Lock(name)
}

func (g *gatedFS) Create(name string, perm os.FileMode) (vfs.File, error) {
	f, err := g.FS.Create(name, perm)
	return g.wrap(name, f), err
}

func (g *gatedFS) OpenReadWrite(name string) (vfs.File, error) {
	f, err := g.FS.OpenReadWrite(name)
	return g.wrap(name, f), err
}

func (g *gatedFS) wrap(name string, f vfs.File) vfs.File {
	if f != nil && path.Base(path.Dir(name)) == logDir {
		return &gatedFile{f, g}
	}
	return f
}

type gatedFile struct {
	vfs.File
	g *gatedFS
}

func (f *gatedFile) SyncData() error {
	f.g.syncing.Add(1)
	defer f.g.syncing.Add(-1)
	f.g.wait(&f.g.syncGate)
	if f.g.failSync.Load() {
		return syscall.EIO
	}
	return f.File.SyncData()
}

func (f *gatedFile) Sync() error { return f.SyncData() }

// logBuffer collects log lines.
type logBuffer struct {
	mu    sync.Mutex
	lines []map[string]any
}

func (b *logBuffer) Write(p []byte) (int, error) {
	line := map[string]any{}
	if err := json.Unmarshal(p, &line); err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, line)
	return len(p), nil
}

// values returns what the lines with a message have under a key, in order.
func (b *logBuffer) values(msg, key string) (out []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		if l["msg"] == msg {
			out = append(out, fmt.Sprint(l[key]))
		}
	}
	return out
}

// testNode is a node that runs in this process.
type testNode struct {
	*Node
	t       *testing.T
	cfg     *config.Config
	fs      *gatedFS
	log     *logBuffer
	stop    context.CancelFunc
	done    chan error
	conn    *grpc.ClientConn
	storage storagev1.StorageServiceClient
	admin   adminv1.AdminServiceClient
}

// testConfig is a small node in its own directory.
func testConfig(t *testing.T) *config.Config {
	t.Helper()
	servicetest.ClearEnvironment(t)
	sockets, err := os.MkdirTemp("", "sock") // t.TempDir is too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(sockets)) })
	for key, value := range map[string]string{
		"PAIRDB_DATA_DIR": filepath.Join(t.TempDir(), "data"), "PAIRDB_NODE_ID": "n1", "PAIRDB_SOCKET": filepath.Join(sockets, "n.sock"),
		"PAIRDB_GRPC_ADDR": "127.0.0.1:0", "PAIRDB_OPS_ADDR": "127.0.0.1:0", "PAIRDB_MEMTABLE_BYTES": "4MiB",
		"PAIRDB_BLOCK_CACHE_BYTES": "4MiB", "PAIRDB_ROW_CACHE_BYTES": "4MiB", "PAIRDB_SHUTDOWN_TIMEOUT": "10s",
		"PAIRDB_DISK_RESERVE_BYTES": "1MiB",
	} {
		t.Setenv(key, value)
	}
	cfg := &config.Config{}
	require.NoError(t, service.Load(cfg))
	return cfg
}

// startNode runs a node until the test ends or stop is called.
func startNode(t *testing.T, cfg *config.Config, fs *gatedFS) *testNode {
	t.Helper()
	w := &testNode{t: t, cfg: cfg, fs: fs, log: &logBuffer{}, done: make(chan error, 1)}
	rt := &service.Runtime{Log: slog.New(slog.NewJSONHandler(w.log, nil)), Metrics: service.NewRegistry("storage-node"), Build: service.ThisBuild()}
	var err error
	w.Node, err = New(cfg, rt, fs)
	require.NoError(t, err)
	w.conn, err = grpc.NewClient(w.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	w.storage, w.admin = storagev1.NewStorageServiceClient(w.conn), adminv1.NewAdminServiceClient(w.conn)
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() { w.done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, w.conn.Close())
		http.DefaultClient.CloseIdleConnections()
	})
	return w
}

// end stops the node and returns what Run returned.
func (w *testNode) end() error {
	w.stop()
	return <-w.done
}

func realFS() *gatedFS { return &gatedFS{FS: vfs.OS} }

// probe asks the operations server.
func (w *testNode) probe(path string) (int, string) {
	w.t.Helper()
	resp, err := http.Get("http://" + w.OpsAddr() + path) //nolint:noctx // a server of this process
	require.NoError(w.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(w.t, err)
	return resp.StatusCode, string(body)
}

// eventually waits for a condition that the node reaches by itself.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, 20*time.Second, 5*time.Millisecond, what)
}

func (w *testNode) ready() *testNode {
	w.t.Helper()
	eventually(w.t, "ready", func() bool { code, _ := w.probe("/ready"); return code == http.StatusOK })
	return w
}

func (w *testNode) put(key, value string) error {
	_, err := w.storage.Write(context.Background(), &storagev1.WriteRequest{Tenant: "t", Key: key, Value: []byte(value)})
	return err
}

func (w *testNode) get(key string) string {
	w.t.Helper()
	r, err := w.storage.Read(w.t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: key})
	require.NoError(w.t, err)
	return string(r.GetValue())
}

func reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// What a node acknowledged must be there after a clean stop, and a clean stop must be one.
func TestNodeServesStopsAndComesBack(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	require.NoError(t, w.put("k", "v"))
	check, err := healthv1.NewHealthClient(w.conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: "pairdb.storage.v1.StorageService"})
	require.NoError(t, err)
	require.Equal(t, healthv1.HealthCheckResponse_SERVING, check.GetStatus())
	require.NoError(t, w.end())
	require.Equal(t, []string{"readiness", "grpc", "socket", "engine", "ops"}, w.log.values("stage stopped", "stage"), "nothing is taken from under those who still need it")

	w = startNode(t, cfg, realFS()).ready()
	require.Equal(t, "v", w.get("k"))
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
	eventually(t, "the socket's stage has stopped", func() bool { return len(w.log.values("stage stopped", "stage")) == 3 })
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
	fs.mu.Lock()
	fs.syncGate = make(chan struct{})
	fs.mu.Unlock()
	answer := make(chan error, 1)
	go func() { answer <- w.put("k", "v") }()
	eventually(t, "the write waits for its sync", func() bool { return fs.syncing.Load() > 0 })
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
	for _, n := range engineNumbers {
		require.Contains(t, text, "\npairdb_"+n.name+`{node_id="n1"} `)
	}
	require.Contains(t, text, `pairdb_storage_write_requests_total{node_id="n1",result="success"} 1`)
	require.Contains(t, text, `pairdb_storage_read_requests_bytes_sum{node_id="n1"} 1`)
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
