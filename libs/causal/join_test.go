package causal

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func equal(t require.TestingT, want, got Record) {
	require.True(t, want.Equal(got), "want %s\n got %s", show(want), show(got))
}

// Danger: replicas, compactions and reads that join in different orders end with different values.
func TestJoinIsASemilattice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := genRecord().Draw(t, "a"), genRecord().Draw(t, "b"), genRecord().Draw(t, "c")
		ab := Join(a, b)
		require.NoError(t, ab.Validate())
		equal(t, ab, Join(b, a))
		equal(t, Join(ab, c), Join(a, Join(b, c)))
		equal(t, a, Join(a, a))
		equal(t, ab, Join(ab, a))
		equal(t, a, Join(a, Record{}))
		equal(t, a, Join(Record{}, a))
	})
}

// Danger: a join forgets what one side had seen, so that a superseded value comes back.
func TestJoinIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := genRecord().Draw(t, "a"), genRecord().Draw(t, "b")
		ab := Join(a, b)
		for _, in := range []Record{a, b} {
			require.Contains(t, []Order{Before, Equal}, in.Clock().Compare(ab.Clock()))
			for i := range in.Siblings {
				s := &in.Siblings[i]
				survives := superseded(s, ab.Siblings)
				for j := range ab.Siblings {
					survives = survives || compareSiblings(s, &ab.Siblings[j]) == 0
				}
				require.True(t, survives, "%+v is neither in the join nor superseded by it", s)
			}
		}
	})
}

// Danger: the order has a cycle or is not transitive, then "maximal" means nothing.
func TestSupersedingIsAStrictPartialOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := genSibling().Draw(t, "a"), genSibling().Draw(t, "b"), genSibling().Draw(t, "c")
		require.False(t, a.below(&a))
		require.False(t, a.below(&b) && b.below(&a))
		if a.below(&b) && b.below(&c) {
			require.True(t, a.below(&c))
		}
		if compareSiblings(&a, &b) == 0 {
			require.False(t, a.below(&b) || b.below(&a))
			require.Equal(t, a.below(&c), b.below(&c))
			require.Equal(t, c.below(&a), c.below(&b))
		}
	})
}

// Danger: the definition in the package comment and the code part ways.
func TestBelowIsTheDocumentedOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := genSibling().Draw(t, "a"), genSibling().Draw(t, "b")
		o := a.Full().Compare(b.Clock)
		want := o == Before || o == Equal && !b.Dot.IsZero()
		require.Equal(t, want, a.below(&b))
	})
}

// Danger: the compaction's join of bytes differs from the read's join of records.
func TestJoinOfBytesIsJoinOfRecords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := genRecord().Draw(t, "a"), genRecord().Draw(t, "b")
		if rapid.Bool().Draw(t, "single") && len(a.Siblings)*len(b.Siblings) > 0 {
			a, b = Record{Siblings: a.Siblings[:1]}, Record{Siblings: b.Siblings[:1]}
		}
		ea, eb := a.Encode(nil), b.Encode(nil)
		got, err := JoinEncoded([]byte("prefix"), ea, eb)
		require.NoError(t, err)
		require.Equal(t, string(Join(a, b).Encode([]byte("prefix"))), string(got))
	})
}

// Danger: fragments that were flushed, merged and read in other groups and orders give other bytes.
func TestAnyOrderAndGroupingOfFragmentsGivesTheSameBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fragments := rapid.SliceOfN(genRecord(), 1, 6).Draw(t, "fragments")
		var want Record
		for _, f := range fragments {
			want = Join(want, f)
		}
		var left [][]byte
		for _, f := range rapid.Permutation(fragments).Draw(t, "order") {
			left = append(left, f.Encode(nil))
		}
		for len(left) > 1 {
			i := rapid.IntRange(0, len(left)-2).Draw(t, "neighbours")
			joined, err := JoinEncoded(nil, left[i+1], left[i])
			require.NoError(t, err)
			left = append(left[:i], append([][]byte{joined}, left[i+2:]...)...)
		}
		require.Equal(t, string(want.Encode(nil)), string(left[0]))
	})
}

// Danger: the common cases of a compaction allocate for each key.
func TestJoinOfBytesAllocatesNothingInCommonCases(t *testing.T) {
	older := Record{Siblings: []Sibling{{Clock: Clock{{"a", 1, 9}}, Value: []byte("one"), Timestamp: 5}}}.Encode(nil)
	newer := Record{Siblings: []Sibling{{Clock: Clock{{"a", 1, 9}}, Dot: Dot{"n", 4}, Value: []byte("two"), Timestamp: 6}}}.Encode(nil)
	dst := make([]byte, 0, 256)
	for _, pair := range [][2][]byte{{newer, older}, {older, newer}, {newer, newer}} {
		require.Zero(t, int(testing.AllocsPerRun(200, func() {
			out, err := JoinEncoded(dst, pair[0], pair[1])
			if err != nil || string(out) != string(newer) {
				t.Fatal("wrong join")
			}
		})))
	}
}

// Danger: two plain clocks of the same content silently lose one of two values.
func TestSamePlainClockWithAnotherValueIsAConflict(t *testing.T) {
	c := Clock{{"a", 3, 0}}
	x, y := Record{[]Sibling{{Clock: c, Value: []byte("x")}}}, Record{[]Sibling{{Clock: c, Value: []byte("y")}}}
	r := Join(x, y)
	require.Len(t, r.Siblings, 2)
	b, err := JoinEncoded(nil, x.Encode(nil), y.Encode(nil))
	require.NoError(t, err)
	require.Equal(t, string(r.Encode(nil)), string(b))
}

// Danger: expiry that joins by the earlier one, or treats "never" as the smallest, loses data.
func TestAttributesOfEqualSiblingsJoinByMaximum(t *testing.T) {
	one := func(ts uint64, exp, raised int64) Record {
		return Record{[]Sibling{{Clock: Clock{{"a", 1, raised}}, Timestamp: ts, ExpiresAt: exp}}}
	}
	equal(t, one(9, 0, 7), Join(one(9, 5, 7), one(3, 0, 2)))
	equal(t, one(9, 8, 7), Join(one(9, 5, 2), one(3, 8, 7)))
}

// Danger: two readers of one record pick different winners.
func TestWinnerDoesNotDependOnTheOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord().Draw(t, "r")
		w := Winner(r.Siblings)
		if len(r.Siblings) == 0 {
			require.Equal(t, -1, w)
			return
		}
		shuffled := rapid.Permutation(r.Siblings).Draw(t, "order")
		require.Zero(t, compareSiblings(&r.Siblings[w], &shuffled[Winner(shuffled)]))
	})
}

// Danger: collection takes a tombstone that is still within its grace, or a live value.
func TestCollectTakesWhatIsOlderThanTheCut(t *testing.T) {
	r, err := NewRecord([]Sibling{
		{Dot: Dot{"a", 1}, Tombstone: true, Timestamp: 100 * 1000 << 16},
		{Dot: Dot{"b", 1}, Value: []byte("x"), ExpiresAt: 100},
		{Dot: Dot{"c", 1}, Value: []byte("y")},
	})
	require.NoError(t, err)
	cut := uint64(100 * 1000 << 16)
	same, n := Collect(r, cut)
	require.Zero(t, n)
	equal(t, r, same)
	rest, n := Collect(r, cut+1)
	require.Equal(t, 2, n)
	require.Equal(t, "y", string(rest.Siblings[0].Value))
	at, ok := Inspect(r.Encode(nil))
	require.True(t, ok)
	require.Equal(t, cut, at)
	_, ok = Inspect(rest.Encode(nil))
	require.False(t, ok)
}

// Danger: the collection of bytes and of records differ, or an emptied record stays as a husk.
func TestCollectOfBytesIsCollectOfRecords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord().Draw(t, "r")
		cut := rapid.SampledFrom([]uint64{0, 1, 60*1000<<16 + 1, 90*1000<<16 + 1, 1<<64 - 1}).Draw(t, "cut")
		want, n := Collect(r, cut)
		require.Equal(t, len(r.Siblings)-n, len(want.Siblings))
		got, dropped, left, err := CollectEncoded(nil, r.Encode(nil), cut)
		require.NoError(t, err)
		require.Equal(t, n, dropped)
		if !left {
			require.Empty(t, want.Siblings)
			require.Empty(t, got)
			return
		}
		require.Equal(t, string(want.Encode(nil)), string(got))
	})
}

// Danger: a value is visible a second too long or too short, or a summary disagrees with the record.
func TestExpiryIsExactToTheSecond(t *testing.T) {
	s := Sibling{Dot: Dot{"a", 1}, ExpiresAt: 100}
	require.True(t, s.Live(99))
	require.False(t, s.Live(100))
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord().Draw(t, "r")
		now := rapid.SampledFrom([]int64{59, 60, 89, 90}).Draw(t, "now")
		sum, err := Summarize(r.Encode(nil), now)
		require.NoError(t, err)
		require.Equal(t, len(r.Live(now)), sum.Live)
		require.Equal(t, r.MaxTimestamp(), sum.MaxTimestamp)
	})
}
