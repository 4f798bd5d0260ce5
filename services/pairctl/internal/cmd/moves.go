package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

func (a *app) movesCmd() *cobra.Command {
	var all, watch bool
	c := &cobra.Command{
		Use:   "moves [ID]",
		Short: "List the moves and drains of the node, or show one of them",
		Long: `moves lists what the node sends to others: data that is replicated, ranges that are given to their next
owners, replicas that are repaired. copied is how much of the copy is done; lag is how far the target is
behind what is written meanwhile. With the id of a move it shows all that is known of it, with that of a
drain its moves.

--all also lists those that are over. --watch shows live bars on a terminal, and prints the list again
after each change elsewhere, until Ctrl-C.`,
		Args: optionalArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			id := ""
			if len(args) > 0 {
				id = args[0]
			}
			return a.withClient(func(c *client.Client) error {
				if watch {
					return a.watchMoves(cmd.Context(), c, &adminv1.WatchMovesRequest{IncludeEnded: all || id != "", Id: id})
				}
				r, err := moves(cmd.Context(), c, &adminv1.MovesRequest{IncludeEnded: all || id != "", Id: id})
				if err != nil {
					return err
				}
				return a.printMoves(r, id)
			})
		},
	}
	f := c.Flags()
	f.BoolVar(&all, "all", false, "also those that are over")
	f.BoolVarP(&watch, "watch", "w", false, "go on showing them until Ctrl-C")
	return c
}

// moves asks the node for its moves.
func moves(ctx context.Context, c *client.Client, r *adminv1.MovesRequest) (*adminv1.MovesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	v, err := c.Admin().Moves(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("moves: %w", err)
	}
	return v, nil
}

// printMoves prints a list, or the one move that was asked for.
func (a *app) printMoves(v *adminv1.MovesResponse, id string) error {
	if id != "" && len(v.GetMoves())+len(v.GetDrains()) == 0 {
		return fmt.Errorf("%w: the node knows no move or drain %s; `pairctl moves --all` lists those that it remembers", errNotFound, tenantName(id))
	}
	if a.output == "json" {
		return a.printProto(v)
	}
	if id != "" && len(v.GetMoves()) == 1 && v.GetMoves()[0].GetId() == id {
		if err := renderMove(a.Out, v.GetMoves()[0]); err != nil {
			return err
		}
		if text := migratorText(v); text != "" {
			_, err := fmt.Fprintln(a.Out, text)
			return err
		}
		return nil
	}
	return renderMoves(a.Out, v)
}

// watchMoves shows the moves until ctx ends. A node that restarts is waited for.
func (a *app) watchMoves(ctx context.Context, c *client.Client, r *adminv1.WatchMovesRequest) error {
	show, end := a.printEach()
	if bars := newBars(a.Out); bars != nil && a.output != "json" {
		show, end = bars.show, bars.finish
	}
	defer end()
	err := a.followMoves(ctx, c, r, func(v *adminv1.MovesResponse) (bool, error) { return false, show(v) })
	if ctx.Err() != nil {
		return nil // Ctrl-C is how a watch ends
	}
	return err
}

// printEach returns a function that prints each list below the last one.
func (a *app) printEach() (show func(*adminv1.MovesResponse) error, end func()) {
	first := true
	return func(v *adminv1.MovesResponse) error {
		if !first && a.output != "json" {
			fmt.Fprintln(a.Out)
		}
		first = false
		return a.printMoves(v, "")
	}, func() {}
}

// followMoves hands each view to f until it is done, it fails, or ctx ends. A node that goes away after
// it has answered once is waited for.
func (a *app) followMoves(ctx context.Context, c *client.Client, r *adminv1.WatchMovesRequest, f func(*adminv1.MovesResponse) (done bool, err error)) error {
	for first := true; ; {
		done, lost, err := oneStream(ctx, c, r, &first, f)
		switch {
		case done || ctx.Err() != nil:
			return ctx.Err()
		case !lost:
			return err
		case first || client.Code(err) != codes.Unavailable && !errors.Is(err, io.EOF):
			return fmt.Errorf("watch moves: %w", err)
		}
		fmt.Fprintf(a.Err, "note: the node went away (%v); waiting for it\n", err)
		for waited := false; !waited || !answersMoves(ctx, c); waited = true {
			select {
			case <-time.After(watchPause):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

func answersMoves(ctx context.Context, c *client.Client) bool {
	_, err := moves(ctx, c, &adminv1.MovesRequest{})
	return err == nil || ctx.Err() != nil
}

// oneStream hands what one stream brings to f; first is false after its first view. lost says that err
// is the stream's, and not f's.
func oneStream(ctx context.Context, c *client.Client, r *adminv1.WatchMovesRequest, first *bool,
	f func(*adminv1.MovesResponse) (bool, error),
) (done, lost bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Admin().WatchMoves(ctx, r)
	if err != nil {
		return false, true, err
	}
	for {
		v, err := stream.Recv()
		if err != nil {
			return false, true, err
		}
		*first = false
		if done, err := f(v.GetView()); done || err != nil {
			return done && err == nil, false, err
		}
	}
}

func (a *app) cancelCmd() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "cancel ID",
		Short: "Call off a move, or a drain with its moves",
		Long: `cancel calls off a move, or a drain with all its moves. Nothing is lost: the node serves as before. What
the target has got stays there until it is cleaned up. A range that has a new owner already stays with it; those
of a drain come back by themselves, by moves of that owner, and the node is up again.`,
		Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client.Client) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				r, err := c.Admin().CancelMove(ctx, &adminv1.CancelMoveRequest{Id: args[0], Reason: reason})
				if err != nil {
					return fmt.Errorf("cancel %s: %w", tenantName(args[0]), err)
				}
				if a.output == "json" {
					return a.printProto(r)
				}
				if err := a.sayCancelled(r); err != nil || r.GetDrain() == nil {
					return err
				}
				v, err := moves(ctx, c, &adminv1.MovesRequest{IncludeEnded: true, Id: r.GetDrain().GetId()})
				if err != nil {
					return err
				}
				return a.sayGiven(v.GetMoves())
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, kept with it and in the log of the node")
	return c
}

func (a *app) sayCancelled(r *adminv1.CancelMoveResponse) error {
	for _, m := range r.GetMoves() {
		text := "cancelled " + plain(m.GetId())
		if m.GetState() != movev1.State_STATE_CANCELLED {
			text = plain(m.GetId()) + " is to be cancelled: the target is asked first, because it may own the range already"
		}
		if _, err := fmt.Fprintln(a.Out, text); err != nil {
			return err
		}
	}
	if d := r.GetDrain(); d != nil {
		_, err := fmt.Fprintln(a.Out, drainText(d))
		return err
	}
	return nil
}

// sayGiven tells which ranges have a new owner already, and come back.
func (a *app) sayGiven(all []*movev1.Move) error {
	for _, m := range all {
		if s := m.GetState(); !m.GetHandOver() || s < movev1.State_STATE_ACCEPTED || s > movev1.State_STATE_RELEASED {
			continue
		}
		_, err := fmt.Fprintf(a.Out, "%s: %s are served by %s until they are back; the node answers NOT_OWNER with its address meanwhile\n",
			plain(m.GetId()), whatText(m.GetWhat()), plain(m.GetTarget().GetNodeId()))
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *app) finishCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "finish ID",
		Short: "End a move that follows: it is verified once more, and is over then",
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client.Client) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				r, err := c.Admin().FinishMove(ctx, &adminv1.FinishMoveRequest{Id: args[0]})
				if err != nil {
					return fmt.Errorf("finish %s: %w", tenantName(args[0]), err)
				}
				return a.sayMove(r.GetMove(), "%s is verified once more and ends then; `pairctl moves %s` shows it")
			})
		},
	}
}

func (a *app) resumeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "resume ID",
		Short: "Go on with a move that failed, where it stood",
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client.Client) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				r, err := c.Admin().ResumeMove(ctx, &adminv1.ResumeMoveRequest{Id: args[0]})
				if err != nil {
					return fmt.Errorf("resume %s: %w", tenantName(args[0]), err)
				}
				return a.sayMove(r.GetMove(), "%s goes on; `pairctl moves %s` shows it")
			})
		},
	}
}

// sayMove prints a move, or a text with two places for its id.
func (a *app) sayMove(m *movev1.Move, format string) error {
	if a.output == "json" {
		return a.printProto(m)
	}
	return a.say(nil, format, plain(m.GetId()), plain(m.GetId()))
}
