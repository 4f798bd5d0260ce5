// Command storage-node serves reads and writes of PairDB. It is the only process that decides what
// is true: it owns the commit log, the memtable, the manifest, the caches and the names of tables.
package main

import (
	"context"
	"os"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/tracing"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
	"github.com/pairdb/pairdb/services/storage-node/internal/inspect"
	"github.com/pairdb/pairdb/services/storage-node/internal/node"
)

func main() { os.Exit(program().Main(context.Background(), os.Args[1:])) }

// umask leaves the group of the pod its rights: node and compactor run as two users of one group.
const umask = 0o007

func program() *service.Program {
	cfg := &config.Config{}
	return &service.Program{
		Name:    "storage-node",
		Summary: "serves reads and writes of PairDB, and owns the data directory",
		Config:  cfg,
		Umask:   umask,
		Tracing: tracing.Open,
		// The offline tools, and what a pod runs before it is stopped.
		Commands: append(inspect.Commands(vfs.OS), node.DrainCommand(), adoptCommand(), archiveCommand(), extractCommand(os.Stdin), service.ProbeCommand()),
		Run: func(ctx context.Context, rt *service.Runtime) error {
			n, err := node.New(cfg, rt, vfs.OS)
			if err != nil {
				return err
			}
			return n.Run(ctx)
		},
	}
}
