package client

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

func newTestRetrier(budget time.Duration) *retrier {
	c := &Client{options: Options{RetryFor: budget}}
	return c.newRetrier()
}

var (
	unreachable = &Error{Code: codes.Unavailable}
	askedToWait = func(d time.Duration) *Error { return &Error{Code: codes.ResourceExhausted, RetryAfter: d} }
)

func TestRepeatsWaitAsLongAsTheNodeAsks(t *testing.T) {
	// A node that asks for time and is asked again at once never recovers.
	synctest.Test(t, func(t *testing.T) {
		r := newTestRetrier(time.Minute)
		start := time.Now()
		require.True(t, r.wait(t.Context(), askedToWait(3*time.Second)))
		require.GreaterOrEqual(t, time.Since(start), 3*time.Second)
		require.Less(t, time.Since(start), 3100*time.Millisecond)
		for range 20 {
			start = time.Now()
			require.True(t, newTestRetrier(time.Minute).wait(t.Context(), unreachable))
			require.GreaterOrEqual(t, time.Since(start), firstBackoff/2)
			require.Less(t, time.Since(start), firstBackoff)
		}
	})
}

func TestRepeatsEndWithTheBudgetOrTheContext(t *testing.T) {
	// Nobody waits for a repeat that comes too late to be made.
	synctest.Test(t, func(t *testing.T) {
		r := newTestRetrier(5 * time.Second)
		time.Sleep(time.Minute) // a slow call, or a slow reader of a stream, costs no budget
		start := time.Now()
		for r.wait(t.Context(), unreachable) {
		}
		require.LessOrEqual(t, time.Since(start), 5*time.Second)
		require.Greater(t, time.Since(start), 2*time.Second)
		r.progress()
		require.True(t, r.wait(t.Context(), unreachable), "the budget is that of one failure")

		start = time.Now()
		require.False(t, r.wait(t.Context(), askedToWait(time.Hour)))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.False(t, newTestRetrier(time.Minute).wait(ctx, askedToWait(2*time.Second)))
		require.False(t, newTestRetrier(-1).wait(t.Context(), unreachable))
		require.Zero(t, time.Since(start), "at once")

		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		require.False(t, newTestRetrier(time.Minute).wait(ctx, askedToWait(30*time.Second)))
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestRefusedCallsOfAClientComeBackOneByOne(t *testing.T) {
	// A thousand callers that come back together are the next overload.
	synctest.Test(t, func(t *testing.T) {
		c := &Client{options: Options{RetryFor: 2 * time.Second}}
		var mu sync.Mutex
		var back []time.Time
		gaveUp := 0
		start := time.Now()
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				ok := c.newRetrier().wait(t.Context(), askedToWait(100*time.Millisecond))
				mu.Lock()
				defer mu.Unlock()
				if ok {
					back = append(back, time.Now())
				} else {
					gaveUp++
				}
			})
		}
		wg.Wait()
		for i := 1; i < len(back); i++ {
			require.GreaterOrEqual(t, back[i].Sub(back[i-1]), repeatInterval)
		}
		require.InDelta(t, 380, len(back), 5, "from 0.1 s to 2 s, one every 5 ms")
		require.Equal(t, 1000, gaveUp+len(back))
		require.LessOrEqual(t, time.Since(start), 2*time.Second)
	})
}
