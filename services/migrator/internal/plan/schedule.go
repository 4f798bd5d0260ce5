package plan

import (
	"time"

	"github.com/pairdb/pairdb/libs/ring"
)

const (
	// backoffMin is the pause after a comparison that did not end with equality; it doubles each time, up to
	// the interval.
	backoffMin = 5 * time.Second
	// backoffMax is its limit without an interval.
	backoffMax = 5 * time.Minute
)

// shared is another node as the schedule sees it: whether it can be compared with, and in what.
type shared struct {
	id    string
	alive bool
	// ranges that both nodes have, in normal form.
	ranges []ring.HashRange
}

// pair is when the own node is compared with another one.
type pair struct {
	shared
	// due is when; zero: not before something happens.
	due time.Time
	// since: the comparison is not needed if all ranges were equal after it, because the other side did it.
	// zero: it is needed in any case.
	since time.Time
	// failures in a row.
	failures int
}

// schedule decides which pair is compared when. It has no clock: its methods are told the time.
type schedule struct {
	self     string
	interval time.Duration
	random   func() float64
	pairs    map[string]*pair
}

func newSchedule(self string, interval time.Duration, random func() float64) *schedule {
	return &schedule{self: self, interval: interval, random: random, pairs: map[string]*pair{}}
}

// observe tells the other nodes as they are now. One that is new, came back, or shares more with the own
// node than before is compared soon. Both sides see that: the one with the smaller name begins, the other
// waits for some seconds and finds it done.
func (s *schedule) observe(now time.Time, seen []shared) {
	pairs := make(map[string]*pair, len(seen))
	for _, o := range seen {
		p := s.pairs[o.id]
		if p == nil {
			p = &pair{shared: shared{id: o.id}}
		}
		pairs[o.id] = p
		switch {
		case !o.alive || len(o.ranges) == 0:
			p.due = time.Time{}
		case !p.alive || !ring.Covers(p.ranges, o.ranges):
			p.due, p.since, p.failures = now.Add(s.soon(o.id)), now, 0
		}
		p.shared = o
	}
	s.pairs = pairs
}

// soon is how long after an event a pair is compared: between 0.2 and 1 s on one side, and between 5 and
// 8 s on the other.
func (s *schedule) soon(id string) time.Duration {
	if s.self < id {
		return 200*time.Millisecond + time.Duration(s.random()*float64(800*time.Millisecond))
	}
	return 5*time.Second + time.Duration(s.random()*float64(3*time.Second))
}

// next returns the pair that is due, or how long none is; 0 then means that nothing is foreseen.
func (s *schedule) next(now time.Time) (p *pair, wait time.Duration) {
	for _, o := range s.pairs {
		if o.due.IsZero() {
			continue
		}
		if p == nil || o.due.Before(p.due) || o.due.Equal(p.due) && o.id < p.id {
			p = o
		}
	}
	if p == nil || !p.due.After(now) {
		return p, 0
	}
	return nil, p.due.Sub(now)
}

// waiting counts the pairs that are due.
func (s *schedule) waiting(now time.Time) (n int) {
	for _, p := range s.pairs {
		if !p.due.IsZero() && !p.due.After(now) {
			n++
		}
	}
	return n
}

// done tells that a pair was compared, or found equal. The side with the smaller name compares each
// interval, give or take a tenth; the other one looks after one and a half whether that happened.
func (s *schedule) done(now time.Time, p *pair, equal bool) {
	p.due, p.since = time.Time{}, time.Time{}
	if !equal {
		limit := s.interval
		if limit <= 0 {
			limit = backoffMax
		}
		p.due = now.Add(min(backoffMin<<min(p.failures, 20), max(limit, backoffMin)))
		p.failures++
		return
	}
	p.failures = 0
	if s.interval <= 0 {
		return
	}
	if s.self < p.id {
		p.due = now.Add(time.Duration((0.9 + 0.2*s.random()) * float64(s.interval)))
		return
	}
	p.due, p.since = now.Add(s.interval+s.interval/2), now.Add(s.interval/10)
}

// later tells that there is no use in comparing a pair before something happens, or an interval is over.
func (s *schedule) later(now time.Time, p *pair) {
	p.failures = 0
	p.since = time.Time{}
	p.due = now.Add(max(s.interval, time.Hour))
}
