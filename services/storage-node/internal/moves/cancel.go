package moves

import (
	"context"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// calledOff is the reason of a cancel that brings none.
const calledOff = "cancelled"

// Cancel calls off a move, or a drain with those of its moves that can be; drain is nil for a move. One
// that is FENCED is marked, and is over when the fence was lifted. From ACCEPTED on, and when it is over,
// it is MOVE_STATE, but a repeat changes nothing. A drain returns the node to UP.
func (r *Registry) Cancel(ctx context.Context, id, reason string) (cancelled []*Move, drain *Drain, err error) {
	if err := CheckReason(reason); err != nil {
		return nil, nil, err
	}
	if reason == "" {
		reason = calledOff
	}
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return nil, nil, err
	}
	defer r.changing.Release(1)
	s := r.state.Load()
	if d, ok := s.drains[id]; ok {
		return r.cancelDrain(ctx, s, d, reason)
	}
	m, err := s.get(id)
	if err != nil {
		return nil, nil, err
	}
	if m.State == Cancelled || m.Cancelling {
		return []*Move{m}, nil, nil
	}
	next, err := m.cancel(reason)
	if err != nil {
		return nil, nil, err
	}
	e := r.begin()
	if err := e.put(r, m, next, false); err != nil {
		return nil, nil, err
	}
	if err := r.commit(ctx, e); err != nil {
		return nil, nil, err
	}
	return []*Move{next}, nil, nil
}

// cancel returns the move as it is when it was called off.
func (m *Move) cancel(reason string) (*Move, error) {
	at := m.State
	if at == Failed {
		at = m.ResumeState
	}
	next := *m
	now, marked := cancelable(at)
	switch {
	case now:
		next.State, next.ResumeState, next.Reason = Cancelled, 0, reason
	case marked:
		next.State, next.ResumeState, next.Reason, next.Cancelling = Fenced, 0, reason, true
	default:
		return nil, badState(m, "it can't be called off any more; what the target has is moved back by a move of its own")
	}
	return &next, nil
}

// cancelDrain calls off a drain. changing is held.
func (r *Registry) cancelDrain(ctx context.Context, s *state, d *Drain, reason string) (cancelled []*Move, drain *Drain, err error) {
	switch {
	case d.State == DrainCancelled:
		return nil, d, nil
	case d.State == DrainCompleted || s.wanted == membership.Drained:
		return nil, nil, refuse(store.ReasonMoveState, "drain %s is done: the node has given everything away", d.ID)
	}
	e := r.begin()
	next := *d
	next.State, next.Reason = DrainCancelled, reason
	if err := e.putDrain(r, d, &next); err != nil {
		return nil, nil, err
	}
	for _, m := range s.view.Moves {
		if m.Parent != d.ID || !m.Active() || m.Cancelling {
			continue
		}
		off, err := m.cancel("drain " + d.ID + ": " + reason)
		if err != nil {
			continue // its ranges have a new owner: it goes on
		}
		off.Reason = off.Reason[:min(len(off.Reason), MaxReasonBytes)]
		if err := e.put(r, m, off, false); err != nil {
			return nil, nil, err
		}
		cancelled = append(cancelled, off)
	}
	if s.wanted == membership.Draining {
		if err := e.putWanted(r, membership.Up); err != nil {
			return nil, nil, err
		}
	}
	if err := r.commit(ctx, e); err != nil {
		return nil, nil, err
	}
	return cancelled, &next, nil
}
