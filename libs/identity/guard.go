package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Table says which roles may call which method, by its full name ("/package.Service/Method"). A method
// that is not there is refused to everybody.
type Table map[string]Roles

// ErrRefused says that somebody may not do what they ask for.
var ErrRefused = errors.New("not allowed")

// allowed is the decision: somebody of this cluster, with one of the roles.
func allowed(id Identity, cluster string, roles Roles) error {
	switch {
	case id.Cluster != cluster:
		return fmt.Errorf("%w: the certificate is of the cluster %s, this is %s", ErrRefused, id.Cluster, cluster)
	case id.Roles&roles == 0:
		return fmt.Errorf("%w: the certificate is that of %s, needed is %s", ErrRefused, id, roles)
	}
	return nil
}

// Guard asks a table before each call of a server whose connections have the credentials of a Source.
type Guard struct {
	s     *Source
	table Table
}

// Guard returns what asks a table.
func (s *Source) Guard(t Table) *Guard { return &Guard{s: s, table: t} }

// check is the decision for one call.
func (g *Guard) check(ctx context.Context, method string) error {
	p, ok := PeerFrom(ctx)
	if !ok {
		return g.refuse(ctx, method, Identity{}, codes.Unauthenticated, "the caller is not known: connect with TLS and a certificate")
	}
	if p.Problem != nil {
		return g.refuse(ctx, method, Identity{}, codes.Unauthenticated, p.Problem.Error())
	}
	roles, known := g.table[method]
	if !known {
		// Nobody may call it, and a tool that is newer than this node has to tell the two apart.
		return status.Errorf(codes.Unimplemented, "unknown method %s", method)
	}
	if err := allowed(p.Identity, g.s.Identity().Cluster, roles); err != nil {
		return g.refuse(ctx, method, p.Identity, codes.PermissionDenied, fmt.Sprintf("%s: %v", method, err))
	}
	return nil
}

func (g *Guard) refuse(ctx context.Context, method string, id Identity, code codes.Code, text string) error {
	g.s.refusals.call(ctx, g.s.log, method, id, text)
	return status.Error(code, text)
}

// Refused counts and logs a call that was turned away by something else than a Guard, as a Guard does. Without
// certificates (nil) it does nothing.
func (s *Source) Refused(ctx context.Context, method, why string) {
	if s == nil {
		return
	}
	var id Identity
	if p, ok := PeerFrom(ctx); ok {
		id = p.Identity
	}
	s.refusals.call(ctx, s.log, method, id, why)
}

// Unary refuses calls that the table does not allow.
func (g *Guard) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := g.check(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

// Stream refuses streams that the table does not allow.
func (g *Guard) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := g.check(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(srv, stream)
}

// ServerOptions are what a server on a TCP port needs.
func (s *Source) ServerOptions(t Table) []grpc.ServerOption {
	g := s.Guard(t)
	return []grpc.ServerOption{
		grpc.Creds(s.Transport()),
		grpc.ChainUnaryInterceptor(g.Unary),
		grpc.ChainStreamInterceptor(g.Stream),
	}
}

// refusals counts who was turned away, and logs it: not more than one line of a kind each second, or
// whoever is refused could fill the disk.
type refusals struct {
	handshakes, calls atomic.Int64
	lastHandshake     atomic.Int64 // Unix nanoseconds of the last line
	lastCall          atomic.Int64
}

// logEvery is the time between two lines of a kind.
const logEvery = time.Second

// due reports whether a line may be written now.
func due(last *atomic.Int64) bool {
	now, before := time.Now().UnixNano(), last.Load()
	return now-before >= int64(logEvery) && last.CompareAndSwap(before, now)
}

func (r *refusals) handshake(log *slog.Logger, from net.Addr, err error) {
	n := r.handshakes.Add(1)
	if due(&r.lastHandshake) {
		log.Warn("audit: connection refused", "audit", "handshake", "from", from.String(), "error", err, "refused", n)
	}
}

func (r *refusals) call(ctx context.Context, log *slog.Logger, method string, id Identity, why string) {
	n := r.calls.Add(1)
	if !due(&r.lastCall) {
		return
	}
	from := ""
	if p, ok := peer.FromContext(ctx); ok {
		from = p.Addr.String()
	}
	log.Warn("audit: call refused", "audit", "refused", "method", method, "who", id.String(), "from", from, "error", why, "refused", n)
}
