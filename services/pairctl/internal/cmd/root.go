// Package cmd is the command line of pairctl: what is asked, which calls answer it, how the answer
// looks. It never interprets stored bytes.
package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/service"
)

// Exit codes, documented in `pairctl --help`. Those that other binaries have too are the same.
const (
	exitOK          = service.ExitOK
	exitFailed      = service.ExitRuntime
	exitUsage       = service.ExitUsage
	exitNotFound    = 3
	exitInvalid     = 4
	exitUnavailable = service.ExitUnreachable
	exitCondition   = 7
)

// Streams are the standard streams of a run.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// app is what all commands share: settings and streams.
type app struct {
	Streams
	addr, tenant, output string
	tls                  identity.Files
	serverName           string
	tokenFile            string
}

var (
	errUsage    = errors.New("usage")
	errNotFound = errors.New("not found")
	errInput    = errors.New("bad input")
	errSilent   = errors.New("members that should answer do not")
)

// Run executes one command line and returns the exit code. Errors are printed to s.Err.
func Run(ctx context.Context, args []string, s Streams) int {
	root := newRoot(&app{Streams: s})
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if !errors.Is(err, errNotFound) || err.Error() != errNotFound.Error() {
		fmt.Fprintf(s.Err, "pairctl: %v\n", err)
	}
	if hint := hintFor(err); hint != "" {
		fmt.Fprintf(s.Err, "hint: %s\n", hint)
	}
	return exitCode(err)
}

func exitCode(err error) int {
	switch {
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, errNotFound):
		return exitNotFound
	case errors.Is(err, errInput):
		return exitInvalid
	case errors.Is(err, errNATS), errors.Is(err, errSilent):
		return exitUnavailable
	}
	switch client.Reason(err) {
	case client.ReasonOptions:
		return exitUsage
	case client.ReasonConditionFailed:
		return exitCondition
	}
	switch client.Code(err) {
	case codes.InvalidArgument:
		return exitInvalid
	case codes.NotFound:
		return exitNotFound
	case codes.Unavailable, codes.DeadlineExceeded:
		return exitUnavailable
	}
	return exitFailed
}

// hintFor says what to do next where the error alone does not.
func hintFor(err error) string {
	switch {
	case errors.Is(err, errMove):
		return "`pairctl moves ID` shows all that is known of a move"
	case errors.Is(err, errUsage), client.Reason(err) == client.ReasonOptions:
		return "pairctl --help shows the commands, pairctl COMMAND --help one of them"
	case client.ConditionFailed(err):
		var e *client.Error
		if errors.As(err, &e) && e.Clock != nil {
			return fmt.Sprintf("the clock of the key is %s now; `pairctl get` shows the value", clockText(e.Clock))
		}
		return "`pairctl get` shows what the key holds now"
	case client.TooManySiblings(err):
		return "`pairctl get --siblings` shows the values; put one that merges them with --context and the clock of `pairctl get -o json`"
	case client.MustRescan(err):
		return "the node does not have the changes from there on: begin a watch without --after, then `pairctl scan`"
	case client.Reason(err) == client.ReasonIdempotencyKeyReused:
		return "another write has this --idempotency-key: a new write needs a new one"
	case client.Reason(err) == "MEMBER_ALIVE":
		return "`pairctl members --watch` shows when it is down"
	case client.Reason(err) == "MEMBER_SELF":
		return "--addr or PAIRDB_ADDR names another node"
	case client.Reason(err) == "MOVE_NOT_FOUND":
		return "`pairctl moves --all` lists those that the node remembers"
	case client.Reason(err) == "MOVE_EXISTS":
		return "the node has another move of this --id: choose another, or leave it out"
	case client.Reason(err) == "MOVE_STATE", client.Reason(err) == "MOVE_CHANGED":
		return "`pairctl moves ID` shows where it stands"
	case client.Reason(err) == "MOVE_TOO_OLD":
		return "the node was away for longer than deletions are remembered: wipe it and let it join anew (docs/MOVES.md)"
	case client.Reason(err) == "TARGET_UNKNOWN":
		return "`pairctl members` lists the nodes; NODE=HOST:PORT names one that is not among them"
	case client.Reason(err) == "TARGET_UNFIT":
		return "`pairctl members` shows how the target is"
	case client.Reason(err) == "DRAIN_UNSAFE":
		return "add a node first (docs/MOVES.md), or accept fewer copies with --force --reason TEXT"
	case client.Reason(err) == "DRAIN_EXISTS":
		return "`pairctl moves` shows the drain that is under way, `pairctl cancel ID` calls it off"
	case client.Reason(err) == "NOT_OWNER":
		return "another node has it now: `pairctl members` lists their addresses, --addr names one"
	case client.Reason(err) == "NODE_DRAINING", client.Reason(err) == "RANGE_MOVING":
		return "that passes: try again; `pairctl moves` shows what goes on"
	case client.MaybeApplied(err):
		return "`pairctl get` shows whether it was; with --idempotency-key the same command can be repeated safely"
	case client.Reason(err) == "TOKEN_INVALID":
		return "--token-file or PAIRDB_TOKEN_FILE names yours; whoever has the key makes one with `pairctl token issue`"
	case client.Reason(err) == "TOKEN_NOT_GRANTED":
		return "`pairctl token issue` makes one that says more"
	case client.Code(err) == codes.PermissionDenied:
		return "docs/ROLES.md says which role may do that; `pairctl certs` makes development certificates, --tls-cert names one"
	case client.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "server preface"), client.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "certificate"):
		return "does the node ask for a certificate? --tls-cert, --tls-key and --tls-ca, or PAIRDB_TLS_CERT, PAIRDB_TLS_KEY and PAIRDB_TLS_CA, name yours"
	case client.Code(err) == codes.Unavailable && client.Reason(err) == "":
		return "is a pod running there? `pairctl dev` starts one; --addr or PAIRDB_ADDR names another"
	case client.Code(err) == codes.Unimplemented:
		return "the node is older than this pairctl; `pairctl status` shows its version"
	case client.Code(err) == codes.DeadlineExceeded:
		return "the node did not answer in time; `pairctl status` tells how it is"
	}
	return ""
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "pairctl",
		Short: "Store, read, load and inspect data in a PairDB storage node",
		Long: `pairctl talks to a PairDB storage node, and runs one on this machine.

  pairctl dev                       start a local pod (keep it running)
  pairctl dev --secure              the same with certificates and encryption everywhere
  pairctl put greeting hello        store a value
  pairctl get greeting              print it
  pairctl import packages.tsv       load key<TAB>value lines
  pairctl scan --prefix go          list what begins with "go"
  pairctl watch go                  print its changes as they happen
  pairctl status                    how the node is
  pairctl events --since 1h         what happened in the cluster
  pairctl members                   who is in the cluster, and who is alive
  pairctl status --cluster          how each member is
  pairctl moves --watch             what moves between the nodes
  pairctl drain --decommission      take a node out of the cluster

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 invalid input, 6 node not reachable,
7 condition of a write not met.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       service.Version,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: unknown command %q", errUsage, args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if errs := service.UnknownKeys(os.Environ(), nil); len(errs) > 0 {
				return fmt.Errorf("%w: %w", errUsage, errors.Join(errs...))
			}
			if a.output != "text" && a.output != "json" {
				return fmt.Errorf("%w: --output is text or json, not %q", errUsage, a.output)
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	f := root.PersistentFlags()
	f.StringVar(&a.addr, "addr", envOr("PAIRDB_ADDR", "127.0.0.1:8080"), "gRPC address of the node (PAIRDB_ADDR)")
	f.StringVar(&a.tenant, "tenant", envOr("PAIRDB_TENANT", client.DefaultTenant), "tenant (PAIRDB_TENANT)")
	f.StringVarP(&a.output, "output", "o", "text", "text or json")
	f.StringVar(&a.tls.TLSCert, "tls-cert", os.Getenv("PAIRDB_TLS_CERT"), "file with the certificate that says who you are (PAIRDB_TLS_CERT)")
	f.StringVar(&a.tls.TLSKey, "tls-key", os.Getenv("PAIRDB_TLS_KEY"), "file with its key (PAIRDB_TLS_KEY)")
	f.StringVar(&a.tls.TLSCA, "tls-ca", os.Getenv("PAIRDB_TLS_CA"), "file with the authorities that nodes are checked against (PAIRDB_TLS_CA)")
	f.StringVar(&a.serverName, "tls-server-name", "", "name in the node's certificate, where --addr is another: a forwarded port")
	f.StringVar(&a.tokenFile, "token-file", os.Getenv("PAIRDB_TOKEN_FILE"), "file with the token that says what you may do with keys, if the node asks for one (PAIRDB_TOKEN_FILE)")
	root.AddCommand(
		a.putCmd(), a.getCmd(), a.deleteCmd(), a.scanCmd(), a.countCmd(), a.watchCmd(),
		a.importCmd(), a.exportCmd(),
		a.statusCmd(), a.flushCmd(), a.compactCmd(), a.verifyCmd(), a.tablesCmd(), a.snapshotCmd(), a.tenantsCmd(),
		a.movesCmd(), a.drainCmd(), a.replicateCmd(), a.repairCmd(), a.cancelCmd(), a.finishCmd(), a.resumeCmd(), a.cleanupCmd(), a.rangesCmd(),
		a.membersCmd(), a.eventsCmd(), a.commandCmd(), a.hotCmd(), a.logLevelCmd(),
		a.devCmd(), a.certsCmd(), a.tokenCmd(),
	)
	return root
}

func envOr(key, fallback string) string {
	if v, ok := os.LookupEnv(key); ok && v != "" {
		return v
	}
	return fallback
}

// exactArgs is cobra.ExactArgs with our usage error.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return fmt.Errorf("%w: %d arguments given, wanted %v", errUsage, len(args), names)
		}
		return nil
	}
}

// optionalArg is cobra.MaximumNArgs(1) with our usage error.
func optionalArg(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("%w: %d arguments given, at most one wanted", errUsage, len(args))
	}
	return nil
}

func (a *app) client(o client.Options) (*client.Client, error) {
	o.Tenant = a.tenant
	return a.dial(a.addr, o)
}

// withClient runs f with a client and closes it.
func (a *app) withClient(f func(*client.Client) error) error {
	c, err := a.client(client.Options{})
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	defer c.Close()
	return f(c)
}
