package cmd

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// maxHotKeys is what the node has of each list.
const maxHotKeys = 100

func (a *app) hotCmd() *cobra.Command {
	var limit int
	var reveal bool
	c := &cobra.Command{
		Use:   "hot",
		Short: "List the keys that are asked for most, and the largest values",
		Long: `hot lists the keys of all tenants that were read and written most within the last minutes, and those
with the largest values. The numbers are estimates: the node looks at one of 64 operations. Keys are
shown by the first 16 digits of their SHA-256, as in the node's log, unless --reveal-keys is given.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > maxHotKeys {
				return fmt.Errorf("%w: --limit is 1 to %d, not %d", errUsage, maxHotKeys, limit)
			}
			return a.withClient(func(c *client.Client) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				r, err := c.Admin().Hot(ctx, &adminv1.HotRequest{Limit: int32(limit), RevealKeys: reveal})
				if err != nil {
					return fmt.Errorf("hot: %w", err)
				}
				if a.output == "json" {
					return a.printProto(r)
				}
				return printHot(a.Out, r)
			})
		},
	}
	f := c.Flags()
	f.IntVar(&limit, "limit", 20, "keys of each list, at most 100")
	f.BoolVar(&reveal, "reveal-keys", false, "show keys as they are")
	return c
}

func printHot(w io.Writer, r *adminv1.HotResponse) error {
	fmt.Fprintf(w, "of the last %s, estimated\n", time.Duration(r.GetWindowSeconds())*time.Second)
	for _, list := range []struct {
		title string
		keys  []*adminv1.HotKey
		count bool
	}{{"most read", r.GetReads(), true}, {"most written", r.GetWrites(), true}, {"largest values", r.GetLargest(), false}} {
		fmt.Fprintf(w, "\n%s\n", list.title)
		if len(list.keys) == 0 {
			fmt.Fprintln(w, "  none")
			continue
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, k := range list.keys {
			if list.count {
				fmt.Fprintf(t, "  %d\t%s\t%s\t%s\n", k.GetRequests(), tenantName(k.GetTenant()), tenantName(k.GetKey()), humanBytes(k.GetValueBytes()))
			} else {
				fmt.Fprintf(t, "  %s\t%s\t%s\n", humanBytes(k.GetValueBytes()), tenantName(k.GetTenant()), tenantName(k.GetKey()))
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}
