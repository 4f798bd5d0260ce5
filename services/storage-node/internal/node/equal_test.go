package node

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/compact"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
)

// inCluster tells a node that it is up, with others in states, as its health-agent does.
func (w *testNode) inCluster(version uint64, others map[string]clusterv1.MemberState) {
	w.t.Helper()
	id, err := w.agent().Identity(w.t.Context(), &nodev1.IdentityRequest{})
	require.NoError(w.t, err)
	declare := func(name, incarnation string, s clusterv1.MemberState) *clusterv1.Member {
		return &clusterv1.Member{Liveness: clusterv1.Liveness_LIVENESS_ALIVE, Declared: &clusterv1.Declaration{
			NodeId: name, Version: version, State: s, Incarnation: incarnation, GrpcAddr: "127.0.0.1:1", VirtualNodes: 20,
		}}
	}
	report := &nodev1.ReportRequest{Verdict: &clusterv1.Verdict{Live: true, Ready: true}, Members: []*clusterv1.Member{
		declare(id.GetNodeId(), id.GetIncarnation(), clusterv1.MemberState_MEMBER_STATE_UP),
	}}
	for name, s := range others {
		report.Members = append(report.Members, declare(name, "i", s))
	}
	_, err = w.agent().Report(w.t.Context(), report)
	require.NoError(w.t, err)
}

// value returns a metric without labels but those of the node, or with the value of one.
func (w *testNode) value(t *testing.T, name, label string) float64 {
	t.Helper()
	all, err := w.reg.Gather()
	require.NoError(t, err)
	for _, f := range all {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			has := label == ""
			for _, l := range m.GetLabel() {
				has = has || l.GetValue() == label
			}
			if has {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s with %q", name, label)
	return 0
}

// Danger: what migrators find equal is not believed, so nothing is ever collected; or a tree that does not
// have every record is, and a delete goes that a replica does not have.
func TestEqualityIsToldOverTheWire(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	ctx := t.Context()
	replica, migration := w.peers(t)
	w.inCluster(2, map[string]clusterv1.MemberState{"peer": clusterv1.MemberState_MEMBER_STATE_UP})
	eventually(t, "owned", func() bool { return len(w.equal().Ranges()) > 0 })
	require.True(t, w.equal().InForce())
	require.NoError(t, w.put("k", "v"))

	c, err := migration.Configuration(ctx, &migrationv1.ConfigurationRequest{})
	require.NoError(t, err)
	require.Equal(t, "repair", c.GetGc())
	require.EqualValues(t, 3, c.GetReplicationFactor())
	require.Zero(t, w.value(t, "pairdb_gc_cut_ranges", ""))
	require.Positive(t, w.value(t, "pairdb_antientropy_ranges", "unequal"))

	digest := func(what *movev1.Selection) *replicav1.DigestResponse {
		d, err := replica.Digest(ctx, &replicav1.DigestRequest{Peer: w.peer(), What: what, LeavesPerRange: 1})
		require.NoError(t, err)
		return d
	}
	halves := []*datav1.HashRange{{Start: 0, End: 1 << 63}, {Start: 1 << 63, End: 0}}
	tree := digest(&movev1.Selection{HashRanges: halves})
	cuts := func() []compact.HashCut { c, _ := w.equal().Cuts(); return c }

	for name, call := range map[string]struct {
		reason string
		do     func() error
	}{
		"another cluster": {"OTHER_CLUSTER", func() error {
			_, err := replica.Equal(ctx, &replicav1.EqualRequest{Peer: &replicav1.Peer{ClusterId: "other", NodeId: "peer"}, Tree: tree.GetTree(), Ranges: []uint32{0}})
			return err
		}},
		"a tree that is not kept": {"TREE_UNKNOWN", func() error {
			_, err := replica.Equal(ctx, &replicav1.EqualRequest{Peer: w.peer(), Tree: tree.GetTree() + 99, Ranges: []uint32{0}})
			return err
		}},
		"a tree that is not kept, by the migrator": {"TREE_UNKNOWN", func() error {
			_, err := migration.ReportEqual(ctx, &migrationv1.ReportEqualRequest{PeerNodeId: "peer", Tree: tree.GetTree() + 99, Ranges: []uint32{0}})
			return err
		}},
		"a range that it has not": {"INVALID_ARGUMENT_RANGE", func() error {
			_, err := replica.Equal(ctx, &replicav1.EqualRequest{Peer: w.peer(), Tree: tree.GetTree(), Ranges: []uint32{0, 2}})
			return err
		}},
		"a tree of one tenant": {"INVALID_ARGUMENT_RANGE", func() error {
			part := digest(&movev1.Selection{Tenant: "t", HashRanges: halves})
			_, err := replica.Equal(ctx, &replicav1.EqualRequest{Peer: w.peer(), Tree: part.GetTree(), Ranges: []uint32{0}})
			return err
		}},
		"a tree without what is yet to expire": {"INVALID_ARGUMENT_RANGE", func() error {
			d, err := replica.Digest(ctx, &replicav1.DigestRequest{Peer: w.peer(), LeavesPerRange: 1, CollectedBefore: uint64(time.Now().Add(time.Hour).UnixMilli()) << 16})
			require.NoError(t, err)
			_, err = replica.Equal(ctx, &replicav1.EqualRequest{Peer: w.peer(), Tree: d.GetTree(), Ranges: []uint32{0}})
			return err
		}},
	} {
		require.Equal(t, call.reason, reason(call.do()), name)
		require.Empty(t, cuts(), name)
	}

	_, err = replica.Equal(ctx, &replicav1.EqualRequest{Peer: w.peer(), Tree: tree.GetTree(), Ranges: []uint32{1}})
	require.NoError(t, err)
	require.Equal(t, uint64(1<<63), cuts()[0].Range.Start)
	require.EqualValues(t, tree.GetSequence(), cuts()[0].Seq)
	_, err = migration.ReportEqual(ctx, &migrationv1.ReportEqualRequest{PeerNodeId: "peer", Tree: tree.GetTree(), Ranges: []uint32{0, 1}})
	require.NoError(t, err)
	require.Len(t, cuts(), 1)
	require.Zero(t, cuts()[0].Range)
	ranges, err := w.admin.Ranges(ctx, &adminv1.RangesRequest{})
	require.NoError(t, err)
	require.NotEmpty(t, ranges.GetRanges())
	for _, r := range ranges.GetRanges() {
		require.NotZero(t, r.GetEqualAtMs())
	}
	require.Positive(t, w.value(t, "pairdb_gc_cut_ranges", ""))
	require.Zero(t, w.value(t, "pairdb_antientropy_ranges", "unequal"))
	require.Positive(t, w.value(t, "pairdb_antientropy_ranges", "equal"))
	require.Less(t, w.value(t, "pairdb_antientropy_equal_age_seconds", ""), 60.0)
}

// cleanup runs a cleanup and returns its last message.
func (w *testNode) cleanup(r *adminv1.CleanupRequest) (last *adminv1.CleanupProgress, err error) {
	stream, err := w.admin.Cleanup(w.t.Context(), r)
	require.NoError(w.t, err)
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			require.True(w.t, last.GetFinished())
			return last, nil
		}
		if err != nil {
			return nil, err
		}
		last = m
	}
}

// Danger: a cleanup takes the only copy of a range that was lost by a declaration alone; or it leaves data
// behind that is flagged for ever.
func TestCleanupTakesOnlyWhatAnotherNodeHas(t *testing.T) {
	cfg := testConfig(t)
	cfg.ReplicationFactor, cfg.CompactionLocal = 1, "always"
	w := startNode(t, cfg, realFS()).ready()
	ctx := t.Context()
	w.inCluster(2, nil)
	eventually(t, "owned", func() bool { return len(w.ownership().View().Owned) > 0 })
	for i := range 100 {
		require.NoError(t, w.put(fmt.Sprintf("k%03d", i), "v"))
	}
	nothing, err := w.cleanup(&adminv1.CleanupRequest{})
	require.NoError(t, err)
	require.Empty(t, nothing.GetRanges())

	// Another one is up at once: half of the ring is its own by its word, and it has nothing.
	w.inCluster(3, map[string]clusterv1.MemberState{"n2": clusterv1.MemberState_MEMBER_STATE_UP})
	eventually(t, "residue", func() bool { return len(w.ownership().View().Residue) > 0 })
	_, err = w.cleanup(&adminv1.CleanupRequest{})
	require.Equal(t, "CLEANUP_UNSAFE", reason(err))
	_, err = w.cleanup(&adminv1.CleanupRequest{DryRun: true})
	require.Equal(t, "CLEANUP_UNSAFE", reason(err))
	_, err = w.cleanup(&adminv1.CleanupRequest{MaxBytesPerSecond: -1})
	require.Equal(t, "INVALID_ARGUMENT_RANGE", reason(err))

	// A repair with the owner brings it what was here; as long as it runs, nothing goes.
	var m *moves.Move
	w.withStorage(func(s *storage) {
		var all []*moves.Move
		all, err = s.moves.Create(ctx, moves.Spec{
			ID: "r", Purpose: moves.PurposeRepair, Mode: moves.Once, Target: moves.Target{NodeID: "n2", Addr: "127.0.0.1:1"},
		})
		require.NoError(t, err)
		m = all[0]
	})
	advance := func(step moves.Step) {
		w.withStorage(func(s *storage) { m, err = s.moves.Advance(ctx, m.ID, m.Version, step) })
		require.NoError(t, err)
	}
	advance(moves.Step{State: moves.Verifying})
	advance(moves.Step{Verified: true})
	_, err = w.cleanup(&adminv1.CleanupRequest{})
	require.Equal(t, "CLEANUP_UNSAFE", reason(err))
	advance(moves.Step{State: moves.Committed})
	w.withStorage(func(s *storage) { m, err = s.moves.MarkReleased(ctx, m.ID) })
	require.NoError(t, err)

	plan, err := w.cleanup(&adminv1.CleanupRequest{DryRun: true})
	require.NoError(t, err)
	require.NotEmpty(t, plan.GetRanges())
	require.Zero(t, plan.GetDroppedRecords())
	var snap interface{ Close() error }
	w.withStorage(func(s *storage) { snap = s.engine.NewSnapshot() })
	_, err = w.cleanup(&adminv1.CleanupRequest{})
	require.Equal(t, "CLEANUP_UNSAFE", reason(err), "a snapshot sees it")
	require.NoError(t, snap.Close())
	done, err := w.cleanup(&adminv1.CleanupRequest{MaxBytesPerSecond: 100 << 20})
	require.NoError(t, err)
	require.Positive(t, done.GetDroppedRecords())
	require.Less(t, done.GetDroppedRecords(), int64(100))
	require.InDelta(t, done.GetDroppedRecords(), w.value(t, "pairdb_cleanup_dropped_records_total", ""), 0)
	require.Empty(t, w.ownership().View().Residue)
	left := 0
	w.withStorage(func(s *storage) {
		for i := range 100 {
			_, found, err := s.engine.Get(fmt.Appendf(nil, "t\x00k%03d", i), nil)
			require.NoError(t, err)
			if found {
				left++
			}
		}
	})
	require.EqualValues(t, 100-done.GetDroppedRecords(), left)
}
