package history

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A failed run is worth what its history says of it: it must be judged later exactly as it was then.
func TestHistoryIsTheSameAfterSaveAndLoad(t *testing.T) {
	l := New()
	l.Add(
		Op{ID: "a", Kind: Put, Key: "k", Client: "c", Node: "n", Start: 1, End: 2, Blind: true, Outcome: OK, Dot: Dot{"n/1", 7}, Clock: Clock{"n/1": 7}, TTL: time.Second},
		Op{Kind: Read, Key: "k", Node: "n", Start: 3, End: 4, Outcome: OK, Values: []string{"a"}, Clock: Clock{"n/1": 7}},
		Op{ID: "b", Kind: Delete, Key: "k", Node: "n", Start: 5, End: 6, Outcome: Unknown, Error: "lost", Seen: Clock{"n/1": 7}, IfValue: "a"},
	)
	name := filepath.Join(t.TempDir(), "history.jsonl")
	require.NoError(t, Save(name, l.Ops()))
	got, err := Load(name)
	require.NoError(t, err)
	require.Equal(t, l.Ops(), got)
}

func TestClockContainsWhatItHasSeen(t *testing.T) {
	// Every verdict stands on this comparison.
	c := Clock{"a": 3}
	require.True(t, c.Contains(Dot{"a", 3}))
	require.False(t, c.Contains(Dot{"a", 4}))
	require.False(t, c.Contains(Dot{"b", 1}))
	require.False(t, c.Contains(Dot{}), "an unknown write is in no clock")
	c.Join(Clock{"a": 1, "b": 2})
	require.Equal(t, Clock{"a": 3, "b": 2}, c)
}
