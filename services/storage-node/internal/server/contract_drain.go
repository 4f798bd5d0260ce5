package server

import (
	"context"
	"fmt"
	"time"

	"github.com/pairdb/pairdb/libs/membership"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// What coordinators call the states of a drain.
const (
	drainDraining = "draining"
	drainDrained  = "drained"
	drainFailed   = "failed"
)

// drainReason is what a drain by a coordinator says in the list of drains.
const drainReason = "DrainNode of a coordinator"

// The least and the most that a flush lets writes wait.
const (
	minFlush = time.Second
	maxFlush = time.Hour
)

// DrainNode with graceful moves everything to the other members when there is one that can take it.
// Otherwise, and without graceful, the node refuses writes for a while and puts everything into tables.
func (g contractService) DrainNode(ctx context.Context, r *storagenodev1.DrainNodeRequest) (*storagenodev1.DrainNodeResponse, error) {
	b, err := g.backend(r)
	if err != nil {
		return nil, err
	}
	limit := time.Duration(r.GetTimeoutSeconds()) * time.Second
	if limit < 0 {
		return nil, fmt.Errorf("%w: timeout_seconds is %d", errLimit, r.GetTimeoutSeconds())
	}
	if b.Moves.Wanted() == membership.Drained {
		return &storagenodev1.DrainNodeResponse{Success: true, Status: drainDrained}, nil
	}
	if r.GetGraceful() && g.hasHeirs(b) {
		return g.decommission(ctx, b.Moves, limit)
	}
	flush := int64(0)
	if limit > 0 {
		flush = min(max(limit, minFlush), maxFlush).Milliseconds()
	}
	if _, err := (adminService{s: g.s}).Drain(ctx, &adminv1.DrainRequest{
		Kind: adminv1.DrainRequest_KIND_FLUSH, TimeoutMs: flush, Reason: drainReason,
	}); err != nil {
		return nil, err
	}
	return &storagenodev1.DrainNodeResponse{Success: true, Status: drainDrained}, nil
}

// hasHeirs reports whether another member is declared up.
func (g contractService) hasHeirs(b *Backend) bool {
	for _, m := range b.Members.View().Members {
		if m.Declared.NodeID != g.s.node.ID && m.Declared.State == membership.Up {
			return true
		}
	}
	return false
}

// decommission drains the node and waits for it as long as it may; the drain goes on after that, and
// another call waits for the same one.
func (g contractService) decommission(ctx context.Context, r *moves.Registry, limit time.Duration) (*storagenodev1.DrainNodeResponse, error) {
	drain := r.Drain()
	id := ""
	if drain != nil {
		id = drain.ID
	} else {
		made, err := adminService{s: g.s}.Drain(ctx, &adminv1.DrainRequest{Kind: adminv1.DrainRequest_KIND_DECOMMISSION, Reason: drainReason})
		if err != nil {
			return nil, err
		}
		id = made.GetDrain().GetId()
	}
	if limit == 0 {
		return &storagenodev1.DrainNodeResponse{Success: true, Status: drainDraining}, nil
	}
	ctx, cancel := g.patience(ctx, limit)
	defer cancel()
	for {
		v := r.View()
		switch d := drainOf(v.Drains, id); {
		case d == nil:
			return nil, &store.Error{Reason: store.ReasonMoveNotFound, Message: fmt.Sprintf("drain %s is not known any more", id)}
		case d.State == moves.DrainCompleted:
			return &storagenodev1.DrainNodeResponse{Success: true, Status: drainDrained}, nil
		case d.State == moves.DrainCancelled:
			return nil, &store.Error{Reason: store.ReasonMoveState, Message: fmt.Sprintf("drain %s was called off: %s", id, d.Reason)}
		}
		select {
		case <-v.Changed:
		case <-ctx.Done():
			return &storagenodev1.DrainNodeResponse{Success: true, Status: drainDraining}, nil
		}
	}
}

func drainOf(drains []*moves.Drain, id string) *moves.Drain {
	for _, d := range drains {
		if d.ID == id {
			return d
		}
	}
	return nil
}
