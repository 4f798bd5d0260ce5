package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/replica"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// storeEngine is the engine as the store and the registry of tenants declare it.
type storeEngine struct{ *engine.Engine }

// NewBatch returns an empty batch.
func (e storeEngine) NewBatch() store.Batch { return new(engine.Batch) }

// Submit applies a batch that NewBatch made.
func (e storeEngine) Submit(b store.Batch) (ikey.Seq, error) {
	pending, err := e.Engine.Submit(b.(*engine.Batch))
	if errors.Is(err, engine.ErrConflict) {
		return 0, store.ErrConflict
	}
	return pending.Seq(), err
}

// DeleteSpans removes every key of the spans, together, and returns when that is durable.
func (e storeEngine) DeleteSpans(spans []store.KeySpan) error {
	var b engine.Batch
	for _, s := range spans {
		b.DeleteRange(s.Start, s.End)
	}
	return e.Apply(&b, engine.SyncGroup)
}

// NewIter walks [lower, upper) as it is now.
func (e storeEngine) NewIter(lower, upper []byte) (store.Iter, error) {
	return iter(e.Engine.NewIter(engine.IterOptions{Lower: lower, Upper: upper}))
}

// NewSnapshot keeps what is durable now readable.
func (e storeEngine) NewSnapshot() store.Snapshot { return storeSnapshot{e.Engine.NewSnapshot()} }

// Tail follows the durable changes.
func (e storeEngine) Tail(from ikey.Seq) (store.Tail, error) {
	t, err := e.Engine.Tail(from)
	if err != nil {
		return nil, tailError(err)
	}
	return storeTail{t}, nil
}

type storeTail struct{ *engine.Tail }

// Next returns the next change.
func (t storeTail) Next(ctx context.Context) (store.TailChange, error) {
	c, err := t.Tail.Next(ctx)
	return store.TailChange(c), tailError(err)
}

func tailError(err error) error {
	if errors.Is(err, engine.ErrOutOfRange) {
		return fmt.Errorf("%w: %w", store.ErrOutOfRange, err)
	}
	return err
}

type storeSnapshot struct{ *engine.Snapshot }

// NewIter walks [lower, upper) of the snapshot.
func (s storeSnapshot) NewIter(lower, upper []byte) (store.Iter, error) {
	return iter(s.Snapshot.NewIter(engine.IterOptions{Lower: lower, Upper: upper}))
}

// iter keeps a nil iterator from becoming an interface that is not nil.
func iter(it *engine.Iter, err error) (store.Iter, error) {
	if err != nil {
		return nil, err
	}
	return it, nil
}

// replicaTenants is the registry of tenants as package replica declares it.
type replicaTenants struct{ *tenant.Registry }

// Lives returns the lives that tenants have now.
func (r replicaTenants) Lives() replica.Lives { return replicaLives{r.Registry.Lives()} }

type replicaLives struct{ tenant.Lives }

// Enter takes up a write that another node sent.
func (l replicaLives) Enter(name string) (replica.Stay, bool, bool) { return l.Lives.Enter(name) }
