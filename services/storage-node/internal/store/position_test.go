package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
)

// Danger: a walk in pages, or a stream that is resumed, skips or repeats a key that was there all the time,
// because in between others were written and deleted, tables flushed and merged, or the node restarted. Also
// a position whose key is gone goes on where it was.
func TestPositionsSurviveWritesCompactionsAndRestarts(outer *testing.T) {
	rapid.Check(outer, func(t *rapid.T) {
		fs := vfs.NewMem()
		e := openReal(outer, fs, 64<<10)
		s := open(outer, realEngine{e}, Options{})
		defer func() { require.NoError(t, e.Close()) }()
		const keys = 60
		for i := range keys {
			put(t, s, fmt.Sprintf("k%03d-", i), strings.Repeat("v", 1000), Causality{})
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		churn := func(last string) {
			for range rng.IntN(20) { // around the keys that stay
				key := fmt.Sprintf("k%03d-%d", rng.IntN(keys), rng.IntN(3))
				if rng.IntN(3) == 0 {
					_, err := s.Delete(bg, DeleteRequest{Tenant: "t", Key: key})
					require.NoError(t, err)
					continue
				}
				put(t, s, key, strings.Repeat("w", rng.IntN(2000)), Causality{})
			}
			if last != "" && !strings.HasSuffix(last, "-") { // the very key that the position holds
				var b engine.Batch
				b.Delete(ikey.AppendEngineKey(nil, "t", last))
				require.NoError(t, e.Apply(&b, engine.SyncDefault))
			}
			switch rng.IntN(4) {
			case 0:
				require.NoError(t, e.Flush(bg))
			case 1:
				require.NoError(t, e.Compact(bg, nil, nil, nil))
			case 2:
				require.NoError(t, e.Close())
				e = openReal(outer, fs, 64<<10)
				s = open(outer, realEngine{e}, Options{})
			}
		}
		stay := func(from, to int) (want []string) {
			for i := from; i < to; i++ {
				want = append(want, fmt.Sprintf("k%03d-", i))
			}
			return want
		}
		var seen []string
		saw := func(key string) {
			if strings.HasSuffix(key, "-") {
				seen = append(seen, key)
			}
		}

		page := KeyRangeRequest{Tenant: "t", Start: "k005", End: "k055", MaxKeys: rapid.IntRange(1, 20).Draw(t, "page")}
		for {
			p, err := s.KeyRange(bg, page)
			require.NoError(t, err)
			last := ""
			for _, k := range p.Keys {
				saw(k.Key)
				last = k.Key
			}
			if page.PageToken = p.Next; p.Next == "" {
				break
			}
			churn(last)
		}
		require.Equal(t, stay(5, 55), seen)

		seen = nil
		r := StreamRequest{Tenant: "t", IncludeTombstones: rapid.Bool().Draw(t, "tombstones")}
		if rapid.Bool().Draw(t, "hashes") {
			r.HashRanges = []ring.HashRange{{Start: 0, End: 1 << 63}, {Start: 1 << 63, End: 0}} // all of it
		}
		for ended := false; !ended; {
			last, left := "", rapid.IntRange(1, 3).Draw(t, "chunks")
			err := s.Stream(bg, r, func(c Chunk) error {
				for _, rec := range c.Records {
					saw(rec.Key)
					last = rec.Key
				}
				r.Cursor = c.Cursor
				if left--; left == 0 {
					return errEnough
				}
				return nil
			})
			if ended = err == nil; !ended {
				require.ErrorIs(t, err, errEnough)
			}
			churn(last)
		}
		require.Equal(t, stay(0, keys), seen)
	})
}

// Danger: a position of somebody else, or a damaged one, shows what was not asked for, or changes something.
func TestPositionsOfOthersAreRefusedAndChangeNothing(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	for i := range 20 {
		put(t, s, fmt.Sprintf("k%02d", i), strings.Repeat("v", 10_000), Causality{})
	}
	halves := []ring.HashRange{{Start: 0, End: 1 << 63}, {Start: 1 << 63, End: 0}}
	page, err := s.KeyRange(bg, KeyRangeRequest{Tenant: "t", Start: "k02", End: "k18", MaxKeys: 3})
	require.NoError(t, err)
	cursor := func(r StreamRequest) string {
		part, err := stream(t, s, r, 1)
		require.NoError(t, err)
		return part.cursor
	}
	plain := StreamRequest{Tenant: "t", Start: "k02", End: "k18"}
	dead := plain
	dead.IncludeTombstones = true
	hashed := plain
	hashed.HashRanges = halves
	applied := f.applied

	walks := map[string]func(token string) error{
		"page": func(token string) error {
			_, err := s.KeyRange(bg, KeyRangeRequest{Tenant: "t", Start: "k02", End: "k18", PageToken: token})
			return err
		},
	}
	for name, r := range map[string]StreamRequest{"stream": plain, "dead": dead, "hashed": hashed} {
		walks[name] = func(token string) error {
			r.Cursor = token
			_, err := stream(t, s, r, 0)
			return err
		}
	}
	for name, r := range map[string]StreamRequest{
		"other tenant": {Tenant: "u", Start: "k02", End: "k18"}, "other start": {Tenant: "t", Start: "k03", End: "k18"},
		"other end": {Tenant: "t", Start: "k02", End: "k17"}, "no end": {Tenant: "t", Start: "k02"},
		"fewer hashes": {Tenant: "t", Start: "k02", End: "k18", HashRanges: halves[:1]},
		"other order":  {Tenant: "t", Start: "k02", End: "k18", HashRanges: []ring.HashRange{halves[1], halves[0]}},
	} {
		walks[name] = func(token string) error {
			r.Cursor = token
			_, err := stream(t, s, r, 0)
			return err
		}
	}
	tokens := map[string]string{"page": page.Next, "stream": cursor(plain), "dead": cursor(dead), "hashed": cursor(hashed)}
	for of, token := range tokens {
		for with, walk := range walks {
			want := ReasonCursor
			if with == "page" {
				want = ReasonPageToken
			}
			if of == with {
				require.NoError(t, walk(token))
				want = ""
			} else {
				require.Equal(t, want, ReasonOf(walk(token)), "%s with %s", of, with)
				continue
			}
			for i := range token { // each damaged character, and each cut
				c := byte('A')
				if token[i] == c {
					c = 'B'
				}
				require.NotEmpty(t, ReasonOf(walk(token[:i]+string(c)+token[i+1:])), "%s, character %d", of, i)
				if i > 0 {
					require.NotEmpty(t, ReasonOf(walk(token[:i])), "%s, cut at %d", of, i)
				}
			}
			require.NotEmpty(t, ReasonOf(walk(token+"A")))
			require.NotEmpty(t, ReasonOf(walk(strings.Repeat(token, 1000))))
		}
	}
	// Forged with the right checksum: still not beyond the range, nor anything but a key.
	lower, upper, err := bounds("t", "k02", "k18")
	require.NoError(t, err)
	for last, reason := range map[string]Reason{
		"k02": "", "k17\U0010ffff": "", "k01\U0010ffff": ReasonPageToken, "k18": ReasonPageToken, "": ReasonPageToken, "k\x0002": ReasonPageToken,
		"k03\xff": ReasonPageToken, "k03" + strings.Repeat("x", MaxKeyBytes-3): "", "k03" + strings.Repeat("x", MaxKeyBytes-2): ReasonPageToken,
	} {
		forged := position{kind: pageKind, request: requestDigest([]byte("t"), lower, upper), last: last}
		require.Equal(t, reason, ReasonOf(walks["page"](forged.String())), "%q", last)
	}
	require.Equal(t, applied, f.applied)
	require.Zero(t, f.iters)
}

// Danger: a limit of a walk is off by one, or checked in one of the calls only.
func TestEveryLimitOfAWalkHasTwoSides(t *testing.T) {
	s := open(t, newFake(), Options{})
	for i := range 3 {
		put(t, s, fmt.Sprint("k", i), "v", Causality{})
	}
	hashes := func(n int) []ring.HashRange { return make([]ring.HashRange, n) }
	long := strings.Repeat("k", MaxKeyBytes)
	for i, c := range []struct {
		start, end string
		maxKeys    int
		hashes     []ring.HashRange
		pages      Reason
		streams    Reason
		keys       int
	}{
		{maxKeys: -1, pages: ReasonMaxKeys, keys: 3},
		{maxKeys: 0, keys: 3},
		{maxKeys: 1, keys: 3},
		{maxKeys: MaxPageKeys, keys: 3},
		{maxKeys: MaxPageKeys + 1, pages: ReasonMaxKeys, keys: 3},
		{hashes: hashes(0), keys: 3},
		{hashes: hashes(1), keys: 3}, // start = end is the whole ring
		{hashes: hashes(MaxHashRanges), keys: 3},
		{hashes: hashes(MaxHashRanges + 1), streams: ReasonRange, keys: 3},
		{start: "k1", end: "k2", keys: 1},
		{start: "k1", end: "k1"},
		{start: "k2", end: "k1", pages: ReasonRange, streams: ReasonRange},
		{start: "x"},
		{start: "x", end: "y"},
		{end: "a"},
		{start: long},
		{start: long + "k", pages: ReasonRange, streams: ReasonRange},
		{end: long + "k", pages: ReasonRange, streams: ReasonRange},
		{start: "\x00", pages: ReasonRange, streams: ReasonRange},
		{end: "\xff", pages: ReasonRange, streams: ReasonRange},
	} {
		var keys []string
		r := KeyRangeRequest{Tenant: "t", Start: c.start, End: c.end, MaxKeys: c.maxKeys}
		for {
			page, err := s.KeyRange(bg, r)
			require.Equal(t, c.pages, ReasonOf(err), "case %d", i)
			if c.maxKeys > 0 {
				require.LessOrEqual(t, len(page.Keys), c.maxKeys)
			}
			for _, k := range page.Keys {
				keys = append(keys, k.Key)
			}
			if r.PageToken = page.Next; page.Next == "" {
				break
			}
		}
		if c.pages == "" {
			require.Len(t, keys, c.keys, "case %d", i)
		}
		got, err := stream(t, s, StreamRequest{Tenant: "t", Start: c.start, End: c.end, HashRanges: c.hashes}, 0)
		require.Equal(t, c.streams, ReasonOf(err), "case %d", i)
		if c.streams == "" {
			require.Len(t, got.records, c.keys, "case %d", i)
			require.Equal(t, 1, got.chunks, "also of nothing there is an answer")
		}
	}
}

// Danger: work goes on for somebody who is not there any more: a walk over millions of records, a feed of a
// busy node.
func TestWalksEndSoonAfterTheirContext(t *testing.T) {
	const soon = 256 // records that may still be looked at
	f := newFake()
	s := open(t, f, Options{})
	for i := range 3000 {
		_, err := s.Delete(bg, DeleteRequest{Tenant: "t", Key: fmt.Sprintf("k%05d", i)}) // nothing that fills an answer
		require.NoError(t, err)
	}
	walks := map[string]func(ctx context.Context) error{
		"page": func(ctx context.Context) error { _, err := s.KeyRange(ctx, KeyRangeRequest{Tenant: "t"}); return err },
		"stream": func(ctx context.Context) error {
			return s.Stream(ctx, StreamRequest{Tenant: "t"}, func(Chunk) error { return nil })
		},
		"stream of another range": func(ctx context.Context) error {
			return s.Stream(ctx, StreamRequest{Tenant: "t", HashRanges: []ring.HashRange{{Start: 1, End: 2}}}, func(Chunk) error { return nil })
		},
		"watch": func(ctx context.Context) error {
			return s.Watch(ctx, WatchRequest{Tenant: "t", Start: "x", After: 1}, func(Changes) error { return nil })
		},
	}
	for name, walk := range walks {
		for _, at := range []int{0, 1, 1000} {
			ctx, cancel := context.WithCancel(bg)
			f.mu.Lock()
			f.moves, f.onMove = 0, func(n int) {
				if n == at {
					cancel()
				}
			}
			f.mu.Unlock()
			if at == 0 {
				cancel()
			}
			err := walk(ctx)
			require.ErrorIs(t, err, context.Canceled, "%s, cancelled at %d", name, at)
			require.LessOrEqual(t, f.moves, at+soon, "%s, cancelled at %d", name, at)
			if at == 0 {
				require.Zero(t, f.moves, name)
			}
			cancel()
		}
		expired, cancel := context.WithTimeout(bg, -1)
		require.ErrorIs(t, walk(expired), context.DeadlineExceeded, name)
		cancel()
	}
	require.Zero(t, f.iters)
	require.Zero(t, f.tails)
	require.False(t, errors.Is(walks["page"](bg), context.Canceled))
}
