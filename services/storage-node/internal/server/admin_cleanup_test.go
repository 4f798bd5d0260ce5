package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Danger: a cleanup removes the only copy of a range.
func TestResidueIsSafeWhereAnotherNodeHasIt(t *testing.T) {
	lost := time.UnixMilli(1000)
	first, second := []ring.HashRange{{Start: 0, End: 1 << 63}}, []ring.HashRange{{Start: 1 << 63}}
	move := func(change func(*moves.Move)) *moves.Move {
		m := &moves.Move{Spec: moves.Spec{ID: "m", Target: moves.Target{NodeID: "n2"}}, State: moves.Released, VerifiedAt: 1500, UpdatedAt: 2000}
		change(m)
		return m
	}
	for name, c := range map[string]struct {
		given []ring.HashRange
		moves []*moves.Move
		safe  bool
	}{
		"lost by a declaration":          {nil, nil, false},
		"given away":                     {first, nil, true},
		"another range given away":       {second, nil, false},
		"verified since":                 {nil, []*moves.Move{move(func(*moves.Move) {})}, true},
		"verified at that moment":        {nil, []*moves.Move{move(func(m *moves.Move) { m.VerifiedAt = 1000 })}, true},
		"verified before":                {nil, []*moves.Move{move(func(m *moves.Move) { m.VerifiedAt = 999 })}, false},
		"never verified":                 {nil, []*moves.Move{move(func(m *moves.Move) { m.VerifiedAt = 0 })}, false},
		"verified, and then cancelled":   {nil, []*moves.Move{move(func(m *moves.Move) { m.State = moves.Cancelled })}, true},
		"to a node that is gone":         {nil, []*moves.Move{move(func(m *moves.Move) { m.Target.NodeID = "gone" })}, false},
		"one tenant only":                {nil, []*moves.Move{move(func(m *moves.Move) { m.What.Tenant = "t" })}, false},
		"some keys only":                 {nil, []*moves.Move{move(func(m *moves.Move) { m.What.Keys = []string{"k"} })}, false},
		"half of it":                     {nil, []*moves.Move{move(func(m *moves.Move) { m.What.HashRanges = []ring.HashRange{{Start: 0, End: 1 << 62}} })}, false},
		"half verified, half given":      {[]ring.HashRange{{Start: 1 << 62, End: 1 << 63}}, []*moves.Move{move(func(m *moves.Move) { m.What.HashRanges = []ring.HashRange{{Start: 0, End: 1 << 62}} })}, true},
		"handed over":                    {nil, []*moves.Move{move(func(m *moves.Move) { m.HandOver, m.VerifiedAt, m.UpdatedAt = true, 900, 1001 })}, true},
		"handed over in an earlier life": {nil, []*moves.Move{move(func(m *moves.Move) { m.HandOver, m.VerifiedAt, m.UpdatedAt = true, 900, 999 })}, false},
		"a move still reads it":          {first, []*moves.Move{move(func(m *moves.Move) { m.State = moves.Copying })}, false},
		"a move that failed may go on":   {first, []*moves.Move{move(func(m *moves.Move) { m.State = moves.Failed })}, false},
		"a move of other ranges": {first, []*moves.Move{move(func(m *moves.Move) {
			m.State, m.What.HashRanges = moves.Copying, second
		})}, true},
	} {
		v := ownership.View{Given: c.given, Residue: []ownership.Residue{{Ranges: first, Sequence: 7, Since: lost}}}
		err := unsafeResidue(v, c.moves, func(id string) bool { return id == "n2" }, lost.Add(time.Hour))
		if c.safe {
			require.NoError(t, err, name)
			continue
		}
		require.Equal(t, store.ReasonCleanupUnsafe, store.ReasonOf(err), name)
	}
	require.NoError(t, unsafeResidue(ownership.View{}, []*moves.Move{move(func(m *moves.Move) { m.State = moves.Copying })}, nil, lost))
}
