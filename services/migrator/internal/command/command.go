// Package command is what a node can be asked over NATS by way of its migrator: to move data, to show
// its moves, to call them off. It never moves anything itself and checks nothing: each verb is the call
// of AdminService with that name, over the pod's socket.
package command

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/command"
	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/service"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

const (
	// quick bounds calls that only note what is wanted; the work is done in the background.
	quick = 30 * time.Second
	// drainTimeout bounds a drain: one that flushes takes as long as a flush of a full node.
	drainTimeout = 5 * time.Minute
	// cleanupTimeout bounds a clean-up: as long as it takes to merge a large part of a node. It goes on
	// where it was when it is asked for again.
	cleanupTimeout = 6 * time.Hour
	// maxSelectionBytes bounds requests that can name many ranges: 4,096 ranges of two tokens are
	// 200 KiB of JSON.
	maxSelectionBytes = 256 << 10
)

// Kind are the commands.
var Kind = command.Kind{
	Name: "pairdb-migrator", Description: "Moves of data from and to a storage node of PairDB", Sidecar: "migrator",
	Verbs: []command.Verb{
		command.Unary("drain", "Prepares the node for its end: `KIND_FLUSH` for a restart, `KIND_DECOMMISSION` gives all its data to the others.",
			drainTimeout, adminv1.AdminServiceClient.Drain),
		selecting(command.Unary("replicate", "Makes moves of data from the node to `targets`, and answers when they are noted.",
			quick, adminv1.AdminServiceClient.Replicate)),
		command.Unary("moves", "Lists the moves and drains of the node; those that are over with `include_ended`.",
			quick, adminv1.AdminServiceClient.Moves),
		command.Unary("cancel", "Calls off a move, or a drain with its moves, by `id`.",
			quick, adminv1.AdminServiceClient.CancelMove),
		selecting(command.Unary("repair", "Makes moves that compare the node with its replicas and exchange what differs.",
			quick, adminv1.AdminServiceClient.Repair)),
		cleanup,
	},
}

// ForNode is the stage of the migrator that answers commands; see command.ForNode.
func ForNode(c event.Config, node grpc.ClientConnInterface, rt *service.Runtime) service.Stage {
	return command.ForNode(Kind, c, node, rt)
}

// selecting returns a verb that makes moves: it may name many ranges, and its moves have the id of the
// request when the sender has given them none. So a repeat makes no second move, even when nobody
// remembers the first.
func selecting(v command.Verb) command.Verb {
	v.MaxRequestBytes = maxSelectionBytes
	v.Complete = func(requestID string, m proto.Message) {
		switch m := m.(type) {
		case *adminv1.ReplicateRequest:
			if m.GetId() == "" {
				m.Id = moveID(v.Name, requestID)
			}
		case *adminv1.RepairRequest:
			if m.GetId() == "" {
				m.Id = moveID(v.Name, requestID)
			}
		}
	}
	return v
}

// moveID returns the id of the moves of a request: the same for the same request, another one for
// every other.
func moveID(verb, requestID string) string {
	sum := sha256.Sum256([]byte(requestID))
	return verb + "-" + hex.EncodeToString(sum[:8])
}

// cleanup answers with the last word of the node.
var cleanup = command.Verb{
	Name: "cleanup", Timeout: cleanupTimeout,
	What:    "Removes what the node holds of ranges that are not its own any more, and answers when the space is free; with `dry_run` it tells what would go.",
	Request: func() proto.Message { return &adminv1.CleanupRequest{} },
	Call: func(ctx context.Context, c adminv1.AdminServiceClient, m proto.Message) (proto.Message, error) {
		request, ok := m.(*adminv1.CleanupRequest)
		if !ok {
			return nil, fmt.Errorf("cleanup: %T is no request of it", m) // a mistake in the table
		}
		stream, err := c.Cleanup(ctx, request)
		if err != nil {
			return nil, err
		}
		last := &adminv1.CleanupProgress{}
		for {
			p, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return last, nil
			}
			if err != nil {
				return nil, err
			}
			last = p
		}
	},
}
