package engine

import "time"

// hurriedClock runs faster than the system's, so that tests do not wait for back-offs of seconds.
type hurriedClock struct {
	start  time.Time
	factor time.Duration
}

func newHurriedClock(factor int) hurriedClock {
	return hurriedClock{start: time.Now(), factor: time.Duration(factor)}
}

// Now implements Clock.
func (c hurriedClock) Now() time.Time { return c.start.Add(time.Since(c.start) * c.factor) }

// After implements Clock.
func (c hurriedClock) After(d time.Duration) <-chan time.Time { return time.After(d / c.factor) }
