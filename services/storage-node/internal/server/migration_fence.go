package server

import (
	"context"
	"time"

	"github.com/pairdb/pairdb/libs/ring"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Fence has the node refuse writes to the ranges of a move.
func (g migrationService) Fence(ctx context.Context, r *migrationv1.FenceRequest) (*migrationv1.FenceResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	m, err := b.Moves.Get(r.GetMoveId())
	if err != nil {
		return nil, err
	}
	if !m.HandOver || m.State < moves.Verifying || m.State > moves.Committed || m.VerifiedAt == 0 {
		return nil, badState(m.ID, "it is "+m.State.String()+", and only what hands over and was verified is fenced")
	}
	unlock, err := b.fencing(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	sequence, known, err := b.Ownership.Fence(ctx, m.ID, m.What.HashRanges)
	if err == nil {
		_, err = b.Moves.MarkFenced(ctx, m.ID, sequence)
	}
	if err != nil {
		// It was called off meanwhile, or its migrator has gone: nobody else lifts what stands half done.
		if lerr := b.dropFence(ctx, m.ID); lerr != nil {
			return nil, lerr
		}
		return nil, err
	}
	return &migrationv1.FenceResponse{Sequence: sequence, KnownEpoch: known}, nil
}

// fencing waits until no other fence is raised or lifted: a move that is FENCED has its fence at any moment.
// It is noted after the fence stands, and not any more before the fence is lifted, so that a crash between
// both leaves a fence without a note: it is lifted at the next start, or by the next call.
func (b *Backend) fencing(ctx context.Context) (unlock func(), err error) {
	select {
	case b.fences <- struct{}{}:
		return func() { <-b.fences }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// liftTimeout bounds the lifting of a fence whose caller may have gone: one durable write.
const liftTimeout = 10 * time.Second

// dropFence lifts the fence of a move that does not know of one. Whoever asks holds fencing.
func (b *Backend) dropFence(ctx context.Context, id string) error {
	m, err := b.Moves.Get(id)
	if err != nil || m.MayBeFenced() {
		return nil //nolint:nilerr // a fence of an unknown move stands: it may have been handed over
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), liftTimeout)
	defer cancel()
	return b.Ownership.Lift(ctx, id)
}

func badState(move, text string) error {
	return &store.Error{Reason: store.ReasonMoveState, Message: "move " + move + ": " + text}
}

// Lift ends the fence of a move.
func (g migrationService) Lift(ctx context.Context, r *migrationv1.LiftRequest) (*migrationv1.LiftResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	unlock, err := b.fencing(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := b.Moves.MarkLifted(ctx, r.GetMoveId()); err != nil {
		return nil, err
	}
	if err := b.Ownership.Lift(ctx, r.GetMoveId()); err != nil {
		return nil, err
	}
	return &migrationv1.LiftResponse{}, nil
}

// Give records that the ranges of a move are the target's.
func (g migrationService) Give(ctx context.Context, r *migrationv1.GiveRequest) (*migrationv1.GiveResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	m, err := b.Moves.Get(r.GetMoveId())
	if err != nil {
		return nil, err
	}
	if !m.HandOver || m.State < moves.Accepted || m.State > moves.Released {
		return nil, badState(m.ID, "it is "+m.State.String()+", and only what is ACCEPTED can be given")
	}
	to := ownership.Owner{NodeID: m.Target.NodeID, Addr: m.Target.Addr, Incarnation: r.GetTargetIncarnation()}
	if addr := addrOf(b.Members.View(), to.NodeID); addr != "" {
		to.Addr = addr
	}
	if err := b.Ownership.Give(ctx, m.ID, to, m.Epoch); err != nil {
		return nil, err
	}
	if _, err := b.Moves.MarkGiven(ctx, m.ID); err != nil {
		return nil, err
	}
	return &migrationv1.GiveResponse{}, nil
}

// Ownership tells the ranges of this node.
func (g migrationService) Ownership(context.Context, *migrationv1.OwnershipRequest) (*migrationv1.OwnershipResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	if err := b.Ownership.Damage(); err != nil {
		return nil, err
	}
	view := b.Ownership.View()
	resp := &migrationv1.OwnershipResponse{
		CleanupNeeded: hashRangesToProto(view.CleanupNeeded()), ReplicationFactor: int32(b.replicationFactor()),
		WantedState: g.s.wanted(), OwnRangesOnly: b.Ownership.OwnRangesOnly(),
		Stale: hashRangesToProto(b.Ownership.Stale()),
	}
	if own := memberOf(b.Members.View(), g.s.node.ID); own != nil {
		resp.State = clusterv1.MemberState(own.Declared.State)
	}
	for _, p := range view.Owned {
		e := b.equality(p, g.s.node.ID)
		resp.Ranges = append(resp.Ranges, &migrationv1.SharedRange{
			Range: hashRangesToProto([]ring.HashRange{p.Range})[0], Replicas: p.Replicas, EqualAtMs: e.atMillis, EqualWithMs: e.withMillis,
		})
	}
	return resp, nil
}
