package server

import (
	"context"
	"fmt"
	"time"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/ring"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Equal remembers that ranges of a tree of this node were equal on the caller's.
func (g replicaService) Equal(ctx context.Context, r *replicav1.EqualRequest) (*replicav1.EqualResponse, error) {
	b, err := g.replica(r.GetPeer())
	if err != nil {
		return nil, err
	}
	if err := b.recordEqual(ctx, r.GetPeer().GetNodeId(), r.GetTree(), r.GetRanges()); err != nil {
		return nil, err
	}
	return &replicav1.EqualResponse{}, nil
}

// recordEqual resolves indexes of a tree and remembers what they stand for. One that is none refuses all.
func (b *Backend) recordEqual(ctx context.Context, peer string, tree uint64, indexes []uint32) error {
	all, seq, ok := b.Replica.Tree(tree)
	if !ok {
		return &store.Error{Reason: store.ReasonTreeUnknown, Message: fmt.Sprintf("tree %d is not kept (any more): digest again", tree)}
	}
	ranges := make([]ring.HashRange, 0, min(len(indexes), len(all)))
	for _, i := range indexes {
		if int64(i) >= int64(len(all)) {
			return &store.Error{Reason: store.ReasonRange, Message: fmt.Sprintf(
				"range %d of tree %d, which has %d that every record is in", i, tree, len(all))}
		}
		ranges = append(ranges, all[i])
	}
	return b.AntiEntropy.Record(ctx, peer, ranges, ikey.Seq(seq), time.Now())
}
