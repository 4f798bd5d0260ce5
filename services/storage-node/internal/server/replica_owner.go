package server

import (
	"context"
	"fmt"

	"github.com/pairdb/pairdb/libs/ring"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// peer refuses callers of another cluster.
func (b *Backend) peer(p *replicav1.Peer) error {
	if p.GetClusterId() != b.ClusterID {
		return &store.Error{Reason: store.ReasonOtherCluster, Message: fmt.Sprintf("the caller is of cluster %.100q, this node of %q", p.GetClusterId(), b.ClusterID)}
	}
	return nil
}

// rangesFromProto converts hash ranges. Too many are refused before anything of their size is made.
func rangesFromProto(in []*datav1.HashRange) ([]ring.HashRange, error) {
	if n := len(in); n == 0 || n > moves.MaxHashRanges {
		return nil, &store.Error{Reason: store.ReasonRange, Message: fmt.Sprintf("%d hash ranges, 1 to %d are allowed", n, moves.MaxHashRanges)}
	}
	out := make([]ring.HashRange, len(in))
	for i, r := range in {
		out[i] = ring.HashRange{Start: r.GetStart(), End: r.GetEnd()}
	}
	return out, nil
}

// maxOwnerAddrBytes bounds where an owner is.
const maxOwnerAddrBytes = 260

// Prepare has the node refuse requests of ranges that are about to be handed over to it.
func (g replicaService) Prepare(ctx context.Context, r *replicav1.PrepareRequest) (*replicav1.PrepareResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	if err := b.peer(r.GetPeer()); err != nil {
		return nil, err
	}
	ranges, err := rangesFromProto(r.GetRanges())
	if err != nil {
		return nil, err
	}
	if n := len(r.GetOwnerAddr()); n > maxOwnerAddrBytes {
		return nil, badMove("the address of the owner has %d bytes, at most %d are allowed", n, maxOwnerAddrBytes)
	}
	known, err := b.Ownership.Prepare(ctx, r.GetMoveId(), ranges, ownership.Owner{NodeID: r.GetPeer().GetNodeId(), Addr: r.GetOwnerAddr()})
	if err != nil {
		return nil, err
	}
	return &replicav1.PrepareResponse{KnownEpoch: known}, nil
}

// Accept makes the node the owner of prepared ranges.
func (g replicaService) Accept(ctx context.Context, r *replicav1.AcceptRequest) (*replicav1.AcceptResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	if err := b.peer(r.GetPeer()); err != nil {
		return nil, err
	}
	if err := b.Ownership.Accept(ctx, r.GetMoveId(), r.GetPeer().GetNodeId(), r.GetEpoch()); err != nil {
		return nil, err
	}
	return &replicav1.AcceptResponse{}, nil
}

// Decline ends a preparation.
func (g replicaService) Decline(ctx context.Context, r *replicav1.DeclineRequest) (*replicav1.DeclineResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	if err := b.peer(r.GetPeer()); err != nil {
		return nil, err
	}
	accepted, err := b.Ownership.DeclineUpTo(ctx, r.GetMoveId(), r.GetPeer().GetNodeId(), r.GetEpoch())
	if err != nil {
		return nil, err
	}
	return &replicav1.DeclineResponse{Accepted: accepted}, nil
}
