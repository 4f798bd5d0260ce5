package server

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
)

// Danger: a number that means one thing in a record and another one on the wire.
func TestWordsOfMovesHaveTheNumbersOfTheWire(t *testing.T) {
	for _, s := range moves.States {
		require.Equal(t, "STATE_"+s.String(), movev1.State(s).String())
	}
	require.Len(t, movev1.State_name, len(moves.States)+1)
	for _, p := range moves.Purposes {
		require.Equal(t, "PURPOSE_"+p.String(), movev1.Purpose(p).String())
	}
	require.Len(t, movev1.Purpose_name, len(moves.Purposes)+1)
	for _, m := range []moves.Mode{moves.Once, moves.Follow} {
		require.Equal(t, "MODE_"+m.String(), movev1.Mode(m).String())
	}
	for s := moves.DrainRequested; s <= moves.DrainCancelled; s++ {
		require.Equal(t, "DRAIN_STATE_"+s.String(), movev1.DrainState(s).String())
	}
}

// cluster reports members n1…n<n>, all up and alive.
func (w *world) cluster(n int) {
	w.t.Helper()
	var all []*clusterv1.Member
	for i := range n {
		all = append(all, upMember(i+1, 1, alive))
	}
	w.report(all...)
}

// joining is a node that is to be bootstrapped.
func joining(w *world, _ *Options) { w.joins = true }

// up makes the node want to be up.
func (w *world) up() {
	w.t.Helper()
	_, err := w.migration.Declare(w.t.Context(), &migrationv1.DeclareRequest{
		From: clusterv1.MemberState_MEMBER_STATE_JOINING, To: clusterv1.MemberState_MEMBER_STATE_UP,
	})
	require.NoError(w.t, err)
}

func (w *world) replicate(r *adminv1.ReplicateRequest) []*movev1.Move {
	w.t.Helper()
	resp, err := w.admin.Replicate(w.t.Context(), r)
	require.NoError(w.t, err)
	return resp.GetMoves()
}

func (w *world) refusedReplicate(r *adminv1.ReplicateRequest) refusal {
	w.t.Helper()
	_, err := w.admin.Replicate(w.t.Context(), r)
	return refused(w.t, err)
}

func (w *world) moveList(r *adminv1.MovesRequest) *adminv1.MovesResponse {
	w.t.Helper()
	resp, err := w.admin.Moves(w.t.Context(), r)
	require.NoError(w.t, err)
	return resp
}

func targets(ids ...string) (out []*movev1.Target) {
	for _, id := range ids {
		out = append(out, &movev1.Target{NodeId: id})
	}
	return out
}

func hashRanges(bounds ...uint64) (out []*datav1.HashRange) {
	for i := 0; i < len(bounds); i += 2 {
		out = append(out, &datav1.HashRange{Start: bounds[i], End: bounds[i+1]})
	}
	return out
}

// Danger: a field that is lost on its way: the migrator sends all keys, or to another place.
func TestMoveArrivesAsItWasAsked(t *testing.T) {
	w := start(t)
	w.cluster(3)
	got := w.replicate(&adminv1.ReplicateRequest{
		Id: "to-all", Mode: movev1.Mode_MODE_FOLLOW, Purpose: movev1.Purpose_PURPOSE_STREAM, MaxBytesPerSecond: 65536, Parent: "p",
		What:    &movev1.Selection{Tenant: "shop", Range: &datav1.KeyRange{Start: "a", End: "b"}, HashRanges: hashRanges(5, 3)},
		Targets: []*movev1.Target{{NodeId: "n3"}, {NodeId: "n2", Addr: "n2.pods:1"}, {NodeId: "other", Addr: "1.2.3.4:5"}},
	})
	require.Len(t, got, 3)
	now := got[0].GetCreatedAtMs()
	require.InDelta(t, time.Now().UnixMilli(), now, 10_000)
	want := &movev1.Move{
		Id: "to-all.1", Version: 1, Purpose: movev1.Purpose_PURPOSE_STREAM, Mode: movev1.Mode_MODE_FOLLOW,
		What:         &movev1.Selection{Tenant: "shop", Range: &datav1.KeyRange{Start: "a", End: "b"}, HashRanges: hashRanges(5, 3)},
		SourceNodeId: "n1", Target: &movev1.Target{NodeId: "n3", Addr: "10.0.0.3:8080"}, MaxBytesPerSecond: 65536,
		State: movev1.State_STATE_PLANNED, Parent: "p", Progress: &movev1.Progress{RemainingSeconds: -1, LagMs: -1}, CreatedAtMs: now, UpdatedAtMs: now,
	}
	requireProto(t, want, got[0])
	require.Equal(t, "n2.pods:1", got[1].GetTarget().GetAddr())
	require.Equal(t, []string{"to-all.2", "to-all.3"}, []string{got[1].GetId(), got[2].GetId()})

	// A target that moves is found where it is now.
	moved := upMember(3, 2, alive)
	moved.Declared.GrpcAddr = "10.0.0.33:8080"
	w.report(moved)
	list := w.moveList(&adminv1.MovesRequest{Id: "to-all.1"})
	require.Equal(t, "10.0.0.33:8080", list.GetMoves()[0].GetTarget().GetAddr())

	keys := w.replicate(&adminv1.ReplicateRequest{What: &movev1.Selection{Tenant: "shop", Keys: []string{"b", "a"}}, Targets: targets("n2")})
	require.Regexp(t, "^move-[a-z2-7]{16}$", keys[0].GetId())
	require.Equal(t, []string{"b", "a"}, keys[0].GetWhat().GetKeys())
	require.Equal(t, movev1.Purpose_PURPOSE_REPLICATE, keys[0].GetPurpose())
	require.Equal(t, movev1.Mode_MODE_ONCE, keys[0].GetMode())
	require.Len(t, w.moveList(&adminv1.MovesRequest{}).GetMoves(), 4)
	require.Len(t, w.moveList(&adminv1.MovesRequest{Id: "p"}).GetMoves(), 3, "those of a drain")
	require.Empty(t, w.moveList(&adminv1.MovesRequest{Id: "nobody"}).GetMoves())
	_, err := w.admin.Moves(t.Context(), &adminv1.MovesRequest{Id: "A"})
	require.Equal(t, "INVALID_ARGUMENT_MOVE", refused(t, err).reason)
}

// Danger: a move is made that can't end, or ends where nobody looks for the records.
func TestReplicateRefusesWhatCantBe(t *testing.T) {
	w := start(t)
	w.cluster(2)
	drained, removed, draining := upMember(3, 1, alive), upMember(4, 1, alive), upMember(5, 1, alive)
	drained.Declared.State, removed.Declared.State, draining.Declared.State = clusterv1.MemberState_MEMBER_STATE_DRAINED, clusterv1.MemberState_MEMBER_STATE_REMOVED, clusterv1.MemberState_MEMBER_STATE_DRAINING
	nowhere := upMember(7, 1, alive)
	nowhere.Declared.GrpcAddr = ""
	w.report(upMember(1, 1, alive), upMember(2, 1, alive), drained, removed, draining, upMember(6, 1, down), nowhere)
	many := make([]*movev1.Target, 65)
	for i := range many {
		many[i] = &movev1.Target{NodeId: fmt.Sprintf("x%d", i), Addr: "a:1"}
	}
	bad := refusal{codes.InvalidArgument, "INVALID_ARGUMENT_MOVE", 0}
	badTarget := refusal{codes.InvalidArgument, "INVALID_ARGUMENT_TARGET", 0}
	unknown := refusal{codes.FailedPrecondition, "TARGET_UNKNOWN", 0}
	unfit := refusal{codes.FailedPrecondition, "TARGET_UNFIT", 0}
	for name, c := range map[string]struct {
		r    *adminv1.ReplicateRequest
		want refusal
	}{
		"bad id":           {&adminv1.ReplicateRequest{Id: "A", Targets: targets("n2")}, bad},
		"long id":          {&adminv1.ReplicateRequest{Id: strings.Repeat("x", 64), Targets: targets("n2", "n1")}, bad},
		"repair":           {&adminv1.ReplicateRequest{Purpose: movev1.Purpose_PURPOSE_REPAIR, Targets: targets("n2")}, bad},
		"purpose":          {&adminv1.ReplicateRequest{Purpose: 6, Targets: targets("n2")}, bad},
		"negative purpose": {&adminv1.ReplicateRequest{Purpose: -1, Targets: targets("n2")}, bad},
		"mode":             {&adminv1.ReplicateRequest{Mode: 300, Targets: targets("n2")}, bad},
		"system tenant":    {&adminv1.ReplicateRequest{What: &movev1.Selection{Tenant: "_members"}, Targets: targets("n2")}, bad},
		"many keys":        {&adminv1.ReplicateRequest{What: &movev1.Selection{Tenant: "t", Keys: make([]string, 10_001)}, Targets: targets("n2")}, bad},
		"many ranges":      {&adminv1.ReplicateRequest{What: &movev1.Selection{HashRanges: hashRanges(make([]uint64, 2*4097)...)}, Targets: targets("n2")}, bad},
		"slow":             {&adminv1.ReplicateRequest{MaxBytesPerSecond: 1, Targets: targets("n2")}, bad},
		"all handed over":  {&adminv1.ReplicateRequest{HandOver: true, Targets: targets("n2")}, bad},
		"drain, no drain":  {&adminv1.ReplicateRequest{Purpose: movev1.Purpose_PURPOSE_DRAIN, HandOver: true, What: &movev1.Selection{HashRanges: hashRanges(1, 2)}, Targets: targets("n2")}, bad},
		"no target":        {&adminv1.ReplicateRequest{}, badTarget},
		"many targets":     {&adminv1.ReplicateRequest{Targets: many}, badTarget},
		"twice":            {&adminv1.ReplicateRequest{Targets: targets("n2", "n2")}, badTarget},
		"itself":           {&adminv1.ReplicateRequest{Targets: targets("n2", "n1")}, badTarget},
		"no node id":       {&adminv1.ReplicateRequest{Targets: targets("a/b")}, badTarget},
		"bad address":      {&adminv1.ReplicateRequest{Targets: []*movev1.Target{{NodeId: "n2", Addr: "here"}}}, badTarget},
		"two owners":       {&adminv1.ReplicateRequest{HandOver: true, What: &movev1.Selection{HashRanges: hashRanges(1, 2)}, Targets: targets("n2", "n5")}, badTarget},
		"unknown":          {&adminv1.ReplicateRequest{Targets: targets("n9")}, unknown},
		"unknown owner":    {&adminv1.ReplicateRequest{HandOver: true, What: &movev1.Selection{HashRanges: hashRanges(1, 2)}, Targets: []*movev1.Target{{NodeId: "n9", Addr: "a:1"}}}, unknown},
		"nowhere":          {&adminv1.ReplicateRequest{Targets: targets("n7")}, unknown},
		"drained":          {&adminv1.ReplicateRequest{Targets: targets("n2", "n3")}, unfit},
		"removed":          {&adminv1.ReplicateRequest{Targets: targets("n4")}, unfit},
		"leaves itself":    {&adminv1.ReplicateRequest{HandOver: true, What: &movev1.Selection{HashRanges: hashRanges(1, 2)}, Targets: targets("n5")}, unfit},
		"down":             {&adminv1.ReplicateRequest{Targets: targets("n6")}, refusal{codes.FailedPrecondition, "TARGET_UNFIT", 5 * time.Second}},
	} {
		require.Equal(t, c.want, w.refusedReplicate(c.r), name)
	}
	require.Empty(t, w.moveList(&adminv1.MovesRequest{IncludeEnded: true}).GetMoves())
	// What is allowed just beside it.
	w.replicate(&adminv1.ReplicateRequest{Id: "a", Targets: targets("n5")})
	w.replicate(&adminv1.ReplicateRequest{Id: "b", Targets: []*movev1.Target{{NodeId: "n9", Addr: "a:1"}}})
	w.replicate(&adminv1.ReplicateRequest{Id: "c", HandOver: true, What: &movev1.Selection{HashRanges: hashRanges(1, 2)}, Targets: targets("n2")})

	// A repeat is answered whatever became of the target; another request of that id is not.
	w.report(upMember(1, 1, alive), upMember(2, 1, down))
	w.replicate(&adminv1.ReplicateRequest{Id: "c", HandOver: true, What: &movev1.Selection{HashRanges: hashRanges(1, 2)}, Targets: targets("n2")})
	require.Equal(t, refusal{codes.AlreadyExists, "MOVE_EXISTS", 0}, w.refusedReplicate(&adminv1.ReplicateRequest{Id: "c", Targets: targets("n2")}))
	w.report(upMember(1, 1, alive), upMember(2, 1, alive))
	require.Equal(t, refusal{codes.FailedPrecondition, "MOVES_OVERLAP", 0}, w.refusedReplicate(&adminv1.ReplicateRequest{
		HandOver: true, What: &movev1.Selection{HashRanges: hashRanges(0, 0)}, Targets: targets("n2"),
	}))
	for i := range moves.MaxActive - 3 {
		w.replicate(&adminv1.ReplicateRequest{Id: fmt.Sprintf("m%d", i), Targets: targets("n2")})
	}
	require.Equal(t, refusal{codes.ResourceExhausted, "TOO_MANY_MOVES", 5 * time.Second}, w.refusedReplicate(&adminv1.ReplicateRequest{Targets: targets("n2")}))
}

// Danger: a replica is left out of a repair, or one is compared for ranges that it does not keep.
func TestRepairIsWithThoseWhoShareRanges(t *testing.T) {
	w := start(t)
	_, err := w.admin.Repair(t.Context(), &adminv1.RepairRequest{})
	require.Equal(t, refusal{codes.FailedPrecondition, "TARGET_UNKNOWN", 0}, refused(t, err), "no member is known")
	w.cluster(5)
	var all []ring.Member
	for i := range 5 {
		all = append(all, ring.Member{NodeID: fmt.Sprintf("n%d", i+1), Zone: "a", VirtualNodes: 150})
	}
	mine := ring.New(all, 3).RangesOf("n1")
	repair := func(r *adminv1.RepairRequest) []*movev1.Move {
		resp, err := w.admin.Repair(t.Context(), r)
		require.NoError(t, err)
		return resp.GetMoves()
	}
	of := func(m *movev1.Move) (out []ring.HashRange) {
		for _, r := range m.GetWhat().GetHashRanges() {
			out = append(out, ring.HashRange{Start: r.GetStart(), End: r.GetEnd()})
		}
		return out
	}
	got := repair(&adminv1.RepairRequest{Id: "r"})
	require.Len(t, got, 4)
	for i, m := range got {
		require.Equal(t, fmt.Sprintf("r.%d", i+1), m.GetId())
		require.Equal(t, fmt.Sprintf("n%d", i+2), m.GetTarget().GetNodeId())
		require.Equal(t, movev1.Purpose_PURPOSE_REPAIR, m.GetPurpose())
		var want []ring.HashRange
		for _, p := range mine {
			for _, replica := range p.Replicas {
				if replica == m.GetTarget().GetNodeId() {
					want = append(want, p.Range)
				}
			}
		}
		require.Equal(t, ring.Normal(want), of(m))
	}
	require.Len(t, repair(&adminv1.RepairRequest{Id: "r"}), 4, "a repeat")
	require.Len(t, w.moveList(&adminv1.MovesRequest{}).GetMoves(), 4)

	half := hashRanges(0, 1<<63)
	part := repair(&adminv1.RepairRequest{What: &movev1.Selection{Tenant: "shop", HashRanges: half}})
	for i, m := range part {
		require.Regexp(t, `^repair-[a-z2-7]{16}\.\d$`, m.GetId())
		require.Equal(t, "shop", m.GetWhat().GetTenant())
		require.Equal(t, ring.Intersect(of(got[i]), []ring.HashRange{{Start: 0, End: 1 << 63}}), of(m))
	}
	one := repair(&adminv1.RepairRequest{Targets: targets("n3")})
	require.Equal(t, of(got[1]), of(one[0]))
	asked := repair(&adminv1.RepairRequest{Targets: targets("n3"), What: &movev1.Selection{HashRanges: half}})
	require.Len(t, of(asked[0]), 1, "who names both gets both")

	joining := upMember(9, 1, alive)
	joining.Declared.State = clusterv1.MemberState_MEMBER_STATE_JOINING
	w.report(joining)
	for want, r := range map[string]*adminv1.RepairRequest{
		"TARGET_UNFIT":            {Targets: targets("n9")},
		"INVALID_ARGUMENT_TARGET": {Targets: targets("n1")},
		"INVALID_ARGUMENT_MOVE":   {What: &movev1.Selection{Tenant: "_x"}},
	} {
		_, err := w.admin.Repair(t.Context(), r)
		require.Equal(t, want, refused(t, err).reason)
	}
	repair(&adminv1.RepairRequest{Targets: targets("n9"), What: &movev1.Selection{HashRanges: half}})
}

// Danger: an operator can't call off what he began, or calls off what can't be any more.
func TestOperatorsChangeMoves(t *testing.T) {
	w := start(t)
	w.cluster(2)
	var gone []string
	w.server.open.Load().LetGo = func(_ context.Context, id string) { gone = append(gone, id) }
	w.replicate(&adminv1.ReplicateRequest{Id: "m", Targets: targets("n2")})
	r, err := w.admin.CancelMove(t.Context(), &adminv1.CancelMoveRequest{Id: "m", Reason: "not needed"})
	require.NoError(t, err)
	require.Nil(t, r.GetDrain())
	require.Equal(t, movev1.State_STATE_CANCELLED, r.GetMoves()[0].GetState())
	require.Equal(t, "not needed", r.GetMoves()[0].GetReason())
	require.Equal(t, []string{"m"}, gone)
	require.Empty(t, w.moveList(&adminv1.MovesRequest{}).GetMoves())
	require.Len(t, w.moveList(&adminv1.MovesRequest{IncludeEnded: true}).GetMoves(), 1)

	w.replicate(&adminv1.ReplicateRequest{Id: "f", Mode: movev1.Mode_MODE_FOLLOW, Targets: targets("n2")})
	f, err := w.admin.FinishMove(t.Context(), &adminv1.FinishMoveRequest{Id: "f"})
	require.NoError(t, err)
	require.True(t, f.GetMove().GetFinishing())
	a, err := w.migration.Advance(t.Context(), &migrationv1.AdvanceRequest{Id: "f", Version: 2, State: movev1.State_STATE_FAILED, Reason: "other cluster"})
	require.NoError(t, err)
	require.Equal(t, movev1.State_STATE_PLANNED, a.GetMove().GetResumeState())
	m, err := w.admin.ResumeMove(t.Context(), &adminv1.ResumeMoveRequest{Id: "f"})
	require.NoError(t, err)
	require.Equal(t, movev1.State_STATE_PLANNED, m.GetMove().GetState())

	notFound := refusal{codes.NotFound, "MOVE_NOT_FOUND", 0}
	_, err = w.admin.CancelMove(t.Context(), &adminv1.CancelMoveRequest{Id: "x"})
	require.Equal(t, notFound, refused(t, err))
	_, err = w.admin.FinishMove(t.Context(), &adminv1.FinishMoveRequest{Id: "x"})
	require.Equal(t, notFound, refused(t, err))
	_, err = w.admin.ResumeMove(t.Context(), &adminv1.ResumeMoveRequest{Id: "x"})
	require.Equal(t, notFound, refused(t, err))
	_, err = w.admin.ResumeMove(t.Context(), &adminv1.ResumeMoveRequest{Id: "m"})
	require.Equal(t, refusal{codes.FailedPrecondition, "MOVE_STATE", 0}, refused(t, err))
	for _, call := range []func(id string) error{
		func(id string) error {
			_, err := w.admin.CancelMove(t.Context(), &adminv1.CancelMoveRequest{Id: id})
			return err
		},
		func(id string) error {
			_, err := w.admin.FinishMove(t.Context(), &adminv1.FinishMoveRequest{Id: id})
			return err
		},
		func(id string) error {
			_, err := w.admin.ResumeMove(t.Context(), &adminv1.ResumeMoveRequest{Id: id})
			return err
		},
		func(id string) error {
			_, err := w.migration.Advance(t.Context(), &migrationv1.AdvanceRequest{Id: id})
			return err
		},
		func(id string) error {
			_, err := w.migration.AdvanceDrain(t.Context(), &migrationv1.AdvanceDrainRequest{Id: id})
			return err
		},
	} {
		require.Equal(t, refusal{codes.InvalidArgument, "INVALID_ARGUMENT_MOVE", 0}, refused(t, call("")))
		require.Equal(t, "INVALID_ARGUMENT_MOVE", refused(t, call(strings.Repeat("x", 65))).reason)
	}
}

// Danger: a step of the migrator is lost or means something else when it arrives.
func TestMigratorAdvancesWhatItHasSeen(t *testing.T) {
	w := start(t)
	w.cluster(2)
	w.replicate(&adminv1.ReplicateRequest{Id: "m", Targets: targets("n2")})
	_, err := w.moves.MarkPinned(t.Context(), "m", 10)
	require.NoError(t, err)
	p := &movev1.Progress{
		CopiedRecords: 1, CopiedBytes: 2, TailedRecords: 3, TailedBytes: 4, TotalBytes: 5, ResentBytes: 6, BytesPerSecond: 7,
		RemainingSeconds: 8, LagRecords: 9, LagMs: 10, ComparedKeys: 11, RepairedKeys: 12, Resumes: 13,
	}
	a, err := w.migration.Advance(t.Context(), &migrationv1.AdvanceRequest{
		Id: "m", Version: 2, State: movev1.State_STATE_COPYING, CopyCursor: []byte("c"), TailSequence: 11, Epoch: 5, Reason: "r", Progress: p,
	})
	require.NoError(t, err)
	got := a.GetMove()
	require.Equal(t, []any{movev1.State_STATE_COPYING, "c", uint64(11), uint64(5), "r", uint64(3)},
		[]any{got.GetState(), string(got.GetCopyCursor()), got.GetTailSequence(), got.GetEpoch(), got.GetReason(), got.GetVersion()})
	requireProto(t, p, got.GetProgress())
	a, err = w.migration.Advance(t.Context(), &migrationv1.AdvanceRequest{Id: "m", Version: 3, Progress: p, State: movev1.State_STATE_COPYING})
	require.NoError(t, err)
	require.EqualValues(t, 3, a.GetMove().GetVersion(), "progress alone")
	require.Equal(t, "c", string(a.GetMove().GetCopyCursor()), "it stays when it is not named")
	a, err = w.migration.Advance(t.Context(), &migrationv1.AdvanceRequest{Id: "m", Version: 3, CopyCursor: []byte{}})
	require.NoError(t, err)
	require.Empty(t, a.GetMove().GetCopyCursor())
	_, err = w.migration.Advance(t.Context(), &migrationv1.AdvanceRequest{Id: "m", Version: 3, State: movev1.State_STATE_TAILING})
	require.Equal(t, refusal{codes.Aborted, "MOVE_CHANGED", 0}, refused(t, err))
	_, err = w.migration.Advance(t.Context(), &migrationv1.AdvanceRequest{Id: "m", Version: 4, State: movev1.State_STATE_RELEASED})
	require.Equal(t, refusal{codes.FailedPrecondition, "MOVE_STATE", 0}, refused(t, err))
	_, err = w.migration.Advance(t.Context(), &migrationv1.AdvanceRequest{Id: "m", Version: 4, State: 99})
	require.Equal(t, refusal{codes.InvalidArgument, "INVALID_ARGUMENT_MOVE", 0}, refused(t, err))
	_, err = w.migration.AdvanceDrain(t.Context(), &migrationv1.AdvanceDrainRequest{Id: "d"})
	require.Equal(t, refusal{codes.NotFound, "MOVE_NOT_FOUND", 0}, refused(t, err))

	c, err := w.migration.Configuration(t.Context(), &migrationv1.ConfigurationRequest{})
	require.NoError(t, err)
	requireProto(t, &migrationv1.ConfigurationResponse{ReplicationFactor: 3, Gc: "grace"}, c)
	b := w.server.open.Load()
	b.ReplicationFactor = 2
	b.Settings = Settings{GCGrace: time.Hour, MaxClockSkew: time.Minute, Coordinated: true, GC: func() string { return "repair" }}
	c, err = w.migration.Configuration(t.Context(), &migrationv1.ConfigurationRequest{})
	require.NoError(t, err)
	requireProto(t, &migrationv1.ConfigurationResponse{ReplicationFactor: 2, GcGraceSeconds: 3600, Gc: "repair", MaxClockSkewMs: 60_000, Coordinated: true}, c)
}

// Danger: the migrator misses a move, or carries on one that is over; an operator is told of the past.
func TestMovesAreWatched(t *testing.T) {
	w := start(t)
	w.cluster(2)
	_, err := w.node.Identity(t.Context(), &nodev1.IdentityRequest{Sidecar: SidecarMigrator})
	require.NoError(t, err)
	require.GreaterOrEqual(t, w.moveList(&adminv1.MovesRequest{}).GetMigratorLastSeenMsAgo(), int64(0))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	work, err := w.migration.Work(ctx, &migrationv1.WorkRequest{})
	require.NoError(t, err)
	watch, err := w.admin.WatchMoves(ctx, &adminv1.WatchMovesRequest{})
	require.NoError(t, err)
	all, err := w.admin.WatchMoves(ctx, &adminv1.WatchMovesRequest{IncludeEnded: true, Id: "b"})
	require.NoError(t, err)
	_, err = w.admin.WatchMoves(ctx, &adminv1.WatchMovesRequest{})
	require.NoError(t, err)

	nextWork := func(done func(*migrationv1.WorkResponse) bool) {
		t.Helper()
		for {
			r, err := work.Recv()
			require.NoError(t, err)
			if done(r) {
				return
			}
		}
	}
	next := func(stream interface {
		Recv() (*adminv1.WatchMovesResponse, error)
	}, done func(*adminv1.MovesResponse) bool) {
		t.Helper()
		for {
			r, err := stream.Recv()
			require.NoError(t, err)
			if done(r.GetView()) {
				return
			}
		}
	}
	nextWork(func(r *migrationv1.WorkResponse) bool { return len(r.GetMoves()) == 0 && r.GetDrain() == nil })
	w.replicate(&adminv1.ReplicateRequest{Id: "b", Targets: targets("n2")})
	w.replicate(&adminv1.ReplicateRequest{Id: "a", Targets: targets("n2")})
	nextWork(func(r *migrationv1.WorkResponse) bool {
		return len(r.GetMoves()) == 2 && r.GetMoves()[0].GetId() == "a" && r.GetMoves()[0].GetTarget().GetAddr() == "10.0.0.2:8080"
	})
	next(watch, func(v *adminv1.MovesResponse) bool { return len(v.GetMoves()) == 2 })
	_, err = w.admin.CancelMove(t.Context(), &adminv1.CancelMoveRequest{Id: "b"})
	require.NoError(t, err)
	nextWork(func(r *migrationv1.WorkResponse) bool { return len(r.GetMoves()) == 1 })
	next(watch, func(v *adminv1.MovesResponse) bool { return len(v.GetMoves()) == 1 })
	next(all, func(v *adminv1.MovesResponse) bool {
		return len(v.GetMoves()) == 1 && v.GetMoves()[0].GetState() == movev1.State_STATE_CANCELLED
	})
	// Progress reaches who watches, too, and is no work.
	_, err = w.migration.Advance(t.Context(), &migrationv1.AdvanceRequest{Id: "a", Version: 1, Progress: &movev1.Progress{ComparedKeys: 5}})
	require.NoError(t, err)
	next(watch, func(v *adminv1.MovesResponse) bool { return v.GetMoves()[0].GetProgress().GetComparedKeys() == 5 })
	_, err = w.admin.Drain(t.Context(), &adminv1.DrainRequest{Kind: adminv1.DrainRequest_KIND_DECOMMISSION, Force: true, Reason: "r"})
	require.NoError(t, err)
	nextWork(func(r *migrationv1.WorkResponse) bool {
		return r.GetDrain().GetState() == movev1.DrainState_DRAIN_STATE_REQUESTED
	})
	w.server.Leave()
	_, err = work.Recv()
	for err == nil {
		_, err = work.Recv()
	}
	require.Equal(t, codes.Unavailable, refused(t, err).code)
}

// Danger: a drain takes the last copy of something away.
func TestDrainIsRefusedWhereCopiesWouldBeLost(t *testing.T) {
	drain := func(w *world, force bool) (*movev1.Drain, error) {
		r, err := w.admin.Drain(t.Context(), &adminv1.DrainRequest{Kind: adminv1.DrainRequest_KIND_DECOMMISSION, Force: force, Reason: "scale down"})
		return r.GetDrain(), err
	}
	state := func(m *clusterv1.Member, s clusterv1.MemberState) *clusterv1.Member {
		m.Declared.State = s
		return m
	}
	member := func(i int) *clusterv1.Member { return upMember(i, 1, alive) }
	const joins, draining, removed = clusterv1.MemberState_MEMBER_STATE_JOINING, clusterv1.MemberState_MEMBER_STATE_DRAINING, clusterv1.MemberState_MEMBER_STATE_REMOVED
	unsafe := refusal{codes.FailedPrecondition, "DRAIN_UNSAFE", 0}
	for name, c := range map[string]struct {
		members             []*clusterv1.Member
		refused, evenForced bool
	}{
		"four of four":           {[]*clusterv1.Member{member(1), member(2), member(3), member(4)}, false, false},
		"one is down":            {[]*clusterv1.Member{member(1), member(2), member(3), upMember(4, 1, down)}, false, false},
		"three of three":         {[]*clusterv1.Member{member(1), member(2), member(3)}, true, false},
		"two of two":             {[]*clusterv1.Member{member(1), member(2)}, true, false},
		"the fourth joins":       {[]*clusterv1.Member{member(1), member(2), member(3), state(member(4), joins)}, true, false},
		"the fourth leaves":      {[]*clusterv1.Member{member(1), member(2), member(3), state(member(4), draining)}, true, false},
		"the fourth was removed": {[]*clusterv1.Member{member(1), member(2), member(3), state(member(4), removed)}, true, false},
		"alone":                  {[]*clusterv1.Member{member(1)}, true, true},
		"nobody is known":        {nil, true, true},
		"itself is not known":    {[]*clusterv1.Member{member(2), member(3), member(4), member(5)}, true, true},
		"itself joins":           {[]*clusterv1.Member{state(member(1), joins), member(2), member(3), member(4)}, true, true},
		"all others are down":    {[]*clusterv1.Member{member(1), upMember(2, 1, down), upMember(3, 1, down), upMember(4, 1, down)}, true, true},
		"the other leaves":       {[]*clusterv1.Member{member(1), state(member(2), draining)}, true, true},
	} {
		for _, force := range []bool{false, true} {
			w := start(t)
			if len(c.members) > 0 {
				w.report(c.members...)
			}
			d, err := drain(w, force)
			if c.refused && !force || c.evenForced && force {
				require.Equal(t, unsafe, refused(t, err), "%s %v", name, force)
				require.Nil(t, w.moves.Drain())
				continue
			}
			require.NoError(t, err, name)
			require.Equal(t, movev1.DrainState_DRAIN_STATE_REQUESTED, d.GetState())
			require.Equal(t, map[bool]string{true: "scale down"}[force], d.GetForceReason())
			again, err := drain(w, force)
			require.NoError(t, err)
			requireProto(t, d, again)
			list := w.moveList(&adminv1.MovesRequest{Id: d.GetId()})
			requireProto(t, d, list.GetDrains()[0])
			off, err := w.admin.CancelMove(t.Context(), &adminv1.CancelMoveRequest{Id: d.GetId(), Reason: "no"})
			require.NoError(t, err)
			require.Equal(t, movev1.DrainState_DRAIN_STATE_CANCELLED, off.GetDrain().GetState())
		}
	}
}

// Danger: a drain that was asked for badly begins, or one of a node that is drained.
func TestDrainIsAskedForWell(t *testing.T) {
	w := start(t, joining)
	w.cluster(4)
	const flush, decommission = adminv1.DrainRequest_KIND_FLUSH, adminv1.DrainRequest_KIND_DECOMMISSION
	for name, r := range map[string]*adminv1.DrainRequest{
		"no kind":        {},
		"unknown kind":   {Kind: 7},
		"no reason":      {Kind: decommission, Force: true},
		"timeout":        {Kind: decommission, TimeoutMs: 1000},
		"long reason":    {Kind: decommission, Reason: strings.Repeat("x", 1001)},
		"control":        {Kind: flush, Reason: "a\nb"},
		"forced flush":   {Kind: flush, Force: true, Reason: "r"},
		"short flush":    {Kind: flush, TimeoutMs: 999},
		"negative flush": {Kind: flush, TimeoutMs: -1},
		"long flush":     {Kind: flush, TimeoutMs: 3_600_001},
		"overflow":       {Kind: flush, TimeoutMs: 1 << 62},
	} {
		_, err := w.admin.Drain(t.Context(), r)
		require.Equal(t, refusal{codes.InvalidArgument, "INVALID_ARGUMENT_MOVE", 0}, refused(t, err), name)
	}
	_, err := w.admin.Drain(t.Context(), &adminv1.DrainRequest{Kind: decommission})
	require.Equal(t, refusal{codes.FailedPrecondition, "MOVE_STATE", 0}, refused(t, err), "it joins")
	w.up()
	d, err := w.admin.Drain(t.Context(), &adminv1.DrainRequest{Kind: decommission, Reason: "r"})
	require.NoError(t, err)
	// The whole way, as the migrator goes it.
	declare := func(from, to clusterv1.MemberState) error {
		_, err := w.migration.Declare(t.Context(), &migrationv1.DeclareRequest{From: from, To: to})
		return err
	}
	const up, draining, drained = clusterv1.MemberState_MEMBER_STATE_UP, clusterv1.MemberState_MEMBER_STATE_DRAINING, clusterv1.MemberState_MEMBER_STATE_DRAINED
	require.NoError(t, declare(up, draining))
	require.Equal(t, refusal{codes.FailedPrecondition, "MOVE_STATE", 0}, refused(t, declare(draining, drained)))
	require.Equal(t, refusal{codes.Aborted, "MOVE_CHANGED", 0}, refused(t, declare(clusterv1.MemberState_MEMBER_STATE_JOINING, up)))
	for _, bad := range []clusterv1.MemberState{0, -1, clusterv1.MemberState_MEMBER_STATE_REMOVED, 77} {
		require.Equal(t, "INVALID_ARGUMENT_MOVE", refused(t, declare(bad, up)).reason)
		require.Equal(t, "INVALID_ARGUMENT_MOVE", refused(t, declare(up, bad)).reason)
	}
	a, err := w.migration.AdvanceDrain(t.Context(), &migrationv1.AdvanceDrainRequest{Id: d.GetDrain().GetId(), Version: 1, State: movev1.DrainState_DRAIN_STATE_MOVING, MovesTotal: 2, Reason: "r"})
	require.NoError(t, err)
	require.EqualValues(t, 2, a.GetDrain().GetMovesTotal())
	w.replicate(&adminv1.ReplicateRequest{Purpose: movev1.Purpose_PURPOSE_DRAIN, HandOver: true, Parent: d.GetDrain().GetId(), Id: d.GetDrain().GetId() + ".n2",
		What: &movev1.Selection{HashRanges: hashRanges(1, 2)}, Targets: targets("n2")})
	require.Equal(t, "MOVE_STATE", refused(t, declare(draining, drained)).reason)
	_, err = w.admin.CancelMove(t.Context(), &adminv1.CancelMoveRequest{Id: d.GetDrain().GetId() + ".n2"})
	require.NoError(t, err)
	require.NoError(t, declare(draining, drained))
	id, err := w.node.Identity(t.Context(), &nodev1.IdentityRequest{})
	require.NoError(t, err)
	require.Equal(t, drained, id.GetWantedState())
	a, err = w.migration.AdvanceDrain(t.Context(), &migrationv1.AdvanceDrainRequest{Id: d.GetDrain().GetId(), Version: 2, State: movev1.DrainState_DRAIN_STATE_COMPLETED, MovesDone: 2, MovesTotal: 2})
	require.NoError(t, err)
	require.Equal(t, movev1.DrainState_DRAIN_STATE_COMPLETED, a.GetDrain().GetState())
	_, err = w.admin.Drain(t.Context(), &adminv1.DrainRequest{Kind: decommission, Reason: "again"})
	require.Equal(t, refusal{codes.FailedPrecondition, "DRAIN_EXISTS", 0}, refused(t, err))
	require.Equal(t, membership.Drained, w.moves.Wanted())
}

// Danger: a node that is about to be restarted takes a write for which nobody waits, refuses reads, or never
// takes writes again.
func TestFlushDrainRefusesWritesAndLapses(t *testing.T) {
	clock := time.Now()
	w := start(t, func(w *world, _ *Options) { w.now = func() time.Time { return clock } })
	w.put("k", "v")
	w.engine.set(func(f *fakeEngine) { f.numbers.VisibleSeq = 42 })
	drain := func(timeout int64) (*adminv1.DrainResponse, error) {
		return w.admin.Drain(t.Context(), &adminv1.DrainRequest{Kind: adminv1.DrainRequest_KIND_FLUSH, TimeoutMs: timeout, Reason: "rollout"})
	}
	r, err := drain(0)
	require.NoError(t, err)
	requireProto(t, &adminv1.DrainResponse{Sequence: 42}, r)
	draining := refusal{codes.Unavailable, "NODE_DRAINING", time.Second}
	_, err = w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "k", Value: []byte("w")})
	require.Equal(t, draining, refused(t, err))
	_, err = w.storage.Delete(t.Context(), &storagev1.DeleteRequest{Tenant: "t", Key: "k"})
	require.Equal(t, draining, refused(t, err))
	_, err = w.storage.BatchWrite(t.Context(), &storagev1.BatchWriteRequest{Tenant: "t", Ops: []*storagev1.BatchOp{{Key: "k", Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{}}}}})
	require.Equal(t, draining, refused(t, err))
	read, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	require.NoError(t, err, "reads go on")
	require.True(t, read.GetFound())
	_, err = w.storage.Repair(t.Context(), &storagev1.RepairRequest{Record: &datav1.Record{Tenant: "t", Key: "k", Siblings: []*datav1.Sibling{{Value: []byte("v"), Clock: read.GetClock(), Timestamp: read.GetTimestamp()}}}})
	require.Equal(t, draining, refused(t, err))
	contract, err := w.contract.Write(t.Context(), &storagenodev1.WriteRequest{TenantId: "t", Key: "k", Value: []byte("w")})
	require.NoError(t, err)
	require.False(t, contract.GetSuccess())
	require.Equal(t, "NODE_DRAINING", contract.GetError().GetReason())
	// What the node does for itself goes on: its migrator and its health-agent still work.
	w.cluster(2)
	w.replicate(&adminv1.ReplicateRequest{Id: "m", Targets: targets("n2")})

	clock = clock.Add(59 * time.Second)
	_, err = w.storage.Write(t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "k", Value: []byte("w")})
	require.Equal(t, draining, refused(t, err))
	clock = clock.Add(2 * time.Second)
	w.put("k", "w")

	// A flush that fails prepares nothing: the node goes on.
	w.engine.set(func(f *fakeEngine) { f.fail = context.DeadlineExceeded })
	_, err = drain(60_000)
	require.Error(t, err)
	w.engine.set(func(f *fakeEngine) { f.fail = nil })
	w.put("k", "x")
	require.Nil(t, w.moves.Drain(), "nothing of it is durable")
}
