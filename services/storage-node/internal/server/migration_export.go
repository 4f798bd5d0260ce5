package server

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/grpc"

	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/replica"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// move returns what a call about a move needs.
func (g migrationService) move(id string) (*Backend, *moves.Move, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, nil, err
	}
	m, err := b.Moves.Get(id)
	return b, m, err
}

// Pin holds the commit log for a move.
func (g migrationService) Pin(ctx context.Context, r *migrationv1.PinRequest) (*migrationv1.PinResponse, error) {
	b, m, err := g.move(r.GetMoveId())
	if err != nil {
		return nil, err
	}
	seq, err := b.Replica.Pin(m.ID, m.PinnedSequence)
	if err != nil {
		return nil, err
	}
	id := m.ID
	if m, err = b.Moves.MarkPinned(ctx, id, seq); err != nil {
		if !b.Moves.Holds(id) { // it was called off meanwhile
			err = errors.Join(err, b.Replica.Release(id))
		}
		return nil, err
	}
	return &migrationv1.PinResponse{Sequence: m.PinnedSequence}, nil
}

// movePin lets go of the commit log that a move needs no more: what it tells is at the target. That it can't
// is no error of the caller: the pin is where it was.
func (g migrationService) movePin(ctx context.Context, b *Backend, m *moves.Move) {
	if b.Replica == nil || m.PinnedSequence == 0 || !m.Active() {
		return
	}
	err := b.Replica.MovePin(m.ID, m.TailSequence+1)
	if now, gerr := b.Moves.Get(m.ID); gerr != nil || !now.Active() { // it ended meanwhile, and let go of its pin
		err = errors.Join(err, b.Replica.Release(m.ID))
	}
	if c := callFrom(ctx); err != nil && c != nil {
		c.g.log.LogAttrs(ctx, slog.LevelWarn, "the log held for a move stays", append([]slog.Attr{slog.String("move", m.ID), slog.String("error", err.Error())}, c.g.about(ctx)...)...)
	}
}

// Export sends the records of a move.
func (g migrationService) Export(r *migrationv1.ExportRequest, stream grpc.ServerStreamingServer[migrationv1.ExportResponse]) error {
	b, m, err := g.move(r.GetMoveId())
	if err != nil {
		return err
	}
	if err := b.Ownership.Exchange(m.What.HashRanges); err != nil {
		return err
	}
	return b.Replica.Export(stream.Context(), replica.ExportRequest{What: selectedOf(m), Cursor: r.GetCursor()}, func(c replica.Chunk) error {
		return sendEncoded(stream, g.s.stall, encodeExported(&c))
	})
}

// Follow sends the changes of a move.
func (g migrationService) Follow(r *migrationv1.FollowRequest, stream grpc.ServerStreamingServer[migrationv1.FollowResponse]) error {
	b, m, err := g.move(r.GetMoveId())
	if err != nil {
		return err
	}
	return b.Replica.Follow(stream.Context(), replica.FollowRequest{What: selectedOf(m), From: r.GetFromSequence()}, func(c replica.Changes) error {
		return sendEncoded(stream, g.s.stall, encodeFollowed(&c))
	})
}

// Release lets go of what is held for a move.
func (g migrationService) Release(ctx context.Context, r *migrationv1.ReleaseRequest) (*migrationv1.ReleaseResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	if err := b.Moves.MayRelease(r.GetMoveId()); err != nil {
		return nil, err
	}
	// The log first: a move that is noted as released is not worked on any more.
	if err := b.Replica.Release(r.GetMoveId()); err != nil {
		return nil, err
	}
	if _, err := b.Moves.MarkReleased(ctx, r.GetMoveId()); err != nil && store.ReasonOf(err) != store.ReasonMoveNotFound {
		return nil, err
	}
	return &migrationv1.ReleaseResponse{}, nil
}

// selectedOf returns what a move is about.
func selectedOf(m *moves.Move) replica.Selection {
	return replica.Selection{Tenant: m.What.Tenant, Start: m.What.Start, End: m.What.End, Keys: m.What.Keys, HashRanges: m.What.HashRanges}
}
