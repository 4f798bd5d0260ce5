package cmd

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/client"
)

func (a *app) watchCmd() *cobra.Command {
	var after uint64
	var limit int
	var retryFor time.Duration
	c := &cobra.Command{
		Use:   "watch [PREFIX]",
		Short: "Print the changes of keys as they happen, until Ctrl-C",
		Long: `watch prints a line for each change: sequence, what happened, key, value, separated by tabs (or a
JSON object with all siblings, -o json). What happened is put, delete, joined (a repair brought in a
value of another node) or removed (all keys from the first up to the second are gone).

It begins with what is written from now on. --after goes on where an earlier watch of the same node
ended: it says where when it ends, and "after" of an object does. The node keeps changes only as long as
its commit log, and longer while a watch needs them.`,
		Args: optionalArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 0 {
				return fmt.Errorf("%w: --limit is not negative", errUsage)
			}
			prefix := ""
			if len(args) > 0 {
				prefix = args[0]
			}
			c, err := a.client(client.Options{RetryFor: retryFor})
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			defer c.Close()
			return a.watch(cmd, c, prefix, after, limit)
		},
	}
	f := c.Flags()
	f.Uint64Var(&after, "after", 0, "begin after this sequence; 0 is now")
	f.IntVar(&limit, "limit", 0, "end after this many changes; 0 is never")
	f.DurationVar(&retryFor, "retry-for", 2*time.Minute, "how long to go on while the node can't be reached or asks to wait")
	return c
}

func (a *app) watch(cmd *cobra.Command, c *client.Client, prefix string, last uint64, limit int) error {
	start, end := client.Prefix(prefix)
	begun, n := false, 0
	for e, err := range c.Watch(cmd.Context(), start, end, last) {
		if err != nil {
			if begun && !client.MustRescan(err) {
				fmt.Fprintf(a.Err, "note: --after %d goes on here\n", last)
			}
			if cmd.Context().Err() != nil {
				return nil // Ctrl-C is how a watch ends
			}
			return err
		}
		if !begun {
			fmt.Fprintln(a.Err, "note: watching; Ctrl-C ends it")
		}
		begun, last = true, e.After
		if e.Kind == client.Progress {
			continue
		}
		if err := a.printEvent(e); err != nil {
			return err
		}
		if n++; n == limit {
			break
		}
	}
	return nil
}

func (a *app) printEvent(e client.Event) error {
	if e.Kind == client.Removed {
		if a.output == "json" {
			return a.printJSON(map[string]any{
				"sequence": e.Sequence, "after": e.After, "change": "removed", "start": e.Range.GetStart(), "end": e.Range.GetEnd(),
			})
		}
		_, err := fmt.Fprintf(a.Out, "%d\tremoved\t%s\t%s\n", e.Sequence, e.Range.GetStart(), e.Range.GetEnd())
		return err
	}
	value, found := client.Winner(e.Record)
	what := "put"
	switch {
	case e.Kind == client.Joined:
		what = "joined"
	case !found:
		what = "delete"
	}
	if a.output == "json" {
		m := map[string]any{
			"sequence": e.Sequence, "after": e.After, "change": what,
			"key": e.Record.GetKey(), "siblings": siblingsJSON(e.Record.GetSiblings()),
		}
		if found {
			putValue(m, value)
		}
		return a.printJSON(m)
	}
	_, err := fmt.Fprintf(a.Out, "%d\t%s\t%s\t%s\n", e.Sequence, what, e.Record.GetKey(), value)
	return err
}
