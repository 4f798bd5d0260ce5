package server_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/wire"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

const dataDir = "data"

// installer takes what the board installs.
type installer struct {
	mu        sync.Mutex
	installed int
	released  map[uint64]jobs.State
	gate      chan struct{} // Install waits for it, if there is one
}

func (i *installer) Check(*jobs.Plan) error { return nil }

func (i *installer) Install(*jobs.Plan, []compact.Output, []string, jobs.Origin) error {
	if i.gate != nil {
		<-i.gate
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.installed++
	return nil
}

func (i *installer) Quarantine(*jobs.Plan, []compact.CorruptInput) {}

func (i *installer) Release(p *jobs.Plan, s jobs.State, _ string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.released[p.Job.ID] = s
}

// socket is a board behind the wire, in virtual time.
type socket struct {
	*testing.T
	fs        *vfs.MemFS
	installer *installer
	board     *jobs.Board
	client    compactionv1.CompactionServiceClient
	listener  *bufconn.Listener
	tables    uint64
}

// onWire runs a test against a board that is reached over gRPC.
func onWire(t *testing.T, run func(t *testing.T, s *socket)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &socket{T: t, fs: vfs.NewMem(), installer: &installer{released: map[uint64]jobs.State{}}, listener: bufconn.Listen(1 << 20)}
		require.NoError(t, s.fs.MkdirAll(path.Join(dataDir, compact.TableDir), 0o770))
		var err error
		s.board, err = jobs.NewBoard(jobs.Options{
			FS: s.fs, Dir: dataDir, Now: time.Now, After: time.After, Rand: rand.New(rand.NewPCG(1, 2)),
			Installer: s.installer, VerifyProbability: 1, Mode: jobs.ModeNever,
		})
		require.NoError(t, err)
		g := grpc.NewServer()
		compactionv1.RegisterCompactionServiceServer(g, server.NewCompaction(func() *jobs.Board { return s.board }))
		go func() { _ = g.Serve(s.listener) }()
		var hangUp func()
		s.client, hangUp = s.connect()
		defer func() {
			hangUp()
			require.NoError(t, s.board.Close())
			g.Stop()
		}()
		run(t, s)
	})
}

// connect is a worker's connection of its own.
func (s *socket) connect() (compactionv1.CompactionServiceClient, func()) {
	s.Helper()
	conn, err := grpc.NewClient("passthrough:pod", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }))
	require.NoError(s, err)
	return compactionv1.NewCompactionServiceClient(conn), func() { require.NoError(s, conn.Close()) }
}

// offer queues a merge of two tables of n records.
func (s *socket) offer(n int) uint64 {
	s.Helper()
	p := &jobs.Plan{MinSeq: 100, MaxSeq: 200, Entries: uint64(2 * n)}
	for _, seq := range []ikey.Seq{200, 100} {
		s.tables++
		f, err := s.fs.Create(path.Join(dataDir, compact.TableDir, compact.TableName(s.tables)), 0o660)
		require.NoError(s, err)
		w := sstable.NewWriter(f, sstable.WriterOptions{})
		for i := range n {
			r := causal.Record{Siblings: []causal.Sibling{{
				Clock: causal.Clock{{Node: "n", Counter: 1}}, Value: fmt.Append(nil, i), Timestamp: 1 << 16,
			}}}
			require.NoError(s, w.Add(ikey.Make(fmt.Appendf(nil, "k%06d", i), seq, ikey.KindSet), r.Encode(nil)))
		}
		m, err := w.Finish()
		require.NoError(s, err)
		require.NoError(s, f.Sync())
		require.NoError(s, f.Close())
		p.Job.Inputs = append(p.Job.Inputs, compact.Input{
			Num: s.tables, Size: int64(m.Size), Digest: m.Digest, Smallest: m.Smallest, Largest: m.Largest,
		})
	}
	p.Job.Kind, p.Job.OutputLevel, p.Job.MaxOutputs = compact.Merge, 1, 4
	p.Job.Table = compact.TableOptions{Format: 1, TargetBytes: 1 << 20}
	id, err := s.board.Offer(p)
	require.NoError(s, err)
	return id
}

func leaseRequest() *compactionv1.LeaseRequest {
	return &compactionv1.LeaseRequest{Worker: "w", FreeSlots: 1, TotalSlots: 1, Formats: []uint32{1}}
}

// lease takes the job that must be there.
func (s *socket) lease() *compactionv1.Job {
	s.Helper()
	r, err := s.client.Lease(s.Context(), leaseRequest())
	require.NoError(s, err)
	require.Len(s, r.GetJobs(), 1)
	return r.GetJobs()[0]
}

// work does a job as a compactor does, and returns its report.
func (s *socket) work(j *compactionv1.Job) *compactionv1.CompleteRequest {
	s.Helper()
	g, err := wire.GrantFromProto(j)
	require.NoError(s, err)
	outs, stats, corrupt, err := compact.Run(s.Context(), g.Job, compact.Env{
		OpenInput: func(in compact.Input) (vfs.File, error) {
			return s.fs.Open(path.Join(dataDir, compact.TableDir, compact.TableName(in.Num)))
		},
		OpenOutput: func(i int) (vfs.File, error) {
			return s.fs.OpenReadWrite(path.Join(dataDir, compact.StagingDir, compact.AttemptName(g.Key.ID, g.Key.Epoch), compact.OutputName(i)))
		},
	})
	require.NoError(s, err)
	require.Empty(s, corrupt)
	ps, err := wire.OutputsToProto(outs)
	require.NoError(s, err)
	return &compactionv1.CompleteRequest{Key: wire.KeyToProto(g.Key), Outputs: ps, Stats: wire.StatsToProto(stats)}
}

func (s *socket) complete(r *compactionv1.CompleteRequest) *compactionv1.CompleteResponse {
	s.Helper()
	resp, err := s.client.Complete(s.Context(), r)
	require.NoError(s, err)
	return resp
}

const (
	installed        = compactionv1.CompleteResponse_VERDICT_INSTALLED
	alreadyInstalled = compactionv1.CompleteResponse_VERDICT_ALREADY_INSTALLED
	rejected         = compactionv1.CompleteResponse_VERDICT_REJECTED
	fenced           = compactionv1.CompleteResponse_VERDICT_FENCED
)

func TestExternalMergeIsInstalledOverTheWire(t *testing.T) {
	onWire(t, func(t *testing.T, s *socket) {
		id := s.offer(300)
		j := s.lease()
		require.Equal(t, id, j.GetKey().GetId())
		require.Equal(t, int64(15_000), j.GetLeaseMs())
		h, err := s.client.Heartbeat(t.Context(), &compactionv1.HeartbeatRequest{Key: j.GetKey(), DoneBytes: 9})
		require.NoError(t, err)
		require.Equal(t, compactionv1.HeartbeatResponse_VERDICT_CONTINUE, h.GetVerdict())
		r := s.work(j)
		require.Equal(t, installed, s.complete(r).GetVerdict())
		require.Equal(t, alreadyInstalled, s.complete(r).GetVerdict())
		require.Equal(t, 1, s.installer.installed)
		require.Equal(t, jobs.StateInstalled, s.installer.released[id])
	})
}

func TestLyingWorkerOverTheWire(t *testing.T) {
	// The wire adds its own ways to lie: numbers that do not fit, keys that are none.
	for name, c := range map[string]struct {
		tell    func(r *compactionv1.CompleteRequest)
		code    codes.Code
		verdict compactionv1.CompleteResponse_Verdict
	}{
		"digest":           {func(r *compactionv1.CompleteRequest) { r.Outputs[0].Digest++ }, codes.OK, rejected},
		"bounds":           {func(r *compactionv1.CompleteRequest) { r.Outputs[0].Largest = r.Outputs[0].Smallest }, codes.OK, rejected},
		"no outputs":       {func(r *compactionv1.CompleteRequest) { r.Outputs = nil }, codes.OK, rejected},
		"no stats":         {func(r *compactionv1.CompleteRequest) { r.Stats = nil }, codes.OK, rejected},
		"lost entries":     {func(r *compactionv1.CompleteRequest) { r.Stats.EntriesIn-- }, codes.OK, rejected},
		"index of nothing": {func(r *compactionv1.CompleteRequest) { r.Outputs[0].Index = 2 }, codes.OK, rejected},
		"one output twice": {func(r *compactionv1.CompleteRequest) { r.Outputs = append(r.Outputs, r.Outputs[0]) }, codes.OK, rejected},
		"damage as well":   {func(r *compactionv1.CompleteRequest) { r.Corrupt = []*compactionv1.CorruptInput{{Number: 1}} }, codes.OK, rejected},
		"no key":           {func(r *compactionv1.CompleteRequest) { r.Key = nil }, codes.OK, fenced},
		"other session":    {func(r *compactionv1.CompleteRequest) { r.Key.Session++ }, codes.OK, fenced},
		"other epoch":      {func(r *compactionv1.CompleteRequest) { r.Key.Epoch++ }, codes.OK, fenced},
		"negative index":   {func(r *compactionv1.CompleteRequest) { r.Outputs[0].Index = -1 }, codes.InvalidArgument, 0},
		"index of a path":  {func(r *compactionv1.CompleteRequest) { r.Outputs[0].Index = 1 << 30 }, codes.InvalidArgument, 0},
		"negative size":    {func(r *compactionv1.CompleteRequest) { r.Outputs[0].SizeBytes = -1 }, codes.InvalidArgument, 0},
		"key too short":    {func(r *compactionv1.CompleteRequest) { r.Outputs[0].Smallest = []byte("x") }, codes.InvalidArgument, 0},
		"key too long":     {func(r *compactionv1.CompleteRequest) { r.Outputs[0].Largest = make([]byte, 1<<20) }, codes.InvalidArgument, 0},
		"too many outputs": {func(r *compactionv1.CompleteRequest) { r.Outputs = slices.Repeat(r.Outputs, 65) }, codes.InvalidArgument, 0},
		"reason too long": {func(r *compactionv1.CompleteRequest) {
			r.Corrupt = []*compactionv1.CorruptInput{{Reason: strings.Repeat("x", 10_000)}}
		}, codes.InvalidArgument, 0},
	} {
		t.Run(name, func(t *testing.T) {
			onWire(t, func(t *testing.T, s *socket) {
				id := s.offer(100)
				j := s.lease()
				r := s.work(j)
				key := wire.KeyFromProto(r.GetKey())
				c.tell(r)
				resp, err := s.client.Complete(t.Context(), r)
				require.Equal(t, c.code, status.Code(err), "%v", err)
				require.Equal(t, c.verdict, resp.GetVerdict(), resp.GetReason())
				require.Zero(t, s.installer.installed)
				require.NotContains(t, s.installer.released, id)

				// A rejected attempt is over, any other one goes on; either way the job can be done.
				if c.verdict == rejected {
					j = s.lease()
					require.NotEqual(t, key, wire.KeyFromProto(j.GetKey()))
				}
				require.Equal(t, installed, s.complete(s.work(j)).GetVerdict())
			})
		})
	}
}

func TestStallingWorkerOverTheWire(t *testing.T) {
	onWire(t, func(t *testing.T, s *socket) {
		s.offer(100)
		j := s.lease()
		start := time.Now()
		for {
			h, err := s.client.Heartbeat(t.Context(), &compactionv1.HeartbeatRequest{Key: j.GetKey(), DoneBytes: 1})
			require.NoError(t, err)
			if h.GetVerdict() == compactionv1.HeartbeatResponse_VERDICT_STOP {
				break
			}
			time.Sleep(5 * time.Second)
		}
		require.InDelta(t, time.Minute, time.Since(start), float64(5*time.Second))
		require.Equal(t, installed, s.complete(s.work(s.lease())).GetVerdict())
	})
}

func TestCrashedWorkerOverTheWire(t *testing.T) {
	// The connection breaks while it polls, while it works, and while its report is being verified.
	onWire(t, func(t *testing.T, s *socket) {
		client, hangUp := s.connect()
		polled := make(chan error, 1)
		go func() { _, err := client.Lease(t.Context(), leaseRequest()); polled <- err }()
		synctest.Wait()
		hangUp()
		require.Error(t, <-polled)
		synctest.Wait()

		id := s.offer(100)
		client, hangUp = s.connect()
		_, err := client.Lease(t.Context(), leaseRequest())
		require.NoError(t, err)
		hangUp()
		start := time.Now()
		j := s.lease() // once the lease has run out
		require.Equal(t, uint32(2), j.GetKey().GetEpoch())
		require.InDelta(t, 15*time.Second, time.Since(start), float64(time.Second))

		s.installer.gate = make(chan struct{})
		report := s.work(j)
		client, hangUp = s.connect()
		reported := make(chan error, 1)
		go func() { _, err := client.Complete(t.Context(), report); reported <- err }()
		synctest.Wait()
		hangUp()
		require.Error(t, <-reported)
		time.Sleep(time.Minute)
		close(s.installer.gate)
		synctest.Wait()
		require.Equal(t, alreadyInstalled, s.complete(report).GetVerdict())
		require.Equal(t, jobs.StateInstalled, s.installer.released[id])
		require.Equal(t, 1, s.installer.installed)
	})
}

func TestDuplicateAndLateReportsOverTheWire(t *testing.T) {
	onWire(t, func(t *testing.T, s *socket) {
		s.offer(100)
		s.installer.gate = make(chan struct{})
		r := s.work(s.lease())
		verdicts := make(chan compactionv1.CompleteResponse_Verdict, 5)
		for range 5 {
			go func() {
				resp, _ := s.client.Complete(t.Context(), r)
				verdicts <- resp.GetVerdict()
			}()
		}
		synctest.Wait()
		close(s.installer.gate)
		count := map[compactionv1.CompleteResponse_Verdict]int{}
		for range 5 {
			count[<-verdicts]++
		}
		require.Equal(t, map[compactionv1.CompleteResponse_Verdict]int{installed: 1, alreadyInstalled: 4}, count)
		require.Equal(t, 1, s.installer.installed)

		s.offer(100)
		late := s.work(s.lease())
		time.Sleep(16 * time.Second)
		require.Equal(t, fenced, s.complete(late).GetVerdict())
		next := s.lease()
		require.Equal(t, fenced, s.complete(late).GetVerdict())
		require.Equal(t, installed, s.complete(s.work(next)).GetVerdict())
		require.Equal(t, fenced, s.complete(late).GetVerdict())
	})
}

func TestAbandonedJobsOverTheWire(t *testing.T) {
	onWire(t, func(t *testing.T, s *socket) {
		id := s.offer(100)
		for range 3 { // a reason of tomorrow counts as any failure
			_, err := s.client.Abandon(t.Context(), &compactionv1.AbandonRequest{
				Key: s.lease().GetKey(), Reason: 77, Detail: strings.Repeat("\x7f", 5000),
			})
			require.NoError(t, err)
		}
		require.Equal(t, jobs.StateQuarantined, s.installer.released[id])
		_, err := s.client.Abandon(t.Context(), &compactionv1.AbandonRequest{})
		require.NoError(t, err)
		_, err = s.client.Abandon(t.Context(), &compactionv1.AbandonRequest{Corrupt: make([]*compactionv1.CorruptInput, 5000)})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
	})
}

func TestWorkersThatMakeNoSenseAreRefused(t *testing.T) {
	onWire(t, func(t *testing.T, s *socket) {
		for name, change := range map[string]func(r *compactionv1.LeaseRequest){
			"nothing":        func(r *compactionv1.LeaseRequest) { *r = compactionv1.LeaseRequest{} }, //nolint:govet // fresh
			"long name":      func(r *compactionv1.LeaseRequest) { r.Worker = strings.Repeat("x", 1000) },
			"negative slots": func(r *compactionv1.LeaseRequest) { r.FreeSlots = -1 },
			"many slots":     func(r *compactionv1.LeaseRequest) { r.FreeSlots, r.TotalSlots = 1<<30, 1<<30 },
			"many formats":   func(r *compactionv1.LeaseRequest) { r.Formats = make([]uint32, 1000) },
		} {
			r := leaseRequest()
			change(r)
			_, err := s.client.Lease(t.Context(), r)
			require.Equal(t, codes.InvalidArgument, status.Code(err), "%s: %v", name, err)
		}
	})
}

func TestBoardKnowsTheUserOfAWorker(t *testing.T) {
	// Two workers may call themselves the same; the kernel tells their users apart.
	dir := t.TempDir()
	fs := vfs.OS
	board, err := jobs.NewBoard(jobs.Options{
		FS: fs, Dir: dir, Now: time.Now, After: time.After, Rand: rand.New(rand.NewPCG(1, 2)),
		Installer: &installer{}, Mode: jobs.ModeNever, Poll: time.Millisecond,
	})
	require.NoError(t, err)
	path := filepath.Join(dir, "node.sock")
	l, err := sidecar.Listen(path)
	require.NoError(t, err)
	g := grpc.NewServer(sidecar.ServerOptions(sidecar.SelfAccess())...)
	compactionv1.RegisterCompactionServiceServer(g, server.NewCompaction(func() *jobs.Board { return board }))
	nodev1.RegisterNodeServiceServer(g, server.New(server.Node{Sidecars: &server.Sidecars{}}).NewNode(server.Identity{Identity: sidecar.Identity{NodeID: "n", Session: board.Session()}}))
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := sidecar.Dial(path)
	require.NoError(t, err)
	id, err := sidecar.WaitForNode(t.Context(), conn)
	require.NoError(t, err)
	require.Equal(t, sidecar.Identity{NodeID: "n", Session: board.Session()}, id)
	_, err = compactionv1.NewCompactionServiceClient(conn).Lease(t.Context(), leaseRequest())
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("w@%d", os.Getuid()), board.Status().Workers[0].Name)
	require.NoError(t, conn.Close())
	require.NoError(t, board.Close())
	g.Stop()
	require.NoError(t, <-served)
}
