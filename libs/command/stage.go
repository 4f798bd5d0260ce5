package command

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sidecar"
)

// ForNode is a stage of a sidecar that answers the commands of the node at the other end of a
// connection to its socket: it waits until the node has said who it is, then it connects to NATS. Add
// it before what needs the socket to be closed, and only where c has an address.
func ForNode(kind Kind, c event.Config, node grpc.ClientConnInterface, rt *service.Runtime) service.Stage {
	ctx, cancel := context.WithCancel(context.Background())
	return service.Stage{
		Name: "commands", Limit: 5 * time.Second,
		Run: func() error {
			id, err := sidecar.WaitForNode(ctx, node)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return service.WithExitCode(service.ExitUnreachable, err)
			}
			conn, err := event.Connect(c, kind.Sidecar+" "+id.NodeID, rt.Log)
			if err != nil {
				return service.WithExitCode(service.ExitUsage, err)
			}
			defer conn.Close()
			s := New(Options{
				Kind: kind, Conn: conn, Node: node, ClusterID: id.ClusterID, NodeID: id.NodeID, Version: id.Version, Log: rt.Log,
				Labels: prometheus.Labels{"node_id": id.NodeID},
			})
			rt.Metrics.MustRegister(s.Collector())
			s.Run(ctx)
			return nil
		},
		Stop: func(context.Context) error { cancel(); return nil },
	}
}
