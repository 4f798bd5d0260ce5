package node

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/event"
	hashring "github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/sidecar"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
)

// notes are what moveEvents told.
type notes struct {
	mu    sync.Mutex
	kinds []string
	all   []proto.Message
}

func (n *notes) note(kind string, payload proto.Message) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, err := event.EncodePayload(kind, payload); err != nil {
		kind = err.Error()
	}
	n.kinds, n.all = append(n.kinds, kind), append(n.all, payload)
}

func (n *notes) take() (kinds string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	kinds = strings.Join(n.kinds, " ")
	n.kinds = nil
	return kinds
}

// Danger: an operator waits for an event of a move that never comes, or drowns in progress; or an event
// shows the keys of a client.
func TestMovesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := &notes{}
		e := newMoveEvents("n1", told.note)
		none := func() *moves.Drain { return nil }
		m := &moves.Move{Spec: moves.Spec{ID: "m", Purpose: moves.PurposeReplicate, Mode: moves.Once}, Version: 1, State: moves.Planned}
		m.What = moves.Selection{Tenant: "t", Keys: []string{"secret-key"}}
		for i := range 4096 {
			m.What.HashRanges = append(m.What.HashRanges, hashring.HashRange{Start: ^uint64(0) - uint64(2*i) - 1, End: ^uint64(0) - uint64(2*i)})
		}
		m.CopyCursor = []byte("secret-key")
		e.changed(moves.Change{After: m}, none)
		step := func(s moves.State) {
			next := *m
			next.State = s
			next.Version++
			e.changed(moves.Change{Before: m, After: &next}, none)
			m = &next
		}
		step(moves.Pinned)
		step(moves.Copying)
		step(moves.Copying)
		require.Equal(t, "move.requested move.started", told.take())
		require.NotContains(t, fmt.Sprint(told.all), "secret-key")
		require.Equal(t, "t", told.all[0].(*eventv1.MoveChanged).GetMove().GetWhat().GetTenant())
		for range 25 {
			time.Sleep(time.Second) // virtual
			step(moves.Copying)
		}
		require.Equal(t, "move.progress move.progress", told.take(), "at most every ten seconds")
		step(moves.Failed)
		step(moves.Copying)
		step(moves.Tailing)
		step(moves.Verifying)
		step(moves.Committed)
		step(moves.Released)
		require.Equal(t, "move.failed move.completed", told.take())
		require.Empty(t, e.told, "what is over is forgotten")
		m = &moves.Move{Spec: m.Spec, State: moves.Planned}
		step(moves.Cancelled)
		require.Equal(t, "move.cancelled", told.take())
	})
}

// Danger: a drain that can't go on says nothing.
func TestDrainsAreTold(t *testing.T) {
	told := &notes{}
	e := newMoveEvents("n1", told.note)
	var d *moves.Drain
	active := func() *moves.Drain { return d }
	step := func(s moves.DrainState, done int) {
		next := &moves.Drain{ID: "d", Version: 1, State: s, MovesDone: done, MovesTotal: 2}
		e.changed(moves.Change{DrainBefore: d, DrainAfter: next}, active)
		d = next
	}
	step(moves.DrainRequested, 0)
	step(moves.DrainMoving, 0)
	step(moves.DrainMoving, 0)
	step(moves.DrainMoving, 1)
	require.Equal(t, "drain.requested drain.started drain.progress", told.take())
	fail := func(parent string) {
		before := &moves.Move{Spec: moves.Spec{ID: "m", Parent: parent}, Version: 1, State: moves.Copying}
		after := *before
		after.State = moves.Failed
		e.changed(moves.Change{Before: before, After: &after}, active)
	}
	fail("d")
	require.Equal(t, "move.failed drain.failed", told.take())
	fail("other")
	require.Equal(t, "move.failed", told.take())
	step(moves.DrainCompleted, 2)
	require.Equal(t, "drain.completed", told.take())
	d = &moves.Drain{ID: "d", State: moves.DrainMoving}
	step(moves.DrainCancelled, 0)
	require.Equal(t, "drain.cancelled", told.take())
}

// Danger: a follower that is hours behind is not told of, above all when its migrator is dead; or each
// burst of writes is news.
func TestLagIsTold(t *testing.T) {
	told := &notes{}
	e := newMoveEvents("n1", told.note)
	now := time.UnixMilli(1_700_000_000_000)
	m := &moves.Move{Spec: moves.Spec{ID: "m", Mode: moves.Follow, Target: moves.Target{NodeID: "n2"}}, State: moves.Tailing}
	look := func(seconds int, lag time.Duration) {
		for range seconds {
			now = now.Add(time.Second)
			m.Progress.LagMS, m.ProgressAt = lag.Milliseconds(), now.UnixMilli()
			e.look(now, []*moves.Move{m})
		}
	}
	look(60, 10*time.Second)
	look(9, 11*time.Second)
	look(1, 5*time.Second)
	look(10, 11*time.Second)
	require.Empty(t, told.take(), "not for ten seconds on end")
	look(1, 12*time.Second)
	require.Equal(t, "replication.lag", told.take())
	require.True(t, proto.Equal(&eventv1.ReplicationLag{MoveId: "m", TargetNodeId: "n2", LagMs: 12_000, Behind: true}, told.all[0]))
	look(60, 12*time.Second)
	look(5, time.Second)
	require.Empty(t, told.take(), "told once, and not caught up yet")
	look(5, 999*time.Millisecond)
	require.Equal(t, "replication.lag", told.take())
	require.False(t, told.all[1].(*eventv1.ReplicationLag).GetBehind())

	// Nobody says anything any more.
	for range 60 {
		now = now.Add(time.Second)
		e.look(now, []*moves.Move{m})
	}
	require.Equal(t, "replication.lag", told.take())
	require.Greater(t, told.all[2].(*eventv1.ReplicationLag).GetLagMs(), int64(10_000))
	after := *m
	after.State = moves.Cancelled
	e.changed(moves.Change{Before: m, After: &after}, func() *moves.Drain { return nil })
	require.Empty(t, e.lags)
	e.look(now, []*moves.Move{&after})
	require.Equal(t, "move.cancelled", told.take())
}

// migrator dials the socket of a node as its migrator does.
func (w *testNode) migrator() migrationv1.MigrationServiceClient {
	w.t.Helper()
	conn, err := sidecar.Dial(w.cfg.Socket)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { require.NoError(w.t, conn.Close()) })
	return migrationv1.NewMigrationServiceClient(conn)
}

func (w *testNode) wanted() clusterv1.MemberState {
	w.t.Helper()
	id, err := w.agent().Identity(w.t.Context(), &nodev1.IdentityRequest{})
	require.NoError(w.t, err)
	return id.GetWantedState()
}

// Danger: a node that joins is up after a restart, before it has its records; moves and drains are gone.
func TestNodeRemembersWhatItWantsAndItsMoves(t *testing.T) {
	const joining, up, draining = clusterv1.MemberState_MEMBER_STATE_JOINING, clusterv1.MemberState_MEMBER_STATE_UP, clusterv1.MemberState_MEMBER_STATE_DRAINING
	cfg := testConfig(t)
	cfg.Join = "bootstrap"
	w := startNode(t, cfg, realFS()).ready()
	again := func() {
		require.NoError(t, w.end())
		w = startNode(t, cfg, realFS()).ready()
	}
	require.Equal(t, joining, w.wanted())
	again()
	require.Equal(t, joining, w.wanted(), "it is still to be bootstrapped")
	_, err := w.migrator().Declare(t.Context(), &migrationv1.DeclareRequest{From: joining, To: up})
	require.NoError(t, err)
	require.Equal(t, up, w.wanted())
	again()
	require.Equal(t, up, w.wanted())

	id, err := w.agent().Identity(t.Context(), &nodev1.IdentityRequest{Sidecar: "migrator"})
	require.NoError(t, err)
	report := clusterOf(id)
	report.Members[1].Declared.State, report.Members[1].Liveness = up, clusterv1.Liveness_LIVENESS_ALIVE
	_, err = w.agent().Report(t.Context(), report)
	require.NoError(t, err)
	made, err := w.admin.Replicate(t.Context(), &adminv1.ReplicateRequest{Id: "m", Targets: []*movev1.Target{{NodeId: "n2"}}})
	require.NoError(t, err)
	require.Equal(t, "10.0.0.2:8080", made.GetMoves()[0].GetTarget().GetAddr())
	_, err = w.admin.Drain(t.Context(), &adminv1.DrainRequest{Kind: adminv1.DrainRequest_KIND_DECOMMISSION, Force: true, Reason: "scale down"})
	require.NoError(t, err)
	_, err = w.migrator().Declare(t.Context(), &migrationv1.DeclareRequest{From: up, To: draining})
	require.NoError(t, err)
	c, err := w.migrator().Configuration(t.Context(), &migrationv1.ConfigurationRequest{})
	require.NoError(t, err)
	require.EqualValues(t, 240*3600, c.GetGcGraceSeconds())
	require.EqualValues(t, 60_000, c.GetMaxClockSkewMs())
	require.False(t, c.GetCoordinated())
	_, metrics := w.probe("/metrics")
	require.Contains(t, metrics, `pairdb_move_active{node_id="n1",state="planned"} 1`)
	require.Contains(t, metrics, `pairdb_drain_active{node_id="n1"} 1`)
	require.Contains(t, metrics, `pairdb_move_total{node_id="n1",purpose="drain",result="completed"} 0`)
	again()
	require.Equal(t, draining, w.wanted())
	all, err := w.admin.Moves(t.Context(), &adminv1.MovesRequest{})
	require.NoError(t, err)
	require.Equal(t, "m", all.GetMoves()[0].GetId())
	require.Equal(t, "scale down", all.GetDrains()[0].GetForceReason())
	require.EqualValues(t, -1, all.GetMigratorLastSeenMsAgo())
	require.NoError(t, w.end())

	cfg = testConfig(t)
	cfg.Join = config.JoinAtOnce
	require.Equal(t, up, startNode(t, cfg, realFS()).ready().wanted())
}

// Danger: a node that refuses writes looks healthy; or it loses, in the restart that follows, what it had
// flushed; or it refuses writes for ever.
func TestNodeThatIsFlushedSaysSoAndIsWellAfterARestart(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	require.NoError(t, w.put("k", "v"))
	r, err := w.admin.Drain(t.Context(), &adminv1.DrainRequest{Kind: adminv1.DrainRequest_KIND_FLUSH})
	require.NoError(t, err)
	require.Positive(t, r.GetSequence())
	require.Equal(t, "NODE_DRAINING", reason(w.put("k", "w")))
	require.Equal(t, "v", w.get("k"))
	s, err := w.admin.Status(t.Context(), &adminv1.StatusRequest{})
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(s.GetDegraded(), func(s string) bool { return strings.HasPrefix(s, "draining: ") }), "%v", s.GetDegraded())
	code, _ := w.probe("/ready")
	require.Equal(t, http.StatusOK, code, "reads go on")
	require.NoError(t, w.end())
	w = startNode(t, cfg, realFS()).ready()
	require.Equal(t, "v", w.get("k"))
	require.NoError(t, w.put("k", "w"))
}

// Danger: a crash between a fence and its note, or a cancel meanwhile, leaves ranges that nobody may write
// for ever.
func TestFencesThatNobodyHasAreLifted(t *testing.T) {
	cfg := testConfig(t)
	cfg.Join = config.JoinAtOnce
	w := startNode(t, cfg, realFS()).ready()
	id, err := w.agent().Identity(t.Context(), &nodev1.IdentityRequest{})
	require.NoError(t, err)
	report := clusterOf(id)
	report.Members[1].Declared.State, report.Members[1].Liveness = clusterv1.MemberState_MEMBER_STATE_UP, clusterv1.Liveness_LIVENESS_ALIVE
	_, err = w.agent().Report(t.Context(), report)
	require.NoError(t, err)
	whole := []hashring.HashRange{{}}
	_, err = w.held().moves.Create(t.Context(), moves.Spec{ID: "m", Purpose: moves.PurposeReplicate, Mode: moves.Once, HandOver: true,
		What: moves.Selection{HashRanges: whole}, Target: moves.Target{NodeID: "n2"}})
	require.NoError(t, err)
	fence := func() {
		_, _, err := w.held().ownership.Fence(t.Context(), "m", whole)
		require.NoError(t, err)
		require.Equal(t, "RANGE_MOVING", reason(w.put("k", "v")))
	}
	fence()
	require.NoError(t, w.end())
	w = startNode(t, cfg, realFS()).ready()
	require.NoError(t, w.put("k", "v"), "the move is planned")
	fence()
	off, err := w.admin.CancelMove(t.Context(), &adminv1.CancelMoveRequest{Id: "m"})
	require.NoError(t, err)
	require.Equal(t, movev1.State_STATE_CANCELLED, off.GetMoves()[0].GetState())
	require.NoError(t, w.put("k", "w"))
	fence()
	require.NoError(t, w.end())
	w = startNode(t, cfg, realFS()).ready()
	require.NoError(t, w.put("k", "x"), "the move is over")
}

// held is the open storage.
func (w *testNode) held() (s *storage) {
	w.t.Helper()
	require.True(w.t, w.withStorage(func(open *storage) { s = open }))
	return s
}

// Danger: a metric of moves that never moves.
func TestMetricsOfMoves(t *testing.T) {
	cfg := testConfig(t)
	cfg.Join = config.JoinAtOnce
	w := startNode(t, cfg, realFS()).ready()
	target := []*movev1.Target{{NodeId: "n2", Addr: "127.0.0.1:1"}}
	_, err := w.admin.Replicate(t.Context(), &adminv1.ReplicateRequest{Id: "f", Mode: movev1.Mode_MODE_FOLLOW, Targets: target})
	require.NoError(t, err)
	_, err = w.migrator().Advance(t.Context(), &migrationv1.AdvanceRequest{Id: "f", Version: 1, Progress: &movev1.Progress{CopiedBytes: 5, TailedBytes: 7, LagMs: 2500}})
	require.NoError(t, err)
	_, metrics := w.probe("/metrics")
	for _, line := range []string{
		`pairdb_move_active{node_id="n1",state="planned"} 1`, `pairdb_move_active{node_id="n1",state="failed"} 0`,
		`pairdb_move_bytes_total{node_id="n1"} 12`, `pairdb_move_lag_seconds{node_id="n1"} 2.5`, `pairdb_drain_active{node_id="n1"} 0`,
	} {
		require.Contains(t, metrics, line+"\n")
	}
	_, err = w.admin.CancelMove(t.Context(), &adminv1.CancelMoveRequest{Id: "f"})
	require.NoError(t, err)
	_, metrics = w.probe("/metrics")
	require.Contains(t, metrics, `pairdb_move_total{node_id="n1",purpose="replicate",result="cancelled"} 1`+"\n")
	require.Contains(t, metrics, `pairdb_move_active{node_id="n1",state="planned"} 0`+"\n")
	require.Contains(t, metrics, `pairdb_move_lag_seconds{node_id="n1"} 0`+"\n")
}

// Danger: what becomes of moves and drains is told to nobody outside of the node.
func TestMovesAndDrainsArePublished(t *testing.T) {
	b := newBroker(t).up()
	cfg := testConfig(t)
	cfg.NATSURL, cfg.Join = b.url(), config.JoinAtOnce
	w := startNode(t, cfg, realFS()).ready()
	id, err := w.agent().Identity(t.Context(), &nodev1.IdentityRequest{})
	require.NoError(t, err)
	report := clusterOf(id)
	report.Members[1].Declared.State, report.Members[1].Liveness = clusterv1.MemberState_MEMBER_STATE_UP, clusterv1.Liveness_LIVENESS_ALIVE
	_, err = w.agent().Report(t.Context(), report)
	require.NoError(t, err)
	migrator := w.migrator()
	advance := func(r *migrationv1.AdvanceRequest) {
		t.Helper()
		m, err := w.held().moves.Get(r.GetId())
		require.NoError(t, err)
		r.Version = m.Version
		_, err = migrator.Advance(t.Context(), r)
		require.NoError(t, err)
	}
	replicate := func(id string, mode movev1.Mode) {
		t.Helper()
		_, err := w.admin.Replicate(t.Context(), &adminv1.ReplicateRequest{Id: id, Mode: mode, Targets: []*movev1.Target{{NodeId: "n2"}}})
		require.NoError(t, err)
	}
	kept := func(kind string) *movev1.Move {
		t.Helper()
		_, payload := b.find(kind)
		return payload.(*eventv1.MoveChanged).GetMove()
	}
	replicate("r", movev1.Mode_MODE_ONCE)
	require.Equal(t, "r", kept(event.MoveRequested).GetId())
	_, err = migrator.Pin(t.Context(), &migrationv1.PinRequest{MoveId: "r"})
	require.NoError(t, err)
	require.Equal(t, movev1.State_STATE_PINNED, kept(event.MoveStarted).GetState())
	w.moveEvents.mu.Lock()
	w.moveEvents.told = map[string]time.Time{} // ten seconds later
	w.moveEvents.mu.Unlock()
	advance(&migrationv1.AdvanceRequest{Id: "r", State: movev1.State_STATE_COPYING})
	require.Equal(t, movev1.State_STATE_COPYING, kept(event.MoveProgress).GetState())
	advance(&migrationv1.AdvanceRequest{Id: "r", State: movev1.State_STATE_FAILED, Reason: "why"})
	require.Equal(t, "why", kept(event.MoveFailed).GetReason())
	_, err = w.admin.ResumeMove(t.Context(), &adminv1.ResumeMoveRequest{Id: "r"})
	require.NoError(t, err)
	advance(&migrationv1.AdvanceRequest{Id: "r", State: movev1.State_STATE_TAILING})
	advance(&migrationv1.AdvanceRequest{Id: "r", State: movev1.State_STATE_VERIFYING})
	advance(&migrationv1.AdvanceRequest{Id: "r", State: movev1.State_STATE_COMMITTED, Verified: true})
	_, err = migrator.Release(t.Context(), &migrationv1.ReleaseRequest{MoveId: "r"})
	require.NoError(t, err)
	require.Equal(t, "r", kept(event.MoveCompleted).GetId())
	replicate("c", movev1.Mode_MODE_FOLLOW)
	advance(&migrationv1.AdvanceRequest{Id: "c", Progress: &movev1.Progress{LagMs: 11_000}})
	w.moveEvents.look(time.Now().Add(time.Hour), w.held().moves.View().Moves)
	w.moveEvents.look(time.Now().Add(2*time.Hour), w.held().moves.View().Moves)
	_, payload := b.find(event.ReplicationLag)
	require.True(t, payload.(*eventv1.ReplicationLag).GetBehind())
	_, err = w.admin.CancelMove(t.Context(), &adminv1.CancelMoveRequest{Id: "c"})
	require.NoError(t, err)
	require.Equal(t, "c", kept(event.MoveCancelled).GetId())

	drain := func() *movev1.Drain {
		t.Helper()
		r, err := w.admin.Drain(t.Context(), &adminv1.DrainRequest{Kind: adminv1.DrainRequest_KIND_DECOMMISSION, Force: true, Reason: "test"})
		require.NoError(t, err)
		return r.GetDrain()
	}
	first := drain()
	_, payload = b.find(event.DrainRequested)
	require.Equal(t, first.GetId(), payload.(*eventv1.DrainChanged).GetDrain().GetId())
	_, err = w.admin.CancelMove(t.Context(), &adminv1.CancelMoveRequest{Id: first.GetId()})
	require.NoError(t, err)
	b.find(event.DrainCancelled)
	second := drain()
	declare := func(from, to clusterv1.MemberState) {
		t.Helper()
		_, err := migrator.Declare(t.Context(), &migrationv1.DeclareRequest{From: from, To: to})
		require.NoError(t, err)
	}
	const up, draining, drained = clusterv1.MemberState_MEMBER_STATE_UP, clusterv1.MemberState_MEMBER_STATE_DRAINING, clusterv1.MemberState_MEMBER_STATE_DRAINED
	declare(up, draining)
	step := func(version uint64, s movev1.DrainState, done int32) {
		t.Helper()
		_, err := migrator.AdvanceDrain(t.Context(), &migrationv1.AdvanceDrainRequest{Id: second.GetId(), Version: version, State: s, MovesDone: done, MovesTotal: 1})
		require.NoError(t, err)
	}
	step(1, movev1.DrainState_DRAIN_STATE_MOVING, 0)
	b.find(event.DrainStarted)
	_, err = w.admin.Replicate(t.Context(), &adminv1.ReplicateRequest{Id: "d", Purpose: movev1.Purpose_PURPOSE_DRAIN, Parent: second.GetId(), HandOver: true,
		What: &movev1.Selection{HashRanges: []*datav1.HashRange{{}}}, Targets: []*movev1.Target{{NodeId: "n2"}}})
	require.NoError(t, err)
	advance(&migrationv1.AdvanceRequest{Id: "d", State: movev1.State_STATE_FAILED, Reason: "why"})
	b.find(event.DrainFailed)
	_, err = w.admin.CancelMove(t.Context(), &adminv1.CancelMoveRequest{Id: "d"})
	require.NoError(t, err)
	step(2, movev1.DrainState_DRAIN_STATE_MOVING, 1)
	b.find(event.DrainProgress)
	w.giveAll("n2")
	declare(draining, drained)
	step(3, movev1.DrainState_DRAIN_STATE_COMPLETED, 1)
	b.find(event.DrainCompleted)
	inOrder(t, b.events())
	require.NoError(t, w.end())
}
