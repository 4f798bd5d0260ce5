package metrics

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
	coordinatorv1 "github.com/pairdb/pairdb/proto/coordinator/proto/v1"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// maxInFlight is the limit of the pod's node: low, so that it is reached.
const maxInFlight = 16

// work does everything to a pod that is done to one, and has its metrics looked at meanwhile.
type work struct {
	*testing.T
	pod     *localpod.Pod
	h       *history
	conn    *grpc.ClientConn
	storage storagev1.StorageServiceClient
	admin   adminv1.AdminServiceClient
}

// startWork starts a pod with small memtables and caches, beside a coordinator that takes every node.
func startWork(t *testing.T) *work {
	t.Helper()
	coordinator := startCoordinator(t)
	pods, _ := podtest.Start(t, localpod.Options{Env: []string{
		"PAIRDB_MEMTABLE_BYTES=1MiB", "PAIRDB_TABLE_BYTES=1MiB", "PAIRDB_ROW_CACHE_BYTES=1MiB", "PAIRDB_BLOCK_CACHE_BYTES=1MiB",
		fmt.Sprint("PAIRDB_MAX_IN_FLIGHT=", maxInFlight), "PAIRDB_COMPACTION_LOCAL=never", "PAIRDB_COMPACTION_BYTES_PER_SECOND=8MiB",
		"PAIRDB_COORDINATOR_ADDR=" + coordinator, "PAIRDB_ADVERTISE_ADDR=127.0.0.1:1",
	}})
	pod := pods.All()[0]
	conn, err := grpc.NewClient(pod.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return &work{t, pod, newHistory(pod), conn, storagev1.NewStorageServiceClient(conn), adminv1.NewAdminServiceClient(conn)}
}

// welcoming is a coordinator that takes every node.
type welcoming struct {
	coordinatorv1.UnimplementedCoordinatorServiceServer
}

func (welcoming) AddStorageNode(context.Context, *coordinatorv1.AddStorageNodeRequest) (*coordinatorv1.AddStorageNodeResponse, error) {
	return &coordinatorv1.AddStorageNodeResponse{Success: true}, nil
}

func startCoordinator(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer()
	coordinatorv1.RegisterCoordinatorServiceServer(s, welcoming{})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		require.NoError(t, <-served)
	})
	return l.Addr().String()
}

// refused requires that a call ended with an error of a code.
func refused[R any](w *work, code codes.Code) func(R, error) {
	return func(_ R, err error) {
		w.Helper()
		require.Equal(w, code, status.Code(err), "%v", err)
	}
}

func done[R any](w *work) func(R, error) R {
	return func(r R, err error) R {
		w.Helper()
		require.NoError(w, err)
		return r
	}
}

// until looks at the pod until a metric has been above 0, and does something before each look.
func (w *work) until(name, labels string, do func()) {
	w.Helper()
	podtest.Eventually(w, time.Minute, name+" is above 0", func() bool {
		do()
		w.h.look(w.Context())
		return highest(w.h.of(name, labels)) > 0
	})
}

// untilNow is until for what a metric is when it was looked at last.
func (w *work) untilNow(name, labels string, ok func(float64) bool) {
	w.Helper()
	podtest.Eventually(w, 2*time.Minute, name+" becomes what it should", func() bool {
		w.h.look(w.Context())
		for _, p := range w.h.of(name, labels) {
			if ok(p.value) {
				return true
			}
		}
		return false
	})
}

func clockOf(node string, n uint64) *datav1.VectorClock {
	return &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: node, Counter: n}}}
}

func exactly(node string, n uint64) *storagev1.WriteRequest_Clock {
	return &storagev1.WriteRequest_Clock{Clock: clockOf(node, n)}
}

// singles are calls about one key: all outcomes, refusals and repeats.
func (w *work) singles() {
	w.Helper()
	ctx, write := w.Context(), done[*storagev1.WriteResponse](w)
	put := func(key string, r *storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
		r.Tenant, r.Key = "t", key
		if r.Value == nil {
			r.Value = []byte("value")
		}
		return w.storage.Write(ctx, r)
	}
	get := func(key string) *storagev1.ReadResponse {
		return done[*storagev1.ReadResponse](w)(w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: key}))
	}
	write(put("k", &storagev1.WriteRequest{Causality: exactly("c", 2)}))
	write(put("k", &storagev1.WriteRequest{Causality: exactly("c", 2)}))
	write(put("k", &storagev1.WriteRequest{Causality: exactly("c", 1)}))
	write(put("k", &storagev1.WriteRequest{Value: []byte("beside"), Causality: exactly("d", 1)}))
	require.Len(w, get("k").GetSiblings(), 2)
	require.False(w, get("nobody").GetFound())
	for range 3 {
		get("once") // the row cache takes what is read again
	}
	for range 2 {
		write(put("once", &storagev1.WriteRequest{IdempotencyKey: "request 1"}))
	}
	refused[*storagev1.WriteResponse](w, codes.FailedPrecondition)(put("once", &storagev1.WriteRequest{Value: []byte("other"), IdempotencyKey: "request 1"}))
	refused[*storagev1.WriteResponse](w, codes.FailedPrecondition)(put("k", &storagev1.WriteRequest{Condition: &storagev1.Condition{When: &storagev1.Condition_Absent{Absent: true}}}))
	refused[*storagev1.WriteResponse](w, codes.InvalidArgument)(put("", &storagev1.WriteRequest{}))
	refused[*storagev1.ReadResponse](w, codes.InvalidArgument)(w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t"}))
	done[*storagev1.DeleteResponse](w)(w.storage.Delete(ctx, &storagev1.DeleteRequest{Tenant: "t", Key: "once"}))
	require.False(w, get("once").GetFound())

	write(put("short", &storagev1.WriteRequest{TtlSeconds: 1}))
	podtest.Eventually(w, 10*time.Second, "a value expires", func() bool { return !get("short").GetFound() })

	done[*storagev1.RepairResponse](w)(w.storage.Repair(ctx, &storagev1.RepairRequest{Record: &datav1.Record{Tenant: "t", Key: "k", Siblings: []*datav1.Sibling{
		{Clock: clockOf("e", 1), Value: []byte("repaired"), Timestamp: uint64(time.Now().UnixMilli()) << 16},
	}}}))
	require.Len(w, get("k").GetSiblings(), 3)
	write(put("large", &storagev1.WriteRequest{Value: make([]byte, 1<<20)})) // than what the row cache takes
	require.Equal(w, codes.Unimplemented, status.Code(w.conn.Invoke(ctx, "/made.up/Method", &emptypb.Empty{}, &emptypb.Empty{})))
}

// coordinated are writes of an existing coordinator.
func (w *work) coordinated() {
	w.Helper()
	c := storagenodev1.NewStorageNodeServiceClient(w.conn)
	for _, entry := range []*storagenodev1.VectorClockEntry{
		{CoordinatorNodeId: "c", LogicalTimestamp: 2}, {CoordinatorNodeId: "c", LogicalTimestamp: 2},
		{CoordinatorNodeId: "c", LogicalTimestamp: 1}, {CoordinatorNodeId: "d", LogicalTimestamp: 1},
	} {
		resp, err := c.Write(w.Context(), &storagenodev1.WriteRequest{
			TenantId: "t", Key: "coordinated", Value: []byte("value"), VectorClock: &storagenodev1.VectorClock{Entries: []*storagenodev1.VectorClockEntry{entry}},
		})
		require.NoError(w, err)
		require.True(w, resp.GetSuccess(), resp)
	}
}

// batches are calls about many keys, and pages of keys.
func (w *work) batches() {
	w.Helper()
	ops := make([]*storagev1.BatchOp, 100)
	var keys []string
	for i := range ops {
		keys = append(keys, fmt.Sprint("batch/", i))
		ops[i] = &storagev1.BatchOp{Key: keys[i], Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: []byte("value")}}}
	}
	ops[0].Key, keys[0] = "", ""
	written := done[*storagev1.BatchWriteResponse](w)(w.storage.BatchWrite(w.Context(), &storagev1.BatchWriteRequest{Tenant: "t", Ops: ops}))
	require.Equal(w, "INVALID_ARGUMENT_KEY", written.GetResults()[0].GetError().GetReason())
	read := done[*storagev1.BatchReadResponse](w)(w.storage.BatchRead(w.Context(), &storagev1.BatchReadRequest{Tenant: "t", Keys: keys}))
	require.Len(w, read.GetResults(), len(keys))
	require.Equal(w, "INVALID_ARGUMENT_KEY", read.GetResults()[0].GetError().GetReason())
	done[*storagev1.GetKeyRangeResponse](w)(w.storage.GetKeyRange(w.Context(), &storagev1.GetKeyRangeRequest{Tenant: "t"}))
}

// tenants has one of them over its quota and one dropped.
func (w *work) tenants() {
	w.Helper()
	for name, quota := range map[string]*adminv1.TenantQuota{"limited": {OperationsPerSecond: 1}, "bulk": nil, "gone": nil} {
		done[*adminv1.CreateTenantResponse](w)(w.admin.CreateTenant(w.Context(), &adminv1.CreateTenantRequest{Name: name, Quota: quota}))
	}
	w.until("pairdb_tenant_quota_refusals_total", "tenant=limited,quota=operations_per_second", func() {
		_, err := w.storage.Write(w.Context(), &storagev1.WriteRequest{Tenant: "limited", Key: "k", Value: []byte("v")})
		require.Contains(w, []codes.Code{codes.OK, codes.ResourceExhausted}, status.Code(err))
	})
	done[*storagev1.WriteResponse](w)(w.storage.Write(w.Context(), &storagev1.WriteRequest{Tenant: "gone", Key: "k", Value: []byte("v")}))
	done[*adminv1.DropTenantResponse](w)(w.admin.DropTenant(w.Context(), &adminv1.DropTenantRequest{Name: "gone"}))
	refused[*storagev1.ReadResponse](w, codes.NotFound)(w.storage.Read(w.Context(), &storagev1.ReadRequest{Tenant: "gone", Key: "k"}))
}

// watches opens as many as there may be requests, and one more.
func (w *work) watches() {
	w.Helper()
	ctx, end := context.WithCancel(w.Context())
	defer end()
	var open []grpc.ServerStreamingClient[storagev1.WatchResponse]
	for range maxInFlight {
		s, err := w.storage.Watch(ctx, &storagev1.WatchRequest{Tenant: "t"})
		require.NoError(w, err)
		_, err = s.Recv() // says that it is there
		require.NoError(w, err)
		open = append(open, s)
	}
	refused[*storagev1.ReadResponse](w, codes.ResourceExhausted)(w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k"}))
	w.h.look(ctx)
	end()
	for _, s := range open {
		_, err := s.Recv()
		require.Equal(w, codes.Canceled, status.Code(err))
	}

	ctx, end = context.WithCancel(w.Context())
	defer end()
	w.untilNow("pairdb_grpc_streams_open", "kind=watch,listener=tcp", func(v float64) bool { return v == 0 })
	s, err := w.storage.Watch(ctx, &storagev1.WatchRequest{Tenant: "t"})
	require.NoError(w, err)
	_, err = s.Recv()
	require.NoError(w, err)
	done[*storagev1.WriteResponse](w)(w.storage.Write(ctx, &storagev1.WriteRequest{Tenant: "t", Key: "watched", Value: []byte("v")}))
	for {
		m, err := s.Recv()
		require.NoError(w, err)
		if len(m.GetChanges()) > 0 {
			return
		}
	}
}

// pipelines are four streams whose writes do not fit together.
func (w *work) pipelines() {
	w.Helper()
	c := podtest.Client(w, w.pod.Addr, client.Options{Tenant: "t"})
	ctx, end := context.WithCancel(w.Context())
	var wg sync.WaitGroup
	for stream := range 4 {
		wg.Go(func() {
			p, err := c.Pipeline(ctx)
			if err != nil {
				w.Errorf("pipeline: %v", err)
				return
			}
			for i := 0; ctx.Err() == nil; i++ {
				var last *client.Future[client.Result]
				for k := range 50 {
					last = p.Put(fmt.Sprint("pipeline/", stream, "/", k), []byte("value"))
				}
				p.Get("k")
				if _, err := last.Wait(ctx); err != nil && ctx.Err() == nil {
					w.Errorf("pipelined: %v", err)
					return
				}
			}
		})
	}
	w.until("pairdb_storage_pipelines_waiting", "", func() {})
	w.until("pairdb_storage_pipeline_writes_in_flight", "", func() {})
	end()
	wg.Wait()

	p, err := c.Pipeline(w.Context())
	require.NoError(w, err)
	_, err = p.Get("k").Wait(w.Context())
	require.NoError(w, err)
	require.NoError(w, p.Close())
}

func bulkKey(i int) string { return fmt.Sprintf("key-%08d", i*7919%99_999_989) }

// fill writes values that do not pack, faster than memtables are flushed, until the node refuses them,
// and returns how many of the first it took.
func (w *work) fill() int {
	w.Helper()
	const batch, enough = 1000, 1000
	var next atomic.Int64
	refusedAt := make(chan int, 4)
	for range cap(refusedAt) {
		go func() {
			for {
				n := int(next.Add(1) - 1)
				_, err := w.storage.BatchWrite(w.Context(), &storagev1.BatchWriteRequest{Tenant: "bulk", Ops: bulkOps(n*batch, batch)})
				if err == nil && n < enough {
					continue
				}
				if status.Code(err) != codes.ResourceExhausted {
					w.Errorf("batch %d: %v; a refusal was expected some time", n, err)
				}
				refusedAt <- n * batch
				return
			}
		}()
	}
	stored := math.MaxInt
	for range cap(refusedAt) {
		stored = min(stored, <-refusedAt)
	}
	return stored
}

func bulkOps(first, n int) []*storagev1.BatchOp {
	r := rand.New(rand.NewPCG(uint64(first), 2))
	ops := make([]*storagev1.BatchOp, n)
	for i := range ops {
		value := make([]byte, 1000)
		for j := range value {
			value[j] = byte(r.Uint32())
		}
		ops[i] = &storagev1.BatchOp{Key: bulkKey(first + i), Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: value}}}
	}
	return ops
}

// reads reads some of what fill wrote, hot and cold, and keys between them.
func (w *work) reads(stored int) {
	w.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	for range 4000 {
		i := r.IntN(stored)
		got := done[*storagev1.ReadResponse](w)(w.storage.Read(w.Context(), &storagev1.ReadRequest{Tenant: "bulk", Key: bulkKey(i)}))
		require.True(w, got.GetFound())
		if i%4 == 0 {
			done[*storagev1.ReadResponse](w)(w.storage.Read(w.Context(), &storagev1.ReadRequest{Tenant: "bulk", Key: bulkKey(i)}))
			done[*storagev1.ReadResponse](w)(w.storage.Read(w.Context(), &storagev1.ReadRequest{Tenant: "bulk", Key: bulkKey(i) + "/absent"}))
		}
	}
}

// scans opens a scan that nobody reads from, and reads it.
func (w *work) scans() {
	w.Helper()
	s, err := w.storage.StreamKeys(w.Context(), &storagev1.StreamKeysRequest{Tenant: "bulk"})
	require.NoError(w, err)
	w.until("pairdb_storage_iterators_open", "", func() {})
	for err == nil {
		_, err = s.Recv()
	}
	require.ErrorIs(w, err, io.EOF)
}

// operates is what an operator does.
func (w *work) operates() {
	w.Helper()
	done[*adminv1.FlushResponse](w)(w.admin.Flush(w.Context(), &adminv1.FlushRequest{}))
	w.until("pairdb_cache_refused_total", "cache=row", func() {
		done[*storagev1.ReadResponse](w)(w.storage.Read(w.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "large"}))
	})
	done[*adminv1.SnapshotResponse](w)(w.admin.Snapshot(w.Context(), &adminv1.SnapshotRequest{Name: "first"}))
	w.until("pairdb_storage_snapshots_kept", "", func() {})
	verify, err := w.admin.Verify(w.Context(), &adminv1.VerifyRequest{})
	require.NoError(w, err)
	for err == nil {
		_, err = verify.Recv()
	}
	require.ErrorIs(w, err, io.EOF)
}

// compactorDies has the compactor killed with a job, which another attempt does when the lease is over,
// and waits until everything is merged.
func (w *work) compactorDies() {
	w.Helper()
	expired := func() bool { return highest(w.h.of("pairdb_compaction_jobs_total", "status=expired")) > 0 }
	for attempt := 0; ; attempt++ {
		require.NoError(w, w.pod.Compactor.Start())
		w.untilNow("pairdb_compactor_running_jobs", "", func(v float64) bool { return v > 0 })
		require.NoError(w, w.pod.Compactor.Kill())
		// A lease of the dead one ends within 15 s, unless its job was done just before.
		tick := time.NewTicker(100 * time.Millisecond)
		for until := time.Now().Add(20 * time.Second); !expired() && time.Now().Before(until); <-tick.C {
			w.h.look(w.Context())
		}
		tick.Stop()
		if expired() {
			break
		}
		require.Less(w, attempt, 5, "no lease ran out")
		w.pod.Compactor.Stop()
		w.fill()
	}
	w.untilNow("pairdb_storage_write_pressure", "state=none", func(v float64) bool { return v == 1 })
	w.untilNow("pairdb_compaction_leases", "origin=external", func(v float64) bool { return v == 0 })
}

// restart kills the node, which then has a log to replay.
func (w *work) restart() {
	w.Helper()
	done[*storagev1.WriteResponse](w)(w.storage.Write(w.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "k", Value: []byte("before the kill")}))
	w.h.look(w.Context())
	restarts := w.pod.Node.Restarts()
	require.NoError(w, w.pod.Node.Kill())
	podtest.Eventually(w, 30*time.Second, "the node is back", func() bool {
		return w.pod.Node.Restarts() > restarts && w.pod.IsReady(w.Context())
	})
	w.untilNow("pairdb_coordinator_registered", "", func(v float64) bool { return v == 1 })
	w.untilNow("pairdb_compactor_connected", "", func(v float64) bool { return v == 1 })
}

func TestEveryMetricMoves(t *testing.T) {
	// A metric that is defined and never set is worse than none: its panel is green for ever. Each that
	// docs/METRICS.md names must do what its row says while work is done to a pod.
	w := startWork(t)
	podtest.Eventually(t, 20*time.Second, "the compactor is connected", func() bool {
		w.h.look(t.Context())
		return highest(w.h.of("pairdb_compactor_connected", "")) > 0
	})
	stop := w.h.follow(t.Context())
	w.pod.Compactor.Stop()
	w.singles()
	w.coordinated()
	w.batches()
	w.tenants()
	w.watches()
	w.pipelines()
	stored := w.fill()
	w.reads(stored)
	w.scans()
	w.operates()
	w.untilNow("pairdb_compaction_workers", "", func(v float64) bool { return v == 0 })
	w.compactorDies()
	w.fill() // into segments that were trimmed meanwhile
	w.untilNow("pairdb_compaction_debt_bytes", "", func(v float64) bool { return v == 0 })
	w.restart()
	stop()
	w.h.look(t.Context())
	judge(t, w.h)
}

// judge compares what the metrics did with what they should have done.
func judge(t *testing.T, h *history) {
	t.Helper()
	shown := h.names()
	byName := map[string]documented{}
	for _, row := range page(t) {
		byName[row.name] = row
	}
	for name, row := range byName {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, shown, name, "docs/METRICS.md has it in the section %s, no endpoint shows it", row.process)
			test, alone := unitTested[name]
			want, moved := expectations[name]
			require.True(t, alone || moved, "say in expectations what work does to it, or in unitTested which test moves it")
			require.False(t, alone && moved, "either, not both")
			if alone {
				require.True(t, testExists(t, test), "there is no test %q", test)
				return
			}
			for _, e := range want {
				require.True(t, e.ok(h.of(name, e.labels)), "{%s}: %s; it was %s", e.labels, e.what, describe(h.of(name, e.labels)))
			}
		})
	}
	for _, name := range shown {
		require.Contains(t, byName, name, "it is shown and not in docs/METRICS.md: make docs")
	}
	for name := range expectations {
		require.Contains(t, byName, name, "it has a row in expectations and is no metric any more")
	}
	for name := range unitTested {
		require.Contains(t, byName, name, "it has a row in unitTested and is no metric any more")
	}
}

func describe(all []past) string {
	var lines []string
	for _, p := range all {
		lines = append(lines, fmt.Sprintf("%v from %g to %g, now %g", p.labels, p.min, p.max, p.value))
	}
	if len(lines) == 0 {
		return "not there"
	}
	return strings.Join(lines, "; ")
}
