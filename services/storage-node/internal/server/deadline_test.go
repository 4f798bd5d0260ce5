package server

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func withLazyDeadline(parent context.Context, d time.Time) *lazyDeadline {
	return &lazyDeadline{Context: parent, deadline: d}
}

// A handler must not be able to tell a lazy deadline from one with a timer.
func TestLazyDeadlineIsADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent, cancel := context.WithCancel(t.Context())
		c := withLazyDeadline(parent, time.Now().Add(time.Second))
		d, ok := c.Deadline()
		require.True(t, ok)
		require.Equal(t, time.Now().Add(time.Second), d)
		require.NoError(t, c.Err())
		<-c.Done()
		require.Equal(t, d, time.Now())
		require.ErrorIs(t, c.Err(), context.DeadlineExceeded)
		c.release()

		asked := withLazyDeadline(parent, time.Now()) // without a look at Done
		require.ErrorIs(t, asked.Err(), context.DeadlineExceeded)
		asked.release()

		derived, stop := context.WithCancel(withLazyDeadline(parent, time.Now().Add(time.Second)))
		defer stop()
		<-derived.Done()
		require.ErrorIs(t, derived.Err(), context.DeadlineExceeded)

		c = withLazyDeadline(parent, time.Now().Add(time.Second))
		cancel()
		<-c.Done()
		require.ErrorIs(t, c.Err(), context.Canceled)
		c.release()
		c.release()
	})
}

// Danger: a handler derives a context, and returns: what waits for the end of the parent finds that it has ended
// without a reason, and the context package ends the process.
func TestReleasedDeadlineHasAReason(t *testing.T) {
	for _, waited := range []bool{false, true} {
		c := withLazyDeadline(t.Context(), time.Now().Add(time.Hour))
		var derived context.Context = c
		if waited {
			ctx, stop := context.WithCancel(c)
			defer stop()
			derived = ctx
		}
		require.NoError(t, derived.Err())
		c.release()
		require.ErrorIs(t, c.Err(), context.Canceled)
		if waited {
			<-derived.Done()
			require.ErrorIs(t, derived.Err(), context.Canceled)
		}
	}
}
