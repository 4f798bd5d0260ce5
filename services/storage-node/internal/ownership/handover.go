package ownership

import (
	"context"
	"log/slog"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Limits of a hand-over.
const (
	maxMoveBytes = 64
	maxRanges    = 4096
)

// check refuses what is no move of ranges, and returns these in normal form.
func check(move string, ranges []ring.HashRange) ([]ring.HashRange, error) {
	if len(move) == 0 || len(move) > maxMoveBytes {
		return nil, refuse(store.ReasonMove, "the id of the move has %d bytes, 1 to %d are allowed", len(move), maxMoveBytes)
	}
	for _, c := range []byte(move) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return nil, refuse(store.ReasonMove, "the id of the move contains %q: a-z, 0-9, dash and dot are allowed", c)
		}
	}
	if len(ranges) == 0 || len(ranges) > maxRanges {
		return nil, refuse(store.ReasonRange, "the move has %d hash ranges, 1 to %d are allowed", len(ranges), maxRanges)
	}
	return ring.Normal(ranges), nil
}

// same reports whether both are the same tokens; both are in normal form.
func same(a, b []ring.HashRange) bool { return ring.Covers(a, b) && ring.Covers(b, a) }

// free refuses ranges that another hand-over is about.
func (s *state) free(move string, ranges []ring.HashRange) error {
	for other, f := range s.facts {
		if other != move && (f.stage == fenced || f.stage == prepared) && ring.Overlaps(f.ranges, ranges) {
			return refuse(store.ReasonMovesOverlap, "move %s is handing over some of the ranges: they are %s", other, f.stage)
		}
	}
	return nil
}

// Fence refuses writes of ranges for a move from now on, durably, and returns when none that was admitted
// before is under way: none is newer than sequence, and everything up to it is durable. A repeat answers
// the same. knownEpoch is the highest of the ranges that the node knows.
func (r *Registry) Fence(ctx context.Context, move string, ranges []ring.HashRange) (sequence, knownEpoch uint64, err error) {
	ranges, err = check(move, ranges)
	if err != nil {
		return 0, 0, err
	}
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return 0, 0, err
	}
	defer r.changing.Release(1)
	if f, ok := r.state.Load().facts[move]; ok && (f.stage == fenced || f.stage == given) && f.sequence > 0 && same(f.ranges, ranges) {
		return f.sequence, f.knownEpoch, nil
	}
	if err := r.changeLocked(ctx, func(next *state) ([]string, error) { return r.raiseFence(next, move, ranges) }); err != nil {
		return 0, 0, err
	}
	// From here on nothing new is admitted. What was admitted before holds one of these locks.
	r.ingesting.Lock()
	//lint:ignore SA2001 waiting is all that is wanted
	r.ingesting.Unlock()
	if err := r.store.Quiesce(ctx); err != nil {
		return 0, 0, err
	}
	sequence = r.o.Sequence()
	err = r.changeLocked(ctx, func(next *state) ([]string, error) {
		f := next.facts[move]
		f.sequence, knownEpoch = sequence, f.knownEpoch
		next.facts[move] = f
		return []string{move}, nil // a newer write than all of them: with it they are durable
	})
	if err != nil {
		return 0, 0, err
	}
	r.o.Log.Info("ranges fenced", "move", move, "ranges", len(ranges), "sequence", sequence, "known_epoch", knownEpoch)
	return sequence, knownEpoch, nil
}

func (r *Registry) raiseFence(next *state, move string, ranges []ring.HashRange) ([]string, error) {
	f, ok := next.facts[move]
	switch {
	case ok && f.stage == fenced && same(f.ranges, ranges):
		return nil, nil // it stands, and nobody knows its sequence
	case ok && f.stage != lifted:
		return nil, refuse(store.ReasonMoveState, "move %s is %s, with other ranges or another role of this node", move, f.stage)
	}
	for _, g := range next.ground.given {
		if ring.Overlaps(g.ranges, ranges) {
			return nil, &store.Error{
				Reason: store.ReasonNotOwner, Message: "some of the ranges belong to node " + g.node.NodeID + " now",
				Metadata: map[string]string{"owner_node_id": g.node.NodeID, "owner_addr": g.node.Addr},
			}
		}
	}
	if err := next.free(move, ranges); err != nil {
		return nil, err
	}
	next.facts[move] = fact{stage: fenced, ranges: ranges, knownEpoch: next.ground.epochOf(ranges), at: r.o.Now()}
	return []string{move}, nil
}

// Lift ends the fence of a move. Without one it does nothing; what was given is MOVE_STATE.
func (r *Registry) Lift(ctx context.Context, move string) error {
	return r.change(ctx, func(next *state) ([]string, error) {
		f, ok := next.facts[move]
		switch {
		case !ok || f.stage == lifted:
			return nil, nil
		case f.stage != fenced:
			return nil, refuse(store.ReasonMoveState, "move %s is %s: there is no fence to lift", move, f.stage)
		}
		f.stage, f.sequence, f.at = lifted, 0, r.o.Now()
		next.facts[move] = f
		next.tell(slog.LevelInfo, "fence lifted", "move", move)
		return []string{move}, nil
	})
}

// Give records that the fenced ranges of a move are another node's from now on, since that accepted
// them with an epoch; they stay this node's if the other one has left since. A repeat does nothing; without a fence it is
// MOVE_STATE.
func (r *Registry) Give(ctx context.Context, move string, to Owner, epoch uint64) error {
	if to.NodeID == "" || to.NodeID == r.o.NodeID {
		return refuse(store.ReasonTarget, "ranges are given to another node, not to %.100q", to.NodeID)
	}
	return r.change(ctx, func(next *state) ([]string, error) {
		f, ok := next.facts[move]
		switch {
		case ok && f.stage == given && f.peer.NodeID == to.NodeID && f.epoch == epoch:
			return nil, nil
		case !ok || f.stage != fenced || f.sequence == 0:
			return nil, refuse(store.ReasonMoveState, "the ranges of move %s are not fenced", move)
		case epoch <= next.ground.epochOf(f.ranges) || epoch > maxEpoch:
			return nil, refuse(store.ReasonMoveState, "epoch %d is not above the known one, which is %d", epoch, next.ground.epochOf(f.ranges))
		}
		if err := r.o.Forget(ctx, f.ranges); err != nil {
			return nil, err
		}
		now := r.o.Now()
		f.stage, f.peer, f.epoch, f.at = given, to, epoch, now
		next.facts[move] = f
		g := &next.ground
		g.raise(f.ranges, epoch)
		declared := next.declared(to.NodeID)
		if declared.State == membership.Drained || declared.State == membership.Removed {
			next.tell(slog.LevelWarn, "ranges stay: who accepted them is gone", "move", move, "ranges", len(f.ranges), "was", to.NodeID, "epoch", epoch)
			return []string{move}, nil
		}
		if to.Incarnation != declared.Incarnation {
			to.Incarnation = "" // the one of the members may be an earlier one: it would pass for another life at the next news
		}
		var explicit []ring.HashRange
		if next.leaving == nil { // who leaves gives to a replica where there is nobody else
			explicit = next.shared(r.o.NodeID, to.NodeID)
		}
		g.give(f.ranges, to, explicit)
		g.taken = withoutPart(g.taken, f.ranges)
		g.addResidue(residue{Residue: Residue{Ranges: f.ranges, Sequence: r.o.Sequence(), Since: now}})
		next.tell(slog.LevelInfo, "ranges given", "move", move, "ranges", len(f.ranges), "to", to.NodeID, "epoch", epoch)
		return []string{move}, nil
	})
}

// Prepare refuses requests of ranges that are about to be handed over by another node. What the node
// held of them at an earlier time goes first, in the background: until then Prepare is refused retryably
// (RANGE_MOVING). A node that leaves prepares nothing (TARGET_UNFIT). A repeat answers the same.
func (r *Registry) Prepare(ctx context.Context, move string, ranges []ring.HashRange, from Owner) (knownEpoch uint64, err error) {
	if ranges, err = check(move, ranges); err != nil {
		return 0, err
	}
	if from.NodeID == "" || len(from.NodeID) > membership.MaxNodeIDBytes || from.NodeID == r.o.NodeID {
		return 0, refuse(store.ReasonMove, "ranges are handed over by another node, not by %.100q", from.NodeID)
	}
	move = incoming(from.NodeID, move)
	err = r.change(ctx, func(next *state) ([]string, error) {
		f, ok := next.facts[move]
		switch {
		case ok && f.stage == accepted && f.peer.NodeID == from.NodeID && same(f.ranges, ranges):
			knownEpoch = f.knownEpoch
			return nil, nil
		case ok && f.stage == prepared && f.peer.NodeID == from.NodeID && same(f.ranges, ranges):
			knownEpoch = f.knownEpoch
			return nil, nil
		case ok && f.stage != declined:
			return nil, refuse(store.ReasonMoveState, "move %s is %s, with other ranges, another node, or another role of this one", move, f.stage)
		}
		if next.leaving != nil {
			return nil, refuse(store.ReasonTargetUnfit, "node %s leaves, and takes no ranges over", r.o.NodeID)
		}
		if err := next.free(move, ranges); err != nil {
			return nil, err
		}
		if err := r.settle(next, ranges); err != nil {
			return nil, err
		}
		knownEpoch = next.ground.epochOf(ranges)
		next.facts[move] = fact{stage: prepared, ranges: ranges, knownEpoch: knownEpoch, peer: from, at: r.o.Now()}
		next.tell(slog.LevelInfo, "ranges prepared", "move", move, "ranges", len(ranges), "from", from.NodeID, "known_epoch", knownEpoch)
		return []string{move}, nil
	})
	return knownEpoch, err
}

// incoming returns the name of a move from another node: ids are unique at their source alone.
func incoming(from, move string) string { return from + "/" + move }

// Accept makes the node the owner of the ranges of a move that was prepared, durably. The epoch must be
// above each that is known of them. A repeat with the same epoch does nothing.
func (r *Registry) Accept(ctx context.Context, move, from string, epoch uint64) error {
	move = incoming(from, move)
	return r.change(ctx, func(next *state) ([]string, error) {
		f, ok := next.facts[move]
		switch {
		case ok && f.stage == accepted && f.epoch == epoch:
			return nil, nil
		case !ok || f.stage != prepared:
			return nil, refuse(store.ReasonMoveState, "move %s is not prepared on this node, or accepted with another epoch", move)
		case epoch <= next.ground.epochOf(f.ranges) || epoch > maxEpoch:
			return nil, refuse(store.ReasonMoveState, "epoch %d is not above the known one, which is %d", epoch, next.ground.epochOf(f.ranges))
		}
		if err := r.settle(next, f.ranges); err != nil {
			return nil, err
		}
		if err := r.o.Forget(ctx, f.ranges); err != nil {
			return nil, err
		}
		f.stage, f.epoch, f.at = accepted, epoch, r.o.Now()
		next.facts[move] = f
		g := &next.ground
		g.raise(f.ranges, epoch)
		g.takeBack(f.ranges)
		g.taken = withPart(g.taken, ring.Subtract(f.ranges, g.declared), f.peer)
		next.tell(slog.LevelInfo, "ranges accepted", "move", move, "ranges", len(f.ranges), "from", f.peer.NodeID, "epoch", epoch)
		return []string{move}, nil
	})
}

// Decline ends a preparation of a move that never was to be accepted. tooLate: it was accepted, and
// nothing changes. What was copied for the move stays as residue.
func (r *Registry) Decline(ctx context.Context, move, from string) (tooLate bool, err error) {
	return r.DeclineUpTo(ctx, move, from, 0)
}

// DeclineUpTo is Decline of a move for which Accept may have been sent with an epoch: none up to it is
// accepted any more. Without that a message that comes late could take the ranges when they are prepared
// again, while the source takes writes (docs/models/handover.pml, NO_FLOOR).
func (r *Registry) DeclineUpTo(ctx context.Context, move, from string, epoch uint64) (tooLate bool, err error) {
	if epoch > maxEpoch {
		return false, refuse(store.ReasonMove, "epoch %d is above the highest, which is %d", epoch, uint64(maxEpoch))
	}
	move = incoming(from, move)
	err = r.change(ctx, func(next *state) ([]string, error) {
		f, ok := next.facts[move]
		if ok && f.stage == declined && epoch > next.ground.epochOf(f.ranges) {
			next.ground.raise(f.ranges, epoch)
		}
		switch {
		case !ok || f.stage == declined:
			return nil, nil
		case f.stage == accepted:
			tooLate = true
			return nil, nil
		case f.stage != prepared:
			return nil, refuse(store.ReasonMoveState, "move %s is %s: it is not handed over to this node", move, f.stage)
		}
		f.stage, f.at = declined, r.o.Now()
		next.facts[move] = f
		g := &next.ground
		// An Accept that was sent before, and is still on its way, must not follow a later Prepare.
		g.raise(f.ranges, min(max(g.epochOf(f.ranges)+1, epoch), maxEpoch))
		if g.known {
			left := ring.Subtract(f.ranges, ring.Union(ring.Subtract(g.declared, allOf(g.given)), allOf(g.taken)))
			if len(left) > 0 {
				g.addResidue(residue{Residue: Residue{Ranges: left, Sequence: r.o.Sequence(), Since: f.at}})
			}
		}
		next.tell(slog.LevelInfo, "preparation declined", "move", move)
		return []string{move}, nil
	})
	return tooLate, err
}
