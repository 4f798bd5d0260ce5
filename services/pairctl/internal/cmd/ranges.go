package cmd

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

func (a *app) rangesCmd() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "ranges",
		Short: "Show the ranges of the node, whom it shares them with, and since when they are equal",
		Long: `ranges sums up which part of the hashes of all keys the node owns, how many copies there are, when the
copies were last compared and equal, who is behind, and whether there is something to clean up. --all lists
every range.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client.Client) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				r, err := c.Admin().Ranges(ctx, &adminv1.RangesRequest{})
				if err != nil {
					return fmt.Errorf("ranges: %w", err)
				}
				if a.output == "json" {
					return a.printProto(r)
				}
				return renderRanges(a.Out, r, all, time.Now())
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every range")
	return c
}
