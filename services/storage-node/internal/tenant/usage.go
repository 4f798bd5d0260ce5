package tenant

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Quotas are the names of the quotas, in the order of Usage.Refused.
var Quotas = [...]string{quotaOperations, quotaBytes, quotaInFlight, quotaStored}

func quotaIndex(name string) int { return slices.Index(Quotas[:], name) }

// usage counts what a tenant used, or several together.
type usage struct {
	requests atomic.Uint64
	bytes    atomic.Uint64
	refused  [len(Quotas)]atomic.Uint64
}

// Others is the name under which Usage has the sum of all tenants without numbers of their own. No
// tenant can have it.
const Others = "_other"

// Usage is what a tenant used since the node started.
type Usage struct {
	Name string
	// Requests were taken up, Bytes are those of keys and values that they brought or read. Refused
	// counts the others by quota.
	Requests, Bytes uint64
	Refused         [len(Quotas)]uint64
	// StoredBytes is an estimate; Others has that of tenants that are known.
	StoredBytes int64
	// InFlight is how many requests are worked on and how many streams are open now.
	InFlight int64
}

// Population is how many tenants are known, dropped ones included, by State, and how many may be.
type Population struct {
	ByState [Dropped + 1]int
	Limit   int
}

// Population counts the tenants that are known.
func (r *Registry) Population() Population {
	p := Population{Limit: r.o.MaxTenants}
	for _, x := range r.known.Load().byName {
		p.ByState[x.State]++
	}
	return p
}

// Usage returns the numbers of up to Options.Named tenants by name, then those of the others. Which
// tenants have numbers is decided when they become known, so that no number goes down.
func (r *Registry) Usage() []Usage {
	var out []Usage
	known := r.known.Load()
	others := Usage{Name: Others, InFlight: known.unknown.gate.load()}
	for name, x := range known.byName {
		if x.use == r.other {
			others.StoredBytes += x.stored.Load()
			others.InFlight += x.gate.load()
			continue
		}
		u := Usage{Name: name, StoredBytes: x.stored.Load(), InFlight: x.gate.load()}
		u.add(x.use)
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b Usage) int { return strings.Compare(a.Name, b.Name) })
	others.add(r.other)
	return append(out, others)
}

func (u *Usage) add(of *usage) {
	u.Requests, u.Bytes = of.requests.Load(), of.bytes.Load()
	for i := range of.refused {
		u.Refused[i] = of.refused[i].Load()
	}
}

// refreshInterval is how far the sizes of tenants lag behind. Looking at one costs a search in each
// level, and an index block of the tables at its ends.
const refreshInterval = 5 * time.Second

// Run keeps the sizes of tenants current until ctx ends.
func (r *Registry) Run(ctx context.Context) {
	for ctx.Err() == nil {
		_ = r.Refresh(ctx) // the engine is closing, or tells of damage itself: the old sizes stay
		select {
		case <-r.o.After(refreshInterval):
		case <-ctx.Done():
		}
	}
}

// Refresh looks up the sizes of all tenants.
func (r *Registry) Refresh(ctx context.Context) error {
	var failed error
	for _, x := range r.known.Load().byName {
		if err := ctx.Err(); err != nil {
			return err
		}
		if x.State == Dropped {
			continue
		}
		var sum uint64
		var err error
		for _, span := range store.TenantSpans(x.Name) {
			n, e := r.engine.ApproximateBytes(span.Start, span.End)
			sum, err = sum+n, errors.Join(err, e)
		}
		if err == nil {
			x.stored.Store(int64(sum))
		}
		failed = errors.Join(failed, err)
	}
	return failed
}
