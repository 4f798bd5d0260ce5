package antientropy

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
	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	// systemTenant holds the facts.
	systemTenant = "_equal"
	// membersKey is the record of the members: no node id has a colon.
	membersKey = "members:"
	// maxBatchBytes bounds what is written at once; a batch of the store may have four times as much.
	maxBatchBytes = 4 << 20
)

// Mode is by what a node collects.
type Mode uint8

// The modes of PAIRDB_GC.
const (
	// Auto is Repair as soon as another member is declared, and Grace before.
	Auto Mode = iota
	// Repair collects what is older than the grace and was equal on all replicas.
	Repair
	// Grace collects what is older than the grace.
	Grace
)

// ParseMode returns the mode of a name: auto, repair, grace.
func ParseMode(s string) (Mode, error) {
	for m, name := range modeNames {
		if s == name {
			return Mode(m), nil
		}
	}
	return 0, fmt.Errorf("%q is none of auto, repair, grace", s)
}

var modeNames = [...]string{Auto: "auto", Repair: "repair", Grace: "grace"}

func (m Mode) String() string { return modeNames[m] }

// Options configure a registry. Zero values mean the default named with each field.
type Options struct {
	// NodeID is the node's own name; required.
	NodeID string
	// ReplicationFactor is 3. All nodes of a cluster have the same.
	ReplicationFactor int
	// Mode is Auto.
	Mode Mode
	// Grace is for how long deletes are kept at least: 0. MaxClockSkew is one minute: by how much the
	// clocks of nodes differ at most.
	Grace, MaxClockSkew time.Duration
	// Sequence returns the newest sequence that readers see; required.
	Sequence func() ikey.Seq
	// Log gets a line for what is forgotten: nothing is logged.
	Log *slog.Logger
	// Now is time.Now.
	Now func() time.Time
}

// Registry is what is known of the equality of replicas. It is safe for concurrent use.
type Registry struct {
	// Immutable after Open.
	o       Options
	records store.System

	state atomic.Pointer[state]

	// changing is held by who changes the state; a semaphore, so that waiting for it can be given up.
	changing *semaphore.Weighted
	clocks   map[string]causal.Clock // guarded by changing: of the records
	// unsaved is guarded by changing: peers whose facts, and under membersKey the members, that are not
	// durable as they are.
	unsaved map[string]bool
	// unwritable is guarded by changing: damage was said.
	unwritable bool
	// floor is guarded by changing: a comparison of an older snapshot began before something changed.
	floor ikey.Seq
}

// state is what is known at one moment; it is immutable.
type state struct {
	members membership.Map
	factor  int  // that members were judged by
	known   bool // members are those that are declared now, and all of them
	peers   map[string]peer
	ground  ground
	cuts    []compact.HashCut
	ranges  func() []Range
}

// peer is what is known of another replica.
type peer struct {
	incarnation string
	facts       facts
}

// Range is a range of this node.
type Range struct {
	Range ring.HashRange
	// Replicas are node ids in ring order, this one among them.
	Replicas []string
	// EqualWith is when the range was last equal here and on the replica of the same place in Replicas;
	// zero: not yet, or this node itself.
	EqualWith []time.Time
	// EqualAt is when it was last equal on all of them: the oldest of EqualWith, zero if one is missing.
	// Without another replica it is always equal, which is zero too: then Behind is empty.
	EqualAt time.Time
	// Behind is the replica with which it was not equal yet, or not for the longest time; empty: it has no
	// other replica.
	Behind string
}

// New returns a registry that knows nothing. Where cuts are in force, nothing is collected by it.
func New(o Options) *Registry {
	if o.ReplicationFactor == 0 {
		o.ReplicationFactor = 3
	}
	if o.MaxClockSkew == 0 {
		o.MaxClockSkew = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Registry{o: o, changing: semaphore.NewWeighted(1), clocks: map[string]causal.Clock{}, unsaved: map[string]bool{}}
	r.state.Store(&state{members: membership.Map{}, peers: map[string]peer{}, ranges: func() []Range { return nil }})
	return r
}

// Open loads what is remembered; nothing of it counts before SetMembers. Damage is no error of Open: what
// can't be read was never equal.
func (r *Registry) Open(ctx context.Context, s *store.Store) error {
	r.records = s.System(systemTenant)
	next := &state{members: membership.Map{}, peers: map[string]peer{}}
	var damage []error
	err := r.records.Each(ctx, func(name string, rec causal.Record) error {
		r.clocks[name] = rec.Clock()
		if err := next.load(name, rec); err != nil {
			damage = append(damage, fmt.Errorf("record %.120q: %w", name, err))
		}
		return nil
	})
	if damaged(err) {
		damage, err = append(damage, err), nil
	}
	if err != nil {
		return fmt.Errorf("equality of replicas: %w", err)
	}
	if len(next.members) == 0 && len(next.peers) > 0 {
		damage = append(damage, errors.New("the members of that time are not there"))
	}
	if len(damage) > 0 {
		// Without the members of that time, nobody knows what has changed since.
		next.peers, next.members = map[string]peer{}, membership.Map{}
		r.o.Log.Warn("what is remembered of the equality of replicas is forgotten", "error", errors.Join(damage...))
	}
	r.derive(next)
	r.state.Store(next)
	return nil
}

// damaged reports whether an error says that what is stored can't be read.
func damaged(err error) bool {
	return errors.Is(err, engine.ErrCorrupt) || store.ReasonOf(err) == store.ReasonCorruptedData
}

// load takes over a record.
func (s *state) load(name string, rec causal.Record) (err error) {
	if len(rec.Siblings) != 1 || rec.Siblings[0].Tombstone {
		return fmt.Errorf("%d siblings", len(rec.Siblings)) // only this node writes them, one after the other
	}
	value := rec.Siblings[0].Value
	if name == membersKey {
		s.factor, s.members, err = decodeMembers(value)
		return err
	}
	var p peer
	if p.incarnation, p.facts, err = decodeFacts(value); err == nil {
		s.peers[name] = p
	}
	return err
}

// enter makes a state the one that is known, and then durable what is not. changing is held. What is
// forgotten is forgotten at once, whatever becomes of the write: facts that stay on disk too long are
// judged again after a restart, by the members that stay there with them.
func (r *Registry) enter(ctx context.Context, next *state) error {
	r.derive(next)
	r.state.Store(next)
	err := r.save(ctx)
	if !damaged(err) {
		return err
	}
	// After a restart what can't be read now will not be read either, and then nothing of all this counts.
	if !r.unwritable {
		r.unwritable = true
		r.o.Log.Error("equality of replicas is not written: what is stored of it is damaged", "error", err)
	}
	return nil
}

// save writes what is not durable as it is: facts first, then the members that they were judged by.
// changing is held.
func (r *Registry) save(ctx context.Context) error {
	s := r.state.Load()
	var ops []store.Op
	bytes := 0
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		results, err := r.records.WriteAll(ctx, ops)
		if err != nil {
			return fmt.Errorf("equality of replicas: %w", err)
		}
		for i := range ops {
			r.clocks[ops[i].Key] = results[i].Clock
			delete(r.unsaved, ops[i].Key)
		}
		ops, bytes = nil, 0
		return nil
	}
	put := func(key string, value []byte) error {
		ops = append(ops, store.Op{Kind: store.Put, Key: key, Value: value, Causality: store.Causality{Context: r.clocks[key], HasContext: true}})
		if bytes += len(value); bytes >= maxBatchBytes {
			return flush()
		}
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(r.unsaved)) {
		if name == membersKey {
			continue
		}
		p := s.peers[name]
		if err := put(name, encodeFacts(p.incarnation, p.facts)); err != nil {
			return err
		}
	}
	if r.unsaved[membersKey] {
		value, err := encodeMembers(s.factor, s.members)
		if err != nil {
			return fmt.Errorf("equality of replicas: %w", err)
		}
		if err := put(membersKey, value); err != nil {
			return err
		}
	}
	return flush()
}

// SetMembers says who is declared. complete is false when some may be missing: then nothing is collected
// by cuts. What does not count any more is forgotten when it returns; with an error perhaps not durably,
// which the next call makes good.
func (r *Registry) SetMembers(ctx context.Context, all []membership.Declaration, complete bool) error {
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer r.changing.Release(1)
	old := r.state.Load()
	next := &state{members: make(membership.Map, len(all)), factor: r.o.ReplicationFactor, known: complete, peers: map[string]peer{}}
	for _, d := range all {
		next.members[d.NodeID] = d
	}
	if old.known == complete && old.factor == next.factor && maps.Equal(old.members, next.members) {
		return r.save(ctx)
	}
	next.ground = newGround(r.o.NodeID, next.members, next.factor)
	why := hides(r.o.NodeID, old.members, next.members)
	for name, p := range old.peers {
		kept := peer{incarnation: next.members[name].Incarnation}
		if why == "" && p.incarnation == kept.incarnation && !reappeared(old.members[name], next.members[name]) {
			kept.facts = p.facts.in(next.ground.shared[name])
		}
		if len(kept.facts) > 0 {
			next.peers[name] = kept
		}
		if kept.incarnation != p.incarnation || !slices.Equal(kept.facts, p.facts) {
			r.unsaved[name] = true
			r.o.Log.Info("equality of replicas forgotten", "peer", name, "facts", len(p.facts), "left", len(kept.facts), "reason", why)
		}
	}
	if old.factor == next.factor && maps.Equal(old.members, next.members) || len(old.members)+len(next.members) == 0 {
		return r.enter(ctx, next) // nobody but completeness has changed
	}
	r.unsaved[membersKey] = true
	return r.changed(ctx, next)
}

// changed is enter after something changed that comparisons which are under way do not know. changing is
// held.
func (r *Registry) changed(ctx context.Context, next *state) error {
	// Comparisons of before have sequences up to now, and above that of the write below are those of after
	// it. Without a write the next one of anybody tells them apart.
	r.floor = r.o.Sequence() + 1
	writes := len(r.unsaved) > 0
	if err := r.enter(ctx, next); err != nil {
		return err
	}
	if writes && len(r.unsaved) == 0 {
		r.floor = r.o.Sequence()
	}
	return nil
}

// Record remembers that ranges were equal here and on peer: everything that this node had up to seq, the
// sequence of the snapshot that was compared, the peer has since. at is when that was found. It is durable
// when Record returns. What is not shared with the peer, or was found before the last change of what
// counts, is left out.
func (r *Registry) Record(ctx context.Context, name string, ranges []ring.HashRange, seq ikey.Seq, at time.Time) error {
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer r.changing.Release(1)
	old := r.state.Load()
	if seq < r.floor || !old.known {
		r.o.Log.Debug("a comparison does not count", "peer", name, "sequence", seq, "floor", r.floor)
		return r.save(ctx)
	}
	ranges = parts(ring.Intersect(ranges, old.ground.shared[name]))
	if len(ranges) == 0 {
		return nil
	}
	next := *old
	next.peers = maps.Clone(old.peers)
	p := next.peers[name]
	p.incarnation = old.members[name].Incarnation
	p.facts = p.facts.with(ranges, seq, at.UnixMilli())
	next.peers[name] = p
	// A fact counts when it is durable: after a restart nobody would know why something was collected.
	r.unsaved[name] = true
	r.derive(&next)
	r.state.Store(&next)
	if err := r.save(ctx); err != nil {
		r.state.Store(old)
		return err
	}
	return nil
}

// Forget says that what was equal in ranges does not count any more: this node loses them, or gets them
// back. It is durable when it returns; comparisons that began before do not count either.
func (r *Registry) Forget(ctx context.Context, ranges []ring.HashRange) error {
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer r.changing.Release(1)
	old := r.state.Load()
	next := *old
	next.peers = maps.Clone(old.peers)
	for name, p := range old.peers {
		left := p.facts.in(parts(ring.Subtract(p.facts.ranges(), ranges)))
		if slices.Equal(left, p.facts) {
			continue
		}
		p.facts = left
		next.peers[name] = p
		r.unsaved[name] = true
	}
	return r.changed(ctx, &next)
}

// Cuts returns up to which sequence deletes of each range may be collected: what every other replica has.
// Ranges without a cut keep theirs. inForce is false when age alone counts. The answer is shared; nobody
// changes it.
func (r *Registry) Cuts() (cuts []compact.HashCut, inForce bool) {
	s := r.state.Load()
	if !r.inForce(s) {
		return nil, false
	}
	return s.cuts, true
}

// InForce reports whether cuts count, and not age alone.
func (r *Registry) InForce() bool { return r.inForce(r.state.Load()) }

func (r *Registry) inForce(s *state) bool {
	switch r.o.Mode {
	case Repair:
		return true
	case Grace:
		return false
	}
	return !s.known || s.ground.others
}

// GCBefore returns the cut of age, a hybrid-logical timestamp: what is older may be collected. In force it
// is older by twice the skew of clocks, so that all of it is left out of every digest (see doc.go, 3).
func (r *Registry) GCBefore() uint64 {
	age := r.o.Grace
	if r.InForce() {
		age += 2 * r.o.MaxClockSkew
	}
	return causal.Timestamp(r.o.Now().Add(-age))
}

// Ranges returns the ranges of this node in ring order, none until it is declared. It is shared; nobody
// changes it.
func (r *Registry) Ranges() []Range { return r.state.Load().ranges() }

// derive computes what follows from members and facts.
func (r *Registry) derive(s *state) {
	s.cuts = nil
	if s.known {
		s.cuts = s.ground.cuts(r.o.NodeID, s.peers)
	}
	g, peers, self := s.ground, s.peers, r.o.NodeID
	s.ranges = sync.OnceValue(func() []Range { return g.ranges(self, peers) })
}

// EqualWith returns when all of a range was last equal here and on a node; zero: not yet.
func (r *Registry) EqualWith(x ring.HashRange, nodeID string) time.Time {
	if at := r.state.Load().peers[nodeID].facts.since(parts([]ring.HashRange{x})); at > 0 {
		return time.UnixMilli(at)
	}
	return time.Time{}
}
