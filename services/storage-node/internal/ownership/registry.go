package ownership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// systemTenant holds the facts.
const systemTenant = "_ownership"

// Options configure a registry. Zero values mean the default named with each field.
type Options struct {
	// NodeID is the node's own name, Incarnation that of its data directory; both are required.
	NodeID, Incarnation string
	// ReplicationFactor is 3.
	ReplicationFactor int
	// AtOnce: the node is not filled by others before it is up, and serves while it is declared joining.
	AtOnce bool
	// Grace is for how long tombstones are kept: 0. MaxClockSkew is one minute. What a node held of a
	// range that it had lost for longer must go before it has the range again.
	Grace, MaxClockSkew time.Duration
	// Sequence returns the newest sequence that was given to a write; required.
	Sequence func() uint64
	// Cleaner is required.
	Cleaner Cleaner
	// Forget is called before ranges are lost or had again, and before residue is dropped: that they were
	// equal with others does not count any more, nor what is remembered of their records. An error stops the
	// change. Nobody is told.
	Forget func(ctx context.Context, ranges []ring.HashRange) error
	// Mark notes, beside the records and durably, that requests may have to be refused by what they say;
	// AtStake is whether it was called before. With a mark of its own, damage of records that could only
	// say that all is well refuses nothing. Without Mark everything is at stake.
	Mark    func() error
	AtStake bool
	// Log gets a line for each change: nothing is logged.
	Log *slog.Logger
	// Now is time.Now.
	Now func() time.Time

	// retry is after how long a drop that failed is tried again: dropRetry.
	retry time.Duration
}

// Cleaner removes what the node holds of ranges.
type Cleaner interface {
	// Drop removes every record whose token is in the ranges of a residue and whose sequence is not above
	// the residue's. What is newer stays. A call that was broken off is completed by the next one.
	Drop(ctx context.Context, residues []Residue) error
}

// Owner is a node that owns a range.
type Owner struct {
	NodeID string `json:"node_id"`
	// Addr is where it serves clients, host:port; may be empty.
	Addr string `json:"addr,omitempty"`
	// Incarnation is the one that has accepted ranges of this node; empty: that is not known.
	Incarnation string `json:"incarnation,omitempty"`
}

// Residue is data of ranges that are not the node's any more.
type Residue struct {
	// Ranges are in normal form.
	Ranges []ring.HashRange
	// Sequence is that of the newest record that belongs to it.
	Sequence uint64
	// Since is when the ranges were lost.
	Since time.Time
}

// View is what is known at one moment. It is shared: nobody changes it.
type View struct {
	// Known is false until the members are known.
	Known bool
	// Owned are the ranges of this node with their replicas, in ring order.
	Owned []ring.Placement
	// Residue is what Cleanup removes; residues don't overlap.
	Residue []Residue
	// Fenced, Given, Prepared and Regained are in normal form. Regained are ranges of this node that it
	// does not have before what it holds of them was dropped.
	Fenced, Given, Prepared, Regained []ring.HashRange
}

// CleanupNeeded returns the ranges that have a residue, in normal form.
func (v View) CleanupNeeded() []ring.HashRange {
	lists := make([][]ring.HashRange, len(v.Residue))
	for i, e := range v.Residue {
		lists[i] = e.Ranges
	}
	return ring.Union(lists...)
}

// Registry is what a node knows of the ownership of ranges. It is safe for concurrent use.
//
// Lock order: cleaning, changing, the locks of the store, mu.
type Registry struct {
	// Immutable after Open.
	o       Options
	store   *store.Store
	records store.System

	state atomic.Pointer[state]
	gate  atomic.Pointer[gate] // of state; nil when no request is refused

	members atomic.Pointer[[]membership.Declaration] // those of the last SetMembers; nil before it

	notOwner, moving atomic.Uint64 // refused requests
	ownOnly          atomic.Bool   // OwnRangesOnly

	// ingesting is held, for reading, while records of other nodes are admitted and applied.
	ingesting sync.RWMutex

	// cleaning is held by who drops residue, changing by who changes the state; semaphores, so that waiting
	// can be given up.
	cleaning, changing *semaphore.Weighted
	clocks             map[string]causal.Clock // guarded by changing: of the records
	revision           uint64                  // guarded by changing: of the newest attempt to write
	atStake            bool                    // guarded by changing: Mark was called, by this process or an earlier one

	mu     sync.Mutex
	wanted []ring.HashRange // guarded by mu: whose residue has to go
	kick   chan struct{}    // has an element when wanted has grown
}

// state is what is known at one moment; it is immutable.
type state struct {
	facts  map[string]fact // by move, those of other nodes with their names in front
	ground ground
	ring   *ring.Ring // nil until the members are known
	// members are those of the last SetMembers, never changed.
	members []membership.Declaration
	// joining: others own what this node is to have, and only what it has accepted is its own. unheard: they may,
	// nobody has said yet whether there are any.
	joining, unheard bool
	leaving          *leaving // nil while the node stays
	view             View
	damage           error
	// harmless: nothing that a request could be refused for was ever noted, so the damage took nothing.
	harmless bool
	// news is what the log gets when the state counts: what is not durable has not happened.
	news []news
}

// leaving is what a node that leaves its cluster takes no part in any more.
type leaving struct {
	// others are the ranges that the ring gives to other nodes only, with one of them.
	others []part
	// gone: it has left. Before, what it has of them is there to be read, and copied to those who own it.
	gone bool
}

// news is a line of the log.
type news struct {
	level slog.Level
	text  string
	args  []any
}

func (s *state) tell(level slog.Level, text string, args ...any) {
	s.news = append(s.news, news{level, text, args})
}

// stage is where a hand-over stands on this node. The numbers are not stored.
type stage uint8

const (
	// fenced, lifted and given are of the source.
	fenced stage = iota + 1
	lifted
	given
	// prepared, accepted and declined are of the target.
	prepared
	accepted
	declined
)

var stageNames = [...]string{fenced: "fenced", lifted: "lifted", given: "given", prepared: "prepared", accepted: "accepted", declined: "declined"}

func (s stage) String() string { return stageNames[s] }

// fact is what this node said of a move.
type fact struct {
	stage      stage
	ranges     []ring.HashRange // in normal form
	sequence   uint64
	knownEpoch uint64
	epoch      uint64
	peer       Owner
	at         time.Time
}

// New returns a registry that refuses nothing.
func New(o Options) *Registry {
	if o.ReplicationFactor == 0 {
		o.ReplicationFactor = 3
	}
	if o.MaxClockSkew == 0 {
		o.MaxClockSkew = time.Minute
	}
	if o.Forget == nil {
		o.Forget = func(context.Context, []ring.HashRange) error { return nil }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.retry == 0 {
		o.retry = dropRetry
	}
	r := &Registry{
		o: o, atStake: o.AtStake || o.Mark == nil, cleaning: semaphore.NewWeighted(1), changing: semaphore.NewWeighted(1), clocks: map[string]causal.Clock{}, kick: make(chan struct{}, 1),
	}
	r.state.Store(&state{})
	return r
}

// Open loads what is remembered. Nothing may be asked before, but Active, which is false. Damage is no
// error of Open: Damage tells, and every request is refused, unless nothing was at stake: then only
// hand-overs are.
func (r *Registry) Open(ctx context.Context, s *store.Store) error {
	r.store, r.records = s, s.System(systemTenant)
	next := &state{facts: map[string]fact{}}
	found := false
	err := r.records.Each(ctx, func(key string, rec causal.Record) error {
		r.clocks[key] = rec.Clock()
		move, isMove := moveOf(key)
		var revision uint64
		var ok bool
		var err error
		if isMove {
			var f fact
			if f, revision, ok, err = newest(rec, decodeFact); ok {
				next.facts[move] = f
			}
		} else if key == rangesKey {
			next.ground, revision, found, err = newest(rec, decodeGround)
		} else {
			err = errors.New("it is no key of this version")
		}
		r.revision = max(r.revision, revision)
		if err != nil {
			next.damage = errors.Join(next.damage, fmt.Errorf("record %.100q of the ownership: %w", key, err))
		}
		return nil
	})
	switch {
	case errors.Is(err, engine.ErrCorrupt) || store.ReasonOf(err) == store.ReasonCorruptedData:
		next.damage = errors.Join(next.damage, fmt.Errorf("the ownership is not readable: %w", err))
	case err != nil:
		return fmt.Errorf("ownership: %w", err)
	}
	if next.damage == nil && (!found && len(next.facts) > 0 || found && next.ground.incarnation != r.o.Incarnation) {
		if err := r.begin(ctx, next); err != nil {
			return err
		}
	}
	next.ground.incarnation = r.o.Incarnation
	next.harmless = next.damage != nil && !r.atStake
	r.enter(next)
	return nil
}

// stake notes that from now on requests may have to be refused by what is remembered, before it is.
func (r *Registry) stake(s *state) error {
	g := &s.ground
	matters := s.joining || len(s.facts) > 0 || len(g.given) > 0 || len(g.taken) > 0 || len(g.residue) > 0 || len(g.epochs) > 0
	if r.atStake || !matters {
		return nil
	}
	if err := r.o.Mark(); err != nil {
		return fmt.Errorf("ownership: %w", err)
	}
	r.atStake = true
	return nil
}

// begin forgets what an earlier incarnation of the directory had to do with other nodes.
func (r *Registry) begin(ctx context.Context, s *state) error {
	s.tell(slog.LevelInfo, "ownership of another incarnation is forgotten", "incarnation", s.ground.incarnation, "moves", len(s.facts))
	moves := slices.Sorted(maps.Keys(s.facts))
	s.facts = map[string]fact{}
	s.ground = ground{incarnation: r.o.Incarnation, epochs: s.ground.epochs, residue: s.ground.residue}
	return r.save(ctx, s, true, moves...)
}

// change has f make a new state of the present one, makes it durable, and enters it. f returns the moves
// whose facts it changed or took out. Nothing happens when it changed nothing.
func (r *Registry) change(ctx context.Context, f func(next *state) (moves []string, err error)) error {
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer r.changing.Release(1)
	return r.changeLocked(ctx, f)
}

// changeLocked is change for those who hold changing.
func (r *Registry) changeLocked(ctx context.Context, f func(next *state) (moves []string, err error)) error {
	old := r.state.Load()
	if old.damage != nil {
		return damaged(old.damage)
	}
	next := &state{
		facts: maps.Clone(old.facts), ground: old.ground.clone(), ring: old.ring, members: old.members,
		joining: old.joining, unheard: old.unheard, leaving: old.leaving,
	}
	moves, err := f(next)
	if err != nil {
		return err
	}
	moves = append(moves, forgetEnded(next)...)
	if err := r.stake(next); err != nil {
		return err
	}
	changed := !next.ground.equal(&old.ground)
	if changed || len(moves) > 0 {
		if err := r.save(ctx, next, changed, moves...); err != nil {
			return err
		}
	}
	r.enter(next)
	return nil
}

// maxFacts is how many moves are remembered: a thousand that are over, as the registry of moves has.
const maxFacts = 1000

// forgetEnded takes out the oldest facts of moves that are over, if there are too many, and returns them.
func forgetEnded(s *state) (gone []string) {
	if len(s.facts) <= maxFacts {
		return nil
	}
	var ended []string
	for move, f := range s.facts {
		if f.stage != fenced && f.stage != prepared {
			ended = append(ended, move)
		}
	}
	slices.SortFunc(ended, func(a, b string) int { return s.facts[a].at.Compare(s.facts[b].at) })
	gone = ended[:min(len(ended), len(s.facts)-maxFacts)]
	for _, move := range gone {
		delete(s.facts, move)
	}
	return gone
}

// save makes facts of moves, those that are not there any more, and the ground durable. changing is held,
// or nobody else is there yet. After an error nobody knows whether it was stored: the next attempt has
// a higher revision, which counts.
func (r *Registry) save(ctx context.Context, s *state, ground bool, moves ...string) error {
	r.revision++
	var ops []store.Op
	put := func(key string, value []byte) {
		op := store.Op{Kind: store.Put, Key: key, Value: value, Causality: store.Causality{Context: r.clocks[key], HasContext: true}}
		if value == nil {
			op.Kind = store.Delete
		}
		ops = append(ops, op)
	}
	for _, move := range moves {
		f, ok := s.facts[move]
		if !ok {
			put(movePrefix+move, nil)
			continue
		}
		value, err := f.encode(r.revision)
		if err != nil {
			return err
		}
		put(movePrefix+move, value)
	}
	if ground || r.clocks[rangesKey] == nil { // the incarnation stands there
		value, err := s.ground.encode(r.revision)
		if err != nil {
			return err
		}
		put(rangesKey, value)
	}
	results, err := r.records.WriteAll(ctx, ops)
	if err != nil {
		return fmt.Errorf("ownership: %w", err)
	}
	for i := range ops {
		r.clocks[ops[i].Key] = results[i].Clock
	}
	return nil
}

// enter completes a state and makes it the one that counts. changing is held, or nobody else is there yet.
func (r *Registry) enter(next *state) {
	next.view = r.viewOf(next)
	if next.damage != nil {
		r.o.Log.Error("ownership", "error", next.damage)
	}
	lines := next.news
	next.news = nil
	r.state.Store(next)
	r.gate.Store(gateOf(next))
	for _, l := range lines {
		r.o.Log.Log(context.Background(), l.level, l.text, l.args...)
	}
}

// View returns what is known now.
func (r *Registry) View() View { return r.state.Load().view }

// Damage returns why what is remembered can't be read, nil if it can.
func (r *Registry) Damage() error { return r.state.Load().damage }

func damaged(err error) error {
	return &store.Error{
		Reason:  store.ReasonCorruptedData,
		Message: fmt.Sprintf("it is not known which ranges are this node's: restore a snapshot, or begin with an empty data directory: %v", err),
		Err:     err,
	}
}

func refuse(r store.Reason, format string, args ...any) error {
	return &store.Error{Reason: r, Message: fmt.Sprintf(format, args...)}
}

// viewOf returns the view of a state.
func (r *Registry) viewOf(s *state) View {
	v := View{Known: s.ground.known, Given: allOf(s.ground.given)}
	for _, e := range s.ground.residue {
		v.Residue = append(v.Residue, e.Residue)
	}
	for _, f := range s.facts {
		switch f.stage {
		case fenced:
			v.Fenced = ring.Union(v.Fenced, f.ranges)
		case prepared:
			v.Prepared = ring.Union(v.Prepared, f.ranges)
		}
	}
	mine := ring.Subtract(s.ground.declared, v.Given)
	v.Regained = ring.Intersect(mine, s.ground.allResidue())
	if s.ring == nil {
		return v
	}
	v.Owned = s.ring.Within(mine)
	for _, t := range s.ground.taken {
		for _, p := range s.ring.Within(t.ranges) {
			p.Replicas = replaced(p.Replicas, t.node.NodeID, r.o.NodeID)
			v.Owned = append(v.Owned, p)
		}
	}
	slices.SortFunc(v.Owned, func(a, b ring.Placement) int {
		if a.Range.Start < b.Range.Start {
			return -1
		}
		return 1
	})
	return v
}

// replaced returns replicas with one in the place of another, or behind them when that is none of them.
func replaced(replicas []string, old, by string) []string {
	out := slices.Clone(replicas)
	if i := slices.Index(out, old); i >= 0 {
		out[i] = by
		return out
	}
	return append(out, by)
}
