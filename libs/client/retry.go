package client

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Back-off between repeats: doubles from the first to the last, each drawn from the upper half so
// that clients that failed together do not return together.
const (
	firstBackoff = 20 * time.Millisecond
	lastBackoff  = 2 * time.Second
)

// retrier decides whether a call is repeated, and waits.
type retrier struct {
	budget  time.Duration
	started time.Time
	backoff time.Duration
}

func newRetrier(budget time.Duration) *retrier {
	return &retrier{budget: budget, started: time.Now(), backoff: firstBackoff}
}

// reset starts the budget anew, after progress.
func (r *retrier) reset() { r.started, r.backoff = time.Now(), firstBackoff }

// wait reports whether the call should be repeated now. It waits at least as long as the node
// asked for.
func (r *retrier) wait(ctx context.Context, err error) bool {
	if r.budget < 0 || !Retryable(err) || ctx.Err() != nil {
		return false
	}
	pause := r.backoff/2 + rand.N(r.backoff/2)
	if asked := retryDelay(err); asked > pause {
		pause = asked
	}
	if time.Since(r.started)+pause > r.budget {
		return false
	}
	r.backoff = min(2*r.backoff, lastBackoff)
	select {
	case <-time.After(pause):
		return true
	case <-ctx.Done():
		return false
	}
}

// Retryable reports whether the same call may succeed later: the node could not be reached, is
// starting or stopping, or asked to come back.
func Retryable(err error) bool {
	var item *ItemError
	if errors.As(err, &item) {
		return item.RetryAfter > 0
	}
	switch status.Code(unwrapStatus(err)) {
	case codes.Unavailable:
		return true
	case codes.ResourceExhausted:
		return retryDelay(err) > 0
	}
	return false
}

// unwrapStatus finds the error with a gRPC status in a wrapped one.
func unwrapStatus(err error) error {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus().Err()
	}
	return err
}

func errorInfo(err error) *errdetails.ErrorInfo {
	for _, d := range status.Convert(unwrapStatus(err)).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}

func retryDelay(err error) time.Duration {
	for _, d := range status.Convert(unwrapStatus(err)).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }
