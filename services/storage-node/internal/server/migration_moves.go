package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/membership"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// workEvery gathers a wave of changes for the migrator, most of which it makes itself.
const workEvery = 20 * time.Millisecond

// Work tells what there is to do, now and after each durable change.
func (g migrationService) Work(_ *migrationv1.WorkRequest, stream grpc.ServerStreamingServer[migrationv1.WorkResponse]) error {
	b, err := g.s.backend()
	if err != nil {
		return err
	}
	out := sender[migrationv1.WorkResponse]{stream: stream, limit: g.s.stall}
	for {
		v := b.Moves.View()
		if err := out.send(g.s.work(b, v)); err != nil {
			return err
		}
		select {
		case <-v.Changed:
		case <-stream.Context().Done(): // also of a node that stops
			return stream.Context().Err()
		}
		wave := time.NewTimer(workEvery)
		select {
		case <-wave.C:
		case <-stream.Context().Done():
			wave.Stop()
			return stream.Context().Err()
		}
	}
}

func (s *Server) work(b *Backend, v moves.View) *migrationv1.WorkResponse {
	var active []*moves.Move
	for _, m := range v.Moves {
		if m.Active() {
			active = append(active, m)
		}
	}
	slices.SortFunc(active, func(a, b *moves.Move) int { return strings.Compare(a.ID, b.ID) })
	resp := &migrationv1.WorkResponse{Moves: s.movesToProto(b, active)}
	for _, d := range v.Drains {
		if !d.State.Ended() {
			resp.Drain = DrainToProto(d)
		}
	}
	return resp
}

// Advance changes a move.
func (g migrationService) Advance(ctx context.Context, r *migrationv1.AdvanceRequest) (*migrationv1.AdvanceResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	if err := moves.CheckID(r.GetId()); err != nil {
		return nil, err
	}
	state, err := small[moves.State](int32(r.GetState()))
	if err != nil {
		return nil, err
	}
	m, err := b.Moves.Advance(ctx, r.GetId(), r.GetVersion(), moves.Step{
		State: state, Reason: r.GetReason(), CopyCursor: slices.Clone(r.GetCopyCursor()), HasCursor: r.CopyCursor != nil,
		TailSequence: r.GetTailSequence(), Verified: r.GetVerified(), Epoch: r.GetEpoch(), Progress: progressFromProto(r.GetProgress()),
	})
	if err != nil {
		return nil, err
	}
	if r.GetTailSequence() > 0 {
		g.movePin(ctx, b, m)
	}
	return &migrationv1.AdvanceResponse{Move: g.s.movesToProto(b, []*moves.Move{m})[0]}, nil
}

// AdvanceDrain changes a drain.
func (g migrationService) AdvanceDrain(ctx context.Context, r *migrationv1.AdvanceDrainRequest) (*migrationv1.AdvanceDrainResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	if err := moves.CheckID(r.GetId()); err != nil {
		return nil, err
	}
	state, err := small[moves.DrainState](int32(r.GetState()))
	if err != nil {
		return nil, err
	}
	d, err := b.Moves.AdvanceDrain(ctx, r.GetId(), r.GetVersion(), moves.DrainStep{
		State: state, Reason: r.GetReason(), MovesDone: int(r.GetMovesDone()), MovesTotal: int(r.GetMovesTotal()),
	})
	if err != nil {
		return nil, err
	}
	return &migrationv1.AdvanceDrainResponse{Drain: DrainToProto(d)}, nil
}

// Declare changes what the node wants to be declared as.
func (g migrationService) Declare(ctx context.Context, r *migrationv1.DeclareRequest) (*migrationv1.DeclareResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	from, err := memberStateFromProto(r.GetFrom())
	if err != nil {
		return nil, err
	}
	to, err := memberStateFromProto(r.GetTo())
	if err != nil {
		return nil, err
	}
	if to == membership.Drained {
		// A node that leaves prepares nothing new: none comes between this and the declaration.
		if v := b.Ownership.View(); len(v.Owned)+len(v.Prepared) > 0 {
			return nil, &store.Error{Reason: store.ReasonMoveState,
				Message: fmt.Sprintf("the node has %d ranges, and %d are being handed over to it: it is not drained", len(v.Owned), len(v.Prepared))}
		}
	}
	if err := b.Moves.Declare(ctx, from, to); err != nil {
		return nil, err
	}
	return &migrationv1.DeclareResponse{}, nil
}

// memberStateFromProto converts a state that a node may want.
func memberStateFromProto(s clusterv1.MemberState) (membership.State, error) {
	if s < clusterv1.MemberState_MEMBER_STATE_JOINING || s > clusterv1.MemberState_MEMBER_STATE_DRAINED {
		return 0, badMove("state %d is none that a node declares of itself", s)
	}
	return membership.State(s), nil
}

// Settings are what of the node's configuration the migrator goes by.
type Settings struct {
	GCGrace, MaxClockSkew time.Duration
	// Coordinated: ranges come from an existing coordinator.
	Coordinated bool
	// GC returns "repair" or "grace"; nil is "grace".
	GC func() string
}

// Configuration tells the migrator what it goes by.
func (g migrationService) Configuration(context.Context, *migrationv1.ConfigurationRequest) (*migrationv1.ConfigurationResponse, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	gc := "grace"
	if b.Settings.GC != nil {
		gc = b.Settings.GC()
	}
	return &migrationv1.ConfigurationResponse{
		ReplicationFactor: int32(b.replicationFactor()), GcGraceSeconds: int64(b.Settings.GCGrace.Seconds()), Gc: gc,
		MaxClockSkewMs: b.Settings.MaxClockSkew.Milliseconds(), Coordinated: b.Settings.Coordinated,
	}, nil
}
