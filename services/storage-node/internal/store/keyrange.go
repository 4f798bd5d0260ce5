package store

import (
	"bytes"
	"context"
	"fmt"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
)

// KeyRangeRequest asks for the live keys of a tenant in [Start, End); an empty End is the end of
// the tenant.
type KeyRangeRequest struct {
	Tenant, Start, End string
	// MaxKeys is 1 to MaxPageKeys, 0 is DefaultPageKeys.
	MaxKeys int
	// PageToken is the Next of the page before.
	PageToken     string
	IncludeClocks bool
}

// KeyEntry is one key of a page.
type KeyEntry struct {
	Key   string
	Clock causal.Clock
}

// KeyRangePage is a page of keys. A page may be short, even empty, and not be the last one: Next
// decides.
type KeyRangePage struct {
	Keys []KeyEntry
	// Next is the token of the next page, empty after the last.
	Next string
	// Last is where the page ended if there is a next one: the last of Keys, or a later key without a
	// live value.
	Last string
}

// bytes is the size of keys and clocks.
func (p *KeyRangePage) bytes() (n int) {
	for i := range p.Keys {
		n += len(p.Keys[i].Key) + clockBytes(p.Keys[i].Clock)
	}
	return n
}

const (
	// maxPageBytes bounds keys and clocks of a page, below the 4 MiB that gRPC clients take.
	maxPageBytes = 1 << 20
	// maxPageScan bounds the records that one page looks at, so that a range of tombstones ends
	// a page and not a deadline: about 50 ms.
	maxPageScan = 100_000
)

// KeyRange returns a page of live keys in byte order. Writes between pages neither repeat nor skip
// a key that was there all the time.
func (s *Store) KeyRange(ctx context.Context, r KeyRangeRequest) (KeyRangePage, error) {
	lower, upper, err := bounds(r.Tenant, r.Start, r.End)
	if err != nil {
		return KeyRangePage{}, err
	}
	if r.MaxKeys < 0 || r.MaxKeys > MaxPageKeys {
		return KeyRangePage{}, refuse(ReasonMaxKeys, "max keys is %d, 0 to %d allowed", r.MaxKeys, MaxPageKeys)
	}
	if r.MaxKeys == 0 {
		r.MaxKeys = DefaultPageKeys
	}
	request := requestDigest([]byte(r.Tenant), lower, upper)
	if r.PageToken != "" {
		last, err := parsePosition(r.PageToken, pageKind, request, ReasonPageToken)
		if err != nil {
			return KeyRangePage{}, err
		}
		if lower, err = after(r.Tenant, last, lower, upper, ReasonPageToken); err != nil {
			return KeyRangePage{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return KeyRangePage{}, err
	}
	admission, err := s.admit(r.Tenant, Demand{Keys: 1})
	if err != nil {
		return KeyRangePage{}, err
	}
	var page KeyRangePage
	defer func() { admission.Release(max(len(page.Keys)-1, 0), page.bytes()) }()
	it, err := s.e.NewIter(lower, upper)
	if err != nil {
		return KeyRangePage{}, fmt.Errorf("key range: %w", err)
	}
	page, err = s.page(ctx, it, &r, request)
	if cerr := it.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("key range: %w", cerr)
	}
	if err != nil {
		return KeyRangePage{}, err
	}
	return page, nil
}

func (s *Store) page(ctx context.Context, it Iter, r *KeyRangeRequest, request [8]byte) (page KeyRangePage, err error) {
	now, prefix, size, scanned := s.now().Unix(), len(r.Tenant)+1, 0, 0
	last := ""
	for ok := it.First(); ok; ok = it.Next() {
		if len(page.Keys) == r.MaxKeys || size >= maxPageBytes || scanned == maxPageScan {
			page.Next, page.Last = position{kind: pageKind, request: request, last: last}.String(), last
			return page, nil
		}
		if scanned++; scanned%256 == 0 {
			if err := ctx.Err(); err != nil {
				return page, err
			}
		}
		sum, err := causal.Summarize(it.Value(), now)
		if err != nil {
			return page, corrupted(it.Key(), err)
		}
		if sum.Live == 0 {
			if scanned == maxPageScan {
				last = string(it.Key()[prefix:])
			}
			continue
		}
		last = string(it.Key()[prefix:])
		entry := KeyEntry{Key: last}
		if r.IncludeClocks {
			rec, err := causal.Decode(it.Value())
			if err != nil {
				return page, corrupted(it.Key(), err)
			}
			entry.Clock = rec.Clock()
		}
		page.Keys = append(page.Keys, entry)
		size += len(last) + clockBytes(entry.Clock)
	}
	return page, nil
}

// bounds returns the engine keys of [start, end) of a tenant.
func bounds(tenant, start, end string) (lower, upper []byte, err error) {
	if err := checkTenant(tenant); err != nil {
		return nil, nil, err
	}
	for _, k := range [...]string{start, end} {
		if k == "" {
			continue
		}
		if err := checkKey(k); err != nil {
			return nil, nil, refuse(ReasonRange, "bound of the range: %v", err)
		}
	}
	if end != "" && start > end {
		return nil, nil, refuse(ReasonRange, "range starts after its end")
	}
	lower, upper = ikey.TenantBounds(tenant)
	lower = append(lower, start...)
	if end != "" {
		upper = ikey.AppendEngineKey(nil, tenant, end)
	}
	return lower, upper, nil
}

// after returns the lower bound that continues behind a key of the range.
func after(tenant, last string, lower, upper []byte, reason Reason) ([]byte, error) {
	key := ikey.AppendEngineKey(nil, tenant, last)
	if bytes.Compare(key, lower) < 0 || bytes.Compare(key, upper) >= 0 {
		return nil, refuse(reason, "points outside of the range")
	}
	// No key contains 0x00, so nothing lies between.
	return append(key, 0x00), nil
}
