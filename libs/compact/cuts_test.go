package compact

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/ring"
)

// genCuts draws cuts with borders at and around the tokens of the property tests' keys, so that they matter.
func genCuts(t *rapid.T, label string) []HashCut {
	borders := []uint64{0, 1, math.MaxUint64}
	for _, user := range propertyUsers {
		token, _ := TokenOf([]byte("t\x00" + user))
		borders = append(borders, token-1, token, token+1)
	}
	border := rapid.SampledFrom(borders)
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) HashCut {
		return HashCut{
			Range: ring.HashRange{Start: border.Draw(t, "start"), End: border.Draw(t, "end")},
			Seq:   ikey.Seq(rapid.IntRange(0, 50).Draw(t, "cut")),
		}
	}), 0, 6).Draw(t, label)
}

// naiveCut is CutOf by the definition: the smallest of all that contain the token.
func naiveCut(cuts []HashCut, token uint64) (least ikey.Seq, ok bool) {
	for _, c := range cuts {
		if c.Range.Contains(token) && (!ok || c.Seq < least) {
			least, ok = c.Seq, true
		}
	}
	return least, ok
}

// Danger: a cut that counts for a token outside of its range, or a larger one where two overlap.
func TestUnitedCutsAreTheSmallestOfEachToken(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cuts := genCuts(t, "cuts")
		got := UniteCuts(cuts)
		require.NoError(t, CheckCuts(got))
		require.Equal(t, got, UniteCuts(got))
		limit := rapid.IntRange(1, 6).Draw(t, "limit")
		few := LimitCuts(got, limit)
		require.LessOrEqual(t, len(few), limit)
		require.NoError(t, CheckCuts(few))
		tokens := []uint64{0, 1, math.MaxUint64, rapid.Uint64().Draw(t, "token")}
		for _, c := range cuts {
			tokens = append(tokens, c.Range.Start-1, c.Range.Start, c.Range.End-1, c.Range.End)
		}
		for _, token := range tokens {
			want, wantOK := naiveCut(cuts, token)
			seq, ok := CutOf(got, token)
			require.Equal(t, wantOK, ok, "%x in %v", token, got)
			require.Equal(t, want, seq, "%x in %v", token, got)
			if seq, ok := CutOf(few, token); ok {
				require.True(t, wantOK, "%x in %v", token, few)
				require.LessOrEqual(t, seq, want, "%x in %v", token, few)
			}
		}
	})
}

// inTenant puts the keys of a table into tenant t.
func inTenant(tab table) table {
	es := slices.Clone(tab.entries)
	for i := range es {
		es[i].k.User = []byte("t\x00" + string(es[i].k.User))
		if es[i].end != "" {
			es[i].end = "t\x00" + es[i].end
		}
	}
	return table{tab.level, es}
}

// Danger: a tombstone that goes before its replicas have it lets the old value return; a record that stays
// when its range was dropped comes back to life when the range is regained; one that goes although it is
// newer, or another's, is lost.
func TestCutsAndDropsTakeWhatTheyNameAndNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var before, after []table
		w := newWorld()
		w.valueBlockBytes = rapid.SampledFrom([]int{0, 1}).Draw(t, "value blocks")
		job := Job{ID: 1, Kind: Merge, MaxOutputs: 5, OutputLevel: 6, Bottommost: []Range{{}}, Table: TableOptions{ValueBlockBytes: w.valueBlockBytes}}
		for i, tab := range genTables(t) {
			before = append(before, inTenant(tab))
			job.Inputs = append(job.Inputs, w.input(t, uint64(i+1), before[i]))
		}
		job.Snapshots = slices.Compact(slices.Sorted(slices.Values(rapid.SliceOfN(
			rapid.Custom(func(t *rapid.T) ikey.Seq { return ikey.Seq(rapid.IntRange(1, 50).Draw(t, "snapshot")) }), 0, 2).Draw(t, "snapshots"))))
		if rapid.Bool().Draw(t, "collect") {
			job.GCBefore = rapid.Uint64Range(1, 20).Draw(t, "gc")
		}
		job.CutsInForce = rapid.Bool().Draw(t, "in force")
		cuts, drop := genCuts(t, "cuts"), []HashCut(nil)
		if rapid.Bool().Draw(t, "with drops") {
			drop = genCuts(t, "drop")
		}
		job.Cuts, job.Drop = UniteCuts(cuts), UniteCuts(drop)
		outs, stats, _, err := Run(context.Background(), job, w.env)
		require.NoError(t, err)
		require.Equal(t, stats.EntriesIn, stats.Accounted())
		for _, o := range outs {
			after = append(after, w.read(t, OutputName(o.Index), 6))
		}
		left := uint64(0)
		for _, user := range propertyUsers {
			left += checkCuts(t, before, after, "t\x00"+user, job, cuts, drop)
		}
		require.Equal(t, left, stats.DropLeft)
	})
}

// checkCuts compares what a merge at the bottom of everything made of a key with what the definitions say.
// It returns how many entries of the outputs should have been dropped.
func checkCuts(t *rapid.T, before, after []table, user string, job Job, cuts, drop []HashCut) (left uint64) {
	token, ok := TokenOf([]byte(user))
	require.True(t, ok)
	for _, at := range job.Snapshots {
		want, _ := reading(before, user, at)
		got, _ := reading(after, user, at)
		require.Equal(t, want.Encode(nil), got.Encode(nil), "%q at %d", user, at)
	}
	dropTo, _ := naiveCut(drop, token)
	var newest ikey.Seq
	seen := false // by a snapshot, of what is to be dropped
	var counted []table
	for _, tab := range before {
		kept := table{level: tab.level}
		for _, e := range tab.entries {
			switch {
			case e.end != "" || string(e.k.User) != user:
				kept.entries = append(kept.entries, e)
				continue
			case e.k.Seq() > dropTo:
				kept.entries = append(kept.entries, e)
			}
			newest = max(newest, e.k.Seq())
		}
		counted = append(counted, kept)
	}
	for _, tab := range after {
		for _, e := range tab.entries {
			if e.end != "" || string(e.k.User) != user || e.k.Seq() > dropTo {
				continue
			}
			seen, left = true, left+1
		}
	}
	if seen {
		require.NotEmpty(t, job.Snapshots, "%q: nobody needs what was left", user)
		counted = before
	}
	want, _ := reading(counted, user, ikey.MaxSeq)
	got, _ := reading(after, user, ikey.MaxSeq)
	cut, has := naiveCut(cuts, token)
	if collected, dropped := causal.Collect(want, job.GCBefore); dropped > 0 && (!job.CutsInForce || has && newest <= cut) {
		// It may be gone, and is for certain when there are no snapshots.
		if len(job.Snapshots) == 0 {
			want = collected
		} else {
			got, _ = causal.Collect(got, job.GCBefore)
			want = collected
		}
	}
	require.Equal(t, want.Encode(nil), got.Encode(nil), "%q: newest %d, cut %d %v, drop %d", user, newest, cut, has, dropTo)
	return left
}

// Danger: a job with cuts in disorder is run, and takes what a search in them does not find.
func TestJobsWithCutsInDisorderAreRefused(t *testing.T) {
	r := func(start, end uint64, seq ikey.Seq) HashCut {
		return HashCut{ring.HashRange{Start: start, End: end}, seq}
	}
	for name, cuts := range map[string][]HashCut{
		"descending":  {r(5, 9, 1), r(1, 3, 1)},
		"overlapping": {r(1, 6, 1), r(5, 9, 1)},
		"wrapping":    {r(9, 5, 1)},
		"whole twice": {r(0, 0, 1), r(0, 0, 1)},
		"empty":       {r(7, 7, 1)},
		"sequence":    {r(1, 2, ikey.MaxSeq+1)},
		"too many":    make([]HashCut, MaxHashCuts+1),
	} {
		for _, job := range []Job{{Kind: Merge, MaxOutputs: 1, Cuts: cuts}, {Kind: Merge, MaxOutputs: 1, Drop: cuts}} {
			_, _, _, err := Run(context.Background(), job, Env{})
			require.ErrorIs(t, err, ErrInvalidJob, name)
		}
	}
}

// Danger: the keys of the node's own tenants, which have no replicas, are judged by cuts of the ring, or
// dropped with it.
func TestOnlyKeysOfTenantsStandOnTheRing(t *testing.T) {
	token, ok := TokenOf([]byte("shop\x00cart-1"))
	require.True(t, ok)
	require.Equal(t, ring.Token("shop", "cart-1"), token)
	for _, user := range []string{"_members\x00n1", "_idempotency\x00x", "\x00x", "no separator", "_", ""} {
		_, ok := TokenOf([]byte(user))
		require.False(t, ok, "%q", user)
	}
	long := strings.Repeat("k", 500)
	token, _ = TokenOf([]byte("shop\x00" + long))
	require.Equal(t, ring.Token("shop", long), token)
}
