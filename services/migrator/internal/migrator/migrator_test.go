package migrator

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/move"
	"github.com/pairdb/pairdb/services/migrator/internal/stream"
)

// node is a node of which moves stay where they are: their targets are not there.
type node struct {
	migrationv1.UnimplementedMigrationServiceServer
	nodev1.UnimplementedNodeServiceServer
	adminv1.UnimplementedAdminServiceServer
	replicav1.UnimplementedReplicaServiceServer

	mu       sync.Mutex
	session  uint64                  // guarded by mu
	moves    map[string]*movev1.Move // guarded by mu
	ended    []*movev1.Move          // guarded by mu
	changed  chan struct{}           // guarded by mu
	reasons  map[string]bool         // guarded by mu; moves that were told why they wait
	declined map[string]bool         // guarded by mu
	denied   bool                    // guarded by mu
	addr     string
}

func (n *node) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *node) Identity(context.Context, *nodev1.IdentityRequest) (*nodev1.IdentityResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &nodev1.IdentityResponse{NodeId: "n1", ClusterId: "c", Session: n.session, GrpcAddr: "n1:1"}, nil
}

func (n *node) Configuration(context.Context, *migrationv1.ConfigurationRequest) (*migrationv1.ConfigurationResponse, error) {
	return &migrationv1.ConfigurationResponse{GcGraceSeconds: 60, ReplicationFactor: 3}, nil
}

func (n *node) Work(_ *migrationv1.WorkRequest, out grpc.ServerStreamingServer[migrationv1.WorkResponse]) error {
	for {
		n.mu.Lock()
		if n.denied {
			n.mu.Unlock()
			return status.Error(codes.PermissionDenied, "not you")
		}
		a := &migrationv1.WorkResponse{}
		for _, id := range slices.Sorted(maps.Keys(n.moves)) {
			a.Moves = append(a.Moves, n.moves[id])
		}
		changed := n.changed
		n.mu.Unlock()
		if err := out.Send(a); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-out.Context().Done():
			return out.Context().Err()
		}
	}
}

func (n *node) Advance(_ context.Context, r *migrationv1.AdvanceRequest) (*migrationv1.AdvanceResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.GetReason() != "" {
		n.reasons[r.GetId()] = true
	}
	m := n.moves[r.GetId()]
	if m == nil {
		return nil, status.Error(codes.NotFound, "no such move")
	}
	return &migrationv1.AdvanceResponse{Move: m}, nil
}

func (n *node) Moves(context.Context, *adminv1.MovesRequest) (*adminv1.MovesResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &adminv1.MovesResponse{Moves: n.ended}, nil
}

func (n *node) WatchMembers(_ *adminv1.WatchMembersRequest, out grpc.ServerStreamingServer[adminv1.WatchMembersResponse]) error {
	err := out.Send(&adminv1.WatchMembersResponse{View: &adminv1.MembersResponse{Members: []*clusterv1.Member{
		{Declared: &clusterv1.Declaration{NodeId: "n2", GrpcAddr: n.addr}}, {Declared: &clusterv1.Declaration{NodeId: "n3"}},
	}}})
	if err != nil {
		return err
	}
	<-out.Context().Done()
	return out.Context().Err()
}

func (n *node) Describe(context.Context, *replicav1.DescribeRequest) (*replicav1.DescribeResponse, error) {
	return &replicav1.DescribeResponse{ClusterId: "c", NodeId: "n2", RecordFormats: []uint32{1}, Refusal: "disk full"}, nil
}

func (n *node) Decline(_ context.Context, r *replicav1.DeclineRequest) (*replicav1.DeclineResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.declined[r.GetMoveId()] = true
	return &replicav1.DeclineResponse{}, nil
}

func aMove(id string, created int64, s movev1.State) *movev1.Move {
	return &movev1.Move{
		Id: id, Version: 1, State: s, CreatedAtMs: created, Purpose: movev1.Purpose_PURPOSE_REPLICATE, Mode: movev1.Mode_MODE_ONCE,
		SourceNodeId: "n1", Target: &movev1.Target{NodeId: "n2"}, UpdatedAtMs: time.Now().UnixMilli(),
	}
}

// begin starts a migrator of the node.
func begin(t *testing.T, n *node, slots int) (m *Migrator, ended chan error) {
	t.Helper()
	n.changed, n.reasons, n.declined = make(chan struct{}), map[string]bool{}, map[string]bool{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n.addr = l.Addr().String()
	s, served := grpc.NewServer(), make(chan error, 1)
	migrationv1.RegisterMigrationServiceServer(s, n)
	nodev1.RegisterNodeServiceServer(s, n)
	adminv1.RegisterAdminServiceServer(s, n)
	replicav1.RegisterReplicaServiceServer(s, n)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient(n.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	m = New(Options{
		Conn: conn, Targets: stream.NewTargets(), Moves: slots, Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(),
		Times: move.Times{MinRetry: time.Millisecond, MaxRetry: 10 * time.Millisecond, Call: time.Second},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended = make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- m.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		require.NoError(t, conn.Close())
		s.Stop()
		require.NoError(t, <-served)
	})
	return m, ended
}

// told returns the moves that were taken up: they say why they wait.
func (n *node) told() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.reasons))
}

// More moves at once than configured would take the disk and the network from requests; one whose range is
// fenced must not wait at all.
func TestSoManyMovesAtOnceInTheOrderInWhichTheyWereMade(t *testing.T) {
	n := &node{moves: map[string]*movev1.Move{}}
	for i := range 5 { // made in the opposite order of their names
		id := fmt.Sprint("m", i)
		n.moves[id] = aMove(id, int64(100-i), movev1.State_STATE_PLANNED)
	}
	n.moves["failed"] = aMove("failed", 1, movev1.State_STATE_FAILED)
	m, _ := begin(t, n, 2)
	require.Eventually(t, func() bool { return len(n.told()) >= 2 }, 30*time.Second, time.Millisecond)
	require.Equal(t, []string{"m3", "m4"}, n.told())
	require.Eventually(t, func() bool { return testutil.ToFloat64(m.o.Metrics.running) == 2 }, 30*time.Second, time.Millisecond)
	require.Empty(t, m.Unreachable())

	fenced := aMove("fenced", 1000, movev1.State_STATE_COMMITTED)
	n.change(func() { n.moves["fenced"] = fenced })
	require.Eventually(t, func() bool { return testutil.ToFloat64(m.o.Metrics.running) == 3 }, 30*time.Second, time.Millisecond)

	n.change(func() { delete(n.moves, "m4") }) // it is over: the next one has its turn
	require.Eventually(t, func() bool { return slices.Contains(n.told(), "m2") }, 30*time.Second, time.Millisecond)
	require.NotContains(t, n.told(), "m1")
	require.NotContains(t, n.told(), "failed")

	n.change(func() {
		n.moves["failed"] = aMove("failed", 1, movev1.State_STATE_PLANNED)
		n.moves["failed"].Version = 2
	})
	n.change(func() { delete(n.moves, "m3") })
	require.Eventually(t, func() bool { return slices.Contains(n.told(), "failed") }, 30*time.Second, time.Millisecond, "it was resumed, and is the oldest")
	require.NotContains(t, n.told(), "m1")
}

// A node that has restarted has another configuration, and forgot every stream: all is begun again.
func TestARestartOfTheNodeBeginsEverythingAgain(t *testing.T) {
	n := &node{moves: map[string]*movev1.Move{"m1": aMove("m1", 1, movev1.State_STATE_PLANNED)}}
	begin(t, n, 1)
	require.Eventually(t, func() bool { return len(n.told()) == 1 }, 30*time.Second, time.Millisecond)
	n.change(func() { n.session, n.reasons = 2, map[string]bool{} })
	require.Eventually(t, func() bool { return len(n.told()) == 1 }, 30*time.Second, time.Millisecond)
}

// A hand-over that was called off while no migrator was there leaves its target refusing requests.
func TestTargetsOfForgottenHandoversAreToldToForget(t *testing.T) {
	off := aMove("off", 1, movev1.State_STATE_CANCELLED)
	off.HandOver = true
	copied := aMove("copied", 1, movev1.State_STATE_CANCELLED)
	old := aMove("old", 1, movev1.State_STATE_CANCELLED)
	old.HandOver, old.UpdatedAtMs = true, time.Now().Add(-2*forgottenFor).UnixMilli()
	n := &node{ended: []*movev1.Move{off, copied, old}}
	begin(t, n, 1)
	declined := func() []string {
		n.mu.Lock()
		defer n.mu.Unlock()
		return slices.Sorted(maps.Keys(n.declined))
	}
	require.Eventually(t, func() bool { return len(declined()) > 0 }, 30*time.Second, time.Millisecond)
	require.Equal(t, []string{"off"}, declined())
}

// A migrator that may not ask must end with an error that is seen, and not look idle.
func TestARefusalOfTheWorkEndsTheMigrator(t *testing.T) {
	n := &node{denied: true}
	_, ended := begin(t, n, 1)
	select {
	case err := <-ended:
		require.ErrorIs(t, err, errDenied)
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on")
	}
}
