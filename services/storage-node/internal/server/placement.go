package server

import (
	"maps"
	"slices"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
)

// defaultReplicationFactor is that of PAIRDB_REPLICATION_FACTOR.
const defaultReplicationFactor = 3

func (b *Backend) replicationFactor() int {
	if b.ReplicationFactor > 0 {
		return b.ReplicationFactor
	}
	return defaultReplicationFactor
}

// ringOf returns the ring of the members that a filter takes.
func (b *Backend) ringOf(v members.View, take func(*members.Member) bool) *ring.Ring {
	var all []ring.Member
	for i := range v.Members {
		if m := &v.Members[i]; take(m) {
			all = append(all, ring.Member{NodeID: m.Declared.NodeID, Zone: m.Declared.Zone, VirtualNodes: m.Declared.VirtualNodes})
		}
	}
	return ring.New(all, b.replicationFactor())
}

// owns reports whether a member owns its ranges now.
func owns(m *members.Member) bool {
	return m.Declared.State == membership.Up || m.Declared.State == membership.Draining
}

// owners returns the ring of those that own ranges now.
func (b *Backend) owners(v members.View) *ring.Ring { return b.ringOf(v, owns) }

// memberOf returns what is known of a member, nil if it was never declared.
func memberOf(v members.View, nodeID string) *members.Member {
	i := slices.IndexFunc(v.Members, func(m members.Member) bool { return m.Declared.NodeID == nodeID })
	if i < 0 {
		return nil
	}
	return &v.Members[i]
}

// addrOf returns where a member serves clients; empty if that is not known.
func addrOf(v members.View, nodeID string) string {
	if m := memberOf(v, nodeID); m != nil {
		return m.Declared.GRPCAddr
	}
	return ""
}

// peer is another node with the ranges that a node shares with it.
type peer struct {
	nodeID string
	ranges []ring.HashRange
}

// peers returns those with which a node shares ranges, by node id.
func peers(r *ring.Ring, nodeID string) []peer {
	shared := map[string][]ring.HashRange{}
	for _, p := range r.RangesOf(nodeID) {
		for _, other := range p.Replicas {
			if other != nodeID {
				shared[other] = append(shared[other], p.Range)
			}
		}
	}
	var out []peer
	for _, id := range slices.Sorted(maps.Keys(shared)) {
		out = append(out, peer{id, ring.Normal(shared[id])})
	}
	return out
}
