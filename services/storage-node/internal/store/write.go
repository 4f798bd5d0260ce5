package store

import (
	"context"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// Causality says how a write relates to what is there. Without anything it is blind: it supersedes
// what this node knows, and nothing else.
type Causality struct {
	// Clock is the whole clock of the write, raised by the coordinator that sends it.
	Clock causal.Clock
	// Context is the clock of an earlier read, if HasContext: it may be the empty clock of a key
	// that was not there.
	Context    causal.Clock
	HasContext bool
}

// WriteRequest stores a value. The store does not keep Value.
type WriteRequest struct {
	Tenant, Key string
	Value       []byte
	Causality
	// TTL is in seconds from now, 0 for ever.
	TTL int64
	// Condition must hold, or the write is refused; nil: none.
	Condition *Condition
	// IdempotencyKey names the request for the tenant on this node, so that a repeat of it within a
	// day gets the first answer and changes nothing; empty: none.
	IdempotencyKey string
}

// DeleteRequest stores a tombstone.
type DeleteRequest struct {
	Tenant, Key string
	Causality
	// As in WriteRequest.
	Condition      *Condition
	IdempotencyKey string
}

// RepairRequest joins siblings into a key. The store reorders Siblings and completes their clocks.
type RepairRequest struct {
	Tenant, Key string
	Siblings    []causal.Sibling
}

// WriteResult says what a write did.
type WriteResult struct {
	Outcome causal.Outcome
	// Replayed: this is the answer to an earlier request with the same idempotency key.
	Replayed bool
	// Clock of the key after the write: the context of the next one.
	Clock causal.Clock
	// Siblings counts the values of the key now, without tombstones and expired ones.
	Siblings int
}

// Write stores a value and returns when that is durable. When it returns an error of the context,
// the write was not made; once it is submitted, Write waits for its end.
func (s *Store) Write(ctx context.Context, r WriteRequest) (WriteResult, error) {
	return s.one(ctx, r.Tenant, named(r.IdempotencyKey), Op{
		Kind: Put, Key: r.Key, Value: r.Value, Causality: r.Causality, TTL: r.TTL, Condition: r.Condition,
	})
}

// Delete stores a tombstone and returns when that is durable.
func (s *Store) Delete(ctx context.Context, r DeleteRequest) (WriteResult, error) {
	return s.one(ctx, r.Tenant, named(r.IdempotencyKey), Op{Kind: Delete, Key: r.Key, Causality: r.Causality, Condition: r.Condition})
}

// Repair joins siblings that were read together into the key, without reading it, and returns when
// that is durable.
func (s *Store) Repair(ctx context.Context, r RepairRequest) error {
	_, err := s.one(ctx, r.Tenant, mode{atomic: true}, Op{Kind: Repair, Key: r.Key, Siblings: r.Siblings})
	return err
}

// named returns the mode of a single write that may have an idempotency key.
func named(idempotencyKey string) mode {
	m := mode{atomic: true}
	if idempotencyKey != "" {
		m.once = &once{key: idempotencyKey}
	}
	return m
}

func (s *Store) one(ctx context.Context, tenant string, m mode, o Op) (WriteResult, error) {
	ops, results := [1]Op{o}, [1]OpResult{}
	pending, err := s.submit(ctx, tenant, ops[:], results[:], m)
	if werr := s.wait(ctx, pending); werr != nil {
		err = werr
	}
	if err != nil {
		return WriteResult{}, err
	}
	return results[0].WriteResult, nil
}

// wait is Pending.Wait that counts as a stage of the request, if there is something to wait for.
func (s *Store) wait(ctx context.Context, p Pending) error {
	err := p.Wait()
	if t := stages.From(ctx); t != nil && !p.Done() {
		t.Lap(stages.Sync, s.now())
	}
	return err
}
