package stream

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"
)

// Limiter bounds bytes per second. A nil one bounds nothing. It is safe for concurrent use; who waits
// first is served first, piece by piece, so that streams that share one get equal shares.
type Limiter struct {
	r     *rate.Limiter
	burst int
}

const (
	// bursts of a second is what may be sent at once: 50 ms keep a measured second within 5 %.
	bursts = 20
	// maxBurst is a message or two: what comes together holds up the requests of both nodes together.
	maxBurst = 64 << 10
)

// NewLimiter returns a limiter; 0 or less is no limit.
func NewLimiter(bytesPerSecond int64) *Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	burst := int(min(max(bytesPerSecond/bursts, 1), maxBurst))
	r := rate.NewLimiter(rate.Limit(bytesPerSecond), burst)
	r.AllowN(time.Now(), burst) // a stream does not begin with a burst
	return &Limiter{r: r, burst: burst}
}

// Wait waits until n bytes may be sent, and returns how long that took. It ends with ctx.
func (l *Limiter) Wait(ctx context.Context, n int) (time.Duration, error) {
	if l == nil || n <= 0 {
		return 0, nil
	}
	start := time.Now()
	for n > 0 {
		piece := min(n, l.burst)
		if err := l.r.WaitN(ctx, piece); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return time.Since(start), fmt.Errorf("wait for the limit: %w", err)
		}
		n -= piece
	}
	return time.Since(start), nil
}

// waitAll waits for each of the limits.
func waitAll(ctx context.Context, limits []*Limiter, n int, waited func(time.Duration)) error {
	var sum time.Duration
	for _, l := range limits {
		d, err := l.Wait(ctx, n)
		sum += d
		if err != nil {
			return err
		}
	}
	if sum > 0 && waited != nil {
		waited(sum)
	}
	return nil
}
