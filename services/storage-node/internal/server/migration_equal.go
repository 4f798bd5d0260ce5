package server

import (
	"context"

	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
)

// ReportEqual remembers that ranges of a tree of this node were equal on another one.
func (g migrationService) ReportEqual(ctx context.Context, r *migrationv1.ReportEqualRequest) (*migrationv1.ReportEqualResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	if err := b.recordEqual(ctx, r.GetPeerNodeId(), r.GetTree(), r.GetRanges()); err != nil {
		return nil, err
	}
	return &migrationv1.ReportEqualResponse{}, nil
}
