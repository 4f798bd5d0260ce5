package wire_test

import (
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/wire"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
)

func TestAnyDeclarationArrivesAsItWasSent(t *testing.T) {
	// A field that is forgotten here is a member that never looks the same to its agent and its node.
	rapid.Check(t, func(t *rapid.T) {
		d := membership.Declaration{
			NodeID:       rapid.StringMatching(`[a-z0-9._-]{1,100}`).Draw(t, "node"),
			Version:      rapid.Uint64Range(1, math.MaxUint64).Draw(t, "version"),
			State:        membership.State(rapid.IntRange(1, 5).Draw(t, "state")),
			Incarnation:  rapid.StringN(0, 20, membership.MaxIncarnationBytes).Draw(t, "incarnation"),
			GRPCAddr:     rapid.StringN(0, 20, membership.MaxAddrBytes).Draw(t, "addr"),
			Zone:         rapid.StringN(0, 20, membership.MaxZoneBytes).Draw(t, "zone"),
			VirtualNodes: rapid.IntRange(1, membership.MaxVirtualNodes).Draw(t, "places"),
			DeclaredAt:   rapid.Int64Range(0, math.MaxInt64).Draw(t, "at"),
		}
		m := membership.Map{d.NodeID: d}
		list, err := wire.MembersToProto(m)
		require.NoError(t, err)
		require.Len(t, list, 1)
		b, err := proto.Marshal(list[0])
		require.NoError(t, err)
		p := &clusterv1.Declaration{}
		require.NoError(t, proto.Unmarshal(b, p))
		got, err := wire.MembersFromProto([]*clusterv1.Declaration{p, p})
		require.NoError(t, err)
		require.Equal(t, m, got)
	})
}

func TestStatesOfMembersHaveTheNumbersOfTheWire(t *testing.T) {
	// The conversion is a cast: a word that moves would turn draining members into removed ones.
	for s := membership.Joining; s <= membership.Removed; s++ {
		require.Equal(t, "MEMBER_STATE_"+s.String(), clusterv1.MemberState(s).String())
	}
	require.Len(t, clusterv1.MemberState_name, int(membership.Removed)+1)
}

func TestDeclarationsOutOfLimitsAreNeitherSentNorTaken(t *testing.T) {
	// The node keeps what it takes for good.
	good := func() *clusterv1.Declaration {
		return &clusterv1.Declaration{NodeId: "n", Version: 1, State: clusterv1.MemberState_MEMBER_STATE_UP, VirtualNodes: 150}
	}
	for name, change := range map[string]func(p *clusterv1.Declaration){
		"no id":          func(p *clusterv1.Declaration) { p.NodeId = "" },
		"no version":     func(p *clusterv1.Declaration) { p.Version = 0 },
		"no state":       func(p *clusterv1.Declaration) { p.State = 0 },
		"negative state": func(p *clusterv1.Declaration) { p.State = -1 },
		"new state":      func(p *clusterv1.Declaration) { p.State = 6 },
		"state wraps":    func(p *clusterv1.Declaration) { p.State = 258 },
		"long address":   func(p *clusterv1.Declaration) { p.GrpcAddr = strings.Repeat("a", membership.MaxAddrBytes+1) },
		"no places":      func(p *clusterv1.Declaration) { p.VirtualNodes = 0 },
		"before 1970":    func(p *clusterv1.Declaration) { p.DeclaredAtMs = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			p := good()
			change(p)
			_, err := wire.DeclarationFromProto(p)
			require.ErrorIs(t, err, wire.ErrInvalid)
			_, err = wire.MembersFromProto([]*clusterv1.Declaration{good(), p})
			require.ErrorIs(t, err, wire.ErrInvalid)
		})
	}
	_, err := wire.DeclarationFromProto(nil)
	require.ErrorIs(t, err, wire.ErrInvalid)
	_, err = wire.DeclarationToProto(membership.Declaration{})
	require.ErrorIs(t, err, wire.ErrInvalid)
	_, err = wire.MembersToProto(membership.Map{"n": {}})
	require.ErrorIs(t, err, wire.ErrInvalid)
	many := make([]*clusterv1.Declaration, membership.MaxMembers+1)
	for i := range many {
		many[i] = good()
	}
	_, err = wire.MembersFromProto(many)
	require.ErrorIs(t, err, wire.ErrInvalid)
	_, err = wire.DeclarationFromProto(good())
	require.NoError(t, err)
}
