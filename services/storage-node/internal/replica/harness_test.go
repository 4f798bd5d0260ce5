package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

var bg = context.Background()

// realEngine is the engine as this package, store and tenants declare it, as in package node.
type realEngine struct {
	*engine.Engine
	f *faults
}

// faults are what a test has the engine do.
type faults struct {
	mu     sync.Mutex
	submit func() error
	wait   func() error
	room   error
}

func (f *faults) set(change func(*faults)) { f.mu.Lock(); defer f.mu.Unlock(); change(f) }

func (f *faults) get(which func(*faults) func() error) error {
	f.mu.Lock()
	hook := which(f)
	f.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook()
}

func (e realEngine) NewBatch() store.Batch { return new(engine.Batch) }

func (e realEngine) Submit(b store.Batch) (ikey.Seq, error) {
	if err := e.f.get(func(f *faults) func() error { return f.submit }); err != nil {
		return 0, err
	}
	p, err := e.Engine.Submit(b.(*engine.Batch))
	if errors.Is(err, engine.ErrConflict) {
		return 0, store.ErrConflict
	}
	return p.Seq(), err
}

func (e realEngine) WaitDurable(seq ikey.Seq) error {
	if err := e.f.get(func(f *faults) func() error { return f.wait }); err != nil {
		return err
	}
	return e.Engine.WaitDurable(seq)
}

func (e realEngine) CheckRoom() error {
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	if e.f.room != nil {
		return e.f.room
	}
	return e.Engine.CheckRoom()
}

func (e realEngine) NewIter(lower, upper []byte) (store.Iter, error) {
	return e.Engine.NewIter(engine.IterOptions{Lower: lower, Upper: upper})
}

func (e realEngine) NewSnapshot() store.Snapshot { return realSnapshot{e.Engine.NewSnapshot()} }

type realSnapshot struct{ *engine.Snapshot }

func (s realSnapshot) NewIter(lower, upper []byte) (store.Iter, error) {
	return s.Snapshot.NewIter(engine.IterOptions{Lower: lower, Upper: upper})
}

func (e realEngine) Tail(from ikey.Seq) (store.Tail, error) {
	t, err := e.Engine.Tail(from)
	if err != nil {
		return nil, tailError(err)
	}
	return realTail{t}, nil
}

type realTail struct{ *engine.Tail }

func (t realTail) Next(ctx context.Context) (store.TailChange, error) {
	c, err := t.Tail.Next(ctx)
	return store.TailChange(c), tailError(err)
}

func tailError(err error) error {
	if errors.Is(err, engine.ErrOutOfRange) {
		return fmt.Errorf("%w: %w", store.ErrOutOfRange, err)
	}
	return err
}

func (e realEngine) DeleteSpans(spans []store.KeySpan) error {
	var b engine.Batch
	for _, s := range spans {
		b.DeleteRange(s.Start, s.End)
	}
	return e.Apply(&b, engine.SyncGroup)
}

type realTenants struct{ *tenant.Registry }

func (r realTenants) Lives() Lives { return realLives{r.Registry.Lives()} }

type realLives struct{ tenant.Lives }

func (l realLives) Enter(name string) (Stay, bool, bool) { return l.Lives.Enter(name) }

type realClock struct{}

func (realClock) Now() time.Time                         { return time.Now() }
func (realClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// node is a replica with all that it stands on.
type node struct {
	*Replica
	engine  *engine.Engine
	store   *store.Store
	tenants *tenant.Registry
	faults  *faults
}

const grace = 240 * time.Hour

// openNode opens the node of a name in fs. Memtables and segments are small, so that everything happens.
func openNode(t require.TestingT, name string, fs vfs.FS, change ...func(*engine.Options)) *node {
	o := engine.Options{
		FS: fs, Clock: realClock{}, Rand: rand.New(rand.NewPCG(1, 2)), MaxBatchBytes: 48 << 20,
		MemtableBytes: 256 << 10, LogSegmentBytes: 256 << 10, TableBytes: 128 << 10, ReserveBytes: -1,
		Jobs: jobs.Options{Mode: jobs.ModeAlways, LocalRate: -1},
	}
	for _, c := range change {
		c(&o)
	}
	e, err := engine.Open("data", o)
	require.NoError(t, err)
	n := &node{engine: e, faults: &faults{}, tenants: tenant.New(tenant.Options{})}
	real := realEngine{e, n.faults}
	n.store, err = store.New(real, store.Options{NodeID: name, Tenants: n.tenants})
	require.NoError(t, err)
	require.NoError(t, n.tenants.Open(bg, n.store, real))
	n.Replica = New(real, n.store, realTenants{n.tenants}, Options{ClusterID: "c", GCGrace: grace, DigestBytesPerSecond: -1})
	return n
}

func startNode(t *testing.T, name string, change ...func(*engine.Options)) *node {
	t.Helper()
	n := openNode(t, name, vfs.NewMem(), change...)
	t.Cleanup(func() { require.NoError(t, n.engine.Close()) })
	return n
}

func (n *node) put(t require.TestingT, tenant, key, value string) {
	_, err := n.store.Write(bg, store.WriteRequest{Tenant: tenant, Key: key, Value: []byte(value)})
	require.NoError(t, err)
}

func (n *node) delete(t require.TestingT, tenant, key string) {
	_, err := n.store.Delete(bg, store.DeleteRequest{Tenant: tenant, Key: key})
	require.NoError(t, err)
}

func (n *node) get(t require.TestingT, tenant, key string) string {
	r, err := n.store.Read(bg, tenant, key, nil)
	require.NoError(t, err)
	return string(r.Value)
}

// all returns everything of clients that the engine has, by engine key.
func (n *node) all(t require.TestingT) map[string]string {
	out := map[string]string{}
	it, err := n.engine.NewIter(engine.IterOptions{})
	require.NoError(t, err)
	for ok := it.First(); ok; ok = it.Next() {
		if it.Key()[0] != '_' {
			out[string(it.Key())] = string(it.Value())
		}
	}
	require.NoError(t, it.Close())
	return out
}

func (r *Record) clone() Record { return Record{bytes.Clone(r.Key), bytes.Clone(r.Value)} }

func cloneAll(in []Record) []Record {
	out := make([]Record, len(in))
	for i := range in {
		out[i] = in[i].clone()
	}
	return out
}

// collect exports everything that is selected.
func (n *node) collect(t require.TestingT, s Selection, cursor []byte) (out []Record) {
	finished := false
	require.NoError(t, n.Export(bg, ExportRequest{What: s, Cursor: cursor}, func(c Chunk) error {
		require.False(t, finished)
		out, finished = append(out, cloneAll(c.Records)...), c.Finished
		return nil
	}))
	require.True(t, finished)
	return out
}

// take ingests records in batches of a few, and returns when they are durable.
func (n *node) take(t require.TestingT, records []Record) {
	require.NoError(t, n.tryTake(records))
}

func (n *node) tryTake(records []Record) error {
	in, err := n.Ingest(bg, ingestStart(), func(uint64) error { return nil })
	if err != nil {
		return err
	}
	defer in.Close()
	number := uint64(0)
	for chunk := range slices.Chunk(records, 7) {
		number++
		if err := in.Add(number, chunk); err != nil {
			return err
		}
	}
	return in.Finish()
}

func ingestStart() IngestStart {
	return IngestStart{Peer: "peer", MoveID: "m", Format: RecordFormat, ReadAt: time.Now()}
}

// record makes one of another node.
func record(tenant, key, value string) Record {
	rec := causal.Record{Siblings: []causal.Sibling{{
		Dot: causal.Dot{Node: "other", Counter: uint64(len(value)) + 1}, Value: []byte(value), Timestamp: causal.Timestamp(time.Now()),
	}}}
	return Record{Key: ikey.AppendEngineKey(nil, tenant, key), Value: rec.Encode(nil)}
}
