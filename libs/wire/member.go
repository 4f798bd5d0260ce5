package wire

import (
	"github.com/pairdb/pairdb/libs/membership"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
)

// DeclarationToProto converts a declaration. One that is outside of its limits is ErrInvalid.
func DeclarationToProto(d membership.Declaration) (*clusterv1.Declaration, error) {
	if err := d.Validate(); err != nil {
		return nil, invalid("%v", err)
	}
	return &clusterv1.Declaration{
		NodeId: d.NodeID, Version: d.Version, State: clusterv1.MemberState(d.State), Incarnation: d.Incarnation,
		GrpcAddr: d.GRPCAddr, Zone: d.Zone, VirtualNodes: int32(d.VirtualNodes), DeclaredAtMs: d.DeclaredAt,
	}, nil
}

// DeclarationFromProto converts a declaration. One that is missing or outside of its limits is
// ErrInvalid.
func DeclarationFromProto(p *clusterv1.Declaration) (membership.Declaration, error) {
	if s := p.GetState(); s < 0 || s > clusterv1.MemberState(membership.Removed) {
		return membership.Declaration{}, invalid("unknown state of a member %d", s)
	}
	d := membership.Declaration{
		NodeID: p.GetNodeId(), Version: p.GetVersion(), State: membership.State(p.GetState()), Incarnation: p.GetIncarnation(),
		GRPCAddr: p.GetGrpcAddr(), Zone: p.GetZone(), VirtualNodes: int(p.GetVirtualNodes()), DeclaredAt: p.GetDeclaredAtMs(),
	}
	if err := d.Validate(); err != nil {
		return membership.Declaration{}, invalid("%v", err)
	}
	return d, nil
}

// MembersToProto converts a map, by node id.
func MembersToProto(m membership.Map) ([]*clusterv1.Declaration, error) {
	out := make([]*clusterv1.Declaration, 0, len(m))
	for _, d := range m.Sorted() {
		p, err := DeclarationToProto(d)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// MembersFromProto converts a map. Of several declarations of one node the one that counts is taken.
func MembersFromProto(list []*clusterv1.Declaration) (membership.Map, error) {
	if len(list) > membership.MaxMembers {
		return nil, invalid("%d members, at most %d", len(list), membership.MaxMembers)
	}
	declarations := make([]membership.Declaration, 0, len(list))
	for _, p := range list {
		d, err := DeclarationFromProto(p)
		if err != nil {
			return nil, err
		}
		declarations = append(declarations, d)
	}
	m := membership.Map{}
	if _, err := m.Merge(declarations...); err != nil {
		return nil, invalid("%v", err)
	}
	return m, nil
}
