// Command compactor merges and checks the tables that a storage node leases to it over the pod's
// socket. It owns nothing: it opens no manifest, names no file, deletes no file, and what it was
// doing when it dies is done again. Several compactors at one node are several workers; none knows
// of the others.
package main

import (
	"context"
	"os"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/tracing"
	"github.com/pairdb/pairdb/services/compactor/internal/config"
	"github.com/pairdb/pairdb/services/compactor/internal/worker"
)

func main() { os.Exit(program().Main(context.Background(), os.Args[1:])) }

// umask leaves the group of the pod its rights: node and compactor run as two users of one group.
const umask = 0o007

func program() *service.Program {
	cfg := &config.Config{}
	return &service.Program{
		Name:     "compactor",
		Summary:  "merges and checks tables that a storage node leases to it",
		Config:   cfg,
		Umask:    umask,
		Tracing:  tracing.Open,
		Commands: []service.Command{service.ProbeCommand()},
		Run: func(ctx context.Context, rt *service.Runtime) error {
			return worker.Serve(ctx, cfg, rt)
		},
	}
}
