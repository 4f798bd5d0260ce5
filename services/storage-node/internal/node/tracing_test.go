package node

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/tracing"
	"github.com/pairdb/pairdb/libs/tracing/tracingtest"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// openTracing opens an export to url as a binary of that name.
func openTracing(t *testing.T, c *tracingtest.Collector, name string) *service.Tracing {
	t.Helper()
	for _, kv := range c.Environment() {
		key, value, _ := strings.Cut(kv, "=")
		t.Setenv(key, value)
	}
	tr, err := tracing.Open(t.Context(), service.TracingOptions{Name: name, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	require.NotNil(t, tr)
	return tr
}

// A request that was slow must be one picture from the application to the disk: a trace that breaks on
// the way shows two halves, and nobody finds the other one.
func TestTraceReachesFromTheClientToTheStagesOfTheEngine(t *testing.T) {
	collector := tracingtest.Start(t)
	cfg := testConfig(t)
	node, application := openTracing(t, collector, "storage-node"), openTracing(t, collector, "application")
	w := startNode(t, cfg, realFS(), func(rt *service.Runtime) { rt.Tracing = node }).ready()
	conn, err := grpc.NewClient(w.Addr(), append(application.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(t, err)
	storage := storagev1.NewStorageServiceClient(conn)

	ctx, root := application.Tracer("test").Start(t.Context(), "order")
	_, err = storage.Write(ctx, &storagev1.WriteRequest{Tenant: "shop", Key: "secret", Value: []byte("secret")})
	require.NoError(t, err)
	_, err = storage.Read(ctx, &storagev1.ReadRequest{Tenant: "shop", Key: "secret"})
	require.NoError(t, err)
	root.End()
	require.NoError(t, conn.Close())
	require.NoError(t, w.end())
	require.NoError(t, application.Close(context.Background()))
	require.NoError(t, node.Close(context.Background()))

	order := collector.Named("order")
	require.Len(t, order, 1)
	calls := collector.Below(order[0])
	require.Len(t, calls, 2)
	for i, want := range []struct {
		method string
		stages []string
	}{
		{"pairdb.storage.v1.StorageService/Write", []string{"decode", "limits", "lock", "join", "queue", "log", "memtable", "sync"}},
		{"pairdb.storage.v1.StorageService/Read", []string{"decode", "limits", "read"}},
	} {
		require.Equal(t, want.method, calls[i].Name)
		require.Equal(t, "pairdb-application", calls[i].Service)
		served := collector.Below(calls[i])
		require.Len(t, served, 1)
		require.Equal(t, want.method, served[0].Name)
		require.Equal(t, "pairdb-storage-node", served[0].Service)
		require.Equal(t, "shop", served[0].Attributes["pairdb.tenant"])
		require.Equal(t, ikey.KeyHash("secret"), served[0].Attributes["pairdb.key_hash"])
		var stages []string
		for _, s := range collector.Below(served[0]) {
			stages = append(stages, s.Name)
			require.Equal(t, order[0].TraceID, s.TraceID)
		}
		require.Equal(t, want.stages, stages)
	}
	for _, s := range collector.Spans() {
		require.NotContains(t, fmt.Sprint(s), "secret", "a span shows data")
	}
}

// A node must not look for a collector that nobody named, and must not wait for one that does not answer.
func TestNodeWithoutACollectorServesAndStops(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and never answers
	require.NoError(t, err)
	defer l.Close() //nolint:errcheck // a test's
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+l.Addr().String())
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
	tr, err := tracing.Open(t.Context(), service.TracingOptions{Name: "storage-node", Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	w := startNode(t, testConfig(t), realFS(), func(rt *service.Runtime) { rt.Tracing = tr }).ready()
	for i := range 200 {
		require.NoError(t, w.put(fmt.Sprint("k", i), "v"))
	}
	require.NoError(t, w.end())
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	require.Error(t, tr.Close(ctx))
	require.Less(t, time.Since(start), 5*time.Second)
}

// logText is a log as it is written.
type logText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// markers are what must not be in a log: they are in every key, and in every value.
const markerKey, markerValue = "kmarkerk", "vmarkerv"

// A log is read by people, shipped to other machines and kept for years: data of tenants in it is data
// that nobody can protect or delete any more.
func TestLogHasNoKeysAndNoValues(t *testing.T) {
	for _, reveal := range []bool{false, true} {
		t.Run(fmt.Sprint("reveal=", reveal), func(t *testing.T) {
			cfg := testConfig(t)
			cfg.SlowRequest, cfg.LogKeys = time.Nanosecond, reveal // every request is slow
			cfg.CompactionLocal = "always"                         // nobody else merges
			log := &logText{}
			loud := func(rt *service.Runtime) {
				rt.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}))
			}
			w := startNode(t, cfg, realFS(), loud).ready()
			w.exerciseMarkers()
			require.NoError(t, w.end())
			w = startNode(t, cfg, realFS(), loud).ready() // the log is replayed
			require.Equal(t, markerValue, w.get(markerKey+"1"))
			require.NoError(t, w.end())
			require.Contains(t, log.String(), "slow request")
			require.Contains(t, log.String(), "request refused")
			require.Equal(t, reveal, strings.Contains(log.String(), markerKey), "PAIRDB_LOG_KEYS=%v", reveal)
			require.NotContains(t, log.String(), markerValue, "values are never logged")
		})
	}
}

// exerciseMarkers sends everything that a client can, right and wrong.
func (w *testNode) exerciseMarkers() {
	w.t.Helper()
	ctx, t := w.t.Context(), w.t
	contract := storagenodev1.NewStorageNodeServiceClient(w.conn)
	for i := range 50 {
		require.NoError(t, w.put(markerKey+fmt.Sprint(i), markerValue))
		require.Equal(t, markerValue, w.get(markerKey+fmt.Sprint(i)))
	}
	key := markerKey + "0"
	put := &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: []byte(markerValue)}}
	wrong := []func() error{
		func() error { return w.put(key+"\x00", markerValue) },
		func() error { return w.put(key+strings.Repeat("x", 2000), markerValue) },
		func() error { return w.put(key, markerValue+strings.Repeat("x", 11<<20)) },
		func() error {
			_, err := w.storage.Write(ctx, &storagev1.WriteRequest{Tenant: "t:" + "x", Key: key, Value: []byte(markerValue)})
			return err
		},
		func() error {
			_, err := w.storage.Write(ctx, &storagev1.WriteRequest{Tenant: "t", Key: key, Value: []byte(markerValue),
				Condition: &storagev1.Condition{When: &storagev1.Condition_Absent{Absent: true}}})
			return err
		},
		func() error {
			_, err := w.storage.BatchWrite(ctx, &storagev1.BatchWriteRequest{Tenant: "t", Atomic: true, Ops: []*storagev1.BatchOp{{Key: key, Op: put}, {Key: key + "\x00", Op: put}}})
			return err
		},
		func() error {
			_, err := w.storage.GetKeyRange(ctx, &storagev1.GetKeyRangeRequest{Tenant: "t", Range: &datav1.KeyRange{Start: markerKey + "9", End: markerKey}})
			return err
		},
		func() error {
			_, err := w.storage.GetKeyRange(ctx, &storagev1.GetKeyRangeRequest{Tenant: "t", PageToken: markerKey})
			return err
		},
		func() error {
			_, err := w.storage.Repair(ctx, &storagev1.RepairRequest{Record: &datav1.Record{Tenant: "t", Key: key}})
			return err
		},
	}
	for i, f := range wrong {
		require.Error(t, f(), "%d", i)
	}
	big := &storagev1.WriteRequest{Tenant: "t", Key: markerKey + "big", Value: append([]byte(markerValue), make([]byte, 5<<20)...)}
	_, err := w.storage.Write(ctx, big)
	require.NoError(t, err)
	r, err := contract.Read(ctx, &storagenodev1.ReadRequest{TenantId: "t", Key: big.Key})
	require.NoError(t, err)
	require.False(t, r.GetSuccess(), "it does not fit into the contract")
	_, err = contract.Write(ctx, &storagenodev1.WriteRequest{TenantId: "t", Key: key, Value: []byte(markerValue)})
	require.NoError(t, err)

	pipe, err := w.storage.Pipeline(ctx)
	require.NoError(t, err)
	require.NoError(t, pipe.Send(&storagev1.PipelineRequest{Tenant: "t", Ops: []*storagev1.PipelineOp{
		{Tag: 1, Key: key, Op: &storagev1.PipelineOp_Read{Read: &storagev1.ReadOp{}}},
		{Tag: 2, Key: key, Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{Value: []byte(markerValue)}}},
		{Tag: 3, Key: key + "\x00", Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{Value: []byte(markerValue)}}},
	}}))
	for n := 0; n < 3; {
		m, err := pipe.Recv()
		require.NoError(t, err)
		n += len(m.GetResults())
	}
	require.NoError(t, pipe.CloseSend())

	stream, err := w.storage.StreamKeys(ctx, &storagev1.StreamKeysRequest{Tenant: "t", What: &storagev1.StreamKeysRequest_Range{Range: &datav1.KeyRange{Start: markerKey}}})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	_, err = w.admin.Flush(ctx, &adminv1.FlushRequest{})
	require.NoError(t, err)
	compact, err := w.admin.Compact(ctx, &adminv1.CompactRequest{Tenant: "t", Range: &datav1.KeyRange{Start: markerKey}})
	require.NoError(t, err)
	for err == nil {
		_, err = compact.Recv()
	}
}

// What is said about a damaged table goes into the log too, and is seldom seen before.
func TestDamageIsLoggedWithoutKeys(t *testing.T) {
	log := &logText{}
	cfg := testConfig(t)
	loud := func(rt *service.Runtime) {
		rt.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w := startNode(t, cfg, realFS(), loud).ready()
	for i := range 50 {
		require.NoError(t, w.put(markerKey+fmt.Sprint(i), markerValue))
	}
	_, err := w.admin.Flush(t.Context(), &adminv1.FlushRequest{})
	require.NoError(t, err)
	require.NoError(t, w.end()) // with it goes what is cached
	tables, err := filepath.Glob(filepath.Join(cfg.DataDir, "sst", "*.sst"))
	require.NoError(t, err)
	require.NotEmpty(t, tables)
	for _, name := range tables {
		require.NoError(t, os.Chmod(name, 0o600))
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		b[10] ^= 0xff
		require.NoError(t, os.WriteFile(name, b, 0o600))
	}
	w = startNode(t, cfg, realFS(), loud).ready()
	_, err = w.storage.GetKeyRange(t.Context(), &storagev1.GetKeyRangeRequest{Tenant: "t"})
	require.Error(t, err)
	verify, err := w.admin.Verify(t.Context(), &adminv1.VerifyRequest{})
	require.NoError(t, err)
	for last := (&adminv1.VerifyProgress{}); !last.GetFinished(); {
		last, err = verify.Recv()
		require.NoError(t, err)
		if last.GetFinished() {
			require.NotEmpty(t, last.GetCorrupt())
		}
	}
	require.NoError(t, w.end())
	require.Contains(t, log.String(), "request failed")
	require.NotContains(t, log.String(), markerKey)
	require.NotContains(t, log.String(), markerValue)
}
