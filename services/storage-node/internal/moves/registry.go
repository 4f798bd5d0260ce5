package moves

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// systemTenant holds moves and drains.
const systemTenant = "_moves"

// Options configure a registry. Zero values mean the default named with each field.
type Options struct {
	// NodeID is the node's own name, Incarnation that of its data directory; both are required. What another
	// incarnation had under way is over: the directory was restored or adopted.
	NodeID, Incarnation string
	// JoinAtOnce: a node whose data directory is new wants to be UP, and not JOINING until it was
	// bootstrapped.
	JoinAtOnce bool
	// Declared returns what the node has declared in this incarnation, 0 for nothing: nothing.
	Declared func() membership.State
	// Log gets a line for each change of a state: nothing is logged.
	Log *slog.Logger
	// Changed is called after each change, in the order of the changes, and after progress; it must return
	// at once: nobody is told.
	Changed func(Change)
	// Problem is called when what Damage returns has changed: nobody is told.
	Problem func(error)
	// Now is time.Now.
	Now func() time.Time
}

// Registry is the moves and drains of a node. It is safe for concurrent use.
type Registry struct {
	// Immutable after Open.
	o       Options
	records store.System

	state atomic.Pointer[state]
	// bytes counts what was sent for moves since the process started.
	bytes atomic.Int64
	// ended counts moves that ended since the process started, by purpose and result.
	ended [PurposeStream + 1][resultCount]atomic.Int64

	// changing is held by who changes the state; a semaphore, so that waiting for it can be given up.
	changing *semaphore.Weighted
	// unreadable is guarded by changing: why records can't be read, by key; "" stands for all that were
	// not even found.
	unreadable map[string]error
}

// state is what is known at one moment; it is immutable.
type state struct {
	moves  map[string]*Move
	drains map[string]*Drain
	wanted membership.State
	// wantedVersion is that of the record; 0: there is none.
	wantedVersion uint64

	view    View
	active  *Drain
	damage  error
	changed chan struct{}
	touched chan struct{}
}

// View is what there is at one moment. It is shared: nobody changes it.
type View struct {
	// Moves are the newest first, those that are over among them.
	Moves []*Move
	// Drains are the newest first; at most one is not over.
	Drains []*Drain
	// Wanted is what the node wants to be declared as.
	Wanted membership.State
	// Changed is closed when a durable change came after, Touched also when there is other progress.
	Changed, Touched <-chan struct{}
}

// Change is what Options.Changed is told.
type Change struct {
	// Before and After are of a move; Before is nil for a new one. Nobody changes them.
	Before, After *Move
	// DrainBefore and DrainAfter are of a drain.
	DrainBefore, DrainAfter *Drain
}

// New returns a registry without moves.
func New(o Options) *Registry {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Declared == nil {
		o.Declared = func() membership.State { return 0 }
	}
	if o.Changed == nil {
		o.Changed = func(Change) {}
	}
	if o.Problem == nil {
		o.Problem = func(error) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Registry{o: o, changing: semaphore.NewWeighted(1), unreadable: map[string]error{}}
	first := &state{
		moves: map[string]*Move{}, drains: map[string]*Drain{}, wanted: membership.Joining,
		changed: make(chan struct{}), touched: make(chan struct{}),
	}
	first.view = View{Wanted: first.wanted, Changed: first.changed, Touched: first.touched}
	r.state.Store(first)
	return r
}

// View returns what there is now.
func (r *Registry) View() View { return r.state.Load().view }

// Get returns a move, or MOVE_NOT_FOUND.
func (r *Registry) Get(id string) (*Move, error) { return r.state.Load().get(id) }

func (s *state) get(id string) (*Move, error) {
	if m, ok := s.moves[id]; ok {
		return m, nil
	}
	return nil, refuse(store.ReasonMoveNotFound, "no move %.64q is known to this node", id)
}

// List returns moves, the newest first.
func (r *Registry) List(includeEnded bool) []*Move {
	all := r.View().Moves
	if includeEnded {
		return all
	}
	var out []*Move
	for _, m := range all {
		if m.Active() {
			out = append(out, m)
		}
	}
	return out
}

// Holds reports whether anything may be held for a move: it is known and not over.
func (r *Registry) Holds(id string) bool {
	m, ok := r.state.Load().moves[id]
	return ok && m.Active()
}

// Drain returns the drain that is not over, or nil.
func (r *Registry) Drain() *Drain { return r.state.Load().active }

// Wanted returns what the node wants to be declared as; JOINING before Open.
func (r *Registry) Wanted() membership.State { return r.state.Load().wanted }

// Damage returns why moves can't be read, nil if all can.
func (r *Registry) Damage() error { return r.state.Load().damage }

// edit is a change of the state that is being made. All of it happens at one time, at, in milliseconds since the
// Unix epoch.
type edit struct {
	at      int64
	next    *state
	writes  []store.Op
	changes []Change
}

// begin returns an edit of the state as it is. changing is held.
func (r *Registry) begin() *edit {
	old := r.state.Load()
	return &edit{at: r.o.Now().UnixMilli(), next: &state{
		moves: maps.Clone(old.moves), drains: maps.Clone(old.drains), wanted: old.wanted, wantedVersion: old.wantedVersion,
		changed: old.changed, touched: old.touched,
	}}
}

// put adds the durable change of a move; what is true for a new one.
func (e *edit) put(r *Registry, before, after *Move, what bool) error {
	after.UpdatedAt = e.at
	after.Version++
	value, err := encodeMove(after, r.o.Incarnation)
	if err != nil {
		return err
	}
	e.write(movePrefix+after.ID, value)
	if what {
		if value, err = encodeWhat(&after.What); err != nil {
			return err
		}
		e.write(whatPrefix+after.ID, value)
	}
	e.next.moves[after.ID] = after
	e.changes = append(e.changes, Change{Before: before, After: after})
	return nil
}

// putDrain adds the durable change of a drain.
func (e *edit) putDrain(r *Registry, before, after *Drain) error {
	after.UpdatedAt = e.at
	after.Version++
	value, err := encodeDrain(after, r.o.Incarnation)
	if err != nil {
		return err
	}
	e.write(drainPrefix+after.ID, value)
	e.next.drains[after.ID] = after
	e.changes = append(e.changes, Change{DrainBefore: before, DrainAfter: after})
	return nil
}

// putWanted adds the durable change of what the node wants to be declared as.
func (e *edit) putWanted(r *Registry, s membership.State) error {
	e.next.wanted = s
	e.next.wantedVersion++
	value, err := encode(&wantedRecord{V: recordVersion, Incarnation: r.o.Incarnation, Version: e.next.wantedVersion, State: s})
	if err != nil {
		return err
	}
	e.write(wantedKey, value)
	return nil
}

// write adds a record. Nobody but this node writes them, so each supersedes all that is there, also what
// an earlier attempt of unknown end left.
func (e *edit) write(key string, value []byte) {
	e.writes = append(e.writes, store.Op{Kind: store.Put, Key: key, Value: value})
}

// commit makes an edit durable and then the state that is known. changing is held.
func (r *Registry) commit(ctx context.Context, e *edit) error {
	e.forget()
	if len(e.writes) > 0 {
		if _, err := r.records.WriteAll(ctx, e.writes); err != nil {
			return fmt.Errorf("moves: %w", err)
		}
	}
	for i := range e.writes {
		delete(r.unreadable, e.writes[i].Key)
	}
	r.enter(e.next, true)
	for _, c := range e.changes {
		r.log(c)
		r.count(c)
		r.o.Changed(c)
	}
	return nil
}

// forget removes what is over and too old to be remembered.
func (e *edit) forget() {
	var ended []*Move
	size := 0
	for _, m := range e.next.moves {
		if !m.Active() {
			ended = append(ended, m)
			size += m.What.bytes()
		}
	}
	slices.SortFunc(ended, func(a, b *Move) int {
		return cmp.Or(cmp.Compare(a.UpdatedAt, b.UpdatedAt), cmp.Compare(a.ID, b.ID))
	})
	// A batch holds 1,000 operations; the rest goes with the next change.
	for n := len(ended); n > 0 && (n > MaxEnded || size > MaxEndedBytes) && len(e.writes) < store.MaxBatchOps-2; n-- {
		m := ended[len(ended)-n]
		size -= m.What.bytes()
		delete(e.next.moves, m.ID)
		e.writes = append(e.writes, store.Op{Kind: store.Delete, Key: movePrefix + m.ID}, store.Op{Kind: store.Delete, Key: whatPrefix + m.ID})
	}
	var drains []*Drain
	for _, d := range e.next.drains {
		if d.State.Ended() {
			drains = append(drains, d)
		}
	}
	slices.SortFunc(drains, func(a, b *Drain) int {
		return cmp.Or(cmp.Compare(a.UpdatedAt, b.UpdatedAt), cmp.Compare(a.ID, b.ID))
	})
	for i := 0; i < len(drains)-MaxEndedDrains && len(e.writes) < store.MaxBatchOps; i++ {
		delete(e.next.drains, drains[i].ID)
		e.writes = append(e.writes, store.Op{Kind: store.Delete, Key: drainPrefix + drains[i].ID})
	}
}

// enter completes a state and makes it the one that is known; durable: it is more than progress. changing
// is held, or nobody else is there yet.
func (r *Registry) enter(next *state, durable bool) {
	old := r.state.Load()
	next.damage = r.damage()
	next.touched = make(chan struct{})
	if durable {
		next.changed = make(chan struct{})
	}
	next.view = View{
		Moves: newestFirst(next.moves), Drains: drainsNewestFirst(next.drains), Wanted: next.wanted,
		Changed: next.changed, Touched: next.touched,
	}
	for _, d := range next.view.Drains {
		if !d.State.Ended() {
			next.active = d
		}
	}
	r.state.Store(next)
	if durable {
		close(old.changed) // who waits for it finds the new state
	}
	close(old.touched)
	if text(old.damage) != text(next.damage) {
		if next.damage != nil {
			r.o.Log.Error("moves", "error", next.damage)
		}
		r.o.Problem(next.damage)
	}
}

func newestFirst(all map[string]*Move) []*Move {
	return slices.SortedFunc(maps.Values(all), func(a, b *Move) int {
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
}

func drainsNewestFirst(all map[string]*Drain) []*Drain {
	return slices.SortedFunc(maps.Values(all), func(a, b *Drain) int {
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
}

// damage returns why records can't be read. changing is held.
func (r *Registry) damage() error {
	var all []error
	for _, key := range slices.Sorted(maps.Keys(r.unreadable)) {
		all = append(all, r.unreadable[key])
	}
	return errors.Join(all...)
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// log has one line for each change of a state.
func (r *Registry) log(c Change) {
	if d := c.DrainAfter; d != nil {
		if c.DrainBefore == nil || c.DrainBefore.State != d.State || c.DrainBefore.Reason != d.Reason {
			r.o.Log.Info("drain", "id", d.ID, "state", d.State.String(), "version", d.Version, "reason", d.Reason,
				"force_reason", d.ForceReason, "moves_done", d.MovesDone, "moves_total", d.MovesTotal)
		}
		return
	}
	m := c.After
	if c.Before != nil && c.Before.State == m.State && c.Before.Reason == m.Reason && c.Before.Cancelling == m.Cancelling && c.Before.Finishing == m.Finishing {
		return
	}
	level := slog.LevelInfo
	if m.State == Failed {
		level = slog.LevelWarn
	}
	r.o.Log.Log(context.Background(), level, "move", "id", m.ID, "state", m.State.String(), "version", m.Version, "purpose", m.Purpose.String(),
		"mode", m.Mode.String(), "target", m.Target.NodeID, "hand_over", m.HandOver, "parent", m.Parent, "hash_ranges", len(m.What.HashRanges),
		"reason", m.Reason, "finishing", m.Finishing, "cancelling", m.Cancelling)
}
