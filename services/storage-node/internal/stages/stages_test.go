package stages

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Time that no stage counts would be the one that a slow request lost.
func TestLapsAddUpToTheWholeRequest(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	var trail Trail
	trail.Begin(start)
	trail.Lap(Limits, at(1))
	trail.Lap(Join, at(4))
	trail.Lap(Queue, at(5))
	trail.Lap(Join, at(7)) // decided anew
	trail.Lap(Sync, at(20))
	require.Equal(t, Passage{Began: time.Millisecond, Took: 5 * time.Millisecond, Times: 2}, trail.Passed(Join))
	require.Zero(t, trail.Passed(Lock))
	var total time.Duration
	for s := range Count {
		total += trail.Passed(s).Took
	}
	require.Equal(t, 20*time.Millisecond, total)
	require.Equal(t, start, trail.Start())
}

// A clock that is set back must not make a stage give time back.
func TestLapOfAClockSetBackIsNothing(t *testing.T) {
	start := time.Unix(1000, 0)
	var trail Trail
	trail.Begin(start)
	trail.Lap(Read, start.Add(-time.Second))
	require.Zero(t, trail.Passed(Read).Took)
}

func TestTrailTravelsInTheContext(t *testing.T) {
	require.Nil(t, From(t.Context()))
	var trail Trail
	ctx := With(t.Context(), &trail)
	require.Same(t, &trail, From(ctx))
	require.Nil(t, From(With(ctx, nil)), "a part of the request that nobody looks at")
	require.Zero(t, testing.AllocsPerRun(100, func() { From(ctx) }))
}

func TestStagesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for s := range Count {
		require.NotEmpty(t, s.String())
		require.False(t, seen[s.String()], "%s twice", s)
		seen[s.String()] = true
	}
	require.Equal(t, "unknown", Count.String())
}
