package store

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ring"
)

// Danger: a limit is off by one, unchecked in one of the calls, or reported as something else.
func TestTenantAndKeyLimitsHoldInEveryCall(t *testing.T) {
	s := open(t, newFake(), Options{})
	x := strings.Repeat
	tenants := map[string]bool{
		"t": true, x("t", 256): true, "ä-日本": true, "a b": true,
		"": false, x("t", 257): false, "a:b": false, "a\x00b": false, "a\tb": false, "a\nb": false, "a\x7f": false,
		"a\u0085": false, "\xff": false, "_system": false,
	}
	keys := map[string]bool{
		"k": true, x("k", 1024): true, "a:b": true, "a\tb\nc": true, "_k": true, "日本": true, "\ufffd": true,
		"": false, x("k", 1025): false, "a\x00": false, "a\rb": false, "\x1f": false, "a\u0080": false, "\xc3": false,
	}
	calls := func(tenant, key string) map[string]error {
		batchErr := func(r []OpResult, err error) error {
			if err == nil {
				err = r[0].Err
			}
			return err
		}
		reads, readErr := s.BatchRead(bg, tenant, []string{key})
		if readErr == nil {
			readErr = reads[0].Err
		}
		sib := []causal.Sibling{{Dot: causal.Dot{Node: "m", Counter: 1}}}
		return map[string]error{
			"write":  second(s.Write(bg, WriteRequest{Tenant: tenant, Key: key})),
			"delete": second(s.Delete(bg, DeleteRequest{Tenant: tenant, Key: key})),
			"repair": s.Repair(bg, RepairRequest{Tenant: tenant, Key: key, Siblings: sib}),
			"read":   second(s.Read(bg, tenant, key, nil)),
			"batch":  batchErr(s.BatchWrite(bg, BatchWriteRequest{Tenant: tenant, Ops: []Op{{Kind: Put, Key: key}}})),
			"atomic": batchErr(s.BatchWrite(bg, BatchWriteRequest{Tenant: tenant, Atomic: true, Ops: []Op{{Kind: Put, Key: key}}})),
			"reads":  readErr,
		}
	}
	for tenant, ok := range tenants {
		all := calls(tenant, "k")
		all["range"] = second(s.KeyRange(bg, KeyRangeRequest{Tenant: tenant}))
		all["stream"] = s.Stream(bg, StreamRequest{Tenant: tenant}, func(Chunk) error { return nil })
		for name, err := range all {
			if ok {
				require.NoError(t, err, "%s %q", name, tenant)
			} else {
				require.Equal(t, ReasonTenant, ReasonOf(err), "%s %q", name, tenant)
			}
		}
	}
	for key, ok := range keys {
		for name, err := range calls("t", key) {
			if ok {
				require.NoError(t, err, "%s %q", name, key)
			} else {
				require.Equal(t, ReasonKey, ReasonOf(err), "%s %q", name, key)
			}
		}
	}
}

// Danger: as above, for everything else that a write brings.
func TestWriteLimitsHoldOnBothSides(t *testing.T) {
	s := open(t, newFake(), Options{})
	clock := func(n int) causal.Clock {
		c := make(causal.Clock, n)
		for i := range c {
			c[i] = causal.Entry{Node: fmt.Sprintf("%05d", i), Counter: 1}
		}
		return c
	}
	for name, c := range map[string]struct {
		r    WriteRequest
		want Reason
	}{
		"value":            {WriteRequest{Value: make([]byte, MaxValueBytes)}, ""},
		"value + 1":        {WriteRequest{Value: make([]byte, MaxValueBytes+1)}, ReasonValue},
		"ttl":              {WriteRequest{TTL: MaxTTL}, ""},
		"ttl + 1":          {WriteRequest{TTL: MaxTTL + 1}, ReasonTTL},
		"ttl - 1":          {WriteRequest{TTL: -1}, ReasonTTL},
		"clock":            {WriteRequest{Causality: plain(clock(1000)...)}, ""},
		"clock + 1":        {WriteRequest{Causality: plain(clock(1001)...)}, ReasonClock},
		"context":          {WriteRequest{Causality: seen(clock(1000))}, ""},
		"context + 1":      {WriteRequest{Causality: seen(clock(1001))}, ReasonClock},
		"id":               {WriteRequest{Causality: plain(causal.Entry{Node: strings.Repeat("i", 128), Counter: 1})}, ""},
		"id + 1":           {WriteRequest{Causality: plain(causal.Entry{Node: strings.Repeat("i", 129), Counter: 1})}, ReasonClock},
		"counter 0":        {WriteRequest{Causality: plain(causal.Entry{Node: "i"})}, ReasonClock},
		"both":             {WriteRequest{Causality: Causality{Clock: clock(1), HasContext: true}}, ReasonClock},
		"two of one actor": {WriteRequest{Causality: plain(causal.Entry{Node: "i", Counter: 1}, causal.Entry{Node: "i", Counter: 2})}, ReasonClock},
	} {
		c.r.Tenant, c.r.Key = "t", name
		_, err := s.Write(bg, c.r)
		if c.want == "" {
			require.NoError(t, err, name)
		} else {
			require.Equal(t, c.want, ReasonOf(err), name)
		}
	}
}

// Danger: as above, for repairs.
func TestRepairLimitsHoldOnBothSides(t *testing.T) {
	s := open(t, newFake(), Options{})
	dotted := func(n int) []causal.Sibling {
		out := make([]causal.Sibling, n)
		for i := range out {
			out[i].Dot = causal.Dot{Node: "m", Counter: uint64(i + 1)}
		}
		return out
	}
	own := dotted(1)
	own[0].Clock = causal.Clock{{Node: "m", Counter: 1}}
	huge := dotted(1)
	huge[0].Value = make([]byte, MaxValueBytes+1)
	buried := dotted(1)
	buried[0].Tombstone, buried[0].Value = true, []byte("v")
	for name, c := range map[string]struct {
		siblings []causal.Sibling
		want     Reason
	}{
		"none": {nil, ReasonSiblings}, "limit": {dotted(MaxRepairSiblings), ""}, "limit + 1": {dotted(MaxRepairSiblings + 1), ReasonSiblings},
		"own dot": {own, ReasonSiblings}, "value": {huge, ReasonValue}, "tombstone with a value": {buried, ReasonSiblings},
		"neither clock nor dot": {make([]causal.Sibling, 1), ReasonSiblings},
	} {
		err := s.Repair(bg, RepairRequest{Tenant: "t", Key: name, Siblings: c.siblings})
		if c.want == "" {
			require.NoError(t, err, name)
		} else {
			require.Equal(t, c.want, ReasonOf(err), name)
		}
	}
}

// Danger: as above, for batches, pages and streams.
func TestBatchPageAndStreamLimitsHoldOnBothSides(t *testing.T) {
	s := open(t, newFake(), Options{})
	ops := func(n, bytes int) []Op {
		out := make([]Op, n)
		for i := range out {
			out[i] = Op{Kind: Put, Key: fmt.Sprintf("%04d", i), Value: make([]byte, bytes)}
		}
		return out
	}
	batch := func(o []Op) error {
		return second(s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: o, Atomic: true}))
	}
	exact := ops(2, MaxBatchBytes/2-4)
	over := ops(2, MaxBatchBytes/2-4)
	over[1].Key = "00001"
	keys := func(n int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = "k"
		}
		return out
	}
	page := func(n int) error { return second(s.KeyRange(bg, KeyRangeRequest{Tenant: "t", MaxKeys: n})) }
	hash := func(n int) error {
		return s.Stream(bg, StreamRequest{Tenant: "t", HashRanges: make([]ring.HashRange, n)}, func(Chunk) error { return nil })
	}
	between := func(start, end string) error {
		return second(s.KeyRange(bg, KeyRangeRequest{Tenant: "t", Start: start, End: end}))
	}
	for name, c := range map[string]struct {
		err  error
		want Reason
	}{
		"no ops": {batch(nil), ""}, "ops": {batch(ops(MaxBatchOps, 0)), ""}, "ops + 1": {batch(ops(MaxBatchOps+1, 0)), ReasonBatch},
		"bytes": {batch(exact), ""}, "bytes + 1": {batch(over), ReasonBatch},
		"kind":  {batch([]Op{{Key: "k"}}), ReasonBatch},
		"reads": {second(s.BatchRead(bg, "t", keys(MaxBatchOps))), ""}, "reads + 1": {second(s.BatchRead(bg, "t", keys(MaxBatchOps+1))), ReasonBatch},
		"page": {page(MaxPageKeys), ""}, "page + 1": {page(MaxPageKeys + 1), ReasonMaxKeys}, "page - 1": {page(-1), ReasonMaxKeys},
		"hash": {hash(MaxHashRanges), ""}, "hash + 1": {hash(MaxHashRanges + 1), ReasonRange},
		"empty range": {between("a", "a"), ""}, "reversed": {between("b", "a"), ReasonRange}, "bound": {between("a\x00", ""), ReasonRange},
	} {
		if c.want == "" {
			require.NoError(t, c.err, name)
		} else {
			require.Equal(t, c.want, ReasonOf(c.err), name)
		}
	}
}
