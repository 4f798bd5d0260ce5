package node

import (
	"context"
	"net"
	"os"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// openMembers loads what is remembered of the cluster. Damage degrades the node and does not stop it.
func (n *Node) openMembers(st *store.Store) (*members.Registry, error) {
	r := members.New(members.Options{
		NodeID: n.cfg.NodeID, Incarnation: n.identity.Incarnation, Log: n.log, Problems: n.memberProblems,
	})
	if err := r.Open(context.Background(), st); err != nil {
		return nil, err
	}
	return r, nil
}

// memberProblems makes the problems of the registry reasons to be degraded.
func (n *Node) memberProblems(all []members.Reason) {
	reasons := make([]service.Reason, len(all))
	for i, p := range all {
		reasons[i] = service.Reason{Name: p.Name, Detail: p.Detail}
	}
	n.state.set(func(s *state) { s.members = reasons })
}

// advertised is where others reach the node: what it is told to say, or the host name in place of an
// address that stands for all of the machine's.
func (n *Node) advertised() string {
	if n.cfg.AdvertiseAddr != "" {
		return n.cfg.AdvertiseAddr
	}
	host, port, err := net.SplitHostPort(n.Addr())
	if err != nil {
		return n.Addr()
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return n.Addr()
	}
	name, err := os.Hostname()
	if err != nil {
		return n.Addr()
	}
	return net.JoinHostPort(name, port)
}
