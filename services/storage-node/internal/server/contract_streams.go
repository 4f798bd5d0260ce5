package server

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// What coordinators call the states of a stream. They wait for the last one and understand no other, so a
// move that can't go on shows where it stands, and is resumed; streamUnknown is not one of theirs.
const (
	streamCopying   = "copying"
	streamStreaming = "streaming"
	streamSyncing   = "syncing"
	streamCompleted = "completed"
	streamUnknown   = "unknown"
)

// streamStates are in the order in which a stream passes through them.
var streamStates = [...]string{streamCopying, streamStreaming, streamSyncing, streamCompleted}

// StartStreaming makes a move that follows. The same ranges to the same target are the same stream for as
// long as it is not stopped: a coordinator that did not get the answer asks again.
func (g contractService) StartStreaming(ctx context.Context, r *storagenodev1.StartStreamingRequest) (*storagenodev1.StartStreamingResponse, error) {
	b, err := g.backend(r)
	if err != nil {
		return nil, err
	}
	if err := g.isSource(r.GetSourceNodeId()); err != nil {
		return nil, err
	}
	to, err := g.streamTarget(r)
	if err != nil {
		return nil, err
	}
	ranges, err := contractRanges(r.GetKeyRanges())
	if err != nil {
		return nil, err
	}
	m, repeat, err := g.order(ctx, b, contractMoveID("stream", []byte(to.NodeID), rangeBytes(ranges)), moves.Spec{
		Purpose: moves.PurposeStream, Mode: moves.Follow, What: moves.Selection{HashRanges: ranges}, Target: to,
	})
	if err != nil {
		return nil, err
	}
	words := "%s streams %d ranges to %s"
	if repeat {
		words = "%s streams %d ranges to %s already"
	}
	return &storagenodev1.StartStreamingResponse{Success: true, Message: fmt.Sprintf(words, m.ID, len(ranges), to.NodeID)}, nil
}

// isSource refuses an order that is for another node: what it asks for is not here.
func (g contractService) isSource(id string) error {
	if id != "" && id != g.s.node.ID {
		return &store.Error{Reason: store.ReasonMove, Message: fmt.Sprintf("source_node_id is %q, and this is %q: ask that one", id, g.s.node.ID)}
	}
	return nil
}

// streamTarget returns where a coordinator wants its keys. The address is the target's for everybody: the
// members need not know it.
func (g contractService) streamTarget(r *storagenodev1.StartStreamingRequest) (moves.Target, error) {
	to := moves.Target{NodeID: r.GetTargetNodeId()}
	host, port := r.GetTargetHost(), r.GetTargetPort()
	switch {
	case to.NodeID == g.s.node.ID:
		return to, &store.Error{Reason: store.ReasonTarget, Message: fmt.Sprintf("target_node_id is %q, which is this node itself", to.NodeID)}
	case host == "" && port == 0:
		return to, nil // as the members know it
	case host == "" || port < 1 || port > 65535:
		return to, &store.Error{Reason: store.ReasonTarget, Message: fmt.Sprintf("target is %q port %d: a host and a port from 1 to 65535 are needed", host, port)}
	}
	to.Addr = net.JoinHostPort(host, strconv.Itoa(int(port)))
	return to, nil
}

// order makes the move of a coordinator's order, or returns the one that is under way for the same: that
// is a repeat. An order whose move has ended makes the next one; one whose move failed lets it go on; one
// that names a new address of the target replaces its move, which nobody would ever take.
func (g contractService) order(ctx context.Context, b *Backend, id string, spec moves.Spec) (m *moves.Move, repeat bool, err error) {
	g.s.ordering.Lock()
	defer g.s.ordering.Unlock()
	last, n := latest(b.Moves.View().Moves, id)
	if last != nil && last.Active() && !last.Finishing {
		switch {
		case last.Target.Addr != spec.Target.Addr:
			if _, _, err := b.Moves.Cancel(ctx, last.ID, "the target has another address now"); err != nil {
				return nil, false, err
			}
			b.letGo(ctx, last.ID)
		case last.State == moves.Failed:
			m, err := b.Moves.Resume(ctx, last.ID)
			return m, true, err
		default:
			return last, true, nil
		}
	}
	spec.ID = id + strconv.Itoa(n+1)
	if spec.Target.Addr == "" {
		if err := fit(b.Members.View(), &spec); err != nil {
			return nil, false, err
		}
	}
	made, err := b.Moves.Create(ctx, spec)
	if err != nil {
		return nil, false, err
	}
	return made[0], false, nil
}

// latest returns the newest move of an order, and its number; nil and 0 when there is none.
func latest(all []*moves.Move, id string) (last *moves.Move, n int) {
	for _, m := range all {
		if number, rest := strings.CutPrefix(m.ID, id); rest {
			if i, err := strconv.Atoi(number); err == nil && i > n {
				last, n = m, i
			}
		}
	}
	return last, n
}

// streams returns the newest move of each order of streams to a target.
func streams(all []*moves.Move, target string) (out []*moves.Move) {
	seen := map[string]bool{}
	for _, m := range all {
		if m.Purpose != moves.PurposeStream || m.Target.NodeID != target {
			continue
		}
		order := m.ID[:strings.LastIndexByte(m.ID, '-')+1]
		last, n := latest(all, order)
		if n == 0 || order == "" {
			order, last = m.ID, m // of somebody who chose its id
		}
		if !seen[order] {
			seen[order] = true
			out = append(out, last)
		}
	}
	return out
}

// stopPatience is how long StopStreaming waits for what is on its way: a stream that keeps up takes as
// long as it takes to compare once more what was written last.
const stopPatience = 2 * time.Second

// StopStreaming ends what is streamed to a target: what was written until now still gets there, also if
// that takes longer than the call. Nothing to stop is done, too.
func (g contractService) StopStreaming(ctx context.Context, r *storagenodev1.StopStreamingRequest) (*storagenodev1.StopStreamingResponse, error) {
	b, err := g.backend(r)
	if err != nil {
		return nil, err
	}
	if err := g.isSource(r.GetSourceNodeId()); err != nil {
		return nil, err
	}
	ended, err := g.finish(ctx, b.Moves, r.GetTargetNodeId())
	if err != nil {
		return nil, err
	}
	under := g.awaitEnd(ctx, b.Moves, ended)
	return &storagenodev1.StopStreamingResponse{
		Success: true, Message: fmt.Sprintf("%d streams to %s have ended, %d send the rest", len(ended)-under, r.GetTargetNodeId(), under),
	}, nil
}

// finish has all streams to a target end and returns their ids. One that failed is let go on, to its end.
func (g contractService) finish(ctx context.Context, r *moves.Registry, target string) (ids []string, err error) {
	g.s.ordering.Lock()
	defer g.s.ordering.Unlock()
	for _, m := range r.View().Moves {
		if m.Purpose != moves.PurposeStream || m.Target.NodeID != target || !m.Active() {
			continue
		}
		ids = append(ids, m.ID)
		if m.Mode == moves.Follow && !m.Finishing {
			if _, err := r.Finish(ctx, m.ID); err != nil {
				return nil, err
			}
		}
		if m.State == moves.Failed {
			if _, err := r.Resume(ctx, m.ID); err != nil {
				return nil, err
			}
		}
	}
	return ids, nil
}

// awaitEnd waits a little for moves to be over and returns how many are not.
func (g contractService) awaitEnd(ctx context.Context, r *moves.Registry, ids []string) (under int) {
	ctx, cancel := g.patience(ctx, stopPatience)
	defer cancel()
	for {
		v := r.View()
		under = 0
		for _, m := range v.Moves {
			if m.Active() && slices.Contains(ids, m.ID) {
				under++
			}
		}
		if under == 0 {
			return 0
		}
		select {
		case <-v.Changed:
		case <-ctx.Done():
			return under
		}
	}
}

// NotifyStreamingComplete is told to the target, which has joined every record as it came: there is
// nothing left to do.
func (g contractService) NotifyStreamingComplete(_ context.Context, r *storagenodev1.NotifyStreamingCompleteRequest) (*storagenodev1.NotifyStreamingCompleteResponse, error) {
	if _, err := g.backend(r); err != nil {
		return nil, err
	}
	if id := r.GetTargetNodeId(); id != "" && id != g.s.node.ID && r.GetSourceNodeId() != g.s.node.ID {
		return nil, &store.Error{Reason: store.ReasonMove, Message: fmt.Sprintf(
			"the stream is from %q to %q, and this is %q", r.GetSourceNodeId(), id, g.s.node.ID)}
	}
	return &storagenodev1.NotifyStreamingCompleteResponse{Success: true, Message: "what has come from " + r.GetSourceNodeId() + " is durable"}, nil
}

// GetStreamStatus says how far everything is that streams to a target, together.
func (g contractService) GetStreamStatus(_ context.Context, r *storagenodev1.GetStreamStatusRequest) (*storagenodev1.GetStreamStatusResponse, error) {
	b, err := g.backend(r)
	if err != nil {
		return nil, err
	}
	known := streams(b.Moves.View().Moves, r.GetTargetNodeId())
	if g.isSource(r.GetSourceNodeId()) != nil || len(known) == 0 {
		return nil, &store.Error{Reason: store.ReasonMoveNotFound, Message: fmt.Sprintf(
			"no stream from %q to %q is known to %s: StartStreaming makes one", r.GetSourceNodeId(), r.GetTargetNodeId(), g.s.node.ID)}
	}
	return streamStatus(known)
}

// streamStatus returns what a coordinator is told of streams to one target, of which there is at least
// one: of those that are under way, or, when there is none, of those that ended together last.
func streamStatus(known []*moves.Move) (*storagenodev1.GetStreamStatusResponse, error) {
	out := &storagenodev1.GetStreamStatusResponse{}
	furthest := len(streamStates) - 1
	for _, m := range current(known) {
		stage := streamStage(m)
		if stage < 0 {
			return nil, &store.Error{Reason: store.ReasonMoveNotFound, Message: fmt.Sprintf(
				"%s to %s was called off before it was complete (%s): StartStreaming makes another one", m.ID, m.Target.NodeID, m.Reason)}
		}
		furthest = min(furthest, stage)
		out.Active = out.Active || m.Active() && !m.Finishing
		out.KeysCopied += m.Progress.CopiedRecords
		out.BytesCopied += m.Progress.CopiedBytes
		out.KeysStreamed += m.Progress.TailedRecords
		out.BytesStreamed += m.Progress.TailedBytes
	}
	out.State = streamStates[furthest]
	return out, nil
}

// current returns the streams that are under way, or those that were at the time of the one that ended
// last.
func current(known []*moves.Move) (out []*moves.Move) {
	var last *moves.Move
	for _, m := range known {
		switch {
		case m.Active():
			out = append(out, m)
		case last == nil || m.UpdatedAt > last.UpdatedAt:
			last = m
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, m := range known {
		if m.CreatedAt <= last.UpdatedAt && m.UpdatedAt >= last.CreatedAt {
			out = append(out, m)
		}
	}
	return out
}

// streamStage returns the index of the state that a coordinator is shown, -1 for a stream that was called
// off and has none. A failed one stands where it stood.
func streamStage(m *moves.Move) int {
	at := m.State
	if at == moves.Failed {
		at = m.ResumeState
	}
	switch {
	case at == moves.Cancelled && m.VerifiedAt == 0:
		return -1
	case at <= moves.Copying:
		return 0
	case m.VerifiedAt != 0 || at >= moves.Committed || m.Unverifiable():
		return 3
	case at == moves.Tailing:
		return 1
	}
	return 2
}
