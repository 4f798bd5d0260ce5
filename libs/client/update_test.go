package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/client"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
)

func TestUpdatesAtOnceAreAllCounted(t *testing.T) {
	// Read, add, write: without the condition two that read the same number count as one; with a lost
	// answer one counts as two.
	n := newMemoryNode()
	var mu sync.Mutex
	calls := 0
	n.after = func(string) error {
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls%7 == 0 {
			return status.Error(codes.Unavailable, "connection reset")
		}
		return nil
	}
	c := dial(t, n, client.Options{})
	const writers, each = 4, 25
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				_, err := c.Update(t.Context(), "count", func(v client.Value) ([]byte, error) { return append(v.Bytes, '|'), nil })
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	v, err := c.Get(t.Context(), "count")
	require.NoError(t, err)
	require.Len(t, v.Bytes, writers*each)
	require.Empty(t, v.Siblings)
}

func TestUpdateEndsWithWhatStopsIt(t *testing.T) {
	n := newMemoryNode()
	c := dial(t, n, client.Options{})
	enough := errors.New("the account is empty")
	_, err := c.Update(t.Context(), "k", func(client.Value) ([]byte, error) { return nil, enough })
	require.ErrorIs(t, err, enough)
	require.Zero(t, n.writes)

	n.before = func(string) error { return refusal(codes.FailedPrecondition, "CONDITION_FAILED", "always later") }
	tries := 0
	change := func(client.Value) ([]byte, error) { tries++; return nil, nil }
	_, err = c.Update(t.Context(), "k", change)
	require.ErrorContains(t, err, "others were faster 20 times")
	require.True(t, client.ConditionFailed(err))
	require.Equal(t, 20, tries)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err = c.Update(ctx, "k", func(client.Value) ([]byte, error) { cancel(); return nil, nil })
	require.ErrorIs(t, err, context.Canceled)
}

// conflict stores siblings.
func conflict(t *testing.T, c *client.Client, key string, values ...string) {
	t.Helper()
	for _, v := range values {
		_, err := c.Put(t.Context(), key, []byte(v), client.WithContext(nil))
		require.NoError(t, err)
	}
}

// union merges lines.
func union(siblings []*client.Sibling) ([]byte, error) {
	var lines []string
	for _, s := range siblings {
		lines = append(lines, strings.Fields(string(s.Value))...)
	}
	slices.Sort(lines)
	return []byte(strings.Join(slices.Compact(lines), " ")), nil
}

func TestResolveLosesNoSiblingThatCameMeanwhile(t *testing.T) {
	// A merge that supersedes what it has not seen loses a value that was acknowledged.
	n := newMemoryNode()
	c := dial(t, n, client.Options{})
	conflict(t, c, "cart", "apples", "pears")
	rounds := 0
	r, err := c.Resolve(t.Context(), "cart", func(siblings []*client.Sibling) ([]byte, error) {
		if rounds++; rounds <= 3 {
			conflict(t, c, "cart", fmt.Sprint("plums-", rounds))
		}
		return union(siblings)
	})
	require.NoError(t, err)
	require.Equal(t, 1, r.Siblings)
	require.Equal(t, 4, rounds)
	v, err := c.Get(t.Context(), "cart")
	require.NoError(t, err)
	require.Equal(t, "apples pears plums-1 plums-2 plums-3", string(v.Bytes))
	require.Empty(t, v.Siblings)
}

func TestResolveLeavesAloneWhatIsNoConflict(t *testing.T) {
	n := newMemoryNode()
	c := dial(t, n, client.Options{})
	never := func([]*client.Sibling) ([]byte, error) { return nil, errors.New("there is nothing to merge") }
	r, err := c.Resolve(t.Context(), "absent", never)
	require.NoError(t, err)
	require.Zero(t, r.Siblings)
	conflict(t, c, "one", "v")
	r, err = c.Resolve(t.Context(), "one", never)
	require.NoError(t, err)
	require.Equal(t, 1, r.Siblings)
	require.NotNil(t, r.Clock)
	n.keys["half"] = []*datav1.Sibling{{Value: []byte("v"), Dot: &datav1.ClockEntry{Counter: 2}}, {Tombstone: true, Dot: &datav1.ClockEntry{Counter: 1}}}
	r, err = c.Resolve(t.Context(), "half", never)
	require.NoError(t, err)
	require.Equal(t, 1, r.Siblings)
	require.Equal(t, 1, n.writes)

	conflict(t, c, "two", "a", "b")
	_, err = c.Resolve(t.Context(), "two", never)
	require.ErrorContains(t, err, "nothing to merge")
	_, err = c.Resolve(t.Context(), "two", func([]*client.Sibling) ([]byte, error) {
		conflict(t, c, "two", "c")
		return []byte("m"), nil
	})
	require.ErrorContains(t, err, "others were faster 20 times: 2 values are left")
}
