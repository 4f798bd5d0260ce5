package plan

import (
	"context"
	"strings"
	"time"

	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// sweep calls off what other nodes asked this one for and nobody waits for any more. Such a move would try to reach its
// target for ever, pin the log, and keep the next node that joins from getting the same ranges.
func (p *Planner) sweep(ctx context.Context, v view) (time.Duration, error) {
	var failed error // the others are called off all the same
	for _, m := range v.moves {
		if orphaned(m, v.members) && cancellable(m) {
			if err := p.cancel(ctx, m.GetId()); err != nil {
				failed = err
			}
		}
	}
	return idle, failed
}

// orphaned reports whether a move was asked for by a node that has left since, or by an earlier life of it.
func orphaned(m *movev1.Move, all members) bool {
	if m.GetPurpose() != movev1.Purpose_PURPOSE_BOOTSTRAP {
		return false // a person's, or of a plan of this node
	}
	to, ok := all.get(m.GetTarget().GetNodeId())
	if !ok {
		return false // not heard of yet
	}
	returns := strings.HasPrefix(m.GetParent(), returnPrefix)
	switch to.state {
	case drained, clusterv1.MemberState_MEMBER_STATE_REMOVED:
		return true
	case draining:
		return returns
	}
	if returns {
		return m.GetParent() != returnID(to.incarnation)
	}
	return strings.HasPrefix(m.GetParent(), bootstrapPrefix) && m.GetParent() != bootstrapID(to.incarnation)
}
