package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
)

// Danger: a replica that was away takes the value that a forgotten clock entry superseded for news, and it
// comes back as a sibling.
func TestClocksAreNotPrunedBeforeReplicasHaveThem(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	may, asked := false, 0
	s, err := New(newFake(), Options{NodeID: "n1", Now: func() time.Time { return now }, MayPrune: func(key []byte) bool {
		require.Equal(t, "t\x00k", string(key))
		asked++
		return may
	}})
	require.NoError(t, err)
	ctx := t.Context()
	_, err = s.Write(ctx, WriteRequest{Tenant: "t", Key: "other", Value: []byte("v")})
	require.NoError(t, err)
	require.Zero(t, asked, "small clocks are nobody's concern")
	var entries []causal.Entry
	for i := range 70 {
		entries = append(entries, causal.Entry{Node: fmt.Sprintf("c%02d", i), Counter: 1})
	}
	clock, err := causal.NewClock(entries)
	require.NoError(t, err)
	_, err = s.Write(ctx, WriteRequest{Tenant: "t", Key: "k", Value: []byte("old"), Causality: Causality{Clock: clock}})
	require.NoError(t, err)
	now = now.Add(40 * 24 * time.Hour)
	for _, may = range []bool{false, true} {
		r, err := s.Write(ctx, WriteRequest{Tenant: "t", Key: "k", Value: []byte("new")})
		require.NoError(t, err)
		require.Equal(t, may, len(r.Clock) < 70, "%d entries", len(r.Clock))
	}
	require.Positive(t, asked)
}
