package cmd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// drainFlags say which drain is asked for.
type drainFlags struct {
	flush, decommission bool
	timeout             time.Duration
	force, wait         bool
	reason              string
}

func (a *app) drainCmd() *cobra.Command {
	var o drainFlags
	c := &cobra.Command{
		Use:   "drain --flush | --decommission",
		Short: "Prepare the node for its end: a restart (--flush), or for good (--decommission)",
		Long: `drain prepares the node for its end, in one of two ways:

  --flush          for a restart: the node refuses writes, which clients repeat, and writes all that is in
                   memory to tables. It can be restarted within seconds. If it is not, it takes writes again
                   after --timeout.
  --decommission   for good: the node gives all its ranges to their next owners, compares them, and is
                   declared drained then. It serves meanwhile. It is refused when ranges would be left with
                   fewer copies than the replication factor, unless --force --reason TEXT.

With --wait it shows the moves and ends with them; Ctrl-C ends the waiting and not the drain. pairctl
cancel with the id of the drain calls it off.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.chooseDrain(&o); err != nil {
				return err
			}
			if err := o.check(cmd); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return a.withClient(func(c *client.Client) error {
				if o.flush {
					return a.drainFlush(cmd.Context(), c, o)
				}
				return a.decommission(cmd.Context(), c, o)
			})
		},
	}
	f := c.Flags()
	f.BoolVar(&o.flush, "flush", false, "for a restart: refuse writes and flush")
	f.BoolVar(&o.decommission, "decommission", false, "for good: give all ranges to their next owners")
	f.DurationVar(&o.timeout, "timeout", time.Minute, "of --flush: take writes again after this time, 1s to 1h")
	f.BoolVar(&o.force, "force", false, "of --decommission: also if ranges are left with fewer copies than wanted; needs --reason")
	f.StringVar(&o.reason, "reason", "", "why, kept with the drain and in the log of the node")
	f.BoolVar(&o.wait, "wait", false, "of --decommission: show the moves and wait until the node is drained")
	return c
}

// chooseDrain asks which drain is meant when no flag says so and somebody is there to ask.
func (a *app) chooseDrain(o *drainFlags) error {
	if o.flush || o.decommission {
		return nil
	}
	if in, ok := a.In.(*os.File); ok && isTerminal(in) {
		return askDrain(in, a.Err, o)
	}
	return fmt.Errorf("%w: choose --flush (for a restart) or --decommission (for good, everything is moved away)", errUsage)
}

// askDrain asks once; what is no answer is a no.
func askDrain(in io.Reader, out io.Writer, o *drainFlags) error {
	fmt.Fprint(out, "drain for a restart (flush), or for good (decommission)? ")
	line, err := bufio.NewReader(io.LimitReader(in, 1024)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", errInput, err)
	}
	switch strings.TrimSpace(line) {
	case "flush":
		o.flush = true
	case "decommission":
		o.decommission = true
	default:
		return fmt.Errorf("%w: %q is neither flush nor decommission: nothing was done", errUsage, strings.TrimSpace(line))
	}
	return nil
}

func (o *drainFlags) check(cmd *cobra.Command) error {
	switch {
	case o.flush && o.decommission:
		return errors.New("--flush and --decommission are two different things: choose one")
	case o.flush && (o.force || o.wait):
		return errors.New("--force and --wait belong to --decommission")
	case o.decommission && cmd.Flags().Changed("timeout"):
		return errors.New("--timeout belongs to --flush")
	case o.flush && (o.timeout < time.Second || o.timeout > time.Hour):
		return fmt.Errorf("--timeout is 1s to 1h, not %s", o.timeout)
	case o.force && strings.TrimSpace(o.reason) == "":
		return errors.New("--force needs --reason: it says later why there are fewer copies than wanted")
	}
	return nil
}

func (a *app) drainFlush(ctx context.Context, c *client.Client, o drainFlags) error {
	r, err := c.Admin().Drain(ctx, &adminv1.DrainRequest{
		Kind: adminv1.DrainRequest_KIND_FLUSH, TimeoutMs: o.timeout.Milliseconds(), Reason: o.reason,
	})
	if err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	if a.output == "json" {
		return a.printProto(r)
	}
	return a.say(nil, "flushed up to sequence %d: restart the node now, it takes writes again in %s", r.GetSequence(), o.timeout)
}

func (a *app) decommission(ctx context.Context, c *client.Client, o drainFlags) error {
	r, err := c.Admin().Drain(ctx, &adminv1.DrainRequest{Kind: adminv1.DrainRequest_KIND_DECOMMISSION, Force: o.force, Reason: o.reason})
	if err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	id := r.GetDrain().GetId()
	if o.wait {
		fmt.Fprintf(a.Err, "note: drain %s has begun; Ctrl-C ends the waiting alone, `pairctl cancel %s` the drain\n", plain(id), plain(id))
		if err := a.waitForDrain(ctx, c, id); err != nil {
			return err
		}
		return a.say(map[string]any{"drain": id, "drained": true},
			"drained: others have all that the node had. Stop it; its volume is not needed any more")
	}
	if a.output == "json" {
		return a.printProto(r)
	}
	return a.say(nil, "%s\n`pairctl moves --watch` shows it, `pairctl cancel %s` calls it off", drainText(r.GetDrain()), plain(id))
}
