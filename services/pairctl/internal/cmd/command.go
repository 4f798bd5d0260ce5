package cmd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/service"
)

// commandFlags say which node is asked for what.
type commandFlags struct {
	nats          event.Config
	cluster, node string
	name          string
	arguments     []string
	timeout       time.Duration
}

// verbs are the commands, by the sidecar that answers them.
var verbs = map[string]string{
	"status": "health-agent", "flush": "health-agent", "snapshot": "health-agent",
	"drain": "migrator", "replicate": "migrator", "moves": "migrator", "cancel": "migrator", "repair": "migrator", "cleanup": "migrator",
}

// natsFlags adds the flags of all commands that need NATS.
func natsFlags(f *pflag.FlagSet, c *event.Config) {
	f.StringVar(&c.NATSURL, "nats", envOr("PAIRDB_NATS_URL", ""), "NATS servers, nats://host:port (PAIRDB_NATS_URL)")
	f.StringVar(&c.NATSCredentials, "nats-credentials", envOr("PAIRDB_NATS_CREDENTIALS", ""), "file with the credentials for NATS (PAIRDB_NATS_CREDENTIALS)")
	f.StringVar(&c.NATSCA, "nats-ca", envOr("PAIRDB_NATS_CA", ""), "file with the certificates that NATS is checked against (PAIRDB_NATS_CA)")
}

// checkNATS says what is wrong with the flags of natsFlags.
func checkNATS(c event.Config) error {
	if c.NATSURL == "" {
		return errors.New("--nats or PAIRDB_NATS_URL says where NATS is; `pairctl dev` prints it")
	}
	var p service.Problems
	c.CheckNATS(&p)
	return p.Err()
}

func (a *app) commandCmd() *cobra.Command {
	var o commandFlags
	c := &cobra.Command{
		Use:   "command VERB",
		Short: "Ask a node for something over NATS",
		Long: `command asks a sidecar of a node, which asks its node. It works where NATS is reached and the node is not;
what the answer means is the same. The verbs are

  status, flush, snapshot                             of the health-agent
  drain, replicate, moves, cancel, repair, cleanup    of the migrator

docs/EVENTS.md lists what they take. --arg names one of it; its value is JSON, or a text:

  pairctl command drain --node node-2 --arg kind=KIND_DECOMMISSION
  pairctl command replicate --node node-0 --arg 'targets=[{"node_id": "node-1"}]' --arg mode=MODE_FOLLOW`,
		Args: exactArgs("VERB"),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := checkNATS(o.nats)
			if err == nil && o.node == "" {
				err = errors.New("--node says which node is asked")
			}
			if err == nil && verbs[args[0]] == "" {
				known := slices.Sorted(maps.Keys(verbs))
				err = fmt.Errorf("%q is no verb, the nearest is %s; there are %s", args[0], service.Nearest(args[0], known), strings.Join(known, ", "))
			}
			var request []byte
			if err == nil {
				request, err = o.request()
			}
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return a.command(cmd.Context(), args[0], request, o)
		},
	}
	f := c.Flags()
	natsFlags(f, &o.nats)
	f.StringVar(&o.node, "node", "", "name of the node")
	f.StringVar(&o.cluster, "cluster", envOr("PAIRDB_CLUSTER_ID", "pairdb"), "name of the cluster (PAIRDB_CLUSTER_ID)")
	f.StringVar(&o.name, "name", "", "name of the snapshot")
	f.StringArrayVar(&o.arguments, "arg", nil, "an argument, NAME=VALUE; can be repeated")
	f.DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long to wait for the answer")
	return c
}

// request is what is sent, under an id that is new.
func (o *commandFlags) request() ([]byte, error) {
	request := map[string]any{}
	for _, text := range o.arguments {
		name, value, ok := strings.Cut(text, "=")
		if _, twice := request[name]; !ok || name == "" || twice || name == "request_id" || name == "node_id" {
			return nil, fmt.Errorf("--arg is NAME=VALUE, each name once and neither request_id nor node_id; not %q", text)
		}
		if request[name] = any(value); json.Valid([]byte(value)) {
			request[name] = json.RawMessage(value)
		}
	}
	if o.name != "" {
		request["name"] = o.name
	}
	request["request_id"], request["node_id"] = rand.Text(), o.node
	return json.Marshal(request)
}

func (a *app) command(ctx context.Context, verb string, request []byte, o commandFlags) error {
	conn, err := event.Connect(o.nats, "pairctl command", slog.New(slog.DiscardHandler))
	if err != nil {
		return fmt.Errorf("%w: %w", errInput, err)
	}
	defer conn.Close()
	if err := waitForNATS(ctx, conn, callTimeout); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	m, err := conn.NATS().RequestWithContext(ctx, event.CommandSubject(o.cluster, o.node, verb), request)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("%w: no %s of node %q in cluster %q answers to %q", errNATS, verbs[verb], o.node, o.cluster, verb)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: no answer within %s; the node may have done it", errNATS, o.timeout)
	case err != nil:
		return fmt.Errorf("command: %w", err)
	}
	return a.printAnswer(m.Data)
}

// printAnswer prints the result of a command, or returns its error.
func (a *app) printAnswer(data []byte) error {
	var answer struct {
		OK     bool            `json:"ok"`
		Result json.RawMessage `json:"result"`
		Error  struct {
			Reason  string `json:"reason"`
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return fmt.Errorf("command: the answer is no JSON: %w", err)
	}
	if !answer.OK {
		return fmt.Errorf("%s: %s", answer.Error.Reason, answer.Error.Message)
	}
	if a.output == "json" {
		_, err := fmt.Fprintf(a.Out, "%s\n", answer.Result)
		return err
	}
	var result any
	if err := json.Unmarshal(answer.Result, &result); err != nil {
		return fmt.Errorf("command: the result is no JSON: %w", err)
	}
	b, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Out, "%s\n", b)
	return err
}
