package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Call is what is known of a call when it is over.
type Call struct {
	// Method is the full name, "/package.Service/Method".
	Method string
	// Request and Response are the messages of a unary call; nil for a stream. They must not be
	// kept.
	Request, Response any
	// Code is also that of an error which travelled in the answer.
	Code codes.Code
	Took time.Duration
}

// guard is what every call passes: in-flight limit, default deadline, panics, the error table, logs
// and metrics.
type guard struct {
	log         *slog.Logger
	observe     func(Call) // may be nil
	timeout     time.Duration
	maxInFlight int64
	leaving     context.Context // ends when the node shuts down, and streams with it

	inFlight atomic.Int64
	requests atomic.Uint64 // numbers of requests that brought no id, for logs
}

// enter takes a place among the calls in flight.
func (g *guard) enter() error {
	if g.inFlight.Add(1) > g.maxInFlight {
		g.inFlight.Add(-1)
		return fmt.Errorf("%w: %d requests are in flight, the limit (PAIRDB_MAX_IN_FLIGHT)", errOverloaded, g.maxInFlight)
	}
	return nil
}

func (g *guard) leave() { g.inFlight.Add(-1) }

// unary is the interceptor of calls with one answer.
func (g *guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	if err = g.enter(); err == nil {
		defer g.leave()
		resp, err = g.call(ctx, req, info.FullMethod, handler)
	}
	code := codes.OK
	if err != nil {
		failed := err
		resp, err = nil, g.answer(ctx, info.FullMethod, failed)
		code = status.Code(err)
		if s, ok := info.Server.(inBand); ok {
			if answer := s.failure(ctx, info.FullMethod, failed); answer != nil {
				resp, err = answer, nil
			}
		}
	}
	if g.observe != nil {
		g.observe(Call{Method: info.FullMethod, Request: req, Response: resp, Code: code, Took: time.Since(start)})
	}
	return resp, err
}

// inBand is a service whose errors travel in its answers.
type inBand interface {
	// failure returns the answer that says what err says, or nil if the client has to get a status.
	failure(ctx context.Context, method string, err error) any
}

// call runs a handler under the default deadline; a panic becomes an error.
func (g *guard) call(ctx context.Context, req any, method string, handler grpc.UnaryHandler) (resp any, err error) {
	defer g.recover(ctx, method, &err)
	if err := malformed(req); err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		limited := withLazyDeadline(ctx, time.Now().Add(g.timeout))
		defer limited.release()
		ctx = limited
	}
	return handler(ctx, req)
}

// stream is the interceptor of streams. They have no default deadline: each handler bounds what a
// slow reader may hold. They end when the node shuts down.
func (g *guard) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	start := time.Now()
	ctx, cancel := context.WithCancelCause(s.Context())
	defer cancel(nil)
	defer context.AfterFunc(g.leaving, func() { cancel(ErrStopping) })()
	if err = g.enter(); err == nil {
		defer g.leave()
		func() {
			defer g.recover(ctx, info.FullMethod, &err)
			err = handler(srv, guardedStream{s, ctx})
		}()
	}
	if errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), ErrStopping) {
		err = ErrStopping
	}
	if err != nil {
		err = g.answer(ctx, info.FullMethod, err)
	}
	if g.observe != nil {
		g.observe(Call{Method: info.FullMethod, Code: status.Code(err), Took: time.Since(start)})
	}
	return err
}

// guardedStream refuses messages that could not be parsed, and has a context that also ends with
// the node.
type guardedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s guardedStream) Context() context.Context { return s.ctx }

func (s guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return malformed(m)
}

// recover turns a panic of a handler into an error: one bad request must not end the process that
// serves all others. Broken invariants below are still in the log, with their stack.
func (g *guard) recover(ctx context.Context, method string, err *error) {
	if p := recover(); p != nil {
		g.log.Error("panic in a request", "method", method, "request_id", g.requestID(ctx), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = fmt.Errorf("%w: panic", errInternal)
	}
}

// answer turns an error into the status that the client gets, and logs those that an operator
// should see.
func (g *guard) answer(ctx context.Context, method string, err error) error {
	s := toStatus(err)
	switch s.Code() {
	case codes.Internal, codes.DataLoss, codes.Unknown:
		g.log.Error("request failed", "method", method, "request_id", g.requestID(ctx), "code", s.Code().String(), "error", err)
	default:
		g.log.Debug("request refused", "method", method, "code", s.Code().String(), "error", err)
	}
	return s.Err()
}

// requestIDKey is the metadata key with which a client names its request for the logs.
const requestIDKey = "x-request-id"

// requestID returns the client's name for the request, or one of ours.
func (g *guard) requestID(ctx context.Context) string {
	const maxLength = 128
	if ids := metadata.ValueFromIncomingContext(ctx, requestIDKey); len(ids) > 0 {
		printable := strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return '?'
			}
			return r
		}, ids[0])
		return printable[:min(len(printable), maxLength)]
	}
	return fmt.Sprintf("local-%d", g.requests.Add(1))
}
