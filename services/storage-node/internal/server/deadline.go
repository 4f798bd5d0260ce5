package server

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// lazyDeadline is context.WithDeadline for calls that end long before: the timer, the channel and
// the place in the parent's list are made only when somebody waits for Done. Reads and writes ask for
// Err between their steps, and never wait.
type lazyDeadline struct {
	context.Context // the parent
	deadline        time.Time

	once     sync.Once
	timed    context.Context // made by Done
	cancel   context.CancelFunc
	released atomic.Bool
}

// Deadline implements context.Context.
func (c *lazyDeadline) Deadline() (time.Time, bool) { return c.deadline, true }

// Err implements context.Context.
func (c *lazyDeadline) Err() error {
	if err := c.Context.Err(); err != nil {
		return err
	}
	if c.released.Load() {
		return context.Canceled
	}
	if !time.Now().Before(c.deadline) {
		return context.DeadlineExceeded
	}
	return nil
}

// Done implements context.Context.
func (c *lazyDeadline) Done() <-chan struct{} {
	c.once.Do(func() { c.timed, c.cancel = context.WithDeadline(c.Context, c.deadline) })
	return c.timed.Done()
}

// release frees the timer, if there is one, and ends the context, like the function that context.WithDeadline
// returns: whoever derived one from it and waits is woken, and must find a reason.
func (c *lazyDeadline) release() {
	c.released.Store(true)
	c.once.Do(func() { c.timed, c.cancel = c.Context, func() {} })
	c.cancel()
}
