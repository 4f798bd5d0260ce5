package membership_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/membership"
)

func TestAnyMapArrivesAsItWasSent(t *testing.T) {
	// A field that is lost on the way makes two maps that never become one.
	rapid.Check(t, func(t *rapid.T) {
		m := genMap().Draw(t, "map")
		b, err := membership.Encode(m)
		require.NoError(t, err)
		got, err := membership.Decode(b)
		require.NoError(t, err)
		require.Equal(t, m, got)
	})
}

// golden is the encoding of {a: some} in format 1.
var golden = []byte("\x01\x01" + "\x01a" + "\x03" + "\x02" + "\x02i1" + "\x0d10.0.0.1:8080" + "\x02z1" + "\x96\x01" + "\x80\xd0\x95\xff\xbc\x31")

func TestEncodingIsTheDocumentedOne(t *testing.T) {
	// Agents of two versions talk during every rolling update.
	b, err := membership.Encode(membership.Map{"a": some("a")})
	require.NoError(t, err)
	require.Equal(t, golden, b)
}

func TestAFullMapFits(t *testing.T) {
	b, err := membership.Encode(full())
	require.NoError(t, err)
	require.Less(t, len(b), membership.MaxBytes/4)
	m, err := membership.Decode(b)
	require.NoError(t, err)
	require.Len(t, m, membership.MaxMembers)
}

func TestMapsAboveTheLimitsAreNotSent(t *testing.T) {
	// What the others refuse must be an error here, where somebody can act on it.
	m := full()
	m["one-more"] = some("one-more")
	_, err := membership.Encode(m)
	require.ErrorIs(t, err, membership.ErrTooMany)
	delete(m, "one-more")
	for id, d := range m {
		d.GRPCAddr, d.Zone = strings.Repeat("a", membership.MaxAddrBytes), strings.Repeat("z", membership.MaxZoneBytes)
		d.Incarnation, d.NodeID = strings.Repeat("i", membership.MaxIncarnationBytes), id+strings.Repeat("n", membership.MaxNodeIDBytes-len(id))
		delete(m, id)
		m[d.NodeID] = d
	}
	_, err = membership.Encode(m)
	require.ErrorIs(t, err, membership.ErrTooMany)
}

func TestMalformedMapsAreRefused(t *testing.T) {
	// Bytes of a peer must never panic, never allocate by a claim, never half count.
	two, err := membership.Encode(membership.Map{"a": some("a"), "b": some("b")})
	require.NoError(t, err)
	one := golden[2:]
	for name, b := range map[string][]byte{
		"nothing":           nil,
		"format":            append([]byte{2}, golden[1:]...),
		"no count":          golden[:1],
		"count too high":    append([]byte{1, 0xe9, 0x07}, one...),
		"count missing one": append([]byte{1, 2}, one...),
		"bytes behind":      append(bytes.Clone(golden), 0),
		"long number":       append([]byte{1, 0x81, 0x00}, one...),
		"twice":             append([]byte{1, 2}, append(bytes.Clone(one), one...)...),
		"descending":        append([]byte{1, 2}, append(bytes.Clone(two[2+len(one):]), one...)...),
		"huge text":         {1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"too large":         make([]byte, membership.MaxBytes+1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := membership.Decode(b)
			require.ErrorIs(t, err, membership.ErrMalformed)
		})
	}
	for n := range golden {
		_, err := membership.Decode(golden[:n])
		require.ErrorIs(t, err, membership.ErrMalformed, "cut at %d", n)
	}
}

// FuzzDecode: any bytes are an error, or the one encoding of a valid map.
func FuzzDecode(f *testing.F) {
	f.Add(golden)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := membership.Decode(b)
		if err != nil {
			require.ErrorIs(t, err, membership.ErrMalformed)
			return
		}
		again, err := membership.Encode(m)
		require.NoError(t, err)
		require.Equal(t, b, again)
		changed, err := membership.Map{}.Merge(m.Sorted()...)
		require.NoError(t, err)
		require.Len(t, changed, len(m))
	})
}
