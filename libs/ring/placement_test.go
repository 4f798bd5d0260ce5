package ring_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ring"
)

func genMembers(most int) *rapid.Generator[[]ring.Member] {
	return rapid.Custom(func(t *rapid.T) []ring.Member {
		out := make([]ring.Member, rapid.IntRange(0, most).Draw(t, "members"))
		for i := range out {
			out[i] = ring.Member{
				NodeID: "n" + strconv.Itoa(i), Zone: rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "zone"),
				VirtualNodes: rapid.IntRange(1, 12).Draw(t, "virtual nodes"),
			}
		}
		return out
	})
}

// walk is the definition: clockwise from the token, distinct nodes, first of zones that have none yet.
func walk(members []ring.Member, factor int, token uint64) []string {
	type place struct {
		token uint64
		m     ring.Member
	}
	var places []place
	for _, m := range members {
		for i := range m.VirtualNodes {
			sum := sha256.Sum256(fmt.Appendf(nil, "%s-vnode-%d", m.NodeID, i))
			places = append(places, place{binary.BigEndian.Uint64(sum[:8]), m})
		}
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.token, b.token), cmp.Compare(a.m.NodeID, b.m.NodeID))
	})
	first := 0
	for first < len(places) && places[first].token <= token {
		first++
	}
	var order []ring.Member // distinct, clockwise
	for i := range places {
		if m := places[(first+i)%len(places)].m; !slices.Contains(order, m) {
			order = append(order, m)
		}
	}
	var spread, rest []string
	zones := map[string]bool{}
	for _, m := range order {
		if zones[m.Zone] {
			rest = append(rest, m.NodeID)
			continue
		}
		zones[m.Zone] = true
		spread = append(spread, m.NodeID)
	}
	all := append(spread, rest...)
	return all[:min(factor, len(all))]
}

// tokensOf are those at and beside each bound of placements, where replicas change, and one anywhere.
func tokensOf(t *rapid.T, rings ...*ring.Ring) []uint64 {
	out := []uint64{rapid.Uint64().Draw(t, "token"), 0, ^uint64(0)}
	for _, r := range rings {
		for _, p := range r.Placements() {
			out = append(out, p.Range.Start-1, p.Range.Start, p.Range.Start+1)
		}
	}
	return out
}

// Danger: two nodes that place a key differently both think that the other one has it.
func TestReplicasAreTheFirstNodesClockwiseThatSpreadOverZones(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members, factor := genMembers(7).Draw(t, "members"), rapid.IntRange(1, 5).Draw(t, "factor")
		r := ring.New(members, factor)
		other := ring.New(rapid.Permutation(members).Draw(t, "in another order"), factor)
		require.Equal(t, r.Placements(), other.Placements())
		for _, tok := range tokensOf(t, r) {
			want := walk(members, factor, tok)
			require.Equal(t, len(want), len(r.Replicas(tok)))
			require.Equal(t, append([]string{}, want...), append([]string{}, r.Replicas(tok)...), "token %d", tok)
		}
	})
}

// Danger: a token in no placement is copied by nobody; one in two is handed over twice.
func TestPlacementsCoverTheRingOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members, factor := genMembers(7).Draw(t, "members"), rapid.IntRange(1, 5).Draw(t, "factor")
		r := ring.New(members, factor)
		ps := r.Placements()
		if len(members) == 0 {
			require.Empty(t, ps)
			require.Nil(t, r.Replicas(0))
			return
		}
		require.Equal(t, []ring.HashRange{{}}, ring.RangesIn(ps))
		for i, p := range ps {
			next := ps[(i+1)%len(ps)]
			require.Equal(t, p.Range.End, next.Range.Start)
			if len(ps) > 1 {
				require.NotEqual(t, p.Replicas, next.Replicas, "neighbours differ")
				require.NotEqual(t, p.Range.Start, p.Range.End)
			}
			require.Len(t, p.Replicas, min(factor, len(members)))
		}
		for _, m := range members {
			own := ring.RangesIn(r.RangesOf(m.NodeID))
			for _, tok := range tokensOf(t, r) {
				require.Equal(t, slices.Contains(r.Replicas(tok), m.NodeID), ring.In(own, tok))
			}
		}
	})
}

// Danger: a node that joins makes data move between others, which nobody plans.
func TestAMemberThatJoinsChangesOnlyRangesThatItGains(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members, factor := genMembers(7).Draw(t, "members"), rapid.IntRange(1, 5).Draw(t, "factor")
		if len(members) == 0 {
			return
		}
		joins := members[len(members)-1].NodeID
		before, after := ring.New(members[:len(members)-1], factor), ring.New(members, factor)
		for _, tok := range tokensOf(t, before, after) {
			had, has := before.Replicas(tok), after.Replicas(tok)
			if !slices.Contains(has, joins) {
				require.Equal(t, had, has)
				continue
			}
			lost := 0
			for _, n := range had {
				if !slices.Contains(has, n) {
					lost++
				}
			}
			require.LessOrEqual(t, lost, 1, "one replica makes room for it")
			if len(had) < factor {
				require.Zero(t, lost)
			}
		}
	})
}

// goldenPlacements are by printf 'n1-vnode-0' | sha256sum | cut -c1-16, and so on: n1 stands at c1ef… and
// 831a…, n2 at f905….
var goldenPlacements = []string{"f9051aea8dc1c515-c1ef6ecea1fb641c n1", "c1ef6ecea1fb641c-f9051aea8dc1c515 n2"}

// Danger: another hash than the coordinators' moves everything.
func TestPlacesAreTheCoordinators(t *testing.T) {
	r := ring.New([]ring.Member{{NodeID: "n1", VirtualNodes: 2}, {NodeID: "n2", VirtualNodes: 1}}, 1)
	golden := []string{}
	for _, p := range r.Placements() {
		golden = append(golden, fmt.Sprintf("%016x-%016x %s", p.Range.Start, p.Range.End, p.Replicas[0]))
	}
	require.Equal(t, goldenPlacements, golden)
}

// Danger: two places on one token make an empty range, and that is read as the whole ring.
func TestPlacesOnOneTokenMakeNoRange(t *testing.T) {
	// Two nodes of one id are what comes closest: all their places are the same.
	r := ring.New([]ring.Member{{NodeID: "n1", VirtualNodes: 3}, {NodeID: "n2", VirtualNodes: 3}, {NodeID: "n2", VirtualNodes: 3}}, 1)
	require.Equal(t, []ring.HashRange{{}}, ring.RangesIn(r.Placements()))
	for _, p := range r.Placements() {
		require.NotEqual(t, p.Range.Start, p.Range.End)
	}
	one := ring.New([]ring.Member{{NodeID: "n1", VirtualNodes: 1}, {NodeID: "n1", VirtualNodes: 1}}, 1)
	require.Equal(t, []ring.Placement{{Replicas: []string{"n1"}}}, one.Placements())
}

// Danger: a large cluster without zones is placed in minutes, while the node waits for it.
func BenchmarkPlacementsOfALargeCluster(b *testing.B) {
	members := make([]ring.Member, 100)
	for i := range members {
		members[i] = ring.Member{NodeID: "n" + strconv.Itoa(i), VirtualNodes: 150}
	}
	for b.Loop() {
		ring.New(members, 3)
	}
}

func ExampleRing_Replicas() {
	r := ring.New([]ring.Member{{NodeID: "n1", VirtualNodes: 150}, {NodeID: "n2", VirtualNodes: 150}, {NodeID: "n3", VirtualNodes: 150}}, 2)
	fmt.Println(r.Replicas(ring.Token("shop", "cart-1")))
	// Output: [n3 n1]
}

// Danger: a part of a range is shown with the replicas of another one.
func TestWithinCutsPlacements(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := ring.New(genMembers(5).Draw(t, "members"), 2)
		list := genRanges().Draw(t, "list")
		got := r.Within(list)
		all := make([]ring.HashRange, len(got))
		for i, p := range got {
			all[i] = p.Range
			if i > 0 {
				require.Less(t, got[i-1].Range.Start, p.Range.Start)
			}
		}
		want := ring.Normal(list)
		if len(r.Placements()) == 0 {
			want = nil
		}
		require.Equal(t, want, ring.Normal(all))
		for _, tok := range append(tokensOf(t, r), probes(t, list)...) {
			n := 0
			for _, p := range got {
				if p.Range.Contains(tok) {
					n++
					require.Equal(t, r.Replicas(tok), p.Replicas)
				}
			}
			require.LessOrEqual(t, n, 1)
			require.Equal(t, ring.In(want, tok), n == 1)
		}
	})
}
