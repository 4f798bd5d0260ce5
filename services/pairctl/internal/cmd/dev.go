package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/localpod"
)

// readyTimeout is how long a local pod may take to serve: recovery of a full log takes seconds.
const readyTimeout = 60 * time.Second

func (a *app) devCmd() *cobra.Command {
	var dir string
	var nodes int
	var ephemeral, quiet bool
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run a local pod: storage-node, compactor and an embedded NATS",
		Long: `dev runs storage pods as processes of this machine until Ctrl-C. The data stays in --dir; with
--ephemeral it is thrown away at the end. The first pod takes the default ports (8080, 9091, 9092)
where they are free. Processes that die are started again.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if nodes < 1 || nodes > 16 {
				return fmt.Errorf("%w: --nodes is 1 to 16", errUsage)
			}
			if ephemeral {
				if cmd.Flags().Changed("dir") {
					return fmt.Errorf("%w: --ephemeral can't be combined with --dir", errUsage)
				}
				temp, err := os.MkdirTemp("", "pairdb-")
				if err != nil {
					return fmt.Errorf("directory of the pod: %w", err)
				}
				defer os.RemoveAll(temp)
				dir = temp
			}
			return a.runDev(cmd.Context(), dir, nodes, quiet)
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", ".pairdb", "directory of the pods; kept")
	f.IntVar(&nodes, "nodes", 1, "number of pods")
	f.BoolVar(&ephemeral, "ephemeral", false, "use a temporary directory and remove it at the end")
	f.BoolVarP(&quiet, "quiet", "q", false, "leave the logs of the processes out")
	return c
}

func (a *app) runDev(ctx context.Context, dir string, nodes int, quiet bool) error {
	o := localpod.Options{Dir: dir, Nodes: nodes, FixedPorts: true}
	if !quiet {
		o.Log = a.Err
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer unlock()
	pods, err := localpod.Start(o)
	if err != nil {
		return err
	}
	defer pods.Stop()
	readyCtx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := pods.Ready(readyCtx); err != nil {
		if ctx.Err() != nil {
			return nil // Ctrl-C before it was ready
		}
		return fmt.Errorf("local pod: %w", err)
	}
	a.welcome(pods)
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.Err, "stopping")
		return nil
	case err := <-pods.Failed():
		return fmt.Errorf("local pod: %w", err)
	}
}

// welcome says what runs where, and what to type next.
func (a *app) welcome(pods *localpod.Pods) {
	for _, p := range pods.All() {
		fmt.Fprintf(a.Out, "%s is ready: gRPC %s, metrics http://%s/metrics, data %s\n", p.Name, p.Addr, p.OpsAddr, p.DataDir)
	}
	fmt.Fprintf(a.Out, "NATS %s\n", pods.NATSURL())
	tool := "pairctl"
	if exe, err := os.Executable(); err == nil {
		tool = exe
		if wd, err := os.Getwd(); err == nil {
			if rel, err := filepath.Rel(wd, exe); err == nil && len(rel) < len(exe) {
				tool = "./" + rel
			}
		}
	}
	fmt.Fprint(a.Out, "\nIn a second terminal:\n")
	if first := pods.All()[0]; first.Addr != "127.0.0.1:8080" {
		fmt.Fprintf(a.Out, "  export PAIRDB_ADDR=%s      # port 8080 is taken\n", first.Addr)
	}
	fmt.Fprintf(a.Out, "  %[1]s put greeting hello\n  %[1]s get greeting\n  %[1]s status\n\nCtrl-C stops it.\n", tool)
}

// lockDir keeps two local pods out of one directory, with a message that says so.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o770); err != nil {
		return nil, fmt.Errorf("%w: %w", errInput, err)
	}
	l, err := localpod.LockDir(dir)
	if errors.Is(err, localpod.ErrInUse) {
		return nil, fmt.Errorf("%w: another local pod runs in %s: stop it, or choose another --dir", errInput, dir)
	}
	if err != nil {
		return nil, err
	}
	return func() { l.Close() }, nil
}
