package replica

import (
	"bytes"
	"context"
	"errors"
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
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// fill writes a little of everything: values, tombstones, fragments, repeats with idempotency keys.
func fill(t require.TestingT, n *node, rng *rand.Rand, count int) {
	for i := range count {
		tenant, key := []string{"a", "ab", "Z", "~"}[rng.IntN(4)], fmt.Sprintf("k%03d", rng.IntN(200))
		switch rng.IntN(6) {
		case 0:
			n.delete(t, tenant, key)
		case 1:
			n.take(t, []Record{record(tenant, key, strings.Repeat("r", rng.IntN(50)))})
		case 2:
			_, err := n.store.Write(bg, store.WriteRequest{Tenant: tenant, Key: key, Value: []byte("once"), IdempotencyKey: fmt.Sprint("id", i, rng.Uint64())})
			require.NoError(t, err)
		default:
			n.put(t, tenant, key, strings.Repeat("v", rng.IntN(3000)))
		}
	}
}

func selections() *rapid.Generator[Selection] {
	return rapid.Custom(func(t *rapid.T) (s Selection) {
		if rapid.Bool().Draw(t, "ranges") {
			for range rapid.IntRange(1, 5).Draw(t, "count") {
				s.HashRanges = append(s.HashRanges, ring.HashRange{Start: rapid.Uint64().Draw(t, "start"), End: rapid.Uint64().Draw(t, "end")})
			}
		}
		if rapid.Bool().Draw(t, "tenant") {
			s.Tenant = rapid.SampledFrom([]string{"a", "ab", "Z", "~", "none"}).Draw(t, "name")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				s.Keys = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
					return fmt.Sprintf("k%03d", rapid.IntRange(0, 210).Draw(t, "key"))
				}), 1, 30).Draw(t, "keys")
			case 1:
				s.Start = fmt.Sprintf("k%03d", rapid.IntRange(0, 150).Draw(t, "from"))
				s.End = fmt.Sprintf("k%03d", rapid.IntRange(150, 210).Draw(t, "to"))
			}
		}
		return s
	})
}

// means says by the words of the documentation whether a key is selected.
func means(s Selection, key string) bool {
	tenant, user, _ := strings.Cut(key, "\x00")
	in := len(s.HashRanges) == 0
	for _, r := range s.HashRanges {
		in = in || r.Contains(ring.Token(tenant, user))
	}
	return in && !strings.HasPrefix(tenant, "_") && (s.Tenant == "" || s.Tenant == tenant) &&
		(s.Start == "" || s.Start <= user) && (s.End == "" || user < s.End) &&
		(len(s.Keys) == 0 || slices.Contains(s.Keys, user))
}

// Danger: a move takes along what it must not, records of the node itself first of all, or forgets some; a
// cursor repeats or skips at the boundary of a chunk.
func TestExportIsExactlyWhatIsSelected(t *testing.T) {
	n := startNode(t, "n")
	fill(t, n, rand.New(rand.NewPCG(1, 1)), 1500)
	_, err := n.tenants.Create(bg, "a", tenant.Quota{}, 0)
	require.NoError(t, err)
	all := n.all(t)
	require.Greater(t, len(all), 500)
	rapid.Check(t, func(t *rapid.T) {
		s := selections().Draw(t, "selection")
		var want []string
		for key := range all {
			if means(s, key) {
				want = append(want, key)
			}
		}
		slices.Sort(want)
		var cursors [][]byte
		var got []string
		require.NoError(t, n.Export(bg, ExportRequest{What: s}, func(c Chunk) error {
			size := 0
			for _, r := range c.Records {
				got = append(got, string(r.Key))
				require.Equal(t, all[string(r.Key)], string(r.Value))
				size += r.bytes()
			}
			require.LessOrEqual(t, size, chunkBytes)
			require.GreaterOrEqual(t, c.Remaining, int64(0))
			cursors = append(cursors, slices.Clone(c.Cursor))
			return nil
		}))
		require.Equal(t, want, got)
		if len(cursors) > 1 && len(cursors[0]) > 0 {
			cursor := cursors[rapid.IntRange(0, len(cursors)-2).Draw(t, "resume")]
			var rest []string
			for _, r := range n.collect(t, s, cursor) {
				rest = append(rest, string(r.Key))
			}
			i, _ := slices.BinarySearch(want, string(cursor)+"\x00")
			require.Equal(t, want[i:], append([]string{}, rest...))
		}
	})
}

// Danger: iterators that are renewed within an export see different states, or lose their place.
func TestExportIsOneSnapshot(t *testing.T) {
	n := startNode(t, "n")
	value := strings.Repeat("v", 30<<10)
	const keys = 400 // 12 MiB: three iterators
	for i := range keys {
		n.put(t, "t", fmt.Sprintf("k%04d", i), value)
	}
	seen := 0
	require.NoError(t, n.Export(bg, ExportRequest{}, func(c Chunk) error {
		if seen == 0 {
			for i := range keys {
				n.put(t, "t", fmt.Sprintf("k%04d", i), "changed")
				n.put(t, "t", fmt.Sprintf("k%04d+", i), "new")
			}
		}
		for _, r := range c.Records {
			require.Contains(t, string(r.Value), value)
			seen++
		}
		return nil
	}))
	require.Equal(t, keys, seen)
}

// Danger: the error of who takes the records, or a caller that is gone, leaves the walk running.
func TestExportEndsWithItsReceiver(t *testing.T) {
	n := startNode(t, "n")
	for i := range 100 {
		n.put(t, "t", fmt.Sprint(i), strings.Repeat("v", 10<<10))
	}
	gone := errors.New("gone")
	require.ErrorIs(t, n.Export(bg, ExportRequest{}, func(Chunk) error { return gone }), gone)
	ctx, cancel := context.WithCancel(bg)
	cancel()
	require.ErrorIs(t, n.Export(ctx, ExportRequest{}, func(Chunk) error { return nil }), context.Canceled)
}

// Danger: a damaged record is sent on, and damages the target; or nobody can tell which one it is.
func TestExportStopsAtDamage(t *testing.T) {
	n := startNode(t, "n")
	n.put(t, "t", "a", "fine")
	var b engine.Batch
	b.Set(ikey.AppendEngineKey(nil, "t", "bad"), []byte("no record"))
	require.NoError(t, n.engine.Apply(&b, engine.SyncGroup))
	err := n.Export(bg, ExportRequest{}, func(Chunk) error { return nil })
	require.Equal(t, store.ReasonCorruptedData, store.ReasonOf(err))
	require.ErrorContains(t, err, ikey.KeyHash("bad"))
	require.NotContains(t, err.Error(), "bad:")
	_, err = n.Digest(bg, DigestRequest{LeavesPerRange: 1})
	require.Equal(t, store.ReasonCorruptedData, store.ReasonOf(err))
}

// Danger: a selection that contradicts itself is taken for everything.
func TestSelectionsAreRefused(t *testing.T) {
	n := openNode(t, "n", vfs.NewMem())
	defer func() { require.NoError(t, n.engine.Close()) }()
	for _, s := range []Selection{
		{Start: "a"}, {End: "a"}, {Keys: []string{"a"}}, {Tenant: "_tenants"}, {Tenant: "a:b"}, {Tenant: strings.Repeat("t", 257)},
		{Tenant: "t", Start: "b", End: "a"}, {Tenant: "t", Start: "a", Keys: []string{"b"}}, {Tenant: "t", Keys: []string{""}},
		{Tenant: "t", Start: "\x00"}, {Tenant: "t", Keys: make([]string, MaxSelectedKeys+1)},
		{HashRanges: make([]ring.HashRange, MaxSelectedHashes+1)},
	} {
		err := n.Export(bg, ExportRequest{What: s}, func(Chunk) error { return nil })
		require.NotEmpty(t, store.ReasonOf(err), "%.100v: %v", fmt.Sprint(s), err)
		require.Error(t, n.Follow(bg, FollowRequest{What: s}, func(Changes) error { return nil }))
		_, err = n.Digest(bg, DigestRequest{What: s, LeavesPerRange: 1})
		require.NotEmpty(t, store.ReasonOf(err))
	}
	err := n.Export(bg, ExportRequest{Cursor: make([]byte, 5000)}, func(Chunk) error { return nil })
	require.Equal(t, store.ReasonCursor, store.ReasonOf(err))
}

// Danger: a record that is larger than any message stops a move for ever.
func TestLargeRecordsTravelInParts(t *testing.T) {
	big := func(o *engine.Options) { o.MemtableBytes, o.LogSegmentBytes = 64<<20, 64<<20 }
	a, b := startNode(t, "a", big), startNode(t, "b", big)
	value := bytes.Repeat([]byte("v"), 6<<20)
	pin, err := a.Pin("m", 0)
	require.NoError(t, err)
	for i := range 4 {
		rec := causal.Record{Siblings: []causal.Sibling{{Dot: causal.Dot{Node: fmt.Sprint("n", i), Counter: 1}, Value: value, Timestamp: 1}}}
		a.take(t, []Record{{Key: []byte("t\x00k"), Value: rec.Encode(nil)}})
	}
	require.Greater(t, len(a.all(t)["t\x00k"]), 20<<20)
	got := a.collect(t, Selection{}, nil)
	require.Greater(t, len(got), 2)
	fetched := a.fetch(t, [][]byte{[]byte("t\x00k")})
	require.Equal(t, got, fetched)
	in, err := b.Ingest(bg, IngestStart{MoveID: "m", Format: 1, ReadAt: time.Now(), Sorted: true}, func(uint64) error { return nil })
	require.NoError(t, err)
	defer in.Close()
	for i := range got {
		require.Less(t, got[i].bytes(), 11<<20)
		require.NoError(t, in.Add(uint64(i+1), got[i:i+1]))
	}
	require.NoError(t, in.Finish())
	same(t, a.all(t), b.all(t))
	read := causal.Record{}
	for i := range 4 {
		read.Siblings = append(read.Siblings, causal.Sibling{Dot: causal.Dot{Node: fmt.Sprint("n", i), Counter: 1}, Value: value, Timestamp: 1})
	}
	var b2 engine.Batch
	b2.Set([]byte("t\x00whole"), read.Encode(nil)) // as a client's merge writes it
	require.NoError(t, a.engine.Apply(&b2, engine.SyncGroup))
	a.follow(t, Selection{}, pin, func(c Changes) bool {
		for i := range c.Records {
			require.Less(t, c.Records[i].bytes(), 11<<20)
		}
		b.take(t, c.Records)
		return c.Sequence == c.Newest
	})
	same(t, a.all(t), b.all(t))
}
