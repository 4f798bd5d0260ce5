package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	"github.com/pairdb/pairdb/libs/vfs"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
)

// gatedFS is the real file system with valves: the lock of the data directory and the syncs of the commit
// log can be held up, the syncs can fail, and so can the write test of the data directory. Its disk is as
// full as the test says.
type gatedFS struct {
	vfs.FS
	mu       sync.Mutex    // guards the next two
	lockGate chan struct{} // Lock waits until it is closed; nil is open
	syncGate chan struct{}
	syncing  atomic.Int64 // syncs that wait
	failSync atomic.Bool

	failProbe atomic.Pointer[error] // of the write test
	usage     atomic.Pointer[vfs.Usage]
}

// disk is a disk of 100 GiB of which so many percent are used.
func disk(percent uint64) *vfs.Usage {
	return &vfs.Usage{TotalBytes: 100 << 30, FreeBytes: (100 - percent) << 30}
}

func (g *gatedFS) Usage(name string) (vfs.Usage, error) {
	if u := g.usage.Load(); u != nil {
		return *u, nil
	}
	return g.FS.Usage(name)
}

// machine is the root of a machine with 1,000 MiB, of which the process has as many as the test says.
type machine struct{ usedMiB atomic.Int64 }

// Open implements fs.FS.
func (m *machine) Open(name string) (fs.File, error) {
	return fstest.MapFS{
		"proc/meminfo":     {Data: []byte("MemTotal: 1024000 kB\n")},
		"proc/self/status": {Data: fmt.Appendf(nil, "VmRSS: %d kB\n", m.usedMiB.Load()<<10)},
	}.Open(name)
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
	if err := g.failProbe.Load(); err != nil && path.Base(name) == probeFile {
		return nil, *err
	}
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

// toldEvent is one event of health.
type toldEvent struct {
	kind    string
	payload proto.Message
}

// testNode is a node that runs in this process.
type testNode struct {
	*Node
	t       *testing.T
	cfg     *config.Config
	fs      *gatedFS
	log     *logBuffer
	machine *machine
	told    chan toldEvent // what onHealth was told
	reg     *prometheus.Registry
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
		"PAIRDB_DISK_RESERVE_BYTES": "1MiB", "PAIRDB_JOIN": config.JoinAtOnce, // nobody could bootstrap it
	} {
		t.Setenv(key, value)
	}
	cfg := &config.Config{}
	require.NoError(t, service.Load(cfg))
	return cfg
}

// startNode runs a node until the test ends or stop is called.
func startNode(t *testing.T, cfg *config.Config, fs *gatedFS, change ...func(*service.Runtime)) *testNode {
	t.Helper()
	w := &testNode{t: t, cfg: cfg, fs: fs, log: &logBuffer{}, machine: &machine{}, told: make(chan toldEvent, 100), done: make(chan error, 1)}
	rt := &service.Runtime{Log: slog.New(slog.NewJSONHandler(w.log, nil)), Metrics: service.NewRegistry("storage-node"), Build: service.ThisBuild()}
	for _, f := range change {
		f(rt)
	}
	w.reg = rt.Metrics
	var err error
	w.Node, err = New(cfg, rt, fs)
	require.NoError(t, err)
	w.root, w.watchEvery = w.machine, 20*time.Millisecond
	publish := w.onHealth
	w.onHealth = func(kind string, payload proto.Message) { publish(kind, payload); w.told <- toldEvent{kind, payload} }
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
