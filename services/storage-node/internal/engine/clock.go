package engine

import "time"

// Clock is the only time the engine knows. Now must carry a monotonic reading.
type Clock interface {
	Now() time.Time
	After(time.Duration) <-chan time.Time
}
