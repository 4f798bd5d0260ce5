package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
)

func (a *app) membersCmd() *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use:   "members",
		Short: "List the members of the cluster as the node knows them",
		Long: `members lists the cluster as the node knows it. state is what a member has declared: joining, up,
draining, drained, removed. liveness is what the node's health-agent sees of it: alive, suspect, down,
left (it said goodbye), unseen (declared, and not met since).

--watch prints the list again after each change, until Ctrl-C.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client.Client) error {
				if watch {
					return a.watchMembers(cmd.Context(), c)
				}
				r, err := members(cmd.Context(), c)
				if err != nil {
					return err
				}
				return a.printMembers(r)
			})
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "print the list again after each change")
	c.AddCommand(a.membersRemoveCmd())
	return c
}

// members asks a node for the cluster.
func members(ctx context.Context, c *client.Client) (*adminv1.MembersResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := c.Admin().Members(ctx, &adminv1.MembersRequest{})
	if err != nil {
		return nil, fmt.Errorf("members: %w", err)
	}
	return r, nil
}

func (a *app) membersRemoveCmd() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "remove NODE --reason TEXT",
		Short: "Declare a member removed that will not come back",
		Long: `remove declares that a member will not come back. That is remembered, so that old news can't bring it
back. One that is alive is refused. Any other member can be asked; the rest of the cluster learns it by
gossip.`,
		Args: exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return fmt.Errorf("%w: --reason says for the log why the member is removed", errUsage)
			}
			return a.withClient(func(c *client.Client) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				r, err := c.Admin().RemoveMember(ctx, &adminv1.RemoveMemberRequest{NodeId: args[0], Reason: reason})
				if err != nil {
					return fmt.Errorf("remove member %s: %w", tenantName(args[0]), err)
				}
				if a.output == "json" {
					return a.printProto(r)
				}
				return a.say(nil, "removed %s, version %d of its declaration", args[0], r.GetDeclared().GetVersion())
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the log of the node; required")
	return c
}

// watchPause is how long a watch waits before it asks a node again that went away.
const watchPause = time.Second

// watchMembers prints the list after each change until ctx ends. A node that restarts is waited for.
func (a *app) watchMembers(ctx context.Context, c *client.Client) error {
	for first := true; ; {
		err := a.followMembers(ctx, c, &first)
		if ctx.Err() != nil {
			return nil // Ctrl-C is how a watch ends
		}
		if first || client.Code(err) != codes.Unavailable && !errors.Is(err, io.EOF) {
			return fmt.Errorf("watch members: %w", err)
		}
		fmt.Fprintf(a.Err, "note: the node went away (%v); waiting for it\n", err)
		for waited := false; !waited || !reachable(ctx, c); waited = true {
			select {
			case <-time.After(watchPause):
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// reachable reports whether the node answers.
func reachable(ctx context.Context, c *client.Client) bool {
	_, err := members(ctx, c)
	return err == nil || ctx.Err() != nil
}

// followMembers prints what one stream brings; first is false after its first list.
func (a *app) followMembers(ctx context.Context, c *client.Client, first *bool) error {
	stream, err := c.Admin().WatchMembers(ctx, &adminv1.WatchMembersRequest{})
	if err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if !*first && a.output != "json" {
			fmt.Fprintln(a.Out)
		}
		*first = false
		if err := a.printMembers(r.GetView()); err != nil {
			return err
		}
	}
}

// printMembers prints a table with a line for each member and one on how fresh it is.
func (a *app) printMembers(r *adminv1.MembersResponse) error {
	if a.output == "json" {
		return a.printProto(r)
	}
	t := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "node\tstate\tliveness\tsince\tready\tdisk\tversion\taddress\tzone")
	for _, m := range r.GetMembers() {
		d := m.GetDeclared()
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.GetNodeId(), stateWord(d.GetState()), livenessWord(m.GetLiveness()),
			instant(m.GetSinceMs()), readiness(m), diskUse(m), plain(m.GetVersion()), plain(d.GetGrpcAddr()), plain(d.GetZone()))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(a.Out, freshness(r))
	return err
}

// freshness says since when what is seen of members is so.
func freshness(r *adminv1.MembersResponse) string {
	if r.GetAgeMs() < 0 {
		return "the health-agent was not heard since the node started: who is alive is not known"
	}
	age := time.Duration(r.GetAgeMs()) * time.Millisecond
	if age < freshAge {
		return "seen by the health-agent just now"
	}
	return fmt.Sprintf("seen by the health-agent %s ago", units.HumanDuration(age))
}

// freshAge is what a health-agent that works takes between two reports, and more.
const freshAge = 5 * time.Second

func stateWord(s clusterv1.MemberState) string { return word("MEMBER_STATE_", s.String()) }
func livenessWord(l clusterv1.Liveness) string { return word("LIVENESS_", l.String()) }

// seen reports whether something was seen of a member, and is not only remembered.
func seen(m *clusterv1.Member) bool {
	return m.GetLiveness() != clusterv1.Liveness_LIVENESS_UNSEEN && m.GetLiveness() != clusterv1.Liveness_LIVENESS_UNSPECIFIED
}

func instant(ms int64) string {
	if ms == 0 {
		return "-"
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339)
}

// readiness is the verdict on the member's pod; one that does not answer has none.
func readiness(m *clusterv1.Member) string {
	switch m.GetLiveness() {
	case clusterv1.Liveness_LIVENESS_ALIVE, clusterv1.Liveness_LIVENESS_SUSPECT:
	default:
		return "-"
	}
	out := "no"
	if m.GetReady() {
		out = "yes"
	}
	if len(m.GetDegraded()) > 0 {
		out += " (" + plain(strings.Join(m.GetDegraded(), ", ")) + ")"
	}
	return out
}

func diskUse(m *clusterv1.Member) string {
	if !seen(m) {
		return "-"
	}
	return fmt.Sprintf("%d %%", m.GetDiskUsedPercent())
}

// plain is a text of a member that can stand in a table: what a terminal would obey is replaced, and
// nothing is a dash.
func plain(s string) string {
	if s == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
