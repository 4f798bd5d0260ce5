package server

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Engine is the engine as operators see it.
type Engine interface {
	Flush(ctx context.Context) error
	Compact(ctx context.Context, start, end []byte, progress func(engine.CompactProgress)) error
	Cleanup(ctx context.Context, drop []compact.HashCut, bytesPerSecond int64, progress func(engine.CleanupProgress)) error
	Check(ctx context.Context, o engine.CheckOptions) ([]engine.Finding, error)
	Tables() ([]engine.TableInfo, error)
	Metrics() engine.Metrics
}

// Snapshot is a named checkpoint.
type Snapshot struct {
	Name      string `json:"name"`
	CreatedAt int64  `json:"created_at"` // Unix seconds
	// Sequence: at least everything up to it is in the snapshot.
	Sequence  uint64 `json:"sequence"`
	SizeBytes int64  `json:"-"`
	// Path is below the data directory.
	Path string `json:"-"`
}

// Snapshots are the named checkpoints of the node.
type Snapshots interface {
	Create(ctx context.Context, name string) (Snapshot, error)
	List() ([]Snapshot, error)
	Delete(name string) error
}

// maxSnapshotName bounds the name of a snapshot, which is the name of a directory.
const maxSnapshotName = 128

// CheckSnapshotName accepts 1 to 128 of a-z, 0-9, dash and dot, not beginning with a dot.
func CheckSnapshotName(name string) error {
	if len(name) < 1 || len(name) > maxSnapshotName {
		return fmt.Errorf("%w: %d bytes, 1 to %d allowed", errSnapshotName, len(name), maxSnapshotName)
	}
	for i, r := range name {
		if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' && i > 0) {
			return fmt.Errorf("%w: %q; a-z, 0-9, dash and dot are allowed, and no dot at the beginning", errSnapshotName, name)
		}
	}
	return nil
}

// adminService serves operators.
type adminService struct {
	adminv1.UnimplementedAdminServiceServer
	s *Server
}

func (a adminService) Flush(ctx context.Context, _ *adminv1.FlushRequest) (*adminv1.FlushResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	if err := b.Engine.Flush(ctx); err != nil {
		return nil, err
	}
	return &adminv1.FlushResponse{}, nil
}

func (a adminService) Compact(r *adminv1.CompactRequest, stream grpc.ServerStreamingServer[adminv1.CompactProgress]) error {
	b, err := a.s.backend()
	if err != nil {
		return err
	}
	start, end, err := compactBounds(r)
	if err != nil {
		return err
	}
	tables, err := b.Engine.Tables()
	if err != nil {
		return err
	}
	total := overlapping(tables, start, end)
	var p progress
	p.set(0, total)
	err = p.report(stream.Context(), func(ctx context.Context) error {
		return b.Engine.Compact(ctx, start, end, func(c engine.CompactProgress) {
			p.set(int64(c.Bytes), max(total, int64(c.Bytes)))
		})
	}, func(done, total int64) error {
		return stream.Send(&adminv1.CompactProgress{DoneBytes: done, TotalBytes: total})
	})
	if err != nil {
		return err
	}
	done, total := p.get()
	return stream.Send(&adminv1.CompactProgress{DoneBytes: max(done, total), TotalBytes: max(done, total), Finished: true})
}

// overlapping sums the tables with keys in the bounds: what a compaction of them has to read at
// least.
func overlapping(tables []engine.TableInfo, start, end []byte) int64 {
	var total int64
	for _, t := range tables {
		if bytes.Compare(t.Largest.User, start) >= 0 && (end == nil || bytes.Compare(t.Smallest.User, end) < 0) {
			total += int64(t.Size)
		}
	}
	return total
}

// compactBounds returns the engine keys that a request names; nil is no bound.
func compactBounds(r *adminv1.CompactRequest) (start, end []byte, err error) {
	tenant, from, to := r.GetTenant(), r.GetRange().GetStart(), r.GetRange().GetEnd()
	if tenant == "" {
		if from != "" || to != "" {
			return nil, nil, fmt.Errorf("%w: a range needs a tenant", errRange)
		}
		return nil, nil, nil
	}
	if len(tenant) > store.MaxTenantBytes || len(from) > store.MaxKeyBytes || len(to) > store.MaxKeyBytes ||
		strings.Contains(tenant+from+to, "\x00") || to != "" && from > to {
		return nil, nil, fmt.Errorf("%w: tenant up to %d bytes, start <= end up to %d bytes each, no NUL", errRange, store.MaxTenantBytes, store.MaxKeyBytes)
	}
	start, end = ikey.TenantBounds(tenant)
	start = append(start, from...)
	if to != "" {
		end = ikey.AppendEngineKey(nil, tenant, to)
	}
	return start, end, nil
}

func (a adminService) Verify(r *adminv1.VerifyRequest, stream grpc.ServerStreamingServer[adminv1.VerifyProgress]) error {
	b, err := a.s.backend()
	if err != nil {
		return err
	}
	if r.GetMaxBytesPerSecond() < 0 {
		return fmt.Errorf("%w: max_bytes_per_second is negative", errLimit)
	}
	before, err := b.Engine.Tables()
	if err != nil {
		return err
	}
	tables := int32(len(before))
	var p progress
	var findings []engine.Finding
	err = p.report(stream.Context(), func(ctx context.Context) (err error) {
		findings, err = b.Engine.Check(ctx, engine.CheckOptions{BytesPerSecond: r.GetMaxBytesPerSecond(), Progress: p.set})
		return err
	}, func(done, total int64) error {
		return stream.Send(&adminv1.VerifyProgress{DoneBytes: done, TotalBytes: total, TablesTotal: tables})
	})
	if err != nil {
		return err
	}
	done, total := p.get()
	last := &adminv1.VerifyProgress{
		DoneBytes: max(done, total), TotalBytes: max(done, total), TablesDone: tables, TablesTotal: tables, Finished: true,
	}
	for _, f := range findings {
		last.Corrupt = append(last.Corrupt, &adminv1.QuarantinedTable{Number: tableNumber(f.File), Reason: printable(f.String())})
	}
	return stream.Send(last)
}

// progress is how far a long call is; the call sets it as often as it likes, the client is told from
// time to time.
type progress struct{ done, total atomic.Int64 }

func (p *progress) set(done, total int64)    { p.total.Store(total); p.done.Store(done) }
func (p *progress) get() (done, total int64) { return p.done.Load(), p.total.Load() }

// progressInterval is fast enough for a bar that moves.
const progressInterval = 200 * time.Millisecond

// report runs work and tells its progress until it has ended. When the client goes away, work's
// context ends, and report waits for work.
func (p *progress) report(ctx context.Context, work func(context.Context) error, tell func(done, total int64) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- work(ctx) }()
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	for {
		select {
		case err := <-result:
			return err
		case <-tick.C:
			if err := tell(p.get()); err != nil {
				cancel()
				<-result
				return err
			}
		}
	}
}

func (a adminService) Snapshot(ctx context.Context, r *adminv1.SnapshotRequest) (*adminv1.SnapshotResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	info, err := b.Snapshots.Create(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	return &adminv1.SnapshotResponse{Snapshot: snapshotToProto(info)}, nil
}

func (a adminService) ListSnapshots(context.Context, *adminv1.ListSnapshotsRequest) (*adminv1.ListSnapshotsResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	all, err := b.Snapshots.List()
	if err != nil {
		return nil, err
	}
	resp := &adminv1.ListSnapshotsResponse{}
	for _, info := range all {
		resp.Snapshots = append(resp.Snapshots, snapshotToProto(info))
	}
	return resp, nil
}

func (a adminService) DeleteSnapshot(_ context.Context, r *adminv1.DeleteSnapshotRequest) (*adminv1.DeleteSnapshotResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	if err := b.Snapshots.Delete(r.GetName()); err != nil {
		return nil, err
	}
	return &adminv1.DeleteSnapshotResponse{}, nil
}

func snapshotToProto(s Snapshot) *adminv1.SnapshotInfo {
	return &adminv1.SnapshotInfo{Name: s.Name, CreatedAt: s.CreatedAt, Sequence: s.Sequence, SizeBytes: s.SizeBytes, Path: s.Path}
}
