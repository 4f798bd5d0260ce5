package sidecartest

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/integration/nemesis"
	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
	"github.com/pairdb/pairdb/libs/sidecar"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

// small makes a node that has something to merge after a few megabytes, and nobody but the test to
// do it.
var small = []string{"PAIRDB_COMPACTION_LOCAL=never", "PAIRDB_MEMTABLE_BYTES=1MiB", "PAIRDB_TABLE_BYTES=1MiB"}

// hostile is a worker of the test at a pod's socket.
type hostile struct {
	*testing.T
	pod    *localpod.Pod
	client compactionv1.CompactionServiceClient
}

func newHostile(t *testing.T, pod *localpod.Pod) *hostile {
	t.Helper()
	conn, err := sidecar.Dial(pod.Socket)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return &hostile{T: t, pod: pod, client: compactionv1.NewCompactionServiceClient(conn)}
}

// lease waits for a merge.
func (h *hostile) lease() *compactionv1.Job {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), 30*time.Second)
	defer cancel()
	for {
		r, err := h.client.Lease(ctx, &compactionv1.LeaseRequest{Worker: "hostile", FreeSlots: 1, TotalSlots: 1, Formats: []uint32{1}})
		require.NoError(h, err, "no job to take")
		if jobs := r.GetJobs(); len(jobs) == 1 && jobs[0].GetKind() == compactionv1.JobKind_JOB_KIND_MERGE {
			return jobs[0]
		}
	}
}

func (h *hostile) output(k *compactionv1.JobKey, index int) string {
	return nemesis.Output(h.pod.DataDir, k, index)
}

// work does a job as it should be done and returns the report.
func (h *hostile) work(j *compactionv1.Job) *compactionv1.CompleteRequest {
	h.Helper()
	r, err := nemesis.Work(h.Context(), h.pod.DataDir, j)
	require.NoError(h, err)
	return r
}

func (h *hostile) complete(r *compactionv1.CompleteRequest) *compactionv1.CompleteResponse {
	h.Helper()
	resp, err := h.client.Complete(h.Context(), r)
	require.NoError(h, err)
	return resp
}

const (
	installed        = compactionv1.CompleteResponse_VERDICT_INSTALLED
	alreadyInstalled = compactionv1.CompleteResponse_VERDICT_ALREADY_INSTALLED
	rejected         = compactionv1.CompleteResponse_VERDICT_REJECTED
	fenced           = compactionv1.CompleteResponse_VERDICT_FENCED
)

// spread names record i so that every memtable covers the whole range of keys: tables that do not
// overlap are moved, not merged.
func spread(i int) string { return fmt.Sprintf("key-%06d", i*7919%100_003) }

// fill writes records until merges are due, and returns how many there are.
func fill(t *testing.T, c *client.Client, from int) int {
	t.Helper()
	var b client.Batch
	to := from + 6000 // six memtables
	for n := from; n < to; n += 200 {
		b.Reset()
		for i := n; i < n+200; i++ {
			b.Put(spread(i), valueOf(i))
		}
		require.NoError(t, c.Write(t.Context(), &b))
	}
	return to
}

// requireIntact reads everything back, and has the node read every table.
func requireIntact(t *testing.T, c *client.Client, stored int) {
	t.Helper()
	keys := make([]string, 0, 200)
	for n := 0; n < stored; n += 200 {
		keys = keys[:0]
		for i := n; i < min(n+200, stored); i++ {
			keys = append(keys, spread(i))
		}
		values, err := c.GetMany(t.Context(), keys)
		require.NoError(t, err)
		for i, v := range values {
			require.True(t, v.Found, "%s is lost", keys[i])
			require.Equal(t, valueOf(n+i), v.Bytes, keys[i])
		}
	}
	verify, err := c.Admin().Verify(t.Context(), &adminv1.VerifyRequest{})
	require.NoError(t, err)
	for {
		p, err := verify.Recv()
		require.NoError(t, err)
		require.Empty(t, p.GetCorrupt())
		if p.GetFinished() {
			return
		}
	}
}

func TestStalledCrashedAndLateWorkersAreReplaced(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{Env: small, NoCompactor: true})
	pod := pods.All()[0]
	c := podtest.Client(t, pod.Addr, client.Options{})
	stored := fill(t, c, 0)

	h := newHostile(t, pod)
	j := h.lease()
	late := h.work(j) // and then it says nothing for a lease
	second := newHostile(t, pod)
	again := second.lease()
	require.Equal(t, j.GetKey().GetId(), again.GetKey().GetId())
	require.Equal(t, j.GetKey().GetEpoch()+1, again.GetKey().GetEpoch())
	require.Equal(t, fenced, h.complete(late).GetVerdict())
	beat, err := h.client.Heartbeat(t.Context(), &compactionv1.HeartbeatRequest{Key: j.GetKey(), DoneBytes: 1})
	require.NoError(t, err)
	require.Equal(t, compactionv1.HeartbeatResponse_VERDICT_STOP, beat.GetVerdict())
	require.Equal(t, installed, second.complete(second.work(again)).GetVerdict())
	require.Positive(t, status(t, c).Compaction.Expired)
	requireIntact(t, c, stored)

	// The node restarts under a worker: what it was granted is nobody's.
	stored = fill(t, c, stored)
	j = h.lease()
	late = h.work(j)
	require.NoError(t, pod.Node.Kill())
	require.NoError(t, pods.Ready(t.Context()))
	podtest.Eventually(t, 20*time.Second, "the node answers on its socket", func() bool {
		resp, err := h.client.Complete(t.Context(), late)
		if err != nil {
			require.Equal(t, codes.Unavailable, grpcstatus.Code(err))
			return false
		}
		require.Equal(t, fenced, resp.GetVerdict())
		return true
	})
	_, err = os.Stat(h.output(j.GetKey(), 1))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Equal(t, installed, h.complete(h.work(h.lease())).GetVerdict())
	requireIntact(t, c, stored)
}

func TestTwoCompactorsShareTheWork(t *testing.T) {
	// An update in place, or a mistake: for a while there are two. They are two workers.
	pods, log := podtest.Start(t, localpod.Options{Env: small})
	pod := pods.All()[0]
	second := exec.CommandContext(context.Background(), filepath.Join(podtest.Binaries(t), "compactor")) // ended below
	second.Env = append(os.Environ(), "PAIRDB_SOCKET="+pod.Socket, "PAIRDB_DATA_DIR="+pod.DataDir, "PAIRDB_COMPACTOR_OPS_ADDR=127.0.0.1:0")
	second.Stdout, second.Stderr = log, log
	require.NoError(t, second.Start())
	t.Cleanup(func() {
		_ = second.Process.Signal(os.Interrupt)
		require.NoError(t, second.Wait())
	})
	c := podtest.Client(t, pod.Addr, client.Options{})
	podtest.Eventually(t, 20*time.Second, "both compactors are there", func() bool { return len(status(t, c).Workers) == 2 })
	stored := 0
	for range 3 {
		stored = fill(t, c, stored)
	}
	podtest.Eventually(t, time.Minute, "the work is done", func() bool {
		s := status(t, c)
		return s.Compaction.InstalledExternal > 0 && len(s.Jobs) == 0
	})
	s := status(t, c)
	require.Zero(t, s.Compaction.Rejected)
	require.Zero(t, s.Compaction.Expired)
	requireIntact(t, c, stored)
}

func TestSocketIsForTheUsersInTheTableOnly(t *testing.T) {
	// The socket is in a volume that all containers of the pod see.
	other := os.Getuid() + 1
	pods, _ := podtest.Start(t, localpod.Options{NoCompactor: true, Env: []string{fmt.Sprintf("PAIRDB_SOCKET_UIDS=%d=compaction", other)}})
	h := newHostile(t, pods.All()[0])
	_, err := h.client.Lease(t.Context(), &compactionv1.LeaseRequest{Worker: "w", FreeSlots: 1, TotalSlots: 1, Formats: []uint32{1}}, grpc.WaitForReady(true))
	require.Equal(t, codes.PermissionDenied, grpcstatus.Code(err))
}
