package moves

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// DrainStep is what AdvanceDrain changes; zero values leave things as they are.
type DrainStep struct {
	State DrainState
	// Reason replaces the one before.
	Reason string
	// MovesDone and MovesTotal count unless both are 0.
	MovesDone, MovesTotal int
}

// NewID returns an id that nobody has drawn: 80 random bits behind what it is for.
func NewID(prefix string) string { return prefix + strings.ToLower(rand.Text()[:16]) }

// newDrainID is shorter: the names of moves are added to it, and it is looked up.
func newDrainID(taken map[string]*Drain) string {
	for {
		id := "drain-" + strings.ToLower(rand.Text()[:8])
		if _, ok := taken[id]; !ok {
			return id
		}
	}
}

// StartDrain makes a drain; reason is why, forceReason is not empty when it was forced. One that is under
// way is returned as it is. It is DRAIN_EXISTS for a node that is drained, and MOVE_STATE for one that is
// not up.
func (r *Registry) StartDrain(ctx context.Context, reason, forceReason string) (*Drain, error) {
	for _, text := range []string{reason, forceReason} {
		if err := CheckReason(text); err != nil {
			return nil, err
		}
	}
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer r.changing.Release(1)
	s := r.state.Load()
	switch {
	case s.active != nil:
		return s.active, nil
	case s.wanted == membership.Drained:
		return nil, refuse(store.ReasonDrainExists, "the node is drained")
	case s.wanted != membership.Up && s.wanted != membership.Draining:
		return nil, refuse(store.ReasonMoveState, "the node is %s: it owns nothing yet, and can be stopped", s.wanted)
	}
	e := r.begin()
	d := &Drain{ID: newDrainID(e.next.drains), State: DrainRequested, Reason: reason, ForceReason: forceReason, CreatedAt: e.at}
	if err := e.putDrain(r, nil, d); err != nil {
		return nil, err
	}
	if err := r.commit(ctx, e); err != nil {
		return nil, err
	}
	return d, nil
}

// DrainFollows reports whether a state of a drain may follow another one by the word of the migrator.
func DrainFollows(from, to DrainState) bool {
	switch from {
	case DrainRequested:
		return to == DrainRequested || to == DrainMoving
	case DrainMoving:
		return to == DrainMoving || to == DrainCompleted
	}
	return false
}

// AdvanceDrain changes a drain that has the version, as the migrator says. Another version is
// MOVE_CHANGED; a state that may not follow is MOVE_STATE. COMPLETED is only a node that wants to be
// DRAINED.
func (r *Registry) AdvanceDrain(ctx context.Context, id string, version uint64, step DrainStep) (*Drain, error) {
	if err := CheckReason(step.Reason); err != nil {
		return nil, err
	}
	if step.State != 0 && !step.State.known() {
		return nil, refuse(store.ReasonMove, "the state %d is unknown", step.State)
	}
	if step.MovesDone < 0 || step.MovesTotal < step.MovesDone {
		return nil, refuse(store.ReasonMove, "%d of %d moves are done", step.MovesDone, step.MovesTotal)
	}
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer r.changing.Release(1)
	s := r.state.Load()
	d, ok := s.drains[id]
	if !ok {
		return nil, refuse(store.ReasonMoveNotFound, "no drain %.64q is known to this node", id)
	}
	if d.Version != version {
		return nil, &store.Error{Reason: store.ReasonMoveChanged, Metadata: map[string]string{"move_id": d.ID},
			Message: fmt.Sprintf("drain %s has version %d, the caller has seen %d: read it again", d.ID, d.Version, version)}
	}
	next := *d
	if step.State != 0 {
		next.State = step.State
	}
	switch {
	case !DrainFollows(d.State, next.State):
		return nil, refuse(store.ReasonMoveState, "drain %s is %s and can't become %s", d.ID, d.State, next.State)
	case next.State == DrainCompleted && s.wanted != membership.Drained:
		return nil, refuse(store.ReasonMoveState, "drain %s can't be COMPLETED: the node wants to be %s, and not DRAINED", d.ID, s.wanted)
	}
	next.Reason = step.Reason
	if step.MovesDone != 0 || step.MovesTotal != 0 {
		next.MovesDone, next.MovesTotal = step.MovesDone, step.MovesTotal
	}
	if next == *d {
		return d, nil
	}
	e := r.begin()
	if err := e.putDrain(r, d, &next); err != nil {
		return nil, err
	}
	if err := r.commit(ctx, e); err != nil {
		return nil, err
	}
	return &next, nil
}

// Declare changes what the node wants to be declared as, durably; the health-agent declares it. from is
// what it wants until now; another one is MOVE_CHANGED. Repeating it changes nothing. It is MOVE_STATE
// where it does not follow: DRAINING needs a drain, DRAINED one with no move under way, and a drain that
// is under way is ended by Cancel.
func (r *Registry) Declare(ctx context.Context, from, to membership.State) error {
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer r.changing.Release(1)
	s := r.state.Load()
	switch {
	case s.wanted == to && (from == to || wantedFollows(from, to)):
		return nil
	case s.wanted != from:
		return refuse(store.ReasonMoveChanged, "the node wants to be %s, the caller has seen %s", s.wanted, from)
	case !wantedFollows(from, to):
		return refuse(store.ReasonMoveState, "a node that is %s can't become %s", from, to)
	}
	if err := s.mayDeclare(to); err != nil {
		return err
	}
	e := r.begin()
	if err := e.putWanted(r, to); err != nil {
		return err
	}
	if err := r.commit(ctx, e); err != nil {
		return err
	}
	r.o.Log.Info("node declares", "from", from.String(), "to", to.String())
	return nil
}

// wantedFollows reports whether a node that wants to be declared as one thing may want the other.
func wantedFollows(from, to membership.State) bool {
	switch from {
	case membership.Joining:
		return to == membership.Up
	case membership.Up:
		return to == membership.Draining
	case membership.Draining:
		return to == membership.Up || to == membership.Drained
	}
	return false
}

// mayDeclare refuses what the moves and drains that there are don't allow.
func (s *state) mayDeclare(to membership.State) error {
	switch {
	case to == membership.Draining && s.active == nil:
		return refuse(store.ReasonMoveState, "no drain was asked for")
	case to == membership.Up && s.active != nil:
		return refuse(store.ReasonMoveState, "drain %s is under way: cancel it", s.active.ID)
	case to != membership.Drained:
		return nil
	case s.active == nil || s.active.State != DrainMoving:
		return refuse(store.ReasonMoveState, "no drain has moved the ranges")
	}
	for _, m := range s.moves {
		if m.HandOver && m.Active() && m.State != Committed {
			return badState(m, "the node is not drained yet")
		}
	}
	return nil
}
