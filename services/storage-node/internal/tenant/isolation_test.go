package tenant

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// hostileTenants are prefixes of one another, or next to one another in byte order.
var hostileTenants = []string{"a", "ab", "a\U0010ffff", "b"}

// hostileKeys begin with other tenants' bytes, and stand at the edges of a tenant.
var hostileKeys = []string{
	"\t", "\n", "a", "ab", "b", "a\tb", "b\tk", "ab\ta", "\U0010ffff", "_tenants", "_idempotency", "ä", "k", "k2",
}

// isolation is a node and one model per tenant.
type isolation struct {
	t      *rapid.T
	n      *node
	fs     vfs.FS
	models map[string]map[string]string
	named  map[string]map[string]store.WriteRequest // by tenant and idempotency key
	active map[string]bool                          // created and not dropped
	writes uint64
}

// Danger: a call returns, changes or drops what is another tenant's.
func TestTenantsAreIsolated(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := &isolation{t: t, fs: vfs.NewMem(), models: map[string]map[string]string{}, active: map[string]bool{}}
		var err error
		x.n, err = open(t, x.fs, Options{})
		require.NoError(t, err)
		x.named = map[string]map[string]store.WriteRequest{}
		for _, tenant := range hostileTenants {
			x.models[tenant], x.named[tenant] = map[string]string{}, map[string]store.WriteRequest{}
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		for range rapid.IntRange(20, 200).Draw(t, "steps") {
			x.step(rng)
		}
		for _, tenant := range hostileTenants {
			x.compare(tenant)
		}
		require.NoError(t, x.n.engine.Close())
	})
}

func (x *isolation) step(rng *rand.Rand) {
	t, s := x.t, x.n.store
	tenant := hostileTenants[rng.IntN(len(hostileTenants))]
	key := hostileKeys[rng.IntN(len(hostileKeys))]
	model := x.models[tenant]
	x.writes++
	value := fmt.Sprintf("%s/%s/%d", tenant, key, x.writes)
	served := x.active[tenant] || x.generation(tenant) == 0
	check := func(err error) bool {
		if !served {
			requireReason(t, store.ReasonTenantNotFound, err)
			return false
		}
		require.NoError(t, err)
		return true
	}
	switch rng.IntN(16) {
	case 0, 1, 2:
		if check(x.n.put(tenant, key, value)) {
			model[key] = value
		}
	case 3:
		if check(second(s.Delete(bg, store.DeleteRequest{Tenant: tenant, Key: key}))) {
			delete(model, key)
		}
	case 4:
		// Read, merged and written back, so that the model has one value.
		err := s.Repair(bg, store.RepairRequest{Tenant: tenant, Key: key, Siblings: foreign("m", x.writes, value)})
		if check(err) && check(x.n.put(tenant, key, value)) {
			model[key] = value
		}
	case 5, 6:
		var ops []store.Op
		after := maps.Clone(model)
		for range rng.IntN(20) {
			key := hostileKeys[rng.IntN(len(hostileKeys))]
			if rng.IntN(3) == 0 {
				ops = append(ops, store.Op{Kind: store.Delete, Key: key})
				delete(after, key)
				continue
			}
			ops = append(ops, store.Op{Kind: store.Put, Key: key, Value: []byte(value + key)})
			after[key] = value + key
		}
		if check(second(s.BatchWrite(bg, store.BatchWriteRequest{Tenant: tenant, Ops: ops, Atomic: rng.IntN(2) == 0}))) {
			x.models[tenant] = after
		}
	case 7:
		if served {
			require.Equal(t, model[key], x.n.get(t, tenant, key))
		}
	case 8:
		if served {
			x.compare(tenant)
		}
	case 9:
		require.NoError(t, x.n.engine.Flush(bg))
	case 10:
		require.NoError(t, x.n.engine.Compact(bg, nil, nil, nil))
	case 11:
		x.reopen()
	case 12:
		if x.active[tenant] {
			_, err := x.n.Drop(bg, tenant)
			require.NoError(t, err)
			x.active[tenant], x.models[tenant], x.named[tenant] = false, map[string]string{}, map[string]store.WriteRequest{}
		}
	case 13:
		_, err := x.n.Create(bg, tenant, Quota{InFlight: 5}, 0)
		require.NoError(t, err)
		x.active[tenant] = true
	case 14, 15:
		// Idempotency keys that tenants have in common, or that begin with another tenant's name.
		id := []string{"id", "a", "b", "ab"}[rng.IntN(4)]
		first, used := x.named[tenant][id]
		r := store.WriteRequest{Tenant: tenant, Key: key, Value: []byte(value), IdempotencyKey: id}
		if used && rng.IntN(2) == 0 {
			r = first
		}
		got, err := s.Write(bg, r)
		if served && used && string(r.Value) != string(first.Value) {
			requireReason(t, store.ReasonKeyReused, err)
			return
		}
		if check(err) {
			require.Equal(t, used, got.Replayed)
			if !used {
				model[key], x.named[tenant][id] = value, r
			}
		}
	}
}

func (x *isolation) generation(tenant string) uint64 {
	if e := x.n.known.Load().byName[tenant]; e != nil {
		return e.Generation
	}
	return 0
}

func (x *isolation) reopen() {
	require.NoError(x.t, x.n.engine.Close())
	var err error
	x.n, err = open(x.t, x.fs, Options{})
	require.NoError(x.t, err)
}

// compare checks every way to read a tenant against its model.
func (x *isolation) compare(tenant string) {
	t, s, model := x.t, x.n.store, x.models[tenant]
	if !x.active[tenant] && x.generation(tenant) > 0 {
		_, err := s.Read(bg, tenant, "k", nil)
		requireReason(t, store.ReasonTenantNotFound, err)
		return
	}
	want := slices.Sorted(maps.Keys(model))
	var keys []string
	for token := ""; ; {
		page, err := s.KeyRange(bg, store.KeyRangeRequest{Tenant: tenant, MaxKeys: 3, PageToken: token})
		require.NoError(t, err)
		for _, k := range page.Keys {
			keys = append(keys, k.Key)
		}
		if token = page.Next; token == "" {
			break
		}
	}
	require.Equal(t, want, keys, "keys of %q", tenant)
	streamed := map[string]string{}
	require.NoError(t, s.Stream(bg, store.StreamRequest{Tenant: tenant}, func(c store.Chunk) error {
		for _, r := range c.Records {
			streamed[r.Key] = string(r.Siblings[causal.Winner(r.Siblings)].Value)
		}
		return nil
	}))
	require.Equal(t, model, streamed, "stream of %q", tenant)
	read, err := s.BatchRead(bg, tenant, hostileKeys)
	require.NoError(t, err)
	for i, key := range hostileKeys {
		require.NoError(t, read[i].Err)
		require.Equal(t, model[key], string(read[i].Value), "%q of %q", key, tenant)
	}
}
