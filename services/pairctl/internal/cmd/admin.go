package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
)

func (a *app) flushCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "flush",
		Short: "Write the memtables to tables now",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client.Client) error {
				if _, err := c.Admin().Flush(cmd.Context(), &adminv1.FlushRequest{}); err != nil {
					return fmt.Errorf("flush: %w", err)
				}
				return a.say(map[string]any{"flushed": true}, "flushed")
			})
		},
	}
}

// say prints a result in the chosen form.
func (a *app) say(object map[string]any, format string, args ...any) error {
	if a.output == "json" {
		return a.printJSON(object)
	}
	_, err := fmt.Fprintf(a.Out, format+"\n", args...)
	return err
}

func (a *app) compactCmd() *cobra.Command {
	var from, to string
	var everything bool
	c := &cobra.Command{
		Use:   "compact",
		Short: "Merge a range of the tenant down to the last level, and wait for it",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &adminv1.CompactRequest{Tenant: a.tenant, Range: &datav1.KeyRange{Start: from, End: to}}
			if everything {
				if from != "" || to != "" {
					return fmt.Errorf("%w: --all can't be combined with --from and --to", errUsage)
				}
				req = &adminv1.CompactRequest{}
			}
			return a.withClient(func(c *client.Client) error {
				stream, err := c.Admin().Compact(cmd.Context(), req)
				if err != nil {
					return fmt.Errorf("compact: %w", err)
				}
				bar := newProgress(a.Err, "compact", 0)
				defer bar.finish()
				var done int64
				for {
					p, err := stream.Recv()
					if errors.Is(err, io.EOF) {
						return a.say(map[string]any{"compacted_bytes": done}, "compacted %s", humanBytes(done))
					}
					if err != nil {
						return fmt.Errorf("compact: %w", err)
					}
					bar.setTotal(p.TotalBytes)
					bar.add(p.DoneBytes - done)
					done = p.DoneBytes
				}
			})
		},
	}
	f := c.Flags()
	f.StringVar(&from, "from", "", "keys not before this one")
	f.StringVar(&to, "to", "", "keys before this one")
	f.BoolVar(&everything, "all", false, "all tenants")
	return c
}

func (a *app) verifyCmd() *cobra.Command {
	var rate int64
	c := &cobra.Command{
		Use:   "verify",
		Short: "Read every live table from disk and check every checksum; exit code 1 when one is damaged",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client.Client) error {
				stream, err := c.Admin().Verify(cmd.Context(), &adminv1.VerifyRequest{MaxBytesPerSecond: rate})
				if err != nil {
					return fmt.Errorf("verify: %w", err)
				}
				bar := newProgress(a.Err, "verify", 0)
				defer bar.finish()
				last := &adminv1.VerifyProgress{}
				var done int64
				for {
					p, err := stream.Recv()
					if errors.Is(err, io.EOF) {
						return a.verified(last)
					}
					if err != nil {
						return fmt.Errorf("verify: %w", err)
					}
					bar.setTotal(p.TotalBytes)
					bar.add(p.DoneBytes - done)
					done, last = p.DoneBytes, p
				}
			})
		},
	}
	c.Flags().Int64Var(&rate, "rate", 0, "read at most this many bytes per second; 0 is no limit")
	return c
}

func (a *app) verified(p *adminv1.VerifyProgress) error {
	if a.output == "json" {
		if err := a.printProto(p); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.Out, "verified %d tables, %s\n", p.TablesDone, humanBytes(p.DoneBytes))
		for _, t := range p.Corrupt {
			fmt.Fprintf(a.Out, "damaged: table %06d: %s\n", t.Number, t.Reason)
		}
	}
	if len(p.Corrupt) > 0 {
		return fmt.Errorf("%d tables are damaged: restore them from a snapshot or another replica", len(p.Corrupt))
	}
	return nil
}

func (a *app) snapshotCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "snapshot",
		Short: "Make, list, delete and restore checkpoints of a node",
		Args:  exactArgs(),
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.snapshotCreateCmd(), a.snapshotListCmd(), a.snapshotDeleteCmd(), a.snapshotRestoreCmd())
	return c
}

func (a *app) snapshotCreateCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "create NAME",
		Short: "Make a checkpoint of the whole node below its data directory",
		Args:  exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client.Client) error {
				r, err := c.Admin().Snapshot(cmd.Context(), &adminv1.SnapshotRequest{Name: args[0]})
				if err != nil {
					return fmt.Errorf("snapshot %s: %w", args[0], err)
				}
				if a.output == "json" {
					return a.printProto(r.Snapshot)
				}
				return a.say(nil, "%s: %s at sequence %d", r.Snapshot.Path, humanBytes(r.Snapshot.SizeBytes), r.Snapshot.Sequence)
			})
		},
	}
}

func (a *app) snapshotListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the checkpoints",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client.Client) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				r, err := c.Admin().ListSnapshots(ctx, &adminv1.ListSnapshotsRequest{})
				if err != nil {
					return fmt.Errorf("list snapshots: %w", err)
				}
				if a.output == "json" {
					return a.printProto(r)
				}
				t := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "name\tcreated\tsize\tsequence")
				for _, s := range r.Snapshots {
					fmt.Fprintf(t, "%s\t%s\t%s\t%d\n", s.Name, time.Unix(s.CreatedAt, 0).UTC().Format(time.RFC3339), humanBytes(s.SizeBytes), s.Sequence)
				}
				return t.Flush()
			})
		},
	}
}

func (a *app) snapshotDeleteCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a checkpoint",
		Args:  exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client.Client) error {
				if _, err := c.Admin().DeleteSnapshot(cmd.Context(), &adminv1.DeleteSnapshotRequest{Name: args[0]}); err != nil {
					return fmt.Errorf("delete snapshot %s: %w", args[0], err)
				}
				return a.say(map[string]any{"deleted": args[0]}, "deleted %s", args[0])
			})
		},
	}
}
