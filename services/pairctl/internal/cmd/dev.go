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
	var ephemeral, quiet, secure bool
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run a local pod or a cluster: storage-node, compactor, migrator, health-agent and an embedded NATS",
		Long: `dev runs storage pods as processes of this machine until Ctrl-C; with --nodes they are a cluster. The
data stays in --dir; with --ephemeral it is thrown away at the end. The first pod takes the default ports
(8080, 9091 to 9094, 7946) where they are free. Processes that die are started again. With more --nodes
than the last time in the same --dir the new ones join, and get their share of the data.

With --secure every TCP port asks for a certificate, gossip and NATS are encrypted, and certificates and keys
for you are in --dir/tls; what to export is printed.`,
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
			return a.runDev(cmd.Context(), localpod.Options{Dir: dir, Nodes: nodes, FixedPorts: true, Secure: secure}, quiet)
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", ".pairdb", "directory of the pods; kept")
	f.IntVar(&nodes, "nodes", 1, "number of pods")
	f.BoolVar(&ephemeral, "ephemeral", false, "use a temporary directory and remove it at the end")
	f.BoolVar(&secure, "secure", false, "use TLS with certificates, encrypted gossip and users of NATS")
	f.BoolVarP(&quiet, "quiet", "q", false, "leave the logs of the processes out")
	return c
}

func (a *app) runDev(ctx context.Context, o localpod.Options, quiet bool) error {
	if !quiet {
		o.Log = a.Err
	}
	unlock, err := lockDir(o.Dir)
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
	if err := pods.WriteScrapeFile(); err != nil {
		return err
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
		fmt.Fprintf(a.Out, "%s is ready: gRPC %s, metrics %s/metrics, data %s\n", p.Name, p.Addr, p.OpsURL(p.OpsAddr), p.DataDir)
		fmt.Fprintf(a.Out, "       its pod: verdict %s/ready, moves %s/metrics, gossip %s\n", p.OpsURL(p.HealthOpsAddr), p.OpsURL(p.MigratorOpsAddr), p.GossipAddr)
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
	if files := pods.Files("admin"); files.Enabled() {
		fmt.Fprintf(a.Out, "  export PAIRDB_TLS_CERT=%s PAIRDB_TLS_KEY=%s PAIRDB_TLS_CA=%s\n", files.TLSCert, files.TLSKey, files.TLSCA)
		fmt.Fprintf(a.Out, "  export PAIRDB_NATS_URL=%s PAIRDB_NATS_CA=%s PAIRDB_NATS_CREDENTIALS=%s\n", pods.NATSURL(), files.TLSCA, pods.NATSOperator())
	}
	fmt.Fprintf(a.Out, "  %[1]s put greeting hello\n  %[1]s get greeting\n  %[1]s status\n", tool)
	if all := pods.All(); len(all) > 1 {
		second := all[1]
		fmt.Fprintf(a.Out, "  %[1]s members --watch           # who is in the cluster, and who is alive\n  %[1]s status --cluster\n", tool)
		fmt.Fprintf(a.Out, "  %s --addr %s status   # another node: %s\n", tool, second.Addr, second.Name)
		fmt.Fprintf(a.Out, "  %s moves --watch             # what goes to other nodes; also: ranges, drain, replicate\n", tool)
	}
	fmt.Fprint(a.Out, "\nCtrl-C stops it.\n")
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
