package replica

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/merkle"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

var errEnough = errors.New("enough")

// follow calls until with each part until it returns true.
func (n *node) follow(t require.TestingT, s Selection, from uint64, until func(Changes) bool) {
	err := n.Follow(bg, FollowRequest{What: s, From: from}, func(c Changes) error {
		if until(c) {
			return errEnough
		}
		return nil
	})
	require.ErrorIs(t, err, errEnough)
}

// tree returns the roots of everything.
func (n *node) roots(t require.TestingT) []merkle.Digest {
	d, err := n.Digest(bg, DigestRequest{LeavesPerRange: 4})
	require.NoError(t, err)
	return d.Roots
}

// Danger: a change between the snapshot and the feed, or around a death of either side, is missing at the
// target, and nobody knows.
func TestACopyAndItsTailAreEverything(t *testing.T) {
	fs := vfs.NewMem()
	source, target := openNode(t, "source", fs), startNode(t, "target")
	defer func() { require.NoError(t, source.engine.Close()) }()
	rng := rand.New(rand.NewPCG(7, 7))
	fill(t, source, rng, 400)
	pin, err := source.Pin("m", 0)
	require.NoError(t, err)
	fill(t, source, rng, 200)
	var cursor []byte
	for finished := false; !finished; {
		chunks := 0
		err := source.Export(bg, ExportRequest{Cursor: cursor}, func(c Chunk) error {
			target.take(t, c.Records)
			cursor, finished = append([]byte{}, c.Cursor...), c.Finished
			fill(t, source, rng, 20)
			if chunks++; chunks == 2 && !finished {
				return errEnough
			}
			return nil
		})
		if !finished {
			require.ErrorIs(t, err, errEnough)
		}
		require.NoError(t, source.engine.Close())
		source = openNode(t, "source", fs)
	}
	from, at, messages := pin, int64(0), 0
	for again := 2; again > 0; {
		source.follow(t, Selection{}, from, func(c Changes) bool {
			target.take(t, c.Records)
			require.GreaterOrEqual(t, c.Newest, c.Sequence)
			require.GreaterOrEqual(t, c.AtMillis, at)
			from, at, messages = c.Sequence+1, c.AtMillis, messages+1
			if messages == 3 {
				fill(t, source, rng, 100)
			}
			return c.Sequence == c.Newest && messages > 5 || again == 2 && messages == 2
		})
		again--
		if again > 0 {
			at = 0
			require.NoError(t, source.engine.Close())
			source = openNode(t, "source", fs)
		}
	}
	require.Greater(t, at, int64(0))
	same(t, source.all(t), target.all(t))
	require.Equal(t, source.roots(t), target.roots(t))
	require.NoError(t, source.Release("m"))
}

// same compares what two nodes hold, and tells differences by the number of keys.
func same(t require.TestingT, want, got map[string]string) {
	missing, other, more := 0, 0, 0
	for k, v := range want {
		if g, ok := got[k]; !ok {
			missing++
		} else if g != v {
			other++
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			more++
		}
	}
	require.True(t, missing+other+more == 0, "%d missing, %d other, %d too many of %d", missing, other, more, len(want))
}

// Danger: garbage that the source collects, or ranges that it cleans up, are deleted at the target.
func TestPhysicalDeletesAreNotHandedOn(t *testing.T) {
	n := startNode(t, "n")
	n.put(t, "t", "a", "1")
	var b engine.Batch
	b.Delete(ikey.AppendEngineKey(nil, "t", "a"))
	b.DeleteRange([]byte("t\x00"), []byte("t\x01"))
	require.NoError(t, n.engine.Apply(&b, engine.SyncGroup))
	n.put(t, "t", "b", "2")
	var keys []string
	n.follow(t, Selection{}, 1, func(c Changes) bool {
		for _, r := range c.Records {
			keys = append(keys, string(r.Key))
		}
		return c.Sequence == c.Newest
	})
	require.Equal(t, []string{"t\x00a", "t\x00b"}, keys)
}

// Danger: a receiver can't tell a quiet range from a broken feed, and a move never learns that it is done.
func TestFollowTellsItsProgressWhenNothingIsWanted(t *testing.T) {
	n := startNode(t, "n")
	from, err := n.Pin("m", 0)
	require.NoError(t, err)
	for i := range 3000 {
		n.put(t, "other", fmt.Sprint(i), "v")
	}
	last, told := time.Now(), 0
	begin := time.Now()
	n.follow(t, Selection{Tenant: "mine"}, from, func(c Changes) bool {
		require.Empty(t, c.Records)
		require.Less(t, time.Since(last), 3*time.Second)
		last = time.Now()
		if c.Sequence == c.Newest {
			told++
			require.GreaterOrEqual(t, c.AtMillis, begin.UnixMilli())
		}
		return told == 3
	})
}

// noise is text that does not pack.
func noise(n int) string {
	rng := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return string(b)
}

// Danger: a feed that lost changes goes on as if nothing were missing.
func TestChangesThatAreGoneAreToldOff(t *testing.T) {
	small := func(o *engine.Options) { o.TailRetentionBytes = 64 << 10 }
	fs := vfs.NewMem()
	n := openNode(t, "n", fs, small)
	defer func() { require.NoError(t, n.engine.Close()) }()
	n.put(t, "t", "k", "v")
	first, err := n.Pin("m", 0)
	require.NoError(t, err)
	again, err := n.Pin("m", first)
	require.NoError(t, err)
	require.Equal(t, first, again)
	n.put(t, "t", "k", "v")
	again, err = n.Pin("m", 0)
	require.NoError(t, err)
	require.Equal(t, first, again)
	require.NoError(t, n.engine.Close())
	n = openNode(t, "n", fs, small)
	again, err = n.Pin("m", first)
	require.NoError(t, err)
	require.Equal(t, first, again)
	for rounds := 0; store.ReasonOf(err) != store.ReasonSequenceTooOld; rounds++ {
		require.Less(t, rounds, 100)
		for i := range 4 {
			n.put(t, "t", fmt.Sprint(i), noise(100<<10))
		}
		require.NoError(t, n.engine.Flush(bg))
		_, err = n.Pin("m", first)
	}
	err = n.Follow(bg, FollowRequest{From: first}, func(Changes) error { return nil })
	require.Equal(t, store.ReasonSequenceTooOld, store.ReasonOf(err))
	fresh, err := n.Pin("m", 0)
	require.NoError(t, err)
	require.Greater(t, fresh, first)
	require.NoError(t, n.Release("m"))
	require.NoError(t, n.Release("m"))
	require.Empty(t, n.engine.TailPins())
}

// Danger: pins of moves that are over hold the log for ever, or one that is needed is let go.
func TestSweepLetsGoOfWhatNoMoveNeeds(t *testing.T) {
	n := startNode(t, "n")
	for _, id := range []string{"a", "b"} {
		_, err := n.Pin(id, 0)
		require.NoError(t, err)
	}
	require.NoError(t, n.engine.PinTail("other", 1))
	swept, err := n.Sweep(func(id string) bool { return id == "b" })
	require.NoError(t, err)
	require.Equal(t, 1, swept)
	require.Equal(t, []string{"move.b", "other"}, n.engine.TailPins())
}

// Danger: a feed outlives who reads it.
func TestFollowEndsWithItsContext(t *testing.T) {
	n := startNode(t, "n")
	ctx, cancel := context.WithCancel(bg)
	err := n.Follow(ctx, FollowRequest{From: 1}, func(Changes) error { cancel(); return nil })
	require.ErrorIs(t, err, context.Canceled)
}

// Danger: a move that follows for weeks holds the log from its beginning, until its pin breaks and the copy
// begins anew; or a pin that moves lets go of what is not at the target yet.
func TestAPinMovesWithTheTail(t *testing.T) {
	n := startNode(t, "n")
	now := time.Now()
	n.o.Now = func() time.Time { return now }
	n.put(t, "t", "k", "v")
	first, err := n.Pin("m", 0)
	require.NoError(t, err)
	held := func() uint64 {
		from, ok := n.engine.PinnedTail("move.m")
		require.True(t, ok)
		return uint64(from)
	}
	for range 10 {
		n.put(t, "t", "k", "v")
	}
	require.NoError(t, n.MovePin("m", first+3))
	require.Equal(t, first+3, held())
	require.NoError(t, n.MovePin("m", first+5)) // too soon
	require.Equal(t, first+3, held())
	now = now.Add(movePinEvery)
	require.NoError(t, n.MovePin("m", first)) // never back
	require.Equal(t, first+3, held())
	now = now.Add(movePinEvery)
	require.NoError(t, n.MovePin("m", uint64(n.engine.VisibleSeq())+2)) // never beyond what there is
	require.Equal(t, first+3, held())
	again, err := n.Pin("m", first)
	require.NoError(t, err)
	require.Equal(t, first+3, again)
	n.follow(t, Selection{}, first+3, func(c Changes) bool { return c.Sequence == c.Newest })
	require.NoError(t, n.engine.UnpinTail("move.m")) // as if it were broken
	now = now.Add(movePinEvery)
	require.NoError(t, n.MovePin("m", first+6))
	require.Equal(t, first+6, held())
	require.NoError(t, n.Release("m"))
	require.Empty(t, n.engine.TailPins())
}

// Danger: the log brings what a tenant stored before it was dropped into its next life on another node.
func TestTheLifeBeforeIsNotHandedOn(t *testing.T) {
	fs := vfs.NewMem()
	n := openNode(t, "n", fs)
	defer func() { require.NoError(t, n.engine.Close()) }()
	from, err := n.Pin("m", 0)
	require.NoError(t, err)
	_, err = n.tenants.Create(bg, "t", tenant.Quota{}, 0)
	require.NoError(t, err)
	n.put(t, "t", "old", "v")
	n.put(t, "stays", "old", "v")
	_, err = n.tenants.Drop(bg, "t")
	require.NoError(t, err)
	_, err = n.tenants.Create(bg, "t", tenant.Quota{}, 0)
	require.NoError(t, err)
	n.put(t, "t", "new", "v")
	for range 2 {
		var keys []string
		n.follow(t, Selection{}, from, func(c Changes) bool {
			for _, r := range c.Records {
				keys = append(keys, string(r.Key))
			}
			return c.Sequence == c.Newest
		})
		require.Equal(t, []string{"stays\x00old", "t\x00new"}, keys)
		require.NoError(t, n.engine.Close())
		n = openNode(t, "n", fs)
	}
}
