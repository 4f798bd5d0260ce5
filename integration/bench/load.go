package main

import (
	"context"
	"math/bits"
	"sync"
	"time"
)

// call does one request of a worker; worker is below the depth. It returns how many operations the
// request was.
type call func(ctx context.Context, worker int) (int, error)

// histogram counts durations in buckets that are 1/32 wide.
type histogram struct {
	buckets [64 * 32]uint64
	count   uint64
}

func bucketOf(d time.Duration) int {
	v := uint64(max(d, 1))
	if v < 64 {
		return int(v)
	}
	shift := bits.Len64(v) - 6
	return shift*32 + int(v>>shift)
}

func (h *histogram) add(d time.Duration) {
	h.buckets[bucketOf(d)]++
	h.count++
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
	h.count += o.count
}

// quantile returns the upper end of the bucket that holds the q-th part.
func (h *histogram) quantile(q float64) time.Duration {
	left := uint64(q * float64(h.count))
	for i, n := range h.buckets {
		if left < n {
			if i < 64 {
				return time.Duration(i)
			}
			shift := i/32 - 1
			return time.Duration(uint64(i-shift*32+1) << shift)
		}
		left -= n
	}
	return 0
}

// drive runs calls with depth of them in flight until the time is over. It returns the operations
// that were done and the time that it took.
func drive(ctx context.Context, depth int, each time.Duration, do call) (ops int, took time.Duration, h *histogram, err error) {
	h = &histogram{}
	var mu sync.Mutex // guards ops, h, err
	var wg sync.WaitGroup
	start := time.Now()
	for w := range depth {
		wg.Go(func() {
			var own histogram
			mine := 0
			var failed error
			for at := time.Now(); at.Sub(start) < each; {
				n, err := do(ctx, w)
				if err != nil {
					failed = err
					break
				}
				now := time.Now()
				own.add(now.Sub(at))
				at = now
				mine += n
			}
			mu.Lock()
			defer mu.Unlock()
			ops += mine
			h.merge(&own)
			if failed != nil {
				err = failed
			}
		})
	}
	wg.Wait()
	return ops, time.Since(start), h, err
}

// calibrate returns the time of a fixed piece of work: how fast the machine is at this moment.
func calibrate() time.Duration {
	start := time.Now()
	x := uint64(start.UnixNano()) | 1
	for range 10_000_000 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	took := time.Since(start)
	if x == 0 {
		panic("a xorshift of a number above zero is never zero") // and so the loop is not left out
	}
	return took
}
