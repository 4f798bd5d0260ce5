package sidecar

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// Identity is what the node says about itself.
type Identity struct {
	NodeID, ClusterID, Version string
	// Session changes when the node restarts.
	Session uint64
}

// reconnect bounds how long a sidecar is away after the node has come back: one second.
var reconnect = backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}

// Keepalive notices a node that is frozen (the socket of a stopped process stays open) within 15 s,
// a lease; the enforcement leaves room for it.
var (
	alive       = keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}
	enforcement = keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}
)

// Dial returns a connection to the node's socket. It does not wait: calls do, until their context
// ends, because the node may start later or restart.
func Dial(path string, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	options := append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the kernel is the proof
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: time.Second}),
		grpc.WithKeepaliveParams(alive),
		grpc.WithNoProxy(),
	}, more...)
	conn, err := grpc.NewClient("unix:"+path, options...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", path, err)
	}
	return conn, nil
}

// WaitForNode waits until the node answers and returns who it is. It ends with ctx, or at once when
// the node says that this user id may not ask.
func WaitForNode(ctx context.Context, conn grpc.ClientConnInterface) (Identity, error) {
	client := nodev1.NewNodeServiceClient(conn)
	wait := 50 * time.Millisecond
	for {
		r, err := client.Identity(ctx, &nodev1.IdentityRequest{}, grpc.WaitForReady(true))
		if err == nil {
			return Identity{NodeID: r.GetNodeId(), ClusterID: r.GetClusterId(), Version: r.GetVersion(), Session: r.GetSession()}, nil
		}
		if code := status.Code(err); code == codes.PermissionDenied || code == codes.Unauthenticated || ctx.Err() != nil {
			return Identity{}, fmt.Errorf("wait for the node: %w", err)
		}
		if Pause(ctx, wait) != nil {
			return Identity{}, fmt.Errorf("wait for the node: %w", err)
		}
		wait = min(2*wait, time.Second)
	}
}
