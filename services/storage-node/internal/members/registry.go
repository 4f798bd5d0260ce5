package members

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// systemTenant holds the declarations.
const systemTenant = "_members"

// Options configure a registry. Zero values mean the default named with each field.
type Options struct {
	// NodeID is the node's own name, Incarnation that of its data directory; both are required.
	NodeID, Incarnation string
	// Log gets a line for each declaration that counts: nothing is logged.
	Log *slog.Logger
	// Problems is called when what Problems returns has changed, one call at a time; it must return at
	// once: nobody is told.
	Problems func([]Reason)
	// Now is time.Now.
	Now func() time.Time
}

// Registry is the members of a cluster as a node knows them. It is safe for concurrent use.
type Registry struct {
	// Immutable after Open.
	o       Options
	records store.System

	state atomic.Pointer[state]

	// changing is held by who changes the state; a semaphore, so that waiting for it can be given up.
	changing *semaphore.Weighted
	clocks   map[string]causal.Clock // guarded by changing: of the records
	// unreadable is guarded by changing: why records can't be read or written, by node id; "" stands for
	// all that were not even found.
	unreadable map[string]error
}

// state is what is known at one moment; it is immutable.
type state struct {
	declared membership.Map
	seen     map[string]Seen
	verdict  *Verdict
	heard    time.Time
	foreign  string   // who else has the name of this node; empty if nobody
	list     []Member // of declared and seen
	problems []Reason
	damage   error
	changed  chan struct{} // closed when list and verdict are not the newest any more
}

// New returns a registry without members.
func New(o Options) *Registry {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Problems == nil {
		o.Problems = func([]Reason) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Registry{o: o, changing: semaphore.NewWeighted(1), clocks: map[string]causal.Clock{}, unreadable: map[string]error{}}
	r.state.Store(&state{declared: membership.Map{}, changed: make(chan struct{})})
	return r
}

// Open loads the declarations from the store. Nothing may be asked before. Damage is no error of Open:
// what can be read counts, and Damage tells.
func (r *Registry) Open(ctx context.Context, s *store.Store) error {
	r.records = s.System(systemTenant)
	declared := membership.Map{}
	err := r.records.Each(ctx, func(name string, rec causal.Record) error {
		r.clocks[name] = rec.Clock()
		d, err := resolve(name, rec)
		if err == nil {
			_, err = declared.Merge(d)
		}
		if err != nil {
			r.unreadable[name] = fmt.Errorf("record of member %.120q: %w", name, err)
		}
		return nil
	})
	switch {
	case damaged(err):
		r.unreadable[""] = fmt.Errorf("the list of members is not readable: %w", err)
	case err != nil:
		return fmt.Errorf("members: %w", err)
	}
	r.enter(&state{declared: declared})
	return nil
}

// damaged reports whether an error says that what is stored can't be read.
func damaged(err error) bool {
	return errors.Is(err, engine.ErrCorrupt) || store.ReasonOf(err) == store.ReasonCorruptedData
}

// encode returns the value of a declaration's record.
func encode(d membership.Declaration) ([]byte, error) {
	return membership.Encode(membership.Map{d.NodeID: d})
}

// resolve returns the declaration that the siblings of a record are together.
func resolve(name string, rec causal.Record) (membership.Declaration, error) {
	var newest membership.Declaration
	for i := range rec.Siblings {
		if rec.Siblings[i].Tombstone {
			continue // nobody deletes these records
		}
		m, err := membership.Decode(rec.Siblings[i].Value)
		if err != nil {
			return membership.Declaration{}, err
		}
		d, ok := m[name]
		if !ok || len(m) != 1 {
			return membership.Declaration{}, fmt.Errorf("it holds %d others", len(m))
		}
		if d.Newer(newest) {
			newest = d
		}
	}
	if newest.Version == 0 {
		return membership.Declaration{}, errors.New("it has no value")
	}
	return newest, nil
}

// Report takes what the health-agent says: it joins the declarations with those that are known, makes
// what changed durable, remembers what is seen, and returns all declarations by node id. A report that is
// refused changes nothing. The report is the registry's from then on.
func (r *Registry) Report(ctx context.Context, report Report) ([]membership.Declaration, error) {
	if err := report.check(); err != nil {
		return nil, err
	}
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer r.changing.Release(1)
	old := r.state.Load()
	next := &state{declared: old.declared, seen: make(map[string]Seen, len(report.Members)), verdict: report.Verdict, heard: r.o.Now()}
	var fresh []membership.Declaration
	for i := range report.Members {
		m := &report.Members[i]
		next.seen[m.Declared.NodeID] = m.Seen
		if m.Declared.NodeID == r.o.NodeID && m.Declared.Incarnation != r.o.Incarnation {
			next.foreign = r.contender(old.declared[r.o.NodeID], m.Declared)
			continue
		}
		if known, ok := old.declared[m.Declared.NodeID]; !ok || m.Declared.Newer(known) {
			fresh = append(fresh, m.Declared)
		}
	}
	if err := r.join(ctx, next, fresh); err != nil {
		return nil, err
	}
	r.enter(next)
	return next.declared.Sorted(), nil
}

// contender says who else has the name of this node, judging by a declaration of another incarnation;
// empty if nobody. known is what is declared of this node.
func (r *Registry) contender(known, d membership.Declaration) string {
	if !d.Newer(known) || d.State == membership.Drained || d.State == membership.Removed {
		return "" // it was there before, and has gone
	}
	return fmt.Sprintf("another node with the id %s is at %s (incarnation %s, this one is %s): give one of them another PAIRDB_NODE_ID and an empty data directory",
		r.o.NodeID, d.GRPCAddr, d.Incarnation, r.o.Incarnation)
}

// join merges declarations into a state that is being made, and makes durable what changes by it.
// changing is held.
func (r *Registry) join(ctx context.Context, next *state, fresh []membership.Declaration) error {
	if len(fresh) == 0 {
		return nil
	}
	declared := next.declared.Clone()
	changed, err := declared.Merge(fresh...)
	switch {
	case errors.Is(err, membership.ErrTooMany):
		return refuse(store.ReasonTooManyMembers, "%v; removed ones count", err)
	case err != nil:
		return refuse(store.ReasonReport, "%v", err)
	}
	if err := r.save(ctx, changed); err != nil {
		return err
	}
	for _, d := range changed {
		r.o.Log.Info("member declared", "member", d.NodeID, "state", d.State.String(), "version", d.Version,
			"incarnation", d.Incarnation, "addr", d.GRPCAddr, "zone", d.Zone)
	}
	next.declared = declared
	return nil
}

// save makes declarations durable. changing is held.
func (r *Registry) save(ctx context.Context, changed []membership.Declaration) error {
	ops := make([]store.Op, len(changed))
	for i, d := range changed {
		value, err := encode(d)
		if err != nil {
			return err
		}
		ops[i] = store.Op{
			Kind: store.Put, Key: d.NodeID, Value: value,
			Causality: store.Causality{Context: r.clocks[d.NodeID], HasContext: true},
		}
	}
	if len(ops) == 0 {
		return nil
	}
	results, err := r.records.WriteAll(ctx, ops)
	if damaged(err) {
		return r.saveEach(ctx, ops)
	}
	if err != nil {
		return fmt.Errorf("members: %w", err)
	}
	for i := range ops {
		r.saved(ops[i].Key, results[i].Clock)
	}
	return nil
}

// saveEach makes durable what can be; the rest is kept in memory.
func (r *Registry) saveEach(ctx context.Context, ops []store.Op) error {
	for i := range ops {
		results, err := r.records.WriteAll(ctx, ops[i:i+1])
		switch {
		case damaged(err):
			r.unreadable[ops[i].Key] = fmt.Errorf("record of member %s: %w", ops[i].Key, err)
		case err != nil:
			return fmt.Errorf("members: %w", err)
		default:
			r.saved(ops[i].Key, results[0].Clock)
		}
	}
	return nil
}

func (r *Registry) saved(nodeID string, clock causal.Clock) {
	r.clocks[nodeID] = clock
	delete(r.unreadable, nodeID)
}

// enter completes a state and makes it the one that is known. changing is held, or nobody else is there
// yet.
func (r *Registry) enter(next *state) {
	old := r.state.Load()
	next.list = list(next.declared, next.seen)
	next.damage = r.damage()
	next.problems = r.problems(next)
	same := reflect.DeepEqual(old.list, next.list) && reflect.DeepEqual(old.verdict, next.verdict)
	next.changed = old.changed
	if !same {
		next.changed = make(chan struct{})
	}
	r.state.Store(next)
	if !same {
		close(old.changed) // who waits for it finds the new state
	}
	if !slices.Equal(old.problems, next.problems) {
		for _, p := range next.problems {
			r.o.Log.Error("members", "problem", p.Name, "detail", p.Detail)
		}
		r.o.Problems(next.problems)
	}
}

// list returns the members of a map with what is seen of them.
func list(declared membership.Map, seen map[string]Seen) []Member {
	out := make([]Member, 0, len(declared))
	for _, d := range declared.Sorted() {
		m := Member{Declared: d, Seen: seen[d.NodeID]}
		if m.Liveness == 0 {
			m.Liveness = Unseen
		}
		out = append(out, m)
	}
	slices.SortStableFunc(out, func(a, b Member) int { return removedLast(a) - removedLast(b) })
	return out
}

func removedLast(m Member) int {
	if m.Declared.State == membership.Removed {
		return 1
	}
	return 0
}

// damage returns why declarations can't be read. changing is held.
func (r *Registry) damage() error {
	var all []error
	for _, name := range slices.Sorted(maps.Keys(r.unreadable)) {
		all = append(all, r.unreadable[name])
	}
	return errors.Join(all...)
}

// problems returns what is not as it should be.
func (r *Registry) problems(s *state) []Reason {
	var out []Reason
	if s.damage != nil {
		out = append(out, Reason{Name: "members", Detail: shorten(s.damage.Error())})
	}
	if s.foreign != "" {
		out = append(out, Reason{Name: "duplicate-id", Detail: s.foreign})
	}
	if own := s.declared[r.o.NodeID]; own.State == membership.Removed && own.Incarnation == r.o.Incarnation {
		out = append(out, Reason{Name: "removed", Detail: "an operator took this member out of the cluster: it can come back with an empty data directory only"})
	}
	return out
}

// shorten makes the text of many errors fit into a line.
func shorten(text string) string {
	text = strings.ReplaceAll(text, "\n", "; ")
	if len(text) > maxDetailBytes {
		return strings.ToValidUTF8(text[:maxDetailBytes], "") + "…"
	}
	return text
}

// Damage returns why declarations can't be read, nil if all can.
func (r *Registry) Damage() error { return r.state.Load().damage }

// Problems returns what does not work as it should: "members" (damage), "duplicate-id", "removed".
func (r *Registry) Problems() []Reason { return r.state.Load().problems }

// View returns the cluster as it is known now.
func (r *Registry) View() View {
	s := r.state.Load()
	return View{Members: s.list, Verdict: s.verdict, Heard: s.heard, Changed: s.changed}
}
