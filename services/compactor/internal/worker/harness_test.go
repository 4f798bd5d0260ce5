package worker

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/wire"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

const testDir = "data"

// node is a storage node that does as the test says.
type node struct {
	compactionv1.UnimplementedCompactionServiceServer
	nodev1.UnimplementedNodeServiceServer
	t  *testing.T
	fs vfs.FS

	mu         sync.Mutex
	wake       chan struct{}
	queue      []*compactionv1.Job
	leases     []*compactionv1.LeaseRequest
	heartbeats []*compactionv1.HeartbeatRequest
	completes  []*compactionv1.CompleteRequest
	abandons   []*compactionv1.AbandonRequest
	polling    int
	stranger   error       // the answer to Identity
	header     metadata.MD // of the answer to Lease

	onHeartbeat func(*compactionv1.HeartbeatRequest) (*compactionv1.HeartbeatResponse, error)
	onComplete  func(*compactionv1.CompleteRequest) (*compactionv1.CompleteResponse, error)
}

func (n *node) give(jobs ...*compactionv1.Job) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.queue = append(n.queue, jobs...)
	close(n.wake)
	n.wake = make(chan struct{})
}

func (n *node) Identity(context.Context, *nodev1.IdentityRequest) (*nodev1.IdentityResponse, error) {
	return &nodev1.IdentityResponse{NodeId: "n1", Session: 5}, n.stranger
}

func (n *node) Lease(ctx context.Context, r *compactionv1.LeaseRequest) (*compactionv1.LeaseResponse, error) {
	timeout := time.NewTimer(20 * time.Second)
	defer timeout.Stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leases = append(n.leases, r)
	n.polling++
	defer func() { n.polling-- }()
	for len(n.queue) == 0 {
		wake := n.wake
		n.mu.Unlock()
		var err error
		done := false
		select {
		case <-wake:
		case <-timeout.C:
			done = true
		case <-ctx.Done():
			err = ctx.Err()
		}
		n.mu.Lock()
		if done || err != nil {
			return &compactionv1.LeaseResponse{}, err
		}
	}
	if n.header != nil {
		require.NoError(n.t, grpc.SetHeader(ctx, n.header))
	}
	k := min(int(r.GetFreeSlots()), len(n.queue))
	resp := &compactionv1.LeaseResponse{Jobs: n.queue[:k]}
	n.queue = n.queue[k:]
	return resp, nil
}

func (n *node) Heartbeat(_ context.Context, r *compactionv1.HeartbeatRequest) (*compactionv1.HeartbeatResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.heartbeats = append(n.heartbeats, r)
	if n.onHeartbeat != nil {
		return n.onHeartbeat(r)
	}
	return &compactionv1.HeartbeatResponse{Verdict: compactionv1.HeartbeatResponse_VERDICT_CONTINUE}, nil
}

func (n *node) Complete(_ context.Context, r *compactionv1.CompleteRequest) (*compactionv1.CompleteResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.completes = append(n.completes, r)
	if n.onComplete != nil {
		return n.onComplete(r)
	}
	return &compactionv1.CompleteResponse{Verdict: compactionv1.CompleteResponse_VERDICT_INSTALLED}, nil
}

func (n *node) Abandon(_ context.Context, r *compactionv1.AbandonRequest) (*compactionv1.AbandonResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.abandons = append(n.abandons, r)
	return &compactionv1.AbandonResponse{}, nil
}

// gate is a listener that can be closed and opened again: the node's restart.
type gate struct {
	mu sync.Mutex
	l  *bufconn.Listener
}

func (g *gate) set(l *bufconn.Listener) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.l = l
}

func (g *gate) dial(ctx context.Context, _ string) (net.Conn, error) {
	g.mu.Lock()
	l := g.l
	g.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("nobody listens")
	}
	return l.DialContext(ctx)
}

// pod is a worker and a node in virtual time.
type pod struct {
	*testing.T
	fs   *vfs.MemFS
	node *node
	w    *Worker

	gate   gate
	server *grpc.Server
	ended  chan error // of the worker
	stop   context.CancelFunc
}

func (p *pod) startNode() {
	l := bufconn.Listen(1 << 20)
	p.server = grpc.NewServer()
	compactionv1.RegisterCompactionServiceServer(p.server, p.node)
	nodev1.RegisterNodeServiceServer(p.server, p.node)
	server := p.server
	go func() { _ = server.Serve(l) }()
	p.gate.set(l)
}

func (p *pod) stopNode() {
	p.gate.set(nil)
	p.server.Stop()
}

// inPod runs a test beside a running worker. At the end the worker is stopped, and nothing of it
// may be left.
func inPod(t *testing.T, slots int, change func(*Options), run func(t *testing.T, p *pod)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		for _, dir := range []string{compact.TableDir, compact.StagingDir} {
			require.NoError(t, mem.MkdirAll(path.Join(testDir, dir), 0o770))
		}
		p := &pod{T: t, fs: mem, node: &node{t: t, fs: mem, wake: make(chan struct{})}, ended: make(chan error, 1)}
		p.startNode()
		conn, err := grpc.NewClient("passthrough:pod", grpc.WithContextDialer(p.gate.dial),
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
		require.NoError(t, err)
		o := Options{
			Client: compactionv1.NewCompactionServiceClient(conn), Node: nodev1.NewNodeServiceClient(conn), FS: mem, Dir: testDir, Name: "w", Slots: slots,
			Log: slog.New(slog.DiscardHandler),
		}
		if change != nil {
			change(&o)
		}
		p.w = New(o)
		ctx, cancel := context.WithCancel(t.Context())
		p.stop = cancel
		go func() { p.ended <- p.w.Run(ctx); close(p.ended) }()
		defer func() {
			cancel()
			<-p.ended
			require.NoError(t, conn.Close())
			p.stopNode()
		}()
		run(t, p)
	})
}

// table writes input number num with n records whose values say which table they are of.
func (p *pod) table(num uint64, n int, seq ikey.Seq) *compactionv1.Input {
	p.Helper()
	name := path.Join(testDir, compact.TableDir, compact.TableName(num))
	f, err := p.fs.Create(name, 0o440)
	require.NoError(p, err)
	w := sstable.NewWriter(f, sstable.WriterOptions{})
	for i := range n {
		r := causal.Record{Siblings: []causal.Sibling{{
			Clock: causal.Clock{{Node: "n", Counter: num}}, Value: []byte(strings.Repeat(fmt.Sprint(num, i), 50)), Timestamp: 1 << 16,
		}}}
		require.NoError(p, w.Add(ikey.Make(fmt.Appendf(nil, "k%06d", i), seq, ikey.KindSet), r.Encode(nil)))
	}
	m, err := w.Finish()
	require.NoError(p, err)
	require.NoError(p, f.Sync())
	require.NoError(p, f.Close())
	return &compactionv1.Input{
		Number: num, SizeBytes: int64(m.Size), Digest: m.Digest,
		Smallest: m.Smallest.Append(nil), Largest: m.Largest.Append(nil),
	}
}

// job makes an attempt with its files, as a node does.
func (p *pod) job(id uint64, epoch uint32, inputs ...*compactionv1.Input) *compactionv1.Job {
	p.Helper()
	dir := path.Join(testDir, compact.StagingDir, compact.AttemptName(id, epoch))
	require.NoError(p, p.fs.MkdirAll(dir, fs.FileMode(0o750)))
	for i := 1; i <= 4; i++ {
		f, err := p.fs.Create(path.Join(dir, compact.OutputName(i)), 0o660)
		require.NoError(p, err)
		require.NoError(p, f.Close())
	}
	return &compactionv1.Job{
		Key: wire.KeyToProto(wire.Key{Session: 5, ID: id, Epoch: epoch}), Kind: compactionv1.JobKind_JOB_KIND_MERGE,
		Inputs: inputs, OutputLevel: 1, MaxOutputs: 4, LeaseMs: 15_000, HeartbeatMs: 5_000,
		Table: &compactionv1.TableOptions{Format: 1, TargetBytes: 1 << 20},
	}
}

// simple is a job of two overlapping tables of n records.
func (p *pod) simple(id uint64, n int) *compactionv1.Job {
	p.Helper()
	return p.job(id, 1, p.table(10*id+2, n, 200), p.table(10*id+1, n, 100))
}
