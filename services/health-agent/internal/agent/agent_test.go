package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/libs/wire"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/health-agent/internal/gossip"
	"github.com/pairdb/pairdb/services/health-agent/internal/probe"
	"github.com/pairdb/pairdb/services/health-agent/internal/verdict"
)

// TestMain waits for memberlist: a probe that is under way when it is shut down ends with its interval.
func TestMain(m *testing.M) {
	code := m.Run()
	deadline := time.Now().Add(15 * time.Second)
	err := goleak.Find()
	for err != nil && time.Now().Before(deadline) {
		err = goleak.Find()
	}
	if err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// node is a storage node as far as its health-agent can tell.
type node struct {
	nodev1.UnimplementedNodeServiceServer
	socket string

	mu       sync.Mutex // guards all below
	server   *grpc.Server
	served   chan error
	identity *nodev1.IdentityResponse
	health   *nodev1.HealthResponse
	members  membership.Map // durable
	reports  []*nodev1.ReportRequest
	events   map[string]*nodev1.EmitRequest
	emits    int
	lose     int   // answers to Emit that get lost
	refuse   error // of Identity
}

func newNode(t *testing.T, id string) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "pod") // a path of a socket is short
	require.NoError(t, err)
	n := &node{
		socket: filepath.Join(dir, "node.sock"), members: membership.Map{}, events: map[string]*nodev1.EmitRequest{},
		identity: &nodev1.IdentityResponse{
			NodeId: id, ClusterId: "c1", Version: "v1", Session: 1, Incarnation: "i1", GrpcAddr: "127.0.0.1:8080", VirtualNodes: 150,
		},
		health: &nodev1.HealthResponse{
			State: "serving", RecoveryProgress: 1, Disk: &nodev1.DiskHealth{State: "ok", UsedPercent: 12}, Memory: &nodev1.MemoryHealth{State: "ok"},
		},
	}
	t.Cleanup(func() {
		n.stop()
		require.NoError(t, os.RemoveAll(dir))
	})
	return n
}

func (n *node) start(t *testing.T) {
	t.Helper()
	l, err := sidecar.Listen(n.socket)
	require.NoError(t, err)
	s, served := grpc.NewServer(sidecar.ServerOptions(sidecar.SelfAccess())...), make(chan error, 1)
	nodev1.RegisterNodeServiceServer(s, n)
	go func() { served <- s.Serve(l) }()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.server, n.served = s, served
}

func (n *node) stop() {
	n.mu.Lock()
	s, served := n.server, n.served
	n.server = nil
	n.mu.Unlock()
	if s != nil {
		s.Stop()
		<-served
	}
}

func (n *node) set(change func(n *node)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(n)
}

func (n *node) Identity(_ context.Context, r *nodev1.IdentityRequest) (*nodev1.IdentityResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.GetSidecar() != "health-agent" {
		return nil, status.Error(codes.InvalidArgument, r.GetSidecar())
	}
	// A copy: the test changes the original while this one is sent.
	return proto.Clone(n.identity).(*nodev1.IdentityResponse), n.refuse
}

func (n *node) Health(context.Context, *nodev1.HealthRequest) (*nodev1.HealthResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return proto.Clone(n.health).(*nodev1.HealthResponse), nil
}

func (n *node) Report(_ context.Context, r *nodev1.ReportRequest) (*nodev1.ReportResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reports = append(n.reports, r)
	for _, m := range r.GetMembers() {
		d, err := wire.DeclarationFromProto(m.GetDeclared())
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		if _, err := n.members.Merge(d); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	out, err := wire.MembersToProto(n.members)
	return &nodev1.ReportResponse{Declarations: out}, err
}

func (n *node) Emit(_ context.Context, r *nodev1.EmitRequest) (*nodev1.EmitResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.emits++
	n.events[r.GetId()] = r
	if n.lose > 0 {
		n.lose--
		return nil, status.Error(codes.Unavailable, "the answer is lost")
	}
	return &nodev1.EmitResponse{}, nil
}

// last returns the last report, an empty one before the first.
func (n *node) last() *nodev1.ReportRequest {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.reports) == 0 {
		return &nodev1.ReportRequest{}
	}
	return n.reports[len(n.reports)-1]
}

func (n *node) declared(id string) membership.Declaration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.members[id]
}

// kinds counts the events about a member.
func (n *node) kinds(t *testing.T, about string) map[string]int {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[string]int{}
	for _, e := range n.events {
		var payload struct {
			Member struct {
				Declared struct {
					NodeID string `json:"nodeId"`
				} `json:"declared"`
			} `json:"member"`
		}
		require.NoError(t, json.Unmarshal(e.GetPayload(), &payload))
		if payload.Member.Declared.NodeID == about {
			out[e.GetKind()]++
		}
	}
	return out
}

// running is an agent at work.
type running struct {
	*Agent
	cancel context.CancelFunc
	done   chan error
	once   sync.Once
	err    error
}

// limits are short: a test waits for them.
var limits = verdict.Limits{
	NotReadyAfter: 200 * time.Millisecond, NotLiveAfter: 2 * time.Second, StalledAfter: 10 * time.Second, SidecarAfter: time.Minute,
	DiskPercent: 101, NearPercent: 101,
}

// run starts the agent of a node; change may be nil.
func run(t *testing.T, n *node, change func(o *Options)) *running {
	t.Helper()
	conn, err := sidecar.Dial(n.socket)
	require.NoError(t, err)
	o := Options{
		Node: nodev1.NewNodeServiceClient(conn), Zone: "z1", Gossip: gossip.Options{Addr: "127.0.0.1:0"},
		Probe: probe.New(t.TempDir()), Limits: limits, Every: 20 * time.Millisecond,
		Known: func(string) {}, Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(),
	}
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &running{Agent: New(o), cancel: cancel, done: make(chan error, 1)}
	go func() { a.done <- a.Run(ctx) }()
	t.Cleanup(func() {
		a.stop()
		require.NoError(t, conn.Close())
	})
	return a
}

// stop ends the agent as SIGTERM does and returns what Run returned.
func (a *running) stop() error {
	a.once.Do(func() {
		a.cancel()
		a.err = <-a.done
	})
	return a.err
}

func eventually(t *testing.T, condition func() bool, message string) {
	t.Helper()
	require.Eventually(t, condition, 30*time.Second, 5*time.Millisecond, message)
}

func words(list []verdict.Reason) string {
	var out []string
	for _, r := range list {
		out = append(out, string(r.Name))
	}
	return strings.Join(out, ",")
}

func TestAgentJudgesDeclaresAndReports(t *testing.T) {
	// The whole way from a pod that starts to a member that answers for its ranges.
	n := newNode(t, "n1")
	a := run(t, n, nil)
	eventually(t, func() bool { v := a.Verdict(); return v.Live && words(v.NotReady) == "node" }, "the socket is not there yet")

	n.set(func(n *node) { n.health.State, n.health.RecoveryProgress = "recovering", 0.5 })
	n.start(t)
	eventually(t, func() bool { v := a.Verdict(); return v.Live && words(v.NotReady) == "recovering" }, "it recovers")
	eventually(t, func() bool { return n.declared("n1").State == membership.Joining }, "new to the cluster")
	require.Equal(t, "recovering", n.last().GetVerdict().GetNotReady()[0].GetName())

	n.set(func(n *node) {
		n.health.State, n.health.RecoveryProgress = "serving", 1
		n.health.Degraded = []*clusterv1.Reason{{Name: "compaction", Detail: "no compactor"}, {Name: "mood", Detail: "low"}}
	})
	eventually(t, func() bool { return a.Verdict().Ready }, "it serves")
	eventually(t, func() bool { return n.declared("n1").State == membership.Up }, "and answers for its ranges")
	d := n.declared("n1")
	d.DeclaredAt = 0
	require.Equal(t, membership.Declaration{
		NodeID: "n1", Version: 2, State: membership.Up, Incarnation: "i1", GRPCAddr: "127.0.0.1:8080", Zone: "z1", VirtualNodes: 150,
	}, d)
	eventually(t, func() bool {
		r := n.last()
		m := r.GetMembers()
		return r.GetVerdict().GetReady() && len(m) == 1 && m[0].GetReady() && m[0].GetLiveness() == clusterv1.Liveness_LIVENESS_ALIVE &&
			m[0].GetDiskUsedPercent() == 12 && m[0].GetVersion() == "v1" && m[0].GetGossipAddr() != "" &&
			strings.Join(m[0].GetDegraded(), ",") == "other,compaction"
	}, "the report says so")
	require.Equal(t, "compaction,other", words(a.Verdict().Degraded))
	require.Positive(t, testutil.ToFloat64(a.o.Metrics.reports.WithLabelValues("ok")))
	require.Zero(t, a.Stuck())
	require.NoError(t, a.stop())
}

func TestStepsTowardsWhatTheNodeWants(t *testing.T) {
	// A node that is declared up before it has its records answers "not there" for keys that others have; one
	// that is never declared draining can't be scaled down.
	const joining, up, draining, drained, removed = membership.Joining, membership.Up, membership.Draining, membership.Drained, membership.Removed
	for _, c := range []struct {
		known, wanted membership.State
		recovering    membership.State // what is declared while it recovers
		serving       membership.State
	}{
		{joining, 0, joining, up}, // an older node
		{joining, joining, joining, joining},
		{joining, up, joining, up},
		{joining, draining, joining, up},
		{joining, drained, joining, up},
		{up, 0, up, up},
		{up, joining, up, up}, // it recovers, and does not know yet
		{up, up, up, up},
		{up, draining, draining, draining},
		{up, drained, draining, draining},
		{draining, 0, draining, draining},
		{draining, joining, draining, draining},
		{draining, up, up, up},
		{draining, draining, draining, draining},
		{draining, drained, drained, drained},
		{drained, 0, drained, drained},
		{drained, joining, drained, drained},
		{drained, up, drained, drained},
		{drained, draining, drained, drained},
		{drained, drained, drained, drained},
		{removed, up, removed, removed},
	} {
		require.Equal(t, c.recovering, nextState(c.known, c.wanted, false), "%s wants %s and recovers", c.known, c.wanted)
		require.Equal(t, c.serving, nextState(c.known, c.wanted, true), "%s wants %s and serves", c.known, c.wanted)
	}
	require.Zero(t, wantedFromProto(-1))
	require.Zero(t, wantedFromProto(clusterv1.MemberState_MEMBER_STATE_REMOVED), "nobody removes itself")
	require.Equal(t, drained, wantedFromProto(clusterv1.MemberState_MEMBER_STATE_DRAINED))
}

func TestNodeIsDeclaredAsItWants(t *testing.T) {
	// The agent goes its own way: a node is up that has no records yet, or leaves while others think it stays.
	n := newNode(t, "n1")
	want := func(s clusterv1.MemberState) {
		n.set(func(n *node) { n.identity.WantedState = s })
	}
	want(clusterv1.MemberState_MEMBER_STATE_JOINING)
	n.start(t)
	a := run(t, n, nil)
	eventually(t, func() bool { return a.Verdict().Ready && n.declared("n1").State == membership.Joining }, "it joins")
	n.set(func(n *node) { n.reports = nil })
	eventually(t, func() bool { return len(n.last().GetMembers()) == 1 }, "another round")
	n.set(func(n *node) { n.reports = nil })
	eventually(t, func() bool { return len(n.last().GetMembers()) == 1 }, "and another one")
	require.Equal(t, membership.Joining, n.declared("n1").State, "it serves, and is not up")

	want(clusterv1.MemberState_MEMBER_STATE_UP)
	eventually(t, func() bool { return n.declared("n1").State == membership.Up }, "bootstrapped")
	want(clusterv1.MemberState_MEMBER_STATE_DRAINING)
	eventually(t, func() bool { return n.declared("n1").State == membership.Draining }, "it leaves")
	want(clusterv1.MemberState_MEMBER_STATE_UP)
	eventually(t, func() bool { return n.declared("n1").State == membership.Up }, "called off")
	want(clusterv1.MemberState_MEMBER_STATE_DRAINED)
	eventually(t, func() bool { return n.declared("n1").State == membership.Drained }, "over DRAINING")
	require.EqualValues(t, 6, n.declared("n1").Version)
}

func TestRestartOfTheNodeIsSeenAndDeclaresNothing(t *testing.T) {
	// A rolling update must not look like a change of the cluster.
	n := newNode(t, "n1")
	n.start(t)
	a := run(t, n, nil)
	eventually(t, func() bool { return a.Verdict().Ready && n.declared("n1").State == membership.Up }, "up")

	n.stop()
	eventually(t, func() bool { v := a.Verdict(); return v.Live && words(v.NotReady) == "node" }, "away")
	require.Zero(t, testutil.ToFloat64(a.o.Metrics.reachable))
	eventually(t, func() bool { v := a.Verdict(); return !v.Live }, "away for too long")

	n.set(func(n *node) { n.identity.Session = 2; n.reports = nil })
	n.start(t)
	eventually(t, func() bool { return a.Verdict().Ready }, "back")
	eventually(t, func() bool { return len(n.last().GetMembers()) == 1 }, "and reported")
	require.EqualValues(t, 2, n.declared("n1").Version)

	// Another data directory is another member.
	n.set(func(n *node) { n.identity.Session, n.identity.Incarnation = 3, "i2" })
	eventually(t, func() bool {
		d := n.declared("n1")
		return d.Version == 4 && d.State == membership.Up && d.Incarnation == "i2"
	}, "anew")
	// A new address is a new version.
	n.set(func(n *node) { n.identity.GrpcAddr = "127.0.0.1:8081" })
	eventually(t, func() bool { d := n.declared("n1"); return d.Version == 5 && d.GRPCAddr == "127.0.0.1:8081" }, "moved")
}

func TestARemovedMemberSaysSoAndStaysRemoved(t *testing.T) {
	// An agent that declares a removed node up again undoes what an operator did.
	n := newNode(t, "n1")
	n.start(t)
	a := run(t, n, nil)
	eventually(t, func() bool { return n.declared("n1").State == membership.Up }, "up")
	n.set(func(n *node) {
		d, err := membership.Remove(n.members["n1"], 1)
		require.NoError(t, err)
		n.members["n1"] = d
	})
	eventually(t, func() bool { return words(a.Verdict().NotReady) == "removed" }, "said")
	reports := testutil.ToFloat64(a.o.Metrics.reports.WithLabelValues("ok"))
	eventually(t, func() bool { return testutil.ToFloat64(a.o.Metrics.reports.WithLabelValues("ok")) > reports+3 }, "some rounds")
	require.Equal(t, membership.Removed, n.declared("n1").State)
	require.EqualValues(t, 3, n.declared("n1").Version)
}

func TestAnAgentServesOneNodeOnly(t *testing.T) {
	// Gossip, metrics and declarations speak in the name of one node.
	t.Run("another id", func(t *testing.T) {
		n := newNode(t, "n1")
		n.start(t)
		a := run(t, n, nil)
		eventually(t, func() bool { return a.Verdict().Ready }, "up")
		n.set(func(n *node) { n.identity.NodeId = "n2" })
		err := <-a.done
		require.ErrorContains(t, err, "the node changed from n1")
		require.Equal(t, service.ExitRuntime, service.ExitCode(err))
		a.done <- err
	})
	t.Run("not the one of the configuration", func(t *testing.T) {
		n := newNode(t, "n1")
		n.start(t)
		a := run(t, n, func(o *Options) { o.NodeID = "n2" })
		err := <-a.done
		require.ErrorContains(t, err, "PAIRDB_NODE_ID")
		require.Equal(t, service.ExitUsage, service.ExitCode(err))
		a.done <- err
	})
	t.Run("not allowed", func(t *testing.T) {
		n := newNode(t, "n1")
		n.refuse = status.Error(codes.PermissionDenied, "see PAIRDB_SOCKET_UIDS")
		n.start(t)
		a := run(t, n, nil)
		err := <-a.done
		require.ErrorContains(t, err, "PAIRDB_SOCKET_UIDS")
		require.Equal(t, service.ExitUnreachable, service.ExitCode(err))
		a.done <- err
	})
}

func TestTwoPodsSeeEachOtherAndTellTheirNodes(t *testing.T) {
	// The view that operators and clients get is what the reports carry.
	n1, n2 := newNode(t, "n1"), newNode(t, "n2")
	n1.start(t)
	n2.start(t)
	a1 := run(t, n1, nil)
	eventually(t, func() bool { return len(n1.last().GetMembers()) == 1 && n1.declared("n1").State == membership.Up }, "the first is up")
	n1.set(func(n *node) { n.lose = 2 })
	seed := n1.last().GetMembers()[0].GetGossipAddr()
	a2 := run(t, n2, func(o *Options) { o.Gossip.Seeds, o.Zone = []string{seed}, "z2" })
	for _, n := range []*node{n1, n2} {
		eventually(t, func() bool {
			m := n.last().GetMembers()
			return len(m) == 2 && n.declared("n1").State == membership.Up && n.declared("n2").Zone == "z2" && n.declared("n2").State == membership.Up &&
				m[0].GetLiveness() == clusterv1.Liveness_LIVENESS_ALIVE && m[1].GetLiveness() == clusterv1.Liveness_LIVENESS_ALIVE && m[1].GetReady()
		}, "both nodes know both")
	}
	eventually(t, func() bool { return n1.kinds(t, "n2")["membership.joined"] == 1 }, "joined")
	require.NoError(t, a2.stop())
	eventually(t, func() bool { return n1.kinds(t, "n2")["membership.left"] == 1 }, "left")
	eventually(t, func() bool { return n1.last().GetMembers()[1].GetLiveness() == clusterv1.Liveness_LIVENESS_LEFT }, "left, and no failure")
	eventually(t, func() bool { return words(a1.Verdict().Degraded) == "isolated" }, "alone among two")
	require.True(t, a1.Verdict().Ready, "whoever is away, this node serves")
	require.Equal(t, map[string]int{"membership.joined": 1, "membership.left": 1}, n1.kinds(t, "n2"), "an answer that was lost is no second event")
	n1.set(func(n *node) { require.Equal(t, 4, n.emits) })
	require.Empty(t, n2.kinds(t, "n1"), "what was there is no news")
	for id, e := range n1.events {
		require.True(t, strings.HasPrefix(id, "n1/"), id)
		require.LessOrEqual(t, len(id), 128)
		require.Positive(t, e.GetTimeMs())
	}
}

func TestGossipThatCantRunDegrades(t *testing.T) {
	// A port that is taken must not take the verdict with it.
	n := newNode(t, "n1")
	n.start(t)
	a := run(t, n, func(o *Options) { o.Gossip.Keyring = filepath.Join(t.TempDir(), "missing") })
	eventually(t, func() bool { v := a.Verdict(); return v.Ready && words(v.Degraded) == "gossip" }, "degraded")
	eventually(t, func() bool { return n.last().GetVerdict().GetReady() }, "and reported")
}

func TestMetricsCarryTheNodeAndChange(t *testing.T) {
	// Dashboards join the four endpoints of a pod by the node's id.
	n := newNode(t, "n1")
	n.start(t)
	r := prometheus.NewRegistry()
	a := run(t, n, func(o *Options) {
		o.Known = func(id string) { o.Metrics.Register(r, id) }
	})
	eventually(t, func() bool { return a.Verdict().Ready && n.declared("n1").State == membership.Up }, "up")
	eventually(t, func() bool { return testutil.ToFloat64(a.o.Metrics.live)+testutil.ToFloat64(a.o.Metrics.ready) == 2 }, "shown")
	families, err := r.Gather()
	require.NoError(t, err)
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
		for _, m := range f.GetMetric() {
			id := ""
			for _, l := range m.GetLabel() {
				if l.GetName() == "node_id" {
					id = l.GetValue()
				}
			}
			require.Equal(t, "n1", id, f.GetName())
		}
	}
	require.Equal(t, []string{
		"pairdb_gossip_joined", "pairdb_gossip_members", "pairdb_gossip_members_healthy", "pairdb_gossip_members_total",
		"pairdb_gossip_messages_duration_seconds", "pairdb_gossip_messages_total", "pairdb_gossip_refused_total",
		"pairdb_health_degraded", "pairdb_health_live", "pairdb_health_node_reachable", "pairdb_health_ready", "pairdb_health_reports_total",
	}, names)
}

func TestEventsThatWaitAreBounded(t *testing.T) {
	// A node that is away for hours must not fill its agent.
	a := &Agent{o: Options{Log: slog.New(slog.DiscardHandler)}, identity: &identity{nodeID: strings.Repeat("n", membership.MaxNodeIDBytes)}}
	var transitions []gossip.Transition
	for i := range 2 * maxPending {
		transitions = append(transitions, gossip.Transition{
			From: gossip.Unseen, Member: gossip.Member{Liveness: gossip.Down, Since: time.UnixMilli(int64(i)), Declared: membership.Declaration{NodeID: "x"}},
		})
	}
	a.collect(transitions)
	require.Len(t, a.pending, maxPending)
	require.EqualValues(t, 2*maxPending-1, a.pending[maxPending-1].GetTimeMs(), "the newest stay")
	require.LessOrEqual(t, len(a.pending[0].GetId()), 128)
	a.collect([]gossip.Transition{{From: gossip.Alive, Member: gossip.Member{Liveness: gossip.Suspect}}, {From: gossip.Suspect}})
	require.EqualValues(t, 2*maxPending-1, a.pending[maxPending-1].GetTimeMs(), "suspicion is no event")
}
