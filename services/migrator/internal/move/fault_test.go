package move

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// kind is what happens at a fault.
type kind string

const (
	lost   kind = "lost"   // the call does not reach the other side
	answer kind = "answer" // it does, and the answer is lost
	hang   kind = "hang"   // it never returns
	die    kind = "die"    // the migrator dies before it
	dying  kind = "dying"  // the migrator dies after it, before it hears the answer
)

// fault strikes one call or message of a migrator, by its number.
type fault struct {
	kind kind
	at   int
	die  func()

	mu    sync.Mutex
	count int  // guarded by mu
	fired bool // guarded by mu
	where string
	dead  bool // guarded by mu; nothing reaches anybody
}

// next reports whether the fault strikes here.
func (f *fault) next(where string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count++
	if f.fired || f.count <= f.at {
		return false
	}
	f.fired, f.where = true, where
	if f.kind == die || f.kind == dying {
		f.dead = true
	}
	return true
}

func (f *fault) isDead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

// revive lets all calls through from now on: of the next migrator.
func (f *fault) revive() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead, f.fired = false, true
}

func (f *fault) hasFired() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

var errStruck = status.Error(codes.Unavailable, "struck")

// call makes a call with the fault that may strike it.
func (w *world) call(ctx context.Context, where string, do func() error) error {
	f := w.fault
	if f == nil {
		return do()
	}
	if f.isDead() {
		return errStruck
	}
	if !f.next(where) {
		return do()
	}
	switch f.kind {
	case lost:
		return errStruck
	case answer:
		if err := do(); err != nil {
			return err
		}
		return errStruck
	case hang:
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	case die:
		f.die()
		return errStruck
	default:
		_ = do()
		f.die()
		return errStruck
	}
}

func (w *world) unary(ctx context.Context, method string, q, a any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	return w.call(ctx, method, func() error { return invoke(ctx, method, q, a, conn, options...) })
}

func (w *world) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	var s grpc.ClientStream
	err := w.call(ctx, method, func() (err error) {
		s, err = open(ctx, desc, conn, method, options...)
		return err
	})
	if err != nil {
		return nil, err
	}
	if w.fault == nil {
		return s, nil
	}
	return &struck{ClientStream: s, w: w, method: method}, nil
}

// struck is a stream of which the first messages can be struck: later ones are as they are.
type struck struct {
	grpc.ClientStream
	w          *world
	method     string
	sent, read int
}

const struckMessages = 3

func (s *struck) SendMsg(m any) error {
	if s.sent++; s.sent > struckMessages && !s.w.fault.isDead() {
		return s.ClientStream.SendMsg(m)
	}
	return s.w.call(s.Context(), s.method+" send", func() error { return s.ClientStream.SendMsg(m) })
}

func (s *struck) RecvMsg(m any) error {
	if s.read++; s.read > struckMessages && !s.w.fault.isDead() {
		return s.ClientStream.RecvMsg(m)
	}
	return s.w.call(s.Context(), s.method+" receive", func() error { return s.ClientStream.RecvMsg(m) })
}
