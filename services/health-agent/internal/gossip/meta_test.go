package gossip

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/membership"
)

func someMeta() Meta {
	return Meta{
		GRPCAddr: "10.0.0.1:8080", Version: "v1.2.3", Ready: true, Degraded: 1<<8 | 1<<16, DiskPercent: 42,
		Incarnation: "i1", DeclaredVersion: 7, since: 1_700_000_000_000, leaving: true,
	}
}

func TestAnyMetaArrivesAsItWasSentAndFits(t *testing.T) {
	// memberlist panics on a meta that is too long, and a field that is lost is a wrong table for operators.
	rapid.Check(t, func(t *rapid.T) {
		m := Meta{
			GRPCAddr:    rapid.StringN(0, -1, membership.MaxAddrBytes).Draw(t, "addr"),
			Version:     rapid.StringN(0, -1, maxVersionBytes).Draw(t, "version"),
			Incarnation: rapid.StringN(0, -1, membership.MaxIncarnationBytes).Draw(t, "incarnation"),
			Ready:       rapid.Bool().Draw(t, "ready"), leaving: rapid.Bool().Draw(t, "leaving"),
			Degraded: rapid.Uint64().Draw(t, "degraded"), DeclaredVersion: rapid.Uint64().Draw(t, "declared"),
			DiskPercent: rapid.IntRange(-1, 100).Draw(t, "disk"), since: rapid.Int64Range(0, math.MaxInt64).Draw(t, "since"),
		}
		b := m.encode()
		require.LessOrEqual(t, len(b), maxMetaBytes)
		got, err := decodeMeta(b)
		require.NoError(t, err)
		require.Equal(t, m, got)
	})
}

func TestTheLongestMetaFitsAndWhatIsLongerIsLeftOut(t *testing.T) {
	// The node's words are not ours: nothing that it says may end this process.
	long := strings.Repeat("x", 10_000)
	m := Meta{
		GRPCAddr: strings.Repeat("a", membership.MaxAddrBytes), Version: long, Incarnation: strings.Repeat("i", membership.MaxIncarnationBytes),
		Degraded: math.MaxUint64, DeclaredVersion: math.MaxUint64, DiskPercent: 1000, since: math.MaxInt64,
	}
	b := m.encode()
	require.Len(t, b, 460)
	got, err := decodeMeta(b)
	require.NoError(t, err)
	require.Equal(t, 100, got.DiskPercent)
	require.Len(t, got.Version, maxVersionBytes)
	got, err = decodeMeta(Meta{GRPCAddr: long, Incarnation: "\xff", since: -1}.encode())
	require.NoError(t, err)
	require.Equal(t, Meta{}, got)
}

func TestMetaOfNewerAgentsIsReadAndBrokenOneIsNot(t *testing.T) {
	// During a rolling update half of the agents say more than the other half knows.
	b := someMeta().encode()
	got, err := decodeMeta(append(bytes.Clone(b), "more"...))
	require.NoError(t, err)
	require.Equal(t, someMeta(), got)
	for n := range b {
		_, err := decodeMeta(b[:n])
		require.ErrorIs(t, err, errMeta, "cut at %d", n)
	}
	other := bytes.Clone(b)
	other[0] = 2
	_, err = decodeMeta(other)
	require.ErrorIs(t, err, errMeta)
	_, err = decodeMeta(append(bytes.Clone(b), make([]byte, maxMetaBytes)...))
	require.ErrorIs(t, err, errMeta)
}

// FuzzDecodeMeta: any bytes are an error, or a meta that can be sent again.
func FuzzDecodeMeta(f *testing.F) {
	f.Add(someMeta().encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMeta(b)
		if err != nil {
			require.ErrorIs(t, err, errMeta)
			return
		}
		again, err := decodeMeta(m.encode())
		require.NoError(t, err)
		require.Equal(t, m, again)
	})
}
