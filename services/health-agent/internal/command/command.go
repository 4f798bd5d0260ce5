// Package command is what a node can be asked over NATS by way of its health-agent. It never answers
// itself: libs/command does, with the calls of this table.
package command

import (
	"time"

	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/command"
	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/service"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// Kind are the commands: a flush or a snapshot of a full node takes minutes on a slow disk.
var Kind = command.Kind{
	Name: "pairdb-node", Description: "Commands for a storage node of PairDB", Sidecar: "health-agent",
	Verbs: []command.Verb{
		command.Unary("status", "Describes the node: levels, jobs, caches, disk, pressure, damage.", 10*time.Second,
			adminv1.AdminServiceClient.Status),
		command.Unary("flush", "Writes the memtable to tables and answers when they are installed.", 5*time.Minute,
			adminv1.AdminServiceClient.Flush),
		command.Unary("snapshot", "Makes a checkpoint of the whole node under `name`.", 5*time.Minute,
			adminv1.AdminServiceClient.Snapshot),
	},
}

// ForNode is the stage of the health-agent that answers commands; see command.ForNode.
func ForNode(c event.Config, node grpc.ClientConnInterface, rt *service.Runtime) service.Stage {
	return command.ForNode(Kind, c, node, rt)
}
