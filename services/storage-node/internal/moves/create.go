package moves

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// busyRetry is when a place among the active moves may be free.
const busyRetry = 5 * time.Second

// Create makes moves, all or none, and returns them in the order of the specs. A spec that is there
// already with the same arguments is a repeat, and its move is returned as it is; with others it is
// MOVE_EXISTS. A stream that follows to a target with a selection that another one has already is a
// repeat of that. Two moves that hand over and share a token are MOVES_OVERLAP. The specs' slices are the
// registry's from then on.
func (r *Registry) Create(ctx context.Context, specs ...Spec) ([]*Move, error) {
	for i := range specs {
		if err := specs[i].Validate(r.o.NodeID); err != nil {
			return nil, err
		}
	}
	if err := r.changing.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer r.changing.Release(1)
	e := r.begin()
	out := make([]*Move, len(specs))
	for i := range specs {
		known, err := e.next.repeated(&specs[i])
		if err != nil {
			return nil, err
		}
		if known != nil {
			out[i] = known
			continue
		}
		if err := e.next.admit(&specs[i]); err != nil {
			return nil, err
		}
		out[i] = &Move{Spec: specs[i], State: Planned, CreatedAt: e.at, Progress: Progress{RemainingSeconds: -1, LagMS: -1}}
		if err := e.put(r, nil, out[i], true); err != nil {
			return nil, err
		}
	}
	if len(e.changes) == 0 {
		return out, nil
	}
	if err := r.commit(ctx, e); err != nil {
		return nil, err
	}
	return out, nil
}

// repeated returns the move that a spec is a repeat of, nil when it is none.
func (s *state) repeated(spec *Spec) (*Move, error) {
	if m, ok := s.moves[spec.ID]; ok {
		if !m.Spec.equal(spec) {
			return nil, refuse(store.ReasonMoveExists, "there is a move %s with other arguments: take another id", spec.ID)
		}
		return m, nil
	}
	if _, ok := s.drains[spec.ID]; ok {
		return nil, refuse(store.ReasonMoveExists, "there is a drain %s: take another id", spec.ID)
	}
	if spec.Purpose != PurposeStream || spec.Mode != Follow {
		return nil, nil
	}
	for _, m := range s.moves {
		if m.Active() && m.State != Failed && !m.Finishing && m.Purpose == PurposeStream && m.Mode == Follow && m.Target == spec.Target && m.What.equal(&spec.What) {
			return m, nil
		}
	}
	return nil, nil
}

func (s *Spec) equal(o *Spec) bool {
	return s.ID == o.ID && s.Purpose == o.Purpose && s.Mode == o.Mode && s.Target == o.Target && s.HandOver == o.HandOver &&
		s.MaxBytesPerSecond == o.MaxBytesPerSecond && s.Parent == o.Parent && s.What.equal(&o.What)
}

func (s *Selection) equal(o *Selection) bool {
	return s.Tenant == o.Tenant && s.Start == o.Start && s.End == o.End && slices.Equal(s.Keys, o.Keys) && slices.Equal(s.HashRanges, o.HashRanges)
}

// admit refuses a new move that there is no room for, or that is at odds with others.
func (s *state) admit(spec *Spec) error {
	if d, ok := s.drains[spec.Parent]; ok && d.State.Ended() {
		return refuse(store.ReasonMoveState, "drain %s is %s: it gets no more moves", d.ID, d.State)
	}
	active, size := 0, spec.What.bytes()
	for _, m := range s.moves {
		if !m.Active() {
			continue
		}
		active++
		size += m.What.bytes()
		if spec.HandOver && m.HandOver && ring.Overlaps(spec.What.HashRanges, m.What.HashRanges) {
			return &store.Error{Reason: store.ReasonMovesOverlap, Metadata: map[string]string{"move_id": m.ID},
				Message: "move " + m.ID + " hands over a part of these ranges already: wait for it, or cancel it"}
		}
	}
	if active >= MaxActive {
		return &store.Error{Reason: store.ReasonTooManyMoves, RetryAfter: busyRetry,
			Message: fmt.Sprintf("%d moves are under way, at most %d are allowed", active, MaxActive)}
	}
	if size > MaxActiveBytes {
		return &store.Error{Reason: store.ReasonTooManyMoves, RetryAfter: busyRetry,
			Message: fmt.Sprintf("what moves select has %d bytes together, at most %d are allowed", size, MaxActiveBytes)}
	}
	return nil
}
