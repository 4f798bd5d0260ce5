package server

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/libs/tracing"
	"github.com/pairdb/pairdb/libs/wire"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// NewCompaction serves the job board to workers on the pod's socket. It converts and checks what
// comes over the wire; the board decides. While there is no board it returns nil, and workers are told to
// come back.
func NewCompaction(board func() *jobs.Board) compactionv1.CompactionServiceServer {
	return &compaction{source: board}
}

type compaction struct {
	compactionv1.UnimplementedCompactionServiceServer
	source func() *jobs.Board
}

func (c *compaction) board() (*jobs.Board, error) {
	if b := c.source(); b != nil {
		return b, nil
	}
	return nil, status.Error(codes.Unavailable, ErrRecovering.Error())
}

// maxRequestFormats bounds what is looked at of a worker's formats before the board checks them.
const maxRequestFormats = 64

func (c *compaction) Lease(ctx context.Context, r *compactionv1.LeaseRequest) (*compactionv1.LeaseResponse, error) {
	tracing.Answer(ctx)
	if len(r.GetFormats()) > maxRequestFormats {
		return nil, status.Errorf(codes.InvalidArgument, "%d table formats, at most %d", len(r.GetFormats()), maxRequestFormats)
	}
	name := r.GetWorker()
	if p, ok := sidecar.PeerFrom(ctx); ok {
		name = fmt.Sprintf("%s@%d", name, p.UID) // the part that a worker can't choose
	}
	board, err := c.board()
	if err != nil {
		return nil, err
	}
	leases, err := board.Lease(ctx, jobs.Worker{
		Name: name, FreeSlots: int(r.GetFreeSlots()), TotalSlots: int(r.GetTotalSlots()), Formats: slices.Clone(r.GetFormats()),
	})
	if err != nil {
		return nil, boardStatus(err)
	}
	resp := &compactionv1.LeaseResponse{}
	for _, l := range leases {
		job, err := wire.GrantToProto(wire.Grant{Key: wire.Key(l.Key), Job: l.Job, Lease: l.Lease, Heartbeat: l.Heartbeat})
		if err != nil {
			// A job that can't be sent can't be done outside: that it is not is the board's to count.
			board.Abandon(l.Key, jobs.AbandonUnsupportedFormat, err.Error(), nil)
			continue
		}
		resp.Jobs = append(resp.Jobs, job)
	}
	if len(leases) > 0 {
		keys := make([]string, len(leases))
		for i, l := range leases {
			keys[i] = l.Key.String()
		}
		trace.SpanFromContext(ctx).SetAttributes(attribute.StringSlice("pairdb.jobs", keys), attribute.String("pairdb.worker", wire.Text(name)))
	}
	return resp, nil
}

func (c *compaction) Heartbeat(_ context.Context, r *compactionv1.HeartbeatRequest) (*compactionv1.HeartbeatResponse, error) {
	board, err := c.board()
	if err != nil {
		return nil, err
	}
	d := board.Heartbeat(jobs.Key(wire.KeyFromProto(r.GetKey())), r.GetDoneBytes())
	resp := &compactionv1.HeartbeatResponse{
		Verdict: compactionv1.HeartbeatResponse_VERDICT_CONTINUE, MaxBytesPerSecond: d.MaxBytesPerSecond,
	}
	if d.Stop {
		resp.Verdict, resp.Reason = compactionv1.HeartbeatResponse_VERDICT_STOP, wire.Text(d.Reason)
	}
	return resp, nil
}

var verdictToProto = map[jobs.Outcome]compactionv1.CompleteResponse_Verdict{
	jobs.Installed:        compactionv1.CompleteResponse_VERDICT_INSTALLED,
	jobs.AlreadyInstalled: compactionv1.CompleteResponse_VERDICT_ALREADY_INSTALLED,
	jobs.Rejected:         compactionv1.CompleteResponse_VERDICT_REJECTED,
	jobs.Fenced:           compactionv1.CompleteResponse_VERDICT_FENCED,
}

func (c *compaction) Complete(ctx context.Context, r *compactionv1.CompleteRequest) (*compactionv1.CompleteResponse, error) {
	outs, err := wire.OutputsFromProto(r.GetOutputs())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	corrupt, err := wire.CorruptFromProto(r.GetCorrupt())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	board, err := c.board()
	if err != nil {
		return nil, err
	}
	report := jobs.Report{Outputs: outs, Stats: wire.StatsFromProto(r.GetStats()), Corrupt: corrupt}
	key := jobs.Key(wire.KeyFromProto(r.GetKey()))
	v, err := board.Complete(ctx, key, report)
	if err != nil {
		return nil, boardStatus(err)
	}
	trace.SpanFromContext(ctx).SetAttributes(attribute.String("pairdb.job", key.String()), attribute.String("pairdb.verdict", verdictToProto[v.Outcome].String()))
	return &compactionv1.CompleteResponse{Verdict: verdictToProto[v.Outcome], Reason: wire.Text(v.Reason)}, nil
}

var abandonFromProto = map[compactionv1.AbandonRequest_Reason]jobs.AbandonReason{
	compactionv1.AbandonRequest_REASON_NO_SPACE:           jobs.AbandonNoSpace,
	compactionv1.AbandonRequest_REASON_IO_ERROR:           jobs.AbandonIOError,
	compactionv1.AbandonRequest_REASON_CORRUPT_INPUT:      jobs.AbandonCorruptInput,
	compactionv1.AbandonRequest_REASON_SHUTDOWN:           jobs.AbandonShutdown,
	compactionv1.AbandonRequest_REASON_UNSUPPORTED_FORMAT: jobs.AbandonUnsupportedFormat,
}

func (c *compaction) Abandon(_ context.Context, r *compactionv1.AbandonRequest) (*compactionv1.AbandonResponse, error) {
	reason, ok := abandonFromProto[r.GetReason()]
	if !ok {
		// A newer worker's word: the attempt is over all the same, and counts.
		reason = jobs.AbandonIOError
	}
	corrupt, err := wire.CorruptFromProto(r.GetCorrupt())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	board, err := c.board()
	if err != nil {
		return nil, err
	}
	board.Abandon(jobs.Key(wire.KeyFromProto(r.GetKey())), reason, wire.Text(r.GetDetail()), corrupt)
	return &compactionv1.AbandonResponse{}, nil
}

// boardStatus turns what the board returns into what a worker understands: everything that passes
// is UNAVAILABLE.
func boardStatus(err error) error {
	switch {
	case errors.Is(err, jobs.ErrInvalidWorker):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, jobs.ErrClosed):
		return status.Error(codes.Unavailable, err.Error())
	}
	return status.Error(codes.Unavailable, err.Error())
}
