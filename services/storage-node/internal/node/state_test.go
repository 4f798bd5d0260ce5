package node

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

func names(t *testing.T, s *state, now time.Time) (notReady, notLive, degraded string) {
	t.Helper()
	for _, r := range s.notReady(now) {
		notReady += r.Name
	}
	for _, r := range s.notLive() {
		notLive += r.Name
	}
	for _, r := range s.degraded() {
		degraded += r.Name + " "
	}
	return notReady, notLive, degraded
}

// Probes decide over restarts and traffic: each state is a row.
func TestProbesByState(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		name                        string
		change                      func(*state)
		notReady, notLive, degraded string
	}{
		{"recovering", func(*state) {}, "recovering", "", ""},
		{"serving", func(s *state) { s.phase = server.StateServing }, "", "", ""},
		{"writes refused: reads go on", func(s *state) { s.phase, s.pressure = server.StateServing, "24 tables" }, "", "", "pressure "},
		{"no compactor", func(s *state) { s.phase, s.noWorkers = server.StateServing, true }, "", "", "compaction "},
		{"quarantine", func(s *state) { s.phase, s.quarantined = server.StateServing, 1 }, "", "", "quarantine "},
		{"slow disk", func(s *state) { s.phase, s.stalled = server.StateServing, now.Add(-9*time.Second) }, "", "", ""},
		{"hung disk", func(s *state) { s.phase, s.stalled = server.StateServing, now.Add(-10*time.Second) }, "stalled", "", ""},
		{"poisoned", func(s *state) { s.phase = server.StatePoisoned }, "poisoned", "poisoned", ""},
		{"stopping", func(s *state) { s.phase = server.StateStopping }, "stopping", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s state
			c.change(&s)
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
	require.Equal(t, "compaction pressure quarantine ", degraded)
	for _, want := range []string{"msg=flushed", "took=1s", "table=9", `error="bad checksum"`, "kind=installed", "job=000007.e1", "inputs=4", "level=ERROR msg=poisoned"} {
		require.Contains(t, log.String(), want)
	}
	require.NotContains(t, log.String(), "kind=leased", "leases are for debugging")
	require.Equal(t, 1, testutil.CollectAndCount(v.jobDuration))

	v.handle(engine.Event{Kind: engine.EventPressure})
	v.handle(job(jobs.EventWorkersBack))
	_, _, degraded = names(t, &s, time.Now())
	require.Equal(t, "quarantine ", degraded)
}

// A call must count once, under its own kind and result.
func TestRequestMetricsByKindAndResult(t *testing.T) {
	m := newRequestMetrics(prometheus.Labels{"node_id": "n1"})
	put := &storagev1.BatchOp{Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: make([]byte, 10)}}}
	for _, c := range []server.Call{
		{Request: &storagev1.WriteRequest{Value: make([]byte, 5)}},
		{Request: &storagev1.DeleteRequest{}},
		{Request: &storagev1.BatchWriteRequest{Ops: []*storagev1.BatchOp{put, put, {}}}},
		{Request: &storagev1.WriteRequest{}, Code: codes.ResourceExhausted},
		{Request: &storagev1.WriteRequest{}, Code: codes.DataLoss},
		{Request: &storagev1.ReadRequest{}, Response: &storagev1.ReadResponse{Value: make([]byte, 3)}},
		{Request: &storagev1.BatchReadRequest{Keys: []string{"a", "b"}}, Response: &storagev1.BatchReadResponse{
			Results: []*storagev1.BatchReadResult{{Response: &storagev1.ReadResponse{Value: make([]byte, 4)}}, {}},
		}},
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
}

// Operations of a pipeline must count one by one, with their durations, or a node that serves pipelines looks
// idle.
func TestRequestMetricsOfPipelines(t *testing.T) {
	m := newRequestMetrics(prometheus.Labels{"node_id": "n1"})
	var reads, writes []float64
	m.read.duration = prometheus.ObserverFunc(func(v float64) { reads = append(reads, v) })
	m.write.duration = prometheus.ObserverFunc(func(v float64) { writes = append(writes, v) })
	m.pipelined(server.Pipelined{Reads: 2, RejectedReads: 1, ReadBytes: 7, ReadTook: []time.Duration{time.Second, 2 * time.Second, 3 * time.Second}})
	m.pipelined(server.Pipelined{Writes: 2, FailedWrites: 1, WriteBytes: 9, WriteTook: 4 * time.Second})
	require.Equal(t, []float64{1, 2, 3}, reads)
	require.Equal(t, []float64{4, 4, 4}, writes)
	require.InDelta(t, 2, testutil.ToFloat64(m.read.success), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.read.rejected), 0)
	require.InDelta(t, 2, testutil.ToFloat64(m.write.items), 0)
	require.InDelta(t, 1, testutil.ToFloat64(m.write.failed), 0)
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
	c := server.Call{Request: &storagev1.ReadRequest{}, Response: &storagev1.ReadResponse{Value: make([]byte, 100)}, Took: 50 * time.Microsecond}
	for b.Loop() {
		m.observe(c)
	}
}
