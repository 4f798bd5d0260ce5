package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
)

// Tenants decides which requests are taken up. It is asked before any work is done for a tenant, the
// name of which is valid; an error refuses the request. It is safe for concurrent use.
type Tenants interface {
	// Admit takes up a request that ends by itself; it is released once.
	Admit(tenant string, d Demand) (Admission, error)
	// AdmitStream takes up one that lasts for as long as its reader likes.
	AdmitStream(tenant string) (StreamAdmission, error)
}

// Demand is what is known of a request before it is worked on.
type Demand struct {
	Keys  int
	Bytes int // of keys, values and clocks
	// Grows: it stores more than deletes do.
	Grows bool
}

// Admission is a request that was taken up.
type Admission interface {
	// LastWriterWins: reads show the winner of concurrent writes alone.
	LastWriterWins() bool
	// Release ends the request. keys and bytes are what it turned out to have read beyond its Demand.
	Release(keys, bytes int)
}

// StreamAdmission is a stream that was taken up.
type StreamAdmission interface {
	// Pace is called before keys with so many bytes are sent. It returns when they may be; an error
	// ends the stream.
	Pace(ctx context.Context, keys, bytes int) error
	Release()
}

// everyone takes up every request, and forgets it.
type everyone struct{}

func (everyone) Admit(string, Demand) (Admission, error)     { return everyone{}, nil }
func (everyone) AdmitStream(string) (StreamAdmission, error) { return freeStream{}, nil }
func (everyone) LastWriterWins() bool                        { return false }
func (everyone) Release(int, int)                            {}

type freeStream struct{}

func (freeStream) Pace(context.Context, int, int) error { return nil }
func (freeStream) Release()                             {}

// CheckTenant refuses what can't be the name of a tenant.
func CheckTenant(tenant string) error { return checkTenant(tenant) }

// CheckKey refuses what can't be a key.
func CheckKey(key string) error { return checkKey(key) }

// admit is the first step of every call for a tenant.
func (s *Store) admit(tenant string, d Demand) (Admission, error) {
	if err := checkTenant(tenant); err != nil {
		return nil, err
	}
	return s.opts.Tenants.Admit(tenant, d)
}

// admitStream is the first step of every stream for a tenant.
func (s *Store) admitStream(tenant string) (StreamAdmission, error) {
	if err := checkTenant(tenant); err != nil {
		return nil, err
	}
	return s.opts.Tenants.AdmitStream(tenant)
}

// admitWrite is admit for operations; system tenants are not asked for.
func (s *Store) admitWrite(tenant string, ops []Op, system bool) (Admission, error) {
	if system {
		return everyone{}, nil
	}
	d := Demand{Keys: len(ops)}
	for i := range ops {
		d.Bytes += opBytes(&ops[i])
		d.Grows = d.Grows || ops[i].Kind != Delete
	}
	return s.admit(tenant, d)
}

// KeySpan is a half-open range of engine keys.
type KeySpan struct{ Start, End []byte }

// TenantSpans returns everything that is stored for a tenant: its keys, and what is remembered
// beside them.
func TenantSpans(tenant string) []KeySpan {
	start, end := ikey.TenantBounds(tenant)
	idStart, idEnd := idempotencyBounds(tenant)
	return []KeySpan{{start, end}, {idStart, idEnd}}
}

// System is a tenant of the node itself: no request from outside can name it. Its records are
// written like any other, so that they can replicate like data.
type System struct {
	s      *Store
	tenant string
	// reserve: a full disk takes what is written, from what is kept free for deletes.
	reserve bool
}

// System returns a system tenant, the name of which begins with _.
func (s *Store) System(tenant string) System {
	if !strings.HasPrefix(tenant, "_") {
		panic(fmt.Sprintf("store: %q is no system tenant", tenant))
	}
	return System{s: s, tenant: tenant}
}

// Reserved returns the tenant for records that must be written on a full disk too: those that lead to
// room on it. They must be few and small.
func (y System) Reserved() System {
	y.reserve = true
	return y
}

// Write stores a value, and returns when that is durable in every mode.
func (y System) Write(ctx context.Context, key string, value []byte, c Causality) (WriteResult, error) {
	return y.s.one(ctx, y.tenant, mode{atomic: true, system: true, reserve: y.reserve}, Op{Kind: Put, Key: key, Value: value, Causality: c})
}

// WriteAll stores values or deletes them, operations of kind Put and Delete with keys of their own,
// together or not at all, and returns when that is durable in every mode.
func (y System) WriteAll(ctx context.Context, ops []Op) ([]OpResult, error) {
	results := make([]OpResult, len(ops))
	pending, err := y.s.submit(ctx, y.tenant, ops, results, mode{atomic: true, system: true, reserve: y.reserve})
	if werr := pending.Wait(); werr != nil {
		err = werr
	}
	if err != nil {
		return nil, err
	}
	return results, nil
}

// Each calls f with every record in key order. The values of a record are valid until f returns.
func (y System) Each(ctx context.Context, f func(key string, r causal.Record) error) (err error) {
	lower, upper := ikey.TenantBounds(y.tenant)
	it, err := y.s.e.NewIter(lower, upper)
	if err != nil {
		return fmt.Errorf("system tenant %s: %w", y.tenant, err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, err := causal.Decode(it.Value())
		if err != nil {
			return corrupted(it.Key(), err)
		}
		if err := f(string(it.Key()[len(y.tenant)+1:]), rec); err != nil {
			return err
		}
	}
	return nil
}
