package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
)

// Danger: conflicts that nobody counts are found by the users; a write that is decided twice, refused or
// repeated must not count as one that did something.
func TestCountsSayWhatWritesAndReadsTurnedOutToBe(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	coordinator := causal.Clock{{Node: "c", Counter: 2}}
	older := causal.Clock{{Node: "c", Counter: 1}}
	put(t, s, "k", "v", plain(coordinator...))
	put(t, s, "k", "v", plain(coordinator...))
	put(t, s, "k", "old", plain(older...))
	put(t, s, "k", "beside", seen(nil))
	for range 2 {
		_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "once", Value: []byte("v"), IdempotencyKey: "request"})
		require.NoError(t, err)
	}
	_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("v"), Condition: &Condition{When: Absent}})
	require.Error(t, err)
	results, err := s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", OmitClocks: true, Ops: []Op{
		{Kind: Put, Key: "a", Value: []byte("v")}, {Kind: Put, Key: ""},
		{Kind: Repair, Key: "r", Siblings: []causal.Sibling{{Clock: coordinator, Value: []byte("v"), Timestamp: 1}}},
	}})
	require.NoError(t, err)
	require.Error(t, results[1].Err)

	read(t, s, "k")
	read(t, s, "a")
	read(t, s, "nobody")
	_, err = s.BatchRead(bg, "t", []string{"k", "nobody", "nor this"})
	require.NoError(t, err)
	require.NoError(t, s.Stream(bg, StreamRequest{Tenant: "t"}, func(Chunk) error { return nil }))

	c := s.Counts()
	require.Equal(t, [...]uint64{0, causal.Applied: 3, causal.Duplicate: 1, causal.Stale: 1, causal.SiblingKept: 1}, c.Outcomes)
	require.Equal(t, uint64(1), c.Joined)
	require.Equal(t, []uint64{1, 1}, []uint64{c.Remembered, c.Replayed})
	require.Equal(t, uint64(3), c.Misses)
	require.Equal(t, uint64(2), c.Concurrent)
	require.Equal(t, uint64(4), c.ScanRecords, "k, once, a, r")
	require.Positive(t, c.ScanBytes)
}
