package plan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/pairdb/pairdb/libs/ring"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

// A node that is up takes every write that it is given, of whatever range. When it drains it takes those of
// its own ranges only, and what it has of others, which nobody else may have, is copied to their owners before
// it is drained: nothing is fenced for that, since nothing of it is written any more.

// strays has what the node holds of others' ranges copied, and completes what is to be done for the drain.
// What it has from an earlier time, and others may have forgotten deletes of, goes first: nothing that was deleted
// comes back.
func (p *Planner) strays(ctx context.Context, l *leaving, o *migrationv1.OwnershipResponse, g *giveAway) error {
	foreign := l.foreign()
	if !o.GetOwnRangesOnly() {
		g.complete, g.waits = false, "the node takes writes of others' ranges still"
		return nil
	}
	if !slices.ContainsFunc(l.moves, l.isCopy) {
		if ring.Overlaps(fromWire(o.GetCleanupNeeded()), foreign) {
			// What can't be dropped yet, since not all others have it, is copied with the rest.
			p.o.Log.Info("what this node had earlier is dropped before the rest is copied", "drain", l.drain)
			if failed := p.cleanup(ctx); failed != nil {
				now, err := p.own(ctx) // what it has begun to drop is stale
				if err != nil {
					return err
				}
				if ring.Overlaps(fromWire(now.ownership.GetStale()), foreign) {
					return failed
				}
			}
		}
		records, err := p.records(ctx, foreign)
		if err != nil || records == 0 {
			return err
		}
		p.o.Log.Info("this node has records of ranges that are not its own: they are copied to the owners", "drain", l.drain, "records", records)
	}
	l.copies(g, foreign)
	return nil
}

// foreign returns the ranges that the ring gives to others only.
func (l *leaving) foreign() []ring.HashRange {
	now := l.members.ring(l.factor, func(m member) bool { return m.owner() })
	return ring.Subtract([]ring.HashRange{{}}, ring.RangesIn(now.RangesOf(l.self)))
}

func (l *leaving) isCopy(m *movev1.Move) bool { return m.GetParent() == l.drain && !m.GetHandOver() }

// copies plans what is next when the node has records of foreign ranges: a copy to each of their owners that
// is up and alive. A copy whose target is not one of them any more is cancelled. It is a pure function.
func (l *leaving) copies(g *giveAway, foreign []ring.HashRange) {
	owners := l.members.ring(l.factor, func(m member) bool { return m.owner() && m.id != l.self })
	want := map[string][]ring.HashRange{}
	for _, p := range owners.Within(foreign) {
		alone := true
		for _, id := range p.Replicas {
			if m, _ := l.members.get(id); m.state == up && m.alive {
				want[id], alone = append(want[id], p.Range), false
			}
		}
		if alone {
			g.waits = fmt.Sprintf("of the owners of a range (%v) none is up and alive", p.Replicas)
		}
	}
	has := map[string][]ring.HashRange{} // what each has, or is being sent
	under := 0
	for _, m := range l.moves {
		if !l.isCopy(m) {
			continue
		}
		target := m.GetTarget().GetNodeId()
		switch {
		case reached(m):
			g.done++
		case ended(m):
			continue
		case cancellable(m) && len(want[target]) == 0:
			g.cancel = append(g.cancel, m.GetId())
			continue
		default:
			under++
			if m.GetState() == movev1.State_STATE_FAILED {
				g.waits = fmt.Sprintf("move %s failed: %s", m.GetId(), m.GetReason())
			}
		}
		has[target] = ring.Union(has[target], fromWire(m.GetWhat().GetHashRanges()))
	}
	for _, to := range l.members {
		for _, ranges := range chunked(ring.Subtract(ring.Normal(want[to.id]), has[to.id])) {
			h := handOver{target: to, ranges: ranges, copy: true}
			h.id = moveID(l.drain+".", to.id, func(id string) bool {
				return slices.ContainsFunc(l.moves, func(m *movev1.Move) bool { return m.GetId() == id }) ||
					slices.ContainsFunc(g.create, func(o handOver) bool { return o.id == id })
			})
			g.create = append(g.create, h)
		}
	}
	g.total = g.done + under + len(g.create)
	g.complete = g.waits == "" && under == 0 && len(g.cancel) == 0 && len(g.create) == 0
}

// cleanup removes what the node holds of ranges that are not its own any more, and waits for the end.
func (p *Planner) cleanup(ctx context.Context) error {
	s, err := p.o.Admin.Cleanup(ctx, &adminv1.CleanupRequest{})
	for err == nil {
		_, err = s.Recv()
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("drop what the node had earlier: %w", err)
	}
	return nil
}

// records counts what the node holds of ranges.
func (p *Planner) records(ctx context.Context, ranges []ring.HashRange) (n uint64, err error) {
	for _, part := range chunked(ranges) {
		d, err := p.o.Replica.Digest(ctx, &replicav1.DigestRequest{
			Peer: p.peer(), What: &movev1.Selection{HashRanges: toWire(part)}, LeavesPerRange: 1,
		})
		if err != nil {
			return 0, fmt.Errorf("count the records of others' ranges: %w", err)
		}
		n += d.GetRecords()
	}
	return n, nil
}
