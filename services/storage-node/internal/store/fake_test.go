package store

import (
	"bytes"
	"context"
	"errors"
	"sort"
	"sync"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// fakeEngine is a map of versions with a sequence. Tests hold its durability, crash it, and let
// others overtake a write.
type fakeEngine struct {
	mu      sync.Mutex
	keys    map[string][]version
	applied ikey.Seq
	durable ikey.Seq
	held    bool // nothing becomes durable until release
	eager   bool // readers see what is not durable
	moved   *sync.Cond
	failed  error
	submits int
	// beforeSubmit runs without the lock, before a batch is looked at.
	beforeSubmit func(n int)
	// beforeWait runs without the lock, before it is looked what is durable.
	beforeWait func()
	iters      int
	moves      int // of iterators and tails, all together
	onMove     func(n int)
	tails      int
	log        []TailChange
	oldest     ikey.Seq // what is in front of it is not kept
}

type version struct {
	seq   ikey.Seq
	kind  ikey.Kind
	value []byte
}

func newFake() *fakeEngine {
	f := &fakeEngine{keys: map[string][]version{}}
	f.moved = sync.NewCond(&f.mu)
	return f
}

// fakeChange is a change of a fakeBatch; readSeq counts for KindSet.
type fakeChange struct {
	kind    ikey.Kind
	key     string
	value   []byte
	readSeq ikey.Seq
}

type fakeBatch struct {
	changes []fakeChange
	bytes   int
}

func (b *fakeBatch) SetIfUnchanged(key, value []byte, readSeq ikey.Seq) {
	b.add(fakeChange{ikey.KindSet, string(key), bytes.Clone(value), readSeq})
}
func (b *fakeBatch) Urgent()             {}
func (b *fakeBatch) Removal()            {}
func (b *fakeBatch) Trail(*stages.Trail) {}
func (b *fakeBatch) Merge(key, value []byte) {
	b.add(fakeChange{kind: ikey.KindMerge, key: string(key), value: bytes.Clone(value)})
}
func (b *fakeBatch) add(c fakeChange) {
	b.changes = append(b.changes, c)
	b.bytes += changeOverhead + len(c.key) + len(c.value)
}
func (b *fakeBatch) Len() int   { return len(b.changes) }
func (b *fakeBatch) Bytes() int { return b.bytes }
func (b *fakeBatch) Reset()     { *b = fakeBatch{changes: b.changes[:0]} }

func (f *fakeEngine) NewBatch() Batch { return &fakeBatch{} }

func (f *fakeEngine) Submit(b Batch) (ikey.Seq, error) {
	f.mu.Lock()
	f.submits++
	n, hook := f.submits, f.beforeSubmit
	f.mu.Unlock()
	if hook != nil {
		hook(n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed != nil {
		return 0, f.failed
	}
	changes := b.(*fakeBatch).changes
	seen := map[string]bool{}
	for _, c := range changes {
		if vs := f.keys[c.key]; c.kind == ikey.KindSet && (seen[c.key] || len(vs) > 0 && vs[len(vs)-1].seq > c.readSeq) {
			return 0, ErrConflict
		}
		seen[c.key] = true
	}
	for _, c := range changes {
		f.applied++
		f.keys[c.key] = append(f.keys[c.key], version{f.applied, c.kind, c.value})
		f.log = append(f.log, TailChange{f.applied, c.kind, []byte(c.key), c.value})
	}
	f.moved.Broadcast()
	if !f.held {
		f.durable = f.applied
	}
	return f.applied, nil
}

func (f *fakeEngine) WaitDurable(seq ikey.Seq) error {
	if f.beforeWait != nil {
		f.beforeWait()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.durable < seq && f.failed == nil {
		f.moved.Wait()
	}
	if f.durable >= seq {
		return nil
	}
	return f.failed
}

// hold keeps what comes from becoming durable; release ends it.
func (f *fakeEngine) hold() { f.mu.Lock(); f.held = true; f.mu.Unlock() }

func (f *fakeEngine) release() {
	f.mu.Lock()
	f.held, f.durable = false, f.applied
	f.moved.Broadcast()
	f.mu.Unlock()
}

var errPowerCut = errors.New("power cut")

// crash fails everybody who waits and returns the engine as after recovery.
func (f *fakeEngine) crash() *fakeEngine {
	f.mu.Lock()
	defer f.mu.Unlock()
	after := newFake()
	after.applied, after.durable = f.durable, f.durable
	for _, c := range f.log {
		if c.Seq <= f.durable {
			after.log = append(after.log, c)
		}
	}
	for k, vs := range f.keys {
		for _, v := range vs {
			if v.seq <= f.durable {
				after.keys[k] = append(after.keys[k], v)
			}
		}
	}
	f.failed = errPowerCut
	f.moved.Broadcast()
	return after
}

func (f *fakeEngine) at(key string, seq ikey.Seq) (value []byte, found bool, err error) {
	for _, v := range f.keys[key] {
		if v.seq > seq {
			break
		}
		if v.kind == ikey.KindSet || !found {
			value, found = v.value, true
			continue
		}
		if value, err = causal.JoinEncoded(nil, v.value, value); err != nil {
			return nil, false, err
		}
	}
	return value, found, nil
}

func (f *fakeEngine) Get(key, dst []byte) ([]byte, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok, err := f.at(string(key), f.durable)
	return append(dst[:0], v...), ok, err
}

func (f *fakeEngine) GetLatest(key, dst []byte) ([]byte, bool, ikey.Seq, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok, err := f.at(string(key), f.applied)
	return append(dst[:0], v...), ok, f.applied, err
}

type fakeSnapshot struct {
	f   *fakeEngine
	seq ikey.Seq
}

func (f *fakeEngine) NewSnapshot() Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &fakeSnapshot{f, f.visible()}
}

func (s *fakeSnapshot) Close() error  { return nil }
func (s *fakeSnapshot) Seq() ikey.Seq { return s.seq }

func (s *fakeSnapshot) NewIter(lower, upper []byte) (Iter, error) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	it := &fakeIter{f: s.f}
	for k := range s.f.keys {
		if k >= string(lower) && k < string(upper) {
			v, ok, err := s.f.at(k, s.seq)
			if err != nil {
				return nil, err
			}
			if ok {
				it.entries = append(it.entries, [2]string{k, string(v)})
			}
		}
	}
	sort.Slice(it.entries, func(i, j int) bool { return it.entries[i][0] < it.entries[j][0] })
	s.f.iters++
	return it, nil
}

func (f *fakeEngine) NewIter(lower, upper []byte) (Iter, error) {
	return f.NewSnapshot().NewIter(lower, upper)
}

// fakeIter scrambles what it handed out before, as a real one may.
type fakeIter struct {
	f          *fakeEngine
	entries    [][2]string
	pos        int
	key, value []byte
}

func (it *fakeIter) First() bool { it.pos = -1; return it.Next() }
func (it *fakeIter) Next() bool {
	for i := range it.key {
		it.key[i] = 0xee
	}
	for i := range it.value {
		it.value[i] = 0xee
	}
	it.pos++
	it.f.mu.Lock()
	it.f.move()
	it.f.mu.Unlock()
	if it.pos >= len(it.entries) {
		return false
	}
	it.key, it.value = append(it.key[:0], it.entries[it.pos][0]...), append(it.value[:0], it.entries[it.pos][1]...)
	return true
}
func (it *fakeIter) Key() []byte   { return it.key }
func (it *fakeIter) Value() []byte { return it.value }
func (it *fakeIter) Err() error    { return nil }
func (it *fakeIter) Close() error {
	it.f.mu.Lock()
	defer it.f.mu.Unlock()
	it.f.iters--
	return nil
}

// visible is what readers see; mu is held.
func (f *fakeEngine) visible() ikey.Seq {
	if f.eager {
		return f.applied
	}
	return f.durable
}

// move counts; mu is held.
func (f *fakeEngine) move() {
	if f.moves++; f.onMove != nil {
		f.onMove(f.moves)
	}
}

// record writes a change to the log only, for what the store never writes.
func (f *fakeEngine) record(cs ...TailChange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, cs...)
	f.applied = cs[len(cs)-1].Seq
	if !f.held {
		f.durable = f.applied
	}
	f.moved.Broadcast()
}

// forget drops the changes below a sequence.
func (f *fakeEngine) forget(oldest ikey.Seq) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.oldest = oldest
	f.moved.Broadcast()
}

func (f *fakeEngine) FeedRange() (oldest, newest ikey.Seq, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return max(f.oldest, 1), f.visible(), nil
}

func (f *fakeEngine) Tail(from ikey.Seq) (Tail, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if from < f.oldest {
		return nil, ErrOutOfRange
	}
	t := &fakeTail{f: f}
	for t.pos < len(f.log) && f.log[t.pos].Seq < from {
		t.pos++
	}
	f.tails++
	return t, nil
}

// fakeTail scrambles what it handed out before, as a real one may.
type fakeTail struct {
	f          *fakeEngine
	pos        int
	key, value []byte
}

func (t *fakeTail) Next(ctx context.Context) (TailChange, error) {
	for _, b := range [][]byte{t.key, t.value} {
		for i := range b {
			b[i] = 0xee
		}
	}
	f := t.f
	stop := context.AfterFunc(ctx, func() {
		f.mu.Lock()
		f.moved.Broadcast()
		f.mu.Unlock()
	})
	defer stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		if t.pos < len(f.log) && f.log[t.pos].Seq < f.oldest {
			return TailChange{}, ErrOutOfRange
		}
		if t.pos < len(f.log) && f.log[t.pos].Seq <= f.visible() {
			c := f.log[t.pos]
			t.pos++
			f.move()
			t.key, t.value = append(t.key[:0], c.Key...), append(t.value[:0], c.Value...)
			return TailChange{c.Seq, c.Kind, t.key, t.value}, nil
		}
		if err := ctx.Err(); err != nil {
			return TailChange{}, err
		}
		f.moved.Wait()
	}
}

func (t *fakeTail) Close() error {
	t.f.mu.Lock()
	defer t.f.mu.Unlock()
	t.f.tails--
	return nil
}
