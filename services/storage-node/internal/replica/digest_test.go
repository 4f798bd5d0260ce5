package replica

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/merkle"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// halves are ranges of which the second one wraps.
var halves = []ring.HashRange{{Start: 1 << 62, End: 3 << 62}, {Start: 3 << 62, End: 1 << 62}}

// exchange brings both nodes what they lack, as two migrators do it, and returns the keys that differed.
func exchange(t require.TestingT, a, b *node, s Selection, leaves int, cut uint64) (differing []string) {
	q := DigestRequest{What: s, LeavesPerRange: leaves, CollectedBefore: cut}
	da, err := a.Digest(bg, q)
	require.NoError(t, err)
	db, err := b.Digest(bg, q)
	require.NoError(t, err)
	var ids []LeafID
	for _, r := range merkle.Diff(da.Roots, db.Roots) {
		la, err := a.Leaves(da.Tree, []uint32{uint32(r)})
		require.NoError(t, err)
		lb, err := b.Leaves(db.Tree, []uint32{uint32(r)})
		require.NoError(t, err)
		require.NotEmpty(t, merkle.Diff(la, lb))
		for _, leaf := range merkle.Diff(la, lb) {
			ids = append(ids, LeafID{uint32(r), uint32(leaf)})
		}
	}
	ka, kb := a.keyDigests(t, da.Tree, ids), b.keyDigests(t, db.Tree, ids)
	for key, d := range ka {
		if kb[key] != d {
			differing = append(differing, key)
		}
	}
	for key := range kb {
		if _, ok := ka[key]; !ok {
			differing = append(differing, key)
		}
	}
	slices.Sort(differing)
	keys := make([][]byte, len(differing))
	for i, k := range differing {
		keys[i] = []byte(k)
	}
	ca, err := a.CompareKeys(bg, keys, cut)
	require.NoError(t, err)
	cb, err := b.CompareKeys(bg, keys, cut)
	require.NoError(t, err)
	for i, k := range differing {
		require.Equal(t, ka[k], ca[i])
		require.Equal(t, kb[k], cb[i])
	}
	fa, fb := a.fetch(t, keys), b.fetch(t, keys)
	a.take(t, fb)
	b.take(t, fa)
	return differing
}

func (n *node) keyDigests(t require.TestingT, tree uint64, ids []LeafID) map[string]merkle.Digest {
	out, last := map[string]merkle.Digest{}, []byte(nil)
	require.NoError(t, n.KeyDigests(bg, tree, ids, func(keys []KeyDigest) error {
		for _, k := range keys {
			require.Negative(t, bytes.Compare(last, k.Key))
			last = bytes.Clone(k.Key)
			out[string(k.Key)] = k.Digest
		}
		return nil
	}))
	return out
}

func (n *node) fetch(t require.TestingT, keys [][]byte) (out []Record) {
	require.NoError(t, n.Fetch(bg, keys, func(records []Record) error {
		size := 0
		for i := range records {
			size += records[i].bytes()
		}
		require.True(t, size <= chunkBytes || len(records) == 1)
		out = append(out, cloneAll(records)...)
		return nil
	}))
	return out
}

// Danger: two nodes that differ are called equal, and tombstones are collected that one of them still
// needs; or nodes that are equal never agree.
func TestDigestsAreEqualExactlyWhenTheRecordsAre(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := openNode(t, "a", vfs.NewMem()), openNode(t, "b", vfs.NewMem())
		defer func() { require.NoError(t, a.engine.Close()); require.NoError(t, b.engine.Close()) }()
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		fill(t, a, rng, rapid.IntRange(0, 60).Draw(t, "a"))
		b.take(t, a.collect(t, Selection{}, nil))
		require.Empty(t, exchange(t, a, b, Selection{HashRanges: halves}, 8, 0))
		fill(t, a, rng, rapid.IntRange(0, 8).Draw(t, "more a"))
		fill(t, b, rng, rapid.IntRange(0, 8).Draw(t, "more b"))
		s := selections().Draw(t, "selection")
		s.HashRanges = halves[:rapid.IntRange(1, 2).Draw(t, "halves")]
		want := []string{}
		ra, rb := a.all(t), b.all(t)
		for _, all := range []map[string]string{ra, rb} {
			for key := range all {
				if ra[key] != rb[key] && means(s, key) && !slices.Contains(want, key) {
					want = append(want, key)
				}
			}
		}
		slices.Sort(want)
		leaves := 1 << rapid.IntRange(0, 8).Draw(t, "leaves")
		require.Equal(t, want, append([]string{}, exchange(t, a, b, s, leaves, 0)...))
		require.Empty(t, exchange(t, a, b, s, leaves, 0))
		exchange(t, a, b, Selection{}, 16, 0)
		same(t, a.all(t), b.all(t))
	})
}

// Danger: a tombstone that one node has collected and the other has not makes them differ for ever, or
// brings it back; or an uncollectable one is left out and a deleted value lives on.
func TestWhatIsCollectableAtTheCutDoesNotCount(t *testing.T) {
	a, b := startNode(t, "a"), startNode(t, "b")
	for _, k := range []string{"k1", "k2"} {
		a.put(t, "t", k, "v")
	}
	a.delete(t, "t", "k1")
	a.put(t, "t", "live", "v")
	b.take(t, a.collect(t, Selection{Tenant: "t", Keys: []string{"k2", "live"}}, nil)) // k1 is collected there
	after := causal.Timestamp(time.Now().Add(time.Second))
	require.Equal(t, []string{"t\x00k1"}, exchangeless(t, a, b, 0))
	require.Empty(t, exchangeless(t, a, b, after))
	got, err := a.CompareKeys(bg, [][]byte{[]byte("t\x00k1"), []byte("t\x00none"), []byte("t\x00live")}, after)
	require.NoError(t, err)
	require.True(t, got[0].IsZero())
	require.True(t, got[1].IsZero())
	require.False(t, got[2].IsZero())
	require.NotContains(t, a.keyDigestsOf(t, after), "t\x00k1")

	// Of several siblings what is left counts.
	rec := causal.Record{Siblings: []causal.Sibling{
		{Dot: causal.Dot{Node: "x", Counter: 1}, Tombstone: true, Timestamp: 1 << 16},
		{Dot: causal.Dot{Node: "y", Counter: 1}, Value: []byte("v"), Timestamp: 1 << 16},
	}}
	both := Record{Key: ikey.AppendEngineKey(nil, "t", "two"), Value: rec.Encode(nil)}
	one := Record{Key: both.Key, Value: causal.Record{Siblings: rec.Siblings[1:]}.Encode(nil)}
	a.take(t, []Record{both})
	b.take(t, []Record{one})
	require.Empty(t, exchangeless(t, a, b, after))
	require.Contains(t, exchangeless(t, a, b, 0), "t\x00two")
}

// exchangeless returns the keys that differ, and changes nothing.
func exchangeless(t require.TestingT, a, b *node, cut uint64) (out []string) {
	ka, kb := a.keyDigestsOf(t, cut), b.keyDigestsOf(t, cut)
	for k, d := range ka {
		if kb[k] != d {
			out = append(out, k)
		}
	}
	for k := range kb {
		if _, ok := ka[k]; !ok {
			out = append(out, k)
		}
	}
	return out
}

func (n *node) keyDigestsOf(t require.TestingT, cut uint64) map[string]merkle.Digest {
	d, err := n.Digest(bg, DigestRequest{LeavesPerRange: 1, CollectedBefore: cut})
	require.NoError(t, err)
	out := n.keyDigests(t, d.Tree, []LeafID{{}})
	sum := merkle.Digest{}
	for _, k := range out {
		sum = sum.Add(k)
	}
	require.Equal(t, d.Roots[0], sum)
	require.EqualValues(t, len(out), d.Records)
	return out
}

// Danger: trees fill the memory, or one that was forgotten is taken for another.
func TestTreesAreForgotten(t *testing.T) {
	n := startNode(t, "n")
	n.put(t, "t", "k", "v")
	now := time.Now()
	n.o.Now = func() time.Time { return now }
	digest := func(leaves int) uint64 {
		d, err := n.Digest(bg, DigestRequest{What: Selection{HashRanges: halves}, LeavesPerRange: leaves})
		require.NoError(t, err)
		return d.Tree
	}
	first := digest(4)
	ranges, seq, ok := n.Tree(first)
	require.True(t, ok)
	require.Equal(t, halves, ranges)
	require.NotZero(t, seq)
	var all []uint64
	for range maxTrees {
		now = now.Add(time.Second)
		all = append(all, digest(4))
	}
	_, err := n.Leaves(first, nil)
	require.Equal(t, store.ReasonTreeUnknown, store.ReasonOf(err))
	require.Equal(t, maxTrees, n.Counts().Trees)
	now = now.Add(treeLife - time.Second)
	_, err = n.Leaves(all[7], []uint32{0, 1})
	require.NoError(t, err)
	now = now.Add(treeLife)
	_, err = n.Leaves(all[7], nil)
	require.NoError(t, err) // it was used meanwhile
	_, _, ok = n.Tree(all[6])
	require.False(t, ok)
	require.Equal(t, store.ReasonTreeUnknown, store.ReasonOf(n.KeyDigests(bg, all[6], nil, nil)))
	for range 5 { // 131,072 leaves each; then large ones
		digest(1 << 16)
	}
	big, err := n.Digest(bg, DigestRequest{LeavesPerRange: 1 << 16})
	require.NoError(t, err)
	_, err = n.Leaves(big.Tree, []uint32{0, 0, 0, 0})
	require.NoError(t, err)
	_, err = n.Leaves(big.Tree, []uint32{0, 0, 0, 0, 0})
	require.Equal(t, store.ReasonRange, store.ReasonOf(err))
	_, err = n.Leaves(big.Tree, []uint32{1})
	require.Equal(t, store.ReasonRange, store.ReasonOf(err))
	for _, ids := range [][]LeafID{{{1, 0}}, {{0, 1 << 16}}, make([]LeafID, maxAskedLeaves+1)} {
		require.Equal(t, store.ReasonRange, store.ReasonOf(n.KeyDigests(bg, big.Tree, ids, nil)))
	}
	for _, q := range []DigestRequest{{}, {LeavesPerRange: 3}, {LeavesPerRange: 1, What: Selection{HashRanges: []ring.HashRange{{}, {Start: 1, End: 2}}}}} {
		_, err := n.Digest(bg, q)
		require.Equal(t, store.ReasonRange, store.ReasonOf(err))
	}
}

// Danger: lists of any length, or of records of the node itself, are answered.
func TestListsOfKeysAreChecked(t *testing.T) {
	n := startNode(t, "n")
	for i := range 200 {
		n.put(t, "t", fmt.Sprint(i), strings.Repeat("v", 1000*(i%3)))
	}
	n.put(t, "t", "large", strings.Repeat("v", 100<<10))
	for _, keys := range [][][]byte{{[]byte("_tenants\x00t")}, {[]byte("t")}, {[]byte("t\x00")}, {nil}, make([][]byte, maxFetchedKeys+1)} {
		_, err := n.CompareKeys(bg, keys, 0)
		require.NotEmpty(t, store.ReasonOf(err))
		require.NotEmpty(t, store.ReasonOf(n.Fetch(bg, keys, func([]Record) error { return nil })))
	}
	keys := [][]byte{[]byte("t\x00large"), []byte("t\x00none")}
	for i := range 200 {
		keys = append(keys, ikey.AppendEngineKey(nil, "t", fmt.Sprint(i)))
	}
	got := n.fetch(t, keys)
	require.Len(t, got, 201)
	all := n.all(t)
	for i := range got {
		require.Equal(t, all[string(got[i].Key)], string(got[i].Value))
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	_, err := n.CompareKeys(ctx, keys, 0)
	require.ErrorIs(t, err, context.Canceled)
	_, err = n.Digest(ctx, DigestRequest{LeavesPerRange: 1})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, n.Fetch(ctx, keys, nil), context.Canceled)
}

// Danger: a scan for digests takes the whole disk from those who are served.
func TestScansArePaced(t *testing.T) {
	p := pace{bytesPerSecond: 1000}
	now := time.Now()
	require.NoError(t, p.take(bg, now, 200))
	ctx, cancel := context.WithTimeout(bg, 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, p.take(ctx, now, 10_000), context.DeadlineExceeded)
	require.NoError(t, p.take(bg, now.Add(time.Minute), 200))
}
