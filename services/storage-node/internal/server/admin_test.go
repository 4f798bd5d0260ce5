package server

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/libs/ikey"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/picker"
)

// An operator asks for the status exactly when something is wrong: it must answer in every phase.
func TestStatusAnswersInEveryPhase(t *testing.T) {
	for phase := StateRecovering; phase <= StateStopping; phase++ {
		w := start(t, func(w *world, _ *Options) { w.phase = phase })
		resp, err := w.admin.Status(t.Context(), &adminv1.StatusRequest{})
		require.NoError(t, err)
		require.Equal(t, phase.String(), resp.GetState())
		require.Equal(t, "why", resp.GetReason())
		require.Equal(t, "n1", resp.GetNodeId())
		require.Equal(t, phase != StateRecovering, resp.GetCompaction() != nil)
	}
}

func TestStatusTellsPressureTreeAndWorkers(t *testing.T) {
	w := start(t)
	w.vitals.Degraded = []Reason{{Name: "disk", Detail: "nearly full"}, {Name: "memory", Detail: ""}}
	w.engine.numbers.Pressure.Refuse, w.engine.numbers.Pressure.Reason = true, "24 tables in level 0"
	w.engine.numbers.Levels[1] = picker.Level{Tables: 2, Bytes: 300, TargetBytes: 600, Score: 0.5}
	w.engine.numbers.Board = jobs.Status{
		Workers: []jobs.WorkerStatus{{Name: "w", TotalSlots: 4, Leases: 1, Idle: time.Second}},
		Jobs:    []jobs.JobStatus{{Key: jobs.Key{ID: 9, Epoch: 2}, Scrub: true, InputLevel: 1, OutputLevel: 2, Inputs: []uint64{1, 2}}},
		Totals:  jobs.Totals{InstalledExternal: 5, InstalledLocal: 6},
	}
	w.engine.tables = []engine.TableInfo{{Level: 1, Num: 7, Name: "000007.sst", Quarantined: true}}
	resp, err := w.admin.Status(t.Context(), &adminv1.StatusRequest{})
	require.NoError(t, err)
	require.Equal(t, "read-only", resp.GetState())
	require.Equal(t, "refused", resp.GetWritePressure())
	require.Equal(t, "24 tables in level 0", resp.GetReason())
	require.EqualValues(t, 300, resp.GetLevels()[1].GetSizeBytes())
	require.EqualValues(t, 600, resp.GetLevels()[1].GetTargetBytes())
	require.InDelta(t, 0.5, resp.GetLevels()[1].GetScore(), 0)
	require.EqualValues(t, 5, resp.GetCompaction().GetInstalledExternal())
	require.EqualValues(t, 6, resp.GetCompaction().GetInstalledLocal())
	require.Equal(t, "auto", resp.GetCompaction().GetLocalMode())
	require.EqualValues(t, 1000, resp.GetWorkers()[0].GetLastSeenMsAgo())
	require.Equal(t, "scrub", resp.GetJobs()[0].GetKind())
	require.EqualValues(t, 7, resp.GetQuarantined()[0].GetNumber())
	require.Equal(t, []string{"disk: nearly full", "memory"}, resp.GetDegraded(), "what the probes say")
}

func TestTablesAreListedPrintably(t *testing.T) {
	w := start(t)
	info := engine.TableInfo{Level: 3, Num: 12}
	info.Smallest = ikey.Make([]byte("t\x00a\x1b[31m\xff"), 1, ikey.KindSet)
	w.engine.tables = []engine.TableInfo{info}
	resp, err := w.admin.Tables(t.Context(), &adminv1.TablesRequest{})
	require.NoError(t, err)
	require.Equal(t, `t/a\x1b[31m\xff`, resp.GetTables()[0].GetSmallest(), "a terminal must not obey a key")
	require.EqualValues(t, 12, resp.GetTables()[0].GetNumber())
}

// A range that is read wrongly compacts, and shows as done, something else.
func TestCompactBoundsAreEngineKeys(t *testing.T) {
	for _, c := range []struct {
		tenant, from, to string
		start, end       string
		ok               bool
	}{
		{"", "", "", "", "", true},
		{"t", "", "", "t\x00", "t\x01", true},
		{"t", "a", "", "t\x00a", "t\x01", true},
		{"t", "a", "b", "t\x00a", "t\x00b", true},
		{"", "a", "", "", "", false},
		{"t", "b", "a", "", "", false},
		{"t\x00", "", "", "", "", false},
		{"t", "\x00", "", "", "", false},
		{strings.Repeat("t", 257), "", "", "", "", false},
		{"t", strings.Repeat("k", 1025), "", "", "", false},
	} {
		start, end, err := compactBounds(&adminv1.CompactRequest{Tenant: c.tenant, Range: &datav1.KeyRange{Start: c.from, End: c.to}})
		require.Equal(t, c.ok, err == nil, "%+v", c)
		if c.ok {
			require.Equal(t, [2]string{c.start, c.end}, [2]string{string(start), string(end)})
		}
	}
}

func tableOf(smallest, largest string, size uint64) engine.TableInfo {
	var info engine.TableInfo
	info.Smallest, info.Largest, info.Size = ikey.Make([]byte(smallest), 1, ikey.KindSet), ikey.Make([]byte(largest), 1, ikey.KindSet), size
	return info
}

// A long call tells its progress and its end.
func TestCompactAndVerifyReportProgress(t *testing.T) {
	w := start(t)
	told := make(chan struct{})
	w.engine.work = func(ctx context.Context, progress func(done, total int64)) error {
		progress(50, 100)
		select {
		case <-told:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	w.engine.tables = []engine.TableInfo{
		tableOf("t\x00a", "t\x00b", 100), tableOf("t\x00c", "u\x00a", 1000), tableOf("u\x00b", "u\x00c", 5000),
	}
	w.engine.found = []engine.Finding{{File: "sst/000012.sst", Problem: "bad checksum"}}
	compact, err := w.admin.Compact(t.Context(), &adminv1.CompactRequest{Tenant: "t"})
	require.NoError(t, err)
	half, err := compact.Recv()
	require.NoError(t, err)
	require.EqualValues(t, 50, half.GetDoneBytes())
	require.False(t, half.GetFinished())
	close(told)
	for !half.GetFinished() {
		half, err = compact.Recv()
		require.NoError(t, err)
	}
	require.EqualValues(t, 1100, half.GetDoneBytes())
	require.EqualValues(t, 1100, half.GetTotalBytes())
	_, err = compact.Recv()
	require.ErrorIs(t, err, io.EOF)

	verify, err := w.admin.Verify(t.Context(), &adminv1.VerifyRequest{})
	require.NoError(t, err)
	last, err := verify.Recv()
	require.NoError(t, err)
	require.True(t, last.GetFinished())
	require.EqualValues(t, 12, last.GetCorrupt()[0].GetNumber())
	require.Contains(t, last.GetCorrupt()[0].GetReason(), "bad checksum")

	bad, err := w.admin.Verify(t.Context(), &adminv1.VerifyRequest{MaxBytesPerSecond: -1})
	require.NoError(t, err)
	_, err = bad.Recv()
	require.Equal(t, codes.InvalidArgument, refused(t, err).code)
}

// A client that goes away must not leave a compaction of everything behind that nobody waits for.
func TestCancelledLongCallEndsItsWork(t *testing.T) {
	w := start(t)
	ended := make(chan error, 1)
	w.engine.work = func(ctx context.Context, _ func(done, total int64)) error {
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := w.admin.Compact(ctx, &adminv1.CompactRequest{})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
}

func TestFlushAndSnapshotsOverTheWire(t *testing.T) {
	w := start(t)
	_, err := w.admin.Flush(t.Context(), &adminv1.FlushRequest{})
	require.NoError(t, err)
	w.engine.fail = engine.ErrDiskFull
	_, err = w.admin.Flush(t.Context(), &adminv1.FlushRequest{})
	require.Equal(t, "DISK_FULL", refused(t, err).reason)

	made, err := w.admin.Snapshot(t.Context(), &adminv1.SnapshotRequest{Name: "s1"})
	require.NoError(t, err)
	require.Equal(t, "snapshots/s1", made.GetSnapshot().GetPath())
	require.EqualValues(t, 9, made.GetSnapshot().GetSizeBytes())
	list, err := w.admin.ListSnapshots(t.Context(), &adminv1.ListSnapshotsRequest{})
	require.NoError(t, err)
	require.Len(t, list.GetSnapshots(), 1)
	_, err = w.admin.DeleteSnapshot(t.Context(), &adminv1.DeleteSnapshotRequest{Name: "s1"})
	require.NoError(t, err)
	_, err = w.admin.Snapshot(t.Context(), &adminv1.SnapshotRequest{Name: "../s1"})
	require.Equal(t, "INVALID_ARGUMENT_SNAPSHOT_NAME", refused(t, err).reason)
	for _, c := range []struct {
		err    error
		reason string
	}{{ErrSnapshotExists, "SNAPSHOT_EXISTS"}, {ErrNoSnapshot, "SNAPSHOT_NOT_FOUND"}, {errors.New("x"), "INTERNAL"}} {
		w.snapshots.fail = c.err
		_, err = w.admin.DeleteSnapshot(t.Context(), &adminv1.DeleteSnapshotRequest{Name: "s1"})
		require.Equal(t, c.reason, refused(t, err).reason)
	}
}
