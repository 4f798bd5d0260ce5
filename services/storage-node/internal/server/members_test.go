package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// declaration is what member n<i> says of itself on the wire.
func declaration(i int, version uint64, s clusterv1.MemberState) *clusterv1.Declaration {
	return &clusterv1.Declaration{
		NodeId: fmt.Sprintf("n%d", i), Version: version, State: s, Incarnation: fmt.Sprintf("i%d", i),
		GrpcAddr: fmt.Sprintf("10.0.0.%d:8080", i), Zone: "a", VirtualNodes: 150, DeclaredAtMs: 5,
	}
}

func upMember(i int, version uint64, l clusterv1.Liveness) *clusterv1.Member {
	return &clusterv1.Member{
		Declared: declaration(i, version, clusterv1.MemberState_MEMBER_STATE_UP), Liveness: l, SinceMs: 7, Version: "v1", GossipAddr: "10.0.0.1:7946",
		Ready: true, Degraded: []string{"disk"}, DiskUsedPercent: 88,
	}
}

const (
	alive   = clusterv1.Liveness_LIVENESS_ALIVE
	suspect = clusterv1.Liveness_LIVENESS_SUSPECT
	down    = clusterv1.Liveness_LIVENESS_DOWN
	unseen  = clusterv1.Liveness_LIVENESS_UNSEEN
)

func (w *world) report(all ...*clusterv1.Member) *nodev1.ReportResponse {
	w.t.Helper()
	r, err := w.node.Report(w.t.Context(), &nodev1.ReportRequest{Members: all})
	require.NoError(w.t, err)
	return r
}

func (w *world) view() *adminv1.MembersResponse {
	w.t.Helper()
	r, err := w.admin.Members(w.t.Context(), &adminv1.MembersRequest{})
	require.NoError(w.t, err)
	return r
}

func requireProto(t *testing.T, want, got proto.Message) {
	t.Helper()
	require.True(t, proto.Equal(want, got), "want %v\ngot  %v", want, got)
}

// A sidecar that is told of another directory or address joins the cluster as somebody else.
func TestIdentityTellsWhatASidecarDeclares(t *testing.T) {
	w := start(t, joining)
	got, err := w.node.Identity(t.Context(), &nodev1.IdentityRequest{Sidecar: "health-agent"})
	require.NoError(t, err)
	requireProto(t, &nodev1.IdentityResponse{
		NodeId: "n1", ClusterId: "c", Version: "v1", Session: 7, Incarnation: "i1", GrpcAddr: "10.0.0.1:8080", VirtualNodes: 150,
		WantedState: clusterv1.MemberState_MEMBER_STATE_JOINING,
	}, got)
	// While the node recovers it does not know what it wants: nobody may declare it up for that.
	w = start(t, func(w *world, _ *Options) { w.phase = StateRecovering })
	got, err = w.node.Identity(t.Context(), &nodev1.IdentityRequest{})
	require.NoError(t, err)
	require.Equal(t, clusterv1.MemberState_MEMBER_STATE_JOINING, got.GetWantedState())
}

// A field that is lost between the health-agent and an operator is one that he believes to be empty.
func TestReportReachesWhoAsksForMembers(t *testing.T) {
	w := start(t)
	empty := w.view()
	require.EqualValues(t, -1, empty.GetAgeMs())
	require.Nil(t, empty.GetVerdict())
	verdict := &clusterv1.Verdict{
		Live: true, NotReady: []*clusterv1.Reason{{Name: "recovering", Detail: "half"}}, Degraded: []*clusterv1.Reason{{Name: "disk"}, {Name: "nats"}},
	}
	removed := upMember(0, 3, clusterv1.Liveness_LIVENESS_LEFT)
	removed.Declared.State = clusterv1.MemberState_MEMBER_STATE_REMOVED
	one, two := upMember(1, 1, alive), upMember(2, 2, suspect)
	r, err := w.node.Report(t.Context(), &nodev1.ReportRequest{Verdict: verdict, Members: []*clusterv1.Member{two, removed, one}})
	require.NoError(t, err)
	requireProto(t, &nodev1.ReportResponse{Declarations: []*clusterv1.Declaration{removed.Declared, one.Declared, two.Declared}}, r)
	got := w.view()
	require.GreaterOrEqual(t, got.GetAgeMs(), int64(0))
	require.Less(t, got.GetAgeMs(), int64(10_000))
	got.AgeMs = 0
	requireProto(t, &adminv1.MembersResponse{Members: []*clusterv1.Member{one, two, removed}, Verdict: verdict}, got)
	// Without the verdict, and of one member only: the rest is remembered.
	require.Len(t, w.report(one).GetDeclarations(), 3)
	got = w.view()
	require.Nil(t, got.GetVerdict())
	require.Equal(t, unseen, got.GetMembers()[1].GetLiveness())
}

// A report that is believed in part makes a map that nobody declared.
func TestBadReportIsRefusedAsAWhole(t *testing.T) {
	w := start(t)
	w.report(upMember(1, 1, alive))
	before := w.view()
	change := func(f func(*clusterv1.Member)) *nodev1.ReportRequest {
		bad := upMember(3, 1, alive)
		f(bad)
		return &nodev1.ReportRequest{Members: []*clusterv1.Member{upMember(2, 1, alive), bad}}
	}
	many := &nodev1.ReportRequest{}
	for i := range 1001 {
		many.Members = append(many.Members, upMember(i, 1, alive))
	}
	for name, c := range map[string]struct {
		request *nodev1.ReportRequest
		says    string
	}{
		"too many":           {many, "1001 members"},
		"twice":              {change(func(m *clusterv1.Member) { m.Declared.NodeId = "n2" }), "n2 stands there twice"},
		"no declaration":     {change(func(m *clusterv1.Member) { m.Declared = nil }), "member 1"},
		"empty member":       {&nodev1.ReportRequest{Members: []*clusterv1.Member{{}}}, "member 0"},
		"no state":           {change(func(m *clusterv1.Member) { m.Declared.State = 0 }), "state"},
		"unknown state":      {change(func(m *clusterv1.Member) { m.Declared.State = 6 }), "state"},
		"negative state":     {change(func(m *clusterv1.Member) { m.Declared.State = -1 }), "state"},
		"state beyond bytes": {change(func(m *clusterv1.Member) { m.Declared.State = 258 }), "state"},
		"no liveness":        {change(func(m *clusterv1.Member) { m.Liveness = 0 }), "liveness"},
		"unknown liveness":   {change(func(m *clusterv1.Member) { m.Liveness = 257 }), "liveness"},
		"negative liveness":  {change(func(m *clusterv1.Member) { m.Liveness = -1 }), "liveness"},
		"oversize":           {change(func(m *clusterv1.Member) { m.Declared.GrpcAddr = strings.Repeat("x", 261) }), "n3"},
		"long reason": {&nodev1.ReportRequest{Members: []*clusterv1.Member{upMember(2, 1, alive)}, Verdict: &clusterv1.Verdict{
			NotReady: []*clusterv1.Reason{{Detail: strings.Repeat("x", 1001)}}}}, "verdict"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.node.Report(t.Context(), c.request)
			require.Equal(t, refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_REPORT"}, refused(t, err))
			require.ErrorContains(t, err, c.says)
			got := w.view()
			got.AgeMs = before.GetAgeMs()
			requireProto(t, before, got)
		})
	}
}

// Whoever takes a member out must be stopped by what he can't know.
func TestRemovalsAreRefusedWithTheirReasons(t *testing.T) {
	w := start(t)
	remove := func(id, reason string) (*adminv1.RemoveMemberResponse, error) {
		return w.admin.RemoveMember(t.Context(), &adminv1.RemoveMemberRequest{NodeId: id, Reason: reason})
	}
	_, err := remove("n2", "why")
	require.Equal(t, refusal{code: codes.NotFound, reason: "MEMBER_NOT_FOUND"}, refused(t, err))
	w.report(upMember(1, 1, alive), upMember(2, 1, alive), upMember(3, 1, suspect), upMember(4, 6, down))
	for _, c := range []struct {
		id, reason string
		want       refusal
	}{
		{"n1", "why", refusal{code: codes.FailedPrecondition, reason: "MEMBER_SELF"}},
		{"n2", "why", refusal{codes.FailedPrecondition, "MEMBER_ALIVE", 5 * time.Second}},
		{"n3", "why", refusal{codes.FailedPrecondition, "MEMBER_ALIVE", 5 * time.Second}},
		{"n9", "why", refusal{code: codes.NotFound, reason: "MEMBER_NOT_FOUND"}},
		{"", "why", refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_MEMBER"}},
		{"n 4", "why", refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_MEMBER"}},
		{"n4", "", refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_REMOVAL"}},
		{"n4", strings.Repeat("x", 1001), refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_REMOVAL"}},
	} {
		_, err := remove(c.id, c.reason)
		require.Equal(t, c.want, refused(t, err), "%+v", c)
	}
	got, err := remove("n4", "its disk burnt")
	require.NoError(t, err)
	require.EqualValues(t, 7, got.GetDeclared().GetVersion())
	require.Equal(t, clusterv1.MemberState_MEMBER_STATE_REMOVED, got.GetDeclared().GetState())
	again, err := remove("n4", "again")
	require.NoError(t, err)
	requireProto(t, got, again)
	require.Equal(t, "n4", w.view().GetMembers()[3].GetDeclared().GetNodeId())
}

func TestMapThatIsFullSaysSo(t *testing.T) {
	w := start(t)
	var all []*clusterv1.Member
	for i := range 1000 {
		all = append(all, upMember(i, 1, alive))
	}
	require.Len(t, w.report(all...).GetDeclarations(), 1000)
	_, err := w.node.Report(t.Context(), &nodev1.ReportRequest{Members: []*clusterv1.Member{upMember(1000, 1, alive)}})
	require.Equal(t, refusal{code: codes.ResourceExhausted, reason: "TOO_MANY_MEMBERS"}, refused(t, err))
}

// Operators look at Status first.
func TestStatusTellsProblemsOfTheMap(t *testing.T) {
	w := start(t)
	other := upMember(1, 9, alive)
	other.Declared.Incarnation = "i9"
	w.report(other)
	s, err := w.admin.Status(t.Context(), &adminv1.StatusRequest{})
	require.NoError(t, err)
	require.Contains(t, strings.Join(s.GetDegraded(), "\n"), "duplicate-id: another node with the id n1")
}

func TestMembersAreUnknownWhileTheNodeRecovers(t *testing.T) {
	w := start(t, func(w *world, _ *Options) { w.phase = StateRecovering })
	_, err := w.admin.Members(t.Context(), &adminv1.MembersRequest{})
	require.Equal(t, "RECOVERING", refused(t, err).reason)
	_, err = w.node.Report(t.Context(), &nodev1.ReportRequest{})
	require.Equal(t, "RECOVERING", refused(t, err).reason)
	_, err = w.admin.RemoveMember(t.Context(), &adminv1.RemoveMemberRequest{})
	require.Equal(t, "RECOVERING", refused(t, err).reason)
	stream, err := w.admin.WatchMembers(t.Context(), &adminv1.WatchMembersRequest{})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.Equal(t, "RECOVERING", refused(t, err).reason)
}

// A client that places keys by the list must learn each change, and that the node stops.
func TestWatchOfMembersSendsEachChangeAndEndsWithTheNode(t *testing.T) {
	w := start(t)
	stream, err := w.admin.WatchMembers(t.Context(), &adminv1.WatchMembersRequest{})
	require.NoError(t, err)
	next := func() *adminv1.MembersResponse {
		t.Helper()
		r, err := stream.Recv()
		require.NoError(t, err)
		return r.GetView()
	}
	require.Empty(t, next().GetMembers())
	w.report(upMember(1, 1, alive), upMember(2, 1, alive))
	require.Len(t, next().GetMembers(), 2)
	w.report(upMember(1, 1, alive), upMember(2, 1, alive)) // no change, no message
	w.report(upMember(1, 1, alive), upMember(2, 1, down))
	got := next()
	require.Equal(t, down, got.GetMembers()[1].GetLiveness())
	require.GreaterOrEqual(t, got.GetAgeMs(), int64(0))
	_, err = w.admin.RemoveMember(t.Context(), &adminv1.RemoveMemberRequest{NodeId: "n2", Reason: "why"})
	require.NoError(t, err)
	require.Equal(t, clusterv1.MemberState_MEMBER_STATE_REMOVED, next().GetMembers()[1].GetDeclared().GetState())
	w.server.Leave()
	_, err = stream.Recv()
	require.Equal(t, "STOPPING", refused(t, err).reason)
}

// A reader that sleeps must neither keep memory for each change nor read the past when he wakes up.
func TestSlowReaderOfMembersGetsTheNewestList(t *testing.T) {
	const changes = 50
	w := start(t)
	list := func(version uint64) (all []*clusterv1.Member) {
		for i := range 1000 { // far more than the windows of the connection hold
			all = append(all, upMember(i, version, alive))
		}
		return all
	}
	w.report(list(1)...)
	stream, err := w.admin.WatchMembers(t.Context(), &adminv1.WatchMembersRequest{})
	require.NoError(t, err)
	first, err := stream.Recv()
	require.NoError(t, err)
	require.Len(t, first.GetView().GetMembers(), 1000)
	for v := range changes {
		w.report(list(uint64(v + 2))...)
	}
	lists := 0
	for version := uint64(0); version < changes+1; lists++ {
		r, err := stream.Recv()
		require.NoError(t, err)
		newest := r.GetView().GetMembers()[0].GetDeclared().GetVersion()
		require.Greater(t, newest, version)
		version = newest
	}
	require.Less(t, lists, 10)
}
