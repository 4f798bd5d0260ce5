package tenant

import (
	"context"
	"fmt"
	"slices"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Record is that of a tenant as it is stored, for other nodes.
type Record struct {
	Name  string
	Value []byte
}

// Records returns the records of all tenants, dropped ones included, by name.
func (r *Registry) Records(ctx context.Context) ([]Record, error) {
	if r.damage != nil {
		return nil, r.damage
	}
	var out []Record
	err := r.records.Each(ctx, func(name string, rec causal.Record) error {
		out = append(out, Record{name, rec.Encode(nil)})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("tenants: %w", err)
	}
	return out, nil
}

// JoinRecords joins the records of another node with those of this one. A tenant that is dropped there, or
// lives a later life, loses here what it stored before: a replica that was away does not bring it back.
// When it returns an error, some of the records may be joined; it may be called again.
//
// What is to be removed is removed before the record says so: its gate is closed in memory first. After a
// crash in between the record is the old one, and the next exchange finds the same to do.
func (r *Registry) JoinRecords(ctx context.Context, foreign []Record) error {
	theirs := map[string]causal.Record{}
	for _, f := range foreign {
		rec, err := checkForeign(f)
		if err != nil {
			return err
		}
		theirs[f.Name] = causal.Join(theirs[f.Name], rec)
	}
	if err := r.lock(ctx); err != nil {
		return err
	}
	defer r.changing.Release(1)
	ours := map[string]causal.Record{}
	err := r.records.Each(ctx, func(name string, rec causal.Record) error {
		if _, asked := theirs[name]; !asked {
			return nil
		}
		own, err := causal.Decode(rec.Encode(nil)) // values are valid until this returns
		ours[name] = own
		return err
	})
	if err != nil {
		return fmt.Errorf("tenants: %w", err)
	}
	var joins []joined
	for name, rec := range theirs {
		j := joined{name: name, record: causal.Join(ours[name], rec)}
		if j.record.Equal(ours[name]) {
			continue
		}
		if j.next, err = resolve(name, j.record); err != nil {
			return err
		}
		joins = append(joins, j)
	}
	return r.adopt(ctx, joins)
}

// joined is a record that is to be stored.
type joined struct {
	name   string
	record causal.Record
	next   Tenant
}

func checkForeign(f Record) (causal.Record, error) {
	if err := store.CheckTenant(f.Name); err != nil {
		return causal.Record{}, err
	}
	rec, err := causal.Decode(f.Value)
	if err == nil {
		_, err = resolve(f.Name, rec)
	}
	if err != nil {
		return causal.Record{}, refuse(store.ReasonIngest, "record of tenant %q: %v", f.Name, err)
	}
	return rec, nil
}

// adopt ends what has to end, then makes the records durable and known. changing is held.
func (r *Registry) adopt(ctx context.Context, joins []joined) error {
	known := r.known.Load().byName
	fresh := 0
	var ending []successor
	for _, j := range joins {
		x := known[j.name]
		if x == nil {
			fresh++
		}
		if t, ends := ends(x, j.next); ends {
			s := successor{t: t, x: x}
			if x != nil {
				s.clock = x.clock
			}
			ending = append(ending, s)
		}
	}
	if n := len(known) + fresh; n > r.o.MaxTenants && fresh > 0 {
		return refuse(store.ReasonTooManyTenants, "the node would know %d tenants, dropped ones included: at most %d are allowed", n, r.o.MaxTenants)
	}
	if err := r.end(ctx, ending); err != nil {
		return err
	}
	fragments := make(map[string]causal.Record, len(joins))
	for _, j := range joins {
		fragments[j.name] = j.record
	}
	if err := r.records.JoinAll(ctx, fragments); err != nil {
		return fmt.Errorf("tenants: %w", err)
	}
	known = r.known.Load().byName
	next := make([]successor, len(joins))
	for i, j := range joins {
		if j.next.State == Dropping {
			// What it stored here is removed already; that it is so elsewhere, others say.
			j.next.State = Dropped
		}
		next[i] = successor{t: j.next, x: known[j.name], clock: j.record.Clock()}
	}
	r.publish(next...)
	return nil
}

// ends reports whether what is stored for a tenant has to be removed before it becomes next, and what it is
// until then. Of a name that was not known, nothing can be of a later life than the first.
func ends(x *entry, next Tenant) (until Tenant, ends bool) {
	switch {
	case x == nil && next.State == Active && next.Generation == 1:
		return Tenant{}, false
	case x == nil:
		until = next
		if next.State == Active {
			until.Generation--
		}
	case x.State == Dropped:
		return Tenant{}, false
	case x.State == Active && next.Generation == x.Generation && next.State == Active:
		return Tenant{}, false
	default:
		until = x.Tenant
	}
	until.State = Dropping
	return until, true
}

// end refuses requests of tenants, waits for those in flight, and removes what is stored. changing is held.
func (r *Registry) end(ctx context.Context, ending []successor) error {
	if len(ending) == 0 {
		return nil
	}
	var spans []store.KeySpan
	entries := r.publish(ending...)
	for _, x := range entries {
		for _, g := range slices.Concat(x.before, []*gate{x.gate}) {
			if err := g.wait(ctx); err != nil {
				return fmt.Errorf("drop of tenant %q: requests are in flight, it goes on at the next exchange: %w", x.Name, err)
			}
		}
		for _, s := range store.TenantSpans(x.Name) {
			some, err := r.records.Holds(s)
			if err != nil {
				return fmt.Errorf("drop of tenant %q: %w", x.Name, err)
			}
			if some { // a range delete for nothing would stay until the last level
				spans = append(spans, s)
			}
		}
		x.stored.Store(0)
	}
	if len(spans) > 0 {
		if err := r.engine.DeleteSpans(spans); err != nil {
			return fmt.Errorf("drop of %d tenants: %w", len(ending), err)
		}
	}
	return r.raiseFloors(ctx, entries...)
}

// Lives are the lives that tenants had at one moment.
type Lives struct {
	r    *Registry
	then *names
}

// Lives returns the lives that tenants have now.
func (r *Registry) Lives() Lives { return Lives{r, r.known.Load()} }

// Stay is a write of a replica that is under way: a drop of its tenant waits for it.
type Stay struct{ gate *gate }

// Leave ends the write. It is called once.
func (s Stay) Leave() { s.gate.leave() }

// Enter takes up a write that another node sent; quotas don't count for it, and a tenant need not be known.
// ok is false for a tenant that is dropped. again says that it was created again since: what was sent for
// its life before must not be stored, and what is sent for the new one must; only a new exchange tells.
func (l Lives) Enter(tenant string) (s Stay, ok, again bool) {
	was := l.then.byName[tenant]
	for {
		known := l.r.known.Load()
		x := known.byName[tenant]
		switch {
		case x == nil:
			x = known.unknown
		case x.State != Active:
			return Stay{}, false, false
		case was == nil && x.Generation > 1, was != nil && was.Generation != x.Generation:
			return Stay{}, false, true
		}
		if _, entered := x.gate.enter(); entered {
			return Stay{x.gate}, true, false
		}
		// What is known has changed.
	}
}
