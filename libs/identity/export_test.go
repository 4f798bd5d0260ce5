package identity

import "time"

// Poll looks at the files once.
func (s *Source) Poll() { s.poll() }

// PollEvery changes how often Run does, before it begins.
func (s *Source) PollEvery(d time.Duration) { s.every = d }

// LimitConnections changes how many there may be.
func (s *Source) LimitConnections(n int64) { s.places.limit.Store(n) }
