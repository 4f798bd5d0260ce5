package server

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// fakeEngine is an engine in a map: for store and for operators. Each call can be made to fail.
type fakeEngine struct {
	mu      sync.Mutex
	data    map[string][]byte
	seq     ikey.Seq
	fail    error        // of every call, when set
	hook    func()       // before every call, when set; without the lock
	wait    func() error // of WaitDurable, when set
	tables  []engine.TableInfo
	numbers engine.Metrics
	ranges  [][2][]byte // of Compact
	found   []engine.Finding
	work    func(ctx context.Context, progress func(done, total int64)) error // of Compact and Check
}

func newFake() *fakeEngine { return &fakeEngine{data: map[string][]byte{}} }

func (f *fakeEngine) enter() error {
	f.mu.Lock()
	hook, err := f.hook, f.fail
	f.mu.Unlock()
	if hook != nil {
		hook()
	}
	return err
}

func (f *fakeEngine) set(change func(*fakeEngine)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

type fakeBatch struct {
	keys, values []string
	merge        []bool
	bytes        int
}

func (b *fakeBatch) SetIfUnchanged(key, value []byte, _ ikey.Seq) { b.add(key, value, false) }
func (b *fakeBatch) Urgent()                                      {}
func (b *fakeBatch) Removal()                                     {}
func (b *fakeBatch) Trail(*stages.Trail)                          {}
func (b *fakeBatch) Merge(key, value []byte)                      { b.add(key, value, true) }
func (b *fakeBatch) add(key, value []byte, merge bool) {
	b.keys, b.values, b.merge = append(b.keys, string(key)), append(b.values, string(value)), append(b.merge, merge)
	b.bytes += len(value)
}
func (b *fakeBatch) Len() int   { return len(b.keys) }
func (b *fakeBatch) Bytes() int { return b.bytes }
func (b *fakeBatch) Reset()     { *b = fakeBatch{} }

func (f *fakeEngine) NewBatch() store.Batch { return &fakeBatch{} }

func (f *fakeEngine) Submit(b store.Batch) (ikey.Seq, error) {
	if err := f.enter(); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	batch := b.(*fakeBatch)
	for i, key := range batch.keys {
		value := []byte(batch.values[i])
		if old, ok := f.data[key]; ok && batch.merge[i] {
			joined, err := causal.JoinEncoded(nil, value, old)
			if err != nil {
				return 0, err
			}
			value = joined
		}
		f.data[key] = value
		f.seq++
	}
	return f.seq, nil
}

func (f *fakeEngine) WaitDurable(ikey.Seq) error {
	f.mu.Lock()
	wait := f.wait
	f.mu.Unlock()
	if wait != nil {
		return wait()
	}
	return f.enter()
}

func (f *fakeEngine) Get(key, dst []byte) ([]byte, bool, error) {
	v, ok, _, err := f.GetLatest(key, dst)
	return v, ok, err
}

func (f *fakeEngine) GetLatest(key, dst []byte) ([]byte, bool, ikey.Seq, error) {
	if err := f.enter(); err != nil {
		return nil, false, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.data[string(key)]
	return append(dst[:0], v...), ok, f.seq, nil
}

func (f *fakeEngine) DeleteSpans(spans []store.KeySpan) error {
	if err := f.enter(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range spans {
		maps.DeleteFunc(f.data, func(k string, _ []byte) bool { return k >= string(s.Start) && k < string(s.End) })
	}
	return nil
}

func (f *fakeEngine) ApproximateBytes(_, _ []byte) (uint64, error) { return 0, f.enter() }

func (f *fakeEngine) VisibleSeq() ikey.Seq { f.mu.Lock(); defer f.mu.Unlock(); return f.seq }

func (f *fakeEngine) NewSnapshot() store.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &fakeSnapshot{data: maps.Clone(f.data), seq: f.seq}
}

// Tail: this fake keeps no changes.
func (f *fakeEngine) Tail(ikey.Seq) (store.Tail, error) { return nil, store.ErrOutOfRange }

func (f *fakeEngine) FeedRange() (oldest, newest ikey.Seq, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seq + 1, f.seq, f.fail
}

func (f *fakeEngine) NewIter(lower, upper []byte) (store.Iter, error) {
	if err := f.enter(); err != nil {
		return nil, err
	}
	return f.NewSnapshot().NewIter(lower, upper)
}

type fakeSnapshot struct {
	data map[string][]byte
	seq  ikey.Seq
}

func (s *fakeSnapshot) Close() error  { return nil }
func (s *fakeSnapshot) Seq() ikey.Seq { return s.seq }

func (s *fakeSnapshot) NewIter(lower, upper []byte) (store.Iter, error) {
	it := &fakeIter{data: s.data, at: -1}
	for _, k := range slices.Sorted(maps.Keys(s.data)) {
		if k >= string(lower) && (upper == nil || k < string(upper)) {
			it.keys = append(it.keys, k)
		}
	}
	return it, nil
}

type fakeIter struct {
	data map[string][]byte
	keys []string
	at   int
}

func (it *fakeIter) First() bool   { it.at = 0; return it.at < len(it.keys) }
func (it *fakeIter) Next() bool    { it.at++; return it.at < len(it.keys) }
func (it *fakeIter) Key() []byte   { return []byte(it.keys[it.at]) }
func (it *fakeIter) Value() []byte { return it.data[it.keys[it.at]] }
func (it *fakeIter) Err() error    { return nil }
func (it *fakeIter) Close() error  { return nil }

func (f *fakeEngine) Flush(context.Context) error { return f.enter() }

func (f *fakeEngine) Compact(ctx context.Context, start, end []byte, progress func(engine.CompactProgress)) error {
	f.set(func(f *fakeEngine) { f.ranges = append(f.ranges, [2][]byte{start, end}) })
	if f.work != nil {
		return f.work(ctx, func(done, _ int64) { progress(engine.CompactProgress{Bytes: uint64(done)}) })
	}
	return f.enter()
}

func (f *fakeEngine) Cleanup(ctx context.Context, _ []compact.HashCut, _ int64, progress func(engine.CleanupProgress)) error {
	if f.work != nil {
		return f.work(ctx, func(done, _ int64) { progress(engine.CleanupProgress{Dropped: uint64(done)}) })
	}
	return f.enter()
}

func (f *fakeEngine) Check(ctx context.Context, o engine.CheckOptions) ([]engine.Finding, error) {
	if f.work != nil {
		return f.found, f.work(ctx, o.Progress)
	}
	return f.found, f.enter()
}

func (f *fakeEngine) Tables() ([]engine.TableInfo, error) { return f.tables, f.enter() }
func (f *fakeEngine) Metrics() engine.Metrics             { return f.numbers }

// fakeSnapshots remembers names.
type fakeSnapshots struct {
	names []string
	fail  error
}

func (s *fakeSnapshots) Create(_ context.Context, name string) (Snapshot, error) {
	if err := CheckSnapshotName(name); err != nil {
		return Snapshot{}, err
	}
	s.names = append(s.names, name)
	return Snapshot{Name: name, CreatedAt: 7, Sequence: 8, SizeBytes: 9, Path: "snapshots/" + name}, s.fail
}

func (s *fakeSnapshots) List() ([]Snapshot, error) {
	var out []Snapshot
	for _, n := range s.names {
		out = append(out, Snapshot{Name: n})
	}
	return out, s.fail
}

func (s *fakeSnapshots) Delete(name string) error {
	if err := CheckSnapshotName(name); err != nil {
		return err
	}
	return s.fail
}
