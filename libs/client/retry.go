package client

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
)

// Back-off between repeats: doubles from the first to the last, each drawn from the upper half so
// that clients that failed together do not return together.
const (
	firstBackoff = 20 * time.Millisecond
	lastBackoff  = 2 * time.Second
)

// repeatInterval spaces the repeats of refused calls: a client adds 200 calls a second at most to
// what an overloaded node gets from it anyway, however many of its calls wait.
const repeatInterval = 5 * time.Millisecond

// effect is what a repeat of a call would do.
type effect int

const (
	reads effect = iota // nothing
	keyed               // nothing, and it gets the first answer: the node knows the idempotency key
	exact               // nothing: clocks tell that the write is there
	blind               // a second write
	again               // a second write, which the caller allows
)

// call runs f with the default deadline, again while a repeat can help and does no harm.
func call[T any](ctx context.Context, c *Client, what effect, f func(context.Context, grpc.CallOption) (T, error)) (T, error) {
	retry := c.newRetrier()
	open := false // an earlier try may have been applied
	for {
		var reached peer.Peer // set when the call got as far as a connection
		attempt, cancel := c.withTimeout(ctx)
		resp, err := f(attempt, grpc.Peer(&reached))
		cancel()
		if err == nil {
			return resp, nil
		}
		e := asError(err)
		e.MaybeApplied = what != reads && reached.Addr != nil && e.leavesOpen()
		if what == blind && e.MaybeApplied || !retry.wait(ctx, e) {
			// A node that knows the key of an earlier try would have given its answer.
			decided := what == keyed && (e.Reason == ReasonConditionFailed || e.Reason == ReasonIdempotencyKeyReused)
			e.MaybeApplied = e.MaybeApplied || open && !decided
			return resp, e
		}
		open = open || e.MaybeApplied
	}
}

func (c *Client) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, c.options.Timeout)
}

// retrier decides whether a call or a stream goes on after a failure, and waits.
type retrier struct {
	budget  time.Duration
	pace    *pacer
	failing time.Time // since when, without progress; zero: it is not
	backoff time.Duration
}

func (c *Client) newRetrier() *retrier {
	return &retrier{budget: c.options.RetryFor, pace: &c.pace, backoff: firstBackoff}
}

// progress starts the budget anew.
func (r *retrier) progress() { r.failing, r.backoff = time.Time{}, firstBackoff }

// wait reports whether to go on now. It waits at least as long as the node asked for, and gives up at
// once when that is longer than the budget or the context allow.
func (r *retrier) wait(ctx context.Context, e *Error) bool {
	if r.budget < 0 || !e.retryable() || ctx.Err() != nil {
		return false
	}
	now := time.Now()
	if r.failing.IsZero() {
		r.failing = now
	}
	limit := r.failing.Add(r.budget)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(limit) {
		limit = deadline
	}
	pause := r.backoff/2 + rand.N(r.backoff/2)
	if e.RetryAfter > pause {
		pause = e.RetryAfter + rand.N(r.backoff)
	}
	if now.Add(pause).After(limit) || !sleep(ctx, pause) {
		return false
	}
	r.backoff = min(2*r.backoff, lastBackoff)
	if e.Code != codes.ResourceExhausted {
		return true
	}
	pause, ok := r.pace.take(time.Now(), limit)
	return ok && sleep(ctx, pause)
}

// pacer hands out the times at which refused calls of a client are repeated.
type pacer struct {
	mu   sync.Mutex
	next time.Time // when the next one may leave
}

// take returns how long to wait for one's turn, or false if that comes after limit.
func (p *pacer) take(now, limit time.Time) (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	turn := p.next
	if turn.Before(now) {
		turn = now
	}
	if turn.After(limit) {
		return 0, false
	}
	p.next = turn.Add(repeatInterval)
	return turn.Sub(now), true
}

// sleep reports whether it waited for d before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }
