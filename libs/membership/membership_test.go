package membership_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/membership"
)

// The universe is tiny on purpose: equal versions that differ in one field must be common.
func genDeclaration() *rapid.Generator[membership.Declaration] {
	return rapid.Custom(func(t *rapid.T) membership.Declaration {
		return membership.Declaration{
			NodeID:       rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "node"),
			Version:      rapid.Uint64Range(1, 3).Draw(t, "version"),
			State:        membership.State(rapid.IntRange(1, 5).Draw(t, "state")),
			Incarnation:  rapid.SampledFrom([]string{"", "i", "j"}).Draw(t, "incarnation"),
			GRPCAddr:     rapid.SampledFrom([]string{"", "h:1", "h:2"}).Draw(t, "addr"),
			Zone:         rapid.SampledFrom([]string{"", "z"}).Draw(t, "zone"),
			VirtualNodes: rapid.SampledFrom([]int{1, 150}).Draw(t, "places"),
			DeclaredAt:   rapid.SampledFrom([]int64{0, 1, math.MaxInt64}).Draw(t, "at"),
		}
	})
}

func genMap() *rapid.Generator[membership.Map] {
	return rapid.Custom(func(t *rapid.T) membership.Map {
		m := membership.Map{}
		_, err := m.Merge(rapid.SliceOfN(genDeclaration(), 0, 6).Draw(t, "declarations")...)
		if err != nil {
			panic(err)
		}
		return m
	})
}

// join returns a ⊔ b and leaves both as they are.
func join(t require.TestingT, a, b membership.Map) membership.Map {
	j := a.Clone()
	_, err := j.Merge(b.Sorted()...)
	require.NoError(t, err)
	return j
}

func TestMergeIsASemilattice(t *testing.T) {
	// Danger: agents that exchange their maps in different orders never agree who is a member.
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := genMap().Draw(t, "a"), genMap().Draw(t, "b"), genMap().Draw(t, "c")
		require.Equal(t, join(t, a, b), join(t, b, a))
		require.Equal(t, join(t, join(t, a, b), c), join(t, a, join(t, b, c)))
		require.Equal(t, a, join(t, a, a))
		require.Equal(t, join(t, a, b), join(t, join(t, a, b), b))
		require.Equal(t, a, join(t, a, membership.Map{}))
	})
}

func TestNewerIsAStrictTotalOrder(t *testing.T) {
	// Danger: two declarations that differ and of which none counts stay different for ever.
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := genDeclaration().Draw(t, "a"), genDeclaration().Draw(t, "b"), genDeclaration().Draw(t, "c")
		a.NodeID, b.NodeID, c.NodeID = "n", "n", "n"
		require.False(t, a.Newer(a))
		require.Equal(t, a != b, a.Newer(b) != b.Newer(a))
		if a.Newer(b) && b.Newer(c) {
			require.True(t, a.Newer(c))
		}
	})
}

func TestMergeReturnsExactlyWhatChanged(t *testing.T) {
	// Danger: a change that is not reported is not gossiped; news that are none are gossiped for ever.
	rapid.Check(t, func(t *rapid.T) {
		m := genMap().Draw(t, "map")
		before := m.Clone()
		news := rapid.SliceOfN(genDeclaration(), 0, 6).Draw(t, "news")
		changed, err := m.Merge(news...)
		require.NoError(t, err)
		var want []membership.Declaration
		for _, d := range m.Sorted() {
			if before[d.NodeID] != d {
				want = append(want, d)
			}
		}
		require.Equal(t, want, changed)
		again, err := m.Merge(news...)
		require.NoError(t, err)
		require.Empty(t, again)
	})
}

func TestHigherVersionWinsThenHigherState(t *testing.T) {
	// The order is a promise of the wire: nodes of all versions decide alike.
	old := some("n")
	for name, change := range map[string]func(d *membership.Declaration){
		"version beats state": func(d *membership.Declaration) { d.Version++; d.State = membership.Joining },
		"state":               func(d *membership.Declaration) { d.State = membership.Draining; d.Incarnation = "" },
		"incarnation":         func(d *membership.Declaration) { d.Incarnation = "z"; d.GRPCAddr = "" },
		"address":             func(d *membership.Declaration) { d.GRPCAddr = "z"; d.Zone = "" },
		"zone":                func(d *membership.Declaration) { d.Zone = "zz"; d.VirtualNodes = 1 },
		"virtual nodes":       func(d *membership.Declaration) { d.VirtualNodes = 151; d.DeclaredAt = 0 },
		"time":                func(d *membership.Declaration) { d.DeclaredAt++ },
	} {
		t.Run(name, func(t *testing.T) {
			d := old
			change(&d)
			require.True(t, d.Newer(old))
			require.False(t, old.Newer(d))
		})
	}
}

func some(id string) membership.Declaration {
	return membership.Declaration{
		NodeID: id, Version: 3, State: membership.Up, Incarnation: "i1", GRPCAddr: "10.0.0.1:8080", Zone: "z1",
		VirtualNodes: 150, DeclaredAt: 1_700_000_000_000,
	}
}

func TestWhatIsOutOfLimitsChangesNothing(t *testing.T) {
	// A peer must not fill the map, nor get half of a bad message into it.
	for name, change := range map[string]func(d *membership.Declaration){
		"no id":            func(d *membership.Declaration) { d.NodeID = "" },
		"long id":          func(d *membership.Declaration) { d.NodeID = strings.Repeat("n", membership.MaxNodeIDBytes+1) },
		"slash in id":      func(d *membership.Declaration) { d.NodeID = "n/1" },
		"version 0":        func(d *membership.Declaration) { d.Version = 0 },
		"state 0":          func(d *membership.Declaration) { d.State = 0 },
		"state 6":          func(d *membership.Declaration) { d.State = 6 },
		"long incarnation": func(d *membership.Declaration) { d.Incarnation = strings.Repeat("i", membership.MaxIncarnationBytes+1) },
		"long address":     func(d *membership.Declaration) { d.GRPCAddr = strings.Repeat("a", membership.MaxAddrBytes+1) },
		"long zone":        func(d *membership.Declaration) { d.Zone = strings.Repeat("z", membership.MaxZoneBytes+1) },
		"zone no UTF-8":    func(d *membership.Declaration) { d.Zone = "\xff" },
		"no places":        func(d *membership.Declaration) { d.VirtualNodes = 0 },
		"many places":      func(d *membership.Declaration) { d.VirtualNodes = membership.MaxVirtualNodes + 1 },
		"before 1970":      func(d *membership.Declaration) { d.DeclaredAt = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			m := membership.Map{"a": some("a")}
			bad := some("b")
			change(&bad)
			newer := some("a")
			newer.Version++
			_, err := m.Merge(newer, bad)
			require.ErrorIs(t, err, membership.ErrInvalid)
			require.Equal(t, membership.Map{"a": some("a")}, m)
			_, err = membership.Encode(membership.Map{bad.NodeID: bad})
			require.ErrorIs(t, err, membership.ErrInvalid)
		})
	}
}

func full() membership.Map {
	m := membership.Map{}
	for i := range membership.MaxMembers {
		id := fmt.Sprintf("node-%04d", i)
		m[id] = some(id)
	}
	return m
}

func TestAFullMapTakesNewsButNoNewMember(t *testing.T) {
	// The bound must hold, and must not stop what is known from changing.
	m := full()
	_, err := m.Merge(some("one-more"))
	require.ErrorIs(t, err, membership.ErrTooMany)
	require.Len(t, m, membership.MaxMembers)
	newer := some("node-0007")
	newer.Version++
	changed, err := m.Merge(newer)
	require.NoError(t, err)
	require.Equal(t, []membership.Declaration{newer}, changed)
}

func TestDeclareAllowsTheLifeOfAMemberAndNothingElse(t *testing.T) {
	// A removed member that declares itself up again gets ranges that have new owners.
	states := []membership.State{membership.Joining, membership.Up, membership.Draining, membership.Drained, membership.Removed}
	allowed := map[[2]membership.State]bool{
		{membership.Joining, membership.Joining}:   true,
		{membership.Joining, membership.Up}:        true,
		{membership.Up, membership.Up}:             true,
		{membership.Up, membership.Draining}:       true,
		{membership.Draining, membership.Draining}: true,
		{membership.Draining, membership.Up}:       true,
		{membership.Draining, membership.Drained}:  true,
		{membership.Drained, membership.Drained}:   true,
	}
	for _, from := range states {
		for _, to := range states {
			t.Run(from.String()+" to "+to.String(), func(t *testing.T) {
				known := some("n")
				known.State = from
				want := known
				want.State, want.Zone = to, "z2"
				got, err := membership.Declare(known, want, 77)
				if !allowed[[2]membership.State{from, to}] {
					require.ErrorIs(t, err, membership.ErrTransition)
					return
				}
				require.NoError(t, err)
				want.Version, want.DeclaredAt = known.Version+1, 77
				require.Equal(t, want, got)
				require.True(t, got.Newer(known))

				want.Incarnation = "i2" // another member under the old name
				_, err = membership.Declare(known, want, 77)
				require.Equal(t, to != membership.Joining, err != nil, "a new incarnation begins as JOINING: %v", err)
			})
		}
	}
}

func TestANewIncarnationOfARemovedMemberBeginsAnew(t *testing.T) {
	// A StatefulSet that grows again gives an old name to a new volume.
	known, err := membership.Remove(some("n"), 9)
	require.NoError(t, err)
	require.Equal(t, membership.Removed, known.State)
	require.True(t, known.Newer(some("n")))
	again, err := membership.Remove(known, 10)
	require.NoError(t, err)
	require.Equal(t, known, again)

	want := some("n")
	want.State = membership.Joining
	_, err = membership.Declare(known, want, 11)
	require.ErrorIs(t, err, membership.ErrTransition)
	want.Incarnation = "i2"
	got, err := membership.Declare(known, want, 11)
	require.NoError(t, err)
	require.True(t, got.Newer(known))
}

func TestDeclareSaysNothingNewWithoutANewVersion(t *testing.T) {
	// An agent declares every second; a version each time would be gossip without end.
	known := some("n")
	want := known
	want.Version, want.DeclaredAt = 0, 0
	got, err := membership.Declare(known, want, 99)
	require.NoError(t, err)
	require.Equal(t, known, got)
}

func TestTheFirstDeclarationIsJoining(t *testing.T) {
	// Nobody knows what such a member holds: it must not answer for ranges at once.
	want := some("n")
	_, err := membership.Declare(membership.Declaration{}, want, 5)
	require.ErrorIs(t, err, membership.ErrTransition)
	want.State = membership.Joining
	got, err := membership.Declare(membership.Declaration{}, want, 5)
	require.NoError(t, err)
	require.EqualValues(t, 1, got.Version)
	require.EqualValues(t, 5, got.DeclaredAt)
	want.NodeID = "other"
	_, err = membership.Declare(got, want, 6)
	require.ErrorIs(t, err, membership.ErrTransition)
	got.Version = math.MaxUint64
	want.NodeID, want.State = "n", membership.Up
	_, err = membership.Declare(got, want, 6)
	require.ErrorIs(t, err, membership.ErrTransition)
}
