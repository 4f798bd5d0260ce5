package members

import (
	"context"
	"time"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	// viewLimit is how old a view may be that says that a member is not alive: a health-agent reports every
	// second, so one that was not heard for a minute is gone.
	viewLimit = time.Minute
	// aliveRetry is when a suspected member is known to be down, or to be well.
	aliveRetry = 5 * time.Second
)

// Remove declares a member removed, for good, and returns its declaration. One that may be alive is
// refused, and so is this node itself. Removing a member again changes nothing.
func (r *Registry) Remove(ctx context.Context, nodeID, reason string) (membership.Declaration, error) {
	if err := checkNodeID(nodeID); err != nil {
		return membership.Declaration{}, err
	}
	if err := checkRemoval(reason); err != nil {
		return membership.Declaration{}, err
	}
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return membership.Declaration{}, err
	}
	defer r.changing.Release(1)
	s := r.state.Load()
	known, err := r.removable(s, nodeID)
	if err != nil {
		return membership.Declaration{}, err
	}
	gone, err := membership.Remove(known, r.o.Now().UnixMilli())
	if err != nil {
		return membership.Declaration{}, refuse(store.ReasonMember, "%v", err)
	}
	if gone == known {
		return known, nil
	}
	next := &state{declared: s.declared, seen: s.seen, verdict: s.verdict, heard: s.heard, foreign: s.foreign}
	if err := r.join(ctx, next, []membership.Declaration{gone}); err != nil {
		return membership.Declaration{}, err
	}
	r.enter(next)
	r.o.Log.Warn("member removed", "member", nodeID, "version", gone.Version, "liveness", seenOf(s, nodeID).String(), "reason", reason)
	return gone, nil
}

// removable returns what is declared of a member that may be removed.
func (r *Registry) removable(s *state, nodeID string) (membership.Declaration, error) {
	known, ok := s.declared[nodeID]
	switch {
	case nodeID == r.o.NodeID:
		return known, refuse(store.ReasonMemberSelf, "%s is this node: ask another one to remove it", nodeID)
	case !ok:
		return known, refuse(store.ReasonMemberNotFound, "no member %s was declared to this node", nodeID)
	case known.State == membership.Removed:
		return known, nil
	case s.heard.IsZero() || r.o.Now().Sub(s.heard) > viewLimit:
		return known, &store.Error{Reason: store.ReasonMembersUnseen, RetryAfter: aliveRetry,
			Message: "the health-agent of this node was not heard for a minute: whether " + nodeID + " is alive is not known"}
	}
	switch l := seenOf(s, nodeID); l {
	case Alive, Suspect:
		return known, &store.Error{Reason: store.ReasonMemberAlive, RetryAfter: aliveRetry,
			Message: "member " + nodeID + " is " + l.String() + ": drain it, or stop it and wait until it is seen DOWN"}
	}
	return known, nil
}

func seenOf(s *state, nodeID string) Liveness {
	if l := s.seen[nodeID].Liveness; l != 0 {
		return l
	}
	return Unseen
}
