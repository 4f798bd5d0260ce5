package sidecar

import (
	"context"
	"math/rand/v2"
	"time"
)

// Pause waits for d, give or take a quarter, so that those who wait for one thing do not return in step. It
// ends early with ctx, and returns its error then.
func Pause(ctx context.Context, d time.Duration) error {
	d += time.Duration((rand.Float64() - 0.5) / 2 * float64(d))
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
