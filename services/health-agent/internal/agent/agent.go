package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/wire"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/health-agent/internal/gossip"
	"github.com/pairdb/pairdb/services/health-agent/internal/probe"
	"github.com/pairdb/pairdb/services/health-agent/internal/verdict"
)

// sidecarName is how the node knows this process.
const sidecarName = "health-agent"

// Times of the work.
const (
	// callTimeout bounds a call to the node. Its answers come from memory, but for a report that
	// brings news, which it syncs.
	callTimeout = 2 * time.Second
	// gossipRetry is how long to wait after gossip could not be opened.
	gossipRetry = 5 * time.Second
	// stuckAfter is how long a round may take before this process counts as hung: several times what
	// all calls of a round may take together.
	stuckAfter = 30 * time.Second
)

// failFast makes a call fail at once while the node can't be reached, with the reason (no such
// socket, refused) instead of a deadline; the next round tries again.
var failFast = grpc.WaitForReady(false)

// Options configure an Agent. All are required but NodeID and Zone.
type Options struct {
	// Node is the storage node of the pod.
	Node nodev1.NodeServiceClient
	// NodeID is the name that the node must have; empty: any.
	NodeID string
	// Zone is what the node is declared with.
	Zone string
	// Gossip opens gossip once the node is known; what is in it is completed by the agent.
	Gossip gossip.Options
	Probe  *probe.Prober
	Limits verdict.Limits
	// Every is the time between two rounds. Changes are answered after a tenth of it.
	Every time.Duration
	// Known is called once, when the id of the node is known.
	Known   func(nodeID string)
	Log     *slog.Logger
	Metrics *Metrics
}

// identity is whose sidecar this is.
type identity struct {
	nodeID, clusterID, version, incarnation, grpcAddr string
	session                                           uint64
	virtualNodes                                      int
	wanted                                            membership.State // 0: the node does not say
}

// Agent is a health-agent. Run it once; Verdict and Stuck may be called concurrently.
type Agent struct {
	o       Options
	verdict atomic.Pointer[verdict.Verdict]
	round   atomic.Int64 // when the last round ended, in nanoseconds since started
	started time.Time

	// All below belong to Run.
	identity *identity           // nil until the node has answered
	status   *verdict.NodeStatus // likewise
	why      string              // it does not answer now; empty when it does
	answered time.Time           // when it did last, at first started
	progress float64             // of its recovery
	moved    time.Time           // when progress changed
	gossip   *gossip.Gossip      // nil until it could be opened
	off      string              // why it could not
	retryAt  time.Time
	known    bool // the node has told what it remembers of the members
	wake     bool // the next round is soon
	problem  string
	pending  []*nodev1.EmitRequest
}

// New returns an agent.
func New(o Options) *Agent {
	a := &Agent{o: o, started: time.Now(), why: "not asked yet"}
	a.answered = a.started
	a.judge(a.started, gossip.View{}, probe.Sample{DiskPercent: -1})
	return a
}

// Verdict returns the last verdict.
func (a *Agent) Verdict() verdict.Verdict { return *a.verdict.Load() }

// Stuck returns for how long no round has ended, when that is too long, or 0.
func (a *Agent) Stuck() time.Duration {
	if d := time.Since(a.started) - time.Duration(a.round.Load()); d >= stuckAfter {
		return d
	}
	return 0
}

// Run works until ctx ends, then takes leave of the other agents. It returns an error when this agent
// may not ask, or the node is another one than before.
func (a *Agent) Run(ctx context.Context) error {
	defer a.closeGossip()
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.changes():
			// A wave of changes is one round.
			if soon := time.Now().Add(a.o.Every / 10); soon.Before(due) {
				due = soon
				timer.Reset(a.o.Every / 10)
			}
			continue
		case <-timer.C:
		}
		if err := a.work(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		a.round.Store(int64(time.Since(a.started)))
		wait := a.o.Every
		if a.wake {
			a.wake, wait = false, a.o.Every/10
		}
		due = time.Now().Add(wait)
		timer.Reset(wait)
	}
}

func (a *Agent) changes() <-chan struct{} {
	if a.gossip == nil {
		return nil
	}
	return a.gossip.Changes()
}

func (a *Agent) closeGossip() {
	if a.gossip == nil {
		return
	}
	if err := a.gossip.Close(); err != nil {
		a.o.Log.Warn("gossip closed badly", "error", err)
	}
}

// work is one round.
func (a *Agent) work(ctx context.Context) error {
	if err := a.ask(ctx); err != nil {
		return err
	}
	now := time.Now()
	a.openGossip(now)
	sample := a.o.Probe.Measure(now)
	view := a.view()
	v := a.judge(now, view, sample)
	if a.identity == nil {
		return nil
	}
	if a.gossip != nil {
		a.gossip.SetMeta(a.meta(v, view, sample))
		a.declare(view, now)
		a.collect(a.gossip.Transitions())
	}
	if a.why == "" {
		a.report(ctx, v, a.view())
		a.emit(ctx)
	}
	return nil
}

func (a *Agent) view() gossip.View {
	if a.gossip == nil {
		return gossip.View{}
	}
	return a.gossip.View()
}

// ask asks the node who and how it is.
func (a *Agent) ask(ctx context.Context) error {
	err := a.askIdentity(ctx)
	var fatal *fatalError
	if errors.As(err, &fatal) {
		return fatal.err
	}
	if err == nil {
		err = a.askHealth(ctx)
	}
	if ctx.Err() != nil {
		return nil // the end of this agent says nothing about the node
	}
	if err != nil {
		if a.why == "" {
			a.o.Log.Warn("node lost", "error", err)
		}
		a.why = err.Error()
		return nil
	}
	if a.why != "" {
		a.o.Log.Info("node reached", "node_id", a.identity.nodeID)
	}
	a.why, a.answered = "", time.Now()
	return nil
}

// fatalError ends the agent.
type fatalError struct{ err error }

func (f *fatalError) Error() string { return f.err.Error() }

func fatal(code int, format string, args ...any) error {
	return &fatalError{service.WithExitCode(code, fmt.Errorf(format, args...))}
}

// askIdentity asks who the node is, each time: a restart between two rounds would not be noticed
// otherwise.
func (a *Agent) askIdentity(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := a.o.Node.Identity(ctx, &nodev1.IdentityRequest{Sidecar: sidecarName}, failFast)
	if code := status.Code(err); code == codes.PermissionDenied || code == codes.Unauthenticated {
		return fatal(service.ExitUnreachable, "identity: %w", err)
	}
	if err != nil {
		return err
	}
	id := identity{
		nodeID: r.GetNodeId(), clusterID: r.GetClusterId(), version: r.GetVersion(), incarnation: r.GetIncarnation(),
		grpcAddr: r.GetGrpcAddr(), session: r.GetSession(), virtualNodes: int(r.GetVirtualNodes()),
		wanted: wantedFromProto(r.GetWantedState()),
	}
	return a.meet(id)
}

// meet compares the node with the one that was there before.
func (a *Agent) meet(id identity) error {
	before := a.identity
	switch {
	case before == nil && a.o.NodeID != "" && id.nodeID != a.o.NodeID:
		return fatal(service.ExitUsage, "the node at the socket is %s, and PAIRDB_NODE_ID is %s: one of them belongs to another pod", id.nodeID, a.o.NodeID)
	case before == nil && !membership.ValidNodeID(id.nodeID):
		return fatal(service.ExitRuntime, "the node at the socket calls itself %.120q", id.nodeID)
	case before != nil && (id.nodeID != before.nodeID || id.clusterID != before.clusterID):
		// Everything here, gossip above all, speaks in the name of one node; a new process begins anew.
		return fatal(service.ExitRuntime, "the node changed from %s of cluster %s to %s of cluster %s: start the health-agent again",
			before.nodeID, before.clusterID, id.nodeID, id.clusterID)
	case before == nil:
		a.o.Log.Info("node found", "node_id", id.nodeID, "cluster_id", id.clusterID, "version", id.version, "session", id.session)
		a.o.Known(id.nodeID)
	case id.session != before.session:
		a.o.Log.Info("node restarted", "node_id", id.nodeID, "version", id.version, "session", id.session)
		a.known = false // it tells again what it remembers
		a.progress, a.moved = 0, time.Now()
	}
	a.identity = &id
	return nil
}

func (a *Agent) askHealth(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := a.o.Node.Health(ctx, &nodev1.HealthRequest{Sidecar: sidecarName}, failFast)
	if err != nil {
		return err
	}
	a.status = statusFromProto(r)
	now := time.Now()
	if a.moved.IsZero() || a.status.Progress != a.progress {
		a.progress, a.moved = a.status.Progress, now
	}
	a.status.Unmoved = now.Sub(a.moved)
	return nil
}

// openGossip opens gossip once it is known in whose name.
func (a *Agent) openGossip(now time.Time) {
	if a.gossip != nil || a.identity == nil || now.Before(a.retryAt) {
		return
	}
	o := a.o.Gossip
	o.NodeID, o.ClusterID, o.Log, o.Metrics = a.identity.nodeID, a.identity.clusterID, a.o.Log, a.o.Metrics.gossip
	o.Meta = a.meta(a.Verdict(), gossip.View{}, probe.Sample{DiskPercent: -1})
	g, err := gossip.Open(o)
	if err != nil {
		if a.off == "" {
			a.o.Log.Error("gossip does not run", "error", err)
		}
		a.off, a.retryAt = err.Error(), now.Add(gossipRetry)
		return
	}
	a.gossip, a.off = g, ""
	a.o.Log.Info("gossip runs", "addr", g.Addr(), "encrypted", o.Keyring != "", "seeds", len(o.Seeds))
}

// judge makes the verdict and shows it.
func (a *Agent) judge(now time.Time, view gossip.View, sample probe.Sample) verdict.Verdict {
	in := verdict.Input{
		Node: a.status, Why: a.why, Gossip: a.standing(view), Probe: verdict.ProbeStatus(sample),
	}
	if a.why != "" {
		in.Away = now.Sub(a.answered)
	}
	v := a.o.Limits.Judge(in)
	if before := a.verdict.Swap(&v); before != nil && changed(*before, v) {
		a.o.Log.Info("verdict", "live", v.Live, "ready", v.Ready, "not_live", v.NotLive, "not_ready", v.NotReady, "degraded", v.Degraded)
	}
	a.o.Metrics.show(v, a.why == "")
	return v
}

// changed compares verdicts by their words: details change every second.
func changed(a, b verdict.Verdict) bool {
	return a.Live != b.Live || a.Ready != b.Ready || verdict.Bits(a.NotLive) != verdict.Bits(b.NotLive) ||
		verdict.Bits(a.NotReady) != verdict.Bits(b.NotReady) || verdict.Bits(a.Degraded) != verdict.Bits(b.Degraded)
}

// standing is how this member stands among the others.
func (a *Agent) standing(view gossip.View) verdict.GossipStatus {
	s := verdict.GossipStatus{Off: a.off, Unanswered: view.Unanswered, Duplicate: view.Duplicate, Keyring: view.Keyring}
	if a.gossip == nil {
		if a.off == "" {
			s.Off = "not started: the node is not known yet"
		}
		return s
	}
	for _, m := range view.Members {
		switch {
		case m.Declared.NodeID == a.identity.nodeID:
			s.Removed = m.Declared.State == membership.Removed && m.Declared.Incarnation == a.identity.incarnation
		case m.Declared.State == membership.Removed:
		default:
			s.Others++
			if m.Liveness == gossip.Alive || m.Liveness == gossip.Suspect {
				s.Reachable++
			}
		}
	}
	return s
}

// meta is what the others are told.
func (a *Agent) meta(v verdict.Verdict, view gossip.View, sample probe.Sample) gossip.Meta {
	id, disk := a.identity, sample.DiskPercent
	if a.status != nil && a.status.Disk != "" {
		disk = a.status.DiskPercent
	}
	return gossip.Meta{
		GRPCAddr: id.grpcAddr, Version: id.version, Ready: v.Ready, Degraded: verdict.Bits(v.Degraded),
		DiskPercent: int(disk), Incarnation: id.incarnation, DeclaredVersion: view.Declared[id.nodeID].Version,
	}
}

// declare says what is new about this member.
func (a *Agent) declare(view gossip.View, now time.Time) {
	id := a.identity
	known := view.Declared[id.nodeID]
	removed := known.State == membership.Removed && known.Incarnation == id.incarnation
	if !a.known || view.Contested || removed || a.status == nil {
		return
	}
	want := membership.Declaration{
		NodeID: id.nodeID, State: known.State, Incarnation: id.incarnation,
		GRPCAddr: id.grpcAddr, Zone: a.o.Zone, VirtualNodes: id.virtualNodes,
	}
	serving := a.why == "" && a.status.State == verdict.StateServing
	if known.Version == 0 || known.Incarnation != id.incarnation {
		want.State = membership.Joining
	} else if a.why == "" {
		want.State = nextState(known.State, id.wanted, serving)
	}
	next, err := membership.Declare(known, want, now.UnixMilli())
	if err == nil && next != known {
		err = a.gossip.Merge(next)
		a.wake = true
		a.o.Log.Info("declared", "state", next.State.String(), "version", next.Version, "incarnation", next.Incarnation, "grpc_addr", next.GRPCAddr, "zone", next.Zone)
	}
	a.complain("not declared", err)
}

// nextState is what a member declares after what it has declared: a step towards what its node wants. A
// node that does not say, because it is an older one, is up once it serves. What the node wants and can't
// follow is left: it knows why.
func nextState(known, wanted membership.State, serving bool) membership.State {
	switch known {
	case membership.Joining:
		// One that is to drain has been up, and nobody has seen it: it takes the way over UP.
		if serving && wanted != membership.Joining {
			return membership.Up
		}
	case membership.Up:
		if wanted == membership.Draining || wanted == membership.Drained {
			return membership.Draining
		}
	case membership.Draining:
		if wanted == membership.Up || wanted == membership.Drained {
			return wanted
		}
	}
	return known
}

// wantedFromProto returns 0 for what this agent does not know: the node does not say then.
func wantedFromProto(s clusterv1.MemberState) membership.State {
	if s < clusterv1.MemberState_MEMBER_STATE_JOINING || s > clusterv1.MemberState_MEMBER_STATE_DRAINED {
		return 0
	}
	return membership.State(s)
}

// complain logs a problem when it is another one than before.
func (a *Agent) complain(what string, err error) {
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	if problem != "" && problem != a.problem {
		a.o.Log.Error(what, "error", err)
	}
	a.problem = problem
}

// report gives the node the view and takes what it remembers.
func (a *Agent) report(ctx context.Context, v verdict.Verdict, view gossip.View) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := a.o.Node.Report(ctx, &nodev1.ReportRequest{Verdict: verdictToProto(v), Members: membersToProto(view.Members)}, failFast)
	var remembered membership.Map
	if err == nil {
		remembered, err = wire.MembersFromProto(r.GetDeclarations())
	}
	if err == nil && a.gossip != nil {
		err = a.gossip.Merge(remembered.Sorted()...)
	}
	if err != nil {
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			a.o.Metrics.reports.WithLabelValues("failed").Inc()
			a.o.Log.Debug("report failed", "error", err)
		}
		return
	}
	a.o.Metrics.reports.WithLabelValues("ok").Inc()
	if !a.known && a.gossip != nil {
		a.known, a.wake = true, true
	}
}
