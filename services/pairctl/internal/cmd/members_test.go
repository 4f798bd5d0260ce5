package cmd

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
)

// clusterAdmin is a node that knows a cluster.
type clusterAdmin struct {
	adminv1.UnimplementedAdminServiceServer
	members *adminv1.MembersResponse
	status  *adminv1.StatusResponse
	removed *adminv1.RemoveMemberRequest
	watch   func(grpc.ServerStreamingServer[adminv1.WatchMembersResponse]) error
}

func (f *clusterAdmin) Status(context.Context, *adminv1.StatusRequest) (*adminv1.StatusResponse, error) {
	return f.status, nil
}

func (f *clusterAdmin) Members(context.Context, *adminv1.MembersRequest) (*adminv1.MembersResponse, error) {
	if f.members == nil {
		return nil, status.Error(codes.Unimplemented, "unknown method Members")
	}
	return f.members, nil
}

func (f *clusterAdmin) WatchMembers(_ *adminv1.WatchMembersRequest, s grpc.ServerStreamingServer[adminv1.WatchMembersResponse]) error {
	return f.watch(s)
}

func (f *clusterAdmin) RemoveMember(_ context.Context, r *adminv1.RemoveMemberRequest) (*adminv1.RemoveMemberResponse, error) {
	f.removed = r
	switch r.GetNodeId() {
	case "node-0":
		return nil, refusal(codes.FailedPrecondition, "MEMBER_SELF")
	case "node-1":
		return nil, refusal(codes.FailedPrecondition, "MEMBER_ALIVE")
	case "node-9":
		return nil, refusal(codes.NotFound, "MEMBER_NOT_FOUND")
	}
	return &adminv1.RemoveMemberResponse{Declared: &clusterv1.Declaration{
		NodeId: r.GetNodeId(), Version: 8, State: clusterv1.MemberState_MEMBER_STATE_REMOVED, Incarnation: "i2", GrpcAddr: "10.0.0.2:8080", VirtualNodes: 150,
	}}, nil
}

// exampleCluster has a member of each kind.
func exampleCluster() *adminv1.MembersResponse {
	member := func(i int, state clusterv1.MemberState, l clusterv1.Liveness) *clusterv1.Member {
		return &clusterv1.Member{
			Declared: &clusterv1.Declaration{
				NodeId: fmt.Sprintf("node-%d", i), Version: 7, State: state, Incarnation: fmt.Sprintf("i%d", i),
				GrpcAddr: fmt.Sprintf("10.0.0.%d:8080", i), Zone: "a", VirtualNodes: 150, DeclaredAtMs: 1_700_000_000_000,
			},
			Liveness: l, SinceMs: 1_700_000_000_000, Version: "v1.2.3", GossipAddr: fmt.Sprintf("10.0.0.%d:7946", i),
			Ready: l == clusterv1.Liveness_LIVENESS_ALIVE, DiskUsedPercent: 42,
		}
	}
	all := []*clusterv1.Member{
		member(0, clusterv1.MemberState_MEMBER_STATE_UP, clusterv1.Liveness_LIVENESS_ALIVE),
		member(1, clusterv1.MemberState_MEMBER_STATE_UP, clusterv1.Liveness_LIVENESS_ALIVE),
		member(2, clusterv1.MemberState_MEMBER_STATE_UP, clusterv1.Liveness_LIVENESS_DOWN),
		member(3, clusterv1.MemberState_MEMBER_STATE_DRAINING, clusterv1.Liveness_LIVENESS_SUSPECT),
		member(4, clusterv1.MemberState_MEMBER_STATE_JOINING, clusterv1.Liveness_LIVENESS_UNSEEN),
		member(5, clusterv1.MemberState_MEMBER_STATE_REMOVED, clusterv1.Liveness_LIVENESS_LEFT),
	}
	all[1].Degraded = []string{"compaction", "disk"}
	all[3].Declared.Zone = ""
	all[4].SinceMs, all[4].Version = 0, ""
	return &adminv1.MembersResponse{
		Members: all, AgeMs: 800,
		Verdict: &clusterv1.Verdict{Live: true, Ready: true, Degraded: []*clusterv1.Reason{{Name: "compaction", Detail: "no compactor is connected"}}},
	}
}

func exampleStatus(id string) *adminv1.StatusResponse {
	return &adminv1.StatusResponse{
		NodeId: id, Version: "v1.2.3", State: "serving", UptimeSeconds: 90, WritePressure: "none",
		Levels:    []*adminv1.Level{{Tables: 3, SizeBytes: 1 << 20}, {Level: 1}, {Level: 2, Tables: 4, SizeBytes: 8 << 20}},
		Disk:      &adminv1.Disk{TotalBytes: 100 << 30, FreeBytes: 58 << 30},
		Workers:   []*adminv1.Worker{{Id: "local", Slots: 1, LastSeenMsAgo: 5}, {Id: "w@1002", Slots: 2, LastSeenMsAgo: 1500}},
		Degraded:  []string{"quarantine: 1 damaged tables are set aside"},
		Memtables: &adminv1.Memtables{}, CommitLog: &adminv1.CommitLog{}, Compaction: &adminv1.CompactionTotals{LocalMode: "auto"},
	}
}

// serveAdmin starts a node that answers as f says, and returns its address.
func serveAdmin(t *testing.T, f adminv1.AdminServiceServer) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer()
	adminv1.RegisterAdminServiceServer(s, f)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		<-served // stopped, maybe before it began
	})
	return l.Addr().String()
}

// What an operator reads when a node is lost: who is there, who answers, what to do next. The arguments of
// a command change what the node knows:
//
//	unheard     its health-agent was not heard
//	unknown     it knows no cluster
//	silent=ID   that member is alive and does not answer
//	dead        the verdict on its pod is bad
//	mixed       another member answers at the address of node-1
func TestMembersAndStatusAsTheyArePrinted(t *testing.T) {
	datadriven.RunTest(t, "testdata/members", func(t *testing.T, d *datadriven.TestData) string {
		f := &clusterAdmin{members: exampleCluster(), status: exampleStatus("node-0")}
		addr := serveAdmin(t, f)
		var names []string      // of addresses, in place of the ports of today
		if d.Cmd == "cluster" { // they have to answer
			for _, m := range f.members.GetMembers() {
				m.Declared.GrpcAddr = "127.0.0.1:1"
				if l := m.GetLiveness(); l == clusterv1.Liveness_LIVENESS_ALIVE || l == clusterv1.Liveness_LIVENESS_SUSPECT {
					id := m.GetDeclared().GetNodeId()
					m.Declared.GrpcAddr = serveAdmin(t, &clusterAdmin{status: exampleStatus(id)})
					names = append(names, m.Declared.GrpcAddr, "address-of-"+id)
				}
			}
		}
		for _, arg := range d.CmdArgs {
			switch arg.Key {
			case "unheard":
				f.members.AgeMs, f.members.Verdict = -1, nil
				for i, m := range f.members.Members {
					f.members.Members[i] = &clusterv1.Member{Declared: m.GetDeclared(), Liveness: clusterv1.Liveness_LIVENESS_UNSEEN}
				}
			case "unknown":
				f.members = nil
			case "mixed":
				f.members.Members[1].Declared.GrpcAddr = f.members.Members[0].Declared.GrpcAddr
			case "silent":
				for _, m := range f.members.GetMembers() {
					if m.GetDeclared().GetNodeId() == arg.Vals[0] {
						m.Declared.GrpcAddr = "127.0.0.1:1"
					}
				}
			case "dead":
				f.members.Verdict = &clusterv1.Verdict{
					NotLive:  []*clusterv1.Reason{{Name: "unreachable", Detail: "the node does not answer"}},
					NotReady: []*clusterv1.Reason{{Name: "stopping"}},
				}
			}
		}
		var out strings.Builder
		for _, line := range strings.Split(d.Input, "\n") {
			code, stdout, stderr := run(t.Context(), addr, splitQuoted(line)...)
			fmt.Fprintf(&out, "%s%sexit code %d\n", stdout, stderr, code)
		}
		return strings.NewReplacer(names...).Replace(out.String())
	})
}

// splitQuoted splits a command line at spaces that are not between double quotes.
func splitQuoted(line string) (words []string) {
	for i, part := range strings.Split(line, `"`) {
		if i%2 == 1 {
			words = append(words, part)
			continue
		}
		words = append(words, strings.Fields(part)...)
	}
	return words
}

func TestRemovalNamesTheMemberAndTheReason(t *testing.T) {
	// A reason that is lost on the way is missing in the only record of who took a member out.
	f := &clusterAdmin{}
	code, out, _ := run(t.Context(), serveAdmin(t, f), "members", "remove", "node-2", "--reason", "its disk burnt")
	require.Equal(t, exitOK, code)
	require.Equal(t, "removed node-2, version 8 of its declaration\n", out)
	require.True(t, proto.Equal(&adminv1.RemoveMemberRequest{NodeId: "node-2", Reason: "its disk burnt"}, f.removed), "%v", f.removed)
	f.removed = nil
	for _, args := range [][]string{
		{"members", "remove", "node-2"}, {"members", "remove", "node-2", "--reason", " "}, {"members", "remove", "--reason", "x"}, {"members", "node-2"},
	} {
		code, _, stderr := run(t.Context(), serveAdmin(t, f), args...)
		require.Equal(t, exitUsage, code, "%v: %s", args, stderr)
		require.Nil(t, f.removed)
	}
}

func TestMembersWatchPrintsEachListAndWaitsForTheNode(t *testing.T) {
	// A watch that ends with the first restart of a node is blind when it is needed.
	ctx, cancel := context.WithCancel(t.Context())
	var streams atomic.Int32
	f := &clusterAdmin{members: exampleCluster()}
	f.watch = func(s grpc.ServerStreamingServer[adminv1.WatchMembersResponse]) error {
		first := streams.Add(1) == 1
		list := exampleCluster()
		if err := s.Send(&adminv1.WatchMembersResponse{View: list}); err != nil {
			return err
		}
		if first {
			return status.Error(codes.Unavailable, "node is stopping")
		}
		list.Members = list.Members[:1]
		if err := s.Send(&adminv1.WatchMembersResponse{View: list}); err != nil {
			return err
		}
		time.AfterFunc(50*time.Millisecond, cancel) // Ctrl-C
		<-s.Context().Done()
		return s.Context().Err()
	}
	code, out, stderr := run(ctx, serveAdmin(t, f), "members", "--watch")
	require.Equal(t, exitOK, code, stderr)
	require.EqualValues(t, 2, streams.Load())
	require.Equal(t, 3, strings.Count(out, "node    "), out)
	require.Equal(t, 2, strings.Count(out, "\n\n"), "an empty line between two lists")
	require.Contains(t, stderr, "the node went away")

	f.watch = func(grpc.ServerStreamingServer[adminv1.WatchMembersResponse]) error {
		return status.Error(codes.Unimplemented, "unknown method")
	}
	var buf bytes.Buffer
	code = Run(t.Context(), []string{"--addr", serveAdmin(t, f), "members", "--watch"}, Streams{In: strings.NewReader(""), Out: &buf, Err: &buf})
	require.Equal(t, exitFailed, code)
	require.Contains(t, buf.String(), "older than this pairctl")
}
