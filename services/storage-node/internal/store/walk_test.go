package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ring"
)

// Danger: pages repeat or skip keys while others write, or never end.
func TestPagesAreStableUnderWrites(t *testing.T) {
	s := open(t, newFake(), Options{})
	for i := range 100 {
		put(t, s, fmt.Sprintf("k%03d", 2*i), "v", Causality{})
	}
	var got []string
	r := KeyRangeRequest{Tenant: "t", Start: "k010", End: "k190", MaxKeys: 7, IncludeClocks: true}
	for pages := 0; ; pages++ {
		page, err := s.KeyRange(bg, r)
		require.NoError(t, err)
		require.LessOrEqual(t, len(page.Keys), 7)
		for _, k := range page.Keys {
			require.NotEmpty(t, k.Clock)
			if (k.Key[3]-'0')%2 == 0 {
				got = append(got, k.Key)
			}
		}
		if page.Next == "" {
			break
		}
		r.PageToken = page.Next
		put(t, s, fmt.Sprintf("k%03d", pages*7+1), "between", Causality{})
		_, err = s.Delete(bg, DeleteRequest{Tenant: "t", Key: got[len(got)-1]})
		require.NoError(t, err)
		require.Less(t, pages, 100)
	}
	require.Len(t, got, 90)
	require.Equal(t, "k010", got[0])
	require.Equal(t, "k188", got[89])
}

// Danger: a token of another tenant or range shows keys that were not asked for, or crashes.
func TestForeignPositionsAreRefused(t *testing.T) {
	s := open(t, newFake(), Options{})
	for i := range 5 {
		put(t, s, fmt.Sprint(i), "v", Causality{})
	}
	page, err := s.KeyRange(bg, KeyRangeRequest{Tenant: "t", MaxKeys: 2})
	require.NoError(t, err)
	ask := func(tenant, end, token string) Reason {
		_, err := s.KeyRange(bg, KeyRangeRequest{Tenant: tenant, End: end, PageToken: token})
		return ReasonOf(err)
	}
	require.Empty(t, ask("t", "", page.Next))
	require.Equal(t, ReasonPageToken, ask("u", "", page.Next))
	require.Equal(t, ReasonPageToken, ask("t", "4", page.Next))
	require.Equal(t, ReasonPageToken, ask("t", "", page.Next[1:]))
	require.Equal(t, ReasonPageToken, ask("t", "", page.Next+"\n"))
	raw, err := base64.RawURLEncoding.DecodeString(page.Next)
	require.NoError(t, err)
	for i := range raw {
		raw[i] ^= 1
		require.Equal(t, ReasonPageToken, ask("t", "", base64.RawURLEncoding.EncodeToString(raw)), i)
		raw[i] ^= 1
	}
	lower, upper, err := bounds("t", "2", "4")
	require.NoError(t, err)
	outside := position{kind: pageKind, request: requestDigest([]byte("t"), lower, upper), last: "1"}
	_, err = s.KeyRange(bg, KeyRangeRequest{Tenant: "t", Start: "2", End: "4", PageToken: outside.String()})
	require.Equal(t, ReasonPageToken, ReasonOf(err))
	err = s.Stream(bg, StreamRequest{Tenant: "t", Cursor: page.Next}, nil)
	require.Equal(t, ReasonCursor, ReasonOf(err))
}

// Danger: hostile tokens crash the node.
func FuzzPosition(f *testing.F) {
	f.Add(position{kind: pageKind, last: "k"}.String())
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		last, err := parsePosition(s, pageKind, [8]byte{}, ReasonPageToken)
		if err == nil {
			require.Equal(t, s, position{kind: pageKind, last: last}.String())
		}
	})
}

type streamed struct {
	records map[string]string
	chunks  int
	largest int
	cursor  string
}

// stream runs a stream to its end, or until stop chunks came.
func stream(t require.TestingT, s *Store, r StreamRequest, stop int) (streamed, error) {
	out := streamed{records: map[string]string{}}
	enough := errors.New("enough")
	err := s.Stream(bg, r, func(c Chunk) error {
		size := 0
		for _, rec := range c.Records {
			_, twice := out.records[rec.Key]
			require.False(t, twice)
			rec2 := causal.Record{Siblings: rec.Siblings}
			out.records[rec.Key] = string(rec2.Encode(nil))
			size += len(out.records[rec.Key])
		}
		if len(c.Records) > 1 {
			out.largest = max(out.largest, size)
		}
		out.chunks++
		out.cursor = c.Cursor
		if out.chunks == stop {
			return enough
		}
		return nil
	})
	if stop > 0 && errors.Is(err, enough) {
		err = nil
	}
	return out, err
}

// Danger: a stream loses, repeats or mixes records at chunk borders, when it changes iterators, or
// when it is resumed.
func TestStreamSendsEveryRecordOnceAlsoWhenResumed(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	want := map[string]string{}
	for i := range 400 {
		key := fmt.Sprintf("%04d", i)
		put(t, s, key, fmt.Sprintf("%0*d", 1+i*i%20_000, i), Causality{})
		v, _, err := f.at("t\x00"+key, f.applied)
		require.NoError(t, err)
		want[key] = string(v)
	}
	put(t, s, "9big", string(make([]byte, 200<<10)), Causality{})
	put(t, s, "9end", "e", Causality{})
	_, err := s.Delete(bg, DeleteRequest{Tenant: "t", Key: "9gone"})
	require.NoError(t, err)
	_, err = s.Write(bg, WriteRequest{Tenant: "u", Key: "0000", Value: []byte("of another tenant")})
	require.NoError(t, err)

	all, err := stream(t, s, StreamRequest{Tenant: "t"}, 0)
	require.NoError(t, err)
	require.Len(t, all.records, 402)
	for k, v := range want {
		require.Equal(t, v, all.records[k])
	}
	require.LessOrEqual(t, all.largest, chunkBytes)
	require.Greater(t, all.chunks, chunksPerIter, "the walk must change iterators")
	require.Zero(t, f.iters)

	dead, err := stream(t, s, StreamRequest{Tenant: "t", IncludeTombstones: true}, 0)
	require.NoError(t, err)
	require.Len(t, dead.records, 403)

	resumed := map[string]string{}
	r := StreamRequest{Tenant: "t"}
	for range 1000 {
		part, err := stream(t, s, r, 3)
		require.NoError(t, err)
		for k, v := range part.records {
			_, twice := resumed[k]
			require.False(t, twice, k)
			resumed[k] = v
		}
		if part.chunks < 3 {
			break
		}
		r.Cursor = part.cursor
	}
	require.Equal(t, all.records, resumed)
	require.Zero(t, f.iters)
}

// Danger: a stream shows writes that came after it began.
func TestStreamIsOneSnapshot(t *testing.T) {
	s := open(t, newFake(), Options{})
	for i := range 200 {
		put(t, s, fmt.Sprintf("%03d", i), string(make([]byte, 40<<10)), Causality{})
	}
	n := 0
	require.NoError(t, s.Stream(bg, StreamRequest{Tenant: "t"}, func(c Chunk) error {
		n += len(c.Records)
		put(t, s, fmt.Sprintf("new%d", n), "", Causality{})
		put(t, s, "199", "changed", Causality{})
		for _, r := range c.Records {
			require.Len(t, r.Siblings[0].Value, 40<<10)
		}
		return nil
	}))
	require.Equal(t, 200, n)
}

// Danger: a hash range misses keys, or two parts of the ring both have one.
func TestHashRangesPartitionTheKeys(t *testing.T) {
	s := open(t, newFake(), Options{})
	for i := range 300 {
		put(t, s, fmt.Sprint(i), "v", Causality{})
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Uint64().Draw(t, "a"), rapid.Uint64().Draw(t, "b")
		if a == b {
			b++
		}
		in, err := stream(t, s, StreamRequest{Tenant: "t", HashRanges: []ring.HashRange{{Start: a, End: b}}}, 0)
		require.NoError(t, err)
		out, err := stream(t, s, StreamRequest{Tenant: "t", HashRanges: []ring.HashRange{{Start: b, End: a}}}, 0)
		require.NoError(t, err)
		require.Equal(t, 300, len(in.records)+len(out.records))
		for k := range in.records {
			require.True(t, ring.HashRange{Start: a, End: b}.Contains(ring.Token("t", k)))
		}
	})
}

// Danger: the receiver's failure or end goes unnoticed and the stream holds its snapshot for ever.
func TestStreamEndsWithItsReceiver(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	for i := range 100 {
		put(t, s, fmt.Sprint(i), string(make([]byte, 10<<10)), Causality{})
	}
	gone := errors.New("gone")
	require.ErrorIs(t, s.Stream(bg, StreamRequest{Tenant: "t"}, func(Chunk) error { return gone }), gone)
	ctx, cancel := context.WithCancel(bg)
	n := 0
	err := s.Stream(ctx, StreamRequest{Tenant: "t"}, func(Chunk) error { n++; cancel(); return nil })
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, n)
	require.Zero(t, f.iters)
}
