// Package nemesis takes from a cluster what machines, disks, networks and operators take: it kills, stops,
// cuts, delays, fills, fails, lies and moves, several things at a time, and puts everything right again. It
// never touches data.
package nemesis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pairdb/pairdb/integration/cluster"
)

// Fault is one kind of trouble.
type Fault struct {
	Kind  string
	where where
	// strike brings the trouble, holds it for the duration, and ends it. It ends it also when it fails.
	// The error of a fault that this cluster can't have is cluster.ErrUnsupported.
	strike func(s *scene) error
}

// where is what a fault strikes, and so what else may be there at the time.
type where int

const (
	// aNode: one member, which no other hand strikes.
	aNode where = iota
	// beside: something that is no node.
	beside
	// everything: the whole cluster; nothing else is struck at the time, but the members may change.
	everything
	// members: who belongs to the cluster, in a lane of its own.
	members
)

// scene is what a fault has to strike.
type scene struct {
	n      *Nemesis
	ctx    context.Context
	random *rand.Rand
	hold   time.Duration
	node   cluster.Node // the one that is struck; nil if it is not aNode
}

// Nemesis is a running sequence of faults.
type Nemesis struct {
	cluster cluster.Cluster
	say     func(format string, args ...any)
	faults  []Fault
	seed    uint64
	hold    time.Duration
	top     topology

	whole sync.RWMutex // held for writing by faults of everything
	links sync.Mutex   // held by the fault that cuts some

	mu     sync.Mutex
	busy   map[string]bool // guarded by mu; nodes that are struck
	counts map[string]int  // guarded by mu; by kind
	errs   []error         // guarded by mu

}

// Options of a nemesis.
type Options struct {
	Cluster cluster.Cluster
	// Seed of what it chooses.
	Seed uint64
	// Hold is how long a fault lasts at most; it is at least a quarter of it.
	Hold time.Duration
	// Say receives what happens.
	Say func(format string, args ...any)
	// Kinds are the faults that are wanted; empty: all that the cluster can have.
	Kinds []string
}

// hands strike nodes at the same time.
const hands = 2

// New returns a nemesis of a cluster that has not begun yet. An unknown kind is an error.
func New(o Options) (*Nemesis, error) {
	n := &Nemesis{
		cluster: o.Cluster, say: o.Say, seed: o.Seed, hold: o.Hold, faults: Faults,
		busy: map[string]bool{}, counts: map[string]int{},
	}
	n.top.first = slices.Clone(o.Cluster.Nodes())
	if len(o.Kinds) > 0 {
		n.faults = nil
		for _, kind := range o.Kinds {
			i := slices.IndexFunc(Faults, func(f Fault) bool { return f.Kind == kind })
			if i < 0 {
				return nil, fmt.Errorf("no fault is called %q", kind)
			}
			n.faults = append(n.faults, Faults[i])
		}
	}
	return n, nil
}

// Members are the nodes that keep data now: those that were there at the start, and one that has come.
func (n *Nemesis) Members() []cluster.Node { return n.top.members() }

// Counts are how many faults of each kind there were.
func (n *Nemesis) Counts() map[string]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.counts)
}

// Run strikes until ctx ends, and returns when the last fault is over. The error says what did not recover.
func (n *Nemesis) Run(ctx context.Context) error {
	lanes := make([][]Fault, hands+1)
	for _, f := range n.faults {
		if f.where == members {
			lanes[hands] = append(lanes[hands], f)
			continue
		}
		for i := range hands {
			lanes[i] = append(lanes[i], f)
		}
	}
	var all sync.WaitGroup
	for i, faults := range lanes {
		if len(faults) > 0 {
			all.Go(func() { n.lane(ctx, faults, rand.New(rand.NewPCG(n.seed, uint64(i)))) })
		}
	}
	all.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return errors.Join(n.errs...)
}

// lane has one fault after the other, each kind once before any comes again.
func (n *Nemesis) lane(ctx context.Context, faults []Fault, random *rand.Rand) {
	faults = slices.Clone(faults)
	for ctx.Err() == nil {
		random.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
		for _, f := range faults {
			if ctx.Err() != nil {
				return
			}
			n.one(ctx, f, random)
			pause(ctx, n.hold/4)
		}
	}
}

// one has one fault.
func (n *Nemesis) one(ctx context.Context, f Fault, random *rand.Rand) {
	s := &scene{n: n, ctx: ctx, random: random, hold: n.hold/4 + upTo(random, n.hold*3/4)}
	switch f.where {
	case members:
	case everything:
		n.whole.Lock()
		defer n.whole.Unlock()
	case beside:
		n.whole.RLock()
		defer n.whole.RUnlock()
	case aNode:
		n.whole.RLock()
		defer n.whole.RUnlock()
		if s.node = n.claim(random); s.node == nil {
			return
		}
		defer n.release(s.node)
	}
	name := ""
	if s.node != nil {
		name = " " + s.node.Name()
	}
	n.say("fault: %s%s for %s", f.Kind, name, s.hold.Round(time.Millisecond))
	err := f.strike(s)
	n.say("fault: %s%s is over: %v", f.Kind, name, err)
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case err == nil:
		n.counts[f.Kind]++
	case !errors.Is(err, cluster.ErrUnsupported):
		n.counts[f.Kind]++
		n.errs = append(n.errs, fmt.Errorf("%s%s: %w", f.Kind, name, err))
	}
}

// claim takes a member that no other hand strikes; nil: there is none.
func (n *Nemesis) claim(random *rand.Rand) cluster.Node {
	all := n.Members()
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range all {
		if !n.busy[m.Name()] {
			n.busy[m.Name()] = true
			return m
		}
	}
	return nil
}

func (n *Nemesis) release(m cluster.Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.busy, m.Name())
}

// pause waits for a duration, or the end of a run.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// recovery is how soon everything must be well again after a fault that is over: on a machine that does
// much else, a node opens, an agent finds the others, a poisoned node is started again.
const recovery = time.Minute

// await waits for a condition; it does so also after the end of the run.
func await(limit time.Duration, what string, f func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for !f(ctx) {
		if ctx.Err() != nil {
			return fmt.Errorf("not within %s: %s", limit, what)
		}
		pause(ctx, 50*time.Millisecond)
	}
	return nil
}

// ready waits until nodes serve, or have left: what has given everything away does not start again.
func (n *Nemesis) ready(nodes ...cluster.Node) error {
	var errs []error
	for _, m := range nodes {
		errs = append(errs, await(recovery, m.Name()+" serves", func(ctx context.Context) bool { return m.Ready(ctx) || n.left(m) }))
	}
	return errors.Join(errs...)
}

// Broken says which processes of nodes that have not left are not started again by themselves, and why.
func (n *Nemesis) Broken() error {
	var errs []error
	for _, m := range n.cluster.Nodes() {
		if err := m.Broken(); err != nil && !n.left(m) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Table are the counts in words, most common kinds first.
func Table(counts map[string]int) string {
	kinds := slices.Sorted(maps.Keys(counts))
	slices.SortStableFunc(kinds, func(a, b string) int { return counts[b] - counts[a] })
	var b strings.Builder
	total := 0
	for _, k := range kinds {
		fmt.Fprintf(&b, "%6d %s\n", counts[k], k)
		total += counts[k]
	}
	fmt.Fprintf(&b, "%6d faults of %d kinds", total, len(kinds))
	return b.String()
}

// upTo is some duration below d.
func upTo(random *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(d)))
}
