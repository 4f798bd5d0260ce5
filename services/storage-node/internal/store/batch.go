package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// OpKind says what an operation of a batch does.
type OpKind uint8

// The operations of a batch.
const (
	Put OpKind = iota + 1
	Delete
	Repair
)

// Op is one item of a batch; which fields count depends on Kind as in the single calls.
type Op struct {
	Kind  OpKind
	Key   string
	Value []byte
	Causality
	TTL       int64
	Condition *Condition // nil: none
	Siblings  []causal.Sibling
}

// OpResult is the answer to one Op. A repair has no outcome.
type OpResult struct {
	WriteResult
	Err error
}

// BatchWriteRequest applies operations together.
type BatchWriteRequest struct {
	Tenant string
	Ops    []Op
	// Atomic: one refused operation refuses all, and a crash keeps all of them or none.
	Atomic bool
	// OmitClocks leaves clocks and sibling counts out of the results.
	OmitClocks bool
}

// BatchWrite applies up to MaxBatchOps operations and returns when all are durable. Operations on
// one key are applied in their order, and each sees the ones before it. There is one result per
// operation; an error of the call means that nothing is acknowledged.
func (s *Store) BatchWrite(ctx context.Context, r BatchWriteRequest) ([]OpResult, error) {
	results := make([]OpResult, min(len(r.Ops), MaxBatchOps))
	pending, err := s.Submit(ctx, r, results)
	if werr := s.wait(ctx, pending); werr != nil {
		err = werr
	}
	if err != nil {
		return nil, err
	}
	return results, nil
}

// Submit is the first half of BatchWrite: it applies the operations and fills results, which has
// one zero element for each. Neither results nor the error must be told to anyone before
// Pending.Wait returned nil: a refusal rests on the state of the key as much as an acknowledgement.
// Operations of a later Submit are applied after those of an earlier one that has returned.
func (s *Store) Submit(ctx context.Context, r BatchWriteRequest, results []OpResult) (Pending, error) {
	if len(r.Ops) > MaxBatchOps {
		return Pending{}, refuse(ReasonBatch, "batch has %d operations, at most %d allowed", len(r.Ops), MaxBatchOps)
	}
	size := 0
	for i := range r.Ops {
		size += opBytes(&r.Ops[i])
	}
	if size > MaxBatchBytes {
		return Pending{}, refuse(ReasonBatch, "batch has %d bytes, at most %d allowed", size, MaxBatchBytes)
	}
	return s.submit(ctx, r.Tenant, r.Ops, results, mode{atomic: r.Atomic, omitClocks: r.OmitClocks})
}

// Pending are writes that were applied and may be told of once they are durable. It is a value: it
// needs no release.
type Pending struct {
	s   *Store
	seq ikey.Seq // 0: there is nothing to wait for
}

// Done reports whether there is nothing to wait for.
func (p Pending) Done() bool { return p.seq == 0 }

// Later returns the one of both, of one store, that is durable last: then the other one is too.
func (p Pending) Later(o Pending) Pending {
	if o.seq > p.seq {
		return o
	}
	return p
}

// Wait returns nil when the results that Submit gave are true whatever happens. On an error it is
// not known whether they ever will be. It is not given up with any context: the writes can't be
// taken back, and the next sync ends it.
func (p Pending) Wait() error {
	if p.seq == 0 {
		return nil
	}
	if err := p.s.e.WaitDurable(p.seq); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// mode says how a call wants its operations applied and answered.
type mode struct {
	atomic, omitClocks bool
	once               *once // the idempotency key of a single operation, or nil
	removal            bool  // nothing but tombstones: a full disk takes it
	// system: the tenant is one of the node itself, and the answer waits for the disk in any case.
	system bool
	// reserve: a full disk takes it as if it were a removal.
	reserve bool
	trail   *stages.Trail // nil: nobody looks
}

// lap ends a stage, if somebody looks.
func (m *mode) lap(s *Store, stage stages.Stage) {
	if m.trail != nil {
		m.trail.Lap(stage, s.now())
	}
}

// item is an operation on its way: the engine key is scratch.keys[start:end].
type item struct {
	hash       uint64
	start, end int
	op         int
}

// scratch is the memory of one write, reused.
type scratch struct {
	keys  []byte
	items []item
	kept  []item // room for those of items that are served here
	read  []byte
	enc   []byte
	batch Batch
}

// maxScratchBytes is what a scratch may keep between writes: a large value must not stay for ever.
const maxScratchBytes = 1 << 20

func (s *Store) release(sc *scratch) {
	if sc.batch.Bytes() > maxScratchBytes {
		sc.batch = s.e.NewBatch()
	}
	sc.batch.Reset()
	if cap(sc.read) > maxScratchBytes {
		sc.read = nil
	}
	if cap(sc.enc) > maxScratchBytes {
		sc.enc = nil
	}
	s.scratch.Put(sc)
}

// maxAttempts bounds how often a write is decided anew because something overtook its reads. Only
// ingests and range deletes do, so even a second time is rare.
const maxAttempts = 16

// submit is every write of this package. An error means that nothing is acknowledged; with atomic
// any operation's error is the error of all. The error may be told when what it rests on is durable,
// which the Pending beside it waits for.
func (s *Store) submit(ctx context.Context, tenant string, ops []Op, results []OpResult, m mode) (Pending, error) {
	if !m.system {
		if err := s.TakesWrites(); err != nil {
			return Pending{}, err
		}
	}
	admission, err := s.admitWrite(tenant, ops, m.system)
	if err != nil {
		return Pending{}, err
	}
	defer admission.Release(0, 0)
	if err := ctx.Err(); err != nil {
		return Pending{}, err
	}
	sc := s.scratch.Get().(*scratch)
	defer s.release(sc)
	if err := s.prepare(sc, tenant, ops, results, m); err != nil {
		return Pending{}, err
	}
	m.removal = m.reserve || removesOnly(ops)
	if m.once != nil {
		if err := m.once.prepare(s, tenant, &ops[0]); err != nil {
			return Pending{}, err
		}
	}
	m.trail = stages.From(ctx)
	m.lap(s, stages.Limits)
	durable, err := s.applyLocked(ctx, tenant, sc, ops, results, m)
	if err == nil && !m.system {
		s.counts.written(ops, results, m)
	}
	if s.opts.AckBeforeDurable && !m.system {
		durable = 0
	}
	return Pending{s: s, seq: durable}, err
}

// applyLocked is applyAll under the stripes of the keys, which are free again even after a panic: the
// server survives those.
func (s *Store) applyLocked(ctx context.Context, tenant string, sc *scratch, ops []Op, results []OpResult, m mode) (ikey.Seq, error) {
	locked := sc.items
	if m.once != nil {
		locked = m.once.stripes(sc.items[0])
	}
	s.stripes.lock(locked)
	defer s.stripes.unlock(locked)
	m.lap(s, stages.Lock)
	if err := s.owned(sc, tenant, ops, results, m); err != nil {
		return 0, err
	}
	return s.applyAll(ctx, sc, ops, results, m)
}

// removesOnly reports whether operations store nothing but tombstones.
func removesOnly(ops []Op) bool {
	for i := range ops {
		switch {
		case ops[i].Kind == Delete:
		case ops[i].Kind != Repair:
			return false
		case slices.ContainsFunc(ops[i].Siblings, func(s causal.Sibling) bool { return !s.Tombstone }):
			return false
		}
	}
	return true
}

// prepare validates the operations and sorts the valid ones by (hash, key, position).
func (s *Store) prepare(sc *scratch, tenant string, ops []Op, results []OpResult, m mode) error {
	sc.keys, sc.items = sc.keys[:0], sc.items[:0]
	for i := range ops {
		if err := s.checkOp(&ops[i]); err != nil {
			if m.atomic {
				return inOp(err, i, len(ops))
			}
			results[i].Err = err
			continue
		}
		start := len(sc.keys)
		sc.keys = ikey.AppendEngineKey(sc.keys, tenant, ops[i].Key)
		sc.items = append(sc.items, item{
			hash: maphash.Bytes(s.seed, sc.keys[start:]), start: start, end: len(sc.keys), op: i,
		})
	}
	if len(sc.items) > 1 {
		slices.SortFunc(sc.items, func(a, b item) int {
			if a.hash != b.hash {
				return cmp.Compare(a.hash, b.hash)
			}
			if c := bytes.Compare(sc.keys[a.start:a.end], sc.keys[b.start:b.end]); c != 0 {
				return c
			}
			return a.op - b.op
		})
	}
	return nil
}

// inOp says which operation of an atomic batch an error is about.
func inOp(err error, i, n int) error {
	var e *Error
	if n == 1 || !errors.As(err, &e) {
		return err
	}
	named := *e
	named.Message = fmt.Sprintf("operation %d: %s", i, e.Message)
	return &named
}

// sameKey returns the end of the run of items that have the key of items[i].
func (sc *scratch) sameKey(i int) int {
	j := i + 1
	for j < len(sc.items) && sc.items[j].hash == sc.items[i].hash && bytes.Equal(sc.key(j), sc.key(i)) {
		j++
	}
	return j
}

func (sc *scratch) key(i int) []byte { return sc.keys[sc.items[i].start:sc.items[i].end] }

// applyAll decides and submits all items under their locks: in one engine batch if atomic, else in
// as few as the engine's limit allows. It returns the sequence that must be durable before the
// results, or the error, are true.
func (s *Store) applyAll(ctx context.Context, sc *scratch, ops []Op, results []OpResult, m mode) (ikey.Seq, error) {
	var durable ikey.Seq
	attempts := 0
	for pos := 0; pos < len(sc.items); {
		end, rests, err := s.fill(ctx, sc, pos, ops, results, m)
		m.lap(s, stages.Join)
		if err == nil && sc.batch.Len() > 0 {
			if m.system {
				sc.batch.Urgent()
			}
			if m.removal {
				sc.batch.Removal()
			}
			if m.trail != nil {
				sc.batch.Trail(m.trail)
			}
			rests, err = s.e.Submit(sc.batch) // its log entry stands behind every read
		}
		if errors.Is(err, ErrConflict) {
			if attempts++; attempts < maxAttempts {
				continue
			}
			err = errContention(attempts)
		}
		if err != nil && (m.atomic || pos == 0) {
			return rests, err // nothing was submitted: the error, and when to come back, is that of the call
		}
		if err != nil {
			failRest(sc.items[pos:], results, err)
			return durable, nil
		}
		durable, pos, attempts = max(durable, rests), end, 0
	}
	return durable, nil
}

// failRest gives an error to items that are not applied. That includes those that were refused by
// what the ones in front of them would have done to the key.
func failRest(items []item, results []OpResult, err error) {
	for _, it := range items {
		results[it.op] = OpResult{Err: err}
	}
}

// fill decides items from pos on and collects their changes in the batch, as many as it takes. It
// returns the end of what it took, and the newest sequence of a read that an unchanged key, or the
// error, rests on.
func (s *Store) fill(ctx context.Context, sc *scratch, pos int, ops []Op, results []OpResult, m mode) (end int, rests ikey.Seq, err error) {
	sc.batch.Reset()
	if m.once != nil {
		if found, err := m.once.recall(s, sc, &results[0]); found || err != nil {
			return len(sc.items), m.once.readSeq, err
		}
	}
	for n := 0; pos < len(sc.items); n++ {
		if n%64 == 0 {
			if err := ctx.Err(); err != nil {
				return pos, 0, err
			}
		}
		next := sc.sameKey(pos)
		d := decision{s: s, sc: sc, ops: ops, results: results, mode: m, items: sc.items[pos:next], key: sc.key(pos)}
		if err := d.decide(); err != nil {
			if m.atomic {
				return pos, d.readSeq, err
			}
			failRest(d.items, results, err)
			rests, pos = max(rests, d.readSeq), next
			continue
		}
		if full := sc.batch.Len() > 0 && sc.batch.Bytes()+d.bytes() > s.opts.EngineBatchBytes; full && !m.atomic {
			return pos, rests, nil // decided again for the next batch
		} else if full {
			return pos, 0, refuse(ReasonBatch, "batch with the siblings of its keys exceeds %d bytes", s.opts.EngineBatchBytes)
		}
		rests = max(rests, d.commit())
		pos = next
	}
	if m.once != nil {
		return pos, rests, m.once.remember(s, sc, &results[0].WriteResult)
	}
	return pos, rests, nil
}
