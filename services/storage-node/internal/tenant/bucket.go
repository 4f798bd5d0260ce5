package tenant

import (
	"sync/atomic"
	"time"
)

const (
	// burst is how long a bucket takes to fill.
	burst = time.Second
	// maxDebt bounds what reads can leave behind: sums of it stay far from overflow, and an absurdly
	// small quota does not shut a tenant out for years.
	maxDebt = time.Hour
)

// bucket limits a rate. It is the virtual scheduling form of a token bucket: all it keeps is when it
// will be full, so that it needs no lock. golang.org/x/time/rate knows no debt beyond a burst.
type bucket struct {
	perSecond int64
	// full is that time, since the start of the registry's clock, in nanoseconds.
	full atomic.Int64
}

// newBucket returns a full bucket; nil, which has no limit, for 0.
func newBucket(perSecond int64) *bucket {
	if perSecond == 0 {
		return nil
	}
	return &bucket{perSecond: perSecond}
}

// cost is the time in which n flow in, rounded down: as many single keys as the quota says are a burst.
func (b *bucket) cost(n int) time.Duration {
	return min(maxDebt, time.Duration(float64(n)*float64(time.Second)/float64(b.perSecond)))
}

// take takes n when they are there, or the bucket is full; otherwise it says when that will be.
func (b *bucket) take(now time.Duration, n int) (wait time.Duration) {
	if b == nil {
		return 0
	}
	cost := b.cost(n)
	for {
		full := b.full.Load()
		at := max(time.Duration(full), now)
		if wait := at - now + min(cost, burst) - burst; wait > 0 {
			return wait
		}
		if b.full.CompareAndSwap(full, int64(min(at+cost, now+maxDebt))) {
			return 0
		}
	}
}

// charge takes n whatever there is.
func (b *bucket) charge(now time.Duration, n int) {
	if b == nil || n <= 0 {
		return
	}
	cost := b.cost(n)
	for {
		full := b.full.Load()
		at := max(time.Duration(full), now)
		if b.full.CompareAndSwap(full, int64(min(at+cost, now+maxDebt))) {
			return
		}
	}
}

// giveBack undoes a take.
func (b *bucket) giveBack(n int) {
	if b != nil {
		b.full.Add(-int64(b.cost(n)))
	}
}
