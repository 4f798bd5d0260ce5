package plan

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// Danger: a node that died while it joined blocks every later one, because what it asked for is never over.
func TestANodeThatDiedWhileItJoinedKeepsNobodyOut(t *testing.T) {
	simulate(t, 2, func(ctx context.Context, s *sim, add func(string, memberState) *simNode) {
		for _, id := range []string{"a", "b", "c"} {
			add(id, up)
		}
		dead := add("d", joining)
		s.until(time.Minute, "moves to it are under way", func() bool {
			return len(s.nodes["a"].moves)+len(s.nodes["b"].moves)+len(s.nodes["c"].moves) > 0
		})
		s.change(func() {
			dead.alive = false
			dead.end()
			dead.declared = clusterv1.MemberState_MEMBER_STATE_REMOVED
		})
		add("e", joining)
		s.is(time.Minute, "e", up)
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, n := range s.nodes {
			for _, m := range n.moves {
				require.True(t, ended(m), "%v", m)
			}
		}
	})
}

// Danger: what somebody waits for is called off.
func TestOnlyWhatNobodyWaitsForIsCalledOff(t *testing.T) {
	const removed, boot, back = clusterv1.MemberState_MEMBER_STATE_REMOVED, "bootstrap-abcdefgh", "return-abcdefgh"
	for _, c := range []struct {
		name    string
		purpose movev1.Purpose
		parent  string
		state   memberState
		life    string
		want    bool
	}{
		{"joins", movev1.Purpose_PURPOSE_BOOTSTRAP, boot, joining, "abcdefghij", false},
		{"is up, and the last one is being released", movev1.Purpose_PURPOSE_BOOTSTRAP, boot, up, "abcdefghij", false},
		{"joins with another disk", movev1.Purpose_PURPOSE_BOOTSTRAP, boot, joining, "zbcdefghij", true},
		{"was removed", movev1.Purpose_PURPOSE_BOOTSTRAP, boot, removed, "abcdefghij", true},
		{"was removed, and it is a drain", movev1.Purpose_PURPOSE_DRAIN, "drain-x", removed, "abcdefghij", false},
		{"was removed, and a person asked for it", movev1.Purpose_PURPOSE_REPLICATE, "", removed, "abcdefghij", false},
		{"a person bootstraps", movev1.Purpose_PURPOSE_BOOTSTRAP, "", up, "zbcdefghij", false},
		{"gets back", movev1.Purpose_PURPOSE_BOOTSTRAP, back, up, "abcdefghij", false},
		{"gets back and leaves", movev1.Purpose_PURPOSE_BOOTSTRAP, back, draining, "abcdefghij", true},
		{"got back with another disk", movev1.Purpose_PURPOSE_BOOTSTRAP, back, joining, "zbcdefghij", true},
	} {
		m := &movev1.Move{Purpose: c.purpose, Parent: c.parent, Target: &movev1.Target{NodeId: "n-1"}}
		require.Equal(t, c.want, orphaned(m, members{{id: "n-1", state: c.state, incarnation: c.life}}), c.name)
		require.False(t, orphaned(m, nil), "nobody knows it yet")
	}
}
