package node

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	hashring "github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/service"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
)

// Danger: a node that does not follow its members plans, compares and collects by a ring of the past.
func TestRangesOfANodeFollowItsMembers(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	ranges := func() *adminv1.RangesResponse {
		r, err := w.admin.Ranges(t.Context(), &adminv1.RangesRequest{})
		require.NoError(t, err)
		return r
	}
	require.Empty(t, ranges().GetRanges())
	id, err := w.agent().Identity(t.Context(), &nodev1.IdentityRequest{})
	require.NoError(t, err)
	_, err = w.agent().Report(t.Context(), clusterOf(id))
	require.NoError(t, err)
	eventually(t, "both nodes share the whole ring", func() bool {
		var all []hashring.HashRange
		for _, r := range ranges().GetRanges() {
			require.Len(t, r.GetReplicas(), 2)
			all = append(all, hashring.HashRange{Start: r.GetRange().GetStart(), End: r.GetRange().GetEnd()})
		}
		all = hashring.Normal(all)
		return len(all) == 1 && all[0] == hashring.HashRange{}
	})
	require.NoError(t, w.end())
	w = startNode(t, cfg, realFS()).ready()
	eventually(t, "it knows them after a restart", func() bool { return len(ranges().GetRanges()) > 0 })
	require.NoError(t, w.end())
}

// Danger: a node without data that has not heard of the others yet calls their keys absent; or one that has
// nobody else never serves, or makes its clients wait after each restart.
func TestANodeThatJoinsServesNothingBeforeItKnowsWhoElseIsThere(t *testing.T) {
	cfg := testConfig(t)
	cfg.Join = "bootstrap"
	w := startNode(t, cfg, realFS())
	eventually(t, "it serves, and is not ready", func() bool {
		code, body := w.probe("/ready")
		return code == http.StatusServiceUnavailable && strings.Contains(body, reasonJoining)
	})
	refused := func() {
		t.Helper()
		require.Equal(t, "RANGE_MOVING", reason(w.put("k", "v")))
		_, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
		require.Equal(t, "RANGE_MOVING", reason(err))
	}
	refused()
	id, err := w.agent().Identity(t.Context(), &nodev1.IdentityRequest{})
	require.NoError(t, err)
	report := clusterOf(id)
	own := report.Members[0].Declared
	own.State = clusterv1.MemberState_MEMBER_STATE_JOINING
	_, err = w.agent().Report(t.Context(), &nodev1.ReportRequest{Members: report.Members[:1]})
	require.NoError(t, err)
	refused()
	_, err = w.agent().Report(t.Context(), report)
	require.NoError(t, err)
	w.ready()
	refused() // the other one has it all
	require.NoError(t, w.end())
	w = startNode(t, cfg, realFS()).ready() // it knows the other one still
	refused()
	own.State, own.Version = clusterv1.MemberState_MEMBER_STATE_UP, 2
	_, err = w.agent().Report(t.Context(), report)
	require.NoError(t, err)
	eventually(t, "it serves", func() bool { return w.put("k", "v") == nil })
	require.NoError(t, w.end())
}

// Danger: as above.
func TestANodeThatHearsOfNobodyServesInTheEnd(t *testing.T) {
	cfg := testConfig(t)
	cfg.Join = "bootstrap"
	w := startNode(t, cfg, realFS()).ready()
	require.NoError(t, w.put("k", "v"))
	require.NoError(t, w.end())
	began := time.Now()
	w = startNode(t, cfg, realFS()).ready()
	require.NoError(t, w.put("k", "w"), "it waits once more")
	require.Less(t, time.Since(began), aloneWithoutAgent)
	require.NoError(t, w.end())
}

// Danger: a range that is being handed over is served again after a restart.
func TestAPreparedRangeIsRefusedThroughARestart(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	replica := func() replicav1.ReplicaServiceClient { return replicav1.NewReplicaServiceClient(w.conn) }
	peer := &replicav1.Peer{ClusterId: cfg.ClusterID, NodeId: "n2"}
	_, err := replica().Prepare(t.Context(), &replicav1.PrepareRequest{Peer: peer, MoveId: "m", Ranges: []*datav1.HashRange{{}}})
	require.NoError(t, err)
	for range 2 {
		require.Equal(t, "RANGE_MOVING", reason(w.put("k", "v")))
		require.InDelta(t, 1, w.value(t, "pairdb_ownership_ranges", "prepared"), 0)
		require.InDelta(t, 1, w.value(t, "pairdb_ownership_refused_total", "RANGE_MOVING"), 0)
		require.Zero(t, w.value(t, "pairdb_ownership_refused_total", "NOT_OWNER"))
		require.NoError(t, w.end())
		w = startNode(t, cfg, realFS()).ready()
	}
	_, err = replica().Accept(t.Context(), &replicav1.AcceptRequest{Peer: peer, MoveId: "m", Epoch: 1})
	require.NoError(t, err)
	require.NoError(t, w.put("k", "v"))
	require.NoError(t, w.end())
}

// Danger: the volume of a drained node comes back with what was deleted since; or nobody finds out how
// to go on with it.
func TestANodeThatWasDrainedDoesNotStartAgain(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	require.NoError(t, w.put("k", "v"))
	id, err := w.agent().Identity(t.Context(), &nodev1.IdentityRequest{})
	require.NoError(t, err)
	report := clusterOf(id)
	report.Members[0].Declared.State = clusterv1.MemberState_MEMBER_STATE_DRAINED
	_, err = w.agent().Report(t.Context(), report)
	require.NoError(t, err)
	eventually(t, "the directory remembers", func() bool {
		got, ok, err := readIdentity(realFS(), cfg.DataDir)
		require.NoError(t, err)
		return ok && got.State == stateDrained
	})
	require.ErrorContains(t, w.put("k", "w"), "belongs to node n2", "nothing more is left there")
	require.NoError(t, w.end())

	w = startNode(t, cfg, realFS())
	err = <-w.done
	require.ErrorContains(t, err, "was drained")
	require.Equal(t, service.ExitLocked, service.ExitCode(err))

	name, err := Adopt(realFS(), cfg.DataDir, "")
	require.NoError(t, err)
	require.Equal(t, "n1", name)
	w = startNode(t, cfg, realFS()).ready()
	require.Equal(t, "v", w.get("k"))
	again, err := w.agent().Identity(t.Context(), &nodev1.IdentityRequest{})
	require.NoError(t, err)
	require.NotEqual(t, id.GetIncarnation(), again.GetIncarnation())
	require.NoError(t, w.end())
}

// Danger: a node that is lost before anybody has heard that it is drained stays DRAINING for the others, since it
// does not start again.
func TestADrainedNodeStartsAgainUntilItsDrainIsOver(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	id, err := w.agent().Identity(t.Context(), &nodev1.IdentityRequest{})
	require.NoError(t, err)
	report := clusterOf(id)
	n2 := report.Members[1]
	n2.Declared.State, n2.Liveness = clusterv1.MemberState_MEMBER_STATE_UP, clusterv1.Liveness_LIVENESS_ALIVE
	say := func(s clusterv1.MemberState) {
		t.Helper()
		report.Members[0].Declared.State = s
		report.Members[0].Declared.Version++
		_, err = w.agent().Report(t.Context(), report)
		require.NoError(t, err)
	}
	say(clusterv1.MemberState_MEMBER_STATE_UP)
	resp, err := w.admin.Drain(t.Context(), &adminv1.DrainRequest{Kind: adminv1.DrainRequest_KIND_DECOMMISSION, Force: true, Reason: "why"})
	require.NoError(t, err)
	version := resp.GetDrain().GetVersion()
	advance := func(s movev1.DrainState) {
		t.Helper()
		_, err := w.migrator().AdvanceDrain(t.Context(), &migrationv1.AdvanceDrainRequest{Id: resp.GetDrain().GetId(), Version: version, State: s})
		require.NoError(t, err)
		version++
	}
	for _, c := range [][2]clusterv1.MemberState{
		{clusterv1.MemberState_MEMBER_STATE_UP, clusterv1.MemberState_MEMBER_STATE_DRAINING},
		{clusterv1.MemberState_MEMBER_STATE_DRAINING, clusterv1.MemberState_MEMBER_STATE_DRAINED},
	} {
		if c[1] == clusterv1.MemberState_MEMBER_STATE_DRAINED {
			w.giveAll("n2")
		}
		_, err = w.migrator().Declare(t.Context(), &migrationv1.DeclareRequest{From: c[0], To: c[1]})
		require.NoError(t, err)
		say(c[1])
		if c[1] == clusterv1.MemberState_MEMBER_STATE_DRAINING {
			advance(movev1.DrainState_DRAIN_STATE_MOVING)
		}
	}
	eventually(t, "it takes no writes", func() bool { return w.put("k", "v") != nil })
	require.NoError(t, w.end())

	w = startNode(t, cfg, realFS()).ready()
	id, err = w.agent().Identity(t.Context(), &nodev1.IdentityRequest{})
	require.NoError(t, err)
	require.Equal(t, clusterv1.MemberState_MEMBER_STATE_DRAINED, id.GetWantedState(), "it can say it again")
	advance(movev1.DrainState_DRAIN_STATE_COMPLETED)
	eventually(t, "the directory remembers", func() bool {
		got, _, err := readIdentity(realFS(), cfg.DataDir)
		require.NoError(t, err)
		return got.State == stateDrained
	})
	require.NoError(t, w.end())
	w = startNode(t, cfg, realFS())
	require.ErrorContains(t, <-w.done, "was drained")
}

// Danger: a crash between what the node heard and what its directory remembers lets it start once more.
func TestADrainedNodeThatCrashedBeforeItRemembered(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	id, err := w.agent().Identity(t.Context(), &nodev1.IdentityRequest{})
	require.NoError(t, err)
	report := clusterOf(id)
	report.Members[0].Declared.State = clusterv1.MemberState_MEMBER_STATE_DRAINED
	_, err = w.agent().Report(t.Context(), report)
	require.NoError(t, err)
	eventually(t, "the directory remembers", func() bool {
		got, _, err := readIdentity(realFS(), cfg.DataDir)
		require.NoError(t, err)
		return got.State == stateDrained
	})
	require.NoError(t, w.end())
	got, _, err := readIdentity(realFS(), cfg.DataDir)
	require.NoError(t, err)
	got.Version, got.State = 1, "" // as if it had crashed before
	require.NoError(t, got.write(realFS(), cfg.DataDir))
	w = startNode(t, cfg, realFS())
	require.ErrorContains(t, <-w.done, "was drained")
	got, _, err = readIdentity(realFS(), cfg.DataDir)
	require.NoError(t, err)
	require.Equal(t, stateDrained, got.State)
}

// giveAll hands all ranges over to another node, as a drain does.
func (w *testNode) giveAll(to string) {
	w.t.Helper()
	whole := []hashring.HashRange{{}}
	o := w.held().ownership
	_, _, err := o.Fence(w.t.Context(), "all", whole)
	require.NoError(w.t, err)
	require.NoError(w.t, o.Give(w.t.Context(), "all", ownership.Owner{NodeID: to}, 1000))
}
