package node

import (
	"fmt"

	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
	"github.com/pairdb/pairdb/services/storage-node/internal/replica"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// newReplica returns what moves records in and out of the node in bulk.
func (n *Node) newReplica(e *engine.Engine, st *store.Store, tenants *tenant.Registry, owners *ownership.Registry) *replica.Replica {
	return replica.New(storeEngine{e}, st, replicaTenants{tenants}, replica.Options{
		ClusterID: n.cfg.ClusterID, Incarnation: n.identity.Incarnation, GCGrace: n.cfg.GCGrace, Owners: owners,
		Refusal: func() string {
			if err := tenants.Damage(); err != nil {
				return err.Error() // what was dropped is not known
			}
			return ""
		},
	})
}

// sweepPins lets go of the log that is held for moves that are over. While moves can't be read, all of it
// is kept.
func (n *Node) sweepPins(r *replica.Replica, known *moves.Registry) error {
	if known.Damage() != nil {
		return nil
	}
	_, err := r.Sweep(func(id string) bool {
		m, err := known.Get(id)
		return err == nil && m.Active()
	})
	if err != nil {
		return fmt.Errorf("pins of moves: %w", err)
	}
	return nil
}

// replicaCounts returns what went in and out while the engine is open.
func (n *Node) replicaCounts() (c replica.Counts, ok bool) {
	ok = n.withStorage(func(s *storage) { c = s.replica.Counts() })
	return c, ok
}
