package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/sidecar"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
)

// agent dials the socket of a node as its health-agent does.
func (w *testNode) agent() nodev1.NodeServiceClient {
	w.t.Helper()
	conn, err := sidecar.Dial(w.cfg.Socket)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { require.NoError(w.t, conn.Close()) })
	return nodev1.NewNodeServiceClient(conn)
}

// clusterOf is a report of two members: the node itself and another one.
func clusterOf(id *nodev1.IdentityResponse) *nodev1.ReportRequest {
	own := &clusterv1.Declaration{
		NodeId: id.GetNodeId(), Version: 1, State: clusterv1.MemberState_MEMBER_STATE_UP, Incarnation: id.GetIncarnation(),
		GrpcAddr: id.GetGrpcAddr(), VirtualNodes: id.GetVirtualNodes(), DeclaredAtMs: 5,
	}
	return &nodev1.ReportRequest{Verdict: &clusterv1.Verdict{Live: true, Ready: true}, Members: []*clusterv1.Member{
		{Declared: own, Liveness: clusterv1.Liveness_LIVENESS_ALIVE, SinceMs: 7, Ready: true},
		{Declared: &clusterv1.Declaration{
			NodeId: "n2", Version: 4, State: clusterv1.MemberState_MEMBER_STATE_DRAINING, Incarnation: "i2", GrpcAddr: "10.0.0.2:8080", VirtualNodes: 150,
		}, Liveness: clusterv1.Liveness_LIVENESS_DOWN},
	}}
}

// A node that forgets its cluster with each restart, or believes what it saw before, places keys wrongly.
func TestNodeRemembersItsCluster(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	ask := func() *nodev1.IdentityResponse {
		id, err := w.agent().Identity(t.Context(), &nodev1.IdentityRequest{})
		require.NoError(t, err)
		return id
	}
	id := ask()
	require.Equal(t, "n1", id.GetNodeId())
	require.Regexp(t, "^[a-z2-7]{16}$", id.GetIncarnation())
	require.Equal(t, w.Addr(), id.GetGrpcAddr())
	require.EqualValues(t, 150, id.GetVirtualNodes())
	known, err := w.agent().Report(t.Context(), clusterOf(id))
	require.NoError(t, err)
	require.Len(t, known.GetDeclarations(), 2)
	members := func() *adminv1.MembersResponse {
		r, err := w.admin.Members(t.Context(), &adminv1.MembersRequest{})
		require.NoError(t, err)
		require.Len(t, r.GetMembers(), 2)
		return r
	}
	before := members()
	require.GreaterOrEqual(t, before.GetAgeMs(), int64(0))
	require.True(t, before.GetVerdict().GetReady())
	require.Equal(t, clusterv1.Liveness_LIVENESS_DOWN, before.GetMembers()[1].GetLiveness())

	require.NoError(t, w.end())
	w = startNode(t, cfg, realFS()).ready()
	after := members()
	require.EqualValues(t, -1, after.GetAgeMs())
	require.Nil(t, after.GetVerdict())
	for i, m := range after.GetMembers() {
		require.Equal(t, clusterv1.Liveness_LIVENESS_UNSEEN, m.GetLiveness())
		require.Equal(t, before.GetMembers()[i].GetDeclared().String(), m.GetDeclared().String())
	}
	require.Equal(t, id.GetIncarnation(), ask().GetIncarnation(), "of the directory, not of the process")
	require.NotEqual(t, id.GetSession(), ask().GetSession())
	require.NoError(t, w.end())
}

// Two nodes of one name must be seen by whoever looks at either, while both go on.
func TestSecondNodeOfOneNameDegrades(t *testing.T) {
	w := startNode(t, testConfig(t), realFS()).ready()
	id, err := w.agent().Identity(t.Context(), &nodev1.IdentityRequest{})
	require.NoError(t, err)
	report := clusterOf(id)
	_, err = w.agent().Report(t.Context(), report)
	require.NoError(t, err)
	report.Members[0].Declared.Incarnation, report.Members[0].Declared.Version = "another", 2
	_, err = w.agent().Report(t.Context(), report)
	require.NoError(t, err)
	code, body := w.probe("/ready")
	require.Equal(t, 200, code)
	require.Contains(t, body, "duplicate-id")
	require.NotEmpty(t, w.log.values("members", "detail"))
	report.Members[0].Declared.Incarnation, report.Members[0].Declared.Version = id.GetIncarnation(), 3
	_, err = w.agent().Report(t.Context(), report)
	require.NoError(t, err)
	_, body = w.probe("/ready")
	require.NotContains(t, body, "duplicate-id")
	require.NoError(t, w.end())
}

// A worker that may merge tables must not say who is in the cluster.
func TestReportIsForWhomTheTableAllows(t *testing.T) {
	cfg := testConfig(t)
	cfg.SocketUIDs = config.SocketUIDs{uint32(os.Getuid()): {"compaction"}}
	w := startNode(t, cfg, realFS()).ready()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := w.agent().Report(ctx, &nodev1.ReportRequest{})
	require.Equal(t, codes.PermissionDenied, status.Code(err), "%v", err)
	err = w.conn.Invoke(ctx, nodev1.NodeService_Report_FullMethodName, &nodev1.ReportRequest{}, &nodev1.ReportResponse{})
	require.Equal(t, codes.Unimplemented, status.Code(err), "not on TCP")
	require.NoError(t, w.end())
}

// An address that others can't reach makes a member that is alive and does not answer.
func TestAdvertisedAddress(t *testing.T) {
	host, err := os.Hostname()
	require.NoError(t, err)
	for _, c := range []struct{ advertise, listen, want string }{
		{"", "127.0.0.1:0", "127.0.0.1:%s"},
		{"", ":0", host + ":%s"},
		{"", "0.0.0.0:0", host + ":%s"},
		{"node-0.pods:8080", ":0", "node-0.pods:8080"},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			cfg := testConfig(t)
			cfg.AdvertiseAddr, cfg.GRPCAddr = c.advertise, c.listen
			w := startNode(t, cfg, realFS()).ready()
			want := c.want
			if c.advertise == "" {
				_, port, err := net.SplitHostPort(w.Addr())
				require.NoError(t, err)
				want = fmt.Sprintf(want, port)
			}
			require.Equal(t, want, w.advertised())
			require.NoError(t, w.end())
		})
	}
}
