package store

import (
	"bytes"
	"errors"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// decision is what the operations on one key do to it. The stripe of the key is locked.
type decision struct {
	s       *Store
	sc      *scratch
	ops     []Op
	results []OpResult
	mode    mode
	items   []item // all on key, in their order
	key     []byte

	readSeq  ikey.Seq
	before   causal.Record // what was read
	fragment bool          // only repairs: nothing was read
	changed  bool
}

// changeOverhead is what a change takes in a batch beside key and value: kind and two lengths.
const changeOverhead = 1 + 2*5

func (d *decision) bytes() int {
	if !d.changed {
		return 0
	}
	return changeOverhead + len(d.key) + len(d.sc.enc)
}

// decide computes the new record of the key into sc.enc, and the results.
func (d *decision) decide() error {
	d.fragment = true
	for _, it := range d.items {
		d.fragment = d.fragment && d.ops[it.op].Kind == Repair
	}
	cur, err := d.read()
	if err != nil {
		return err
	}
	d.before = cur
	for _, it := range d.items {
		o, r := &d.ops[it.op], &d.results[it.op]
		if o.Kind == Repair {
			cur, d.changed, *r = causal.Join(cur, causal.Record{Siblings: o.Siblings}), true, OpResult{}
			continue
		}
		next, outcome, err := d.apply(cur, o)
		if err != nil && d.mode.atomic {
			return inOp(err, it.op, len(d.ops))
		}
		if err != nil {
			*r = OpResult{Err: err}
			continue
		}
		cur = next
		d.changed = d.changed || outcome == causal.Applied || outcome == causal.SiblingKept
		*r = OpResult{WriteResult: WriteResult{Outcome: outcome}}
		if !d.mode.omitClocks {
			r.Clock, r.Siblings = cur.Clock(), len(cur.Live(d.s.now().Unix()))
		}
	}
	if d.changed {
		d.sc.enc = cur.Encode(d.sc.enc[:0])
	}
	if size := d.bytes(); size > d.s.opts.EngineBatchBytes {
		return &Error{
			Reason: ReasonTooManySiblings, Record: clone(cur),
			Message: "the values of the key exceed what can be stored together; merge them",
		}
	}
	return nil
}

// read returns the state that the operations start from; its values alias sc.read.
func (d *decision) read() (causal.Record, error) {
	if d.fragment {
		return causal.Record{}, nil
	}
	value, found, readSeq, err := d.s.latest(d.key, d.sc.read[:0], d.mode.trail)
	if err != nil {
		return causal.Record{}, err
	}
	d.readSeq = readSeq
	if !found {
		return causal.Record{}, nil
	}
	d.sc.read = value
	cur, err := causal.Decode(value)
	if err != nil {
		return causal.Record{}, corrupted(d.key, err)
	}
	return cur, nil
}

// latest reads what is applied; t may be nil.
func (s *Store) latest(key, dst []byte, t *stages.Trail) (value []byte, found bool, readSeq ikey.Seq, err error) {
	if t != nil && s.trailing != nil {
		return s.trailing.GetLatestTrail(key, dst, t)
	}
	return s.e.GetLatest(key, dst)
}

// limits returns those of a write. Clocks are large so seldom that only then somebody is asked whether their
// entries may be forgotten.
func (d *decision) limits(cur causal.Record, w *causal.Write) causal.Limits {
	l := d.s.opts.Limits
	if d.s.opts.MayPrune == nil {
		return l
	}
	entries := len(w.Clock) + len(w.Context)
	for i := range cur.Siblings {
		entries += len(cur.Siblings[i].Clock) + 1
	}
	if entries >= l.PruneAbove && !d.s.opts.MayPrune(d.key) {
		l.PruneAfter = 0
	}
	return l
}

func (d *decision) apply(cur causal.Record, o *Op) (causal.Record, causal.Outcome, error) {
	if err := d.judge(cur, o.Condition); err != nil {
		return cur, 0, err
	}
	w := causal.Write{
		Value: o.Value, Tombstone: o.Kind == Delete, Timestamp: d.s.timestamp(cur),
		Clock: o.Clock, Context: o.Context, HasContext: o.HasContext,
	}
	if len(w.Clock) == 0 {
		// Numbered under the lock: a lower number must not come after a higher one on the same key.
		w.Dot = causal.Dot{Node: d.s.actor, Counter: d.s.counter.Add(1)}
	}
	if o.TTL > 0 {
		// Rounded up to a whole second, so that no value lives shorter than asked for.
		w.ExpiresAt = int64(w.Timestamp>>16+999)/1000 + o.TTL
	}
	next, outcome, err := causal.Apply(cur, w, d.limits(cur, &w))
	if err == nil {
		return next, outcome, nil
	}
	var many *causal.TooManySiblingsError
	if errors.As(err, &many) {
		return cur, 0, &Error{Reason: ReasonTooManySiblings, Message: err.Error(), Record: clone(many.Record), Err: err}
	}
	return cur, 0, &Error{Reason: ReasonClock, Message: err.Error(), Err: err}
}

// timestamp returns one that is later than what is there, unless that is further ahead than clocks
// may be: then one bad clock of the past does not become the clock of this node.
func (s *Store) timestamp(cur causal.Record) uint64 {
	ts := s.hlc.Now()
	if last := cur.MaxTimestamp(); last >= ts && last <= causal.Timestamp(s.now().Add(s.opts.MaxClockSkew)) {
		s.hlc.Observe(last)
		ts = s.hlc.Now()
	}
	return ts
}

// commit puts the change into the batch. It returns the sequence of the read if nothing changes:
// the answer rests on what may not be durable yet.
func (d *decision) commit() ikey.Seq {
	switch {
	case !d.changed:
		return d.readSeq
	case d.fragment:
		d.sc.batch.Merge(d.key, d.sc.enc)
	default:
		d.sc.batch.SetIfUnchanged(d.key, d.sc.enc, d.readSeq)
	}
	return 0
}

// clone copies the values of a record out of a buffer that will be used again.
func clone(r causal.Record) causal.Record {
	out := causal.Record{Siblings: make([]causal.Sibling, len(r.Siblings))}
	for i, s := range r.Siblings {
		s.Value = bytes.Clone(s.Value)
		out.Siblings[i] = s
	}
	return out
}
