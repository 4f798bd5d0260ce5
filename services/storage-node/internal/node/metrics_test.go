package node

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"

	"github.com/pairdb/pairdb/libs/service/servicetest"
	"github.com/pairdb/pairdb/libs/vfs"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Dashboards are written from this page: what it leaves out is not watched.
func TestMetricsPageIsWhatTheNodeRegisters(t *testing.T) {
	cfg := testConfig(t)
	cfg.CoordinatorAddr, cfg.AdvertiseAddr = "127.0.0.1:1", "127.0.0.1:2" // nobody is there; its metric is
	w := startNode(t, cfg, realFS()).ready()
	for _, name := range []string{server.SidecarCompactor, server.SidecarAgent, server.SidecarMigrator} {
		require.NoError(t, w.sidecars.Note(name, time.Now())) // one that never called has no series
	}
	servicetest.Metrics(t, "storage-node", w.reg)
	require.NoError(t, w.end())
}

// What callers make up must not become series: that is how a scanner fills the memory of a monitoring.
func TestCallsAreCountedByMethodsThatAreServed(t *testing.T) {
	c := newCallCounts(nil)
	atStart := testutil.CollectAndCount(c)
	for i := range 1000 {
		c.count(fmt.Sprintf("/made.up/M%d", i), codes.Unimplemented)
	}
	c.count(storagev1.StorageService_Read_FullMethodName, codes.OK)
	c.count(storagev1.StorageService_Watch_FullMethodName, codes.Canceled)
	c.count(storagev1.StorageService_Read_FullMethodName, codes.Code(99)) // a handler may return any number
	require.Equal(t, uint64(1000), c.other.byCode[codes.Unimplemented].Load())
	require.Equal(t, atStart+3, testutil.CollectAndCount(c), "one series each for what calls ended with")
}

// A reason that the server has and no series for would be counted as another one.
func TestEveryReasonHasItsSeries(t *testing.T) {
	reasons := server.Reasons()
	c, vec := newReasonCounts(nil, reasons)
	require.Contains(t, reasons, string(store.ReasonQuotaExceeded))
	require.Contains(t, reasons, "INTERNAL")
	require.Contains(t, reasons, "CANCELLED")
	for _, r := range reasons {
		c.count(r)
	}
	require.Zero(t, testutil.ToFloat64(c.other))
	c.count("MADE_UP")
	require.Equal(t, 1.0, testutil.ToFloat64(c.other))
	require.Equal(t, len(reasons)+1, testutil.CollectAndCount(vec))
}

// The engine counts groups itself; a bucket that is one off makes the median of a busy log wrong by two.
func TestGroupSizesBecomeBucketsOfBothKinds(t *testing.T) {
	m := engine.Metrics{GroupedBatches: 1 + 2*2 + 5*4 + 40_000}
	m.GroupSizes[0], m.GroupSizes[1], m.GroupSizes[2], m.GroupSizes[engine.GroupSizeBuckets-1] = 1, 2, 5, 1
	var out dto.Metric
	require.NoError(t, newGroupHistogram(prometheus.NewDesc("x", "x", nil, nil), &m, time.Now()).Write(&out))
	h := out.GetHistogram()
	require.Equal(t, uint64(9), h.GetSampleCount())
	require.InDelta(t, 40_025, h.GetSampleSum(), 0)
	require.Len(t, h.GetBucket(), engine.GroupSizeBuckets-1)
	for i, want := range []struct{ bound, count float64 }{{1, 1}, {2, 3}, {4, 8}, {8, 8}} {
		require.InDelta(t, want.bound, h.GetBucket()[i].GetUpperBound(), 0)
		require.InDelta(t, want.count, float64(h.GetBucket()[i].GetCumulativeCount()), 0)
	}
	require.Equal(t, int32(0), h.GetSchema())
	require.Equal(t, []int64{1, 1, 3}, h.GetPositiveDelta()[:3], "the native buckets of schema 0 end at 1, 2, 4…")
	require.Equal(t, int32(0), h.GetPositiveSpan()[0].GetOffset())
}

// A read pays for its numbers: one allocation per call would be a tenth of all that it has.
func TestRecordingAReadAllocatesNothing(t *testing.T) {
	m := newRequestMetrics(nil)
	c := server.Call{Method: storagev1.StorageService_Read_FullMethodName, Request: &storagev1.ReadRequest{}, Response: &server.Encoded{ValueBytes: 100}, Took: 50 * time.Microsecond}
	m.observe(c) // makes its native bucket
	require.Zero(t, testing.AllocsPerRun(100, func() { m.observe(c) }))
}

// readServer serves one key of an engine in memory over loopback TCP.
func readServer(b *testing.B, observe func(server.Call)) storagev1.StorageServiceClient {
	b.Helper()
	e, err := engine.Open("data", engine.Options{FS: vfs.NewMem(), Clock: wallClock{}, Rand: rand.New(rand.NewPCG(1, 2)), Events: func(engine.Event) {}})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, e.Close()) })
	st, err := store.New(storeEngine{e}, store.Options{NodeID: "n1"})
	require.NoError(b, err)
	s := server.New(server.Node{ID: "n1", State: func() (server.State, string) { return server.StateServing, "" }})
	s.Open(server.Backend{Store: st, Engine: e})
	g := s.GRPC(server.Options{Log: slog.New(slog.DiscardHandler), Timeout: time.Minute, MaxInFlight: 4096, Observe: observe}, health.NewServer())
	s.RegisterStorage(g)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	go g.Serve(listener) //nolint:errcheck // ends with Stop
	b.Cleanup(g.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(b, err)
	b.Cleanup(func() { conn.Close() })
	client := storagev1.NewStorageServiceClient(conn)
	_, err = client.Write(b.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "k", Value: make([]byte, 100)})
	require.NoError(b, err)
	return client
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkUnaryReadObserved is the processor time of a read over the wire, client and server together, with
// its numbers recorded and without, in turns of some milliseconds, so that both meet the same machine. What
// recording costs is near the noise of that: BenchmarkObserve is the same without the call around it.
func BenchmarkUnaryReadObserved(b *testing.B) {
	const turn = 200
	m := newRequestMetrics(prometheus.Labels{"node_id": "n1"})
	clients := [2]storagev1.StorageServiceClient{readServer(b, nil), readServer(b, m.observe)}
	var took [2]time.Duration
	read := func(ctx context.Context, c storagev1.StorageServiceClient) time.Duration {
		start := processorTime(b)
		for range turn {
			if _, err := c.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k"}); err != nil {
				b.Fatal(err)
			}
		}
		return processorTime(b) - start
	}
	calls := 0
	for b.Loop() {
		first := calls / turn % 2 // who follows the other's turn has no advantage
		for _, i := range []int{first, 1 - first} {
			took[i] += read(b.Context(), clients[i])
		}
		calls += turn
	}
	bare, observed := float64(took[0])/float64(calls), float64(took[1])/float64(calls)
	b.ReportMetric(bare, "bare-ns/call")
	b.ReportMetric(observed, "observed-ns/call")
	b.ReportMetric(100*(observed/bare-1), "overhead-%")
}
