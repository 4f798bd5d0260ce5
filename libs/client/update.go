package client

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
)

// maxRewrites bounds how often Update and Resolve begin anew because others were faster: with as many
// writers that all do so, each round lets one of them through.
const maxRewrites = 20

// Update reads a key, lets change compute a new value of what was read, and writes that, again until
// nobody has written in between on this node: no write is superseded unseen, and change is applied
// once. Where there are siblings, change sees all of them in the Value and returns their merge. An
// error of change ends the update, and nothing is written. The only option is WithTTL; without it the
// new value never expires.
func (c *Client) Update(ctx context.Context, key string, change func(Value) ([]byte, error), opts ...WriteOption) (Result, error) {
	r, err := c.rewrite(ctx, opts, func(opts []WriteOption) (Result, bool, error) {
		v, err := c.Get(ctx, key)
		if err != nil {
			return Result{}, false, err
		}
		value, err := change(v)
		if err != nil {
			return Result{}, false, err
		}
		r, err := c.Put(ctx, key, value, slices.Concat(opts, []WriteOption{WithContext(v.Clock), IfClock(v.Clock)})...)
		return r, ConditionFailed(err), err
	})
	if err != nil {
		return Result{}, fmt.Errorf("update %q: %w", key, err)
	}
	return r, nil
}

// Resolve replaces the siblings of a key by what merge makes of them, again until there is one value.
// merge gets the live siblings, at least two, the winner first; those that it has not seen are kept. A
// key without a conflict stays as it is; the outcome is OUTCOME_UNSPECIFIED then. The only option is
// WithTTL; without it the merged value never expires.
func (c *Client) Resolve(ctx context.Context, key string, merge func([]*Sibling) ([]byte, error), opts ...WriteOption) (Result, error) {
	r, err := c.rewrite(ctx, opts, func(opts []WriteOption) (Result, bool, error) {
		v, err := c.Get(ctx, key)
		if err != nil {
			return Result{}, false, err
		}
		live := v.Live()
		if len(live) < 2 {
			r := Result{Clock: v.Clock}
			if v.Found {
				r.Siblings = 1
			}
			return r, false, nil
		}
		value, err := merge(live)
		if err != nil {
			return Result{}, false, err
		}
		r, err := c.Put(ctx, key, value, slices.Concat(opts, []WriteOption{WithContext(v.Clock)})...)
		return r, err == nil && r.Siblings > 1, err
	})
	if err != nil {
		return Result{}, fmt.Errorf("resolve %q: %w", key, err)
	}
	return r, nil
}

// rewrite runs once until it does not ask for another time.
func (c *Client) rewrite(ctx context.Context, opts []WriteOption, once func([]WriteOption) (Result, bool, error)) (Result, error) {
	if o := apply(opts); o.context != nil || o.clock != nil || o.condition != nil || o.idempotencyKey != "" || o.atLeastOnce {
		o.contradiction("an update takes no option but a time to live: it chooses the others itself")
		return Result{}, o.check()
	}
	pause := firstBackoff / 4
	for n := 1; ; n++ {
		r, overtaken, err := once(opts)
		if !overtaken {
			return r, err
		}
		if n == maxRewrites {
			if err == nil {
				err = &Error{Code: codes.Aborted, Message: fmt.Sprintf("%d values are left", r.Siblings)}
			}
			return Result{}, fmt.Errorf("others were faster %d times: %w", n, err)
		}
		if !sleep(ctx, rand.N(pause)) {
			return Result{}, asError(ctx.Err())
		}
		pause = min(2*pause, 100*time.Millisecond)
	}
}
