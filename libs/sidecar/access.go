package sidecar

import (
	"context"
	"os"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Access says which services each user id may call. A service is a word: "compaction" stands for
// every service of the package pairdb.compaction.v1, All for everything. A user id that is not there
// may call nothing but health checks (grpc.health.v1), which are open to everybody who can dial.
type Access map[uint32][]string

// All is the word for every service.
const All = "all"

// SelfAccess lets the user of this process and root call everything: whoever could read the node's
// memory gains nothing by it.
func SelfAccess() Access {
	return Access{0: {All}, uint32(os.Getuid()): {All}}
}

// Allows reports whether uid may call the full method ("/package.Service/Method").
func (a Access) Allows(uid uint32, fullMethod string) bool {
	service, _, ok := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	if !ok {
		return false
	}
	if service == "grpc.health.v1.Health" {
		return true
	}
	words := a[uid]
	if slices.Contains(words, All) {
		return true
	}
	parts := strings.Split(service, ".")
	return len(parts) == 4 && parts[0] == "pairdb" && slices.Contains(words, parts[1])
}

// check is the decision for one call.
func (a Access) check(ctx context.Context, fullMethod string) error {
	p, ok := PeerFrom(ctx)
	if !ok {
		return status.Error(codes.Unauthenticated, "the caller's user id is not known: call over the pod's socket")
	}
	if !a.Allows(p.UID, fullMethod) {
		return status.Errorf(codes.PermissionDenied, "user id %d may not call %s: see PAIRDB_SOCKET_UIDS", p.UID, fullMethod)
	}
	return nil
}

// Unary refuses calls that the table does not allow.
func (a Access) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := a.check(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

// Stream refuses streams that the table does not allow.
func (a Access) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := a.check(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(srv, stream)
}

// ServerOptions are what a server on the socket needs: the caller's identity, the table, and
// patience with sidecars that keep their one connection alive.
func ServerOptions(a Access) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(PeerCredentials()),
		grpc.ChainUnaryInterceptor(a.Unary),
		grpc.ChainStreamInterceptor(a.Stream),
		grpc.KeepaliveEnforcementPolicy(enforcement),
	}
}
