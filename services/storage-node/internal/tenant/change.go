package tenant

import (
	"context"
	"fmt"
	"slices"

	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Create makes a tenant known. A dropped one begins its next generation. For a tenant that is there
// with the same quota and policy it returns that one.
func (r *Registry) Create(ctx context.Context, name string, q Quota, p Policy) (Tenant, error) {
	if p == 0 {
		p = KeepSiblings
	}
	if err := check(name, q, p); err != nil {
		return Tenant{}, err
	}
	if err := r.lock(ctx); err != nil {
		return Tenant{}, err
	}
	defer r.changing.Release(1)
	known := r.known.Load().byName
	x := known[name]
	t := Tenant{Name: name, Generation: 1, State: Active, Quota: q, Conflicts: p, CreatedAt: r.o.Now().Unix()}
	switch {
	case x == nil && len(known) >= r.o.MaxTenants:
		return Tenant{}, refuse(store.ReasonTooManyTenants, "the node knows %d tenants, dropped ones included: the limit", len(known))
	case x == nil:
	case x.State == Active && x.Quota == q && x.Conflicts == p:
		return x.view(), nil
	case x.State == Active:
		return Tenant{}, refuse(store.ReasonTenantExists, "tenant %q exists with another quota or policy: update it", name)
	case x.State == Dropping:
		return Tenant{}, errDropping(name)
	default:
		t.Generation = x.Generation + 1
	}
	x, err := r.save(ctx, t, x)
	if err != nil {
		return Tenant{}, err
	}
	return x.view(), nil
}

// Update replaces the quota of a tenant unless q is nil, and its policy unless p is 0.
func (r *Registry) Update(ctx context.Context, name string, q *Quota, p Policy) (Tenant, error) {
	if q == nil && p == 0 {
		return Tenant{}, refuse(store.ReasonUpdate, "neither a quota nor a policy for conflicts is given")
	}
	if err := r.lock(ctx); err != nil {
		return Tenant{}, err
	}
	defer r.changing.Release(1)
	x, err := r.find(name)
	if err != nil {
		return Tenant{}, err
	}
	if x.State != Active {
		return Tenant{}, errDropped(name)
	}
	t := x.Tenant
	if q != nil {
		t.Quota = *q
	}
	if p != 0 {
		t.Conflicts = p
	}
	if err := check(name, t.Quota, t.Conflicts); err != nil {
		return Tenant{}, err
	}
	if x, err = r.save(ctx, t, x); err != nil {
		return Tenant{}, err
	}
	return x.view(), nil
}

func check(name string, q Quota, p Policy) error {
	if err := store.CheckTenant(name); err != nil {
		return err
	}
	if p > LastWriterWins {
		return refuse(store.ReasonConflictPolicy, "policy for conflicts %d is unknown", p)
	}
	return q.check()
}

// find returns a tenant that is known. changing is held.
func (r *Registry) find(name string) (*entry, error) {
	if err := store.CheckTenant(name); err != nil {
		return nil, err
	}
	x := r.known.Load().byName[name]
	if x == nil {
		return nil, refuse(store.ReasonTenantNotFound, "tenant %q is not known to this node; one that was never created can be created and then dropped", name)
	}
	return x, nil
}

// Drop ends a tenant: it refuses new requests, waits for those in flight as long as ctx allows, and
// removes everything. When it returns an error the tenant may be DROPPING: refused, and dropped by
// the next call or the next open. A tenant that is dropped already stays so.
func (r *Registry) Drop(ctx context.Context, name string) (Tenant, error) {
	x, err := r.refuseAll(ctx, name)
	if err != nil {
		return Tenant{}, err
	}
	if x.State == Dropped {
		return x.view(), nil
	}
	for _, g := range slices.Concat(x.before, []*gate{x.gate}) {
		if err := g.wait(ctx); err != nil {
			return Tenant{}, fmt.Errorf("drop of tenant %q: requests are in flight, it goes on when it is called again: %w", name, err)
		}
	}
	if x, err = r.finish(ctx, x); err != nil {
		return Tenant{}, err
	}
	return x.view(), nil
}

// refuseAll makes DROPPING durable; afterwards no new request is taken up.
func (r *Registry) refuseAll(ctx context.Context, name string) (*entry, error) {
	if err := r.lock(ctx); err != nil {
		return nil, err
	}
	defer r.changing.Release(1)
	x, err := r.find(name)
	if err != nil || x.State != Active {
		return x, err
	}
	t := x.Tenant
	t.State = Dropping
	return r.save(ctx, t, x)
}

// finish removes everything of a tenant that is DROPPING and has no requests in flight, and makes
// DROPPED durable. Two drops of one life may come here: the second finds it done.
func (r *Registry) finish(ctx context.Context, x *entry) (*entry, error) {
	if err := r.lock(ctx); err != nil {
		return nil, err
	}
	defer r.changing.Release(1)
	now := r.known.Load().byName[x.Name]
	if now.Generation != x.Generation || now.State != Dropping {
		dropped := *now
		dropped.Generation, dropped.State = x.Generation, Dropped
		return &dropped, nil
	}
	if err := r.engine.DeleteSpans(store.TenantSpans(x.Name)); err != nil {
		return nil, fmt.Errorf("drop of tenant %q: %w", x.Name, err)
	}
	if err := r.raiseFloors(ctx, now); err != nil {
		return nil, fmt.Errorf("drop of tenant %q: %w", x.Name, err)
	}
	t := now.Tenant
	t.State = Dropped
	x, err := r.save(ctx, t, r.known.Load().byName[x.Name])
	if err != nil {
		return nil, err
	}
	x.stored.Store(0)
	return x, nil
}
