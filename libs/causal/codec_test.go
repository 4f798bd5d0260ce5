package causal

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite golden files")

// Danger: a record changes on its way through the disk.
func TestDecodeReturnsWhatWasEncoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord().Draw(t, "r")
		got, err := Decode(r.Encode(nil))
		require.NoError(t, err)
		equal(t, r, got)
	})
}

// Danger: equal records with different bytes make replicas' digests differ for ever.
func TestEqualRecordsHaveEqualBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sib := rapid.SliceOfN(genSibling(), 0, 5).Draw(t, "siblings")
		other := rapid.Permutation(sib).Draw(t, "permuted")
		a, err := NewRecord(append([]Sibling(nil), sib...))
		require.NoError(t, err)
		b, err := NewRecord(append([]Sibling(nil), other...))
		require.NoError(t, err)
		require.Equal(t, string(a.Encode(nil)), string(b.Encode(nil)))
		c := genRecord().Draw(t, "c")
		require.Equal(t, a.Equal(c), string(a.Encode(nil)) == string(c.Encode(nil)))
	})
}

func goldenRecords() []struct {
	name string
	r    Record
} {
	big := Sibling{Value: []byte("v"), Timestamp: 1_700_000_000_000 << 16}
	for i := range 20 {
		big.Clock = append(big.Clock, Entry{Node: fmt.Sprintf("coordinator-%02d", i), Counter: uint64(i) * 100, Raised: 1_700_000_000 - int64(i)})
		big.Clock[i].Counter++
	}
	return []struct {
		name string
		r    Record
	}{
		{"never written", Record{}},
		{"first write of a node", Record{[]Sibling{{Dot: Dot{"node-0/1z", 1}, Value: []byte("hello"), Timestamp: 1_700_000_000_123<<16 | 7}}}},
		{"plain clock of a coordinator", Record{[]Sibling{{Clock: Clock{{"coordinator-1", 300, 1_700_000_000}}, Value: []byte("hello"), Timestamp: 1_700_000_001_000 << 16}}}},
		{"tombstone", Record{[]Sibling{{Clock: Clock{{"a", 1, 0}, {"b", 2, 1_699_000_000}}, Dot: Dot{"b", 9}, Timestamp: 1_700_000_000_000 << 16, Tombstone: true}}}},
		{"siblings, one expires", Record{[]Sibling{
			{Dot: Dot{"a", 1}, Value: []byte("x"), Timestamp: 1 << 16},
			{Clock: Clock{{"c", 3, 1}}, Dot: Dot{"b", 1}, Value: nil, Timestamp: 2 << 16, ExpiresAt: 1_700_000_060},
		}}},
		{"twenty entries", Record{[]Sibling{big}}},
	}
}

// Danger: a later change of the format makes stored data unreadable, or replicas disagree.
func TestRecordBytesAreGolden(t *testing.T) {
	out := "# name: hex of the encoded record. Rewrite with: go test ./causal -run Golden -update\n"
	for _, g := range goldenRecords() {
		require.NoError(t, g.r.Validate(), g.name)
		out += fmt.Sprintf("%s: %s\n", g.name, hex.EncodeToString(g.r.Encode(nil)))
	}
	if *update {
		require.NoError(t, os.WriteFile("testdata/golden.txt", []byte(out), 0o644))
	}
	want, err := os.ReadFile("testdata/golden.txt")
	require.NoError(t, err)
	require.Equal(t, string(want), out)
	for i, line := range strings.Split(strings.TrimSpace(string(want)), "\n")[1:] {
		b, err := hex.DecodeString(line[strings.LastIndex(line, " ")+1:])
		require.NoError(t, err)
		r, err := Decode(b)
		require.NoError(t, err)
		equal(t, goldenRecords()[i].r, r)
	}
}

// Danger: a truncated or padded record is taken for a shorter one.
func TestDecodeRefusesEveryTruncationAndExtension(t *testing.T) {
	for _, g := range goldenRecords() {
		b := g.r.Encode(nil)
		for n := range len(b) {
			_, err := Decode(b[:n])
			require.ErrorIs(t, err, ErrMalformed, "%s cut at %d", g.name, n)
		}
		_, err := Decode(append(b, 0))
		require.ErrorIs(t, err, ErrMalformed)
	}
}

// Danger: bytes that no encoder makes are accepted, and equal records stop having equal bytes.
func TestDecodeRefusesWhatIsNotCanonical(t *testing.T) {
	ts := strings.Repeat("00", 8)
	for name, c := range map[string]struct{ hex, want string }{
		"version 2":                   {"02020000", "version 2"},
		"padded length":               {"018200" + "0000", "metadata exceeds"},
		"unused id":                   {"0114" + "02" + "0161" + "0162" + "01" + "00" + "01" + "000100" + ts + "00", "unused node id"},
		"ids out of order":            {"0117" + "02" + "0162" + "0161" + "01" + "00" + "02" + "000100" + "000100" + ts + "00", "out of order"},
		"flag 8":                      {"010f" + "01" + "0161" + "01" + "08" + "01" + "000100" + ts + "00", "flags 0x8"},
		"tombstone with an expiry":    {"0110" + "01" + "0161" + "01" + "05" + "01" + "000100" + ts + "0100", "flags 0x5"},
		"counter 0":                   {"0110" + "01" + "0161" + "01" + "00" + "01" + "000000" + ts + "00", "bad clock entry"},
		"dot in its clock":            {"0112" + "01" + "0161" + "01" + "02" + "0001" + "01" + "000100" + ts + "00", "its own dot"},
		"neither clock nor dot":       {"010c" + "00" + "01" + "00" + "00" + ts + "00", "clock of 0 entries"},
		"bytes after the metadata":    {"010300" + "0000", "after the metadata"},
		"huge sibling count":          {"010a" + "00" + "ffffffffffffffff01" + "00", "bad count"},
		"raised before 1970 or never": {"0110" + "01" + "0161" + "01" + "00" + "01" + "000101" + ts + "00", "raised at 0"},
	} {
		b, err := hex.DecodeString(c.hex)
		require.NoError(t, err, name)
		_, err = Decode(b)
		require.ErrorIs(t, err, ErrMalformed, name)
		require.ErrorContains(t, err, c.want, name)
	}
	x := Sibling{Clock: Clock{{"a", 1, 0}}}
	y := Sibling{Clock: Clock{{"a", 2, 0}}}
	for name, r := range map[string]Record{"superseded": {[]Sibling{x, y}}, "twice": {[]Sibling{x, x}},
		"order": {[]Sibling{{Dot: Dot{"b", 1}}, {Dot: Dot{"a", 1}}}}} {
		_, err := Decode(r.Encode(nil))
		require.ErrorIs(t, err, ErrMalformed, name)
	}
}

// Danger: the boundary of a limit is off by one, or not a limit on one of the two ways in.
func TestLimitsOfClocksHoldOnBothSides(t *testing.T) {
	clock := func(n int) Clock {
		c := make(Clock, n)
		for i := range c {
			c[i] = Entry{Node: fmt.Sprintf("%05d", i), Counter: 1}
		}
		return c
	}
	id := func(n int) Clock { return Clock{{strings.Repeat("i", n), 1, 0}} }
	for _, c := range []struct {
		clock Clock
		ok    bool
	}{
		{clock(MaxClockEntries), true}, {clock(MaxClockEntries + 1), false},
		{id(MaxNodeIDBytes), true}, {id(MaxNodeIDBytes + 1), false}, {id(0), false},
		{Clock{{"a", 0, 0}}, false}, {Clock{{"a", 1, 0}}, true}, {Clock{{"a", 1, -1}}, false},
		{Clock{{"a", 1, 0}, {"a", 2, 0}}, false}, {Clock{{"b", 1, 0}, {"a", 2, 0}}, false},
	} {
		r := Record{[]Sibling{{Clock: c.clock}}}
		_, err := Decode(r.Encode(nil))
		if c.ok {
			require.NoError(t, err)
			require.NoError(t, r.Validate())
			continue
		}
		require.ErrorIs(t, r.Validate(), ErrInvalid)
		if c.clock[0].Raised == 0 {
			require.ErrorIs(t, err, ErrMalformed)
		}
	}
}

// Danger: hostile bytes crash the node, or are accepted in a form that is not the canonical one.
func FuzzDecode(f *testing.F) {
	for _, g := range goldenRecords() {
		f.Add(g.r.Encode(nil), g.r.Encode(nil))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		ra, errA := Decode(a)
		Inspect(a)
		if errA == nil {
			require.Equal(t, string(a), string(ra.Encode(nil)))
			require.NoError(t, ra.Validate())
		} else {
			require.ErrorIs(t, errA, ErrMalformed)
		}
		rb, errB := Decode(b)
		joined, err := JoinEncoded(nil, a, b)
		if errA == nil && errB == nil {
			require.NoError(t, err)
			require.Equal(t, string(Join(ra, rb).Encode(nil)), string(joined))
		}
	})
}
