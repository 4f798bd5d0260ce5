package tenant

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// systemTenant holds the records of tenants.
const systemTenant = "_tenants"

// Options configure a registry. Zero values mean the default named with each field.
type Options struct {
	// Strict refuses tenants that are not known.
	Strict bool
	// Named is how many tenants have numbers of their own in Usage: none.
	Named int
	// MaxTenants bounds the names, dropped ones included: 10,000, so that a list of all fits into
	// the 4 MiB that clients take.
	MaxTenants int
	// Now and After are time: those of package time.
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time
}

// Engine is what the registry needs of the engine.
type Engine interface {
	// DeleteSpans removes every key of the spans, together, and returns when that is durable.
	DeleteSpans(spans []store.KeySpan) error
	// ApproximateBytes is about what tables hold of [start, end).
	ApproximateBytes(start, end []byte) (uint64, error)
	// VisibleSeq is the newest durable sequence.
	VisibleSeq() ikey.Seq
}

// Registry is the tenants of a node. It is safe for concurrent use.
type Registry struct {
	// Immutable after Open.
	o       Options
	started time.Time
	records store.System
	floors  store.System
	engine  Engine
	damage  error  // why the list can't be read; nil
	other   *usage // of all tenants without numbers of their own

	known atomic.Pointer[names]

	// changing is held by who changes known; a semaphore, so that waiting for it can be given up.
	changing *semaphore.Weighted
	retired  []*gate // guarded by changing: closed gates of unknown tenants that are not empty
	named    int     // guarded by changing: tenants with numbers of their own
}

// names is what is known at one moment; it is immutable.
type names struct {
	byName map[string]*entry
	// unknown stands for every other tenant.
	unknown *entry
}

// entry is a tenant at one moment. What its successors share with it is behind pointers.
type entry struct {
	Tenant
	clock causal.Clock // of its record
	gate  *gate
	// before are gates in which requests of the tenant may be that came when it was not known.
	before []*gate
	now    func() time.Duration // nil without limits
	ops    *bucket
	bytes  *bucket
	stored *atomic.Int64
	use    *usage
	// floor: changes up to it are of an earlier life.
	floor ikey.Seq
}

// New returns a registry of no tenants.
func New(o Options) *Registry {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.After == nil {
		o.After = time.After
	}
	if o.MaxTenants == 0 {
		o.MaxTenants = 10_000
	}
	r := &Registry{o: o, started: o.Now(), other: &usage{}, changing: semaphore.NewWeighted(1)}
	r.known.Store(&names{unknown: r.stranger()})
	return r
}

// stranger returns the entry of tenants that are not known.
func (r *Registry) stranger() *entry { return &entry{gate: newGate(), use: r.other} }

// Open loads the tenants from the store, which asks this registry, and finishes the drops that a crash
// interrupted. Nothing may be served before. A list that is damaged is no error of Open, but of every
// call for it, and of every request when the registry is strict: damage must not take from a node what
// it can still serve.
func (r *Registry) Open(ctx context.Context, s *store.Store, e Engine) error {
	r.records, r.floors, r.engine = s.System(systemTenant), s.System(floorsTenant), e
	byName := map[string]*entry{}
	var dropping []*entry
	floors, err := r.loadFloors(ctx)
	if err == nil {
		err = r.records.Each(ctx, func(name string, rec causal.Record) error {
			t, err := resolve(name, rec)
			if err != nil {
				return err
			}
			x := &entry{Tenant: t, clock: rec.Clock(), gate: newGate(), stored: new(atomic.Int64), floor: floors[name]}
			r.begin(x)
			if t.State != Active {
				x.gate.close()
			}
			if t.State == Dropping {
				dropping = append(dropping, x)
			}
			byName[name] = x
			return nil
		})
	}
	if errors.Is(err, engine.ErrCorrupt) || store.ReasonOf(err) == store.ReasonCorruptedData {
		r.damage = fmt.Errorf("the list of tenants is not readable: %w", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("tenants: %w", err)
	}
	r.known.Store(&names{byName: byName, unknown: r.known.Load().unknown})
	for _, x := range dropping {
		if _, err := r.finish(ctx, x); err != nil {
			return fmt.Errorf("finish the drop of tenant %q: %w", x.Name, err)
		}
	}
	return nil
}

// begin completes an entry with what its state and quota call for.
func (r *Registry) begin(x *entry) {
	x.now, x.ops, x.bytes = nil, newBucket(x.Quota.OperationsPerSecond), newBucket(x.Quota.BytesPerSecond)
	if x.Quota != (Quota{}) {
		x.now = func() time.Duration { return r.o.Now().Sub(r.started) }
	}
	switch {
	case x.State == Dropped && x.use != nil && x.use != r.other:
		r.named--
		x.use = r.other
	case x.use != nil:
	case x.State != Dropped && r.named < r.o.Named:
		r.named++
		x.use = &usage{}
	default:
		x.use = r.other
	}
}

// Damage returns why the list of tenants can't be read, nil if it can.
func (r *Registry) Damage() error { return r.damage }

// Strict reports whether tenants that are not known are refused.
func (r *Registry) Strict() bool { return r.o.Strict }

// lookup returns the entry of a tenant that is served.
func (r *Registry) lookup(tenant string) (*entry, error) {
	known := r.known.Load()
	x, ok := known.byName[tenant]
	switch {
	case !ok && r.o.Strict && r.damage != nil:
		return nil, r.damage
	case !ok && r.o.Strict:
		return nil, refuse(store.ReasonTenantNotFound,
			"tenant %q is not known to this node (PAIRDB_TENANTS=strict): create it first", tenant)
	case !ok:
		return known.unknown, nil
	case x.State != Active:
		return nil, errDropped(tenant)
	}
	return x, nil
}

func errDropped(tenant string) error {
	return refuse(store.ReasonTenantNotFound, "tenant %q was dropped; what it stored is gone", tenant)
}

// Admit implements store.Tenants.
func (r *Registry) Admit(tenant string, d store.Demand) (store.Admission, error) {
	for {
		x, err := r.lookup(tenant)
		if err != nil {
			return nil, err
		}
		inside, ok := x.gate.enter()
		if !ok {
			continue // what is known has changed
		}
		if x.now != nil {
			if err := x.charge(inside, d); err != nil {
				x.gate.leave()
				return nil, err
			}
		}
		x.use.requests.Add(1)
		x.use.bytes.Add(uint64(d.Bytes))
		return x, nil
	}
}

// LastWriterWins implements store.Admission.
func (x *entry) LastWriterWins() bool { return x.Conflicts == LastWriterWins }

// Release implements store.Admission.
func (x *entry) Release(keys, bytes int) {
	if x.now != nil && keys+bytes > 0 {
		now := x.now()
		x.ops.charge(now, keys)
		x.bytes.charge(now, bytes)
	}
	if bytes > 0 {
		x.use.bytes.Add(uint64(bytes))
	}
	x.gate.leave()
}

// lock waits until nobody else changes what is known, if it can be changed. The holder releases changing.
func (r *Registry) lock(ctx context.Context) error {
	if r.damage != nil {
		return r.damage
	}
	return r.changing.Acquire(ctx, 1)
}

// save makes a tenant durable and then known. x is what it was before, nil for a new name. changing is
// held.
func (r *Registry) save(ctx context.Context, t Tenant, x *entry) (*entry, error) {
	value, err := t.encode()
	if err != nil {
		return nil, err
	}
	var seen causal.Clock
	if x != nil {
		seen = x.clock
	}
	res, err := r.records.Write(ctx, t.Name, value, store.Causality{Context: seen, HasContext: true})
	if err != nil {
		return nil, fmt.Errorf("tenant %q: %w", t.Name, err)
	}
	return r.publish(successor{t: t, x: x, clock: res.Clock})[0], nil
}

// successor is what a tenant becomes: t, from x, which is nil for a new name.
type successor struct {
	t     Tenant
	x     *entry
	clock causal.Clock // of its record
}

// publish makes tenants known, all at once. changing is held.
func (r *Registry) publish(all ...successor) []*entry {
	known := r.known.Load()
	unknown := known.unknown
	byName := maps.Clone(known.byName)
	if byName == nil {
		byName = map[string]*entry{}
	}
	out := make([]*entry, len(all))
	for i, s := range all {
		next := &entry{}
		if s.x != nil {
			*next = *s.x
		}
		next.Tenant, next.clock = s.t, s.clock
		switch {
		case s.x == nil:
			next.gate, next.stored = newGate(), new(atomic.Int64)
			if unknown == known.unknown {
				unknown = r.stranger()
				r.retired = slices.DeleteFunc(r.retired, (*gate).isEmpty)
				r.retired = append(r.retired, known.unknown.gate)
			}
			next.before = slices.Clone(r.retired)
		case s.x.Generation != s.t.Generation:
			next.gate, next.stored, next.before, next.use = newGate(), new(atomic.Int64), nil, nil
		}
		byName[s.t.Name] = next
		r.begin(next)
		out[i] = next
	}
	r.known.Store(&names{byName: byName, unknown: unknown})
	// Whom a closed gate turns away looks the tenant up again: after the new map is there.
	for _, next := range out {
		if next.State != Active {
			next.gate.close()
		}
	}
	if unknown != known.unknown {
		known.unknown.gate.close()
	}
	return out
}

// List returns the tenants by name.
func (r *Registry) List(dropped bool) []Tenant {
	var out []Tenant
	for _, x := range r.known.Load().byName {
		if dropped || x.State != Dropped {
			out = append(out, x.view())
		}
	}
	slices.SortFunc(out, func(a, b Tenant) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// view completes a tenant with its numbers.
func (x *entry) view() Tenant {
	t := x.Tenant
	t.StoredBytes, t.InFlight = x.stored.Load(), int(x.gate.inside.Load()+x.gate.streams.Load())
	return t
}
