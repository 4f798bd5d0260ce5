// Command migrator moves data between nodes: it reads from the storage node of its own pod over the
// pod's socket and sends to the storage nodes of others. It owns nothing and stores nothing: the
// state of a move is kept by the node that has the data, and after any death the migrator goes on
// from there.
package main

import (
	"context"
	"os"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/tracing"
	"github.com/pairdb/pairdb/services/migrator/internal/config"
	"github.com/pairdb/pairdb/services/migrator/internal/migrator"
)

func main() { os.Exit(program().Main(context.Background(), os.Args[1:])) }

func program() *service.Program {
	cfg := &config.Config{}
	return &service.Program{
		Name:     "migrator",
		Summary:  "moves data between storage nodes",
		Config:   cfg,
		Tracing:  tracing.Open,
		Commands: []service.Command{service.ProbeCommand()},
		Run: func(ctx context.Context, rt *service.Runtime) error {
			return migrator.Serve(ctx, cfg, rt)
		},
	}
}
