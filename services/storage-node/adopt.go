package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/node"
)

// adoptCommand is the subcommand that makes the directory of a drained node, or of another one, a new
// node's.
func adoptCommand() service.Command {
	return service.Command{
		Name: "adopt", Summary: "DATA_DIR [--node-id ID]: let a node join anew with the data of a drained or foreign directory",
		Run: runAdopt,
	}
}

func runAdopt(_ context.Context, args []string, stdout, _ io.Writer) error {
	flags := flag.NewFlagSet("adopt", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	nodeID := flags.String("node-id", "", "the node that is to have the directory; not given: the one that had it")
	dirs, err := operands(flags, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(stdout, "storage-node adopt DATA_DIR [flags]")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	case err != nil:
		return service.WithExitCode(service.ExitUsage, fmt.Errorf("adopt: %w", err))
	case len(dirs) != 1:
		return service.WithExitCode(service.ExitUsage, errors.New("adopt: one DATA_DIR expected"))
	}
	adopted, err := node.Adopt(vfs.OS, dirs[0], *nodeID)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s is node %s's, in a new incarnation: it joins with what is there when it starts\n", dirs[0], adopted)
	return nil
}

// operands parses flags before and behind the operands, and returns those.
func operands(flags *flag.FlagSet, args []string) (out []string, err error) {
	for len(args) > 0 {
		if err := flags.Parse(args); err != nil {
			return nil, err
		}
		if args = flags.Args(); len(args) > 0 {
			out, args = append(out, args[0]), args[1:]
		}
	}
	return out, nil
}
