package migrator

import (
	"context"
	"sync"

	"github.com/pairdb/pairdb/libs/sidecar"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
)

// members are where other nodes are, as the own node says, and which of them were removed. It is safe for concurrent use.
type members struct {
	mu      sync.Mutex
	addr    map[string]string // guarded by mu; by node id
	removed map[string]bool   // guarded by mu; by node id
}

// Addr returns where a node serves clients.
func (s *members) Addr(nodeID string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	addr, ok := s.addr[nodeID]
	return addr, ok
}

// Removed reports whether a node was taken off the list.
func (s *members) Removed(nodeID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removed[nodeID]
}

// watch keeps up with the members until ctx ends. While the node is away the last ones count.
func (s *members) watch(ctx context.Context, m *Migrator) {
	pause := minRetry
	for ctx.Err() == nil {
		feed, err := m.admin.WatchMembers(ctx, &adminv1.WatchMembersRequest{}, failFast)
		for err == nil {
			var a *adminv1.WatchMembersResponse
			if a, err = feed.Recv(); err == nil {
				pause = minRetry
				s.set(a)
			}
		}
		_ = sidecar.Pause(ctx, pause)
		pause = min(2*pause, maxRetry)
	}
}

func (s *members) set(a *adminv1.WatchMembersResponse) {
	addr, removed := map[string]string{}, map[string]bool{}
	for _, m := range a.GetView().GetMembers() {
		if at := m.GetDeclared().GetGrpcAddr(); at != "" {
			addr[m.GetDeclared().GetNodeId()] = at
		}
		if m.GetDeclared().GetState() == clusterv1.MemberState_MEMBER_STATE_REMOVED {
			removed[m.GetDeclared().GetNodeId()] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addr, s.removed = addr, removed
}
