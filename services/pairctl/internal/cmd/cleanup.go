package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
)

func (a *app) cleanupCmd() *cobra.Command {
	var dryRun, cluster bool
	var rate string
	var atOnce int
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what the node holds of ranges that are not its own any more",
		Long: `cleanup removes what the node holds of ranges that others own now, and returns when the space is free. It
is never done by itself: until then a move can be taken back without sending everything again.

--cluster does it on every member that is up, a few at a time, at the address that the member has
declared. --dry-run tells what would go, and leaves it.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := parseRate(rate, 1)
			switch {
			case err != nil:
			case cmd.Flags().Changed("at-once") && !cluster:
				err = errors.New("--at-once belongs to --cluster")
			case atOnce < 1 || atOnce > maxAsked:
				err = fmt.Errorf("--at-once is 1 to %d, not %d", maxAsked, atOnce)
			}
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			req := &adminv1.CleanupRequest{DryRun: dryRun, MaxBytesPerSecond: n}
			return a.withClient(func(c *client.Client) error {
				if cluster {
					return a.cleanCluster(cmd.Context(), c, req, atOnce)
				}
				return a.cleanNode(cmd.Context(), c, req)
			})
		},
	}
	f := c.Flags()
	f.BoolVar(&dryRun, "dry-run", false, "tell what would go, and leave it")
	f.StringVar(&rate, "limit", "", "merge at most this much per second, e.g. 16MiB")
	f.BoolVar(&cluster, "cluster", false, "on every member that is up")
	f.IntVar(&atOnce, "at-once", 2, "of --cluster: this many members at once")
	return c
}

// clean cleans one node and returns its last word; progress gets each.
func clean(ctx context.Context, c *client.Client, r *adminv1.CleanupRequest, progress func(*adminv1.CleanupProgress)) (*adminv1.CleanupProgress, error) {
	stream, err := c.Admin().Cleanup(ctx, r)
	if err != nil {
		return nil, err
	}
	last := &adminv1.CleanupProgress{}
	for {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if !last.GetFinished() {
				return nil, errors.New("the node ended the call and did not say that it is done")
			}
			return last, nil
		}
		if err != nil {
			return nil, err
		}
		last = p
		progress(p)
	}
}

func (a *app) cleanNode(ctx context.Context, c *client.Client, r *adminv1.CleanupRequest) error {
	bar := newProgress(a.Err, "cleanup", 0)
	var done int64
	last, err := clean(ctx, c, r, func(p *adminv1.CleanupProgress) {
		bar.setTotal(p.GetTotalBytes())
		bar.add(p.GetDoneBytes() - done)
		done = p.GetDoneBytes()
	})
	bar.finish()
	if err != nil {
		return fmt.Errorf("cleanup: %w (what is done stays done; the same command goes on)", err)
	}
	if a.output == "json" {
		return a.printProto(last)
	}
	return a.say(nil, "%s", cleanedText(last, r.GetDryRun()))
}

// cleanedText says what a clean-up did, or would do.
func cleanedText(p *adminv1.CleanupProgress, dryRun bool) string {
	switch {
	case len(p.GetRanges()) == 0 && p.GetDroppedRecords() == 0:
		return "nothing to clean up"
	case dryRun:
		return fmt.Sprintf("%d ranges would be cleaned up, about %s merged", len(p.GetRanges()), humanBytes(p.GetTotalBytes()))
	}
	return fmt.Sprintf("cleaned up %d ranges: %d records dropped, %s merged", len(p.GetRanges()), p.GetDroppedRecords(), humanBytes(p.GetDoneBytes()))
}

// cleaned is what became of one member.
type cleaned struct {
	node string
	last *adminv1.CleanupProgress
	err  error
}

// cleanCluster cleans all members that are up. One that fails does not stop the others.
func (a *app) cleanCluster(ctx context.Context, c *client.Client, r *adminv1.CleanupRequest, atOnce int) error {
	view, err := members(ctx, c)
	if err != nil {
		return err
	}
	var all []*clusterv1.Declaration
	for _, m := range view.GetMembers() {
		switch m.GetDeclared().GetState() {
		case clusterv1.MemberState_MEMBER_STATE_UP, clusterv1.MemberState_MEMBER_STATE_DRAINING:
			all = append(all, m.GetDeclared()) // one that joins, or is drained, owns nothing yet or any more
		}
	}
	results := make([]cleaned, len(all))
	places := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	var mu sync.Mutex // of a.Err
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(a.Err, format+"\n", args...)
	}
	for i, d := range all {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			results[i] = a.cleanMember(ctx, d, r, say)
		})
	}
	wg.Wait()
	return a.sayCleaned(results, r.GetDryRun())
}

// cleanMember cleans one member, after it has said that it is the one.
func (a *app) cleanMember(ctx context.Context, d *clusterv1.Declaration, r *adminv1.CleanupRequest, say func(string, ...any)) cleaned {
	out := cleaned{node: d.GetNodeId()}
	if _, out.err = a.ask(ctx, d); out.err != nil {
		return out
	}
	c, err := a.dial(d.GetGrpcAddr(), client.Options{})
	if err != nil {
		out.err = err
		return out
	}
	defer c.Close()
	step := int64(-1)
	out.last, out.err = clean(ctx, c, r, func(p *adminv1.CleanupProgress) {
		if total := p.GetTotalBytes(); total > 0 && 10*p.GetDoneBytes()/total > step && !p.GetFinished() {
			step = 10 * p.GetDoneBytes() / total
			say("%s: %s of about %s", plain(d.GetNodeId()), humanBytes(p.GetDoneBytes()), humanBytes(total))
		}
	})
	return out
}

func (a *app) sayCleaned(results []cleaned, dryRun bool) error {
	var failed []string
	lines := make([]map[string]any, len(results))
	t := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	for i, r := range results {
		lines[i] = map[string]any{"node_id": r.node}
		if r.err != nil {
			failed = append(failed, plain(r.node))
			lines[i]["error"] = r.err.Error()
			fmt.Fprintf(t, "%s\tfailed: %s\n", plain(r.node), cause(r.err))
			continue
		}
		last, err := asJSON(r.last)
		if err != nil {
			return err
		}
		lines[i]["cleanup"] = last
		fmt.Fprintf(t, "%s\t%s\n", plain(r.node), cleanedText(r.last, dryRun))
	}
	if a.output == "json" {
		if err := a.printJSON(map[string]any{"members": lines}); err != nil {
			return err
		}
	} else if err := t.Flush(); err != nil {
		return err
	}
	if len(failed) > 0 {
		return fmt.Errorf("cleanup failed on %s: the same command does them again, the others have nothing to do then", strings.Join(failed, ", "))
	}
	return nil
}
