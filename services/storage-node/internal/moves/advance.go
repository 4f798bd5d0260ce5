package moves

import (
	"context"
	"fmt"

	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Step is what Advance changes; zero values leave things as they are.
type Step struct {
	State State
	// Reason replaces the one before, unless the step is progress alone.
	Reason string
	// CopyCursor counts when HasCursor.
	CopyCursor []byte
	HasCursor  bool
	// TailSequence: every change up to it is at the target. It never falls.
	TailSequence uint64
	// Verified: both sides are equal now.
	Verified bool
	// Epoch is that of the ownership that is handed over.
	Epoch uint64
	// Progress is nil for none. Alone, it is kept in memory and the version stays.
	Progress *Progress
}

// durable reports whether a step is more than progress.
func (s *Step) durable(m *Move) bool {
	return s.State != 0 && s.State != m.State || s.Reason != "" && s.Reason != m.Reason || s.HasCursor || s.TailSequence > m.TailSequence ||
		s.Verified || s.Epoch != 0 && s.Epoch != m.Epoch
}

func badState(m *Move, format string, args ...any) error {
	e := refuse(store.ReasonMoveState, format, args...).(*store.Error)
	e.Message = "move " + m.ID + " is " + m.State.String() + ": " + e.Message
	e.Metadata = map[string]string{"move_id": m.ID, "state": m.State.String()}
	return e
}

// Advance changes a move that has the version, as the migrator says, and returns it as it is then. Another
// version is MOVE_CHANGED; a state that may not follow, or lacks what it stands for, is MOVE_STATE.
func (r *Registry) Advance(ctx context.Context, id string, version uint64, step Step) (*Move, error) {
	if err := step.check(); err != nil {
		return nil, err
	}
	return r.change(ctx, id, func(m *Move) (bool, error) {
		if m.Version != version {
			return false, &store.Error{Reason: store.ReasonMoveChanged, Metadata: map[string]string{"move_id": m.ID},
				Message: fmt.Sprintf("move %s has version %d, the caller has seen %d: read it again", m.ID, m.Version, version)}
		}
		if !m.Active() {
			return false, badState(m, "it is over")
		}
		if step.Progress != nil {
			m.Progress, m.ProgressAt = *step.Progress, r.o.Now().UnixMilli()
		}
		if !step.durable(m) {
			return false, nil
		}
		return true, m.advance(&step, r.o.Now().UnixMilli())
	})
}

func (s *Step) check() error {
	if s.State != 0 && !s.State.known() {
		return refuse(store.ReasonMove, "the state %d is unknown", s.State)
	}
	if len(s.CopyCursor) > MaxCursorBytes {
		return refuse(store.ReasonMove, "the cursor has %d bytes, at most %d are allowed", len(s.CopyCursor), MaxCursorBytes)
	}
	if s.Progress != nil {
		if err := s.Progress.check(); err != nil {
			return refuse(store.ReasonMove, "%v", err)
		}
	}
	return CheckReason(s.Reason)
}

// advance applies a step of the migrator that is more than progress.
func (m *Move) advance(s *Step, now int64) error {
	to := s.State
	if to == 0 {
		to = m.State
	}
	if !Follows(&m.Spec, m.State, to, ByMigrator) {
		return badState(m, "it can't become %s by the word of the migrator", to)
	}
	m.Reason = s.Reason
	if s.HasCursor {
		if m.State < Pinned || m.State > Tailing {
			return badState(m, "nothing is copied now, there is no cursor")
		}
		m.CopyCursor = s.CopyCursor
	}
	m.TailSequence = max(m.TailSequence, s.TailSequence)
	if s.Epoch != 0 {
		m.Epoch = s.Epoch
	}
	if s.Verified {
		if m.State < Tailing || m.State > Fenced {
			return badState(m, "nothing is compared now, it can't be verified")
		}
		m.VerifiedAt = now
	}
	if to == m.State {
		return nil
	}
	return m.become(to)
}

// become enters a state that may follow by the word of the migrator, if it has what it stands for.
func (m *Move) become(to State) error {
	switch to {
	case Failed:
		if m.Reason == "" {
			return badState(m, "it can't become FAILED without a reason")
		}
		m.ResumeState = m.State
	case Planned:
		m.anew()
	case Accepted:
		switch {
		case m.TailSequence < m.FenceSequence:
			return badState(m, "the target has changes up to %d, the fence is at %d: nothing may be accepted yet", m.TailSequence, m.FenceSequence)
		case m.Epoch == 0:
			return badState(m, "it has no epoch: the target can't have accepted")
		}
		m.Cancelling = false // there is no way back any more
	case Committed:
		switch {
		case m.VerifiedAt == 0 && !m.Unverifiable():
			return badState(m, "it was not verified: both sides must have been compared and equal")
		case m.Mode == Follow && !m.Finishing:
			return badState(m, "it follows until it is finished or cancelled")
		}
	}
	m.State = to
	return nil
}

// anew forgets how far a move was.
func (m *Move) anew() {
	m.PinnedSequence, m.CopyCursor, m.TailSequence, m.FenceSequence, m.VerifiedAt, m.Epoch = 0, nil, 0, 0, 0, 0
}

// change makes a change of one move: f changes a copy, and reports whether that is to be durable. An error
// changes nothing.
func (r *Registry) change(ctx context.Context, id string, f func(m *Move) (durable bool, err error)) (*Move, error) {
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer r.changing.Release(1)
	known, err := r.state.Load().get(id)
	if err != nil {
		return nil, err
	}
	next := *known
	durable, err := f(&next)
	if err != nil {
		return nil, err
	}
	if !durable && next.Progress == known.Progress && next.ProgressAt == known.ProgressAt {
		return known, nil
	}
	e := r.begin()
	if !durable {
		e.next.moves[id] = &next
		r.enter(e.next, false)
		c := Change{Before: known, After: &next}
		r.count(c)
		r.o.Changed(c)
		return &next, nil
	}
	if err := e.put(r, known, &next, false); err != nil {
		return nil, err
	}
	if err := r.commit(ctx, e); err != nil {
		return nil, err
	}
	return &next, nil
}

// MarkPinned notes that the log is held from a sequence on. A move that is pinned already is returned as
// it is: its sequence counts.
func (r *Registry) MarkPinned(ctx context.Context, id string, sequence uint64) (*Move, error) {
	return r.change(ctx, id, func(m *Move) (bool, error) {
		switch {
		case m.Active() && m.State != Failed && m.PinnedSequence != 0:
			return false, nil
		case !Follows(&m.Spec, m.State, Pinned, ByNode):
			return false, badState(m, "it can't be pinned")
		case sequence == 0:
			return false, badState(m, "it can't be pinned at sequence 0")
		}
		m.State, m.PinnedSequence, m.Reason = Pinned, sequence, ""
		return true, nil
	})
}

// MarkFenced notes that no write of the ranges is newer than a sequence. A move that is fenced already, or
// past it, is returned as it is. It is MOVE_STATE when the move was called off meanwhile, or was never
// verified: then the caller lifts its fence.
func (r *Registry) MarkFenced(ctx context.Context, id string, sequence uint64) (*Move, error) {
	return r.change(ctx, id, func(m *Move) (bool, error) {
		switch {
		case m.HandOver && m.State >= Fenced && m.State <= Committed && sequence <= m.FenceSequence:
			return false, nil
		case m.HandOver && m.State == Fenced:
			m.FenceSequence = sequence
			return true, nil
		case !Follows(&m.Spec, m.State, Fenced, ByNode):
			return false, badState(m, "it can't be fenced")
		case m.VerifiedAt == 0:
			return false, badState(m, "it was not verified: nothing is handed over that was not compared")
		case sequence == 0:
			return false, badState(m, "it can't be fenced at sequence 0")
		}
		m.State, m.FenceSequence, m.Reason = Fenced, sequence, ""
		return true, nil
	})
}

// MarkLifted notes that the fence is gone and the ranges are the node's as before: the move is VERIFYING
// again, or CANCELLED when it was to be called off. One that has no fence is returned as it is. It is
// MOVE_STATE from ACCEPTED on. Ask MayLift before the fence is lifted.
func (r *Registry) MarkLifted(ctx context.Context, id string) (*Move, error) {
	return r.change(ctx, id, func(m *Move) (bool, error) {
		if err := m.mayLift(); err != nil {
			return false, err
		}
		failed := m.State == Failed && m.ResumeState == Fenced
		if m.State != Fenced && !failed {
			return false, nil
		}
		m.FenceSequence = 0
		switch {
		case m.Cancelling:
			m.State, m.ResumeState, m.Cancelling = Cancelled, 0, false
		case failed:
			m.ResumeState = Verifying
		default:
			m.State = Verifying
		}
		return true, nil
	})
}

// MayLift refuses (MOVE_STATE) what would take a range back that the target has.
func (r *Registry) MayLift(id string) error {
	m, err := r.Get(id)
	if err != nil {
		return err
	}
	return m.mayLift()
}

func (m *Move) mayLift() error {
	at := m.State
	if at == Failed {
		at = m.ResumeState
	}
	if m.HandOver && at >= Accepted && at <= Released {
		return badState(m, "the target has its ranges, the fence can't be lifted")
	}
	return nil
}

// MarkGiven notes that the node has durably recorded the target as the owner: COMMITTED. A move that is
// past it is returned as it is; one that is not ACCEPTED is MOVE_STATE.
func (r *Registry) MarkGiven(ctx context.Context, id string) (*Move, error) {
	return r.change(ctx, id, func(m *Move) (bool, error) {
		switch {
		case m.HandOver && (m.State == Committed || m.State == Released):
			return false, nil
		case !Follows(&m.Spec, m.State, Committed, ByNode):
			return false, badState(m, "only what is ACCEPTED can be given")
		}
		m.State, m.Reason = Committed, ""
		return true, nil
	})
}

// MayRelease refuses (MOVE_STATE) letting go of what a move still needs; one that is not known needs
// nothing.
func (r *Registry) MayRelease(id string) error {
	m, ok := r.state.Load().moves[id]
	if !ok {
		return nil
	}
	return m.mayRelease()
}

func (m *Move) mayRelease() error {
	if m.Active() && m.State != Committed && m.State != Planned {
		return badState(m, "what is held for it is still needed")
	}
	return nil
}

// MarkReleased notes that nothing is held for the move any more: COMMITTED becomes RELEASED. One that is
// over, or begins anew, stays as it is; any other is MOVE_STATE.
func (r *Registry) MarkReleased(ctx context.Context, id string) (*Move, error) {
	return r.change(ctx, id, func(m *Move) (bool, error) {
		if err := m.mayRelease(); err != nil {
			return false, err
		}
		if m.State != Committed {
			return false, nil
		}
		m.State, m.Reason = Released, ""
		return true, nil
	})
}

// Finish has a move that follows end once it was verified again. Repeating it changes nothing.
func (r *Registry) Finish(ctx context.Context, id string) (*Move, error) {
	return r.change(ctx, id, func(m *Move) (bool, error) {
		switch {
		case m.Mode != Follow:
			return false, badState(m, "it does not follow, it ends by itself")
		case m.Finishing && m.State != Cancelled:
			return false, nil
		case !m.Active():
			return false, badState(m, "it is over")
		}
		m.Finishing, m.VerifiedAt = true, 0
		return true, nil
	})
}

// Resume goes on with a move that failed, where it stood. One that is under way is returned as it is.
func (r *Registry) Resume(ctx context.Context, id string) (*Move, error) {
	return r.change(ctx, id, func(m *Move) (bool, error) {
		if !m.Active() {
			return false, badState(m, "it is over: make a new one")
		}
		if m.State != Failed {
			return false, nil
		}
		m.State, m.ResumeState, m.Reason = m.ResumeState, 0, ""
		return true, nil
	})
}
