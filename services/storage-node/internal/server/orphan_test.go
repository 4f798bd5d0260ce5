package server

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
)

// Danger: the migrator dies while it waits for its fence, the move does not know of one, and its ranges
// refuse writes while it is verified anew, or for ever when it is called off.
func TestAFenceWhoseCallerHasGoneIsLifted(t *testing.T) {
	o := startOwner(t)
	o.verifying("m1")
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		_, _ = o.migration.Fence(ctx, &migrationv1.FenceRequest{MoveId: "m1"})
		// This one waits for the handler of that one, whose caller may have gone.
		_, err := o.migration.Lift(t.Context(), &migrationv1.LiftRequest{MoveId: "none"})
		require.Equal(t, "MOVE_NOT_FOUND", refused(t, err).reason)
		m, err := o.moves.Get("m1")
		require.NoError(t, err)
		if m.State == moves.Fenced {
			_, err = o.migration.Lift(t.Context(), &migrationv1.LiftRequest{MoveId: "m1"})
			require.NoError(t, err)
			continue
		}
		require.NoError(t, o.put(inHalf(true)), "it is %s", m.State)
	}
}
