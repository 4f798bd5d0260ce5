package ownership

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Danger: Accept of a hand-over that was called off comes late, after the ranges were prepared again, and
// both nodes take writes: the source is not fenced yet.
func TestAcceptThatComesLateIsRefusedAfterADecline(t *testing.T) {
	n := open(t)
	require.NoError(t, n.SetMembers(bg, up("n1", "n2", "n3", "n4")))
	free := ring.Subtract([]ring.HashRange{{}}, ring.RangesIn(n.View().Owned))
	known, err := n.Prepare(bg, "m1", free, n2)
	require.NoError(t, err)
	const sent = 41 // the source knows higher epochs than this node
	require.Less(t, known, uint64(sent))
	for range 2 { // a repeat, and after a restart
		accepted, err := n.DeclineUpTo(bg, "m1", "n2", sent)
		require.NoError(t, err)
		require.False(t, accepted)
		n = n.restart(t)
	}
	known, err = n.Prepare(bg, "m1", free, n2)
	require.NoError(t, err)
	require.GreaterOrEqual(t, known, uint64(sent), "the next epoch is above it")
	requireReason(t, store.ReasonMoveState, n.Accept(bg, "m1", "n2", sent))
	requireReason(t, store.ReasonMoveState, n.Accept(bg, "m1", "n2", sent-1))
	require.NoError(t, n.Accept(bg, "m1", "n2", known+1))

	accepted, err := n.DeclineUpTo(bg, "m1", "n2", sent+5)
	require.NoError(t, err)
	require.True(t, accepted, "it is too late")
	_, err = n.DeclineUpTo(bg, "m1", "n2", math.MaxUint64)
	requireReason(t, store.ReasonMove, err)
}
