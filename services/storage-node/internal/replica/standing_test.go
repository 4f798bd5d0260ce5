package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// digests returns what a request gives with and without renewal of one moment, which must be equal.
func (n *node) digests(t require.TestingT, q DigestRequest) (renewed bool) {
	q.Renew = true
	got, err := n.Digest(bg, q)
	require.NoError(t, err)
	q.Renew = false
	want, err := n.Digest(bg, q)
	require.NoError(t, err)
	require.False(t, want.Renewed)
	require.Equal(t, want.Roots, got.Roots)
	require.Equal(t, want.Records, got.Records)
	require.Equal(t, want.Sequence, got.Sequence)
	for r := range want.Roots {
		a, err := n.Leaves(want.Tree, []uint32{uint32(r)})
		require.NoError(t, err)
		b, err := n.Leaves(got.Tree, []uint32{uint32(r)})
		require.NoError(t, err)
		require.Equal(t, a, b)
	}
	return got.Renewed
}

// Danger: a tree that is brought up to date is not that of what the node has. Then a difference is not seen,
// and what hides a value is collected although the other side still has the value; or nodes that are equal
// exchange their keys for ever.
func TestRenewedTreesAreThoseOfWhatThereIs(t *testing.T) {
	var mu sync.Mutex
	renewed := 0
	rapid.Check(t, func(t *rapid.T) {
		begin := time.Now().Add(-2 * time.Hour)
		cut := causal.Timestamp(begin)
		collected := cut // what merges collect is left out of every digest
		n := openNode(t, "n", vfs.NewMem(), func(o *engine.Options) { o.GCBefore = func() uint64 { return collected } })
		defer func() { n.Close(); require.NoError(t, n.engine.Close()) }()
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		within := func(d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d) + 1)) }
		_, err := n.tenants.Create(bg, "ab", tenant.Quota{}, 0)
		require.NoError(t, err)
		fill(t, n, rng, rapid.IntRange(0, 80).Draw(t, "before"))
		n.take(t, agingRecords(rng, begin, rapid.IntRange(0, 80).Draw(t, "aging")))
		s := selections().Draw(t, "selection")
		s.HashRanges = halves[:rapid.IntRange(1, 2).Draw(t, "halves")]
		q := DigestRequest{What: s, LeavesPerRange: 1 << rapid.IntRange(0, 6).Draw(t, "leaves"), CollectedBefore: cut}
		later := func() {
			cut = min(causal.Timestamp(causal.Time(cut).Add(within(time.Hour))), causal.Timestamp(begin.Add(2*time.Hour)))
			q.CollectedBefore = cut
		}
		require.False(t, n.digests(t, q))
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0, 1, 2:
				fill(t, n, rng, rapid.IntRange(0, 20).Draw(t, "changes"))
			case 3:
				n.take(t, agingRecords(rng, begin, rapid.IntRange(0, 20).Draw(t, "more aging")))
			case 4: // time goes on: what counted counts less, and merges take it away
				later()
			case 5:
				later()
				collected = max(collected, causal.Timestamp(begin.Add(within(causal.Time(cut).Sub(begin)))))
				require.NoError(t, n.engine.Flush(bg))
				require.NoError(t, n.engine.Compact(bg, nil, nil, nil))
			case 6:
				n.standing.pull()
			case 7: // a clock that is behind
				q.CollectedBefore = cut - uint64(within(time.Duration(cut-collected)))
			case 8:
				_, err := n.tenants.Drop(bg, "ab")
				require.NoError(t, err)
				_, err = n.tenants.Create(bg, "ab", tenant.Quota{}, 0)
				require.NoError(t, err)
			case 9:
				n.ForgetStanding()
			}
			was := n.digests(t, q)
			mu.Lock()
			if was {
				renewed++
			}
			mu.Unlock()
			q.CollectedBefore = cut
		}
	})
	require.NotZero(t, renewed)
}

// agingRecords are such of which something is collectable some time within the two hours after begin.
func agingRecords(rng *rand.Rand, begin time.Time, count int) []Record {
	out := make([]Record, count)
	for i := range out {
		var rec causal.Record
		for node := range 1 + rng.IntN(3) {
			at := begin.Add(time.Duration(rng.Int64N(int64(2 * time.Hour))))
			s := causal.Sibling{Dot: causal.Dot{Node: fmt.Sprint("other", node), Counter: 1 + rng.Uint64N(1000)}, Timestamp: causal.Timestamp(at)}
			switch rng.IntN(3) {
			case 0:
				s.Tombstone = true
			case 1:
				s.Value, s.ExpiresAt = []byte("for a time"), at.Unix()
				s.Timestamp = causal.Timestamp(at.Add(-time.Minute))
			default:
				s.Value = []byte("for ever")
			}
			rec.Siblings = append(rec.Siblings, s)
		}
		out[i] = Record{Key: ikey.AppendEngineKey(nil, []string{"a", "ab"}[rng.IntN(2)], fmt.Sprintf("k%03d", rng.IntN(200))), Value: rec.Encode(nil)}
	}
	return out
}

// Danger: a write that is under way is in the tree and not in its sequence, or the other way round.
func TestTreesAreRenewedUnderWrites(t *testing.T) {
	n := startNode(t, "n")
	defer n.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	fill(t, n, rng, 200)
	q := DigestRequest{What: Selection{HashRanges: halves}, LeavesPerRange: 64, Renew: true}
	_, err := n.Digest(bg, q)
	require.NoError(t, err)
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(bg)
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			n.put(t, "a", fmt.Sprintf("k%03d", i%4), fmt.Sprint(i))
		}
	}()
	for range 300 {
		d, err := n.Digest(bg, q)
		require.NoError(t, err)
		require.True(t, d.Renewed)
	}
	cancel()
	<-done
	require.True(t, n.digests(t, q))

	// One that comes behind the snapshot, and before the log is read.
	n.faults.set(func(f *faults) {
		f.wait = func() error {
			n.faults.set(func(f *faults) { f.wait = nil })
			n.put(t, "a", "k003", "between")
			return nil
		}
	})
	d, err := n.Digest(bg, q)
	require.NoError(t, err)
	require.True(t, d.Renewed)
	require.True(t, n.digests(t, q))
}

// Danger: to compare what nobody has written to costs as much as ever.
func TestOnlyWhatHasChangedIsHashed(t *testing.T) {
	n := startNode(t, "n")
	defer n.Close()
	for i := range 1000 {
		n.put(t, "t", fmt.Sprint(i), "v")
	}
	q := DigestRequest{LeavesPerRange: 256, Renew: true}
	hashed := func() uint64 {
		before := n.Counts().DigestedRecords
		_, err := n.Digest(bg, q)
		require.NoError(t, err)
		return n.Counts().DigestedRecords - before
	}
	require.EqualValues(t, 1000, hashed())
	require.Zero(t, hashed())
	n.put(t, "t", "7", "w")
	some := hashed()
	require.NotZero(t, some)
	require.Less(t, some, uint64(50), "one leaf of 256")
	require.Zero(t, hashed())
	require.Zero(t, n.engine.Metrics().Reads.Snapshots, "one that stays open keeps merges from collecting")
}

// Danger: a tree that nobody asks for holds the log for ever; one of which most has changed is hashed in parts
// all the same; or what goes without a change in the log is still in a tree.
func TestStandingTreesAreGivenUp(t *testing.T) {
	n := startNode(t, "n")
	now := time.Now()
	n.o.Now = func() time.Time { return now }
	rng := rand.New(rand.NewPCG(1, 1))
	fill(t, n, rng, 300)
	q := DigestRequest{LeavesPerRange: 4}
	ask := func() bool { return n.digests(t, q) }
	require.False(t, ask())
	require.True(t, ask())
	require.EqualValues(t, 1, n.Counts().RenewedTrees)
	require.Equal(t, 1, n.Counts().Standing)

	now = now.Add(maxIdle + time.Second)
	n.standing.pull()
	require.Zero(t, n.Counts().Standing)
	require.False(t, ask())
	for range int(maxAge / maxIdle) {
		now = now.Add(maxIdle - time.Second)
		require.True(t, ask())
	}
	now = now.Add(maxIdle - time.Second)
	require.False(t, ask(), "now and then everything is read")

	for i := range 100 {
		n.put(t, "t", fmt.Sprint(i), "v")
	}
	n.standing.pull()
	require.Zero(t, n.Counts().Standing)
	require.False(t, ask())
	require.True(t, ask())

	for i := range maxStanding + 1 {
		now = now.Add(time.Second)
		_, err := n.Digest(bg, DigestRequest{LeavesPerRange: 8 << i, Renew: true})
		require.NoError(t, err)
	}
	require.Equal(t, maxStanding, n.Counts().Standing)
	require.False(t, ask(), "the one that was asked for longest ago made room")

	// A key that a cleanup removes is in no change of the log.
	require.NoError(t, n.engine.Flush(bg))
	n.ForgetStanding()
	require.Zero(t, n.Counts().Standing)
	require.False(t, ask())

	n.Close()
	require.Zero(t, n.Counts().Standing)
	require.False(t, ask())
	require.Zero(t, n.Counts().Standing, "none is kept behind Close")
	require.Zero(t, n.engine.Metrics().Reads.Snapshots)
}

// Danger: a tree is renewed from one of other records, since the requests look alike.
func TestTreesAreRenewedForTheSameRequestOnly(t *testing.T) {
	n := startNode(t, "n")
	defer n.Close()
	fill(t, n, rand.New(rand.NewPCG(1, 1)), 100)
	for _, q := range []DigestRequest{
		{LeavesPerRange: 4}, {LeavesPerRange: 8},
		{LeavesPerRange: 4, What: Selection{HashRanges: halves}}, {LeavesPerRange: 4, What: Selection{HashRanges: halves[:1]}},
		{LeavesPerRange: 4, What: Selection{Tenant: "a"}}, {LeavesPerRange: 4, What: Selection{Tenant: "ab"}},
		{LeavesPerRange: 4, What: Selection{Tenant: "a", Start: "k0"}}, {LeavesPerRange: 4, What: Selection{Tenant: "a", End: "k0"}},
	} {
		require.False(t, n.digests(t, q))
		require.True(t, n.digests(t, q))
	}
}
