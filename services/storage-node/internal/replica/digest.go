package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/merkle"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	// maxTrees, treeLife and maxKeptLeaves bound what is kept of trees: 64 MiB.
	maxTrees      = 8
	treeLife      = 5 * time.Minute
	maxKeptLeaves = 4 << 20
	// maxToldLeaves bounds one answer: 4 MiB.
	maxToldLeaves = 1 << 18
	// maxAskedLeaves bounds one request for the digests of keys.
	maxAskedLeaves = 1 << 16
)

// DigestRequest asks for the tree of a selection, of which the hash ranges are the ranges of the tree.
type DigestRequest struct {
	What           Selection
	LeavesPerRange int
	// CollectedBefore leaves out what is collectable at that timestamp; 0: nothing.
	CollectedBefore uint64
	// Renew may bring the tree of an earlier request like this one up to date by what has changed since,
	// instead of reading everything.
	Renew bool
}

// Digested is what a Digest came to.
type Digested struct {
	Tree     uint64
	Sequence uint64 // of the snapshot
	Roots    []merkle.Digest
	Records  uint64 // that count
	// Renewed: it is an earlier tree with what has changed since.
	Renewed bool
}

// tree is one that is kept. It is immutable but for used.
type tree struct {
	*merkle.Tree
	what     Selection
	selected *selected
	cut      uint64
	sequence uint64
	records  uint64
	leaves   int
	used     time.Time // guarded by trees.mu
}

// trees are those that are kept. The zero value is ready to be used.
type trees struct {
	mu   sync.Mutex
	last uint64
	all  map[uint64]*tree
}

func (t *trees) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all)
}

// add keeps a tree and forgets others for it.
func (t *trees) add(x *tree, now time.Time) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[uint64]*tree{}
		t.last = uint64(now.UnixNano()) // so that a tree of before a restart is not taken for another one
	}
	t.expireLocked(now)
	t.last++
	x.used = now
	t.all[t.last] = x
	for {
		leaves, oldest := 0, t.last
		for id, other := range t.all {
			leaves += other.leaves
			if other.used.Before(t.all[oldest].used) || other.used.Equal(t.all[oldest].used) && id < oldest {
				oldest = id
			}
		}
		if len(t.all) <= maxTrees && leaves <= maxKeptLeaves || oldest == t.last {
			return t.last
		}
		delete(t.all, oldest)
	}
}

func (t *trees) expireLocked(now time.Time) {
	for id, x := range t.all {
		if now.Sub(x.used) > treeLife {
			delete(t.all, id)
		}
	}
}

func (t *trees) get(id uint64, now time.Time) *tree {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expireLocked(now)
	x := t.all[id]
	if x != nil {
		x.used = now
	}
	return x
}

func (r *Replica) tree(id uint64) (*tree, error) {
	x := r.trees.get(id, r.o.Now())
	if x == nil {
		return nil, refuse(store.ReasonTreeUnknown, "tree %d is not kept (any more): digest again", id)
	}
	return x, nil
}

// Tree returns the ranges of a tree that is kept, and the sequence of its snapshot. Ranges of which the tree
// has not every record that can be read now, because it is of one tenant or leaves out what is yet to
// expire, are none.
func (r *Replica) Tree(id uint64) (ranges []ring.HashRange, sequence uint64, ok bool) {
	x := r.trees.get(id, r.o.Now())
	if x == nil {
		return nil, 0, false
	}
	if w := x.what; w.Tenant != "" || w.Start != "" || w.End != "" || len(w.Keys) > 0 || x.cut > causal.Timestamp(r.o.Now()) {
		return nil, x.sequence, true
	}
	return x.Shape().Ranges(), x.sequence, true
}

// Digest hashes the records of a selection in one durable snapshot, and keeps the tree.
func (r *Replica) Digest(ctx context.Context, q DigestRequest) (out Digested, err error) {
	what, err := q.What.check()
	if err != nil {
		return out, err
	}
	shape, err := merkle.NewShape(q.What.HashRanges, q.LeavesPerRange)
	if err != nil {
		return out, refuse(store.ReasonRange, "%v", err)
	}
	// Before the memory of the tree is taken: more of them wait than are in work.
	release, err := r.scan(ctx)
	if err != nil {
		return out, err
	}
	defer release()
	x := &tree{Tree: merkle.NewTree(shape), what: q.What, selected: what, cut: q.CollectedBefore, leaves: len(shape.Ranges()) * shape.LeavesPerRange()}
	x.what.HashRanges = shape.Ranges()
	if q.Renew {
		x, out.Renewed, err = r.standing.digest(ctx, x)
	} else {
		err = r.read(ctx, x)
	}
	if err != nil {
		return Digested{}, err
	}
	out.Sequence, out.Roots, out.Records = x.sequence, x.Roots(), x.records
	out.Tree = r.trees.add(x, r.o.Now())
	return out, nil
}

// read fills a tree from a snapshot of now.
func (r *Replica) read(ctx context.Context, x *tree) error {
	snap := r.e.NewSnapshot()
	return closed(snap, r.fill(ctx, snap, x, nil, x.Shape().Locate))
}

// closed closes a snapshot after what had the error.
func closed(snap store.Snapshot, err error) error {
	if cerr := snap.Close(); err == nil && cerr != nil {
		return fmt.Errorf("digest: %w", cerr)
	}
	return err
}

// fill adds the records of a snapshot that locate knows to a tree, and notes each, if note is not nil.
func (r *Replica) fill(ctx context.Context, snap store.Snapshot, x *tree, note func(leaf int, d aging), locate func(uint64) (int, int, bool)) error {
	x.sequence = uint64(snap.Seq())
	return r.hash(ctx, snap, x, func(token uint64, _ []byte, d aging) error {
		x.Add(token, d.digest)
		x.records++
		if note != nil {
			at, leaf, _ := x.Shape().Locate(token)
			note(at*x.Shape().LeavesPerRange()+leaf, d)
		}
		return nil
	}, locate)
}

// scan waits until one more scan may run.
func (r *Replica) scan(ctx context.Context) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case r.scans <- struct{}{}:
		return func() { <-r.scans }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hash scans what a tree is of in a snapshot, which it makes durable before, and calls take for the records
// that locate knows.
func (r *Replica) hash(ctx context.Context, snap store.Snapshot, x *tree, take func(token uint64, key []byte, d aging) error, locate func(uint64) (int, int, bool)) error {
	if err := r.e.WaitDurable(snap.Seq()); err != nil {
		return fmt.Errorf("digest: %w", err)
	}
	var tokens tokens
	var left []byte
	read := 0 // and not paid for
	pay := func() error {
		n := read
		read = 0
		return r.pace.take(ctx, r.o.Now(), n)
	}
	return walk(ctx, snap, x.selected.spans, func(key, value []byte) error {
		if read += len(key) + len(value); read >= bytesPerPace {
			if err := pay(); err != nil {
				return err
			}
		}
		token, err := tokens.of(key)
		if err != nil {
			return corrupted(key, err)
		}
		if _, _, ok := locate(token); !ok {
			return nil
		}
		d, counts, err := agingOf(key, value, x.cut, &left)
		if err != nil || !counts {
			return err
		}
		r.counts.digestedRecords.Add(1)
		r.counts.digestedBytes.Add(uint64(len(key) + len(value)))
		return take(token, key, d)
	}, func(int) error { return pay() })
}

// aging is the digest of a record at a cut. If it ages, it is another one at cuts behind at.
type aging struct {
	digest merkle.Digest
	at     uint64
	ages   bool
}

// digestOf returns the digest of a record; the zero one when nothing is left of it at the cut.
func digestOf(key, value []byte, cut uint64, left *[]byte) (merkle.Digest, error) {
	d, _, err := agingOf(key, value, cut, left)
	return d.digest, err
}

// agingOf returns the digest of a record; counts is false when nothing is left of it at the cut. left is
// room that is used again.
func agingOf(key, value []byte, cut uint64, left *[]byte) (d aging, counts bool, err error) {
	at, collectable := causal.Inspect(value)
	if !collectable || at >= cut {
		// Inspect takes what is no record for one that has nothing to collect.
		if _, err := causal.Summarize(value, 0); err != nil {
			return d, false, corrupted(key, err)
		}
		return aging{merkle.Of(key, value), at, collectable}, true, nil
	}
	rest, _, some, err := causal.CollectEncoded((*left)[:0], value, cut)
	if err != nil {
		return d, false, corrupted(key, err)
	}
	*left = rest
	if !some {
		return d, false, nil
	}
	at, collectable = causal.Inspect(rest)
	return aging{merkle.Of(key, rest), at, collectable}, true, nil
}

// Leaves returns the leaves of ranges of a tree, one after the other.
func (r *Replica) Leaves(id uint64, ranges []uint32) ([]merkle.Digest, error) {
	x, err := r.tree(id)
	if err != nil {
		return nil, err
	}
	per := x.Shape().LeavesPerRange()
	if len(ranges)*per > maxToldLeaves {
		return nil, refuse(store.ReasonRange, "%d leaves are asked for, at most %d allowed", len(ranges)*per, maxToldLeaves)
	}
	out := make([]merkle.Digest, 0, len(ranges)*per)
	for _, i := range ranges {
		if int(i) >= len(x.Shape().Ranges()) {
			return nil, refuse(store.ReasonRange, "the tree has %d ranges and none of index %d", len(x.Shape().Ranges()), i)
		}
		out = append(out, x.Leaves(int(i))...)
	}
	return out, nil
}

// LeafID names a leaf of a tree.
type LeafID struct{ Range, Leaf uint32 }

// KeyDigest is the digest of a key; the zero one is "nothing that counts".
type KeyDigest struct {
	Key    []byte
	Digest merkle.Digest
}

// KeyDigests calls send with the digests of the keys in leaves of a tree, in key order, as they are now:
// the keys of the tree's snapshot, or newer. What it hands out is valid until send returns.
func (r *Replica) KeyDigests(ctx context.Context, id uint64, leaves []LeafID, send func([]KeyDigest) error) error {
	x, err := r.tree(id)
	if err != nil {
		return err
	}
	if len(leaves) > maxAskedLeaves {
		return refuse(store.ReasonRange, "%d leaves, at most %d allowed", len(leaves), maxAskedLeaves)
	}
	wanted := map[LeafID]bool{}
	for _, l := range leaves {
		if int(l.Range) >= len(x.Shape().Ranges()) || int(l.Leaf) >= x.Shape().LeavesPerRange() {
			return refuse(store.ReasonRange, "the tree has no leaf %d of range %d", l.Leaf, l.Range)
		}
		wanted[l] = true
	}
	release, err := r.scan(ctx)
	if err != nil {
		return err
	}
	defer release()
	k := keyDigests{send: send}
	snap := r.e.NewSnapshot()
	err = closed(snap, r.hash(ctx, snap, x, func(_ uint64, key []byte, d aging) error { return k.add(key, d.digest) }, func(token uint64) (int, int, bool) {
		at, leaf, ok := x.Shape().Locate(token)
		return at, leaf, ok && wanted[LeafID{uint32(at), uint32(leaf)}]
	}))
	if err != nil || len(k.all) == 0 {
		return err
	}
	return send(k.all)
}

// keyDigests collects those of one message.
type keyDigests struct {
	send func([]KeyDigest) error
	all  []KeyDigest
	buf  []byte
	size int
}

func (k *keyDigests) add(key []byte, d merkle.Digest) error {
	if k.size += len(key) + merkle.DigestBytes + recordOverhead; k.size > chunkBytes {
		if err := k.send(k.all); err != nil {
			return err
		}
		k.all, k.buf, k.size = k.all[:0], k.buf[:0], len(key)+merkle.DigestBytes+recordOverhead
	}
	if k.buf == nil {
		k.buf = make([]byte, 0, chunkBytes) // it never grows: the keys alias it
	}
	start := len(k.buf)
	k.buf = append(k.buf, key...)
	k.all = append(k.all, KeyDigest{Key: k.buf[start:len(k.buf):len(k.buf)], Digest: d})
	return nil
}

// Limits of lists of keys.
const (
	maxComparedKeys = 1000
	maxFetchedKeys  = 10_000
)

func (r *Replica) checkKeys(keys [][]byte, most int) error {
	if len(keys) > most {
		return refuse(store.ReasonRange, "%d keys, at most %d allowed", len(keys), most)
	}
	c := checker{clock: r.clock}
	for _, k := range keys {
		if err := c.checkKey(k); err != nil {
			return refuse(store.ReasonKey, "%s", messageOf(err))
		}
	}
	return nil
}

func messageOf(err error) string {
	var refused *store.Error
	if errors.As(err, &refused) {
		return refused.Message
	}
	return err.Error()
}

// CompareKeys returns the digests of keys as they are now, in their order.
func (r *Replica) CompareKeys(ctx context.Context, keys [][]byte, cut uint64) ([]merkle.Digest, error) {
	if err := r.checkKeys(keys, maxComparedKeys); err != nil {
		return nil, err
	}
	out := make([]merkle.Digest, len(keys))
	var value, left []byte
	for i, key := range keys {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		v, found, err := r.e.Get(key, value[:0])
		if err != nil {
			return nil, fmt.Errorf("compare: %w", err)
		}
		if !found {
			continue
		}
		value = v
		if out[i], err = digestOf(key, v, cut, &left); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Fetch calls send with the records of keys as they are now, in the order of keys, without those that do
// not exist. What it hands out is valid until send returns.
func (r *Replica) Fetch(ctx context.Context, keys [][]byte, send func([]Record) error) error {
	if err := r.checkKeys(keys, maxFetchedKeys); err != nil {
		return err
	}
	var p packer
	var value []byte
	flush := func() error {
		if len(p.ends) == 0 {
			return nil
		}
		records := p.records()
		if err := send(records); err != nil {
			return err
		}
		r.counts.fetchedRecords.Add(uint64(len(records)))
		r.counts.fetchedBytes.Add(uint64(p.size))
		p.reset()
		return nil
	}
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			return err
		}
		v, found, err := r.e.Get(key, value[:0])
		if err != nil {
			return fmt.Errorf("fetch: %w", err)
		}
		if !found {
			continue
		}
		value = v
		if _, err := causal.Summarize(v, 0); err != nil {
			return corrupted(key, err)
		}
		err = parts(key, v, func(part []byte) error {
			if !p.fits(key, part) {
				if err := flush(); err != nil {
					return err
				}
			}
			p.add(key, part)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return flush()
}
