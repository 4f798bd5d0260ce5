package plan

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/ring"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

// sim is a cluster of nodes without data: who declares what, who gave which ranges to whom, and moves that
// take a second. Gossip is instant.
type sim struct {
	t      *testing.T
	factor int
	paused bool   // of all planners that are added
	broken string // a call that fails at all nodes that are added; empty: none

	mu      sync.Mutex
	nodes   map[string]*simNode
	changed chan struct{}
	clock   int64 // of declarations
	// changedAt is when something changed last. Time stands while anybody works: who asks for what was so before has
	// looked in the same moment.
	changedAt time.Time
	// compared counts comparisons by "<initiator> <other>".
	compared map[string]int
	tenants  int
}

// simNode is one node. All but the name is guarded by the sim's mu.
type simNode struct {
	*sim
	metrics  *Metrics
	id       string
	declared memberState
	wanted   memberState
	at       int64 // of the declaration
	alive    bool
	since    time.Time
	given    map[string][]ring.HashRange // by who has them, who must be there
	taken    []ring.HashRange
	// strays are records of ranges that are not its own, residue what a Cleanup removes, recent what it would
	// remove if that were safe.
	strays, residue, recent []ring.HashRange
	// halfway: a Cleanup fails in the middle of what it drops.
	halfway bool
	// copied is what others had of its ranges.
	copied  []ring.HashRange
	moves   []*movev1.Move
	drain   *movev1.Drain
	config  *migrationv1.ConfigurationResponse
	refusal string
	verdict []string
	// equal is when each pair was last told as equal.
	equal map[string]time.Time
	// broken fails every call with a name.
	broken map[string]bool
	// slow moves never end by themselves.
	slow bool
	end  context.CancelFunc
}

func newSim(t *testing.T, factor int) *sim {
	return &sim{t: t, factor: factor, nodes: map[string]*simNode{}, changed: make(chan struct{}), compared: map[string]int{}}
}

// add adds a node and runs its planner until the context ends.
func (s *sim) add(ctx context.Context, group *sync.WaitGroup, id string, state memberState) *simNode {
	ctx, end := context.WithCancel(ctx)
	n := &simNode{
		sim: s, id: id, declared: state, wanted: state, alive: true, since: time.Now(), equal: map[string]time.Time{}, broken: map[string]bool{}, end: end,
		given:  map[string][]ring.HashRange{},
		config: &migrationv1.ConfigurationResponse{ReplicationFactor: int32(s.factor), GcGraceSeconds: 3600, Gc: "repair", MaxClockSkewMs: 1000},
	}
	n.broken[s.broken] = s.broken != ""
	s.change(func() {
		s.clock++
		n.at = s.clock
		s.nodes[id] = n
	})
	n.metrics = NewMetrics()
	p := New(Options{
		Metrics: n.metrics, NodeID: id, ClusterID: "c", Migration: simMigration{node: n}, Admin: simAdmin{node: n}, Replica: simReplica{node: n},
		Dial: s.dial, Interval: time.Hour, Paused: s.paused, BytesPerSecond: 1 << 20, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	group.Go(func() { _ = p.Run(ctx) })
	return n
}

func (s *sim) dial(_ context.Context, addr string) (Peer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[addr[:len(addr)-len(":8080")]]
	return Peer{Admin: simAdmin{node: n, remote: true}, Replica: simReplica{node: n, remote: true}, Release: func() {}}, nil
}

func (s *sim) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.changedAt = time.Now()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *sim) watch() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// view is what everybody knows. mu is held.
func (s *sim) view(n *simNode) *adminv1.MembersResponse {
	v := &adminv1.MembersResponse{Verdict: &clusterv1.Verdict{Live: true}}
	for _, w := range n.verdict {
		v.Verdict.Degraded = append(v.Verdict.Degraded, &clusterv1.Reason{Name: w})
	}
	for _, id := range slices.Sorted(maps.Keys(s.nodes)) {
		m := s.nodes[id]
		liveness := clusterv1.Liveness_LIVENESS_ALIVE
		if !m.alive {
			liveness = clusterv1.Liveness_LIVENESS_DOWN
		}
		v.Members = append(v.Members, &clusterv1.Member{Liveness: liveness, SinceMs: m.since.UnixMilli(), Declared: &clusterv1.Declaration{
			NodeId: id, State: m.declared, Incarnation: "ABCDEFGHIJ" + id, GrpcAddr: id + ":8080", VirtualNodes: 6, DeclaredAtMs: m.at,
		}})
	}
	return v
}

// lent are the ranges that others have in a node's place. mu is held.
func (n *simNode) lent() (out []ring.HashRange) {
	for id, ranges := range n.given {
		if n.nodes[id].declared < drained {
			out = ring.Union(out, ranges)
		}
	}
	return out
}

// owned are the ranges of a node. mu is held.
func (n *simNode) owned() []ring.Placement {
	all := membersOf(n.view(n)).ring(n.factor, func(m member) bool { return m.owner() })
	mine := ring.Union(ring.Subtract(ring.RangesIn(all.RangesOf(n.id)), n.lent()), n.taken)
	var out []ring.Placement
	for _, p := range all.Placements() {
		for _, r := range ring.Intersect([]ring.HashRange{p.Range}, mine) {
			replicas := p.Replicas
			if !slices.Contains(replicas, n.id) {
				replicas = append(slices.Clone(replicas), n.id)
			}
			out = append(out, ring.Placement{Range: r, Replicas: replicas})
		}
	}
	return out
}

func (n *simNode) find(id string) *movev1.Move {
	for _, m := range n.moves {
		if m.GetId() == id {
			return m
		}
	}
	return nil
}

// finish ends a move, if it is still under way.
func (n *simNode) finish(id string) {
	n.change(func() {
		m := n.find(id)
		if n.slow || !n.alive || m.GetState() != movev1.State_STATE_PLANNED {
			return
		}
		target := n.nodes[m.GetTarget().GetNodeId()]
		if !target.alive {
			return
		}
		m.State = movev1.State_STATE_RELEASED
		n.clock++
		m.Epoch = uint64(n.clock)
		ranges := fromWire(m.GetWhat().GetHashRanges())
		if m.GetMode() == movev1.Mode_MODE_ONCE && !m.GetHandOver() {
			target.copied = ring.Union(target.copied, ring.Intersect(ranges, ring.Union(n.strays, n.residue, n.recent)))
		}
		if m.GetHandOver() {
			for id := range n.given {
				n.given[id] = ring.Subtract(n.given[id], ranges)
			}
			n.given[target.id] = ring.Union(n.given[target.id], ranges)
			n.taken = ring.Subtract(n.taken, ranges)
			target.taken = ring.Union(target.taken, ranges)
			for id := range target.given {
				target.given[id] = ring.Subtract(target.given[id], ranges)
			}
		}
	})
}

func (n *simNode) fails(remote bool, call string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if remote && !n.alive || n.broken[call] {
		return status.Error(codes.Unavailable, call+" is broken")
	}
	return nil
}

func copied[M proto.Message](m M) M { return proto.Clone(m).(M) }

type simStream[M any] struct {
	grpc.ClientStream
	ctx  context.Context
	node *simNode
	make func() *M
	seen <-chan struct{}
}

func (s *simStream[M]) Recv() (*M, error) {
	if s.seen != nil {
		select {
		case <-s.seen:
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		}
	}
	s.node.mu.Lock()
	defer s.node.mu.Unlock()
	s.seen = s.node.changed
	return s.make(), nil
}

type simMigration struct {
	migrationv1.MigrationServiceClient
	node *simNode
}

func (c simMigration) Work(ctx context.Context, _ *migrationv1.WorkRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[migrationv1.WorkResponse], error) {
	n := c.node
	return &simStream[migrationv1.WorkResponse]{ctx: ctx, node: n, make: func() *migrationv1.WorkResponse {
		w := &migrationv1.WorkResponse{}
		for _, m := range n.moves {
			if !ended(m) {
				w.Moves = append(w.Moves, copied(m))
			}
		}
		if n.drain != nil && n.drain.GetState() < movev1.DrainState_DRAIN_STATE_COMPLETED {
			w.Drain = copied(n.drain)
		}
		return w
	}}, nil
}

func (c simMigration) Configuration(context.Context, *migrationv1.ConfigurationRequest, ...grpc.CallOption) (*migrationv1.ConfigurationResponse, error) {
	if err := c.node.fails(false, "Configuration"); err != nil {
		return nil, err
	}
	c.node.mu.Lock()
	defer c.node.mu.Unlock()
	return copied(c.node.config), nil
}

func (c simMigration) Ownership(context.Context, *migrationv1.OwnershipRequest, ...grpc.CallOption) (*migrationv1.OwnershipResponse, error) {
	n := c.node
	n.mu.Lock()
	defer n.mu.Unlock()
	a := &migrationv1.OwnershipResponse{
		State: n.declared, WantedState: n.wanted, ReplicationFactor: int32(n.factor), OwnRangesOnly: n.declared != up,
		CleanupNeeded: toWire(ring.Union(n.residue, n.recent)), Stale: toWire(n.residue),
	}
	for _, p := range n.owned() {
		s := &migrationv1.SharedRange{Range: toWire([]ring.HashRange{p.Range})[0], Replicas: p.Replicas}
		for _, id := range p.Replicas {
			ms := int64(0)
			if at, ok := n.equal[id]; ok {
				ms = at.UnixMilli()
			}
			s.EqualWithMs = append(s.EqualWithMs, ms)
		}
		a.Ranges = append(a.Ranges, s)
	}
	return a, nil
}

func (c simMigration) Declare(_ context.Context, r *migrationv1.DeclareRequest, _ ...grpc.CallOption) (*migrationv1.DeclareResponse, error) {
	n := c.node
	if err := n.fails(false, "Declare"); err != nil {
		return nil, err
	}
	var err error
	n.change(func() {
		if n.wanted != r.GetFrom() {
			err = status.Errorf(codes.Aborted, "wants %s", n.wanted)
			return
		}
		if r.GetTo() == drained && len(n.owned()) > 0 {
			err = status.Error(codes.FailedPrecondition, "MOVE_STATE")
			return
		}
		n.wanted = r.GetTo()
	})
	// The health-agent says it a second later.
	time.AfterFunc(time.Second, func() {
		n.change(func() {
			if n.declared == n.wanted {
				return
			}
			n.clock++
			n.at, n.declared = n.clock, n.wanted
			if n.declared == up {
				n.taken = nil
			}
			for _, m := range n.nodes { // what the ring does not give any more is not given away either
				all := membersOf(n.view(m)).ring(n.factor, func(e member) bool { return e.owner() })
				for id := range m.given {
					m.given[id] = ring.Intersect(m.given[id], ring.RangesIn(all.RangesOf(m.id)))
				}
			}
		})
	})
	return &migrationv1.DeclareResponse{}, err
}

func (c simMigration) AdvanceDrain(_ context.Context, r *migrationv1.AdvanceDrainRequest, _ ...grpc.CallOption) (*migrationv1.AdvanceDrainResponse, error) {
	n := c.node
	var err error
	n.change(func() {
		if r.GetVersion() != n.drain.GetVersion() {
			err = status.Error(codes.Aborted, "MOVE_CHANGED")
			return
		}
		n.drain.Version++
		n.drain.State, n.drain.Reason, n.drain.MovesDone, n.drain.MovesTotal = r.GetState(), r.GetReason(), r.GetMovesDone(), r.GetMovesTotal()
	})
	return &migrationv1.AdvanceDrainResponse{}, err
}

func (c simMigration) ReportEqual(_ context.Context, r *migrationv1.ReportEqualRequest, _ ...grpc.CallOption) (*migrationv1.ReportEqualResponse, error) {
	if err := c.node.fails(false, "ReportEqual"); err != nil {
		return nil, err
	}
	c.node.mu.Lock()
	defer c.node.mu.Unlock()
	c.node.compared[c.node.id+" "+r.GetPeerNodeId()]++
	c.node.equal[r.GetPeerNodeId()] = time.Now()
	return &migrationv1.ReportEqualResponse{}, nil
}

type simAdmin struct {
	adminv1.AdminServiceClient
	node   *simNode
	remote bool
}

func (c simAdmin) WatchMembers(ctx context.Context, _ *adminv1.WatchMembersRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[adminv1.WatchMembersResponse], error) {
	n := c.node
	return &simStream[adminv1.WatchMembersResponse]{ctx: ctx, node: n, make: func() *adminv1.WatchMembersResponse {
		return &adminv1.WatchMembersResponse{View: n.view(n)}
	}}, nil
}

func (c simAdmin) Members(context.Context, *adminv1.MembersRequest, ...grpc.CallOption) (*adminv1.MembersResponse, error) {
	if err := c.node.fails(c.remote, "Members"); err != nil {
		return nil, err
	}
	c.node.mu.Lock()
	defer c.node.mu.Unlock()
	return c.node.view(c.node), nil
}

func (c simAdmin) Moves(_ context.Context, r *adminv1.MovesRequest, _ ...grpc.CallOption) (*adminv1.MovesResponse, error) {
	n := c.node
	if err := n.fails(c.remote, "Moves"); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	a := &adminv1.MovesResponse{}
	for _, m := range n.moves {
		if r.GetId() == "" || m.GetParent() == r.GetId() {
			a.Moves = append(a.Moves, copied(m))
		}
	}
	return a, nil
}

func (c simAdmin) Replicate(_ context.Context, r *adminv1.ReplicateRequest, _ ...grpc.CallOption) (*adminv1.ReplicateResponse, error) {
	n := c.node
	if err := n.fails(c.remote, "Replicate"); err != nil {
		return nil, err
	}
	var err error
	var m, made *movev1.Move
	n.mu.Lock()
	target := n.nodes[r.GetTargets()[0].GetNodeId()]
	alive := target.alive
	n.mu.Unlock()
	if !alive { // nothing changes
		return nil, status.Error(codes.FailedPrecondition, "TARGET_UNFIT")
	}
	n.change(func() {
		if m = n.find(r.GetId()); m != nil {
			made = copied(m)
			return
		}
		if !target.alive {
			err = status.Error(codes.FailedPrecondition, "TARGET_UNFIT")
			return
		}
		ranges := fromWire(r.GetWhat().GetHashRanges())
		if r.GetHandOver() && !ring.Covers(ring.RangesIn(n.owned()), ranges) {
			n.t.Errorf("%s gives %s what it does not own: %v", n.id, target.id, r)
		}
		for _, o := range n.moves {
			if !ended(o) && o.GetHandOver() && r.GetHandOver() && ring.Overlaps(fromWire(o.GetWhat().GetHashRanges()), ranges) {
				err = status.Error(codes.FailedPrecondition, "MOVES_OVERLAP")
				return
			}
		}
		m = &movev1.Move{
			Id: r.GetId(), State: movev1.State_STATE_PLANNED, HandOver: r.GetHandOver(), Parent: r.GetParent(), Target: r.GetTargets()[0],
			What: r.GetWhat(), Purpose: r.GetPurpose(), Mode: r.GetMode(),
		}
		n.moves = append(n.moves, m)
		made = copied(m)
		time.AfterFunc(time.Second, func() { n.finish(m.GetId()) })
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.ReplicateResponse{Moves: []*movev1.Move{made}}, nil
}

func (c simAdmin) Cleanup(context.Context, *adminv1.CleanupRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[adminv1.CleanupProgress], error) {
	if err := c.node.fails(c.remote, "Cleanup"); err != nil {
		return nil, err
	}
	err := io.EOF
	c.node.change(func() {
		if c.node.halfway {
			c.node.residue, c.node.recent = ring.Union(c.node.residue, c.node.recent), nil
			err = status.Error(codes.Unavailable, "broken off")
			return
		}
		if c.node.residue = nil; len(c.node.recent) > 0 {
			err = status.Error(codes.FailedPrecondition, "CLEANUP_UNSAFE")
		}
	})
	return simCleanup{err: err}, nil
}

type simCleanup struct {
	grpc.ClientStream
	err error
}

func (c simCleanup) Recv() (*adminv1.CleanupProgress, error) { return nil, c.err }

func (c simAdmin) CancelMove(_ context.Context, r *adminv1.CancelMoveRequest, _ ...grpc.CallOption) (*adminv1.CancelMoveResponse, error) {
	if err := c.node.fails(c.remote, "CancelMove"); err != nil {
		return nil, err
	}
	var err error
	c.node.change(func() {
		m := c.node.find(r.GetId())
		if reached(m) { // since the caller looked
			err = status.Error(codes.FailedPrecondition, "MOVE_STATE")
			return
		}
		m.State = movev1.State_STATE_CANCELLED
	})
	return &adminv1.CancelMoveResponse{}, err
}

func (c simAdmin) Ranges(context.Context, *adminv1.RangesRequest, ...grpc.CallOption) (*adminv1.RangesResponse, error) {
	if err := c.node.fails(c.remote, "Ranges"); err != nil {
		return nil, err
	}
	c.node.mu.Lock()
	defer c.node.mu.Unlock()
	a := &adminv1.RangesResponse{}
	for _, p := range c.node.owned() {
		a.Ranges = append(a.Ranges, &adminv1.OwnedRange{Range: toWire([]ring.HashRange{p.Range})[0], Replicas: p.Replicas})
	}
	return a, nil
}

type simReplica struct {
	replicav1.ReplicaServiceClient
	node   *simNode
	remote bool
}

func (c simReplica) Describe(context.Context, *replicav1.DescribeRequest, ...grpc.CallOption) (*replicav1.DescribeResponse, error) {
	if err := c.node.fails(c.remote, "Describe"); err != nil {
		return nil, err
	}
	c.node.mu.Lock()
	defer c.node.mu.Unlock()
	return &replicav1.DescribeResponse{ClusterId: "c", NodeId: c.node.id, RecordFormats: []uint32{1}, Refusal: c.node.refusal}, nil
}

func (c simReplica) Tenants(context.Context, *replicav1.TenantsRequest, ...grpc.CallOption) (*replicav1.TenantsResponse, error) {
	if err := c.node.fails(c.remote, "Tenants"); err != nil {
		return nil, err
	}
	c.node.mu.Lock()
	defer c.node.mu.Unlock()
	c.node.tenants++
	return &replicav1.TenantsResponse{}, nil
}

func (c simReplica) Digest(_ context.Context, r *replicav1.DigestRequest, _ ...grpc.CallOption) (*replicav1.DigestResponse, error) {
	if err := c.node.fails(c.remote, "Digest"); err != nil {
		return nil, err
	}
	c.node.mu.Lock()
	defer c.node.mu.Unlock()
	ranges := fromWire(r.GetWhat().GetHashRanges())
	if c.node.declared != draining && !ring.Covers(ring.RangesIn(c.node.owned()), ranges) {
		if time.Since(c.node.changedAt) > 0 {
			c.node.t.Errorf("%s is compared in what it does not own", c.node.id)
		}
		return nil, status.Error(codes.FailedPrecondition, "NOT_OWNER")
	}
	a := &replicav1.DigestResponse{Tree: 1, Records: uint64(len(ring.Intersect(ranges, ring.Union(c.node.strays, c.node.residue, c.node.recent))))}
	for range r.GetWhat().GetHashRanges() {
		a.Roots = append(a.Roots, make([]byte, 16))
	}
	return a, nil
}

func (c simReplica) Equal(_ context.Context, r *replicav1.EqualRequest, _ ...grpc.CallOption) (*replicav1.EqualResponse, error) {
	if err := c.node.fails(c.remote, "Equal"); err != nil {
		return nil, err
	}
	c.node.mu.Lock()
	defer c.node.mu.Unlock()
	c.node.equal[r.GetPeer().GetNodeId()] = time.Now()
	return &replicav1.EqualResponse{}, nil
}

// until waits, in virtual time, for a condition, which is called with mu held.
func (s *sim) until(limit time.Duration, what string, ok func() bool) {
	s.t.Helper()
	deadline := time.After(limit)
	for {
		changed := s.watch()
		s.mu.Lock()
		done := ok()
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-time.After(time.Second):
		case <-deadline:
			s.t.Fatalf("after %s it is not so: %s\n%s", limit, what, s)
		}
	}
}

// String is for failures.
func (s *sim) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := ""
	for _, id := range slices.Sorted(maps.Keys(s.nodes)) {
		n := s.nodes[id]
		out += fmt.Sprintf("%s %s wants %s given %d taken %d drain %v\n", id, n.declared, n.wanted, len(n.lent()), len(n.taken), n.drain)
		for _, m := range n.moves {
			out += fmt.Sprintf("  %s %s to %s\n", m.GetId(), m.GetState(), m.GetTarget().GetNodeId())
		}
	}
	return out
}
