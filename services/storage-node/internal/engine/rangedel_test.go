package engine

import (
	"fmt"
	"testing"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func drawRangeDeletes(t *rapid.T, most int) []ikey.RangeDelete {
	n := rapid.IntRange(0, most).Draw(t, "deletes")
	dels := make([]ikey.RangeDelete, n)
	for i := range dels {
		from := rapid.IntRange(0, 29).Draw(t, "from")
		to := rapid.IntRange(from, 30).Draw(t, "to") // from == to: an empty range removes nothing
		dels[i] = ikey.RangeDelete{
			Start: fmt.Appendf(nil, "k%02d", from), End: fmt.Appendf(nil, "k%02d", to),
			Seq: ikey.Seq(rapid.IntRange(1, 40).Draw(t, "seq")),
		}
	}
	return dels
}

// A range delete that the index forgets brings deleted data back; one that it stretches deletes
// what is there. The skyline must answer as a look at every delete does.
func TestRangeMaskEqualsEveryDelete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dels := drawRangeDeletes(t, 12)
		at := ikey.Seq(rapid.IntRange(0, 41).Draw(t, "at"))
		mask := newRangeMask(dels, at)
		index := newRangeIndex(dels)
		for range 64 {
			user := fmt.Appendf(nil, "k%02d", rapid.IntRange(0, 31).Draw(t, "key"))
			want := coveringLinear(dels, user, at)
			require.Equal(t, want, mask.at(user), "mask at %s", user)
			require.Equal(t, want, index.covering(user, at), "index at %s", user)
		}
		for i := 1; i < len(mask.spans); i++ {
			require.LessOrEqual(t, string(mask.spans[i-1].end), string(mask.spans[i].start))
		}
	})
}

// A table that is left out of a scan because a range delete hides it must hold nothing that counts.
func TestRangeMaskHidesOnlyWhatIsDeleted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dels := drawRangeDeletes(t, 6)
		mask := newRangeMask(dels, ikey.MaxSeq)
		from := rapid.IntRange(0, 30).Draw(t, "smallest")
		to := rapid.IntRange(from, 31).Draw(t, "largest")
		seq := ikey.Seq(rapid.IntRange(1, 40).Draw(t, "maxSeq"))
		smallest := ikey.Make(fmt.Appendf(nil, "k%02d", from), 1, ikey.KindSet)
		largest := ikey.Make(fmt.Appendf(nil, "k%02d", to), 1, ikey.KindSet)
		if !mask.hides(smallest, largest, seq) {
			return
		}
		for i := from; i <= to; i++ {
			require.Greater(t, coveringLinear(dels, fmt.Appendf(nil, "k%02d", i), ikey.MaxSeq), seq)
		}
	})
}
