package ikey_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ikey"
)

func drawKey(t *rapid.T) ikey.Key {
	user := rapid.SliceOfN(rapid.Byte(), 1, 6).Draw(t, "user")
	seq := ikey.Seq(rapid.Uint64Range(0, uint64(ikey.MaxSeq)).Draw(t, "seq"))
	return ikey.Make(user, seq, ikey.Kind(rapid.IntRange(0, 2).Draw(t, "kind")))
}

func TestOrderIsTotalAndNewestFirst(t *testing.T) {
	// A wrong order of two versions makes the older one win for ever.
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawKey(t), drawKey(t), drawKey(t)
		require.Equal(t, ikey.Compare(a, b), -ikey.Compare(b, a))
		keys := []ikey.Key{a, b, c}
		slices.SortFunc(keys, ikey.Compare)
		for i := 1; i < 3; i++ {
			p, n := keys[i-1], keys[i]
			d := bytes.Compare(p.User, n.User)
			require.LessOrEqual(t, d, 0)
			if d == 0 {
				require.GreaterOrEqual(t, p.Seq(), n.Seq())
			}
		}
	})
}

func TestSearchStandsBeforeWhatItLooksFor(t *testing.T) {
	// A search key behind its own sequence would skip the newest visible version.
	rapid.Check(t, func(t *rapid.T) {
		k := drawKey(t)
		require.Negative(t, ikey.Compare(ikey.Search(k.User, k.Seq()), k))
		if k.Seq() > 0 {
			require.Positive(t, ikey.Compare(ikey.Search(k.User, k.Seq()-1), k), "a newer version is not seen")
		}
	})
}

func TestEncodingRoundTripsAndRefusesShortBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := drawKey(t)
		got, err := ikey.Decode(k.Append([]byte("before"))[len("before"):])
		require.NoError(t, err)
		require.Zero(t, ikey.Compare(k, got))
		require.Equal(t, k.Kind(), got.Kind())
		require.Zero(t, ikey.Compare(k, k.Clone()))
	})
	for n := range ikey.TrailerLen {
		_, err := ikey.Decode(make([]byte, n))
		require.ErrorIs(t, err, ikey.ErrMalformed)
	}
}

func TestEncodingIsGolden(t *testing.T) {
	// These bytes are in every table: another order of them makes old files unreadable.
	k := ikey.Make(ikey.AppendEngineKey(nil, "t", "k"), 0x010203, ikey.KindMerge)
	require.Equal(t, "74006b"+"0203020100000000", hex.EncodeToString(k.Append(nil)))
	require.Equal(t, `"t\x00k"#66051,MERGE`, k.String())
	for kind, name := range map[ikey.Kind]string{0: "DELETE", 1: "SET", 2: "MERGE", 3: "RANGEDEL", 4: "INGEST", 9: "KIND(9)"} {
		require.Equal(t, name, kind.String())
		require.Equal(t, kind <= 2, kind.Point())
	}
}

func TestTenantsNeverShareAnEngineKey(t *testing.T) {
	// Joined with a separator that may occur in a name, tenant "a:b" with key "c" was tenant "a" with
	// key "b:c", and one tenant read the other's data.
	name := rapid.StringMatching(`[a-c:]{1,4}`)
	rapid.Check(t, func(t *rapid.T) {
		t1, k1, t2, k2 := name.Draw(t, "t1"), name.Draw(t, "k1"), name.Draw(t, "t2"), name.Draw(t, "k2")
		e1, e2 := ikey.AppendEngineKey(nil, t1, k1), ikey.AppendEngineKey(nil, t2, k2)
		require.Equal(t, t1 == t2 && k1 == k2, bytes.Equal(e1, e2))
		tenant, key, err := ikey.SplitEngineKey(e1)
		require.NoError(t, err)
		require.Equal(t, t1, string(tenant))
		require.Equal(t, k1, string(key))
		start, end := ikey.TenantBounds(t1)
		inside := bytes.Compare(start, e2) <= 0 && bytes.Compare(e2, end) < 0
		require.Equal(t, t1 == t2, inside)
	})
	_, _, err := ikey.SplitEngineKey([]byte("no separator"))
	require.ErrorIs(t, err, ikey.ErrMalformed)
}

func TestRangeDeleteCoversOlderEntriesInsideOnly(t *testing.T) {
	d := ikey.RangeDelete{Start: []byte("b"), End: []byte("d"), Seq: 10}
	for _, c := range []struct {
		key       string
		seq, read ikey.Seq
		want      bool
	}{
		{"b", 9, 10, true},
		{"c", 0, 99, true},
		{"b", 10, 10, false}, // the entry of the same sequence is not older
		{"a", 9, 10, false},
		{"d", 9, 10, false}, // the end is outside
		{"c", 9, 9, false},  // a reader before the delete
	} {
		require.Equal(t, c.want, d.Covers([]byte(c.key), c.seq, c.read), "%+v", c)
	}
}

func ExampleCompare() {
	older := ikey.Make([]byte("t\x00k"), 7, ikey.KindSet)
	newer := ikey.Make([]byte("t\x00k"), 8, ikey.KindSet)
	fmt.Println(ikey.Compare(newer, older))
	// Output: -1
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("t\x00k12345678"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ikey.Decode(b)
		if err != nil {
			return
		}
		require.Equal(t, b, k.Append(nil))
	})
}
