package server

import (
	"context"
	"fmt"
	"time"

	"github.com/pairdb/pairdb/libs/membership"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Limits of a drain that only flushes.
const (
	defaultFlushDrain = time.Minute
	minFlushDrain     = time.Second
	maxFlushDrain     = time.Hour
)

// Drain prepares the node for its end.
func (a adminService) Drain(ctx context.Context, r *adminv1.DrainRequest) (*adminv1.DrainResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	if err := moves.CheckReason(r.GetReason()); err != nil {
		return nil, err
	}
	switch r.GetKind() {
	case adminv1.DrainRequest_KIND_FLUSH:
		return b.drainFlush(ctx, r)
	case adminv1.DrainRequest_KIND_DECOMMISSION:
		return a.s.decommission(ctx, b, r)
	}
	return nil, badMove("kind %d is neither FLUSH nor DECOMMISSION", r.GetKind())
}

// drainFlush refuses writes and makes tables of all that was written. It lapses by itself.
func (b *Backend) drainFlush(ctx context.Context, r *adminv1.DrainRequest) (*adminv1.DrainResponse, error) {
	limit := time.Duration(r.GetTimeoutMs()) * time.Millisecond
	if r.GetTimeoutMs() == 0 {
		limit = defaultFlushDrain
	}
	if r.GetForce() {
		return nil, badMove("force is for DECOMMISSION")
	}
	if r.GetTimeoutMs() < 0 || r.GetTimeoutMs() > maxFlushDrain.Milliseconds() || limit < minFlushDrain {
		return nil, badMove("timeout_ms is %d, 0 or %d to %d are allowed", r.GetTimeoutMs(), minFlushDrain.Milliseconds(), maxFlushDrain.Milliseconds())
	}
	b.Store.RefuseWrites(time.Now().Add(limit))
	sequence := b.Engine.Metrics().VisibleSeq
	if err := b.Engine.Flush(ctx); err != nil {
		b.Store.RefuseWrites(time.Time{}) // it is not drained, so it need not refuse
		return nil, err
	}
	return &adminv1.DrainResponse{Sequence: uint64(sequence)}, nil
}

// decommission begins to give everything away, if that is safe.
func (s *Server) decommission(ctx context.Context, b *Backend, r *adminv1.DrainRequest) (*adminv1.DrainResponse, error) {
	if r.GetTimeoutMs() != 0 {
		return nil, badMove("timeout_ms is for FLUSH")
	}
	if r.GetForce() && r.GetReason() == "" {
		return nil, badMove("force needs a reason")
	}
	if d := b.Moves.Drain(); d != nil {
		return &adminv1.DrainResponse{Drain: DrainToProto(d)}, nil
	}
	// What the node wants decides first: a drained one is refused for that, and not for its members.
	if w := b.Moves.Wanted(); w == membership.Up || w == membership.Draining {
		if err := b.drainSafe(b.Members.View(), s.node.ID, r.GetForce()); err != nil {
			return nil, err
		}
	}
	force := ""
	if r.GetForce() {
		force = r.GetReason()
	}
	d, err := b.Moves.StartDrain(ctx, r.GetReason(), force)
	if err != nil {
		return nil, err
	}
	return &adminv1.DrainResponse{Drain: DrainToProto(d)}, nil
}

// drainSafe refuses a drain after which ranges of the node would have no owner, or, without force, fewer
// than the replication factor says. In a cluster that has fewer members than that, each drain takes a copy
// away, and is refused for it.
func (b *Backend) drainSafe(v members.View, nodeID string, force bool) error {
	unsafe := func(format string, args ...any) error {
		return &store.Error{Reason: store.ReasonDrainUnsafe, Message: fmt.Sprintf(format, args...)}
	}
	if own := memberOf(v, nodeID); own == nil || !owns(own) {
		return unsafe("the members are not known, or this node is not declared up among them: nobody would take its ranges")
	}
	reachable := 0
	for i := range v.Members {
		m := &v.Members[i]
		if m.Declared.NodeID != nodeID && m.Declared.State == membership.Up && m.Liveness != members.Down && m.Liveness != members.Left {
			reachable++
		}
	}
	if reachable == 0 {
		return unsafe("no other member is up: this node has the last copy of everything")
	}
	if force {
		return nil
	}
	rest := b.ringOf(v, func(m *members.Member) bool { return m.Declared.State == membership.Up && m.Declared.NodeID != nodeID })
	fewest := b.replicationFactor()
	for _, p := range rest.Placements() {
		fewest = min(fewest, len(p.Replicas))
	}
	if fewest < b.replicationFactor() {
		return unsafe("ranges of this node would be left with %d copies, the replication factor is %d: add a node first, or force it with a reason",
			fewest, b.replicationFactor())
	}
	return nil
}
