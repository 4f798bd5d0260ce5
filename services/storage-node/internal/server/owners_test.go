package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// owner is a node with moves and ownership, over the wire: n1 of cluster c.
type owner struct {
	t         *testing.T
	moves     *moves.Registry
	ownership *ownership.Registry
	members   *members.Registry
	equal     map[string]time.Time

	storage   storagev1.StorageServiceClient
	contract  storagenodev1.StorageNodeServiceClient
	admin     adminv1.AdminServiceClient
	migration migrationv1.MigrationServiceClient
	replica   replicav1.ReplicaServiceClient
}

func (o *owner) EqualWith(_ ring.HashRange, nodeID string) time.Time { return o.equal[nodeID] }

// Drop implements ownership.Cleaner.
func (o *owner) Drop(context.Context, []ownership.Residue) error { return errors.New("never") }

func startOwner(t *testing.T) *owner {
	t.Helper()
	o := &owner{t: t}
	e := newFake()
	o.ownership = ownership.New(ownership.Options{
		NodeID: "n1", Incarnation: "i1", Grace: time.Hour, Cleaner: o, ReplicationFactor: 2,
		Sequence: func() uint64 { e.mu.Lock(); defer e.mu.Unlock(); return uint64(e.seq) },
	})
	tenants := tenant.New(tenant.Options{})
	st, err := store.New(e, store.Options{NodeID: "n1", Tenants: tenants, Owners: o.ownership})
	require.NoError(t, err)
	require.NoError(t, tenants.Open(t.Context(), st, e))
	require.NoError(t, o.ownership.Open(t.Context(), st))
	o.members = members.New(members.Options{NodeID: "n1", Incarnation: "i1"})
	require.NoError(t, o.members.Open(t.Context(), st))
	o.moves = moves.New(moves.Options{NodeID: "n1", Incarnation: "i1", JoinAtOnce: true})
	require.NoError(t, o.moves.Open(t.Context(), st))
	s := New(Node{ID: "n1", Version: "v1", State: func() (State, string) { return StateServing, "" }, Health: func() (bool, []string) { return true, nil }})
	s.Open(Backend{
		Store: st, Engine: e, Tenants: tenants, Members: o.members, Moves: o.moves, Ownership: o.ownership, ClusterID: "c", Equality: o, ReplicationFactor: 2,
	})
	g := s.GRPC(Options{Log: slog.New(slog.DiscardHandler), Timeout: 10 * time.Second, MaxInFlight: 100, Observe: func(Call) {}}, health.NewServer())
	s.RegisterStorage(g)
	s.RegisterContract(g)
	s.RegisterMigration(g)
	s.RegisterReplica(g)
	adminv1.RegisterAdminServiceServer(g, s.Admin())
	listener := bufconn.Listen(256 << 10)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///bufconn",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		g.Stop()
		require.NoError(t, <-served)
	})
	o.storage, o.contract = storagev1.NewStorageServiceClient(conn), storagenodev1.NewStorageNodeServiceClient(conn)
	o.admin, o.migration, o.replica = adminv1.NewAdminServiceClient(conn), migrationv1.NewMigrationServiceClient(conn), replicav1.NewReplicaServiceClient(conn)
	return o
}

// half is the first half of the ring.
var half = ring.HashRange{Start: 0, End: 1 << 63}

func halfOnWire() []*datav1.HashRange {
	return []*datav1.HashRange{{Start: half.Start, End: half.End}}
}

// inHalf returns a key of tenant t in the first half of the ring, or in the other one.
func inHalf(want bool) string {
	for i := 0; ; i++ {
		if k := "k" + strconv.Itoa(i); half.Contains(ring.Token("t", k)) == want {
			return k
		}
	}
}

func (o *owner) put(key string) error {
	_, err := o.storage.Write(o.t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: key, Value: []byte("v")})
	return err
}

// verifying makes a move of the first half to n2 that was compared.
func (o *owner) verifying(id string) *moves.Move {
	o.t.Helper()
	all, err := o.moves.Create(o.t.Context(), moves.Spec{
		ID: id, Purpose: moves.PurposeDrain, Mode: moves.Once, HandOver: true, Target: moves.Target{NodeID: "n2", Addr: "10.0.0.2:8080"},
		What: moves.Selection{HashRanges: []ring.HashRange{half}},
	})
	require.NoError(o.t, err)
	require.Len(o.t, all, 1)
	m, err := o.moves.MarkPinned(o.t.Context(), id, 1)
	require.NoError(o.t, err)
	for _, s := range []moves.Step{{State: moves.Copying}, {State: moves.Tailing, TailSequence: 1}, {State: moves.Verifying}, {Verified: true}} {
		m, err = o.moves.Advance(o.t.Context(), id, m.Version, s)
		require.NoError(o.t, err, "%v", s.State)
	}
	return m
}

// Danger: a client writes to a node that has given the range away, or does not learn who has it.
func TestAHandOverOverTheWire(t *testing.T) {
	o := startOwner(t)
	ctx := t.Context()
	in, out := inHalf(true), inHalf(false)
	require.NoError(t, o.put(in))
	o.verifying("m1")
	fence, err := o.migration.Fence(ctx, &migrationv1.FenceRequest{MoveId: "m1"})
	require.NoError(t, err)
	again, err := o.migration.Fence(ctx, &migrationv1.FenceRequest{MoveId: "m1"})
	require.NoError(t, err)
	requireProto(t, fence, again)
	require.NotZero(t, fence.GetSequence())
	m, err := o.moves.Get("m1")
	require.NoError(t, err)
	require.Equal(t, moves.Fenced, m.State)
	require.Equal(t, fence.GetSequence(), m.FenceSequence)
	require.Equal(t, refusal{codes.Unavailable, "RANGE_MOVING", 100 * time.Millisecond}, refused(t, o.put(in)))
	require.NoError(t, o.put(out))
	_, err = o.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: in})
	require.NoError(t, err)
	put := &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: []byte("v")}}
	batch, err := o.storage.BatchWrite(ctx, &storagev1.BatchWriteRequest{Tenant: "t", Ops: []*storagev1.BatchOp{{Key: in, Op: put}, {Key: out, Op: put}}})
	require.NoError(t, err)
	require.Equal(t, "RANGE_MOVING", batch.GetResults()[0].GetError().GetReason())
	require.Nil(t, batch.GetResults()[1].GetError())

	_, err = o.migration.Give(ctx, &migrationv1.GiveRequest{MoveId: "m1"})
	require.Equal(t, refusal{code: codes.FailedPrecondition, reason: "MOVE_STATE"}, refused(t, err))
	_, err = o.moves.Advance(ctx, "m1", m.Version, moves.Step{State: moves.Accepted, Epoch: 3, TailSequence: fence.GetSequence()})
	require.NoError(t, err)
	_, err = o.migration.Lift(ctx, &migrationv1.LiftRequest{MoveId: "m1"})
	require.Equal(t, refusal{code: codes.FailedPrecondition, reason: "MOVE_STATE"}, refused(t, err))
	for range 2 {
		_, err = o.migration.Give(ctx, &migrationv1.GiveRequest{MoveId: "m1"})
		require.NoError(t, err)
	}
	m, err = o.moves.Get("m1")
	require.NoError(t, err)
	require.Equal(t, moves.Committed, m.State)
	err = o.put(in)
	require.Equal(t, refusal{code: codes.FailedPrecondition, reason: "NOT_OWNER"}, refused(t, err))
	require.Equal(t, "10.0.0.2:8080", errorInfo(err).GetMetadata()["owner_addr"])
	require.Equal(t, "n2", errorInfo(err).GetMetadata()["owner_node_id"])
	_, err = o.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: in})
	require.Equal(t, refusal{code: codes.FailedPrecondition, reason: "NOT_OWNER"}, refused(t, err))
	ranges, err := o.admin.Ranges(ctx, &adminv1.RangesRequest{})
	require.NoError(t, err)
	requireProto(t, &adminv1.RangesResponse{CleanupNeeded: halfOnWire(), ReplicationFactor: 2}, ranges)
}

func errorInfo(err error) *errdetails.ErrorInfo {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}

// Danger: a fence stands for a move that was called off, and its ranges take no writes any more.
func TestAFenceOfAMoveThatIsCalledOffIsLifted(t *testing.T) {
	o := startOwner(t)
	ctx := t.Context()
	_, err := o.migration.Fence(ctx, &migrationv1.FenceRequest{MoveId: "nobody"})
	require.Equal(t, refusal{code: codes.NotFound, reason: "MOVE_NOT_FOUND"}, refused(t, err))
	o.verifying("m1")
	_, err = o.migration.Fence(ctx, &migrationv1.FenceRequest{MoveId: "m1"})
	require.NoError(t, err)
	for range 2 {
		_, err = o.migration.Lift(ctx, &migrationv1.LiftRequest{MoveId: "m1"})
		require.NoError(t, err)
		require.NoError(t, o.put(inHalf(true)))
	}
	_, _, err = o.moves.Cancel(ctx, "m1", "because")
	require.NoError(t, err)
	_, err = o.migration.Fence(ctx, &migrationv1.FenceRequest{MoveId: "m1"})
	require.Equal(t, refusal{code: codes.FailedPrecondition, reason: "MOVE_STATE"}, refused(t, err))
	require.NoError(t, o.put(inHalf(true)))
}

// Danger: a migrator of another cluster takes over ranges, or bad ranges of one are stored.
func TestTheTargetOverTheWire(t *testing.T) {
	o := startOwner(t)
	ctx := t.Context()
	peer := &replicav1.Peer{ClusterId: "c", NodeId: "n2"}
	foreign := &replicav1.Peer{ClusterId: "d", NodeId: "n2"}
	other := refusal{code: codes.FailedPrecondition, reason: "OTHER_CLUSTER"}
	_, err := o.replica.Prepare(ctx, &replicav1.PrepareRequest{Peer: foreign, MoveId: "m1", Ranges: halfOnWire()})
	require.Equal(t, other, refused(t, err))
	_, err = o.replica.Accept(ctx, &replicav1.AcceptRequest{Peer: foreign, MoveId: "m1", Epoch: 1})
	require.Equal(t, other, refused(t, err))
	_, err = o.replica.Decline(ctx, &replicav1.DeclineRequest{MoveId: "m1"})
	require.Equal(t, other, refused(t, err))
	for _, n := range []int{0, 4097} {
		_, err = o.replica.Prepare(ctx, &replicav1.PrepareRequest{Peer: peer, MoveId: "m1", Ranges: make([]*datav1.HashRange, n)})
		require.Equal(t, refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_RANGE"}, refused(t, err))
	}
	_, err = o.replica.Prepare(ctx, &replicav1.PrepareRequest{Peer: peer, MoveId: "m1", Ranges: halfOnWire(), OwnerAddr: string(make([]byte, 261))})
	require.Equal(t, refusal{code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_MOVE"}, refused(t, err))
	require.False(t, o.ownership.Active())

	for range 2 {
		got, err := o.replica.Prepare(ctx, &replicav1.PrepareRequest{Peer: peer, MoveId: "m1", Ranges: halfOnWire(), OwnerAddr: "10.0.0.2:8080"})
		require.NoError(t, err)
		require.Zero(t, got.GetKnownEpoch())
	}
	require.Equal(t, refusal{codes.Unavailable, "RANGE_MOVING", 100 * time.Millisecond}, refused(t, o.put(inHalf(true))))
	legacy, err := o.contract.Write(ctx, &storagenodev1.WriteRequest{TenantId: "t", Key: inHalf(true)})
	require.NoError(t, err)
	require.Equal(t, storagenodev1.ErrorCode_ERROR_CODE_NODE_DRAINING, legacy.GetErrorCode())
	_, err = o.replica.Accept(ctx, &replicav1.AcceptRequest{Peer: peer, MoveId: "m2", Epoch: 1})
	require.Equal(t, refusal{code: codes.FailedPrecondition, reason: "MOVE_STATE"}, refused(t, err))
	for range 2 {
		_, err = o.replica.Accept(ctx, &replicav1.AcceptRequest{Peer: peer, MoveId: "m1", Epoch: 1})
		require.NoError(t, err)
	}
	require.NoError(t, o.put(inHalf(true)))
	declined, err := o.replica.Decline(ctx, &replicav1.DeclineRequest{Peer: peer, MoveId: "m1"})
	require.NoError(t, err)
	require.True(t, declined.GetAccepted())
}

// Danger: a node is told as drained, and taken away, while it has ranges, or some are on their way to it.
func TestANodeThatHasRangesIsNotDrained(t *testing.T) {
	o := startOwner(t)
	ctx := t.Context()
	all := []membership.Declaration{
		{NodeID: "n1", Version: 1, State: membership.Up, Incarnation: "i1", VirtualNodes: 1},
		{NodeID: "n2", Version: 1, State: membership.Up, Incarnation: "x", VirtualNodes: 1},
	}
	require.NoError(t, o.ownership.SetMembers(ctx, all))
	peer := &replicav1.Peer{ClusterId: "c", NodeId: "n2"}
	_, err := o.replica.Prepare(ctx, &replicav1.PrepareRequest{Peer: peer, MoveId: "m1", Ranges: halfOnWire(), OwnerAddr: "10.0.0.2:8080"})
	require.NoError(t, err)
	d, err := o.moves.StartDrain(ctx, "d", "why")
	require.NoError(t, err)
	require.NoError(t, o.moves.Declare(ctx, membership.Up, membership.Draining))
	_, err = o.moves.AdvanceDrain(ctx, d.ID, d.Version, moves.DrainStep{State: moves.DrainMoving})
	require.NoError(t, err)
	all[0].State = membership.Draining
	require.NoError(t, o.ownership.SetMembers(ctx, slices.Clone(all)))
	drained := func() error {
		_, err := o.migration.Declare(ctx, &migrationv1.DeclareRequest{
			From: clusterv1.MemberState_MEMBER_STATE_DRAINING, To: clusterv1.MemberState_MEMBER_STATE_DRAINED,
		})
		return err
	}
	no := refusal{code: codes.FailedPrecondition, reason: "MOVE_STATE"}
	require.Equal(t, no, refused(t, drained()), "it has all of them")
	_, err = o.replica.Decline(ctx, &replicav1.DeclineRequest{Peer: peer, MoveId: "m1"})
	require.NoError(t, err)
	_, _, err = o.ownership.Fence(ctx, "all", []ring.HashRange{{}})
	require.NoError(t, err)
	require.NoError(t, o.ownership.Give(ctx, "all", ownership.Owner{NodeID: "n2"}, 9))
	require.NoError(t, drained())
}

// Danger: as above; what is on its way arrives after the last look.
func TestANodeThatIsGivenRangesIsNotDrained(t *testing.T) {
	o := startOwner(t)
	ctx := t.Context()
	_, err := o.replica.Prepare(ctx, &replicav1.PrepareRequest{Peer: &replicav1.Peer{ClusterId: "c", NodeId: "n2"}, MoveId: "m1", Ranges: halfOnWire()})
	require.NoError(t, err)
	_, err = o.migration.Declare(ctx, &migrationv1.DeclareRequest{
		From: clusterv1.MemberState_MEMBER_STATE_DRAINING, To: clusterv1.MemberState_MEMBER_STATE_DRAINED,
	})
	require.Equal(t, refusal{code: codes.FailedPrecondition, reason: "MOVE_STATE"}, refused(t, err))
	require.ErrorContains(t, err, "1 are being handed over to it")
}

// Danger: an operator cleans up, or trusts, ranges that are shown with the wrong replicas or times.
func TestRangesAreShownWithWhoIsBehind(t *testing.T) {
	o := startOwner(t)
	ctx := t.Context()
	empty, err := o.migration.Ownership(ctx, &migrationv1.OwnershipRequest{})
	require.NoError(t, err)
	require.Empty(t, empty.GetRanges())
	declared := []membership.Declaration{
		{NodeID: "n1", Version: 1, State: membership.Up, Incarnation: "i1", VirtualNodes: 1},
		{NodeID: "n2", Version: 1, State: membership.Up, Incarnation: "x", VirtualNodes: 1},
	}
	require.NoError(t, o.ownership.SetMembers(ctx, declared))
	_, err = o.members.Report(ctx, members.Report{Members: []members.Member{{Declared: declared[0], Seen: members.Seen{Liveness: members.Alive}}}})
	require.NoError(t, err)
	got, err := o.migration.Ownership(ctx, &migrationv1.OwnershipRequest{})
	require.NoError(t, err)
	require.Equal(t, clusterv1.MemberState_MEMBER_STATE_UP, got.GetState())
	require.EqualValues(t, 2, got.GetReplicationFactor())
	require.Len(t, got.GetRanges(), 2)
	o.equal = map[string]time.Time{"n2": time.UnixMilli(77)}
	got, err = o.migration.Ownership(ctx, &migrationv1.OwnershipRequest{})
	require.NoError(t, err)
	ranges, err := o.admin.Ranges(ctx, &adminv1.RangesRequest{})
	require.NoError(t, err)
	for i, r := range got.GetRanges() {
		require.ElementsMatch(t, []string{"n1", "n2"}, r.GetReplicas())
		require.EqualValues(t, 77, r.GetEqualAtMs())
		for j, id := range r.GetReplicas() {
			require.Equal(t, map[string]int64{"n1": 0, "n2": 77}[id], r.GetEqualWithMs()[j])
		}
		require.Equal(t, "n2", ranges.GetRanges()[i].GetBehind())
		require.EqualValues(t, 77, ranges.GetRanges()[i].GetEqualAtMs())
	}
}
