package movement

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

// An order that can't be carried out must be refused at once and in words, and leave nothing behind.
func TestWrongOrdersAreRefusedAndChangeNothing(t *testing.T) {
	c := start(t, 2, quiet)
	from, to := c.nodes[0], c.nodes[1]
	hashes := func(pairs ...uint64) (out []*datav1.HashRange) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, &datav1.HashRange{Start: pairs[i], End: pairs[i+1]})
		}
		return out
	}
	good := func() *adminv1.ReplicateRequest {
		return &adminv1.ReplicateRequest{What: everything(), Targets: []*movev1.Target{target(to)}}
	}
	for name, wrong := range map[string]struct {
		change func(*adminv1.ReplicateRequest)
		want   string
	}{
		"no target":  {func(r *adminv1.ReplicateRequest) { r.Targets = nil }, "INVALID_ARGUMENT_TARGET"},
		"itself":     {func(r *adminv1.ReplicateRequest) { r.Targets[0] = target(from) }, "INVALID_ARGUMENT_TARGET"},
		"twice":      {func(r *adminv1.ReplicateRequest) { r.Targets = append(r.Targets, target(to)) }, "INVALID_ARGUMENT_TARGET"},
		"nobody":     {func(r *adminv1.ReplicateRequest) { r.Targets[0] = &movev1.Target{NodeId: "node-9"} }, "TARGET_UNKNOWN"},
		"no name":    {func(r *adminv1.ReplicateRequest) { r.Targets[0] = &movev1.Target{NodeId: "node 9"} }, "INVALID_ARGUMENT_TARGET"},
		"no address": {func(r *adminv1.ReplicateRequest) { r.Targets[0].Addr = "nowhere" }, "INVALID_ARGUMENT_TARGET"},
		"id":         {func(r *adminv1.ReplicateRequest) { r.Id = "Not This" }, "INVALID_ARGUMENT_MOVE"},
		"long id":    {func(r *adminv1.ReplicateRequest) { r.Id = strings.Repeat("a", 65) }, "INVALID_ARGUMENT_MOVE"},
		"keys and range": {func(r *adminv1.ReplicateRequest) {
			r.What.Range, r.What.Keys = &datav1.KeyRange{Start: "a"}, []string{"b"}
		}, "INVALID_ARGUMENT_MOVE"},
		"range alone":    {func(r *adminv1.ReplicateRequest) { r.What = &movev1.Selection{Range: &datav1.KeyRange{Start: "a"}} }, "INVALID_ARGUMENT_MOVE"},
		"system tenant":  {func(r *adminv1.ReplicateRequest) { r.What.Tenant = "_moves" }, "INVALID_ARGUMENT_MOVE"},
		"many ranges":    {func(r *adminv1.ReplicateRequest) { r.What.HashRanges = make([]*datav1.HashRange, 4097) }, "INVALID_ARGUMENT_MOVE"},
		"slow":           {func(r *adminv1.ReplicateRequest) { r.MaxBytesPerSecond = 1 }, "INVALID_ARGUMENT_MOVE"},
		"hand over all":  {func(r *adminv1.ReplicateRequest) { r.HandOver, r.What = true, &movev1.Selection{} }, "INVALID_ARGUMENT_MOVE"},
		"hand over part": {func(r *adminv1.ReplicateRequest) { r.HandOver, r.What.HashRanges = true, hashes(0, 1) }, "INVALID_ARGUMENT_MOVE"},
		"hand over twice": {func(r *adminv1.ReplicateRequest) {
			r.HandOver, r.What = true, &movev1.Selection{HashRanges: hashes(0, 10, 5, 15)}
		}, "INVALID_ARGUMENT_MOVE"},
		"follow and hand over": {func(r *adminv1.ReplicateRequest) {
			r.HandOver, r.Mode, r.What = true, movev1.Mode_MODE_FOLLOW, half(true)
		}, "INVALID_ARGUMENT_MOVE"},
		"repair": {func(r *adminv1.ReplicateRequest) { r.Purpose = movev1.Purpose_PURPOSE_REPAIR }, "INVALID_ARGUMENT_MOVE"},
		"drain":  {func(r *adminv1.ReplicateRequest) { r.Purpose = movev1.Purpose_PURPOSE_DRAIN }, "INVALID_ARGUMENT_MOVE"},
	} {
		r := good()
		wrong.change(r)
		_, err := c.tryReplicate(from, r)
		require.Error(t, err, name)
		require.Equal(t, wrong.want, reasonOf(err), "%s: %v", name, err)
	}
	all, err := c.moves(from, "")
	require.NoError(t, err)
	require.Empty(t, all.GetMoves(), "something was begun")

	// A drain that would take the last copies but one.
	_, err = c.drain(from, &adminv1.DrainRequest{Reason: "unsafe"})
	refused(t, "DRAIN_UNSAFE", err)
	_, err = c.drain(from, &adminv1.DrainRequest{Force: true})
	refused(t, "INVALID_ARGUMENT_MOVE", err)

	for _, call := range []func(context.Context, string) error{
		func(ctx context.Context, id string) error {
			_, err := from.admin().CancelMove(ctx, &adminv1.CancelMoveRequest{Id: id})
			return err
		},
		func(ctx context.Context, id string) error {
			_, err := from.admin().FinishMove(ctx, &adminv1.FinishMoveRequest{Id: id})
			return err
		},
		func(ctx context.Context, id string) error {
			_, err := from.admin().ResumeMove(ctx, &adminv1.ResumeMoveRequest{Id: id})
			return err
		},
	} {
		refused(t, "MOVE_NOT_FOUND", call(t.Context(), "nothing"))
		refused(t, "INVALID_ARGUMENT_MOVE", call(t.Context(), "Not This"))
	}
	require.True(t, from.IsReady(t.Context()))
}

// A move may be called off wherever it is, and the node serves as before.
func TestCancelInEveryState(t *testing.T) {
	c := start(t, 2, quiet)
	from, to := c.nodes[0], c.nodes[1]
	tr := &traffic{c: c, keys: 5_000, perSecond: 100, filling: 1000, route: only(from)}
	tr.load()
	tr.begin()
	cancel := func(id string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := from.admin().CancelMove(ctx, &adminv1.CancelMoveRequest{Id: id, Reason: "a test"})
		return err
	}
	for s := movev1.State_STATE_PLANNED; s <= movev1.State_STATE_VERIFYING; s++ {
		id, mode := fmt.Sprintf("off-%d", s), movev1.Mode_MODE_FOLLOW
		if s == movev1.State_STATE_VERIFYING {
			mode = movev1.Mode_MODE_ONCE // one that follows is tailing again before anybody looks
		}
		c.replicate(from, &adminv1.ReplicateRequest{
			Id: id, What: everything(), Targets: []*movev1.Target{target(to)}, Mode: mode, MaxBytesPerSecond: 4 << 20,
		})
		c.reached(from, id, s)
		err := cancel(id)
		if m := c.move(from, id); s == movev1.State_STATE_VERIFYING && err != nil && m.GetState() >= movev1.State_STATE_COMMITTED {
			refused(t, "MOVE_STATE", err) // it was faster
			continue
		}
		require.NoError(t, err)
		require.NoError(t, cancel(id), "a repeat is none")
		m := c.untilState(from, id, movev1.State_STATE_CANCELLED)
		require.Equal(t, "a test", m.GetReason())
	}
	m := c.replicate(from, &adminv1.ReplicateRequest{Id: "over", What: everything(), Targets: []*movev1.Target{target(to)}})
	c.untilState(from, m.GetId(), movev1.State_STATE_RELEASED)
	refused(t, "MOVE_STATE", cancel("over"))
	tr.end()
	tr.holds(only(from))
}

// A target that is not there, or has no room, must be waited for without losing a thing, and said.
func TestTargetThatCannotTakeIsWaitedFor(t *testing.T) {
	c := start(t, 2, quiet)
	from, to := c.nodes[0], c.nodes[1]
	tr := &traffic{c: c, keys: 5_000, perSecond: 100, route: only(from)}
	tr.load()
	tr.begin()
	m := c.replicate(from, &adminv1.ReplicateRequest{Id: "away", What: everything(), Targets: []*movev1.Target{target(to)}, Mode: movev1.Mode_MODE_FOLLOW})
	c.untilState(from, m.GetId(), movev1.State_STATE_TAILING)
	to.Halt()
	podtest.Eventually(t, joinLimit, "the move says what it waits for", func() bool {
		return c.move(from, m.GetId()).GetReason() != ""
	})
	c.back(to)
	tr.end()
	tr.comesTo(bar(30*time.Second), "the target is back", only(to))
	m = c.until(from, m.GetId(), "is tailing without a reason", func(m *movev1.Move) bool {
		return m.GetState() == movev1.State_STATE_TAILING && m.GetReason() == ""
	})
	c.finish(from, m.GetId())
	c.untilState(from, m.GetId(), movev1.State_STATE_RELEASED)

	// One whose disk counts as full.
	full := c.add("PAIRDB_DISK_WARNING_PERCENT=1", "PAIRDB_DISK_THROTTLED_PERCENT=1", "PAIRDB_DISK_FULL_PERCENT=1", "PAIRDB_JOIN=at-once")
	podtest.Eventually(t, joinLimit, "the source knows the new member", func() bool {
		members, err := c.members(from)
		return err == nil && members[full.Name] != nil
	})
	resp, err := c.tryReplicate(from, &adminv1.ReplicateRequest{Id: "full", What: everything(), Targets: []*movev1.Target{target(full)}})
	if err != nil {
		refused(t, "TARGET_UNFIT", err)
		return
	}
	m = c.until(from, resp.GetMoves()[0].GetId(), "says that the target is full", func(m *movev1.Move) bool {
		return strings.Contains(strings.ToLower(m.GetReason()), "disk")
	})
	require.NotEqual(t, movev1.State_STATE_RELEASED, m.GetState())
}

// Two clusters that share a network must never mix their data.
func TestOtherClusterGetsNothing(t *testing.T) {
	c := start(t, 2, quiet)
	set, _ := podtest.Start(t, localpod.Options{Nodes: 1, NoCompactor: true, Env: []string{"PAIRDB_CLUSTER_ID=other", "PAIRDB_JOIN=at-once"}})
	foreign := set.All()[0]
	from := c.nodes[0]
	_, err := from.client.Put(t.Context(), "secret", []byte("ours"))
	require.NoError(t, err)
	m := c.replicate(from, &adminv1.ReplicateRequest{
		Id: "foreign", What: everything(), Targets: []*movev1.Target{{NodeId: "node-7", Addr: foreign.Addr}},
	})
	c.until(from, m.GetId(), "says that the target is of another cluster", func(m *movev1.Move) bool {
		return strings.Contains(m.GetReason(), "other")
	})
	alien := c.connectForeign(foreign)
	v, err := alien.client.Get(t.Context(), "secret")
	require.NoError(t, err)
	require.False(t, v.Found, "it was sent to another cluster")
	_, err = alien.replica().Describe(t.Context(), &replicav1.DescribeRequest{Peer: &replicav1.Peer{ClusterId: clusterID, NodeId: from.Name}})
	refused(t, "OTHER_CLUSTER", err)
	_, err = alien.replica().Tenants(t.Context(), &replicav1.TenantsRequest{Peer: &replicav1.Peer{ClusterId: clusterID, NodeId: from.Name}})
	refused(t, "OTHER_CLUSTER", err)
}

// connectForeign connects to a pod that is none of the cluster.
func (c *cluster) connectForeign(pod *localpod.Pod) *node {
	c.t.Helper()
	n := c.connect(pod)
	c.nodes = c.nodes[:len(c.nodes)-1]
	return n
}

// Two moves that give the same range away would make two owners.
func TestOverlappingHandOversAreRefused(t *testing.T) {
	c := start(t, 3, quiet)
	from := c.nodes[0]
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	// Its migrator is away: nothing happens to the first one before the second is asked for.
	from.Migrator.Stop()
	first := c.replicate(from, &adminv1.ReplicateRequest{Id: "first", What: half(true), Targets: []*movev1.Target{target(c.nodes[1])}, HandOver: true})
	_, err := c.tryReplicate(from, &adminv1.ReplicateRequest{Id: "second", What: &movev1.Selection{
		HashRanges: []*datav1.HashRange{{Start: 1<<63 - 1, End: 1 << 63}},
	}, Targets: []*movev1.Target{target(c.nodes[2])}, HandOver: true})
	refused(t, "MOVES_OVERLAP", err)
	_, err = from.admin().CancelMove(ctx, &adminv1.CancelMoveRequest{Id: first.GetId()})
	require.NoError(t, err)
	c.untilState(from, first.GetId(), movev1.State_STATE_CANCELLED)
}
