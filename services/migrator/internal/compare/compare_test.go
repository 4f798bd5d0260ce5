package compare_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ring"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/compare"
)

var (
	day   = time.Date(2026, 1, 10, 12, 0, 0, 0, time.UTC)
	grace = day.Add(-5 * 24 * time.Hour)
)

// quarters are four ranges of the ring, of which the last one is left out.
func quarters() *movev1.Selection {
	var s movev1.Selection
	for i := range uint64(3) {
		s.HashRanges = append(s.HashRanges, &datav1.HashRange{Start: i << 62, End: (i + 1) << 62})
	}
	return &s
}

func options(own, other *node) compare.Options {
	return compare.Options{
		Own: compare.Side{Client: own, Name: own.name}, Other: compare.Side{Client: other, Name: other.name},
		Peer: &replicav1.Peer{ClusterId: "c", NodeId: own.name}, Both: true, LeavesPerRange: 16,
		CollectedBefore: causal.Timestamp(grace), Pause: func(int) time.Duration { return 0 },
	}
}

// some writes records, of which both sides have many in common.
func some(r *rand.Rand, own, other *node, keys int) {
	for range keys {
		write(r, own, other, keys, day.Add(-time.Duration(r.IntN(10*24))*time.Hour))
	}
}

func write(r *rand.Rand, own, other *node, keys int, at time.Time) {
	key := fmt.Sprintf("%s\x00key-%d", []string{"shop", "shop2"}[r.IntN(2)], r.IntN(keys))
	value := []string{"", "a", "b", strings.Repeat("long", 100)}[r.IntN(4)]
	n := []*node{own, other}[r.IntN(2)]
	switch r.IntN(4) {
	case 0:
		n.write(key, value, at)
	case 1:
		n.blind(key, "blind"+value, at)
	default: // both have it
		n.write(key, value, at)
		v := n.now()[key]
		for _, m := range []*node{own, other} {
			m.mu.Lock()
			m.join(key, v)
			m.mu.Unlock()
		}
	}
}

// covers reports whether a record has all that another has, apart from what may be collected.
func covers(has, wanted []byte, before uint64) bool {
	joined := wanted
	if has != nil && wanted != nil {
		joined = must(causal.JoinEncoded(nil, has, wanted))
	} else if has != nil {
		joined = has
	}
	return string(collected(joined, before)) == string(collected(has, before))
}

// inRange tells the keys of a range apart.
func inRange(what *movev1.Selection, i uint32, key string) bool {
	if !selected(what, key) {
		return false
	}
	if len(what.GetHashRanges()) == 0 {
		return true
	}
	r := what.GetHashRanges()[i]
	return ring.HashRange{Start: r.GetStart(), End: r.GetEnd()}.Contains(token(key))
}

// requireTrue checks ranges that are told as equal or exchanged: what either tree had is on both sides.
func requireTrue(t require.TestingT, o compare.Options, res compare.Result, own, other *node, ranges []uint32) {
	mine, theirs := own.now(), other.now()
	for _, i := range ranges {
		for k, v := range own.trees[res.OwnTree].snapshot {
			if inRange(o.What, i, k) {
				require.True(t, covers(theirs[k], v, o.CollectedBefore), "%s has not what %s had of %q, range %d", other.name, own.name, k, i)
			}
		}
		for k, v := range other.trees[res.OtherTree].snapshot {
			if o.Both && inRange(o.What, i, k) {
				require.True(t, covers(mine[k], v, o.CollectedBefore), "%s has not what %s had of %q, range %d", own.name, other.name, k, i)
			}
		}
	}
}

// drawn is a comparison of two nodes with some records.
func drawn(t *rapid.T) (compare.Options, *node, *node, *rand.Rand) {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	own, other := newNode("own"), newNode("other")
	own.newer, other.newer = rapid.Bool().Draw(t, "newer"), rapid.Bool().Draw(t, "newer too")
	some(r, own, other, rapid.IntRange(0, 60).Draw(t, "keys"))
	o := options(own, other)
	o.LeavesPerRange = uint32(1) << rapid.IntRange(0, 6).Draw(t, "leaves")
	o.Both = rapid.Bool().Draw(t, "both")
	switch rapid.IntRange(0, 2).Draw(t, "what") {
	case 1:
		o.What = quarters()
	case 2:
		o.What = &movev1.Selection{Tenant: "shop"}
	}
	if rapid.Bool().Draw(t, "nothing is collected") {
		o.CollectedBefore = 0
	}
	return o, own, other, r
}

// Danger: a difference is left behind and the range is told as equal: a tombstone is collected on one
// side, and the value on the other comes back.
func TestBothHaveTheJoinAfterwards(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o, own, other, _ := drawn(t)
		before := []map[string][]byte{own.now(), other.now()}
		res, err := compare.Run(context.Background(), o)
		require.NoError(t, err)
		require.True(t, res.Equal())
		require.Empty(t, append(res.ExchangedRanges, res.UnequalRanges...))
		requireTrue(t, o, res, own, other, res.EqualRanges)
		mine, theirs := own.now(), other.now()
		for _, was := range before {
			for k := range was {
				in := false
				for i := range max(len(o.What.GetHashRanges()), 1) {
					in = in || inRange(o.What, uint32(i), k)
				}
				switch {
				case !in: // what was not selected is left alone
					require.Equal(t, before[0][k], mine[k])
					require.Equal(t, before[1][k], theirs[k])
				case o.Both:
					require.Equal(t, collected(mine[k], o.CollectedBefore), collected(theirs[k], o.CollectedBefore), "%q", k)
				default:
					require.Equal(t, before[0][k], mine[k], "one way: the source is left alone")
				}
			}
		}
		require.LessOrEqual(t, res.RepairedKeys, res.DifferingKeys)
		again, err := compare.Run(context.Background(), o)
		require.NoError(t, err)
		require.True(t, again.Equal())
		require.Zero(t, again.RepairedKeys*btoi(o.Both), "nothing is sent twice")
	})
}

func btoi(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Danger: a range is told as equal although a call failed on the way.
func TestFaultsAtEachStepNeverMakeARangeEqual(t *testing.T) {
	for _, both := range []bool{true, false} {
		for at := 0; ; at++ {
			own, other := newNode("own"), newNode("other")
			some(rand.New(rand.NewPCG(7, 7)), own, other, 40)
			f := &faultAt{at: at}
			own.step, other.step = f.step, f.step
			o := options(own, other)
			o.Both, o.What = both, quarters()
			res, err := compare.Run(context.Background(), o)
			if !f.fired {
				require.NoError(t, err)
				require.Greater(t, at, 20, "the fault was at each step")
				break
			}
			if err == nil {
				// The acknowledgement that was lost was not the last one.
				t.Fatalf("step %d failed and nobody heard of it", at)
			}
			require.ErrorIs(t, err, errFault, "step %d", at)
			require.ErrorContains(t, err, "compare own with other")
			require.Empty(t, res.ExchangedRanges)
			if len(res.EqualRanges) > 0 {
				requireTrue(t, o, res, own, other, res.EqualRanges)
			}
			// And afterwards it can be done again.
			f.at = -1
			res, err = compare.Run(context.Background(), o)
			require.NoError(t, err)
			require.True(t, res.Equal())
		}
	}
}

// Danger: with writers, a range is told as equal of which a snapshot had a record that the other side
// never got.
func TestTellsTheTruthWhileClientsWrite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o, own, other, r := drawn(t)
		o.Rounds = rapid.IntRange(1, 4).Draw(t, "rounds")
		every := rapid.IntRange(1, 4).Draw(t, "a write at each so many steps")
		var mu sync.Mutex
		n := 0
		step := func(string) error {
			mu.Lock()
			defer mu.Unlock()
			if n++; n%every == 0 {
				write(r, own, other, 60, day) // what is deleted now is not collected yet
			}
			return nil
		}
		own.step, other.step = step, step
		res, err := compare.Run(context.Background(), o)
		require.NoError(t, err)
		require.Equal(t, res.Ranges, len(res.EqualRanges)+len(res.ExchangedRanges)+len(res.UnequalRanges))
		requireTrue(t, o, res, own, other, res.EqualRanges)
		requireTrue(t, o, res, own, other, res.ExchangedRanges)
		require.Equal(t, res.OpenKeys == 0, len(res.ExchangedRanges)+len(res.UnequalRanges) == 0)
	})
}

// Danger: a key that is written to all the time is told as equal, or keeps a run from ever ending.
func TestAKeyThatIsAlwaysWrittenIsToldAsDifferent(t *testing.T) {
	own, other := newNode("own"), newNode("other")
	other.write("shop\x00cold", "x", day)
	i := 0
	own.write("shop\x00hot", "0", day)
	own.step = func(what string) error {
		if what == "own CompareKeys" {
			i++
			own.write("shop\x00hot", fmt.Sprint(i), day)
		}
		return nil
	}
	for _, both := range []bool{true, false} {
		own.write("shop\x00hot", fmt.Sprint("first", both), day)
		o := options(own, other)
		o.What, o.Both, o.Rounds = quarters(), both, 5
		o.What.HashRanges = append(o.What.HashRanges, &datav1.HashRange{Start: 3 << 62, End: 0})
		res, err := compare.Run(context.Background(), o)
		require.NoError(t, err)
		require.False(t, res.Equal())
		require.Equal(t, 5, res.Rounds)
		require.EqualValues(t, 1, res.OpenKeys)
		require.Len(t, res.ExchangedRanges, 1)
		require.True(t, inRange(o.What, res.ExchangedRanges[0], "shop\x00hot"))
		require.Len(t, res.EqualRanges, 3)
	}
}

// Danger: a node acknowledges records and passes them over (their tenant was dropped there), and its range
// is told as one that has them.
func TestARecordThatIsPassedOverIsNeverTakenAsExchanged(t *testing.T) {
	for _, both := range []bool{true, false} {
		own, other := newNode("own"), newNode("other")
		own.write("shop\x00k", "x", day)
		other.deaf = true
		o := options(own, other)
		o.Both = both
		res, err := compare.Run(context.Background(), o)
		require.NoError(t, err)
		require.Empty(t, append(res.EqualRanges, res.ExchangedRanges...))
		require.Equal(t, []uint32{0}, res.UnequalRanges)
		require.EqualValues(t, 1, res.OpenKeys)
	}
}

// Danger: a target that has more than the source, since it is a replica itself, is never verified.
func TestOneWayATargetMayHaveMore(t *testing.T) {
	own, other := newNode("own"), newNode("other")
	own.blind("shop\x00k", "mine", day)
	other.blind("shop\x00k", "theirs", day)
	other.write("shop\x00more", "x", day)
	o := options(own, other)
	o.Both = false
	res, err := compare.Run(context.Background(), o)
	require.NoError(t, err)
	require.True(t, res.Equal())
	require.Len(t, must(causal.Decode(other.now()["shop\x00k"])).Siblings, 2)
	require.Len(t, must(causal.Decode(own.now()["shop\x00k"])).Siblings, 1)
	require.NotContains(t, own.now(), "shop\x00more")
}

// Danger: an old tombstone counts for nothing in digests, and the value that it deleted stays on the
// other side, or even comes back.
func TestAnOldTombstoneDeletesOnTheOtherSide(t *testing.T) {
	for _, both := range []bool{true, false} {
		own, other := newNode("own"), newNode("other")
		own.write("shop\x00k", "x", grace.Add(-2*time.Hour))
		other.join("shop\x00k", own.now()["shop\x00k"])
		own.write("shop\x00k", "", grace.Add(-time.Hour))
		o := options(own, other)
		o.Both = both
		res, err := compare.Run(context.Background(), o)
		require.NoError(t, err)
		require.True(t, res.Equal())
		require.Equal(t, own.now()["shop\x00k"], other.now()["shop\x00k"])
	}
}

// Danger: a large difference is held in memory, or asked for in calls above their limits.
func TestALargeDifferenceIsExchangedInParts(t *testing.T) {
	own, other := newNode("own"), newNode("other")
	for i := range 25_000 {
		n := []*node{own, other}[i%2]
		n.write(fmt.Sprintf("shop\x00%0200d", i), "x", day)
	}
	var sent, most int
	o := options(own, other)
	o.LeavesPerRange, o.Records = 0, 25_000
	o.Limit = func(_ context.Context, n int) error {
		sent += n
		most = max(most, n)
		return nil
	}
	var last compare.Progress
	o.Progress = func(p compare.Progress) {
		require.GreaterOrEqual(t, p.RepairedKeys, last.RepairedKeys)
		last = p
	}
	res, err := compare.Run(context.Background(), o)
	require.NoError(t, err)
	require.True(t, res.Equal())
	require.EqualValues(t, 25_000, res.DifferingKeys)
	require.EqualValues(t, 25_000, res.RepairedKeys)
	require.Equal(t, res.Progress, last)
	require.EqualValues(t, res.SentBytes, sent)
	require.Less(t, most, 64<<10)
	require.Equal(t, 1, own.calls["KeyDigests"])
	require.Equal(t, len(own.now()), len(other.now()))
}

// Danger: what a broken or foreign node answers is taken for equality, or written to the other one.
func TestMalformedAnswersAreErrors(t *testing.T) {
	lies := map[string]func(proto.Message){
		"roots": func(m proto.Message) {
			if a, ok := m.(*replicav1.DigestResponse); ok {
				a.Roots = a.Roots[1:]
			}
		},
		"a root of": func(m proto.Message) {
			if a, ok := m.(*replicav1.DigestResponse); ok {
				a.Roots[1] = a.Roots[1][1:]
			}
		},
		"leaves": func(m proto.Message) {
			if a, ok := m.(*replicav1.LeavesResponse); ok {
				a.Digests = a.Digests[1:]
			}
		},
		"out of order": func(m proto.Message) {
			if a, ok := m.(*replicav1.KeyDigestsResponse); ok && len(a.GetKeys()) > 1 {
				a.Keys[0], a.Keys[1] = a.Keys[1], a.Keys[0]
			}
		},
		"a digest of": func(m proto.Message) {
			if a, ok := m.(*replicav1.KeyDigestsResponse); ok && len(a.GetKeys()) > 0 {
				a.Keys[0].Digest = []byte{1}
			}
		},
		"a key that was not asked for": func(m proto.Message) {
			if a, ok := m.(*replicav1.KeyDigestsResponse); ok {
				a.Keys = []*replicav1.KeyDigest{{Key: []byte("no separator"), Digest: make([]byte, 16)}}
			}
		},
		"a record that was not asked for": func(m proto.Message) {
			if a, ok := m.(*replicav1.FetchResponse); ok && len(a.GetRecords()) > 0 {
				a.Records[0].Key = []byte("shop\x00another")
			}
		},
		"an empty record": func(m proto.Message) {
			if a, ok := m.(*replicav1.FetchResponse); ok && len(a.GetRecords()) > 0 {
				a.Records[0].Value = nil
			}
		},
		"are durable at its end": func(m proto.Message) {
			if a, ok := m.(*replicav1.IngestResponse); ok {
				a.DurableNumber--
			}
		},
		"digests of": func(m proto.Message) {
			if a, ok := m.(*replicav1.CompareKeysResponse); ok {
				a.Digests = a.Digests[1:]
			}
		},
		"compare keys of own: malformed answer: a digest of": func(m proto.Message) {
			if a, ok := m.(*replicav1.CompareKeysResponse); ok {
				a.Digests[0] = []byte{1}
			}
		},
	}
	for want, lie := range lies {
		own, other := newNode("own"), newNode("other")
		some(rand.New(rand.NewPCG(7, 7)), own, other, 40)
		own.lie = lie
		o := options(own, other)
		o.What = quarters()
		res, err := compare.Run(context.Background(), o)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "malformed answer")
		require.NotContains(t, other.now(), "shop\x00another", want)
		require.False(t, res.Equal(), want)
	}
}

// Danger: a caller that asks for the impossible is told that all is equal.
func TestRefusesWhatCannotBeCompared(t *testing.T) {
	own, other := newNode("own"), newNode("other")
	o := options(own, other)
	o.What = &movev1.Selection{HashRanges: make([]*datav1.HashRange, compare.MaxRanges+1)}
	_, err := compare.Run(context.Background(), o)
	require.ErrorContains(t, err, "4097 hash ranges")

	o = options(own, other)
	o.LeavesPerRange = 3
	_, err = compare.Run(context.Background(), o)
	require.ErrorContains(t, err, "a power of two")

	o = options(own, other)
	o.What = &movev1.Selection{HashRanges: []*datav1.HashRange{{Start: 1, End: math.MaxUint64}, {Start: 5, End: 6}}}
	res, err := compare.Run(context.Background(), o)
	require.Error(t, err)
	require.False(t, res.Equal())
	require.Empty(t, own.calls)
}

// Danger: a run that is told to stop goes on sending.
func TestStopsWhenItsContextEnds(t *testing.T) {
	own, other := newNode("own"), newNode("other")
	some(rand.New(rand.NewPCG(7, 7)), own, other, 40)
	ctx, cancel := context.WithCancel(context.Background())
	o := options(own, other)
	o.Limit = func(ctx context.Context, _ int) error {
		cancel()
		return ctx.Err()
	}
	res, err := compare.Run(ctx, o)
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, res.Equal())
	require.Zero(t, res.SentBytes)
}
