package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

var (
	// errMove says that a move that was waited for did not succeed.
	errMove = errors.New("not done")
	// errInterrupted says that nobody waits any more.
	errInterrupted = errors.New("interrupted")
)

// waitForMoves waits until all moves are over, or with caughtUp until their targets have what there is.
func (a *app) waitForMoves(ctx context.Context, c *client.Client, all []*movev1.Move, caughtUp bool) error {
	wanted := map[string]bool{}
	var ids []string
	for _, m := range all {
		wanted[m.GetId()] = true
		ids = append(ids, m.GetId())
	}
	r := &adminv1.WatchMovesRequest{IncludeEnded: true}
	if len(ids) == 1 {
		r.Id = ids[0]
	}
	return a.wait(ctx, c, r, ids, func(v *adminv1.MovesResponse) (bool, error) {
		return judgeMoves(v, wanted, caughtUp)
	})
}

// judgeMoves reports whether the wanted moves are done; an error says that one will not be.
func judgeMoves(v *adminv1.MovesResponse, wanted map[string]bool, caughtUp bool) (bool, error) {
	done, met := 0, 0
	for _, m := range v.GetMoves() {
		if !wanted[m.GetId()] {
			continue
		}
		met++
		if err := failure(m); err != nil {
			return false, err
		}
		if m.GetState() == movev1.State_STATE_RELEASED || caughtUp && m.GetVerifiedAtMs() > 0 {
			done++
		}
	}
	if met < len(wanted) {
		return false, fmt.Errorf("%w: the node knows %d of the %d moves only", errMove, met, len(wanted))
	}
	return done == len(wanted), nil
}

// failure is the error of a move that is over and did not succeed.
func failure(m *movev1.Move) error {
	switch m.GetState() {
	case movev1.State_STATE_FAILED:
		return fmt.Errorf("%w: %s to %s %s: %s (mend it, then `pairctl resume %s`)", errMove, plain(m.GetId()),
			plain(m.GetTarget().GetNodeId()), stateText(m), plain(oneLine(m.GetReason())), plain(m.GetId()))
	case movev1.State_STATE_CANCELLED:
		return fmt.Errorf("%w: %s was cancelled: %s", errMove, plain(m.GetId()), plain(oneLine(m.GetReason())))
	}
	return nil
}

// waitForDrain waits until a drain is completed.
func (a *app) waitForDrain(ctx context.Context, c *client.Client, id string) error {
	return a.wait(ctx, c, &adminv1.WatchMovesRequest{IncludeEnded: true, Id: id}, []string{id}, func(v *adminv1.MovesResponse) (bool, error) {
		return judgeDrain(v, id)
	})
}

// judgeDrain reports whether a drain is completed; an error says that it needs a person.
func judgeDrain(v *adminv1.MovesResponse, id string) (bool, error) {
	for _, d := range v.GetDrains() {
		if d.GetId() != id {
			continue
		}
		switch d.GetState() {
		case movev1.DrainState_DRAIN_STATE_COMPLETED:
			return true, nil
		case movev1.DrainState_DRAIN_STATE_CANCELLED:
			return false, fmt.Errorf("%w: the drain was cancelled: %s", errMove, plain(oneLine(d.GetReason())))
		}
		for _, m := range v.GetMoves() {
			if m.GetParent() == id && m.GetState() == movev1.State_STATE_FAILED {
				return false, failure(m)
			}
		}
		return false, nil
	}
	return false, fmt.Errorf("%w: the node does not know the drain %s any more", errMove, tenantName(id))
}

// wait shows the moves until judge is satisfied. Ctrl-C ends the waiting alone.
func (a *app) wait(ctx context.Context, c *client.Client, r *adminv1.WatchMovesRequest, ids []string, judge func(*adminv1.MovesResponse) (bool, error)) error {
	shown := map[string]bool{}
	for _, id := range ids {
		shown[id] = true
	}
	show, end := newTeller(a.Err).show, func() {}
	if bars := newBars(a.Err); bars != nil {
		show, end = bars.show, bars.finish
	}
	defer end()
	err := a.followMoves(ctx, c, r, func(v *adminv1.MovesResponse) (bool, error) {
		if err := show(only(v, shown)); err != nil {
			return false, err
		}
		return judge(v)
	})
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %s goes on; `pairctl moves --watch` shows it, `pairctl cancel %s` calls it off",
			errInterrupted, strings.Join(ids, ", "), ids[0])
	}
	return err
}

// only returns what of a view has or belongs to one of the ids.
func only(v *adminv1.MovesResponse, ids map[string]bool) *adminv1.MovesResponse {
	out := &adminv1.MovesResponse{MigratorLastSeenMsAgo: v.GetMigratorLastSeenMsAgo()}
	for _, m := range v.GetMoves() {
		if ids[m.GetId()] || ids[m.GetParent()] {
			out.Moves = append(out.Moves, m)
		}
	}
	for _, d := range v.GetDrains() {
		if ids[d.GetId()] {
			out.Drains = append(out.Drains, d)
		}
	}
	return out
}

// teller writes a line for each change of state: what is left of bars where there is no terminal.
type teller struct {
	out  io.Writer
	last map[string]string // what was said of a move, a drain or, under "", of the migrator
}

func newTeller(out io.Writer) *teller { return &teller{out: out, last: map[string]string{}} }

func (t *teller) show(v *adminv1.MovesResponse) error {
	for _, d := range v.GetDrains() {
		t.say("drain "+d.GetId(), drainText(d))
	}
	for i := len(v.GetMoves()) - 1; i >= 0; i-- { // the oldest first, as they happened
		m := v.GetMoves()[i]
		text := fmt.Sprintf("%s to %s: %s", plain(m.GetId()), plain(m.GetTarget().GetNodeId()), stateText(m))
		if m.GetReason() != "" {
			text += ": " + noteText(m.GetReason())
		}
		t.say("move "+m.GetId(), text)
	}
	t.say("", migratorWarning(v))
	return nil
}

func (t *teller) say(about, text string) {
	if t.last[about] != text && text != "" {
		fmt.Fprintln(t.out, text)
	}
	t.last[about] = text
}

// bars shows moves on a terminal, a bar for each.
type bars struct {
	pool *mpb.Progress
	bars map[string]*moveBar
	told *teller
}

// moveBar is the bar of one move.
type moveBar struct {
	bar *mpb.Bar
	mu  sync.Mutex
	now *movev1.Move // guarded by mu
}

// newBars returns bars on a terminal, and nil elsewhere.
func newBars(out io.Writer) *bars {
	file, ok := out.(*os.File)
	if !ok || !isTerminal(file) {
		return nil
	}
	return barsOn(out)
}

func barsOn(out io.Writer, options ...mpb.ContainerOption) *bars {
	pool := mpb.New(append([]mpb.ContainerOption{mpb.WithOutput(out), mpb.WithWidth(36)}, options...)...)
	return &bars{pool: pool, bars: map[string]*moveBar{}, told: newTeller(pool)}
}

func (b *bars) show(v *adminv1.MovesResponse) error {
	for _, d := range v.GetDrains() {
		b.told.say("drain "+d.GetId(), drainText(d))
	}
	b.told.say("", migratorWarning(v))
	seen := map[string]bool{}
	for _, m := range v.GetMoves() {
		seen[m.GetId()] = true
		mb := b.bars[m.GetId()]
		if mb == nil {
			mb = b.add(m)
		}
		mb.mu.Lock()
		mb.now = m
		mb.mu.Unlock()
		percent, _ := percentDone(m)
		mb.bar.SetCurrent(int64(percent))
	}
	for id, mb := range b.bars {
		if !seen[id] { // it is over
			mb.bar.Abort(true)
			delete(b.bars, id)
		}
	}
	return nil
}

// migratorWarning is migratorText without the age, which changes each second.
func migratorWarning(v *adminv1.MovesResponse) string {
	if migratorText(v) == "" {
		return ""
	}
	return "the migrator is not heard: nothing goes on until it is back"
}

func (b *bars) add(m *movev1.Move) *moveBar {
	mb := &moveBar{now: m}
	text := func(f func(*movev1.Move) string) decor.Decorator {
		return decor.Any(func(decor.Statistics) string {
			mb.mu.Lock()
			defer mb.mu.Unlock()
			return f(mb.now)
		}, decor.WCSyncSpaceR)
	}
	// One more than a hundred: a bar that is full takes no news any more.
	mb.bar = b.pool.AddBar(101,
		mpb.PrependDecorators(
			text(func(m *movev1.Move) string { return plain(m.GetId()) + " to " + plain(m.GetTarget().GetNodeId()) }),
			text(stateText)),
		mpb.AppendDecorators(text(func(m *movev1.Move) string {
			if ended(m) {
				return noteText(m.GetReason())
			}
			return fmt.Sprintf(" %s, remaining %s, lag %s", rateText(m), remainingText(m), lagText(m))
		})))
	b.bars[m.GetId()] = mb
	return mb
}

// finish leaves the bars as they are.
func (b *bars) finish() {
	for _, mb := range b.bars {
		mb.bar.Abort(false)
	}
	b.pool.Wait()
}
