package server

import (
	"slices"
	"strings"

	"github.com/pairdb/pairdb/libs/causal"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// This file is the only place where domain values become proto and back.

// clockFromProto sorts a clock of the wire; the store validates it. What is over the limit of
// entries is cut to one more than it: enough for the store to refuse it, and no memory for the rest.
func clockFromProto(v *datav1.VectorClock) causal.Clock {
	in := v.GetEntries()
	in = in[:min(len(in), causal.MaxClockEntries+1)]
	if len(in) == 0 {
		return nil
	}
	clock := make(causal.Clock, len(in))
	for i, e := range in {
		clock[i] = causal.Entry{Node: e.GetNodeId(), Counter: e.GetCounter()}
	}
	slices.SortFunc(clock, func(a, b causal.Entry) int { return strings.Compare(a.Node, b.Node) })
	return clock
}

// causality returns how a write relates to what is there: a clock, a context, or neither. An empty
// clock is not the same as none: it gets an entry that the store refuses.
func causality(clock, context *datav1.VectorClock) store.Causality {
	c := store.Causality{Clock: clockFromProto(clock), Context: clockFromProto(context), HasContext: context != nil}
	if clock != nil && len(c.Clock) == 0 {
		c.Clock = causal.Clock{{}}
	}
	return c
}

// clockToProto returns nil for an empty clock. It allocates three times, whatever the size.
func clockToProto(c causal.Clock) *datav1.VectorClock {
	if len(c) == 0 {
		return nil
	}
	block := make([]datav1.ClockEntry, len(c))
	entries := make([]*datav1.ClockEntry, len(c))
	for i := range c {
		block[i].NodeId, block[i].Counter = c[i].Node, c[i].Counter
		entries[i] = &block[i]
	}
	return &datav1.VectorClock{Entries: entries}
}

// siblingsFromProto converts siblings whose values alias the message; the store validates them.
// Like entries of a clock, they are cut to one more than is allowed.
func siblingsFromProto(in []*datav1.Sibling) []causal.Sibling {
	in = in[:min(len(in), store.MaxRepairSiblings+1)]
	out := make([]causal.Sibling, len(in))
	for i, s := range in {
		out[i] = causal.Sibling{
			Clock: clockFromProto(s.GetClock()), Value: s.GetValue(), Timestamp: s.GetTimestamp(),
			ExpiresAt: s.GetExpiresAt(), Tombstone: s.GetTombstone(),
		}
		if d := s.GetDot(); d != nil {
			out[i].Dot = causal.Dot{Node: d.GetNodeId(), Counter: d.GetCounter()}
		}
	}
	return out
}

// siblingToProto converts one sibling; its value is shared.
func siblingToProto(s *causal.Sibling) *datav1.Sibling {
	out := &datav1.Sibling{
		Clock: clockToProto(s.Clock), Value: s.Value, Timestamp: s.Timestamp,
		ExpiresAt: s.ExpiresAt, Tombstone: s.Tombstone,
	}
	if !s.Dot.IsZero() {
		out.Dot = &datav1.ClockEntry{NodeId: s.Dot.Node, Counter: s.Dot.Counter}
	}
	return out
}

// siblingsToProto converts siblings; their values are shared.
func siblingsToProto(in []causal.Sibling) []*datav1.Sibling {
	if len(in) == 0 {
		return nil
	}
	out := make([]*datav1.Sibling, len(in))
	for i := range in {
		out[i] = siblingToProto(&in[i])
	}
	return out
}

// opFromProto converts an item of a batch; one without an operation stays the zero Op, which the
// store refuses.
func opFromProto(in *storagev1.BatchOp) store.Op {
	op := store.Op{Key: in.GetKey()}
	switch o := in.GetOp().(type) {
	case *storagev1.BatchOp_Put:
		p := o.Put
		op.Kind, op.Value, op.TTL = store.Put, p.GetValue(), p.GetTtlSeconds()
		op.Causality = causality(p.GetClock(), p.GetContext())
	case *storagev1.BatchOp_Delete:
		op.Kind, op.Causality = store.Delete, causality(o.Delete.GetClock(), o.Delete.GetContext())
	case *storagev1.BatchOp_Repair:
		op.Kind, op.Siblings = store.Repair, siblingsFromProto(o.Repair.GetSiblings())
	}
	return op
}

// readToProto converts the state of a key; values are shared.
func readToProto(r *store.ReadResult) *storagev1.ReadResponse {
	return &storagev1.ReadResponse{
		Found: r.Found, Value: r.Value, Clock: clockToProto(r.Clock), Timestamp: r.Timestamp,
		ExpiresAt: r.ExpiresAt, Siblings: siblingsToProto(r.Siblings),
	}
}

// changeToProto converts one change of the feed; values are shared.
func changeToProto(tenant string, c *store.Change) *storagev1.Change {
	out := &storagev1.Change{Sequence: c.Sequence}
	switch c.Kind {
	case store.ChangeSet:
		out.Change = &storagev1.Change_Record{Record: recordToProto(tenant, c.Key, c.Siblings)}
	case store.ChangeJoin:
		out.Change = &storagev1.Change_Joined{Joined: recordToProto(tenant, c.Key, c.Siblings)}
	case store.ChangeRemove:
		out.Change = &storagev1.Change_Removed{Removed: &datav1.KeyRange{Start: c.Start, End: c.End}}
	}
	return out
}

func recordToProto(tenant, key string, siblings []causal.Sibling) *datav1.Record {
	return &datav1.Record{Tenant: tenant, Key: key, Siblings: siblingsToProto(siblings)}
}

func outcomeToProto(o causal.Outcome) storagev1.Outcome {
	switch o {
	case causal.Applied:
		return storagev1.Outcome_OUTCOME_APPLIED
	case causal.Duplicate:
		return storagev1.Outcome_OUTCOME_DUPLICATE
	case causal.Stale:
		return storagev1.Outcome_OUTCOME_STALE
	case causal.SiblingKept:
		return storagev1.Outcome_OUTCOME_SIBLING
	}
	return storagev1.Outcome_OUTCOME_UNSPECIFIED
}
