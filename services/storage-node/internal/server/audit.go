package server

import (
	"context"
	"log/slog"
	"strconv"

	"google.golang.org/grpc/codes"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/sidecar"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
)

// contractOrders are the calls of the contract that change more than a key.
var contractOrders = map[string]bool{
	storagenodev1.StorageNodeService_DrainNode_FullMethodName:      true,
	storagenodev1.StorageNodeService_StartStreaming_FullMethodName: true,
	storagenodev1.StorageNodeService_StopStreaming_FullMethodName:  true,
}

// audited reports whether a call goes into the log whatever comes of it: what changes a node or the
// cluster. For the calls of clients it is one comparison.
func audited(service any, method string) bool {
	switch service.(type) {
	case adminService:
		return Roles[method]&identity.Monitor == 0
	case contractService:
		return contractOrders[method]
	}
	return false
}

// audit logs who did what, from where, and what came of it.
func (g *guard) audit(ctx context.Context, method string, code codes.Code) {
	who, from := caller(ctx)
	attrs := append([]slog.Attr{
		slog.String("audit", "call"), slog.String("method", method), slog.String("who", who), slog.String("from", from), slog.String("code", code.String()),
	}, g.about(ctx)...)
	g.log.LogAttrs(ctx, slog.LevelInfo, "audit: call", attrs...)
}

// caller returns who made the call of ctx, as a certificate or the kernel says, and from where.
func caller(ctx context.Context) (who, from string) {
	who = "anybody" // without TLS nobody knows
	if p, ok := grpcpeer.FromContext(ctx); ok {
		from = p.Addr.String()
	}
	if p, ok := identity.PeerFrom(ctx); ok {
		who = p.Identity.String()
	} else if p, ok := sidecar.PeerFrom(ctx); ok {
		who = "uid " + strconv.FormatUint(uint64(p.UID), 10)
	}
	return who, from
}
