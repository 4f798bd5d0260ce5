package plan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ring"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/compare"
)

type (
	dataRange   = datav1.HashRange
	memberState = clusterv1.MemberState
)

// recordFormat is the only one so far.
const recordFormat = 1

// repairer compares the own node with each replica of its ranges, one at a time. It is used by one
// goroutine.
type repairer struct {
	*Planner
	schedule *schedule
	// records is how many each pair had when it was compared last.
	records map[string]uint64
}

func newRepairer(p *Planner) *repairer {
	return &repairer{Planner: p, schedule: newSchedule(p.o.NodeID, p.o.Interval, p.o.Random), records: map[string]uint64{}}
}

// step compares the pair that is due, if there is one.
func (r *repairer) step(ctx context.Context, v view) (time.Duration, error) {
	own, err := r.own(ctx)
	if err != nil {
		return 0, err
	}
	if s := own.ownership.GetState(); s != up && s != draining {
		r.schedule.observe(time.Now(), nil)
		return idle, nil
	}
	now := time.Now()
	r.schedule.observe(now, r.replicas(v.members, own.ownership.GetRanges()))
	r.o.Metrics.waiting.Set(float64(r.schedule.waiting(now)))
	p, wait := r.schedule.next(now)
	if p == nil {
		if wait == 0 {
			wait = idle
		}
		return min(wait, idle), nil
	}
	peer, _ := v.members.get(p.id)
	r.pair(ctx, own, peer, p)
	return 0, nil
}

// replicas returns the nodes that share ranges with this one and own them now.
func (r *repairer) replicas(all members, ranges []*migrationv1.SharedRange) []shared {
	var out []shared
	for _, m := range all {
		if m.id == r.o.NodeID || !m.owner() {
			continue
		}
		var with []ring.HashRange
		for _, s := range sharedWith(ranges, m.id) {
			with = append(with, fromWire([]*dataRange{s.GetRange()})...)
		}
		out = append(out, shared{id: m.id, alive: m.alive, ranges: ring.Normal(with)})
	}
	return out
}

func sharedWith(ranges []*migrationv1.SharedRange, id string) (out []*migrationv1.SharedRange) {
	for _, s := range ranges {
		if slices.Contains(s.GetReplicas(), id) {
			out = append(out, s)
		}
	}
	return out
}

// equalWith is when a range was last equal on this node and another one; zero: not yet.
func equalWith(s *migrationv1.SharedRange, id string) time.Time {
	i := slices.Index(s.GetReplicas(), id)
	if i < 0 || i >= len(s.GetEqualWithMs()) || s.GetEqualWithMs()[i] == 0 {
		return time.Time{}
	}
	return time.UnixMilli(s.GetEqualWithMs()[i])
}

// comparable leaves out ranges that were last equal before the grace, if tombstones are collected by the
// grace alone: one side may have dropped a tombstone whose value the other still has, and it would come
// back. Where nothing is known of when they were equal, they are compared.
func comparable(ranges []*migrationv1.SharedRange, id string, c *migrationv1.ConfigurationResponse, now time.Time) (out []*migrationv1.SharedRange) {
	grace := time.Duration(c.GetGcGraceSeconds()) * time.Second
	for _, s := range ranges {
		at := equalWith(s, id)
		if c.GetGc() == "grace" && grace > 0 && !at.IsZero() && now.Sub(at) > grace {
			continue
		}
		out = append(out, s)
	}
	return out
}

// collectedBefore is the cut of a comparison: what is older than the grace may be gone on either side. A
// clock may be ahead by skew, and then its tombstones are collected so much earlier.
func collectedBefore(c *migrationv1.ConfigurationResponse, now time.Time) uint64 {
	grace := time.Duration(c.GetGcGraceSeconds()) * time.Second
	skew := time.Duration(c.GetMaxClockSkewMs()) * time.Millisecond
	return causal.Timestamp(now.Add(-grace - skew))
}

// pair compares with one node, and tells the schedule, the metrics and the log how it went.
func (r *repairer) pair(ctx context.Context, own own, peer member, p *pair) {
	began := time.Now()
	ranges := sharedWith(own.ownership.GetRanges(), p.id)
	if !p.since.IsZero() && !slices.ContainsFunc(ranges, func(s *migrationv1.SharedRange) bool { return !equalWith(s, p.id).After(p.since) }) {
		r.schedule.done(began, p, true) // the other side did it
		return
	}
	young := comparable(ranges, p.id, own.config, began)
	if len(young) == 0 {
		r.o.Metrics.ran(resultTooOld, compare.Progress{}, 0)
		r.o.Log.Warn("replicas were apart for longer than the grace and are not compared: wipe one of them", "peer", p.id, "ranges", len(ranges))
		r.schedule.later(began, p)
		return
	}
	result, progress, err := r.exchange(ctx, own, peer, young)
	now := time.Now()
	if ctx.Err() != nil {
		return
	}
	if len(young) < len(ranges) && (result == resultEqual || result == resultExchanged) {
		result = resultTooOld
	}
	r.o.Metrics.ran(result, progress, now.Sub(began))
	log := []any{
		"peer", p.id, "result", result, "ranges", len(young), "keys", progress.ComparedKeys, "differed", progress.DifferingKeys,
		"sent", progress.RepairedKeys, "bytes", progress.SentBytes, "took", now.Sub(began).Round(time.Millisecond),
	}
	switch {
	case err != nil && p.failures == 0:
		r.o.Log.Warn("replica could not be compared and will be again", append(log, "error", err)...)
	case err != nil:
		r.o.Log.Debug("replica could not be compared and will be again", append(log, "error", err)...)
	case progress.DifferingKeys > 0 || p.failures > 0:
		r.o.Log.Info("replica compared", log...)
	default:
		r.o.Log.Debug("replica compared", log...)
	}
	if result == resultTooOld {
		r.schedule.later(now, p)
		return
	}
	r.schedule.done(now, p, result == resultEqual || result == resultExchanged)
}

// errRefused is a node that takes no data now.
var errRefused = errors.New("takes no data")

// exchange compares ranges with another node and tells both what is equal.
func (r *repairer) exchange(ctx context.Context, own own, peer member, ranges []*migrationv1.SharedRange) (result string, sum compare.Progress, err error) {
	conn, err := r.o.Dial(ctx, peer.addr)
	if err != nil {
		return resultFailed, sum, err
	}
	defer conn.Release()
	for _, side := range []compare.Side{{Client: r.o.Replica, Name: r.o.NodeID}, {Client: conn.Replica, Name: peer.id}} {
		if err := r.fit(ctx, side); errors.Is(err, errRefused) {
			return resultRefused, sum, err
		} else if err != nil {
			return resultFailed, sum, err
		}
	}
	settled, err := r.settled(ctx, conn.Admin, peer.id, ranges)
	if err != nil {
		return resultFailed, sum, err
	}
	if err := r.joinTenants(ctx, conn.Replica, peer.id); err != nil {
		return resultFailed, sum, err
	}
	result = resultEqual
	if len(settled) < len(ranges) {
		// They are on the move, or the other node sees the ring otherwise. The rest need not wait for them.
		result, err = resultRefused, fmt.Errorf("%s has %d of %d ranges", peer.id, len(settled), len(ranges))
		ranges = settled
	}
	cut := collectedBefore(own.config, time.Now())
	for some := range slices.Chunk(ranges, compare.MaxRanges) {
		what := &movev1.Selection{}
		for _, s := range some {
			what.HashRanges = append(what.HashRanges, s.GetRange())
		}
		got, runErr := compare.Run(ctx, compare.Options{
			Own: compare.Side{Client: r.o.Replica, Name: r.o.NodeID}, Other: compare.Side{Client: conn.Replica, Name: peer.id},
			Peer: r.peer(), What: what, CollectedBefore: cut, Both: true, Renew: true, Records: r.records[peer.id], Limit: r.limit.wait,
		})
		sum.ComparedKeys += got.ComparedKeys
		sum.DifferingKeys += got.DifferingKeys
		sum.RepairedKeys += got.RepairedKeys
		sum.SentBytes += got.SentBytes
		if runErr != nil {
			return resultFailed, sum, runErr
		}
		if n, known := uint64(got.ComparedKeys), r.records[peer.id]; n < known/2 || n > 2*known {
			r.records[peer.id] = n // else trees keep their form, and can be renewed
		}
		switch {
		case len(got.UnequalRanges) > 0 && (result == resultEqual || result == resultExchanged):
			result = resultUnequal
		case len(got.ExchangedRanges) > 0 && result == resultEqual:
			result = resultExchanged
		}
		if err := r.tell(ctx, conn.Replica, peer.id, &got); err != nil {
			return resultFailed, sum, err
		}
	}
	return result, sum, err
}

// settled returns the ranges that the other node takes for its own too: what one of them is giving away, or
// took over and the ring does not say yet, is none of them.
func (r *repairer) settled(ctx context.Context, other adminv1.AdminServiceClient, id string, ranges []*migrationv1.SharedRange) ([]*migrationv1.SharedRange, error) {
	a, err := call(ctx, func(ctx context.Context) (*adminv1.RangesResponse, error) {
		return other.Ranges(ctx, &adminv1.RangesRequest{})
	})
	if err != nil {
		return nil, fmt.Errorf("ranges of %s: %w", id, err)
	}
	var theirs []ring.HashRange
	for _, o := range a.GetRanges() {
		theirs = append(theirs, fromWire([]*dataRange{o.GetRange()})...)
	}
	theirs = ring.Normal(theirs)
	return slices.DeleteFunc(slices.Clone(ranges), func(s *migrationv1.SharedRange) bool {
		return !ring.Covers(theirs, fromWire([]*dataRange{s.GetRange()}))
	}), nil
}

// fit refuses a node that is not the one it is taken for, or can't be sent data now.
func (r *repairer) fit(ctx context.Context, s compare.Side) error {
	d, err := call(ctx, func(ctx context.Context) (*replicav1.DescribeResponse, error) {
		return s.Client.Describe(ctx, &replicav1.DescribeRequest{Peer: r.peer()})
	})
	switch {
	case err != nil:
		return fmt.Errorf("describe %s: %w", s.Name, err)
	case d.GetNodeId() != s.Name:
		return fmt.Errorf("at the address of %s answers %s", s.Name, d.GetNodeId())
	case d.GetClusterId() != r.o.ClusterID:
		return fmt.Errorf("%s is of cluster %q, this node of %q", s.Name, d.GetClusterId(), r.o.ClusterID)
	case !slices.Contains(d.GetRecordFormats(), recordFormat):
		return fmt.Errorf("%s takes formats %v of records, and not %d", s.Name, d.GetRecordFormats(), recordFormat)
	case d.GetRefusal() != "":
		return fmt.Errorf("%s %w: %s", s.Name, errRefused, d.GetRefusal())
	}
	return nil
}

// tell tells both nodes which ranges of their trees the other has too. Those that were exchanged count as
// well: what the trees had of them was found on both sides.
func (r *repairer) tell(ctx context.Context, other replicav1.ReplicaServiceClient, id string, got *compare.Result) error {
	ranges := slices.Concat(got.EqualRanges, got.ExchangedRanges)
	slices.Sort(ranges)
	_, err := call(ctx, func(ctx context.Context) (*replicav1.EqualResponse, error) {
		return other.Equal(ctx, &replicav1.EqualRequest{Peer: r.peer(), Tree: got.OtherTree, Ranges: ranges})
	})
	if err != nil {
		return fmt.Errorf("tell %s what is equal: %w", id, err)
	}
	_, err = call(ctx, func(ctx context.Context) (*migrationv1.ReportEqualResponse, error) {
		return r.o.Migration.ReportEqual(ctx, &migrationv1.ReportEqualRequest{PeerNodeId: id, Tree: got.OwnTree, Ranges: ranges})
	})
	if err != nil {
		return fmt.Errorf("tell the node what is equal: %w", err)
	}
	return nil
}
