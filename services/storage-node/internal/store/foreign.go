package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
)

// Observe makes later timestamps of this node larger than that of a record that came from another one,
// unless it is further ahead than clocks may be: one bad clock must not become that of all.
func (s *Store) Observe(ts uint64) {
	if ts <= causal.Timestamp(s.now().Add(s.opts.MaxClockSkew)) {
		s.hlc.Observe(ts)
	}
}

// CheckRecord refuses a record from another node that claims writes of this one that it never made: they
// would make a later write look old.
func (s *Store) CheckRecord(r causal.Record) error {
	for i := range r.Siblings {
		if err := s.checkClock(r.Siblings[i].Clock); err != nil {
			return err
		}
		if err := s.checkDot(r.Siblings[i].Dot); err != nil {
			return err
		}
	}
	return nil
}

// JoinAll joins records with what the system tenant has under their keys, together or not at all, and
// returns when that is durable in every mode. The records were decoded, so they are valid.
func (y System) JoinAll(ctx context.Context, records map[string]causal.Record) error {
	if err := ctx.Err(); err != nil || len(records) == 0 {
		return err
	}
	b := y.s.e.NewBatch()
	b.Urgent()
	for key, r := range records {
		b.Merge(ikey.AppendEngineKey(nil, y.tenant, key), r.Encode(nil))
	}
	seq, err := y.s.e.Submit(b)
	if err == nil {
		err = y.s.e.WaitDurable(seq)
	}
	if err != nil {
		return fmt.Errorf("system tenant %s: %w", y.tenant, err)
	}
	return nil
}

// Holds reports whether anything is stored in a span.
func (y System) Holds(span KeySpan) (some bool, err error) {
	it, err := y.s.e.NewIter(span.Start, span.End)
	if err != nil {
		return false, err
	}
	some = it.First()
	return some, errors.Join(it.Err(), it.Close())
}
