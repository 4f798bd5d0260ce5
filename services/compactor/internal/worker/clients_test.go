package worker

import (
	"context"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

// refusing is a node that lets nobody lease.
type refusing struct {
	compactionv1.CompactionServiceClient
	code codes.Code
}

func (r refusing) Lease(context.Context, *compactionv1.LeaseRequest, ...grpc.CallOption) (*compactionv1.LeaseResponse, error) {
	return nil, status.Error(r.code, "no")
}

// spying keeps the span under which a report is made.
type spying struct {
	compactionv1.CompactionServiceClient
	seen *[]trace.SpanContext
}

func (s spying) Complete(ctx context.Context, r *compactionv1.CompleteRequest, o ...grpc.CallOption) (*compactionv1.CompleteResponse, error) {
	*s.seen = append(*s.seen, trace.SpanContextFromContext(ctx))
	return s.CompactionServiceClient.Complete(ctx, r, o...)
}

// generous is a node that grants more than was asked for.
type generous struct {
	compactionv1.CompactionServiceClient
}

func (generous) Lease(context.Context, *compactionv1.LeaseRequest, ...grpc.CallOption) (*compactionv1.LeaseResponse, error) {
	return &compactionv1.LeaseResponse{Jobs: make([]*compactionv1.Job, 2)}, nil
}
