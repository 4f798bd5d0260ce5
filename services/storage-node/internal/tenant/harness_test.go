package tenant

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

var bg = context.Background()

// realEngine is the engine as store and registry declare it, as in package node. It counts the calls
// that requests make.
type realEngine struct {
	*engine.Engine
	calls *calls
}

type calls struct {
	mu    sync.Mutex
	count int
	// beforeDelete and afterDelete run around DeleteSpans; an error of theirs ends it.
	beforeDelete, afterDelete func() error
}

func (e realEngine) called() { e.calls.mu.Lock(); e.calls.count++; e.calls.mu.Unlock() }

func (e realEngine) NewBatch() store.Batch { return new(engine.Batch) }

func (e realEngine) Submit(b store.Batch) (ikey.Seq, error) {
	e.called()
	p, err := e.Engine.Submit(b.(*engine.Batch))
	if errors.Is(err, engine.ErrConflict) {
		return 0, store.ErrConflict
	}
	return p.Seq(), err
}

func (e realEngine) Get(key, dst []byte) ([]byte, bool, error) {
	e.called()
	return e.Engine.Get(key, dst)
}

func (e realEngine) GetLatest(key, dst []byte) ([]byte, bool, ikey.Seq, error) {
	e.called()
	return e.Engine.GetLatest(key, dst)
}

func (e realEngine) NewIter(lower, upper []byte) (store.Iter, error) {
	e.called()
	return e.Engine.NewIter(engine.IterOptions{Lower: lower, Upper: upper})
}

func (e realEngine) NewSnapshot() store.Snapshot {
	e.called()
	return realSnapshot{e.Engine.NewSnapshot()}
}

func (e realEngine) Tail(from ikey.Seq) (store.Tail, error) {
	e.called()
	t, err := e.Engine.Tail(from)
	return realTail{t}, err
}

type realTail struct{ *engine.Tail }

func (t realTail) Next(ctx context.Context) (store.TailChange, error) {
	c, err := t.Tail.Next(ctx)
	return store.TailChange(c), err
}

type realSnapshot struct{ *engine.Snapshot }

func (s realSnapshot) NewIter(lower, upper []byte) (store.Iter, error) {
	return s.Snapshot.NewIter(engine.IterOptions{Lower: lower, Upper: upper})
}

func (e realEngine) DeleteSpans(spans []store.KeySpan) error {
	if e.calls.beforeDelete != nil {
		if err := e.calls.beforeDelete(); err != nil {
			return err
		}
	}
	var b engine.Batch
	for _, s := range spans {
		b.DeleteRange(s.Start, s.End)
	}
	if err := e.Apply(&b, engine.SyncGroup); err != nil {
		return err
	}
	if e.calls.afterDelete != nil {
		return e.calls.afterDelete()
	}
	return nil
}

type realClock struct{}

func (realClock) Now() time.Time                         { return time.Now() }
func (realClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// wall is a clock that stands until it is moved.
type wall struct {
	mu  sync.Mutex
	now time.Time
}

func newWall() *wall { return &wall{now: time.Unix(1_700_000_000, 0)} }

func (w *wall) Now() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now }

func (w *wall) move(d time.Duration) { w.mu.Lock(); w.now = w.now.Add(d); w.mu.Unlock() }

// roomyDisk has more than the reserve of these tests, fullDisk less.
var (
	roomyDisk = vfs.Usage{TotalBytes: 1 << 30, FreeBytes: 1 << 29}
	fullDisk  = vfs.Usage{TotalBytes: 1 << 30, FreeBytes: 1 << 19}
)

// node is a store with its registry over the real engine.
type node struct {
	*Registry
	store  *store.Store
	engine *engine.Engine
	calls  *calls
	wall   *wall
}

// open opens a node in fs; an error is that of the registry.
func open(t require.TestingT, fs vfs.FS, o Options) (*node, error) {
	if disk, ok := fs.(interface{ SetUsage(vfs.Usage) }); ok {
		disk.SetUsage(roomyDisk)
	}
	e, err := engine.Open("data", engine.Options{
		FS: fs, Clock: realClock{}, Rand: rand.New(rand.NewPCG(1, 2)),
		MaxBatchBytes: 48 << 20, MemtableBytes: 1 << 20, LogSegmentBytes: 1 << 20, TableBytes: 256 << 10, ReserveBytes: 1 << 20, SpacePoll: time.Millisecond,
		Jobs: jobs.Options{Mode: jobs.ModeAlways},
	})
	require.NoError(t, err)
	n := &node{engine: e, calls: &calls{}, wall: newWall()}
	o.Now = n.wall.Now
	n.Registry = New(o)
	n.store, err = store.New(realEngine{e, n.calls}, store.Options{NodeID: "n", Now: n.wall.Now, Tenants: n.Registry})
	require.NoError(t, err)
	return n, n.Open(bg, n.store, realEngine{e, n.calls})
}

// start opens a node and closes it when the test ends.
func start(t *testing.T, fs vfs.FS, o Options) *node {
	t.Helper()
	n, err := open(t, fs, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.engine.Close()) })
	return n
}

// restart closes a node and opens it again.
func restart(t *testing.T, n *node, fs vfs.FS, o Options) *node {
	t.Helper()
	require.NoError(t, n.engine.Close())
	return start(t, fs, o)
}

func (n *node) create(t *testing.T, name string, q Quota) Tenant {
	t.Helper()
	got, err := n.Create(bg, name, q, 0)
	require.NoError(t, err)
	return got
}

func (n *node) put(tenant, key, value string) error {
	_, err := n.store.Write(bg, store.WriteRequest{Tenant: tenant, Key: key, Value: []byte(value)})
	return err
}

// get returns the value of a key, "" if there is none.
func (n *node) get(t require.TestingT, tenant, key string) string {
	r, err := n.store.Read(bg, tenant, key, nil)
	require.NoError(t, err)
	return string(r.Value)
}

// everyCall makes each call of the store for a tenant once, and returns their errors.
func (n *node) everyCall(tenant string) map[string]error {
	ops := []store.Op{{Kind: store.Put, Key: "k", Value: []byte("value")}}
	return map[string]error{
		"write":  n.put(tenant, "k", "value"),
		"delete": second(n.store.Delete(bg, store.DeleteRequest{Tenant: tenant, Key: "k"})),
		"repair": n.store.Repair(bg, store.RepairRequest{Tenant: tenant, Key: "k", Siblings: foreign("m", 1, "r")}),
		"batch":  second(n.store.BatchWrite(bg, store.BatchWriteRequest{Tenant: tenant, Ops: ops})),
		"submit": second(n.store.Submit(bg, store.BatchWriteRequest{Tenant: tenant, Ops: ops}, make([]store.OpResult, 1))),
		"read":   second(n.store.Read(bg, tenant, "k", nil)),
		"reads":  second(n.store.BatchRead(bg, tenant, []string{"k", "l"})),
		"range":  second(n.store.KeyRange(bg, store.KeyRangeRequest{Tenant: tenant})),
		"stream": n.store.Stream(bg, store.StreamRequest{Tenant: tenant}, func(store.Chunk) error { return nil }),
	}
}

// foreign is a sibling that another node wrote.
func foreign(node string, counter uint64, value string) []causal.Sibling {
	return []causal.Sibling{{Dot: causal.Dot{Node: node, Counter: counter}, Value: []byte(value), Timestamp: counter}}
}

func second[T any](_ T, err error) error { return err }

func requireReason(t require.TestingT, want store.Reason, err error) {
	require.Equal(t, want, store.ReasonOf(err), "%v", err)
}
