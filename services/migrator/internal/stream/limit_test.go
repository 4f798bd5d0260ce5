package stream

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// An operator's limit must hold within a tenth: below it requests suffer, above it a move takes days.
func TestMeasuredRateIsWithinATenthOfTheLimit(t *testing.T) {
	for _, c := range []struct {
		rate    int64
		message int
	}{
		{1 << 10, 100}, {1 << 10, 10 << 10}, {1 << 20, 48 << 10}, {64 << 20, 48 << 10}, {64 << 20, 48 << 20}, {1 << 30, 1 << 20},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := NewLimiter(c.rate)
			start, sent := time.Now(), 0
			for time.Since(start) < 10*time.Second && sent < 20*int(c.rate) {
				_, err := l.Wait(t.Context(), c.message)
				require.NoError(t, err)
				sent += c.message
			}
			measured := float64(sent) / time.Since(start).Seconds()
			require.InEpsilon(t, float64(c.rate), measured, 0.1, "%+v", c)
		})
	}
}

// Moves that share a limit must not starve one another, nor exceed it together.
func TestStreamsShareALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, message, streams = 1 << 20, 32 << 10, 4
		l := NewLimiter(rate)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		sent := make([]int, streams)
		for i := range streams {
			wg.Go(func() {
				for {
					if _, err := l.Wait(ctx, message); err != nil {
						return
					}
					sent[i] += message
				}
			})
		}
		wg.Wait()
		sum := 0
		for _, n := range sent {
			sum += n
			require.InEpsilon(t, rate*10/streams, n, 0.15)
		}
		require.InEpsilon(t, rate*10, sum, 0.1)
	})
}

// No limit is no wait; a limit ends with its context, and says why.
func TestNoLimitAndTheEndOfOne(t *testing.T) {
	require.Nil(t, NewLimiter(0))
	var none *Limiter
	waited, err := none.Wait(t.Context(), 1<<30)
	require.NoError(t, err)
	require.Zero(t, waited)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ErrStalled)
	_, err = NewLimiter(1).Wait(ctx, 1000)
	require.ErrorIs(t, err, ErrStalled)
}
