package server

import (
	"context"
	"time"

	"github.com/pairdb/pairdb/libs/ring"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// Equality tells since when ranges are equal on this node and others.
type Equality interface {
	// EqualWith is when all of a range was last equal here and on a node; zero: not yet.
	EqualWith(r ring.HashRange, nodeID string) time.Time
}

// equality is what is known of a range and its replicas.
type equality struct {
	withMillis []int64 // by replica; 0: not yet, or the node itself
	atMillis   int64   // with all of them; 0: not yet, or there is no other
	behind     string  // the one with the oldest
}

func (b *Backend) equality(p ring.Placement, self string) (e equality) {
	e.withMillis = make([]int64, len(p.Replicas))
	for i, id := range p.Replicas {
		if id == self {
			continue
		}
		if b.Equality != nil {
			if at := b.Equality.EqualWith(p.Range, id); !at.IsZero() {
				e.withMillis[i] = at.UnixMilli()
			}
		}
		if e.behind == "" || e.withMillis[i] < e.atMillis {
			e.behind, e.atMillis = id, e.withMillis[i]
		}
	}
	return e
}

// Ranges tells the ranges of the node.
func (a adminService) Ranges(context.Context, *adminv1.RangesRequest) (*adminv1.RangesResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	if err := b.Ownership.Damage(); err != nil {
		return nil, err
	}
	view := b.Ownership.View()
	resp := &adminv1.RangesResponse{CleanupNeeded: hashRangesToProto(view.CleanupNeeded()), ReplicationFactor: int32(b.replicationFactor())}
	for _, p := range view.Owned {
		e := b.equality(p, a.s.node.ID)
		resp.Ranges = append(resp.Ranges, &adminv1.OwnedRange{
			Range: hashRangesToProto([]ring.HashRange{p.Range})[0], Replicas: p.Replicas, EqualAtMs: e.atMillis, Behind: e.behind,
		})
	}
	return resp, nil
}
