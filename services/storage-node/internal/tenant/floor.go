package tenant

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// floorsTenant holds, by names of tenants, the sequence at which the tenant was emptied last: a number of
// this node, of eight bytes, big endian. The log may still have what was written before; who follows it
// must not take that for the life that came after.
const floorsTenant = "_tenant_floors"

// Floor returns the sequence up to which changes of a tenant are of an earlier life; 0: none is.
func (r *Registry) Floor(tenant []byte) ikey.Seq {
	if x := r.known.Load().byName[string(tenant)]; x != nil {
		return x.floor
	}
	return 0
}

func (r *Registry) loadFloors(ctx context.Context) (map[string]ikey.Seq, error) {
	out := map[string]ikey.Seq{}
	err := r.floors.Each(ctx, func(name string, rec causal.Record) error {
		for i := range rec.Siblings {
			if v := rec.Siblings[i].Value; len(v) == 8 {
				out[name] = max(out[name], ikey.Seq(binary.BigEndian.Uint64(v)))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("floors of tenants: %w", err)
	}
	return out, nil
}

// raiseFloors notes, durably, that tenants were emptied just now. Their gates are closed and empty, and
// changing is held.
func (r *Registry) raiseFloors(ctx context.Context, emptied ...*entry) error {
	floor := r.engine.VisibleSeq()
	ops := make([]store.Op, len(emptied))
	for i, x := range emptied {
		ops[i] = store.Op{Kind: store.Put, Key: x.Name, Value: binary.BigEndian.AppendUint64(nil, uint64(floor))}
	}
	for len(ops) > 0 {
		n := min(len(ops), store.MaxBatchOps)
		if _, err := r.floors.WriteAll(ctx, ops[:n]); err != nil {
			return fmt.Errorf("floors of tenants: %w", err)
		}
		ops = ops[n:]
	}
	known := r.known.Load()
	byName := maps.Clone(known.byName)
	for _, x := range emptied {
		next := *byName[x.Name]
		next.floor = floor
		byName[x.Name] = &next
	}
	r.known.Store(&names{byName: byName, unknown: known.unknown})
	return nil
}
