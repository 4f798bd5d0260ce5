package plan

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

const (
	// settle is for how long a node that sees nobody else looks around before it takes the ring for
	// itself: gossip needs a second or two to tell of the others.
	settle = 3 * time.Second
	// settleSeeds is that time while none of the configured seeds answers: they may be slow, or there is
	// none, since this is the first node of its cluster.
	settleSeeds = 15 * time.Second
	// lookEvery is the pause between two looks at the moves of a bootstrap.
	lookEvery = time.Second
	// heardAtOnce is how many nodes are asked at a time.
	heardAtOnce = 8
)

// joiner bootstraps the own node. It is used by one goroutine.
type joiner struct {
	*Planner
	// aloneSince is when nobody else was seen first; zero: somebody is, or it was not looked.
	aloneSince time.Time
	// heard are the moves of the bootstrap by the node that has them, as it said last.
	heard map[string][]*movev1.Move
	// tenants are nodes whose list of tenants was joined with the own.
	tenants map[string]bool
	waits   string
}

func newJoiner(p *Planner) *joiner {
	return &joiner{Planner: p, heard: map[string][]*movev1.Move{}, tenants: map[string]bool{}}
}

// step does the next step of a bootstrap. Each begins with what the nodes have.
func (j *joiner) step(ctx context.Context, v view) (time.Duration, error) {
	own, err := j.own(ctx)
	if err != nil {
		return 0, err
	}
	if own.ownership.GetWantedState() != joining || own.config.GetCoordinated() {
		return idle, nil
	}
	me, ok := v.members.get(j.o.NodeID)
	if !ok {
		return idle, nil // the health-agent has not declared it yet: a change of the view says so
	}
	a := arriving{
		self: j.o.NodeID, parent: bootstrapID(me.incarnation), members: v.members,
		factor: int(own.config.GetReplicationFactor()), now: time.Now(), moves: j.heard,
	}
	a.unheard = j.hear(ctx, a.parent, v.members)
	t := a.plan()
	if t.alone {
		return j.alone(ctx, v)
	}
	j.aloneSince = time.Time{}
	if t.waits != j.waits {
		j.waits = t.waits
		if t.waits != "" {
			j.o.Log.Info("bootstrap waits", "bootstrap", a.parent, "for", t.waits)
		}
	}
	var failed error // the others are made all the same
	for _, b := range t.create {
		if err := j.bring(ctx, me, a.parent, b); err != nil && failed == nil {
			failed = err
		}
	}
	if failed != nil {
		return 0, failed
	}
	if t.complete {
		return idle, j.declare(ctx, joining, up)
	}
	return lookEvery, nil
}

// alone declares a node up that has looked around for long enough and seen no owner of anything.
func (j *joiner) alone(ctx context.Context, v view) (time.Duration, error) {
	now := time.Now()
	if j.aloneSince.IsZero() {
		j.aloneSince = now
	}
	need := settle
	for _, word := range []string{"seeds", "isolated", "gossip"} {
		if slices.Contains(v.degraded, word) {
			need = settleSeeds
		}
	}
	if left := need - now.Sub(j.aloneSince); left > 0 {
		return left, nil
	}
	return idle, j.declare(ctx, joining, up)
}

// hear asks members for the moves of the bootstrap, and returns those whose moves are not known.
func (j *joiner) hear(ctx context.Context, parent string, all members) (unheard []string) {
	var mu sync.Mutex
	var group sync.WaitGroup
	places := make(chan struct{}, heardAtOnce)
	for _, m := range all {
		if m.id == j.o.NodeID || !m.owner() {
			continue
		}
		mu.Lock()
		_, known := j.heard[m.id]
		if !m.alive && !known {
			unheard = append(unheard, m.id)
		}
		mu.Unlock()
		if !m.alive {
			continue
		}
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			moves, err := j.movesOf(ctx, m, parent)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				j.heard[m.id] = moves
			case !known:
				unheard = append(unheard, m.id)
			}
		})
	}
	group.Wait()
	return unheard
}

func (j *joiner) movesOf(ctx context.Context, m member, parent string) ([]*movev1.Move, error) {
	peer, err := j.o.Dial(ctx, m.addr)
	if err != nil {
		return nil, err
	}
	defer peer.Release()
	all, err := call(ctx, func(ctx context.Context) (*adminv1.MovesResponse, error) {
		return peer.Admin.Moves(ctx, &adminv1.MovesRequest{IncludeEnded: true, Id: parent})
	})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all.GetMoves(), func(e *movev1.Move) bool {
		return e.GetParent() != parent || e.GetTarget().GetNodeId() != j.o.NodeID
	}), nil
}

// bring has another node make a move to this one.
func (j *joiner) bring(ctx context.Context, me member, parent string, b bringing) error {
	peer, err := j.o.Dial(ctx, b.source.addr)
	if err != nil {
		return fmt.Errorf("reach %s: %w", b.source.id, err)
	}
	defer peer.Release()
	if !j.tenants[b.source.id] {
		if err := j.joinTenants(ctx, peer.Replica, b.source.id); err != nil {
			return err
		}
		j.tenants[b.source.id] = true
	}
	r, err := call(ctx, func(ctx context.Context) (*adminv1.ReplicateResponse, error) {
		return peer.Admin.Replicate(ctx, &adminv1.ReplicateRequest{
			Id: b.id, What: &movev1.Selection{HashRanges: toWire(b.ranges)},
			Targets: []*movev1.Target{{NodeId: j.o.NodeID, Addr: me.addr}},
			Mode:    movev1.Mode_MODE_ONCE, Purpose: movev1.Purpose_PURPOSE_BOOTSTRAP, HandOver: b.handOver, Parent: parent,
		})
	})
	if err != nil {
		return fmt.Errorf("make move %s at %s: %w", b.id, b.source.id, err)
	}
	j.heard[b.source.id] = append(j.heard[b.source.id], r.GetMoves()...)
	j.o.Log.Info("ranges are brought here", "parent", parent, "move", b.id, "from", b.source.id, "hand_over", b.handOver, "ranges", len(b.ranges))
	return nil
}

// joinTenants has both nodes know the tenants of both.
func (p *Planner) joinTenants(ctx context.Context, other replicav1.ReplicaServiceClient, name string) error {
	ask := func(c replicav1.ReplicaServiceClient, list []*movev1.EncodedRecord) ([]*movev1.EncodedRecord, error) {
		a, err := call(ctx, func(ctx context.Context) (*replicav1.TenantsResponse, error) {
			return c.Tenants(ctx, &replicav1.TenantsRequest{Peer: p.peer(), Tenants: list})
		})
		return a.GetTenants(), err
	}
	theirs, err := ask(other, nil)
	if err != nil {
		return fmt.Errorf("tenants of %s: %w", name, err)
	}
	joined, err := ask(p.o.Replica, theirs)
	if err != nil {
		return fmt.Errorf("join the tenants of %s: %w", name, err)
	}
	if _, err := ask(other, joined); err != nil {
		return fmt.Errorf("give tenants to %s: %w", name, err)
	}
	return nil
}
