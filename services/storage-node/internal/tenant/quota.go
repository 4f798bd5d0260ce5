package tenant

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	// inFlightRetry is when to come back to a quota of requests in flight: most end sooner.
	inFlightRetry = 50 * time.Millisecond
	// streamPatience is how long a stream waits for its quota; its snapshot holds tables meanwhile.
	streamPatience = time.Minute
)

// charge takes from the quota what a request needs, or refuses it. inside counts the requests of the
// tenant with this one, without streams.
func (x *entry) charge(inside int64, d store.Demand) error {
	q := &x.Quota
	if q.StoredBytes > 0 && d.Grows && x.stored.Load() >= q.StoredBytes {
		return x.exceeded(quotaStored, q.StoredBytes, refreshInterval)
	}
	if q.InFlight > 0 && inside+x.gate.streams.Load() > int64(q.InFlight) {
		return x.exceeded(quotaInFlight, int64(q.InFlight), inFlightRetry)
	}
	if wait, quota, limit := x.take(d.Keys, d.Bytes); wait > 0 {
		return x.exceeded(quota, limit, wait)
	}
	return nil
}

// exceeded counts and describes a refusal.
func (x *entry) exceeded(quota string, limit int64, wait time.Duration) error {
	x.use.refused[quotaIndex(quota)].Add(1)
	return &store.Error{
		Reason: store.ReasonQuotaExceeded, RetryAfter: wait,
		Message:  fmt.Sprintf("tenant %q is over its quota %s of %d", x.Name, quota, limit),
		Metadata: map[string]string{"quota": quota, "limit": strconv.FormatInt(limit, 10)},
	}
}

// stream is a stream of a tenant.
type stream struct {
	r      *Registry
	tenant string
	// generation is that of the tenant when the stream began, 0 when it was not known.
	generation uint64
	gate       *gate // of that time
}

// AdmitStream implements store.Tenants.
func (r *Registry) AdmitStream(tenant string) (store.StreamAdmission, error) {
	x, err := r.lookup(tenant)
	if err != nil {
		return nil, err
	}
	s := &stream{r: r, tenant: tenant, generation: x.Generation, gate: x.gate}
	streams := x.gate.streams.Add(1)
	if q := x.Quota.InFlight; q > 0 && streams+x.gate.inside.Load() > int64(q) {
		s.Release()
		return nil, x.exceeded(quotaInFlight, int64(q), inFlightRetry)
	}
	if wait, quota, limit := x.take(0, 0); wait > streamPatience {
		s.Release()
		return nil, x.exceeded(quota, limit, wait)
	}
	x.use.requests.Add(1)
	return s, nil
}

// Release implements store.StreamAdmission.
func (s *stream) Release() { s.gate.streams.Add(-1) }

// Pace implements store.StreamAdmission.
func (s *stream) Pace(ctx context.Context, keys, bytes int) error {
	for {
		x, err := s.r.lookup(s.tenant)
		if err != nil {
			return err
		}
		// The first generation may have begun under the stream, a later one is not what it reads.
		if x.Generation != s.generation && !(s.generation == 0 && x.Generation == 1) {
			return errDropped(s.tenant)
		}
		wait, quota, limit := x.take(keys, bytes)
		if wait == 0 {
			x.use.bytes.Add(uint64(bytes))
			return nil
		}
		if wait > streamPatience {
			return x.exceeded(quota, limit, wait)
		}
		select {
		case <-s.r.o.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take takes from the rates, or says how long to wait and for which quota.
func (x *entry) take(keys, bytes int) (wait time.Duration, quota string, limit int64) {
	if x.now == nil {
		return 0, "", 0
	}
	now := x.now()
	if wait := x.ops.take(now, keys); wait > 0 {
		return wait, quotaOperations, x.Quota.OperationsPerSecond
	}
	if wait := x.bytes.take(now, bytes); wait > 0 {
		x.ops.giveBack(keys)
		return wait, quotaBytes, x.Quota.BytesPerSecond
	}
	return 0, "", 0
}
