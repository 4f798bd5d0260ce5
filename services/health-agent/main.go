// Command health-agent finds out how a pod is and who else is in the cluster: it asks the storage node
// over the pod's socket, looks at the machine itself, gossips with the agents of other pods, and tells
// the node what it found. It owns nothing that is stored; when it dies the node goes on serving with
// the view that it has.
package main

import (
	"context"
	"os"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/tracing"
	"github.com/pairdb/pairdb/services/health-agent/internal/agent"
	"github.com/pairdb/pairdb/services/health-agent/internal/config"
)

func main() { os.Exit(program().Main(context.Background(), os.Args[1:])) }

func program() *service.Program {
	cfg := &config.Config{}
	return &service.Program{
		Name:     "health-agent",
		Summary:  "judges a pod and keeps it in touch with its cluster",
		Config:   cfg,
		Tracing:  tracing.Open,
		Commands: []service.Command{service.ProbeCommand()},
		Run: func(ctx context.Context, rt *service.Runtime) error {
			return agent.Serve(ctx, cfg, rt)
		},
	}
}
