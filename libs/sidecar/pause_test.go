package sidecar

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Sidecars that come back in step are a load that comes in waves; one that waits on after its end is a
// process that does not stop.
func TestPausesAreSpreadAndEndWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const d = time.Minute
		seen := map[time.Duration]bool{}
		for range 20 {
			begun := time.Now()
			require.NoError(t, Pause(t.Context(), d))
			took := time.Since(begun)
			require.GreaterOrEqual(t, took, 3*d/4)
			require.LessOrEqual(t, took, 5*d/4)
			seen[took] = true
		}
		require.Greater(t, len(seen), 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		require.ErrorIs(t, Pause(ctx, d), context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(begun))
	})
}
