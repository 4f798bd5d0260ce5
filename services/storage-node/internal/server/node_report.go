package server

import (
	"context"
	"time"

	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/libs/wire"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// Identity is what the sidecars of a pod are told of their node.
type Identity struct {
	sidecar.Identity
	// Incarnation is that of the data directory.
	Incarnation string
	// GRPCAddr is where others reach the node, host:port; VirtualNodes its places on the ring.
	GRPCAddr     string
	VirtualNodes int
}

// wanted returns what the node wants to be declared as. Before it knows that it wants to be JOINING, which
// takes nobody back: a health-agent that hears of it stays with what is declared, and waits.
func (s *Server) wanted() clusterv1.MemberState {
	b, err := s.backend()
	if err != nil || b.Moves == nil {
		return clusterv1.MemberState_MEMBER_STATE_JOINING
	}
	return clusterv1.MemberState(b.Moves.Wanted())
}

// NewNode returns the service for the sidecars of the pod. It belongs on the pod's socket only.
func (s *Server) NewNode(id Identity) nodev1.NodeServiceServer { return &nodeService{s: s, id: id} }

// nodeService serves the sidecars of the pod.
type nodeService struct {
	nodev1.UnimplementedNodeServiceServer
	s  *Server
	id Identity
}

// Identity says whose sidecar the caller is.
func (n *nodeService) Identity(_ context.Context, r *nodev1.IdentityRequest) (*nodev1.IdentityResponse, error) {
	if err := n.s.node.Sidecars.Note(r.GetSidecar(), time.Now()); err != nil {
		return nil, err
	}
	return &nodev1.IdentityResponse{
		NodeId: n.id.NodeID, ClusterId: n.id.ClusterID, Version: n.id.Version, Session: n.id.Session,
		Incarnation: n.id.Incarnation, GrpcAddr: n.id.GRPCAddr, VirtualNodes: int32(n.id.VirtualNodes),
		WantedState: n.s.wanted(),
	}, nil
}

// Report takes the view of the health-agent and answers with all that the node remembers.
func (n *nodeService) Report(ctx context.Context, r *nodev1.ReportRequest) (*nodev1.ReportResponse, error) {
	b, err := n.s.backend()
	if err != nil {
		return nil, err
	}
	report, err := reportFromProto(r)
	if err != nil {
		return nil, err
	}
	known, err := b.Members.Report(ctx, report)
	if err != nil {
		return nil, err
	}
	resp := &nodev1.ReportResponse{Declarations: make([]*clusterv1.Declaration, len(known))}
	for i, d := range known {
		if resp.Declarations[i], err = wire.DeclarationToProto(d); err != nil {
			return nil, err
		}
	}
	return resp, nil
}
