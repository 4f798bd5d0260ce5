package store

import "time"

// drainingRetry is when a client that was refused comes back, here or elsewhere.
const drainingRetry = time.Second

// RefuseWrites refuses writes of tenants until a time, retryably, and takes reads as before; the zero time
// takes them again. It lives in memory alone. A write that was taken up already is made.
func (s *Store) RefuseWrites(until time.Time) {
	n := int64(0)
	if !until.IsZero() {
		n = until.UnixNano()
	}
	s.refusing.Store(n)
}

// WritesRefused returns until when writes are refused; the zero time when they are not.
func (s *Store) WritesRefused() time.Time {
	n := s.refusing.Load()
	if n == 0 || s.now().UnixNano() >= n {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// TakesWrites returns why writes of tenants are refused now, or nil.
func (s *Store) TakesWrites() error {
	if s.refusing.Load() == 0 || s.WritesRefused().IsZero() {
		return nil
	}
	return &Error{Reason: ReasonNodeDraining, RetryAfter: drainingRetry, Message: "the node takes no writes: it is about to be restarted"}
}
