package store

import (
	"context"

	"github.com/pairdb/pairdb/libs/ring"
)

// Owners decides whether a request for a key is served here. It is safe for concurrent use.
type Owners interface {
	// Active reports whether Admit could refuse anything; it is asked for each request and costs next to
	// nothing.
	Active() bool
	// Admit returns why a request for a key with the token is refused, or nil. Writes ask while the lock
	// of the key is held, and hold it until they are applied.
	Admit(token uint64, write bool) error
}

// serves returns why a request for a key is refused here, or nil.
func (s *Store) serves(tenant, key string, write bool) error {
	if s.opts.Owners == nil || !s.opts.Owners.Active() {
		return nil
	}
	return s.opts.Owners.Admit(ring.Token(tenant, key), write)
}

// owned drops the items that are not served here, with the reason in their results; with atomic it is
// the error of all. The stripes of all of them are locked: what is admitted is applied before a Quiesce
// that begins later ends.
func (s *Store) owned(sc *scratch, tenant string, ops []Op, results []OpResult, m mode) error {
	if m.system || s.opts.Owners == nil || !s.opts.Owners.Active() {
		return nil
	}
	kept := sc.kept[:0]
	for _, it := range sc.items {
		switch err := s.serves(tenant, ops[it.op].Key, true); {
		case err == nil:
			kept = append(kept, it)
		case m.atomic:
			return inOp(err, it.op, len(ops))
		default:
			results[it.op] = OpResult{Err: err}
		}
	}
	// Whoever holds the locks goes on looking at the old list.
	sc.kept, sc.items = sc.items, kept
	return nil
}

// Quiesce returns when every write that held the lock of its key when it was called is applied, or
// refused. It takes the locks one after another, and keeps none.
func (s *Store) Quiesce(ctx context.Context) error {
	for i := range s.stripes.locks {
		if i%1024 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		s.stripes.locks[i].Lock()
		//lint:ignore SA2001 waiting is all that is wanted
		s.stripes.locks[i].Unlock()
	}
	return nil
}
