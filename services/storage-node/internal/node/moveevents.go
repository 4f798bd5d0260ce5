package node

import (
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/event"
	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

const (
	// moveProgressEvery is how often progress of a move is told at most.
	moveProgressEvery = 10 * time.Second
	// A follower is behind when its lag is above behindLag for behindFor, and is not any more when it is
	// below caughtUp: what comes and goes with a burst of writes is no news.
	behindLag = 10 * time.Second
	behindFor = 10 * time.Second
	caughtUp  = time.Second
	// maxEventRanges bounds the hash ranges of a move in an event: a payload has 16 KiB at most.
	maxEventRanges = 100
)

// moveEvents turn changes of moves and drains into events. It never waits.
type moveEvents struct {
	nodeID string
	note   func(kind string, payload proto.Message)

	mu   sync.Mutex           // guards all below
	told map[string]time.Time // when something of a move was told last, by id
	lags map[string]*lagging  // of moves that follow, by id
}

// lagging is what was seen of the lag of a move.
type lagging struct {
	since time.Time // since when it is above behindLag; zero when it is not
	told  bool      // that it is behind
}

func newMoveEvents(nodeID string, note func(string, proto.Message)) *moveEvents {
	return &moveEvents{nodeID: nodeID, note: note, told: map[string]time.Time{}, lags: map[string]*lagging{}}
}

// moveKind returns what a change of a move is told as; empty: it is progress.
func moveKind(before, after *moves.Move) string {
	switch {
	case before == nil:
		return event.MoveRequested
	case before.State == after.State:
		return ""
	case after.State == moves.Failed:
		return event.MoveFailed
	case after.State == moves.Cancelled:
		return event.MoveCancelled
	case after.State == moves.Released:
		return event.MoveCompleted
	case before.State == moves.Planned:
		return event.MoveStarted
	}
	return ""
}

// drainKind returns what a change of a drain is told as; empty: it is none.
func drainKind(before, after *moves.Drain) string {
	switch {
	case before == nil:
		return event.DrainRequested
	case before.State != after.State && after.State == moves.DrainMoving:
		return event.DrainStarted
	case before.State != after.State && after.State == moves.DrainCompleted:
		return event.DrainCompleted
	case before.State != after.State && after.State == moves.DrainCancelled:
		return event.DrainCancelled
	case after.State == moves.DrainMoving && after.MovesDone > before.MovesDone:
		return event.DrainProgress
	}
	return ""
}

// changed takes a change; active returns the drain that is under way, or nil.
func (e *moveEvents) changed(c moves.Change, active func() *moves.Drain) {
	if c.DrainAfter != nil {
		if kind := drainKind(c.DrainBefore, c.DrainAfter); kind != "" {
			e.note(kind, &eventv1.DrainChanged{Drain: server.DrainToProto(c.DrainAfter)})
		}
		return
	}
	now := time.Now()
	kind := moveKind(c.Before, c.After)
	e.mu.Lock()
	if kind == "" && now.Sub(e.told[c.After.ID]) >= moveProgressEvery {
		kind = event.MoveProgress
	}
	if kind != "" {
		e.told[c.After.ID] = now
	}
	if !c.After.Active() {
		delete(e.told, c.After.ID)
		delete(e.lags, c.After.ID)
	}
	e.mu.Unlock()
	if kind == "" {
		return
	}
	e.note(kind, &eventv1.MoveChanged{Move: e.payload(c.After)})
	if d := active(); kind == event.MoveFailed && d != nil && c.After.Parent == d.ID {
		e.note(event.DrainFailed, &eventv1.DrainChanged{Drain: server.DrainToProto(d)})
	}
}

// payload is a move without its keys, and with the first of its hash ranges.
func (e *moveEvents) payload(m *moves.Move) *movev1.Move {
	short := *m
	short.What.Keys = nil
	short.What.HashRanges = short.What.HashRanges[:min(len(short.What.HashRanges), maxEventRanges)]
	short.CopyCursor = nil // it has a key in it
	return server.MoveToProto(&short, e.nodeID, "")
}

// look notices followers that fall behind, and those that have caught up.
func (e *moveEvents) look(now time.Time, all []*moves.Move) {
	for _, m := range all {
		lag, known := m.Lag(now)
		if !known {
			continue
		}
		if changed, behind := e.judge(now, m.ID, lag); changed {
			e.note(event.ReplicationLag, &eventv1.ReplicationLag{
				MoveId: m.ID, TargetNodeId: m.Target.NodeID, LagMs: lag.Milliseconds(), LagRecords: m.Progress.LagRecords, Behind: behind,
			})
		}
	}
}

// judge reports whether it is news that a follower is behind, or is not any more.
func (e *moveEvents) judge(now time.Time, id string, lag time.Duration) (news, behind bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.lags[id]
	if l == nil {
		if lag <= behindLag {
			return false, false
		}
		l = &lagging{}
		e.lags[id] = l
	}
	switch {
	case lag <= behindLag:
		l.since = time.Time{}
	case l.since.IsZero():
		l.since = now
	}
	switch {
	case !l.told && !l.since.IsZero() && now.Sub(l.since) >= behindFor:
		l.told = true
		return true, true
	case lag < caughtUp:
		told := l.told
		delete(e.lags, id)
		return told, false
	}
	return false, l.told
}
