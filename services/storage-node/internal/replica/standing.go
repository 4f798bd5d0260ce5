package replica

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/merkle"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	// pullEvery is how often standing trees read what has changed: they hold that much of the log.
	pullEvery = 10 * time.Second
	// maxIdle is how long a standing tree waits for the next request, maxAge after how long everything is hashed
	// again: a record that is lost without a change is missed then.
	maxIdle, maxAge = 3 * time.Hour, 24 * time.Hour
	// maxStanding and maxStandingLeaves bound what is kept of standing trees: 64 MiB.
	maxStanding, maxStandingLeaves = 8, 2 << 20
)

// standing is a tree that is kept up: leaves in which something has changed are hashed again, and if there are
// none nothing is read at all. No snapshot is held: it would keep merges from collecting anything. It is used
// under mu.
type standing struct {
	mu sync.Mutex
	*tree
	of   []content  // by leaf
	tail store.Tail // behind the tree's snapshot; nil: it is closed
	// dirty are leaves with the sequence of their newest change, as far as the tail was read.
	dirty map[int]ikey.Seq
	// read is when everything was read, asked when the tree was asked for.
	read, asked time.Time
	// dead: it was forgotten; whoever has mu next closes it.
	dead atomic.Bool
}

// content is what a leaf has.
type content struct {
	records uint64
	// ages is the time that a cut must pass before something of it counts for less; for ever if nothing does.
	ages uint64
}

var nothing = content{ages: math.MaxUint64}

func (c *content) add(d aging) {
	if c.records++; d.ages {
		c.ages = min(c.ages, d.at)
	}
}

// standings are those of a node. They do not know of records that go without a change: forget them then.
type standings struct {
	r *Replica

	mu     sync.Mutex
	all    map[string]*standing // guarded by mu, by selection and leaves
	epoch  uint64               // guarded by mu: of the last forget
	closed bool                 // guarded by mu
	timer  *time.Timer          // guarded by mu; nil: there are none
}

// ForgetStanding has the next request for a tree read everything: records may go without a change in the log.
func (r *Replica) ForgetStanding() { r.standing.forget() }

// Close ends what a Replica does by itself. The engine is closed afterwards.
func (r *Replica) Close() {
	s := &r.standing
	s.mu.Lock()
	s.closed = true
	all := slices.Collect(maps.Values(s.all))
	s.mu.Unlock()
	s.forget()
	for _, x := range all { // one that is just being used
		x.mu.Lock()
		x.close()
		x.mu.Unlock()
	}
}

func (s *standings) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	for name, x := range s.all {
		s.dropLocked(name, x)
	}
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// dropLocked forgets a tree. Who is using it closes it.
func (s *standings) dropLocked(name string, x *standing) {
	delete(s.all, name)
	x.dead.Store(true)
	if x.mu.TryLock() {
		x.close()
		x.mu.Unlock()
	}
}

// digest returns the tree of a request, renewed from a standing one if there is one that can be.
func (s *standings) digest(ctx context.Context, want *tree) (_ *tree, renewed bool, err error) {
	name := fmt.Sprintf("%#v %d", want.what, want.Shape().LeavesPerRange())
	s.mu.Lock()
	x, epoch := s.all[name], s.epoch
	s.mu.Unlock()
	if x != nil {
		x.mu.Lock()
		ok, err := x.renew(ctx, s.r, want.cut)
		got := x.tree
		if !ok {
			x.close()
		}
		s.leave(name, x)
		if ok {
			return got, true, nil
		}
		if ctx.Err() != nil {
			return nil, false, cmp.Or(err, ctx.Err())
		}
	}
	x, err = s.stand(ctx, want)
	if err != nil || x == nil {
		return want, false, err
	}
	s.keep(name, x, epoch)
	return want, false, nil
}

// leave unlocks a tree, which is forgotten if it was closed.
func (s *standings) leave(name string, x *standing) {
	gone := x.tail == nil
	x.mu.Unlock()
	if x.dead.Load() { // whoever forgot it may have found it locked
		x.mu.Lock()
		x.close()
		x.mu.Unlock()
	}
	if gone {
		s.mu.Lock()
		if s.all[name] == x {
			delete(s.all, name)
		}
		s.mu.Unlock()
	}
}

// keep remembers a tree unless it was to be forgotten since the epoch, and forgets others for it.
func (s *standings) keep(name string, x *standing, epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.epoch != epoch {
		x.close()
		return
	}
	if s.all == nil {
		s.all = map[string]*standing{}
	}
	if old := s.all[name]; old != nil {
		s.dropLocked(name, old)
	}
	s.all[name] = x
	for {
		leaves, first := 0, name
		for n, o := range s.all {
			if leaves += o.leaves; n != name && (first == name || o.asked.Before(s.all[first].asked)) {
				first = n
			}
		}
		if len(s.all) <= maxStanding && leaves <= maxStandingLeaves || first == name {
			break
		}
		s.dropLocked(first, s.all[first])
	}
	if s.timer == nil {
		s.timer = time.AfterFunc(pullEvery, s.pull)
	}
}

// pull has all trees read what has changed, and forgets those that nobody asks for.
func (s *standings) pull() {
	s.mu.Lock()
	all, now := maps.Clone(s.all), s.r.o.Now()
	s.mu.Unlock()
	for name, x := range all {
		if !x.mu.TryLock() {
			continue // it is being renewed
		}
		if x.tail != nil && (now.Sub(x.asked) > maxIdle || x.drain(context.Background(), s.r.e.VisibleSeq()) != nil) {
			x.close()
		}
		s.leave(name, x)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) == 0 || s.timer == nil {
		s.timer = nil
		return
	}
	s.timer.Reset(pullEvery)
}

func (s *standings) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// stand fills a tree, and returns what keeps it up; nil without an error when it can't be kept up.
func (s *standings) stand(ctx context.Context, t *tree) (*standing, error) {
	now := s.r.o.Now()
	x := &standing{tree: t, of: make([]content, t.leaves), dirty: map[int]ikey.Seq{}, read: now, asked: now}
	for i := range x.of {
		x.of[i] = nothing
	}
	snap := s.r.e.NewSnapshot()
	var tailErr error
	x.tail, tailErr = s.r.e.Tail(snap.Seq() + 1)
	err := s.r.fill(ctx, snap, t, func(leaf int, d aging) { x.of[leaf].add(d) }, t.Shape().Locate)
	if err = closed(snap, err); err != nil || tailErr != nil {
		if tailErr == nil {
			x.close()
		}
		return nil, err // without a tail it is a tree all the same
	}
	return x, nil
}

// close lets go of the log. It is idempotent.
func (x *standing) close() {
	if x.tail != nil {
		x.tail.Close() //nolint:errcheck // a log that was read from
		x.tail = nil
	}
}

// errSpoiled says that to read everything costs no more.
var errSpoiled = errors.New("too much has changed")

// drain reads the tail up to a durable sequence.
func (x *standing) drain(ctx context.Context, to ikey.Seq) error {
	look, cancel := context.WithCancel(context.Background())
	cancel() // what is there already
	var tokens tokens
	for n := 1; ; n++ {
		if n%recordsPerLook == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		c, err := x.tail.Next(look)
		if errors.Is(err, context.Canceled) {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("digest: %w", err)
		}
		if err := x.note(&c, &tokens); err != nil {
			return err
		}
		if c.Seq > to {
			return nil
		}
	}
}

// note remembers that a key has changed.
func (x *standing) note(c *store.TailChange, tokens *tokens) error {
	if c.Kind == ikey.KindRangeDelete {
		if slices.ContainsFunc(x.selected.spans, func(s store.KeySpan) bool {
			return (s.End == nil || bytes.Compare(c.Key, s.End) < 0) && bytes.Compare(s.Start, c.Value) < 0
		}) {
			return errSpoiled
		}
		return nil
	}
	if !x.selected.has(c.Key) {
		return nil
	}
	token, err := tokens.of(c.Key)
	if err != nil {
		return corrupted(c.Key, err)
	}
	at, leaf, ok := x.Shape().Locate(token)
	if !ok {
		return nil
	}
	x.dirty[at*x.Shape().LeavesPerRange()+leaf] = c.Seq
	return x.spoiled()
}

func (x *standing) spoiled() error {
	if len(x.dirty) > x.leaves/2 {
		return errSpoiled
	}
	return nil
}

// renew brings the tree up to a snapshot of now. Without ok the tree is what it was, and of no use any more.
func (x *standing) renew(ctx context.Context, r *Replica, cut uint64) (ok bool, err error) {
	now := r.o.Now()
	if x.tail == nil || x.dead.Load() || cut < x.cut || now.Sub(x.read) > maxAge {
		return false, nil
	}
	snap := r.e.NewSnapshot()
	next := &tree{Tree: x.Clone(), what: x.what, selected: x.selected, cut: cut, sequence: uint64(snap.Seq()), records: x.records, leaves: x.leaves}
	if err := closed(snap, x.again(ctx, r, snap, next)); err != nil {
		return false, err
	}
	maps.DeleteFunc(x.dirty, func(_ int, seq ikey.Seq) bool { return seq <= snap.Seq() })
	x.tree, x.asked = next, now
	r.counts.renewedTrees.Add(1)
	return true, nil
}

// again hashes the leaves of a tree that are dirty.
func (x *standing) again(ctx context.Context, r *Replica, snap store.Snapshot, next *tree) error {
	if err := r.e.WaitDurable(snap.Seq()); err != nil {
		return fmt.Errorf("digest: %w", err)
	}
	if err := x.drain(ctx, snap.Seq()); err != nil {
		return err
	}
	for leaf := range x.of {
		if _, known := x.dirty[leaf]; !known && x.of[leaf].ages < next.cut {
			x.dirty[leaf] = 0
		}
	}
	if err := x.spoiled(); err != nil || len(x.dirty) == 0 {
		return err
	}
	per := next.Shape().LeavesPerRange()
	for leaf := range x.dirty {
		next.records -= x.of[leaf].records
		next.SetLeaf(leaf/per, leaf%per, merkle.Digest{})
		x.of[leaf] = nothing
	}
	return r.fill(ctx, snap, next, func(leaf int, d aging) { x.of[leaf].add(d) }, func(token uint64) (int, int, bool) {
		at, leaf, ok := next.Shape().Locate(token)
		if ok {
			_, ok = x.dirty[at*per+leaf]
		}
		return at, leaf, ok
	})
}
