package plan

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/ring"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// returning is what depends on drains that were called off: a node gave ranges away that are its own by the ring, and
// only a hand-over brings them back. Until then the ring is wrong about who has them, and whoever joins would ask the
// wrong node.
type returning struct {
	self    string
	parent  string
	members members
	factor  int
	// owned is what the node has now.
	owned []ring.HashRange
	// handed are the moves with which it handed ranges over, or is about to.
	handed []*movev1.Move
	// moves are those of the parent by the node that has them; a node that was not heard is not there.
	moves map[string][]*movev1.Move
}

// missing returns which ranges of the ring the node does not have, in normal form.
func (r *returning) missing() []ring.HashRange { return ring.Subtract(r.placed(r.self), r.owned) }

// placed returns the ranges that the ring gives a node, in normal form.
func (r *returning) placed(id string) []ring.HashRange {
	return ring.RangesIn(r.members.ring(r.factor, func(m member) bool { return m.owner() }).RangesOf(id))
}

// lent returns what is missing by the member that got it from a drain, if that is up. What was given to another one
// since, or may have been, is not lent any more; and nobody gives back what is its own by the ring too: that the node
// takes by itself.
func (r *returning) lent() map[string][]ring.HashRange {
	var given []*movev1.Move
	for _, m := range r.handed {
		if m.GetHandOver() && m.GetState() != movev1.State_STATE_CANCELLED && stands(m) >= movev1.State_STATE_FENCED {
			given = append(given, m)
		}
	}
	since := func(m *movev1.Move) uint64 {
		if !reached(m) {
			return math.MaxUint64 // now, if at all
		}
		return m.GetEpoch()
	}
	slices.SortStableFunc(given, func(a, b *movev1.Move) int { return cmp.Compare(since(b), since(a)) })
	missing := r.missing()
	out := map[string][]ring.HashRange{}
	for _, m := range given {
		ranges := ring.Intersect(fromWire(m.GetWhat().GetHashRanges()), missing)
		missing = ring.Subtract(missing, ranges)
		to, ok := r.members.get(m.GetTarget().GetNodeId())
		if !ok || to.state != up || m.GetPurpose() != movev1.Purpose_PURPOSE_DRAIN || !reached(m) {
			continue
		}
		if ranges = ring.Subtract(ranges, r.placed(to.id)); len(ranges) > 0 {
			out[to.id] = ring.Union(out[to.id], ranges)
		}
	}
	return out
}

// plan says which moves are to be made. It is a pure function.
func (r *returning) plan() (create []bringing) {
	lent := r.lent()
	for _, id := range slices.Sorted(maps.Keys(lent)) {
		list, heard := r.moves[id]
		if !heard {
			continue
		}
		taken := map[string]bool{}
		for _, m := range list {
			taken[m.GetId()] = true
		}
		under := rangesOf(list, func(m *movev1.Move) bool { return !ended(m) })
		source, _ := r.members.get(id)
		for _, ranges := range chunked(ring.Subtract(lent[id], under)) {
			b := bringing{source: source, handOver: true, ranges: ranges}
			b.id = moveID(r.parent+"-", id, func(id string) bool { return taken[id] })
			taken[b.id] = true
			create = append(create, b)
		}
	}
	return create
}

// returner brings ranges back. It is used by one goroutine.
type returner struct{ *joiner }

func newReturner(p *Planner) *returner { return &returner{newJoiner(p)} }

// step does the next step for a node that is up. Each begins with what the nodes have.
func (j *returner) step(ctx context.Context, v view) (time.Duration, error) {
	me, ok := v.members.get(j.o.NodeID)
	if !ok || me.state != up || v.drain != nil {
		return idle, nil
	}
	own, err := j.own(ctx)
	if err != nil {
		return 0, err
	}
	if own.ownership.GetWantedState() != up || own.config.GetCoordinated() {
		return idle, nil
	}
	r := returning{
		self: j.o.NodeID, parent: returnID(me.incarnation), members: v.members,
		factor: int(own.config.GetReplicationFactor()), moves: map[string][]*movev1.Move{},
	}
	if r.owned = ownedBy(own); len(r.missing()) == 0 {
		return idle, nil
	}
	if r.handed, err = j.ownMoves(ctx); err != nil {
		return 0, err
	}
	var failed error // the others are asked all the same
	for _, id := range slices.Sorted(maps.Keys(r.lent())) {
		m, _ := v.members.get(id)
		if r.moves[id], err = j.movesOf(ctx, m, r.parent); err != nil {
			delete(r.moves, id)
			failed = fmt.Errorf("moves of %s: %w", id, err)
		}
	}
	// What a move that was over by then has brought is owned by now, and what is missing by now was given by a move
	// that is known after it: neither is asked for.
	if own, err = j.own(ctx); err != nil {
		return 0, err
	}
	r.owned = ownedBy(own)
	if r.handed, err = j.ownMoves(ctx); err != nil {
		return 0, err
	}
	for _, b := range r.plan() {
		if err := j.bring(ctx, me, r.parent, b); err != nil {
			failed = err
		}
	}
	return again, failed
}

// ownMoves returns all moves of the own node.
func (p *Planner) ownMoves(ctx context.Context) ([]*movev1.Move, error) {
	all, err := call(ctx, func(ctx context.Context) (*adminv1.MovesResponse, error) {
		return p.o.Admin.Moves(ctx, &adminv1.MovesRequest{IncludeEnded: true})
	})
	return all.GetMoves(), err
}

// ownedBy returns what a node says that it has, in normal form.
func ownedBy(o own) (out []ring.HashRange) {
	for _, r := range o.ownership.GetRanges() {
		out = append(out, fromWire([]*dataRange{r.GetRange()})...)
	}
	return ring.Normal(out)
}
