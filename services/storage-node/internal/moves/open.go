package moves

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// otherLife is why moves of another incarnation are over.
const otherLife = "the data directory was restored or adopted since"

// Open loads what is stored. Nothing may be asked before. Damage is no error of Open: what can be read
// counts, and Damage tells.
func (r *Registry) Open(ctx context.Context, s *store.Store) error {
	r.records = s.System(systemTenant).Reserved()
	l := &loading{r: r, next: r.begin().next, whats: map[string]Selection{}}
	err := r.records.Each(ctx, func(key string, rec causal.Record) error {
		if err := l.take(key, rec); err != nil {
			r.unreadable[key] = fmt.Errorf("record %.120q: %w", key, err)
		}
		return nil
	})
	switch {
	case damaged(err):
		r.unreadable[""] = fmt.Errorf("the list of moves is not readable: %w", err)
	case err != nil:
		return fmt.Errorf("moves: %w", err)
	}
	l.complete()
	l.want()
	r.enter(l.next, true)
	return nil
}

// damaged reports whether an error says that what is stored can't be read.
func damaged(err error) bool {
	return errors.Is(err, engine.ErrCorrupt) || store.ReasonOf(err) == store.ReasonCorruptedData
}

// loading is what Open has found so far.
type loading struct {
	r      *Registry
	next   *state
	whats  map[string]Selection
	wanted *wantedRecord
}

// take adds a record. Of siblings, which an attempt of unknown end may leave, the newest counts.
func (l *loading) take(key string, rec causal.Record) error {
	for i := range rec.Siblings {
		if rec.Siblings[i].Tombstone {
			continue
		}
		if err := l.value(key, rec.Siblings[i].Value); err != nil {
			return err
		}
	}
	return nil
}

func (l *loading) value(key string, value []byte) error {
	kind, id, _ := strings.Cut(key, "/")
	switch kind + "/" {
	case movePrefix:
		return l.move(id, value)
	case whatPrefix:
		what, err := decodeWhat(value)
		if err == nil {
			l.whats[id] = what
		}
		return err
	case drainPrefix:
		return l.drain(id, value)
	case wantedKey + "/":
		w, err := decodeWanted(value)
		if err != nil {
			return err
		}
		if w.Incarnation == l.r.o.Incarnation && (l.wanted == nil || w.Version > l.wanted.Version) {
			l.wanted = &w
		}
		return nil
	}
	return errors.New("it is of no kind that is known")
}

func (l *loading) move(id string, value []byte) error {
	m, incarnation, err := decodeMove(value)
	if err != nil {
		return err
	}
	if m.ID != id {
		return fmt.Errorf("it is of move %.64q", m.ID)
	}
	if incarnation != l.r.o.Incarnation && m.Active() {
		m.State, m.ResumeState, m.Reason, m.Foreign = Cancelled, 0, otherLife, true
	}
	if known, ok := l.next.moves[id]; !ok || newer(m.Version, m.UpdatedAt, known.Version, known.UpdatedAt) {
		l.next.moves[id] = m
	}
	return nil
}

func (l *loading) drain(id string, value []byte) error {
	d, incarnation, err := decodeDrain(value)
	if err != nil {
		return err
	}
	if d.ID != id {
		return fmt.Errorf("it is of drain %.64q", d.ID)
	}
	if incarnation != l.r.o.Incarnation && !d.State.Ended() {
		d.State, d.Reason = DrainCancelled, otherLife
	}
	if known, ok := l.next.drains[id]; !ok || newer(d.Version, d.UpdatedAt, known.Version, known.UpdatedAt) {
		l.next.drains[id] = d
	}
	return nil
}

func newer(version uint64, at int64, thanVersion uint64, thanAt int64) bool {
	return version > thanVersion || version == thanVersion && at > thanAt
}

// complete gives each move its selection; one without is not known.
func (l *loading) complete() {
	for id, m := range l.next.moves {
		key := whatPrefix + id
		err := l.r.unreadable[key]
		what, ok := l.whats[id]
		if err == nil && !ok {
			err = fmt.Errorf("record %.120q is missing", key)
		}
		if m.What = what; err == nil {
			if err = m.Validate(l.r.o.NodeID); err == nil && !kindOf(&m.Spec).has(m.State) {
				err = fmt.Errorf("it can't be %s", m.State)
			}
			if err != nil {
				err = fmt.Errorf("record %.120q: %w", movePrefix+id, err)
			}
		}
		if err != nil {
			l.r.unreadable[key] = err
			delete(l.next.moves, id)
		}
	}
	active := 0
	for _, d := range drainsNewestFirst(l.next.drains) {
		if !d.State.Ended() {
			if active++; active > 1 {
				l.r.unreadable[drainPrefix+d.ID] = fmt.Errorf("drain %s is not over, and a newer one is not either", d.ID)
				delete(l.next.drains, d.ID)
			}
		}
	}
}

// want decides what the node wants to be declared as: what it wanted last; else what it has declared
// already; else, its directory is new, what the configuration says.
func (l *loading) want() {
	declared := l.r.o.Declared()
	switch {
	case l.wanted != nil:
		l.next.wanted, l.next.wantedVersion = l.wanted.State, l.wanted.Version
	case declared >= membership.Up && declared <= membership.Drained:
		l.next.wanted = declared
	case l.r.o.JoinAtOnce:
		l.next.wanted = membership.Up
	default:
		l.next.wanted = membership.Joining
	}
}
