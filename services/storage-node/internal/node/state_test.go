package node

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/libs/service"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/memory"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

func names(t *testing.T, s *state, now time.Time) (notReady, notLive, degraded string) {
	t.Helper()
	join := func(rs []service.Reason) string {
		var out []string
		for _, r := range rs {
			out = append(out, r.Name)
		}
		return strings.Join(out, " ")
	}
	return join(s.notReady(now)), join(s.notLive(now)), join(s.degraded())
}

// Probes decide over restarts and traffic: each state is a row.
func TestProbesByState(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		name                        string
		phase                       server.State
		change                      func(*state)
		started                     bool
		notReady, notLive, degraded string
	}{
		{"recovering", server.StateRecovering, func(*state) {}, false, "recovering", "", ""},
		{"recovering from a disk that hangs", server.StateRecovering, func(s *state) { s.probing = now.Add(-time.Hour) }, false, "recovering stalled", "", ""},
		{"serving", server.StateServing, func(*state) {}, true, "", "", ""},
		{"writes refused: reads go on", server.StateServing, func(s *state) { s.pressure = "24 tables" }, true, "", "", "pressure"},
		{"no compactor", server.StateServing, func(s *state) { s.noWorkers = true }, true, "", "", "compaction"},
		{"quarantine", server.StateServing, func(s *state) { s.quarantined = 1 }, true, "", "", "quarantine"},
		{"the list of tenants is damaged", server.StateServing, func(s *state) { s.tenants = "not readable" }, true, "", "", "tenants"},
		{"NATS is away", server.StateServing, func(s *state) { s.events = "NATS is not reached" }, true, "", "", "events"},
		{"two nodes of one name", server.StateServing, func(s *state) { s.members = []service.Reason{{Name: reasonDuplicate}} }, true, "", "", "duplicate-id"},
		{"disk with a warning", server.StateServing, func(s *state) { s.disk = engine.SpaceWarning }, true, "", "", "disk"},
		{"full disk: reads go on", server.StateServing, func(s *state) { s.disk, s.pressure = engine.SpaceFull, "full" }, true, "", "", "pressure disk"},
		{"memory is short", server.StateServing, func(s *state) { s.memory = memory.High }, true, "", "", "memory"},
		{"many files", server.StateServing, func(s *state) { s.files, s.fileLimit = 800, 1000 }, true, "", "", ""},
		{"too many files", server.StateServing, func(s *state) { s.files, s.fileLimit = 801, 1000 }, true, "", "", "files"},
		{"files without a known limit", server.StateServing, func(s *state) { s.files = 801 }, true, "", "", ""},
		{"many goroutines", server.StateServing, func(s *state) { s.goroutines = 10_000 }, true, "", "", ""},
		{"too many goroutines", server.StateServing, func(s *state) { s.goroutines = 10_001 }, true, "", "", "goroutines"},
		{"data directory is read-only", server.StateServing, func(s *state) { s.probeFailed = "EROFS" }, true, "data-dir", "", ""},
		{"slow disk", server.StateServing, func(s *state) { s.stalled = now.Add(-9 * time.Second) }, true, "", "", ""},
		{"hung disk", server.StateServing, func(s *state) { s.stalled = now.Add(-10 * time.Second) }, true, "stalled", "", ""},
		{"slow write test", server.StateServing, func(s *state) { s.probing = now.Add(-9 * time.Second) }, true, "", "", ""},
		{"hung write test", server.StateServing, func(s *state) { s.probing = now.Add(-10 * time.Second) }, true, "stalled", "", ""},
		{"hung at the limit", server.StateServing, func(s *state) { s.stalled = now.Add(-2 * time.Minute) }, true, "stalled", "", ""},
		{"hung beyond it", server.StateServing, func(s *state) { s.stalled = now.Add(-2*time.Minute - 1) }, true, "stalled", "stalled", ""},
		{"poisoned", server.StatePoisoned, func(*state) {}, true, "poisoned", "poisoned", ""},
		{"stopping", server.StateStopping, func(*state) {}, true, "stopping", "", ""},
		{"stopping on a disk that hangs", server.StateStopping, func(s *state) { s.stalled = now.Add(-time.Hour) }, true, "stopping stalled", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := state{phase: c.phase, stallLimit: 2 * time.Minute}
			c.change(&s)
			require.Equal(t, c.started, len(s.notStarted()) == 0)
			notReady, notLive, degraded := names(t, &s, now)
			ready, problems := s.health(now)
			require.Equal(t, c.notReady == "", ready)
			require.Equal(t, notReady+degraded != "", len(problems) > 0, "%v", problems)
			require.Equal(t, c.notReady, notReady)
			require.Equal(t, c.notLive, notLive)
			require.Equal(t, c.degraded, degraded)
		})
	}
}

// A node that is poisoned or stopping must not become ready again because its open ends late.
func TestPhasesOnlyMoveForward(t *testing.T) {
	var s state
	require.True(t, s.enter(server.StateStopping, "x"))
	require.False(t, s.enter(server.StateServing, ""))
	phase, reason := s.get()
	require.Equal(t, server.StateStopping, phase)
	require.Equal(t, "x", reason)
}

func TestRecoveryProgressIsVisible(t *testing.T) {
	var s state
	var log bytes.Buffer
	v := newEvents(slog.New(slog.NewTextHandler(&log, nil)), &s, nil, nil)
	for done := int64(0); done <= 1000; done += 10 {
		v.handle(engine.Event{Kind: engine.EventRecovery, Bytes: done << 20, Total: 1000 << 20})
	}
	r := s.notReady(time.Now())[0]
	require.InDelta(t, 1.0, *r.Progress, 0)
	require.Equal(t, "1000 of 1000 MiB of the commit log replayed", r.Detail)
	require.Equal(t, float64(1000<<20), testutil.ToFloat64(v.replayed))
	require.Equal(t, float64(1000<<20), testutil.ToFloat64(v.toReplay))
	require.Equal(t, 11, bytes.Count(log.Bytes(), []byte("msg=recovery")), "a line for each tenth")
}

// Events become state, durations and log lines; the poison reaches who ends the process.
func TestEventsBecomeStateMetricsAndLogs(t *testing.T) {
	var s state
	var log bytes.Buffer
	var poisoned error
	v := newEvents(slog.New(slog.NewTextHandler(&log, nil)), &s, nil, func(err error) { poisoned = err })
	job := func(k jobs.EventKind) engine.Event {
		return engine.Event{Kind: engine.EventJob, Job: &jobs.Event{Kind: k, Key: jobs.Key{ID: 7, Epoch: 1}, Inputs: 4, Outputs: 2, Duration: time.Second, Worker: "w", Reason: "why"}}
	}
	for _, e := range []engine.Event{
		{Kind: engine.EventFlushed, Bytes: 5, Tables: 1, Duration: time.Second},
		{Kind: engine.EventPressure, Reason: "24 tables"},
		{Kind: engine.EventQuarantined, Table: 9, Err: errors.New("bad checksum")},
		job(jobs.EventInstalled), job(jobs.EventLeased), job(jobs.EventWorkersGone), job(jobs.EventExpired), job(jobs.EventQuarantined),
		{Kind: engine.EventJob},
		{Kind: engine.EventPoisoned, Err: errors.New("EIO")},
	} {
		v.handle(e)
	}
	require.EqualError(t, poisoned, "EIO")
	_, _, degraded := names(t, &s, time.Now())
	require.Equal(t, "compaction pressure quarantine", degraded)
	for _, want := range []string{"msg=flushed", "took=1s", "table=9", `error="bad checksum"`, "kind=installed", "job=000007.e1", "inputs=4", "level=ERROR msg=poisoned"} {
		require.Contains(t, log.String(), want)
	}
	require.NotContains(t, log.String(), "kind=leased", "leases are for debugging")
	require.Equal(t, 1, testutil.CollectAndCount(v.jobDuration))
	require.Equal(t, 1.0, testutil.ToFloat64(v.ofEngine.WithLabelValues("poisoned")))
	require.Equal(t, 1.0, testutil.ToFloat64(v.ofBoard.WithLabelValues("expired")))
	require.Equal(t, int(engine.EventClosed)+1, testutil.CollectAndCount(v.ofEngine), "every kind has its series from the start, and there are no others")
	require.Equal(t, int(jobs.EventCleanup)+1, testutil.CollectAndCount(v.ofBoard))

	v.handle(engine.Event{Kind: engine.EventPressure})
	v.handle(job(jobs.EventWorkersBack))
	_, _, degraded = names(t, &s, time.Now())
	require.Equal(t, "quarantine", degraded)
}

// A call must count once, under its own kind and result.
func TestRequestMetricsByKindAndResult(t *testing.T) {
	m := newRequestMetrics(prometheus.Labels{"node_id": "n1"})
	put := &storagev1.BatchOp{Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: make([]byte, 10)}}}
	for _, c := range []server.Call{
		{Request: &storagev1.WriteRequest{Value: make([]byte, 5)}},
		{Request: &storagev1.DeleteRequest{}},
		{Request: &storagev1.BatchWriteRequest{Ops: []*storagev1.BatchOp{put, put, {}}}, Response: &storagev1.BatchWriteResponse{
			Results: []*storagev1.BatchWriteResult{{}, {}, {Error: &storagev1.ItemError{Reason: "INVALID_ARGUMENT_KEY"}}},
		}},
		{Request: &storagev1.WriteRequest{}, Code: codes.ResourceExhausted, Reason: "OVERLOADED"},
		{Request: &storagev1.WriteRequest{}, Code: codes.DataLoss, Reason: "CORRUPTED_DATA"},
		{Request: &storagev1.ReadRequest{}, Response: &storagev1.ReadResponse{Value: make([]byte, 3)}},
		{Request: &storagev1.BatchReadRequest{Keys: []string{"a", "b"}}, Response: &server.Encoded{ValueBytes: 4, Reasons: []string{"INVALID_ARGUMENT_KEY"}}},
		{Request: &storagev1.GetKeyRangeRequest{}, Response: &storagev1.GetKeyRangeResponse{Keys: make([]*storagev1.KeyEntry, 6)}},
		{Request: &storagev1.RepairRequest{}},
		{Method: "stream"},
	} {
		m.observe(c)
	}
	require.InDelta(t, 3, testutil.ToFloat64(m.write.success), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.write.rejected), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.write.failed), 0)
	require.InDelta(t, 5, testutil.ToFloat64(m.write.items), 0)
	require.InDelta(t, 9, testutil.ToFloat64(m.read.items), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.repair.success), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.other.success), 0)
	for reason, n := range map[string]float64{"OVERLOADED": 1, "CORRUPTED_DATA": 1, "INVALID_ARGUMENT_KEY": 2} {
		require.InDelta(t, n, testutil.ToFloat64(m.reasons.byReason[reason]), 0, reason)
	}
}

// Operations of a pipeline must count one by one, with their durations, or a node that serves pipelines looks
// idle.
func TestRequestMetricsOfPipelines(t *testing.T) {
	m := newRequestMetrics(prometheus.Labels{"node_id": "n1"})
	var reads, writes []float64
	m.read.duration = prometheus.ObserverFunc(func(v float64) { reads = append(reads, v) })
	m.write.duration = prometheus.ObserverFunc(func(v float64) { writes = append(writes, v) })
	m.pipelined(server.Pipelined{Reads: 2, RejectedReads: 1, ReadBytes: 7, Reasons: []string{"INVALID_ARGUMENT_KEY"}, ReadTook: []time.Duration{time.Second, 2 * time.Second, 3 * time.Second}})
	m.pipelined(server.Pipelined{Writes: 2, FailedWrites: 1, WriteBytes: 9, WriteTook: 4 * time.Second})
	require.Equal(t, []float64{1, 2, 3}, reads)
	require.Equal(t, []float64{4, 4, 4}, writes)
	require.InDelta(t, 2, testutil.ToFloat64(m.read.success), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.read.rejected), 0)
	require.InDelta(t, 2, testutil.ToFloat64(m.write.items), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.write.failed), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.reasons.byReason["INVALID_ARGUMENT_KEY"]), 0)
	require.InDelta(t, 3, testutil.ToFloat64(m.readPipelined), 0)
	require.InDelta(t, 3, testutil.ToFloat64(m.writePipelined), 0)
}

// Existing coordinators are clients like others; a write of theirs that changed nothing is counted as
// what it was, because they are not told.
func TestRequestMetricsOfCoordinators(t *testing.T) {
	m := newRequestMetrics(prometheus.Labels{"node_id": "n1"})
	stale := storagev1.Outcome_OUTCOME_STALE
	for _, c := range []server.Call{
		{Request: &storagenodev1.WriteRequest{Value: make([]byte, 5)}, Response: &storagenodev1.WriteResponse{Success: true, Outcome: storagev1.Outcome_OUTCOME_APPLIED}},
		{Request: &storagenodev1.WriteRequest{}, Response: &storagenodev1.WriteResponse{Success: true, Outcome: stale}},
		{Request: &storagenodev1.DeleteRequest{}, Response: &storagenodev1.DeleteResponse{Success: true, Outcome: stale}},
		{Request: &storagenodev1.WriteRequest{}, Response: &storagenodev1.WriteResponse{}, Code: codes.DataLoss}, // in the answer
		{Request: &storagenodev1.ReadRequest{}, Response: &storagenodev1.ReadResponse{Success: true, Value: make([]byte, 3)}},
		{Request: &storagenodev1.GetKeyRangeRequest{}, Response: &storagenodev1.GetKeyRangeResponse{Keys: make([]string, 6)}},
		{Request: &storagenodev1.RepairRequest{}, Response: &storagenodev1.RepairResponse{Success: true}},
		{Request: &storagenodev1.HealthCheckRequest{}},
	} {
		m.observe(c)
	}
	require.InDelta(t, 3, testutil.ToFloat64(m.write.success), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.write.failed), 0)
	require.InDelta(t, 7, testutil.ToFloat64(m.read.items), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.repair.success), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.other.success), 0)
	require.InDelta(t, 2, testutil.ToFloat64(m.coordinated[stale]), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.coordinated[storagev1.Outcome_OUTCOME_APPLIED]), 0)
}

// BenchmarkObserve is what recording costs a read.
func BenchmarkObserve(b *testing.B) {
	m := newRequestMetrics(nil)
	c := server.Call{Method: storagev1.StorageService_Read_FullMethodName, Request: &storagev1.ReadRequest{}, Response: &server.Encoded{ValueBytes: 100}, Took: 50 * time.Microsecond}
	b.ReportAllocs()
	start := processorTime(b)
	for b.Loop() {
		m.observe(c)
	}
	b.ReportMetric(float64(processorTime(b)-start)/float64(b.N), "cpu-ns/op")
}
