package cmd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// minRate is the lowest limit that the node takes, in bytes per second.
const minRate = 64 << 10

// moveFlags are common to what makes moves.
type moveFlags struct {
	id, start, end, rate string
	keys, hashes         []string
	targets              []string
	wait                 bool
}

func (o *moveFlags) add(f *pflag.FlagSet) {
	f.StringVar(&o.id, "id", "", "name of the move: the same command again makes no second one")
	f.StringVar(&o.start, "start", "", "only keys of the tenant not before this one")
	f.StringVar(&o.end, "end", "", "only keys of the tenant before this one")
	f.StringArrayVar(&o.keys, "key", nil, "only this key of the tenant; can be repeated")
	f.StringArrayVar(&o.hashes, "hash-range", nil, "only keys whose hash is in START-END, as pairctl ranges --all prints them; can be repeated")
	f.StringVar(&o.rate, "limit", "", "send at most this much per second, e.g. 16MiB; the migrator's own limit counts besides")
	f.BoolVar(&o.wait, "wait", false, "show the progress and wait; exit code 1 if a move fails")
}

// selection is what the flags name. The tenant counts when it was given, or keys of it are.
func (a *app) selection(cmd *cobra.Command, o moveFlags) (*movev1.Selection, error) {
	s := &movev1.Selection{Keys: o.keys}
	ranged := o.start != "" || o.end != ""
	if ranged && len(o.keys) > 0 {
		return nil, errors.New("--key can't be combined with --start and --end")
	}
	if o.end != "" && o.end <= o.start {
		return nil, fmt.Errorf("--end %q is not after --start %q", o.end, o.start)
	}
	if ranged {
		s.Range = &datav1.KeyRange{Start: o.start, End: o.end}
	}
	if ranged || len(o.keys) > 0 || cmd.Flags().Changed("tenant") || os.Getenv("PAIRDB_TENANT") != "" {
		s.Tenant = a.tenant
	}
	for _, text := range o.hashes {
		r, err := parseHashRange(text)
		if err != nil {
			return nil, err
		}
		s.HashRanges = append(s.HashRanges, r)
	}
	return s, nil
}

// parseHashRange reads START-END, decimal or with 0x.
func parseHashRange(text string) (*datav1.HashRange, error) {
	first, last, ok := strings.Cut(text, "-")
	start, err := strconv.ParseUint(first, 0, 64)
	end, endErr := strconv.ParseUint(last, 0, 64)
	if !ok || err != nil || endErr != nil {
		return nil, fmt.Errorf("--hash-range is START-END, two numbers of 64 bits such as 0x4000000000000000-0x8000000000000000, not %q", text)
	}
	return &datav1.HashRange{Start: start, End: end}, nil
}

// parseTargets reads NODE or NODE=HOST:PORT.
func parseTargets(texts []string) ([]*movev1.Target, error) {
	var all []*movev1.Target
	for _, text := range texts {
		node, addr, _ := strings.Cut(text, "=")
		if node == "" {
			return nil, fmt.Errorf("a target is NODE or NODE=HOST:PORT, not %q", text)
		}
		all = append(all, &movev1.Target{NodeId: node, Addr: addr})
	}
	return all, nil
}

// parseRate reads --limit, in bytes per second.
func parseRate(text string, least int64) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(strings.TrimSuffix(text, "/s"))
	if err != nil {
		return 0, fmt.Errorf("--limit is a size such as 16MiB, not %q", text)
	}
	if n < least {
		return 0, fmt.Errorf("--limit is at least %s, not %q", humanBytes(least), text)
	}
	return n, nil
}

// idFor returns the id that was given, or a new one: a call that is repeated after a broken connection
// must not move twice.
func idFor(given, verb string) string {
	if given != "" {
		return given
	}
	return verb + "-" + strings.ToLower(rand.Text()[:10])
}

func (a *app) replicateCmd() *cobra.Command {
	var o moveFlags
	var follow bool
	c := &cobra.Command{
		Use:   "replicate --to NODE[,NODE]",
		Short: "Copy data of the node to other nodes, and compare it there",
		Long: `replicate copies what the node has to other nodes, sends what is written meanwhile, compares both sides
and ends when they are equal. Without a selection that is everything; --tenant, --start, --end, --key and
--hash-range narrow it down. What the targets have besides stays: copies are merged, never put in place
of what is newer.

With --follow it does not end: the targets go on getting what is written, until pairctl finish or
cancel. With --wait it shows the progress until the moves are over (of --follow: until the targets have
caught up and were compared); Ctrl-C ends the waiting and not the moves.

A target is the name of a member, or NODE=HOST:PORT.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := a.replicateRequest(cmd, o, follow)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return a.order(cmd, o.wait, follow, func(ctx context.Context, c adminv1.AdminServiceClient) (made, error) {
				return c.Replicate(ctx, req)
			})
		},
	}
	f := c.Flags()
	o.add(f)
	f.StringSliceVar(&o.targets, "to", nil, "nodes that get it")
	f.BoolVar(&follow, "follow", false, "go on sending what is written")
	return c
}

func (a *app) replicateRequest(cmd *cobra.Command, o moveFlags, follow bool) (*adminv1.ReplicateRequest, error) {
	targets, what, rate, err := a.ordered(cmd, o)
	if err == nil && len(targets) == 0 {
		err = errors.New("--to says which nodes get it; `pairctl members` lists them")
	}
	if err != nil {
		return nil, err
	}
	mode := movev1.Mode_MODE_ONCE
	if follow {
		mode = movev1.Mode_MODE_FOLLOW
	}
	return &adminv1.ReplicateRequest{
		Id: idFor(o.id, "replicate"), What: what, Targets: targets, Mode: mode,
		Purpose: movev1.Purpose_PURPOSE_REPLICATE, MaxBytesPerSecond: rate,
	}, nil
}

func (a *app) repairCmd() *cobra.Command {
	var o moveFlags
	c := &cobra.Command{
		Use:   "repair [--with NODE]",
		Short: "Compare the node with its replicas now, and exchange what differs",
		Long: `repair compares what the node has with other nodes and exchanges, both ways, what differs. Nodes do that by
themselves all the time; this is for not waiting. Without --with it is every replica of what is compared;
without a selection that is every range that the node shares. pairctl ranges shows since when they are
equal.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			targets, what, rate, err := a.ordered(cmd, o)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			req := &adminv1.RepairRequest{Id: idFor(o.id, "repair"), What: what, Targets: targets, MaxBytesPerSecond: rate}
			return a.order(cmd, o.wait, false, func(ctx context.Context, c adminv1.AdminServiceClient) (made, error) {
				return c.Repair(ctx, req)
			})
		},
	}
	f := c.Flags()
	o.add(f)
	f.StringSliceVar(&o.targets, "with", nil, "nodes that it is compared with")
	return c
}

// ordered reads the flags that say what goes where, and how fast.
func (a *app) ordered(cmd *cobra.Command, o moveFlags) (targets []*movev1.Target, what *movev1.Selection, rate int64, err error) {
	if targets, err = parseTargets(o.targets); err != nil {
		return nil, nil, 0, err
	}
	if what, err = a.selection(cmd, o); err != nil {
		return nil, nil, 0, err
	}
	rate, err = parseRate(o.rate, minRate)
	return targets, what, rate, err
}

// made is an answer that says which moves were made.
type made interface {
	proto.Message
	GetMoves() []*movev1.Move
}

// order asks the node for moves and tells them, or waits for them: with caughtUp until their targets have what
// there is.
func (a *app) order(cmd *cobra.Command, wait, caughtUp bool, ask func(context.Context, adminv1.AdminServiceClient) (made, error)) error {
	return a.withClient(func(c *client.Client) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
		defer cancel()
		r, err := ask(ctx, c.Admin())
		if err != nil {
			return fmt.Errorf("%s: %w", cmd.Name(), err)
		}
		if !wait {
			return a.sayMoves(r)
		}
		return a.waitAndSay(cmd.Context(), c, r.GetMoves(), caughtUp)
	})
}

// sayMoves tells which moves were made.
func (a *app) sayMoves(answer made) error {
	if a.output == "json" {
		return a.printProto(answer)
	}
	if len(answer.GetMoves()) == 0 {
		return a.say(nil, "nothing to do: the node shares nothing of it with anybody")
	}
	for _, m := range answer.GetMoves() {
		if err := a.say(nil, "%s: %s to %s", plain(m.GetId()), whatText(m.GetWhat()), plain(m.GetTarget().GetNodeId())); err != nil {
			return err
		}
	}
	return a.say(nil, "`pairctl moves --watch` shows the progress, `pairctl cancel ID` calls it off")
}

// waitAndSay waits for moves and tells what they did.
func (a *app) waitAndSay(ctx context.Context, c *client.Client, all []*movev1.Move, caughtUp bool) error {
	if len(all) == 0 {
		return a.sayMoves(&adminv1.MovesResponse{})
	}
	if err := a.waitForMoves(ctx, c, all, caughtUp); err != nil {
		return err
	}
	v := &adminv1.MovesResponse{}
	for _, m := range all {
		r, err := moves(ctx, c, &adminv1.MovesRequest{IncludeEnded: true, Id: m.GetId()})
		if err != nil {
			return err
		}
		v.Moves = append(v.Moves, r.GetMoves()...)
	}
	if a.output == "json" {
		return a.printProto(v)
	}
	for _, m := range v.GetMoves() {
		if err := a.say(nil, "%s", doneText(m)); err != nil {
			return err
		}
	}
	return nil
}

// doneText says what a move has done.
func doneText(m *movev1.Move) string {
	p := m.GetProgress()
	way := fmt.Sprintf("%s to %s", plain(m.GetId()), plain(m.GetTarget().GetNodeId()))
	if m.GetPurpose() == movev1.Purpose_PURPOSE_REPAIR {
		return fmt.Sprintf("%s: equal; %d keys compared, %d differed", way, p.GetComparedKeys(), p.GetRepairedKeys())
	}
	state := "done"
	if !ended(m) {
		state = "caught up, and follows"
	}
	return fmt.Sprintf("%s: %s; %d records copied (%s), %d sent after that, %d keys compared, %d repaired", way, state,
		p.GetCopiedRecords(), humanBytes(p.GetCopiedBytes()), p.GetTailedRecords(), p.GetComparedKeys(), p.GetRepairedKeys())
}
