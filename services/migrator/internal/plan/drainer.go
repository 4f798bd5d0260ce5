package plan

import (
	"context"
	"fmt"
	"time"

	"github.com/pairdb/pairdb/libs/ring"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// drain does the next step of the node's drain. Each step begins with what the node has: it may be done
// again after any failure.
func (p *Planner) drain(ctx context.Context, v view) (time.Duration, error) {
	d := v.drain
	if d == nil {
		return idle, nil
	}
	// Asked first: what one of them has given is not in what the node says afterwards that it owns, unless it came back.
	mine, err := call(ctx, func(ctx context.Context) (*adminv1.MovesResponse, error) {
		return p.o.Admin.Moves(ctx, &adminv1.MovesRequest{IncludeEnded: true, Id: d.GetId()})
	})
	if err != nil {
		return 0, err
	}
	own, err := p.own(ctx)
	if err != nil {
		return 0, err
	}
	if own.config.GetCoordinated() {
		return idle, nil // who gets what is the coordinator's to say
	}
	switch own.ownership.GetWantedState() {
	case up:
		if err := p.declare(ctx, up, draining); err != nil {
			return 0, err
		}
		return 0, nil
	case draining:
	case drained:
		to, reason, wait := movev1.DrainState_DRAIN_STATE_COMPLETED, "", idle
		if !p.told(ctx, v.members) {
			to, reason, wait = movev1.DrainState_DRAIN_STATE_MOVING, "no other member has heard yet that this node is drained", again
		}
		return wait, p.advance(ctx, d, to, reason, int(d.GetMovesDone()), int(d.GetMovesTotal()))
	default:
		return idle, nil
	}
	l := leaving{
		self: p.o.NodeID, drain: d.GetId(), members: v.members, factor: int(own.config.GetReplicationFactor()), moves: mine.GetMoves(),
	}
	for _, r := range own.ownership.GetRanges() {
		l.owned = append(l.owned, ring.Placement{Range: fromWire([]*dataRange{r.GetRange()})[0], Replicas: r.GetReplicas()})
	}
	others := v.moves
	if len(l.owned) == 0 {
		if others, err = p.ownMoves(ctx); err != nil {
			return 0, err
		}
	}
	for _, m := range others {
		if m.GetParent() != d.GetId() {
			l.moves = append(l.moves, m)
		}
	}
	g := l.plan()
	if g.complete {
		if err := p.strays(ctx, &l, own.ownership, &g); err != nil {
			return 0, err
		}
	}
	// One that fails keeps none of the others from being done.
	var failed error
	for _, id := range g.cancel {
		if err := p.cancel(ctx, id); err != nil {
			failed, g.waits = err, err.Error()
		}
	}
	for _, h := range g.create {
		if err := p.give(ctx, d, h); err != nil {
			failed, g.waits = err, err.Error()
		}
	}
	if err := p.advance(ctx, d, movev1.DrainState_DRAIN_STATE_MOVING, g.waits, g.done, g.total); err != nil {
		return 0, err
	}
	if g.complete {
		return 0, p.declare(ctx, draining, drained)
	}
	return again, failed
}

// told reports whether another member has it durably that this node is drained. Until then the node must not
// be lost: the others would wait for it for ever.
func (p *Planner) told(ctx context.Context, all members) bool {
	me, ok := all.get(p.o.NodeID)
	if !ok || me.state != drained {
		return false
	}
	for _, m := range all {
		if m.id != me.id && m.alive && p.knows(ctx, m, me) {
			return true
		}
	}
	return false
}

// knows reports whether a member answers that this node is drained.
func (p *Planner) knows(ctx context.Context, m, me member) bool {
	peer, err := p.o.Dial(ctx, m.addr)
	if err != nil {
		p.o.Log.Debug("a member is not asked", "member", m.id, "error", err)
		return false
	}
	defer peer.Release()
	there, err := call(ctx, func(ctx context.Context) (*adminv1.MembersResponse, error) {
		return peer.Admin.Members(ctx, &adminv1.MembersRequest{})
	})
	if err != nil {
		p.o.Log.Debug("a member does not answer", "member", m.id, "error", err)
		return false
	}
	said, ok := membersOf(there).get(me.id)
	return ok && said.incarnation == me.incarnation && said.state >= drained
}

// declare changes what the node wants to be declared as.
func (p *Planner) declare(ctx context.Context, from, to memberState) error {
	_, err := call(ctx, func(ctx context.Context) (*migrationv1.DeclareResponse, error) {
		return p.o.Migration.Declare(ctx, &migrationv1.DeclareRequest{From: from, To: to})
	})
	if err != nil {
		return fmt.Errorf("declare the node %s: %w", to, err)
	}
	p.o.Log.Info("node is declared", "from", from.String(), "to", to.String())
	return nil
}

// advance tells the node how far the drain is, if it does not know that yet.
func (p *Planner) advance(ctx context.Context, d *movev1.Drain, to movev1.DrainState, reason string, done, total int) error {
	reason = reason[:min(len(reason), maxReasonBytes)]
	if d.GetState() == to && d.GetReason() == reason && int(d.GetMovesDone()) == done && int(d.GetMovesTotal()) == total {
		return nil
	}
	_, err := call(ctx, func(ctx context.Context) (*migrationv1.AdvanceDrainResponse, error) {
		return p.o.Migration.AdvanceDrain(ctx, &migrationv1.AdvanceDrainRequest{
			Id: d.GetId(), Version: d.GetVersion(), State: to, Reason: reason, MovesDone: int32(done), MovesTotal: int32(total),
		})
	})
	if err != nil {
		return fmt.Errorf("advance drain %s: %w", d.GetId(), err)
	}
	p.o.Log.Info("drain goes on", "drain", d.GetId(), "state", to.String(), "waits", reason, "done", done, "total", total)
	return nil
}

// maxReasonBytes is how long a reason may be.
const maxReasonBytes = 1000

// give makes a move of the drain.
func (p *Planner) give(ctx context.Context, d *movev1.Drain, h handOver) error {
	_, err := call(ctx, func(ctx context.Context) (*adminv1.ReplicateResponse, error) {
		return p.o.Admin.Replicate(ctx, &adminv1.ReplicateRequest{
			Id: h.id, What: &movev1.Selection{HashRanges: toWire(h.ranges)},
			Targets: []*movev1.Target{{NodeId: h.target.id, Addr: h.target.addr}},
			Mode:    movev1.Mode_MODE_ONCE, Purpose: movev1.Purpose_PURPOSE_DRAIN, HandOver: !h.copy, Parent: d.GetId(),
		})
	})
	if err != nil {
		return fmt.Errorf("make move %s to %s: %w", h.id, h.target.id, err)
	}
	p.o.Log.Info(map[bool]string{false: "ranges are given away", true: "records of others' ranges are copied"}[h.copy], "drain", d.GetId(), "move", h.id, "to", h.target.id, "ranges", len(h.ranges))
	return nil
}

func (p *Planner) cancel(ctx context.Context, id string) error {
	_, err := call(ctx, func(ctx context.Context) (*adminv1.CancelMoveResponse, error) {
		return p.o.Admin.CancelMove(ctx, &adminv1.CancelMoveRequest{Id: id, Reason: "the ring has changed: its ranges are planned anew"})
	})
	if err != nil {
		return fmt.Errorf("cancel move %s: %w", id, err)
	}
	p.o.Log.Info("move is cancelled: its ranges are planned anew", "move", id)
	return nil
}
