package cmd

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
)

const (
	// memberTimeout bounds the question to one member: one that takes longer is no help either.
	memberTimeout = 5 * time.Second
	// maxAsked is how many members are asked at once.
	maxAsked = 32
)

// answer is what a member said about itself.
type answer struct {
	member *clusterv1.Member
	status *adminv1.StatusResponse // nil if it did not answer
	err    error
}

// must reports whether the member has to answer: it is alive as far as is known.
func (x *answer) must(known bool) bool {
	switch x.member.GetLiveness() {
	case clusterv1.Liveness_LIVENESS_ALIVE, clusterv1.Liveness_LIVENESS_SUSPECT:
		return true
	}
	return !known
}

// clusterStatus asks each member of the cluster that the node knows how it is.
func (a *app) clusterStatus(cmd *cobra.Command) error {
	return a.withClient(func(c *client.Client) error {
		r, err := members(cmd.Context(), c)
		if err != nil {
			return err
		}
		answers := a.askAll(cmd.Context(), r.GetMembers())
		if err := a.printAnswers(r, answers); err != nil {
			return err
		}
		silent := 0
		for i := range answers {
			if answers[i].err != nil && answers[i].must(r.GetAgeMs() >= 0) {
				silent++
			}
		}
		if silent > 0 {
			return fmt.Errorf("%w: %d of %d", errSilent, silent, len(answers))
		}
		return nil
	})
}

// askAll asks all members that were not removed, in their order.
func (a *app) askAll(ctx context.Context, all []*clusterv1.Member) []answer {
	var answers []answer
	for _, m := range all {
		if m.GetDeclared().GetState() != clusterv1.MemberState_MEMBER_STATE_REMOVED {
			answers = append(answers, answer{member: m})
		}
	}
	places := make(chan struct{}, maxAsked)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			answers[i].status, answers[i].err = a.ask(ctx, answers[i].member.GetDeclared())
		})
	}
	wg.Wait()
	return answers
}

// ask asks one member at its address. That another node answers there is no answer.
func (a *app) ask(ctx context.Context, d *clusterv1.Declaration) (*adminv1.StatusResponse, error) {
	if d.GetGrpcAddr() == "" {
		return nil, status.Error(codes.Unavailable, "its address is not known")
	}
	c, err := a.dial(d.GetGrpcAddr(), client.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	s, err := c.Admin().Status(ctx, &adminv1.StatusRequest{})
	if err == nil && s.GetNodeId() != d.GetNodeId() {
		return nil, status.Errorf(codes.Unavailable, "%s answers there", plain(s.GetNodeId()))
	}
	return s, err
}

func (a *app) printAnswers(r *adminv1.MembersResponse, answers []answer) error {
	if a.output == "json" {
		return a.printAnswersJSON(r, answers)
	}
	t := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "node\tdeclared\tliveness\tstate\tready\ttables\tdisk free\tpressure\tworkers\tversion\tnote")
	for i := range answers {
		x := &answers[i]
		d := x.member.GetDeclared()
		fmt.Fprintf(t, "%s\t%s\t%s\t", d.GetNodeId(), stateWord(d.GetState()), livenessWord(x.member.GetLiveness()))
		if x.err != nil {
			fmt.Fprintf(t, "no answer\t-\t-\t-\t-\t-\t-\t%s: %s\n", plain(d.GetGrpcAddr()), cause(x.err))
			continue
		}
		s := x.status
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", s.GetState(), readiness(x.member), levelTables(s.GetLevels()),
			diskFree(s.GetDisk()), s.GetWritePressure(), len(s.GetWorkers()), s.GetVersion(), degradedWords(s.GetDegraded()))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(a.Out, freshness(r))
	return err
}

// printAnswersJSON prints an object for each member.
func (a *app) printAnswersJSON(r *adminv1.MembersResponse, answers []answer) error {
	all := make([]map[string]any, len(answers))
	for i := range answers {
		x := &answers[i]
		member, err := asJSON(x.member)
		if err != nil {
			return err
		}
		all[i] = map[string]any{"member": member}
		if x.err != nil {
			all[i]["error"] = x.err.Error()
			continue
		}
		if all[i]["status"], err = asJSON(x.status); err != nil {
			return err
		}
	}
	return a.printJSON(map[string]any{"age_ms": r.GetAgeMs(), "members": all})
}

func diskFree(d *adminv1.Disk) string {
	if d == nil {
		return "-" // it recovers
	}
	return humanBytes(d.GetFreeBytes())
}

// levelTables counts the tables of a tree, and names the levels that have some.
func levelTables(levels []*adminv1.Level) string {
	total, text := int64(0), ""
	for _, l := range levels {
		if l.GetTables() > 0 {
			total += l.GetTables()
			text += fmt.Sprintf(" L%d:%d", l.GetLevel(), l.GetTables())
		}
	}
	if total == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", total, strings.TrimSpace(text))
}

// degradedWords are the first words of what is wrong, or a dash.
func degradedWords(problems []string) string {
	words := make([]string, len(problems))
	for i, p := range problems {
		words[i], _, _ = strings.Cut(p, ":")
	}
	return plain(strings.Join(words, ", "))
}

// cause makes an error fit into a table.
func cause(err error) string {
	const maxLength = 120
	text := strings.Join(strings.Fields(status.Convert(err).Message()), " ")
	if _, inner, ok := strings.Cut(text, "Error while dialing: "); ok { // gRPC's words around it say no more
		text = strings.TrimSuffix(inner, `"`)
	}
	return plain(text[:min(len(text), maxLength)])
}
