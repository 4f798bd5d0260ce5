package commitlog

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Danger: files that nobody keeps for another use are neither removed nor counted, and the disk fills.
func TestTrimmedSegmentsAreRemovedWhenNoneAreKept(t *testing.T) {
	o := small
	o.Recycle = 0
	_, l := newLog(t, o)
	var last Position
	for i := range 100 {
		pos, err := l.Append(1, []byte(payload(i)))
		require.NoError(t, err)
		last = pos
	}
	before := l.Metrics()
	require.Greater(t, before.LiveSegments, uint64(3))
	require.NoError(t, l.Trim(last.Segment))
	m := l.Metrics()
	require.Equal(t, uint64(1), m.LiveSegments)
	require.Equal(t, before.LiveSegments-1, m.Removed)
	require.Zero(t, m.SpareSegments)
	require.NoError(t, l.Close())
}
