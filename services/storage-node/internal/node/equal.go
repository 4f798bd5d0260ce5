package node

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/antientropy"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

// newEqual makes the registry by which the engine collects; it is opened over the store, and until it knows
// the members nothing of a cluster is collected. It asks for the newest visible sequence once it is open.
func (n *Node) newEqual(sequence func() ikey.Seq) (*antientropy.Registry, error) {
	mode, err := antientropy.ParseMode(n.cfg.GC)
	if err != nil {
		return nil, err
	}
	return antientropy.New(antientropy.Options{
		NodeID: n.cfg.NodeID, ReplicationFactor: n.cfg.ReplicationFactor, Mode: mode,
		Grace: n.cfg.GCGrace, MaxClockSkew: n.cfg.MaxClockSkew, Log: n.log, Sequence: sequence,
	}), nil
}

// followEqual tells the registry of equality who is declared.
func (n *Node) followEqual(ctx context.Context, r *antientropy.Registry, m *members.Registry) {
	for ctx.Err() == nil {
		view := m.View()
		var again <-chan time.Time
		if err := r.SetMembers(ctx, declarations(view), m.Damage() == nil); err != nil && ctx.Err() == nil {
			n.log.Error("equality of replicas", "error", err, "retry", membersRetry)
			again = time.After(membersRetry)
		}
		select {
		case <-view.Changed:
		case <-again:
		case <-ctx.Done():
		}
	}
}

// mayPrune returns whether the clock of a key may lose old entries: once all replicas have what is stored here.
func mayPrune(e *engine.Engine, equal *antientropy.Registry) func(engineKey []byte) bool {
	return func(engineKey []byte) bool {
		cuts, inForce := equal.Cuts()
		token, ok := compact.TokenOf(engineKey)
		if !inForce || !ok {
			return true
		}
		cut, ok := compact.CutOf(cuts, token)
		if !ok {
			return false
		}
		seq, found, err := e.NewestSeq(engineKey)
		return err == nil && found && seq <= cut
	}
}

// Drop implements ownership.Cleaner.
func (d dropper) Drop(ctx context.Context, residues []ownership.Residue) error {
	return d.e.Cleanup(ctx, server.ResidueCuts(residues), 0, nil)
}

// equalCollector shows what is known of the equality of replicas, and what goes by it.
type equalCollector struct {
	registry                   func() *antientropy.Registry
	engine                     func() *engine.Engine
	cuts, ranges, age, dropped *prometheus.Desc
}

func newEqualCollector(labels prometheus.Labels, registry func() *antientropy.Registry, e func() *engine.Engine) *equalCollector {
	desc := func(name, help string, label ...string) *prometheus.Desc {
		return prometheus.NewDesc("pairdb_"+name, help, label, labels)
	}
	return &equalCollector{
		registry: registry, engine: e,
		cuts: desc("gc_cut_ranges", "Hash ranges whose deletes may be collected, up to a sequence; 0 also while age alone counts (PAIRDB_GC)."),
		ranges: desc("antientropy_ranges",
			"Hash ranges that this node shares with others, by state: equal (on all replicas since some time), unequal (not yet on all).", "state"),
		age:     desc("antientropy_equal_age_seconds", "Time since the range that waits longest was equal on all its replicas, of those that ever were; 0 when none was."),
		dropped: desc("cleanup_dropped_records_total", "Records that cleanups removed because the node does not own them any more."),
	}
}

// Describe sends all descriptions.
func (c *equalCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.cuts, c.ranges, c.age, c.dropped} {
		ch <- d
	}
}

// Collect sends all metrics.
func (c *equalCollector) Collect(ch chan<- prometheus.Metric) {
	r, e := c.registry(), c.engine()
	if r == nil || e == nil {
		return
	}
	cuts, _ := r.Cuts()
	equal, unequal, age := 0, 0, time.Duration(0)
	for _, x := range r.Ranges() {
		switch {
		case x.Behind == "": // no other replica
		case x.EqualAt.IsZero():
			unequal++
		default:
			equal++
			age = max(age, time.Since(x.EqualAt))
		}
	}
	ch <- prometheus.MustNewConstMetric(c.cuts, gauge, float64(len(cuts)))
	ch <- prometheus.MustNewConstMetric(c.ranges, gauge, float64(equal), "equal")
	ch <- prometheus.MustNewConstMetric(c.ranges, gauge, float64(unequal), "unequal")
	ch <- prometheus.MustNewConstMetric(c.age, gauge, age.Seconds())
	ch <- prometheus.MustNewConstMetric(c.dropped, counter, float64(e.Metrics().Dropped))
}

// equal returns the registry while the engine is open, else nil.
func (n *Node) equal() (r *antientropy.Registry) {
	n.withStorage(func(s *storage) { r = s.equal })
	return r
}

// openEngine returns the engine while it is open, else nil.
func (n *Node) openEngine() (e *engine.Engine) {
	n.withStorage(func(s *storage) { e = s.engine })
	return e
}
