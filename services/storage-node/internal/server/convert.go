package server

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// This file and convertmembers.go are the only places where domain values become proto and back.

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

// conditionFromProto converts a condition; one that asks for nothing, or for a key to be present, stays
// empty, and the store refuses it.
func conditionFromProto(in *storagev1.Condition) *store.Condition {
	if in == nil {
		return nil
	}
	out := &store.Condition{}
	switch when := in.GetWhen().(type) {
	case *storagev1.Condition_Absent:
		if when.Absent {
			out.When = store.Absent
		}
	case *storagev1.Condition_Clock:
		out.When, out.Clock = store.ClockEquals, clockFromProto(when.Clock)
	case *storagev1.Condition_ValueSha256:
		out.When, out.Digest = store.DigestEquals, when.ValueSha256
	}
	return out
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
		op.Causality, op.Condition = causality(p.GetClock(), p.GetContext()), conditionFromProto(p.GetCondition())
	case *storagev1.BatchOp_Delete:
		op.Kind, op.Causality = store.Delete, causality(o.Delete.GetClock(), o.Delete.GetContext())
		op.Condition = conditionFromProto(o.Delete.GetCondition())
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

// contractClockFromProto sorts a clock of a coordinator and checks what its form can express and ours
// can't. Entries of 0 say nothing and are left out.
func contractClockFromProto(v *storagenodev1.VectorClock) (causal.Clock, error) {
	in := v.GetEntries()
	if len(in) > causal.MaxClockEntries {
		return nil, errClock("%d entries, at most %d allowed", len(in), causal.MaxClockEntries)
	}
	if len(in) == 0 {
		return nil, nil
	}
	clock := make(causal.Clock, len(in))
	for i, e := range in {
		id, counter := e.GetCoordinatorNodeId(), e.GetLogicalTimestamp()
		if len(id) == 0 || len(id) > causal.MaxNodeIDBytes {
			return nil, errClock("coordinator_node_id of %d bytes, 1 to %d allowed", len(id), causal.MaxNodeIDBytes)
		}
		if counter < 0 {
			return nil, errClock("logical_timestamp of %q is %d, at least 0 allowed", id, counter)
		}
		clock[i] = causal.Entry{Node: id, Counter: uint64(counter)}
	}
	slices.SortFunc(clock, func(a, b causal.Entry) int { return strings.Compare(a.Node, b.Node) })
	for i := 1; i < len(clock); i++ {
		if clock[i-1].Node == clock[i].Node {
			return nil, errClock("coordinator_node_id %q stands there twice", clock[i].Node)
		}
	}
	return slices.DeleteFunc(clock, func(e causal.Entry) bool { return e.Counter == 0 }), nil
}

func errClock(format string, args ...any) error {
	return &store.Error{Reason: store.ReasonClock, Message: "invalid clock: " + fmt.Sprintf(format, args...)}
}

// contractClockToProto returns nil for an empty clock. A counter that the contract can't express
// becomes the largest one: who raises the clock has then seen less than there is, and what it has not
// seen is kept.
func contractClockToProto(c causal.Clock) *storagenodev1.VectorClock {
	if len(c) == 0 {
		return nil
	}
	block := make([]storagenodev1.VectorClockEntry, len(c))
	entries := make([]*storagenodev1.VectorClockEntry, len(c))
	for i := range c {
		block[i].CoordinatorNodeId, block[i].LogicalTimestamp = c[i].Node, int64(min(c[i].Counter, math.MaxInt64))
		entries[i] = &block[i]
	}
	return &storagenodev1.VectorClock{Entries: entries}
}

// contractSiblingFromProto returns what a repair brings, as the one sibling; the store validates it.
// The contract does not say when it was written. A value gets no time: the join with the original,
// which has the same clock and value, then keeps the original's. A tombstone gets the time of the
// repair, because without one it could be collected before the values that it deletes.
func contractSiblingFromProto(r *storagenodev1.RepairRequest, now time.Time) ([]causal.Sibling, error) {
	clock, err := contractClockFromProto(r.GetVectorClock())
	if err != nil {
		return nil, err
	}
	sibling := causal.Sibling{Clock: clock, Value: r.GetValue(), Tombstone: r.GetIsTombstone()}
	if sibling.Tombstone {
		sibling.Timestamp = causal.Timestamp(now)
	}
	return []causal.Sibling{sibling}, nil
}

// contractReadToProto converts the state of a key; values are shared.
func contractReadToProto(r *store.ReadResult) *storagenodev1.ReadResponse {
	return &storagenodev1.ReadResponse{
		Success: true, Found: r.Found, Value: r.Value, VectorClock: contractClockToProto(r.Clock),
		SiblingCount: uint32(len(r.Siblings)), Siblings: siblingsToProto(r.Siblings),
	}
}

// contractEntryToProto converts a record of a stream as a read at the given Unix second would show it;
// values are shared.
func contractEntryToProto(tenant string, rec *store.StreamRecord, nowUnix int64) *storagenodev1.KeyValueEntry {
	v := rec.View(nowUnix)
	written := v.Timestamp
	if !v.Found {
		written = causal.Record{Siblings: rec.Siblings}.MaxTimestamp()
	}
	return &storagenodev1.KeyValueEntry{
		TenantId: tenant, Key: rec.Key, Value: v.Value, VectorClock: contractClockToProto(v.Clock),
		Timestamp: causal.Time(written).Unix(), IsTombstone: !v.Found,
		SiblingCount: uint32(len(v.Siblings)), Siblings: siblingsToProto(v.Siblings),
	}
}

// quotaFromProto converts a quota; none is one without limits. The registry validates it.
func quotaFromProto(q *adminv1.TenantQuota) tenant.Quota {
	return tenant.Quota{
		OperationsPerSecond: q.GetOperationsPerSecond(), BytesPerSecond: q.GetBytesPerSecond(),
		InFlight: q.GetInFlight(), StoredBytes: q.GetStoredBytes(),
	}
}

// quotaIfAny returns nil for none.
func quotaIfAny(q *adminv1.TenantQuota) *tenant.Quota {
	if q == nil {
		return nil
	}
	out := quotaFromProto(q)
	return &out
}

// policyFromProto returns 0 where nothing is said.
func policyFromProto(p adminv1.ConflictPolicy) (tenant.Policy, error) {
	switch p {
	case adminv1.ConflictPolicy_CONFLICT_POLICY_UNSPECIFIED:
		return 0, nil
	case adminv1.ConflictPolicy_CONFLICT_POLICY_KEEP_SIBLINGS:
		return tenant.KeepSiblings, nil
	case adminv1.ConflictPolicy_CONFLICT_POLICY_LAST_WRITER_WINS:
		return tenant.LastWriterWins, nil
	}
	return 0, &store.Error{Reason: store.ReasonConflictPolicy, Message: fmt.Sprintf("policy for conflicts %d is unknown", p)}
}

func tenantToProto(t tenant.Tenant) *adminv1.Tenant {
	out := &adminv1.Tenant{
		Name: t.Name, Generation: t.Generation, CreatedAt: t.CreatedAt, StoredBytes: t.StoredBytes, InFlight: int32(t.InFlight),
		Quota: &adminv1.TenantQuota{
			OperationsPerSecond: t.Quota.OperationsPerSecond, BytesPerSecond: t.Quota.BytesPerSecond,
			InFlight: t.Quota.InFlight, StoredBytes: t.Quota.StoredBytes,
		},
		Conflicts: adminv1.ConflictPolicy_CONFLICT_POLICY_KEEP_SIBLINGS,
	}
	if t.Conflicts == tenant.LastWriterWins {
		out.Conflicts = adminv1.ConflictPolicy_CONFLICT_POLICY_LAST_WRITER_WINS
	}
	switch t.State {
	case tenant.Active:
		out.State = adminv1.TenantState_TENANT_STATE_ACTIVE
	case tenant.Dropping:
		out.State = adminv1.TenantState_TENANT_STATE_DROPPING
	case tenant.Dropped:
		out.State = adminv1.TenantState_TENANT_STATE_DROPPED
	}
	return out
}
