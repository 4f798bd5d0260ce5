package plan

import (
	"context"

	"golang.org/x/time/rate"
)

// burst is what may be sent at once; a batch has less, but for a single large record.
const burst = 1 << 20

// limiter bounds bytes per second. nil has no limit.
type limiter struct{ l *rate.Limiter }

func newLimiter(bytesPerSecond int64) *limiter {
	if bytesPerSecond <= 0 {
		return &limiter{}
	}
	return &limiter{l: rate.NewLimiter(rate.Limit(bytesPerSecond), burst)}
}

// wait waits until so many bytes may be sent.
func (l *limiter) wait(ctx context.Context, bytes int) error {
	for l.l != nil && bytes > 0 {
		n := min(bytes, burst)
		if err := l.l.WaitN(ctx, n); err != nil {
			return err
		}
		bytes -= n
	}
	return ctx.Err()
}
