package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
)

// callTimeout bounds the operator's calls that answer at once.
const callTimeout = 10 * time.Second

func (a *app) statusCmd() *cobra.Command {
	var cluster bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show how the node is: levels, memtables, log, jobs, caches, disk, and how its pod is",
		Long: `status shows how the node is, and what its health-agent thinks of the pod.

--cluster asks each member of the cluster that the node knows, at the address that the member has
declared, and prints a line for each. The exit code is 6 when one that is alive does not answer.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cluster {
				return a.clusterStatus(cmd)
			}
			return a.withClient(func(c *client.Client) error { return a.nodeStatus(cmd.Context(), c) })
		},
	}
	c.Flags().BoolVar(&cluster, "cluster", false, "ask every member of the cluster, one line each")
	return c
}

// nodeStatus shows a node and its pod. A node that recovers, or knows no cluster, has no view of the pod.
func (a *app) nodeStatus(ctx context.Context, c *client.Client) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := c.Admin().Status(ctx, &adminv1.StatusRequest{})
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	pod, err := c.Admin().Members(ctx, &adminv1.MembersRequest{})
	if err != nil {
		pod = nil
	}
	if a.output == "json" {
		return a.printStatusJSON(s, pod)
	}
	printStatus(a.Out, s)
	printPod(a.Out, s, pod)
	return nil
}

// printStatusJSON prints the node's answer with one more field: the pod's.
func (a *app) printStatusJSON(s *adminv1.StatusResponse, pod *adminv1.MembersResponse) error {
	node, err := asJSON(s)
	if err != nil {
		return err
	}
	out := map[string]json.RawMessage{}
	if err := json.Unmarshal(node, &out); err != nil {
		return err
	}
	if pod != nil {
		// The members have a command of their own.
		if out["pod"], err = asJSON(&adminv1.MembersResponse{AgeMs: pod.GetAgeMs(), Verdict: pod.GetVerdict()}); err != nil {
			return err
		}
	}
	return a.printJSON(out)
}

// printPod says what the health-agent thinks of the pod, and when the node last heard its sidecars.
func printPod(w io.Writer, s *adminv1.StatusResponse, pod *adminv1.MembersResponse) {
	if pod == nil {
		return
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "pod\t%s\n", verdictText(pod))
	for _, r := range pod.GetVerdict().GetDegraded() {
		fmt.Fprintf(t, "degraded\t%s\n", reasonText(r))
	}
	agent := "not heard since the node started"
	if pod.GetAgeMs() >= 0 {
		agent = "heard " + ago(pod.GetAgeMs())
	}
	fmt.Fprintf(t, "health-agent\t%s\n", agent)
	fmt.Fprintf(t, "compactor\t%s\n", compactorText(s.GetWorkers()))
	fmt.Fprintf(t, "members\t%s\n", countMembers(pod.GetMembers()))
	t.Flush() // a failed write to the terminal shows itself
}

// compactorText says when a compactor was heard last. The node's own worker, which has no user id in its
// name, is none.
func compactorText(workers []*adminv1.Worker) string {
	last := int64(-1)
	for _, wk := range workers {
		if strings.Contains(wk.GetId(), "@") && (last < 0 || wk.GetLastSeenMsAgo() < last) {
			last = wk.GetLastSeenMsAgo()
		}
	}
	if last < 0 {
		return "none is connected"
	}
	return "heard " + ago(last)
}

// verdictText is the health-agent's verdict in words.
func verdictText(pod *adminv1.MembersResponse) string {
	v := pod.GetVerdict()
	if v == nil {
		return "no verdict: its health-agent was not heard"
	}
	var why []string
	for _, r := range append(slices.Clone(v.GetNotLive()), v.GetNotReady()...) {
		why = append(why, reasonText(r))
	}
	text := "ready"
	switch {
	case !v.GetLive():
		text = "not live"
	case !v.GetReady():
		text = "not ready"
	}
	if len(why) > 0 {
		text += " (" + strings.Join(why, "; ") + ")"
	}
	return text
}

func reasonText(r *clusterv1.Reason) string {
	return plain(strings.TrimSuffix(r.GetName()+": "+r.GetDetail(), ": "))
}

// countMembers says how many members there are, by what is seen of them.
func countMembers(all []*clusterv1.Member) string {
	counts, order := map[string]int{}, []string{}
	for _, m := range all {
		what := livenessWord(m.GetLiveness())
		if m.GetDeclared().GetState() == clusterv1.MemberState_MEMBER_STATE_REMOVED {
			what = "removed"
		}
		if counts[what] == 0 {
			order = append(order, what)
		}
		counts[what]++
	}
	if len(order) == 0 {
		return "none is known"
	}
	for i, what := range order {
		order[i] = fmt.Sprintf("%d %s", counts[what], what)
	}
	return strings.Join(order, ", ")
}

// ago says how long ago something was, in whole milliseconds below a second.
func ago(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	if d >= time.Second {
		return units.HumanDuration(d) + " ago"
	}
	return d.String() + " ago"
}

// asJSON is an answer of the node as printProto prints it, in one form only.
func asJSON(m proto.Message) (json.RawMessage, error) {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true, UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer // protojson sets spaces by chance
	if err := json.Compact(&out, b); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func (a *app) printProto(m proto.Message) error {
	b, err := asJSON(m)
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
