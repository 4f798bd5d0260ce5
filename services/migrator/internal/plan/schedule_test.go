package plan

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ring"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
)

func half() float64 { return 0.5 }

// Danger: a replica that came back, joined or gained ranges waits for an hour; or both sides compare at
// the same time what one of them could.
func TestEventsAreComparedSoonByOneSideFirst(t *testing.T) {
	a, b := []ring.HashRange{{Start: 1, End: 2}}, []ring.HashRange{{Start: 1, End: 3}}
	for _, c := range []struct {
		name string
		then []shared
		soon bool
	}{
		{"nothing happened", []shared{{"m", true, a}}, false},
		{"it went away", []shared{{"m", false, a}}, false},
		{"more is shared", []shared{{"m", true, b}}, true},
		{"less is shared", []shared{{"m", true, nil}}, false},
		{"another one joined", []shared{{"m", true, a}, {"n", true, a}}, true},
	} {
		for _, self := range []string{"a", "z"} {
			s := newSchedule(self, time.Hour, half)
			s.observe(noon, []shared{{"m", true, a}})
			p, wait := s.next(noon)
			require.Nil(t, p)
			if self == "a" {
				require.LessOrEqual(t, wait, time.Second, c.name)
			} else {
				require.GreaterOrEqual(t, wait, 5*time.Second, c.name)
				require.LessOrEqual(t, wait, 8*time.Second, c.name)
			}
			p, _ = s.next(noon.Add(wait))
			require.Equal(t, "m", p.id)
			require.Equal(t, noon, p.since)
			s.done(noon.Add(wait), p, true)
			now := noon.Add(time.Minute)
			s.observe(now, c.then)
			p, wait = s.next(now)
			require.Nil(t, p)
			require.Equal(t, c.soon, wait > 0 && wait < 10*time.Second, "%s: %s", c.name, wait)
		}
	}
	// It comes back.
	s := newSchedule("a", 0, half)
	s.observe(noon, []shared{{"m", true, a}})
	p, _ := s.next(noon.Add(time.Minute))
	s.done(noon, p, true)
	s.observe(noon, []shared{{"m", false, a}})
	s.observe(noon, []shared{{"m", true, a}})
	p, _ = s.next(noon.Add(time.Second))
	require.Equal(t, "m", p.id)
}

// Danger: a pair is never compared again, or without a pause.
func TestEachPairIsComparedAgainAndAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		interval := rapid.SampledFrom([]time.Duration{0, 10 * time.Second, time.Hour}).Draw(t, "interval")
		self := rapid.SampledFrom([]string{"a", "z"}).Draw(t, "self")
		s := newSchedule(self, interval, constant(rapid.Float64Range(0, 0.999).Draw(t, "random")))
		s.observe(noon, []shared{{"m", true, whole}})
		now := noon
		for range 30 {
			p, wait := s.next(now)
			if p == nil && wait == 0 {
				require.Zero(t, interval, "only without an interval nothing is foreseen")
				require.Zero(t, s.pairs["m"].failures)
				return
			}
			if p == nil {
				require.LessOrEqual(t, wait, max(interval+interval/2, backoffMax))
				now = now.Add(wait)
				p, _ = s.next(now)
			}
			require.NotNil(t, p)
			require.Equal(t, 1, s.waiting(now))
			equal := rapid.Bool().Draw(t, "equal")
			s.done(now, p, equal)
			require.Zero(t, s.waiting(now), "there is a pause")
			if !equal {
				require.True(t, p.since.IsZero(), "what differed is compared again in any case")
			}
		}
	})
}

// Danger: two nodes drop tombstones by the grace alone, and a repair brings back what was deleted.
func TestWhatWasApartForLongerThanTheGraceIsLeftAlone(t *testing.T) {
	at := func(ago time.Duration) *migrationv1.SharedRange {
		ms := int64(0)
		if ago > 0 {
			ms = noon.Add(-ago).UnixMilli()
		}
		return &migrationv1.SharedRange{Replicas: []string{"a", "m"}, EqualWithMs: []int64{1, ms}}
	}
	list := []*migrationv1.SharedRange{at(0), at(time.Hour), at(48 * time.Hour)}
	day := int64(24 * 3600)
	require.Len(t, comparable(list, "m", &migrationv1.ConfigurationResponse{Gc: "grace", GcGraceSeconds: day}, noon), 2)
	require.Len(t, comparable(list, "m", &migrationv1.ConfigurationResponse{Gc: "repair", GcGraceSeconds: day}, noon), 3)
	require.True(t, equalWith(list[0], "m").IsZero())
	require.True(t, equalWith(list[1], "unknown").IsZero())
}

func constant(f float64) func() float64 { return func() float64 { return f } }
