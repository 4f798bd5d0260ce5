// Command pairctl is the operator's and developer's tool: data, import and export, status,
// snapshots, a local pod. It never opens a data directory that a node has open.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/pairdb/pairdb/services/pairctl/internal/cmd"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cmd.Run(ctx, os.Args[1:], cmd.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	cancel()
	os.Exit(code)
}
