package replica

import (
	"bytes"
	"slices"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Limits of selections.
const (
	MaxSelectedKeys   = 10_000
	MaxSelectedHashes = 4096
)

// Selection says which records are meant: what its fields say together. An empty one is everything that
// clients stored; records of the node itself never are.
type Selection struct {
	Tenant string
	// Start and End are the half-open range of keys of the tenant; empty is no bound.
	Start, End string
	// Keys of the tenant, instead of a range.
	Keys []string
	// HashRanges of tokens; none is the whole ring.
	HashRanges []ring.HashRange
}

// selected is a Selection that was checked.
type selected struct {
	// spans are half-open ranges of engine keys, ascending and apart; a nil bound is none.
	spans  []store.KeySpan
	hashes hashes
	share  float64 // of the ring
}

// check validates the selection.
func (s *Selection) check() (*selected, error) {
	out := &selected{}
	if len(s.HashRanges) > MaxSelectedHashes {
		return nil, refuse(store.ReasonRange, "%d hash ranges, at most %d allowed", len(s.HashRanges), MaxSelectedHashes)
	}
	out.hashes = newHashes(s.HashRanges)
	out.share = out.hashes.share()
	if s.Tenant == "" {
		if s.Start != "" || s.End != "" || len(s.Keys) > 0 {
			return nil, refuse(store.ReasonRange, "keys are selected without a tenant")
		}
		// All names of system tenants begin with an underscore, and stand together.
		out.spans = []store.KeySpan{{End: []byte{systemPrefix}}, {Start: []byte{systemPrefix + 1}}}
		return out, nil
	}
	if err := store.CheckTenant(s.Tenant); err != nil {
		return nil, err
	}
	if len(s.Keys) > 0 {
		return out, s.checkKeys(out)
	}
	span := store.KeySpan{}
	span.Start, span.End = ikey.TenantBounds(s.Tenant)
	if s.Start != "" {
		span.Start = ikey.AppendEngineKey(nil, s.Tenant, s.Start)
	}
	if s.End != "" {
		span.End = ikey.AppendEngineKey(nil, s.Tenant, s.End)
	}
	for _, k := range []string{s.Start, s.End} {
		if k != "" {
			if err := store.CheckKey(k); err != nil {
				return nil, refuse(store.ReasonRange, "bound of the range: %v", err)
			}
		}
	}
	if bytes.Compare(span.Start, span.End) > 0 {
		return nil, refuse(store.ReasonRange, "the range starts after its end")
	}
	out.spans = []store.KeySpan{span}
	return out, nil
}

func (s *Selection) checkKeys(out *selected) error {
	if s.Start != "" || s.End != "" {
		return refuse(store.ReasonRange, "keys and a range exclude each other")
	}
	if len(s.Keys) > MaxSelectedKeys {
		return refuse(store.ReasonRange, "%d keys, at most %d allowed", len(s.Keys), MaxSelectedKeys)
	}
	keys := slices.Clone(s.Keys)
	slices.Sort(keys)
	for _, k := range slices.Compact(keys) {
		if err := store.CheckKey(k); err != nil {
			return err
		}
		start := ikey.AppendEngineKey(nil, s.Tenant, k)
		out.spans = append(out.spans, store.KeySpan{Start: start, End: append(bytes.Clone(start), 0)})
	}
	return nil
}

// systemPrefix begins the names of system tenants.
const systemPrefix = '_'

// has reports whether an engine key is in the spans.
func (s *selected) has(key []byte) bool {
	i, _ := slices.BinarySearchFunc(s.spans, key, func(span store.KeySpan, k []byte) int {
		if span.End != nil && bytes.Compare(span.End, k) <= 0 {
			return -1
		}
		return 1
	})
	return i < len(s.spans) && bytes.Compare(s.spans[i].Start, key) <= 0
}

// after returns the spans behind an engine key.
func (s *selected) after(last []byte) []store.KeySpan {
	next := append(bytes.Clone(last), 0)
	var out []store.KeySpan
	for _, span := range s.spans {
		if span.End != nil && bytes.Compare(span.End, next) <= 0 {
			continue
		}
		if bytes.Compare(span.Start, next) < 0 {
			span.Start = next
		}
		out = append(out, span)
	}
	return out
}

// tokens computes tokens of engine keys; it is for one goroutine.
type tokens struct{ scratch []byte }

func (t *tokens) of(key []byte) (uint64, error) {
	tenant, user, err := ikey.SplitEngineKey(key)
	if err != nil {
		return 0, err
	}
	if t.scratch == nil {
		t.scratch = make([]byte, 0, store.MaxTenantBytes+1+store.MaxKeyBytes)
	}
	return ring.TokenOf(t.scratch[:0], tenant, user), nil
}

// hashes are a set of tokens; the zero value is no token.
type hashes struct {
	all    bool
	ranges []ring.HashRange // in normal form
}

// newHashes returns the tokens of ranges; none is the whole ring.
func newHashes(ranges []ring.HashRange) hashes {
	h := hashes{ranges: ring.Normal(ranges)}
	h.all = len(ranges) == 0 || h.ranges[0] == ring.HashRange{}
	return h
}

func (h *hashes) has(token uint64) bool { return h.all || ring.In(h.ranges, token) }

// share returns how much of the ring they are.
func (h *hashes) share() float64 {
	if h.all {
		return 1
	}
	sum := 0.0
	for _, r := range h.ranges {
		sum += float64(r.End-r.Start) / (1 << 64)
	}
	return sum
}
