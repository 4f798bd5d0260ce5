package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/libs/token"
)

// Every method of StorageService asks here before it touches the keys of a tenant. Coordinators, which work for all
// tenants, and the containers of the pod need no token.

// tokenKey is the metadata key of a token, and tokenScheme stands before it.
const (
	tokenKey    = "authorization"
	tokenScheme = "Bearer "
)

// grant returns what the caller may do with the keys of tenants; nil: everything.
func (s *Server) grant(ctx context.Context) (*token.Grant, error) {
	if s.node.Tokens == nil {
		return nil, nil
	}
	if _, local := sidecar.PeerFrom(ctx); local {
		return nil, nil
	}
	if p, ok := identity.PeerFrom(ctx); ok && p.Identity.Roles&identity.Coordinator != 0 {
		return nil, nil
	}
	sent := metadata.ValueFromIncomingContext(ctx, tokenKey)
	if len(sent) != 1 {
		return nil, fmt.Errorf("%w: %d were sent, one is needed, in the metadata %s: Bearer <token>", token.ErrInvalid, len(sent), tokenKey)
	}
	text, ok := strings.CutPrefix(sent[0], tokenScheme)
	if !ok {
		return nil, fmt.Errorf("%w: the metadata %s does not begin with %q", token.ErrInvalid, tokenKey, tokenScheme)
	}
	return s.node.Tokens.Verify(text)
}

// allows is whether a grant allows something now, and tells who was refused.
func (s *Server) allows(ctx context.Context, g *token.Grant, tenant string, v token.Verbs) error {
	if g == nil {
		return nil
	}
	err := g.Allows(tenant, v, time.Now())
	if err != nil {
		s.refused(ctx, err)
	}
	return err
}

func (s *Server) refused(ctx context.Context, err error) {
	if method, ok := grpc.Method(ctx); ok && s.node.Refused != nil {
		s.node.Refused(ctx, method, err.Error())
	}
}

// granted returns the grant of the caller if it allows something.
func (s *Server) granted(ctx context.Context, tenant string, v token.Verbs) (*token.Grant, error) {
	g, err := s.grant(ctx)
	if err != nil {
		s.refused(ctx, err)
		return nil, err
	}
	return g, s.allows(ctx, g, tenant, v)
}

// open returns what a request for keys of a tenant needs, if the caller may make it.
func (g storageService) open(ctx context.Context, tenant string, v token.Verbs) (*Backend, error) {
	if _, err := g.s.granted(ctx, tenant, v); err != nil {
		return nil, err
	}
	return g.s.backend()
}

// openStream is open for a stream that reads, whose context ends with the grant. end must be called.
func (g storageService) openStream(ctx context.Context, tenant string) (b *Backend, during context.Context, end context.CancelFunc, err error) {
	grant, err := g.s.granted(ctx, tenant, token.Read)
	if err != nil {
		return nil, nil, nil, err
	}
	if b, err = g.s.backend(); err != nil {
		return nil, nil, nil, err
	}
	if grant == nil {
		return b, ctx, func() {}, nil
	}
	during, end = context.WithDeadlineCause(ctx, grant.Expires, fmt.Errorf("%w: it is over: go on with a new one", token.ErrInvalid))
	return b, during, end, nil
}

// whileGranted is the error of a stream, which may have ended with its grant.
func whileGranted(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, token.ErrInvalid) {
		return cause
	}
	return err
}
