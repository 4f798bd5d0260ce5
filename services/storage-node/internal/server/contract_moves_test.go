package server

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/pairdb/pairdb/libs/membership"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
)

// stream is what a coordinator sends to begin one.
func stream(target string, port int32, pairs ...uint64) *storagenodev1.StartStreamingRequest {
	r := &storagenodev1.StartStreamingRequest{SourceNodeId: "n1", TargetNodeId: target, TargetHost: "10.0.0.2", TargetPort: port}
	for i := 0; i < len(pairs); i += 2 {
		r.KeyRanges = append(r.KeyRanges, &storagenodev1.KeyRange{StartHash: pairs[i], EndHash: pairs[i+1]})
	}
	return r
}

// streamTo begins a stream and returns its move.
func (w *world) streamTo(r *storagenodev1.StartStreamingRequest) *moves.Move {
	w.t.Helper()
	resp, err := w.contract.StartStreaming(w.t.Context(), r)
	require.NoError(w.t, err)
	require.True(w.t, resp.GetSuccess(), resp.GetMessage())
	ranges, err := contractRanges(r.GetKeyRanges())
	require.NoError(w.t, err)
	for _, m := range w.moves.List(false) {
		if m.Target.NodeID == r.GetTargetNodeId() && !m.Finishing && slices.Equal(m.What.HashRanges, ranges) {
			return m
		}
	}
	w.t.Fatal("no stream was begun")
	return nil
}

func (w *world) streamStatus(target string) *storagenodev1.GetStreamStatusResponse {
	w.t.Helper()
	resp, err := w.contract.GetStreamStatus(w.t.Context(), &storagenodev1.GetStreamStatusRequest{SourceNodeId: "n1", TargetNodeId: target})
	require.NoError(w.t, err)
	return resp
}

// stop ends the streams to a target without waiting for what is on its way.
func (w *world) stop(target string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), answerMargin+300*time.Millisecond)
	defer cancel()
	resp, err := w.contract.StopStreaming(ctx, &storagenodev1.StopStreamingRequest{SourceNodeId: "n1", TargetNodeId: target})
	require.NoError(w.t, err)
	require.True(w.t, resp.GetSuccess())
}

// advance does what a migrator does, until the move is in a state.
func (w *world) advance(id string, to moves.State) *moves.Move {
	w.t.Helper()
	for {
		m, err := w.moves.Get(id)
		require.NoError(w.t, err)
		if m.State == to {
			return m
		}
		switch m.State {
		case moves.Planned:
			_, err = w.moves.MarkPinned(w.t.Context(), id, 7)
		case moves.Committed:
			_, err = w.moves.MarkReleased(w.t.Context(), id)
		case moves.Verifying:
			_, err = w.moves.Advance(w.t.Context(), id, m.Version, moves.Step{State: moves.Committed, Verified: true})
		default:
			_, err = w.moves.Advance(w.t.Context(), id, m.Version, moves.Step{State: m.State + 1})
		}
		require.NoError(w.t, err)
	}
}

// verify tells that both sides were equal.
func (w *world) verify(id string, p *moves.Progress) {
	w.t.Helper()
	m, err := w.moves.Get(id)
	require.NoError(w.t, err)
	_, err = w.moves.Advance(w.t.Context(), id, m.Version, moves.Step{State: moves.Tailing, Verified: true, Progress: p})
	require.NoError(w.t, err)
}

// A coordinator that did not get the answer asks again; two streams of the same keys would be twice the
// work, and a stop of one would leave the other. One that was stopped and is wanted again is a new one.
func TestContractStreamOfTheSameRangesIsARepeat(t *testing.T) {
	w := start(t)
	first := w.streamTo(stream("n2", 8080, 10, 20, 30, 40))
	require.Equal(t, moves.PurposeStream, first.Purpose)
	require.Equal(t, moves.Follow, first.Mode)
	require.False(t, first.HandOver)
	require.Equal(t, "10.0.0.2:8080", first.Target.Addr)
	require.Equal(t, uint64(21), first.What.HashRanges[0].End, "both ends are included")
	for _, again := range []*storagenodev1.StartStreamingRequest{
		stream("n2", 8080, 10, 20, 30, 40), stream("n2", 8080, 30, 40, 10, 20), stream("n2", 8080, 10, 15, 16, 20, 30, 40),
	} {
		resp, err := w.contract.StartStreaming(t.Context(), again)
		require.NoError(t, err)
		require.True(t, resp.GetSuccess())
	}
	require.Len(t, w.moves.List(true), 1)

	other := w.streamTo(stream("n2", 8080, 50, 60))
	require.NotEqual(t, first.ID, other.ID)
	require.Len(t, w.moves.List(true), 2)
	w.streamTo(stream("n3", 8080, 10, 20, 30, 40))
	require.Len(t, w.moves.List(true), 3, "several targets at once")

	// The target came back elsewhere: what went to the old address goes to the new one.
	moved := w.streamTo(stream("n2", 9090, 50, 60))
	require.Equal(t, "10.0.0.2:9090", moved.Target.Addr)
	was, err := w.moves.Get(other.ID)
	require.NoError(t, err)
	require.Equal(t, moves.Cancelled, was.State)
	require.Equal(t, "copying", w.streamStatus("n2").GetState(), "the one before does not count")

	w.stop("n2")
	next := w.streamTo(stream("n2", 8080, 10, 20, 30, 40))
	require.NotEqual(t, first.ID, next.ID)

	// One that failed goes on when it is asked for.
	m, err := w.moves.Advance(t.Context(), next.ID, next.Version, moves.Step{State: moves.Failed, Reason: "the target has another format"})
	require.NoError(t, err)
	require.Equal(t, moves.Failed, m.State)
	require.Equal(t, moves.Planned, w.streamTo(stream("n2", 8080, 10, 20, 30, 40)).State)
}

// Coordinators wait for "completed" and act on it: said too early it loses keys, never said it stalls them.
func TestContractStreamStatusSaysWhereItStands(t *testing.T) {
	w := start(t)
	require.Equal(t, "unknown", w.streamStatus("n2").GetState())
	require.False(t, w.streamStatus("n2").GetActive())
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-pairdb-errors", "status")
	_, err := w.contract.GetStreamStatus(ctx, &storagenodev1.GetStreamStatusRequest{SourceNodeId: "n1", TargetNodeId: "n2"})
	require.Equal(t, refusal{codes.NotFound, "MOVE_NOT_FOUND", 0}, refused(t, err))

	m := w.streamTo(stream("n2", 8080, 10, 20))
	other := w.streamTo(stream("n2", 8080, 30, 40))
	is := func(want string, active bool) {
		t.Helper()
		got := w.streamStatus("n2")
		require.Equal(t, want, got.GetState())
		require.Equal(t, active, got.GetActive())
	}
	is("copying", true)
	w.advance(m.ID, moves.Pinned)
	is("copying", true)
	w.advance(m.ID, moves.Tailing)
	is("copying", true) // the other one
	w.advance(other.ID, moves.Tailing)
	is("streaming", true)
	w.advance(m.ID, moves.Verifying)
	w.advance(other.ID, moves.Verifying)
	is("syncing", true)
	w.verify(m.ID, &moves.Progress{CopiedRecords: 5, CopiedBytes: 50, TailedRecords: 2, TailedBytes: 20, RemainingSeconds: -1, LagMS: -1})
	is("syncing", true)
	w.verify(other.ID, &moves.Progress{CopiedRecords: 1, CopiedBytes: 10, RemainingSeconds: -1, LagMS: -1})
	is("completed", true)
	got := w.streamStatus("n2")
	require.Equal(t, []int64{6, 60, 2, 20}, []int64{got.GetKeysCopied(), got.GetBytesCopied(), got.GetKeysStreamed(), got.GetBytesStreamed()})

	// A failure has no word of theirs: it shows where it stood.
	now, err := w.moves.Get(m.ID)
	require.NoError(t, err)
	_, err = w.moves.Advance(t.Context(), m.ID, now.Version, moves.Step{State: moves.Failed, Reason: "the target refuses"})
	require.NoError(t, err)
	is("completed", true)
	_, err = w.moves.Resume(t.Context(), m.ID)
	require.NoError(t, err)

	w.stop("n2")
	is("streaming", false) // the rest is on its way and was not compared
	w.advance(m.ID, moves.Released)
	w.advance(other.ID, moves.Released)
	is("completed", false)
	w.stop("n2")
	w.stop("n9")
	is("completed", false)

	// Called off by an operator before it was complete: nothing may be taken for complete.
	off := w.streamTo(stream("n3", 8080, 10, 20))
	_, _, err = w.moves.Cancel(t.Context(), off.ID, "not this one")
	require.NoError(t, err)
	require.Equal(t, "unknown", w.streamStatus("n3").GetState())
}

// A failed stream that has never been complete shows the step that it is stuck in.
func TestContractFailedStreamShowsWhereItStood(t *testing.T) {
	w := start(t)
	m := w.streamTo(stream("n2", 8080, 10, 20))
	for _, c := range []struct {
		at   moves.State
		want string
	}{{moves.Planned, "copying"}, {moves.Copying, "copying"}, {moves.Tailing, "streaming"}, {moves.Verifying, "syncing"}} {
		now := w.advance(m.ID, c.at)
		_, err := w.moves.Advance(t.Context(), m.ID, now.Version, moves.Step{State: moves.Failed, Reason: "something"})
		require.NoError(t, err)
		require.Equal(t, c.want, w.streamStatus("n2").GetState())
		require.True(t, w.streamStatus("n2").GetActive())
		_, err = w.moves.Resume(t.Context(), m.ID)
		require.NoError(t, err)
	}
}

// Whatever is wrong with an order is an answer, and nothing is begun: no ranges must never mean all of
// them.
func TestContractWrongOrdersBeginNothing(t *testing.T) {
	w := start(t)
	for i, r := range []*storagenodev1.StartStreamingRequest{
		stream("n1", 8080, 10, 20),
		stream("", 8080, 10, 20),
		stream("n 2", 8080, 10, 20),
		stream("n2", 8080),
		stream("n2", 0, 10, 20),
		stream("n2", -1, 10, 20),
		stream("n2", 65536, 10, 20),
		{SourceNodeId: "n7", TargetNodeId: "n2", TargetHost: "h", TargetPort: 1, KeyRanges: stream("", 1, 1, 2).KeyRanges},
		{TargetNodeId: "n2", TargetHost: "h/x y", TargetPort: 1, KeyRanges: stream("", 1, 1, 2).KeyRanges},
		{TargetNodeId: "n2", KeyRanges: stream("", 1, 1, 2).KeyRanges}, // no member of that name
	} {
		resp, err := w.contract.StartStreaming(t.Context(), r)
		require.NoError(t, err, "case %d", i)
		require.False(t, resp.GetSuccess(), "case %d", i)
		require.NotEmpty(t, resp.GetMessage(), "case %d", i)
		_, err = w.contract.StartStreaming(metadata.AppendToOutgoingContext(t.Context(), "x-pairdb-errors", "status"), r)
		require.Error(t, err, "case %d", i)
	}
	for i, r := range []*storagenodev1.ReplicateDataRequest{
		{TargetNodeId: "n2"}, {TenantId: "t", TargetNodeId: "n2"}, {TenantId: "t", TargetNodeId: "n1"}, {TenantId: "t"},
		{TenantId: "t", TargetNodeId: "n2", Keys: []string{""}}, {TenantId: "t", TargetNodeId: "n2", KeyRangeStart: "b", KeyRangeEnd: "a"},
	} {
		resp, err := w.contract.ReplicateData(t.Context(), r)
		require.NoError(t, err, "case %d", i)
		require.False(t, resp.GetSuccess(), "case %d", i)
		require.Equal(t, codeInvalid, resp.GetErrorCode(), "case %d: %s", i, resp.GetErrorMessage())
		require.Zero(t, resp.GetKeysReplicated())
	}
	stopped, err := w.contract.StopStreaming(t.Context(), &storagenodev1.StopStreamingRequest{SourceNodeId: "n7", TargetNodeId: "n2"})
	require.NoError(t, err)
	require.False(t, stopped.GetSuccess(), "of another node")
	drained, err := w.contract.DrainNode(t.Context(), &storagenodev1.DrainNodeRequest{TimeoutSeconds: -1})
	require.NoError(t, err)
	require.False(t, drained.GetSuccess())
	require.Equal(t, "failed", drained.GetStatus())
	require.Empty(t, w.moves.List(true))
}

func TestContractTargetIsToldThatAStreamIsComplete(t *testing.T) {
	w := start(t)
	for _, c := range []struct {
		source, target string
		want           bool
	}{{"n2", "n1", true}, {"n2", "", true}, {"n1", "n2", true}, {"n2", "n3", false}} {
		resp, err := w.contract.NotifyStreamingComplete(t.Context(), &storagenodev1.NotifyStreamingCompleteRequest{SourceNodeId: c.source, TargetNodeId: c.target})
		require.NoError(t, err)
		require.Equal(t, c.want, resp.GetSuccess(), "%v", c)
	}
}

// The answer counts what the target has acknowledged; one that comes before that is a copy that is not
// there. A caller whose time is up asks again and gets the same copy.
func TestContractReplicateDataWaitsForTheCopy(t *testing.T) {
	w := start(t)
	w.report(upMember(1, 1, alive), upMember(2, 1, alive))
	r := &storagenodev1.ReplicateDataRequest{TenantId: "t", KeyRangeStart: "a", KeyRangeEnd: "b", Keys: []string{"z"}, TargetNodeId: "n2"}
	answer := make(chan *storagenodev1.ReplicateDataResponse, 1)
	copying := func() {
		resp, err := w.contract.ReplicateData(context.Background(), r)
		if err != nil {
			resp = &storagenodev1.ReplicateDataResponse{ErrorMessage: err.Error()}
		}
		answer <- resp
	}
	go copying()
	require.Eventually(t, func() bool { return len(w.moves.List(true)) == 2 }, 5*time.Second, time.Millisecond, "a range, and single keys besides")
	all := w.moves.List(true)
	ctx, cancel := context.WithTimeout(t.Context(), answerMargin+300*time.Millisecond)
	defer cancel()
	resp, err := w.contract.ReplicateData(ctx, r)
	require.NoError(t, err)
	require.False(t, resp.GetSuccess())
	require.Equal(t, "DEADLINE_EXCEEDED", resp.GetError().GetReason())

	for i, m := range all {
		now := w.advance(m.ID, moves.Verifying)
		_, err := w.moves.Advance(t.Context(), m.ID, now.Version, moves.Step{Progress: &moves.Progress{CopiedRecords: int64(3 + i), RemainingSeconds: -1, LagMS: -1}})
		require.NoError(t, err)
		select {
		case early := <-answer:
			t.Fatalf("answered before the end: %v", early)
		default:
		}
		w.advance(m.ID, moves.Released)
	}
	resp = <-answer
	require.True(t, resp.GetSuccess(), resp.GetErrorMessage())
	require.EqualValues(t, 7, resp.GetKeysReplicated())
	require.Len(t, w.moves.List(true), 2, "the same copies")

	// The next call copies again: what was written since is wanted. A copy that can't go on is an error.
	go copying()
	require.Eventually(t, func() bool { return len(w.moves.List(true)) == 4 }, 5*time.Second, time.Millisecond)
	_, _, err = w.moves.Cancel(t.Context(), w.moves.List(false)[0].ID, "not now")
	require.NoError(t, err)
	resp = <-answer
	require.False(t, resp.GetSuccess())
	require.Contains(t, resp.GetErrorMessage(), "not now")
}

// A node without heirs only flushes; with them it gives everything away, and says drained only then.
func TestContractDrainNode(t *testing.T) {
	w := start(t)
	call := func(graceful bool, seconds int32) *storagenodev1.DrainNodeResponse {
		t.Helper()
		resp, err := w.contract.DrainNode(t.Context(), &storagenodev1.DrainNodeRequest{Graceful: graceful, TimeoutSeconds: seconds})
		require.NoError(t, err)
		return resp
	}
	for _, graceful := range []bool{false, true} { // alone
		got := call(graceful, 1)
		require.True(t, got.GetSuccess(), got.GetErrorMessage())
		require.Equal(t, "drained", got.GetStatus())
	}
	require.Empty(t, w.moves.View().Drains)

	w.report(upMember(1, 1, alive), upMember(2, 1, alive))
	got := call(true, 1)
	require.False(t, got.GetSuccess(), "fewer copies than the replication factor")
	require.Equal(t, "failed", got.GetStatus())
	require.Equal(t, "DRAIN_UNSAFE", got.GetError().GetReason())

	members := []*clusterv1.Member{upMember(1, 1, alive)}
	for i := 2; i <= 5; i++ {
		members = append(members, upMember(i, 1, alive))
	}
	w.report(members...)
	got = call(true, 0)
	require.True(t, got.GetSuccess(), got.GetErrorMessage())
	require.Equal(t, "draining", got.GetStatus())
	got = call(true, 1)
	require.True(t, got.GetSuccess())
	require.Equal(t, "draining", got.GetStatus(), "a repeat waits for the same")
	require.Len(t, w.moves.View().Drains, 1)

	answer := make(chan string, 1)
	go func() {
		resp, err := w.contract.DrainNode(context.Background(), &storagenodev1.DrainNodeRequest{Graceful: true, TimeoutSeconds: 60})
		answer <- fmt.Sprint(resp.GetStatus(), " ", resp.GetSuccess(), " ", err)
	}()
	d := w.moves.Drain()
	require.NoError(t, w.moves.Declare(t.Context(), membership.Up, membership.Draining))
	d, err := w.moves.AdvanceDrain(t.Context(), d.ID, d.Version, moves.DrainStep{State: moves.DrainMoving})
	require.NoError(t, err)
	require.NoError(t, w.moves.Declare(t.Context(), membership.Draining, membership.Drained))
	_, err = w.moves.AdvanceDrain(t.Context(), d.ID, d.Version, moves.DrainStep{State: moves.DrainCompleted})
	require.NoError(t, err)
	require.Equal(t, "drained true <nil>", <-answer)
	require.Equal(t, "drained", call(true, 0).GetStatus())
}
