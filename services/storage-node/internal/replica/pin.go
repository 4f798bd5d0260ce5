package replica

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// pinPrefix begins the names of the pins of moves.
const pinPrefix = "move."

// pinName is how the engine calls the pin of a move.
func pinName(moveID string) string { return pinPrefix + moveID }

// Pin holds the commit log for a move from now on, through restarts, and returns the first sequence that
// is held. known is what an earlier call returned, 0 for the first one: while the pin is there the answer
// is the same. A pin that had to hold too much log breaks; then the error is SEQUENCE_TOO_OLD, and the move
// has to begin anew, with a pin of its own: known 0.
func (r *Replica) Pin(moveID string, known uint64) (sequence uint64, err error) {
	if from, ok := r.e.PinnedTail(pinName(moveID)); ok {
		return uint64(from), nil
	}
	if known != 0 {
		return 0, &store.Error{Reason: store.ReasonSequenceTooOld,
			Message: fmt.Sprintf("the commit log from %d on is not held for move %s any more: it has to begin anew", known, moveID)}
	}
	newest := r.e.VisibleSeq()
	// What is below the pin is in every later snapshot only if no crash takes it away.
	if err := r.e.WaitDurable(newest); err != nil {
		return 0, fmt.Errorf("pin: %w", err)
	}
	if err := r.e.PinTail(pinName(moveID), newest+1); err != nil {
		return 0, fmt.Errorf("pin: %w", err)
	}
	return uint64(newest + 1), nil
}

// movePinEvery bounds how often the pin of a move moves: each time is an edit of the manifest. With 100 MB
// of log a second, it holds a fifth of what pins may hold.
const movePinEvery = 2 * time.Second

// MovePin holds the commit log for a move from a sequence on only, because every change before it is at the
// target. A pin that broke is taken again, if the log still reaches back so far. Within two seconds it does
// nothing.
//
// A copy that is under way may do so too: what it sends later comes from a newer snapshot, and what it sent
// earlier has changed only in changes that the target has or the pin still holds.
func (r *Replica) MovePin(moveID string, from uint64) error {
	now := r.o.Now()
	r.mu.Lock()
	if at, ok := r.pinMoved[moveID]; ok && now.Sub(at) < movePinEvery {
		r.mu.Unlock()
		return nil
	}
	if r.pinMoved == nil {
		r.pinMoved = map[string]time.Time{}
	}
	r.pinMoved[moveID] = now
	r.mu.Unlock()
	held, ok := r.e.PinnedTail(pinName(moveID))
	to := ikey.Seq(from)
	if ok && to <= held || to > r.e.VisibleSeq()+1 {
		return nil
	}
	if err := r.e.PinTail(pinName(moveID), to); err != nil {
		return tooOld(to, fmt.Errorf("move a pin: %w", err))
	}
	return nil
}

// Release lets go of the commit log that is held for a move; repeating it is safe.
func (r *Replica) Release(moveID string) error {
	r.mu.Lock()
	delete(r.pinMoved, moveID)
	r.mu.Unlock()
	if _, ok := r.e.PinnedTail(pinName(moveID)); !ok {
		return nil
	}
	if err := r.e.UnpinTail(pinName(moveID)); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

// Sweep lets go of the commit log that is held for moves that need it no more: those of which a crash came
// between two steps of their end. It returns how many there were.
func (r *Replica) Sweep(needed func(moveID string) bool) (swept int, err error) {
	for _, name := range r.e.TailPins() {
		id, ok := strings.CutPrefix(name, pinPrefix)
		if !ok || needed(id) {
			continue
		}
		if err := r.e.UnpinTail(name); err != nil {
			return swept, fmt.Errorf("release move %s: %w", id, err)
		}
		swept++
	}
	return swept, nil
}

// tooOld turns the end of what the engine keeps into a refusal.
func tooOld(from ikey.Seq, err error) error {
	if !errors.Is(err, store.ErrOutOfRange) {
		return err
	}
	return &store.Error{Reason: store.ReasonSequenceTooOld,
		Message: fmt.Sprintf("changes from %d on are not kept any more: the copy has to begin anew", from), Err: err}
}
