package causal

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const day = 24 * 3600

func at(unix int64) uint64 { return uint64(unix) * 1000 << 16 }

func mustApply(t require.TestingT, r Record, w Write, want Outcome) Record {
	out, outcome, err := Apply(r, w, DefaultLimits)
	require.NoError(t, err)
	require.Equal(t, want.String(), outcome.String())
	require.NoError(t, out.Validate())
	return out
}

// Danger: each of the four answers is given for the wrong relation of clocks.
func TestPlainClocksAreComparedWithEverySibling(t *testing.T) {
	plain := func(v string, c ...Entry) Write { return Write{Value: []byte(v), Clock: c, Timestamp: at(day)} }
	r := mustApply(t, Record{}, plain("1", Entry{"a", 2, 0}), Applied)
	same := mustApply(t, r, plain("1", Entry{"a", 2, 0}), Duplicate)
	equal(t, r, same)
	same = mustApply(t, r, plain("0", Entry{"a", 1, 0}), Stale)
	equal(t, r, same)
	require.Len(t, mustApply(t, r, plain("2", Entry{"a", 3, 0}), Applied).Siblings, 1)
	require.Len(t, mustApply(t, r, plain("2", Entry{"b", 1, 0}), SiblingKept).Siblings, 2)
	require.Len(t, mustApply(t, r, plain("2", Entry{"a", 2, 0}), SiblingKept).Siblings, 2)
	require.Len(t, mustApply(t, r, Write{Tombstone: true, Clock: Clock{{"a", 2, 0}}}, SiblingKept).Siblings, 2)
}

// Danger: two clients that read the same and write through one node erase each other.
func TestTwoWritersWithTheSameContextBecomeSiblings(t *testing.T) {
	r := mustApply(t, Record{}, Write{Value: []byte("0"), Dot: Dot{"n", 1}}, Applied)
	ctx := r.Clock()
	r = mustApply(t, r, Write{Value: []byte("1"), Context: ctx, HasContext: true, Dot: Dot{"n", 2}}, Applied)
	r = mustApply(t, r, Write{Value: []byte("2"), Context: ctx, HasContext: true, Dot: Dot{"n", 3}}, SiblingKept)
	require.Len(t, r.Siblings, 2)
	r = mustApply(t, r, Write{Value: []byte("3"), Context: r.Clock(), HasContext: true, Dot: Dot{"n", 4}}, Applied)
	require.Len(t, r.Siblings, 1)
	r = mustApply(t, r, Write{Value: []byte("4"), HasContext: true, Dot: Dot{"n", 5}}, SiblingKept)
	r = mustApply(t, r, Write{Value: []byte("5"), Dot: Dot{"n", 6}}, Applied)
	require.Equal(t, "5", string(r.Siblings[0].Value))
}

// Danger: an actor's dot is given twice, or a made-up clock claims it in advance.
func TestADotThatWasSeenIsRefused(t *testing.T) {
	r := mustApply(t, Record{}, Write{Value: []byte("0"), Dot: Dot{"n", 7}}, Applied)
	_, _, err := Apply(r, Write{Dot: Dot{"n", 7}}, DefaultLimits)
	require.ErrorIs(t, err, ErrDotSeen)
	_, _, err = Apply(Record{}, Write{Dot: Dot{"n", 7}, HasContext: true, Context: Clock{{"n", 9, 0}}}, DefaultLimits)
	require.ErrorIs(t, err, ErrDotSeen)
}

// Danger: siblings grow without end, or the limit keeps a client from merging them.
func TestSiblingLimitRefusesOnlyWritesThatAddOne(t *testing.T) {
	r := Record{}
	var err error
	for i := range uint64(64) {
		r, _, err = Apply(r, Write{Value: []byte(fmt.Sprint(i)), HasContext: true, Dot: Dot{"n", i + 1}}, DefaultLimits)
		require.NoError(t, err)
	}
	_, _, err = Apply(r, Write{HasContext: true, Dot: Dot{"n", 65}}, DefaultLimits)
	require.ErrorIs(t, err, ErrTooManySiblings)
	var too *TooManySiblingsError
	require.ErrorAs(t, err, &too)
	require.Len(t, too.Record.Siblings, 64)

	// Repair brought more than the limit: merging some of them is still progress.
	more, err2 := NewRecord([]Sibling{{Dot: Dot{"m", 1}}, {Dot: Dot{"m", 2}}, {Dot: Dot{"m", 3}}})
	require.NoError(t, err2)
	r = Join(r, more)
	out, outcome, err := Apply(r, Write{HasContext: true, Context: Clock{{"m", 3, 0}}, Dot: Dot{"n", 65}}, DefaultLimits)
	require.NoError(t, err)
	require.Equal(t, SiblingKept, outcome)
	require.Len(t, out.Siblings, 65)
}

// Danger: clocks of coordinators whose names never end grow for ever; or pruning forgets what is
// fresh, works by another time than the write's, or at the limit instead of above it.
func TestClocksArePrunedByTheTimeOfTheWrite(t *testing.T) {
	grow := func(n int, clock Clock, raised int64) Record {
		return Record{[]Sibling{{Clock: clock, Timestamp: at(raised)}}}
	}
	for _, n := range []int{64, 65} {
		clock := make(Clock, n)
		for i := range clock {
			clock[i] = Entry{Node: fmt.Sprintf("c%03d", i), Counter: 1, Raised: 1000}
		}
		old := grow(n, clock[:n-1], 1000)
		clock[n-1].Raised = 0
		now := int64(1000 + 30*day + 1)
		r := mustApply(t, old, Write{Clock: clock, Timestamp: at(now)}, Applied)
		if n == 64 {
			require.Len(t, r.Siblings[0].Clock, 64)
			require.Equal(t, now, r.Siblings[0].Clock[63].Raised)
			require.EqualValues(t, 1000, r.Siblings[0].Clock[0].Raised)
			continue
		}
		require.Equal(t, Clock{{clock[64].Node, 1, now}}, r.Siblings[0].Clock)
		// One second earlier nothing is old enough.
		r = mustApply(t, old, Write{Clock: clock, Timestamp: at(now - 1)}, Applied)
		require.Len(t, r.Siblings[0].Clock, 65)
	}
}

// Danger: a pruned clock looks contained in a concurrent one, and an acknowledged write vanishes in
// the next join.
func TestPruningNeverMakesAWriteLookSuperseded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := Limits{MaxSiblings: 64, PruneAbove: rapid.IntRange(0, 2).Draw(t, "above"), PruneAfter: 10}
		old := genRecord().Draw(t, "old")
		w := Write{Value: []byte("new"), Clock: genClock().Draw(t, "clock"), Timestamp: at(90)}
		if len(w.Clock) == 0 {
			w.Dot = Dot{"fresh", 1}
			w.Context, w.HasContext = genClock().Draw(t, "context"), rapid.Bool().Draw(t, "has")
		}
		r, outcome, err := Apply(old, w, l)
		require.NoError(t, err)
		require.NoError(t, r.Validate())
		if outcome == Applied || outcome == SiblingKept {
			// What the write superseded may come back from a replica that was away: that is the
			// price of pruning. The write itself may not go.
			for _, after := range []Record{r, Join(r, old)} {
				found := false
				for _, s := range after.Siblings {
					found = found || string(s.Value) == "new"
				}
				require.True(t, found)
			}
		}
	})
}

// Danger: without pruning, the decision differs from the join that repair would make.
func TestPlainWriteIsAJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := genRecord().Draw(t, "old")
		w := Write{Value: []byte("x"), Clock: genClock().Draw(t, "clock"), Timestamp: at(5)}
		if len(w.Clock) == 0 {
			return
		}
		r, outcome, err := Apply(old, w, Limits{MaxSiblings: 64})
		require.NoError(t, err)
		joined := Join(old, Record{[]Sibling{{Clock: w.Clock, Value: w.Value, Timestamp: w.Timestamp}}})
		require.Len(t, r.Siblings, len(joined.Siblings))
		for i := range r.Siblings {
			require.Zero(t, compareSiblings(&r.Siblings[i], &joined.Siblings[i]))
		}
		if outcome == Stale || outcome == Duplicate {
			equal(t, old, r)
		}
	})
}

// Danger: a context that a client put together leaves out what the superseded siblings had seen, and
// they come back from the next replica.
func TestAWriteHasSeenWhatItSupersedes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := genRecord().Draw(t, "old")
		w := Write{
			Value: []byte("new"), Timestamp: at(90), Dot: Dot{"fresh", 1},
			Context: genClock().Draw(t, "context"), HasContext: rapid.Bool().Draw(t, "has"),
		}
		r, _, err := Apply(old, w, Limits{MaxSiblings: 64})
		require.NoError(t, err)
		equal(t, r, Join(r, old))
		for i := range old.Siblings {
			s := &old.Siblings[i]
			seen := !w.HasContext || !s.Dot.IsZero() && w.Context.Contains(s.Dot) || s.Dot.IsZero() && s.Clock.within(w.Context)
			kept := false
			for j := range r.Siblings {
				kept = kept || compareSiblings(s, &r.Siblings[j]) == 0
			}
			require.False(t, seen && kept)
		}
	})
}

// Danger: timestamps repeat, go back with the wall clock, or follow it not at all.
func TestHybridClockNeverGoesBack(t *testing.T) {
	wall := int64(1000)
	h := NewHLC(func() time.Time { return time.Unix(wall, 0) })
	a := h.Now()
	require.Equal(t, at(1000), a)
	require.Equal(t, a+1, h.Now())
	wall = 900
	require.Equal(t, a+2, h.Now())
	wall = 1001
	require.Equal(t, at(1001), h.Now())
	h.Observe(at(2000))
	h.Observe(at(1))
	require.Equal(t, at(2000)+1, h.Now())
	require.Equal(t, time.Unix(2000, 0).UTC(), Time(at(2000)).UTC())
}
