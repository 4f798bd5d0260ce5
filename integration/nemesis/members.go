package nemesis

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pairdb/pairdb/integration/cluster"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// moving is how soon a node must have come or gone, with everything that is taken from it meanwhile.
const moving = 4 * time.Minute

// topology is who keeps data: the first nodes, and at times one more.
type topology struct {
	first []cluster.Node

	mu    sync.Mutex
	extra cluster.Node // guarded by mu; nil: none
	added int          // guarded by mu

	// leaving was told to leave, last; guarded by mu.
	leaving cluster.Node
}

func (t *topology) members() []cluster.Node {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.Clone(t.first)
	if t.extra != nil {
		all = append(all, t.extra)
	}
	return all
}

func (t *topology) set(extra cluster.Node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.extra = extra
}

// maxAdded is how many nodes may come in a run: each has an address of its own.
const maxAdded = 9

// bootstrap adds a node, which takes over its ranges from the others whatever else happens to these.
func bootstrap(s *scene) error {
	t := &s.n.top
	t.mu.Lock()
	can := t.extra == nil && t.added < maxAdded
	if can {
		t.added++
	}
	t.mu.Unlock()
	if !can {
		return cluster.ErrUnsupported
	}
	ctx, cancel := context.WithTimeout(context.Background(), recovery)
	defer cancel()
	m, err := s.n.cluster.Add(ctx)
	if err != nil {
		return err
	}
	if err := seen(m, clusterv1.MemberState_MEMBER_STATE_UP, append(s.n.Members(), m)); err != nil {
		return err
	}
	t.set(m)
	pause(s.ctx, 2*s.hold)
	return nil
}

// knows asks a node once if it knows the state of another one.
func knows(other, m cluster.Node, state clusterv1.MemberState) bool {
	found := false
	err := admin(other, func(ctx context.Context, c adminv1.AdminServiceClient) error {
		r, err := c.Members(ctx, &adminv1.MembersRequest{})
		for _, member := range r.GetMembers() {
			d := member.GetDeclared()
			found = found || d.GetNodeId() == m.Name() && d.GetState() == state
		}
		return err
	})
	return err == nil && found
}

// seen waits until some nodes know the state of one.
func seen(m cluster.Node, state clusterv1.MemberState, by []cluster.Node) error {
	for _, other := range by {
		err := await(moving, fmt.Sprintf("%s knows that %s is %s", other.Name(), m.Name(), state), func(context.Context) bool {
			return knows(other, m, state)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// goneStates are how the others know a node that will not come back.
var goneStates = []clusterv1.MemberState{clusterv1.MemberState_MEMBER_STATE_DRAINED, clusterv1.MemberState_MEMBER_STATE_REMOVED}

// gone asks a node once if another one has left for it.
func gone(other, m cluster.Node) bool {
	return slices.ContainsFunc(goneStates, func(s clusterv1.MemberState) bool { return knows(other, m, s) })
}

// left reports whether one has given everything away: the others know it, or its own directory, which refuses
// to be used again.
func (n *Nemesis) left(m cluster.Node) bool {
	if slices.Contains(n.top.first, m) {
		return false
	}
	return n.refuses(m) || slices.ContainsFunc(n.top.first, func(other cluster.Node) bool { return gone(other, m) })
}

// refuses reports whether a node that was told to leave does not start again: a directory that was drained
// is the only reason that it can have.
func (n *Nemesis) refuses(m cluster.Node) bool {
	n.top.mu.Lock()
	defer n.top.mu.Unlock()
	return n.top.leaving == m && m.Broken() != nil
}

// decommission has the node that was added give everything away and leave.
func decommission(s *scene) error {
	s.n.top.mu.Lock()
	m := s.n.top.extra
	s.n.top.mu.Unlock()
	if m == nil {
		return cluster.ErrUnsupported
	}
	return s.n.leave(m)
}

func (n *Nemesis) leave(m cluster.Node) error {
	n.top.mu.Lock()
	n.top.leaving = m
	n.top.mu.Unlock()
	asked := false
	var last string
	err := await(moving, m.Name()+" has given everything away", func(context.Context) bool {
		done := false
		err := admin(m, func(ctx context.Context, c adminv1.AdminServiceClient) error {
			if !asked {
				_, err := c.Drain(ctx, &adminv1.DrainRequest{Kind: adminv1.DrainRequest_KIND_DECOMMISSION, Reason: "the nemesis"})
				if err != nil {
					last = err.Error()
				}
			}
			r, err := c.Moves(ctx, &adminv1.MovesRequest{IncludeEnded: true})
			for _, d := range r.GetDrains() {
				asked, last = true, d.String()
				done = done || d.GetState() == movev1.DrainState_DRAIN_STATE_COMPLETED
			}
			return err
		})
		return err == nil && done || n.left(m) // it may have been started again, in vain, since it was done
	})
	if err != nil {
		return fmt.Errorf("%w; last seen: %s", err, last)
	}
	for _, other := range n.top.first {
		err := await(moving, other.Name()+" knows that "+m.Name()+" has left", func(context.Context) bool {
			return gone(other, m)
		})
		if err != nil {
			return err
		}
	}
	n.top.set(nil)
	// Nobody strikes it any more once the hands that do have let it go.
	n.whole.Lock()
	defer n.whole.Unlock()
	stop(m)
	return nil
}

// Finish has only the first nodes left, after Run.
func (n *Nemesis) Finish() error {
	n.top.mu.Lock()
	m := n.top.extra
	n.top.mu.Unlock()
	if m == nil {
		return nil
	}
	return n.leave(m)
}
