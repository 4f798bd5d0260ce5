package server

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	// progressEvery is how often a watch of moves is told of progress.
	progressEvery = time.Second
	// changeEvery gathers a wave of changes: a cursor is made durable with each MiB.
	changeEvery = 100 * time.Millisecond
)

// Replicate makes moves to other nodes.
func (a adminService) Replicate(ctx context.Context, r *adminv1.ReplicateRequest) (*adminv1.ReplicateResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	specs, err := a.s.specsFromProto(r)
	if err != nil {
		return nil, err
	}
	if err := b.placeable(specs, a.s.node.ID); err != nil {
		return nil, err
	}
	made, err := b.Moves.Create(ctx, specs...)
	if err != nil {
		return nil, err
	}
	return &adminv1.ReplicateResponse{Moves: a.s.movesToProto(b, made)}, nil
}

// specsFromProto returns one spec for each target.
func (s *Server) specsFromProto(r *adminv1.ReplicateRequest) ([]moves.Spec, error) {
	what, err := selectionFromProto(r.GetWhat())
	if err != nil {
		return nil, err
	}
	mode, err := small[moves.Mode](int32(r.GetMode()))
	if err != nil {
		return nil, err
	}
	purpose, err := small[moves.Purpose](int32(r.GetPurpose()))
	if err != nil {
		return nil, err
	}
	if mode == 0 {
		mode = moves.Once
	}
	if purpose == 0 {
		purpose = moves.PurposeReplicate
	}
	if purpose == moves.PurposeRepair {
		return nil, badMove("a repair is made with Repair")
	}
	template := moves.Spec{
		Purpose: purpose, Mode: mode, What: what, HandOver: r.GetHandOver(), MaxBytesPerSecond: r.GetMaxBytesPerSecond(), Parent: r.GetParent(),
	}
	if len(r.GetTargets()) == 0 {
		return nil, badTarget("no target is named, 1 to %d are allowed", moves.MaxActive)
	}
	if r.GetHandOver() && len(r.GetTargets()) > 1 {
		return nil, badTarget("ranges are handed over to one target, %d are named", len(r.GetTargets()))
	}
	return fanOut(template, r.GetId(), "move-", r.GetTargets())
}

func badTarget(format string, args ...any) error {
	return &store.Error{Reason: store.ReasonTarget, Message: fmt.Sprintf(format, args...)}
}

// fanOut makes a spec for each target: with the id itself for a single one, else <id>.1, <id>.2…; an empty
// id is drawn.
func fanOut(template moves.Spec, id, prefix string, targets []*movev1.Target) ([]moves.Spec, error) {
	if n := len(targets); n > moves.MaxActive {
		return nil, badTarget("%d targets, 1 to %d are allowed", n, moves.MaxActive)
	}
	if id == "" {
		id = moves.NewID(prefix)
	}
	specs := make([]moves.Spec, len(targets))
	seen := map[string]bool{}
	for i, t := range targets {
		specs[i] = template
		specs[i].Target = moves.Target{NodeID: t.GetNodeId(), Addr: t.GetAddr()}
		if specs[i].ID = id; len(targets) > 1 {
			specs[i].ID += "." + strconv.Itoa(i+1)
		}
		if seen[t.GetNodeId()] {
			return nil, badTarget("target %.120q stands there twice", t.GetNodeId())
		}
		seen[t.GetNodeId()] = true
	}
	return specs, nil
}

// placeable refuses targets that can't take what is sent. Moves that are there already are not looked at:
// a repeat is answered whatever became of the target.
func (b *Backend) placeable(specs []moves.Spec, nodeID string) error {
	v := b.Members.View()
	for i := range specs {
		spec := &specs[i]
		if err := spec.Validate(nodeID); err != nil {
			return err
		}
		if _, err := b.Moves.Get(spec.ID); err == nil {
			continue
		}
		if err := fit(v, spec); err != nil {
			return err
		}
		if d := b.Moves.Drain(); spec.Purpose == moves.PurposeDrain && (d == nil || spec.Parent != d.ID) {
			return badMove("a move for a drain needs the drain that is under way as its parent")
		}
	}
	return nil
}

// unfitRetry is when a member that is down may be back.
const unfitRetry = 5 * time.Second

// fit refuses a target that can't take what is sent.
func fit(v members.View, spec *moves.Spec) error {
	t := spec.Target
	m := memberOf(v, t.NodeID)
	if m == nil {
		if t.Addr == "" || spec.HandOver {
			return &store.Error{Reason: store.ReasonTargetUnknown,
				Message: "no member " + t.NodeID + " was declared to this node" + map[bool]string{true: ", and ranges are handed over to members only", false: ": name its address"}[spec.HandOver]}
		}
		return nil
	}
	unfit := func(why string, retry time.Duration) error {
		return &store.Error{Reason: store.ReasonTargetUnfit, RetryAfter: retry, Message: "member " + t.NodeID + " is " + why}
	}
	switch state := m.Declared.State; {
	case state == membership.Removed || state == membership.Drained:
		return unfit(state.String(), 0)
	case state == membership.Draining && spec.HandOver:
		return unfit(state.String()+" and gives its own ranges away", 0)
	case m.Liveness == members.Down || m.Liveness == members.Left:
		return unfit(m.Liveness.String(), unfitRetry)
	case t.Addr == "" && m.Declared.GRPCAddr == "":
		return &store.Error{Reason: store.ReasonTargetUnknown, Message: "member " + t.NodeID + " declared no address: name it"}
	}
	return nil
}

// Repair makes moves that compare.
func (a adminService) Repair(ctx context.Context, r *adminv1.RepairRequest) (*adminv1.RepairResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	what, err := selectionFromProto(r.GetWhat())
	if err != nil {
		return nil, err
	}
	if err := what.Validate(); err != nil {
		return nil, err
	}
	template := moves.Spec{Purpose: moves.PurposeRepair, Mode: moves.Once, What: what, MaxBytesPerSecond: r.GetMaxBytesPerSecond()}
	specs, err := a.s.repairs(b, template, r)
	if err != nil {
		return nil, err
	}
	if err := b.placeable(specs, a.s.node.ID); err != nil {
		return nil, err
	}
	made, err := b.Moves.Create(ctx, specs...)
	if err != nil {
		return nil, err
	}
	return &adminv1.RepairResponse{Moves: a.s.movesToProto(b, made)}, nil
}

// repairs returns a spec for each replica that shares ranges with this node and is named, or is none of
// them named. Its hash ranges are those that are shared.
func (s *Server) repairs(b *Backend, template moves.Spec, r *adminv1.RepairRequest) ([]moves.Spec, error) {
	shared := map[string][]ring.HashRange{}
	targets := r.GetTargets()
	for _, p := range peers(b.owners(b.Members.View()), s.node.ID) {
		ranges := p.ranges
		if asked := template.What.HashRanges; len(asked) > 0 {
			ranges = ring.Intersect(ranges, asked)
		}
		if len(ranges) == 0 {
			continue
		}
		shared[p.nodeID] = ranges
		if len(r.GetTargets()) == 0 {
			targets = append(targets, &movev1.Target{NodeId: p.nodeID})
		}
	}
	if len(targets) == 0 {
		return nil, &store.Error{Reason: store.ReasonTargetUnknown, Message: "this node shares none of these ranges with any member that it knows: name whom to compare with"}
	}
	specs, err := fanOut(template, r.GetId(), "repair-", targets)
	if err != nil {
		return nil, err
	}
	for i := range specs {
		ranges, ok := shared[specs[i].Target.NodeID]
		if !ok && len(template.What.HashRanges) == 0 {
			if _, err := b.Moves.Get(specs[i].ID); err == nil {
				continue // a repeat is answered
			}
			if err := specs[i].Validate(s.node.ID); err != nil {
				return nil, err
			}
			return nil, &store.Error{Reason: store.ReasonTargetUnfit,
				Message: "member " + specs[i].Target.NodeID + " shares no range with this node: name the hash ranges to compare"}
		}
		if len(r.GetTargets()) == 0 || len(template.What.HashRanges) == 0 {
			specs[i].What.HashRanges = ranges
		}
	}
	return specs, nil
}

// movesToProto converts moves, with the addresses of their targets as the members know them.
func (s *Server) movesToProto(b *Backend, all []*moves.Move) []*movev1.Move {
	v := b.Members.View()
	out := make([]*movev1.Move, len(all))
	for i, m := range all {
		out[i] = MoveToProto(m, s.node.ID, addrOf(v, m.Target.NodeID))
	}
	return out
}

// Moves lists moves and drains.
func (a adminService) Moves(_ context.Context, r *adminv1.MovesRequest) (*adminv1.MovesResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	if err := checkFilter(r.GetId()); err != nil {
		return nil, err
	}
	return a.s.movesView(b, b.Moves.View(), r.GetIncludeEnded(), r.GetId()), nil
}

func checkFilter(id string) error {
	if id == "" {
		return nil
	}
	return moves.CheckID(id)
}

func (s *Server) movesView(b *Backend, v moves.View, includeEnded bool, id string) *adminv1.MovesResponse {
	resp := &adminv1.MovesResponse{MigratorLastSeenMsAgo: -1}
	var chosen []*moves.Move
	for _, m := range v.Moves {
		if (includeEnded || m.Active()) && (id == "" || m.ID == id || m.Parent == id) {
			chosen = append(chosen, m)
		}
	}
	resp.Moves = s.movesToProto(b, chosen)
	for _, d := range v.Drains {
		if (includeEnded || !d.State.Ended()) && (id == "" || d.ID == id) {
			resp.Drains = append(resp.Drains, DrainToProto(d))
		}
	}
	for _, seen := range s.node.Sidecars.Seen(time.Now()) {
		if seen.Name == SidecarMigrator {
			resp.MigratorLastSeenMsAgo = seen.Ago.Milliseconds()
		}
	}
	return resp
}

// WatchMoves sends the list now and after each change. A reader that is slow gets the newest list alone.
func (a adminService) WatchMoves(r *adminv1.WatchMovesRequest, stream grpc.ServerStreamingServer[adminv1.WatchMovesResponse]) error {
	b, err := a.s.backend()
	if err != nil {
		return err
	}
	if err := checkFilter(r.GetId()); err != nil {
		return err
	}
	out := sender[adminv1.WatchMovesResponse]{stream: stream, limit: a.s.stall}
	for {
		v := b.Moves.View()
		if err := out.send(&adminv1.WatchMovesResponse{View: a.s.movesView(b, v, r.GetIncludeEnded(), r.GetId())}); err != nil {
			return err
		}
		if err := waitForMoves(stream.Context(), v, progressEvery); err != nil {
			return err
		}
	}
}

// waitForMoves returns when a view is not the newest any more: soon after a durable change, and after
// progress once progress has passed.
func waitForMoves(ctx context.Context, v moves.View, progress time.Duration) error {
	late := time.NewTimer(progress)
	defer late.Stop()
	soon := time.NewTimer(min(changeEvery, progress))
	defer soon.Stop()
	select {
	case <-soon.C:
	case <-ctx.Done(): // also of a node that stops
		return ctx.Err()
	}
	touched := v.Touched
	for {
		select {
		case <-v.Changed:
			return nil
		case <-touched:
			touched = nil // the rest of the time for progress
			select {
			case <-v.Changed:
			case <-late.C:
			case <-ctx.Done():
				return ctx.Err()
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// CancelMove calls off a move, or a drain with its moves.
func (a adminService) CancelMove(ctx context.Context, r *adminv1.CancelMoveRequest) (*adminv1.CancelMoveResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	if err := moves.CheckID(r.GetId()); err != nil {
		return nil, err
	}
	off, drain, err := b.Moves.Cancel(ctx, r.GetId(), r.GetReason())
	if err != nil {
		return nil, err
	}
	for _, m := range off {
		if m.State == moves.Cancelled {
			b.letGo(ctx, m.ID)
		}
	}
	return &adminv1.CancelMoveResponse{Moves: a.s.movesToProto(b, off), Drain: DrainToProto(drain)}, nil
}

// letGo lets go of what is held for a move that was called off: the log, and a fence that was on its way.
// What can't be is let go of at the next start.
func (b *Backend) letGo(ctx context.Context, id string) {
	if b.LetGo == nil {
		return
	}
	// The move is over, whatever becomes of the caller.
	ctx = context.WithoutCancel(ctx)
	unlock, err := b.fencing(ctx)
	if err != nil {
		return
	}
	defer unlock()
	b.LetGo(ctx, id)
}

// FinishMove ends a move that follows.
func (a adminService) FinishMove(ctx context.Context, r *adminv1.FinishMoveRequest) (*adminv1.FinishMoveResponse, error) {
	m, err := a.changeMove(ctx, r.GetId(), (*moves.Registry).Finish)
	if err != nil {
		return nil, err
	}
	return &adminv1.FinishMoveResponse{Move: m}, nil
}

// ResumeMove goes on with a move that failed.
func (a adminService) ResumeMove(ctx context.Context, r *adminv1.ResumeMoveRequest) (*adminv1.ResumeMoveResponse, error) {
	m, err := a.changeMove(ctx, r.GetId(), (*moves.Registry).Resume)
	if err != nil {
		return nil, err
	}
	return &adminv1.ResumeMoveResponse{Move: m}, nil
}

// changeMove changes the move of an id and returns it as it is then.
func (a adminService) changeMove(ctx context.Context, id string, change func(*moves.Registry, context.Context, string) (*moves.Move, error)) (*movev1.Move, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	if err := moves.CheckID(id); err != nil {
		return nil, err
	}
	m, err := change(b.Moves, ctx, id)
	if err != nil {
		return nil, err
	}
	return a.s.movesToProto(b, []*moves.Move{m})[0], nil
}
