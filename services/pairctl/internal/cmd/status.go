package cmd

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// callTimeout bounds the operator's calls that answer at once.
const callTimeout = 10 * time.Second

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the node is: levels, memtables, log, jobs, caches, disk",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client.Client) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				s, err := c.Admin().Status(ctx, &adminv1.StatusRequest{})
				if err != nil {
					return fmt.Errorf("status: %w", err)
				}
				if a.output == "json" {
					return a.printProto(s)
				}
				printStatus(a.Out, s)
				return nil
			})
		},
	}
}

func (a *app) printProto(m proto.Message) error {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true, UseProtoNames: true}.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Out, "%s\n", b)
	return err
}

// printStatus draws what an operator asks first, in that order: does it serve, is it under
// pressure, where is the data, who compacts.
func printStatus(w io.Writer, s *adminv1.StatusResponse) {
	state := s.State
	if s.Reason != "" {
		state += " (" + s.Reason + ")"
	}
	fmt.Fprintf(w, "node %s, version %s: %s, up %s\n", s.NodeId, s.Version, state,
		units.HumanDuration(time.Duration(s.UptimeSeconds)*time.Second))
	if len(s.Degraded) > 0 {
		fmt.Fprintf(w, "degraded: %s\n", strings.Join(s.Degraded, ", "))
	}
	pressure := s.WritePressure
	if s.WritePressureReason != "" {
		pressure += " (" + s.WritePressureReason + ")"
	}
	fmt.Fprintf(w, "write pressure: %s\n\n", pressure)
	printLevels(w, s.Levels)
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	m, l, d := s.GetMemtables(), s.GetCommitLog(), s.GetDisk()
	fmt.Fprintf(t, "memtables\t%s active, %d waiting (%s)\n", humanBytes(m.GetActiveBytes()), m.GetImmutableCount(), humanBytes(m.GetImmutableBytes()))
	fmt.Fprintf(t, "commit log\t%d segments, %s\n", l.GetSegments(), humanBytes(l.GetSizeBytes()))
	fmt.Fprintf(t, "disk\t%s free of %s, %s reserved\n", humanBytes(d.GetFreeBytes()), humanBytes(d.GetTotalBytes()), humanBytes(d.GetReservedBytes()))
	for _, c := range s.Caches {
		fmt.Fprintf(t, "cache %s\t%s of %s, %d entries, hits %s\n", c.Name, humanBytes(c.SizeBytes), humanBytes(c.CapacityBytes), c.Entries, percent(c.Hits, c.Hits+c.Misses))
	}
	c := s.GetCompaction()
	fmt.Fprintf(t, "compaction\t%d external, %d local, %d moves, %d rejected, %d expired, debt %s, local executor %s\n",
		c.GetInstalledExternal(), c.GetInstalledLocal(), c.GetTrivialMoves(), c.GetRejected(), c.GetExpired(), humanBytes(c.GetDebtBytes()), c.GetLocalMode())
	for _, wk := range s.Workers {
		fmt.Fprintf(t, "worker %s\t%d of %d slots, seen %s ago\n", wk.Id, wk.Leased, wk.Slots, time.Duration(wk.LastSeenMsAgo)*time.Millisecond)
	}
	for _, j := range s.Jobs {
		fmt.Fprintf(t, "job %d.e%d\t%s %s, L%d to L%d, %d tables, %s of %s, attempt %d%s\n", j.Id, j.Epoch, j.Kind, j.State,
			j.FromLevel, j.ToLevel, j.InputTables, humanBytes(j.DoneBytes), humanBytes(j.InputBytes), j.Attempts, by(j.Worker))
	}
	for _, q := range s.Quarantined {
		fmt.Fprintf(t, "quarantined\ttable %06d: %s\n", q.Number, q.Reason)
	}
	t.Flush() // a failed write to the terminal shows itself
}

func by(worker string) string {
	if worker == "" {
		return ""
	}
	return ", " + worker
}

func percent(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

// levelBar is the width of the longest bar in characters.
const levelBar = 40

// printLevels draws the tree: one bar per level, as long as its share of the largest.
func printLevels(w io.Writer, levels []*adminv1.Level) {
	largest := int64(1)
	for _, l := range levels {
		largest = max(largest, l.SizeBytes)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "level\ttables\tsize\ttarget\tscore\tentries\t")
	for _, l := range levels {
		n := int(l.SizeBytes * levelBar / largest)
		if l.SizeBytes > 0 {
			n = max(n, 1)
		}
		target := "-"
		if l.TargetBytes > 0 {
			target = humanBytes(l.TargetBytes)
		}
		fmt.Fprintf(t, "L%d\t%d\t%s\t%s\t%.2f\t%d\t %s\n", l.Level, l.Tables, humanBytes(l.SizeBytes), target, l.Score, l.Entries, strings.Repeat("█", n))
	}
	t.Flush() // a failed write to the terminal shows itself
}

func (a *app) tablesCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "tables",
		Short: "List the live tables",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client.Client) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				r, err := c.Admin().Tables(ctx, &adminv1.TablesRequest{})
				if err != nil {
					return fmt.Errorf("tables: %w", err)
				}
				if a.output == "json" {
					return a.printProto(r)
				}
				t := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "table\tlevel\tsize\tentries\ttombstones\torigin\tsequences\tsmallest\tlargest")
				for _, x := range r.Tables {
					fmt.Fprintf(t, "%06d\tL%d\t%s\t%d\t%d\t%s%s\t%d-%d\t%s\t%s\n", x.Number, x.Level, humanBytes(x.SizeBytes), x.Entries,
						x.Tombstones, x.Origin, quarantineMark(x.Quarantined), x.MinSequence, x.MaxSequence, x.Smallest, x.Largest)
				}
				return t.Flush()
			})
		},
	}
}

func quarantineMark(q bool) string {
	if q {
		return " QUARANTINED"
	}
	return ""
}
