package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Call is what is known of a call when it is over.
type Call struct {
	// Method is the full name, "/package.Service/Method".
	Method string
	// Request and Response are the messages of a unary call; nil for a stream. They must not be
	// kept.
	Request, Response any
	// Code is also that of an error which travelled in the answer; Reason is that of the error, one of
	// Reasons, and empty without one.
	Code   codes.Code
	Reason string
	Took   time.Duration
}

// guard is what every call passes: in-flight limit, default deadline, panics, the error table, logs
// and metrics.
type guard struct {
	log     *slog.Logger
	observe func(Call) // may be nil
	timeout time.Duration
	leaving context.Context // ends when the node shuts down, and streams with it
	load    *Load
	tracer  trace.Tracer // nil: spans are not recorded
	slow    slowLog

	requests atomic.Uint64 // numbers of requests that brought no id, for logs
}

// unary is the interceptor of calls with one answer.
func (g *guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	c := g.begin(ctx, info.FullMethod, time.Now())
	c.watch()
	if err = g.load.enter(); err == nil {
		defer g.load.leave()
		resp, err = g.call(c, req, handler)
	}
	code, reason := codes.OK, ""
	if err != nil {
		failed := err
		reason = reasonOf(failed)
		resp, err = nil, g.answer(c, info.FullMethod, req, failed)
		code = status.Code(err)
		// Who may not ask gets a status, whatever the service: an answer would say something.
		refused := code == codes.PermissionDenied || code == codes.Unauthenticated
		if s, ok := info.Server.(inBand); ok && !refused {
			if answer := s.failure(ctx, info.FullMethod, failed); answer != nil {
				resp, err = answer, nil
			}
		}
	}
	took := time.Since(c.began)
	if g.observe != nil {
		g.observe(Call{Method: info.FullMethod, Request: req, Response: resp, Code: code, Reason: reason, Took: took})
	}
	c.end(req, resp, code, took)
	if audited(info.Server, info.FullMethod) {
		g.audit(c, info.FullMethod, code)
	}
	return resp, err
}

// inBand is a service whose errors travel in its answers.
type inBand interface {
	// failure returns the answer that says what err says, or nil if the client has to get a status.
	failure(ctx context.Context, method string, err error) any
}

// call runs a handler under the default deadline; a panic becomes an error.
func (g *guard) call(c *call, req any, handler grpc.UnaryHandler) (resp any, err error) {
	defer g.recover(c, c.method, &err)
	if err := malformed(req); err != nil {
		return nil, err
	}
	c.limit()
	defer c.release()
	return handler(c, req)
}

// stream is the interceptor of streams. They have no default deadline: each handler bounds what a
// slow reader may hold. They end when the node shuts down.
func (g *guard) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	ctx, cancel := context.WithCancelCause(s.Context())
	defer cancel(nil)
	defer context.AfterFunc(g.leaving, func() { cancel(ErrStopping) })()
	c := g.begin(ctx, info.FullMethod, time.Now())
	if err = g.load.enter(); err == nil {
		defer g.load.leave()
		defer g.load.enterStream(info.FullMethod)()
		func() {
			defer g.recover(c, info.FullMethod, &err)
			err = handler(srv, guardedStream{s, c})
		}()
	}
	if errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), ErrStopping) {
		err = ErrStopping
	}
	reason := ""
	if err != nil {
		reason = reasonOf(err)
		err = g.answer(c, info.FullMethod, nil, err)
	}
	if g.observe != nil {
		g.observe(Call{Method: info.FullMethod, Code: status.Code(err), Reason: reason, Took: time.Since(c.began)})
	}
	if audited(srv, info.FullMethod) {
		g.audit(c, info.FullMethod, status.Code(err))
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
		attrs := append([]slog.Attr{slog.String("method", method)}, g.about(ctx)...)
		attrs = append(attrs, slog.String("panic", fmt.Sprint(p)), slog.String("stack", string(debug.Stack())))
		g.log.LogAttrs(ctx, slog.LevelError, "panic in a request", attrs...)
		*err = fmt.Errorf("%w: panic", errInternal)
	}
}

// answer turns an error into the status that the client gets, and logs it: what an operator should see
// as an error. req is nil for a stream.
func (g *guard) answer(ctx context.Context, method string, req any, err error) error {
	s := toStatus(err)
	level, message := slog.LevelDebug, "request refused"
	switch s.Code() {
	case codes.Internal, codes.DataLoss, codes.Unknown:
		level, message = slog.LevelError, "request failed"
	}
	if g.log.Enabled(ctx, level) {
		attrs := append([]slog.Attr{slog.String("method", method)}, subjectOf(req, nil).log(g.slow.revealKeys)...)
		attrs = append(attrs, slog.String("code", s.Code().String()), slog.String("error", err.Error()))
		g.log.LogAttrs(ctx, level, message, append(attrs, g.about(ctx)...)...)
	}
	return s.Err()
}

// localID numbers a request that brought no name.
func (g *guard) localID() string { return fmt.Sprintf("local-%d", g.requests.Add(1)) }
