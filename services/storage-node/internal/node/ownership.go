package node

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// newOwnership makes the registry that the store asks; it is opened over the store.
func (n *Node) newOwnership(e *engine.Engine, forget func(context.Context, []ring.HashRange) error) *ownership.Registry {
	return ownership.New(ownership.Options{
		NodeID: n.cfg.NodeID, Incarnation: n.identity.Incarnation, ReplicationFactor: n.cfg.ReplicationFactor, Forget: forget,
		AtOnce: n.cfg.Join == config.JoinAtOnce || n.cfg.CoordinatorAddr != "", // an existing coordinator says who is asked for what
		Grace:  n.cfg.GCGrace, MaxClockSkew: n.cfg.MaxClockSkew, Log: n.log,
		Sequence: func() uint64 { return uint64(e.AppliedSeq()) }, Cleaner: dropper{e},
		AtStake: e.NodeMeta()[ownershipFact] != "", Mark: func() error { return e.SetNodeMeta(map[string]string{ownershipFact: "at stake"}) },
	})
}

// ownershipFact is the fact of the node that its records of ownership may refuse requests.
const ownershipFact = "ownership"

// openOwnership loads what is remembered of ranges. With damage the node serves nothing if anything was at
// stake, and says so.
func (n *Node) openOwnership(r *ownership.Registry, st *store.Store) error {
	if err := r.Open(context.Background(), st); err != nil {
		return err
	}
	if err := r.Damage(); err != nil {
		n.state.set(func(s *state) { s.ownership = text(strings.ReplaceAll(err.Error(), "\n", "; ")) })
	}
	return nil
}

// How long a node that joins waits for news of others before it takes itself for the first of its cluster:
// without a health-agent nobody brings any, with one the migrator declares it up earlier.
const (
	aloneWithoutAgent = 5 * time.Second
	aloneWithAgent    = 30 * time.Second
)

// aloneFact is the fact of the node that it has waited in vain: it does not wait again after a restart.
const aloneFact = "alone"

// await has a node that wants to join refuse requests until it knows what is others'. What was declared before
// a restart is known at once.
func (n *Node) await(e *engine.Engine, o *ownership.Registry, known *members.Registry, wanted membership.State) error {
	ctx := context.Background()
	if o.Damage() != nil {
		return nil // which requests are refused for
	}
	if wanted == membership.Joining && e.NodeMeta()[aloneFact] == "" {
		if err := o.Await(ctx); err != nil {
			return err
		}
	}
	if known.Damage() == nil {
		if err := o.SetMembers(ctx, declarations(known.View())); err != nil {
			return err
		}
	}
	n.state.set(func(s *state) { s.unheard = o.Awaiting() })
	return nil
}

// heard ends the waiting of a node that joins when nobody was heard of for long enough, and says when to look
// again; nil: when the members change.
func (n *Node) heard(ctx context.Context, e *engine.Engine, o *ownership.Registry, m *members.Registry, since time.Time) <-chan time.Time {
	defer func() { n.state.set(func(s *state) { s.unheard = o.Awaiting() }) }()
	v := m.View()
	if !o.Awaiting() || len(v.Members) > 1 || len(m.Problems()) > 0 {
		return nil
	}
	limit := aloneWithoutAgent
	if !v.Heard.IsZero() {
		limit = aloneWithAgent
	}
	left := limit - time.Since(since)
	if left > 0 {
		return time.After(left)
	}
	err := e.SetNodeMeta(map[string]string{aloneFact: "true"})
	if err == nil {
		err = o.Alone(ctx)
	}
	if err != nil {
		n.log.Error("ownership", "error", err, "retry", membersRetry)
		return time.After(membersRetry)
	}
	n.log.Warn("no other node was heard of: this one takes itself for the first of its cluster", "waited", limit)
	return nil
}

// dropper removes what the node holds of ranges.
type dropper struct{ e *engine.Engine }

// membersRetry is after how long the ownership is told again of members that it could not note.
const membersRetry = time.Second

// followMembers tells the ownership of members, and drops what has to go, until the function that it
// returns is called, which waits for the end.
func (n *Node) followMembers(st *storage) (stop func()) {
	o, m := st.ownership, st.members
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { o.Run(ctx) })
	wg.Go(func() { n.followEqual(ctx, st.equal, m) })
	wg.Go(func() {
		for since := time.Now(); ctx.Err() == nil; {
			view, moved := m.View(), st.moves.View().Changed
			var again <-chan time.Time
			// By a list that lacks members the node would gain ranges that it does not have.
			if m.Damage() != nil {
				again = time.After(membersRetry)
			} else if err := o.SetMembers(ctx, declarations(view)); err != nil && ctx.Err() == nil {
				n.log.Error("ownership", "error", err, "retry", membersRetry)
				again = time.After(membersRetry)
			}
			n.rememberDrained(view, st.moves)
			alone := n.heard(ctx, st.engine, o, m, since)
			select {
			case <-view.Changed:
			case <-moved: // a drain may be over
			case <-again:
			case <-alone:
			case <-ctx.Done():
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// rememberDrained has the data directory remember that its node was declared drained. Whoever starts with it
// afterwards is told. While the drain is under way no other member is known to have heard it: the node must be
// able to come back and say it again.
func (n *Node) rememberDrained(v members.View, m *moves.Registry) {
	if n.declared(v) != membership.Drained || m.Drain() != nil || n.drained.Load() {
		return
	}
	if err := n.identity.drained().write(n.fs, n.cfg.DataDir); err != nil {
		n.log.Error("data directory", "error", err)
		return
	}
	n.drained.Store(true)
	n.log.Info("drained: the data directory is not used again until it is emptied or adopted", "data_dir", n.cfg.DataDir)
}

func declarations(v members.View) []membership.Declaration {
	out := make([]membership.Declaration, len(v.Members))
	for i := range v.Members {
		out[i] = v.Members[i].Declared
	}
	return out
}

// ownershipCollector shows which ranges there are, and what was refused for them.
type ownershipCollector struct {
	registry        func() *ownership.Registry
	ranges, refused *prometheus.Desc
}

func newOwnershipCollector(labels prometheus.Labels, registry func() *ownership.Registry) *ownershipCollector {
	return &ownershipCollector{
		registry: registry,
		ranges: prometheus.NewDesc("pairdb_ownership_ranges",
			"Hash ranges of a kind: owned by this node, fenced (their writes wait), given to another node, prepared (about to be taken over), residue (not owned, and cleanup is needed).",
			[]string{"kind"}, labels),
		refused: prometheus.NewDesc("pairdb_ownership_refused_total",
			"Requests that were refused because another node owns the range, or because it is being handed over.", []string{"reason"}, labels),
	}
}

// Describe sends all descriptions.
func (c *ownershipCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.ranges
	ch <- c.refused
}

// Collect sends all metrics.
func (c *ownershipCollector) Collect(ch chan<- prometheus.Metric) {
	r := c.registry()
	if r == nil {
		return
	}
	v := r.View()
	for kind, count := range map[string]int{
		"owned": len(v.Owned), "fenced": len(v.Fenced), "given": len(v.Given), "prepared": len(v.Prepared), "residue": len(v.CleanupNeeded()),
	} {
		ch <- prometheus.MustNewConstMetric(c.ranges, gauge, float64(count), kind)
	}
	notOwner, moving := r.Refused()
	ch <- prometheus.MustNewConstMetric(c.refused, counter, float64(notOwner), "NOT_OWNER")
	ch <- prometheus.MustNewConstMetric(c.refused, counter, float64(moving), "RANGE_MOVING")
}

// ownership returns the registry while the engine is open, else nil.
func (n *Node) ownership() (r *ownership.Registry) {
	n.withStorage(func(s *storage) { r = s.ownership })
	return r
}
