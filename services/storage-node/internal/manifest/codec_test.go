package manifest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
)

var rewriteGolden = flag.Bool("rewrite-golden-bytes", false, "write the golden files of the format anew")

// goldenEdit has every field of the format.
func goldenEdit() *Edit {
	t := &Table{Num: 7, Origin: OriginExternal, Quarantined: true, Meta: sstable.Meta{
		Size: 1 << 20, Digest: 0x0123456789abcdef,
		Smallest: ikey.Make([]byte("tenant\x00a"), 9, ikey.KindSet), Largest: sstable.RangeDeleteBound([]byte("tenant\x01")),
		MinSeq: 3, MaxSeq: 9, Entries: 60, Sets: 30, Merges: 20, Deletes: 10, RangeDeletes: 1,
		Tombstones: 5, OldestCollectible: 1 << 40, RawKeyBytes: 600, RawValueBytes: 60_000,
	}}
	return &Edit{
		Added: []Added{{Level: 6, Table: t}}, Deleted: []Deleted{{Level: 0, Num: 5}, {Level: 5, Num: 300}},
		LogFloor: 4, NextFile: 12, LastSeq: 99, Quarantined: []uint64{7}, Released: []uint64{8},
		NodeMeta: map[string]string{"actor": "n1.2", "format": "1", "gone": ""},
	}
}

// The danger: a release that can't read what an earlier one wrote. These bytes never change; a new
// field gets a new golden file.
func TestFormatIsPinnedByGoldenBytes(t *testing.T) {
	mem := vfs.NewMem()
	require.NoError(t, mem.MkdirAll("/d", 0o770))
	s, err := Create(mem, "/d/manifest", Options{})
	require.NoError(t, err)
	e := goldenEdit()
	e.Deleted, e.Released = nil, nil
	require.NoError(t, s.Apply(*e))
	require.NoError(t, s.Close())
	file, err := readFile(mem, "/d/manifest/MANIFEST-000001")
	require.NoError(t, err)
	for name, b := range map[string][]byte{"edit": goldenEdit().encode(nil, notSnapshot), "file": file} {
		golden := "testdata/golden/" + name + "-v1.hex"
		text := dump(b)
		if *rewriteGolden {
			require.NoError(t, os.MkdirAll("testdata/golden", 0o755))
			require.NoError(t, os.WriteFile(golden, []byte(text), 0o644))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		require.Equal(t, string(want), text, name)
	}
	got, err := DecodeEdit(goldenEdit().encode(nil, notSnapshot))
	require.NoError(t, err)
	require.Equal(t, goldenEdit(), got)
}

func dump(b []byte) string {
	var s strings.Builder
	for len(b) > 0 {
		n := min(len(b), 32)
		s.WriteString(hex.EncodeToString(b[:n]) + "\n")
		b = b[n:]
	}
	return s.String()
}

// The danger: a newer release's manifest is read with half of its meaning.
func TestUnknownFieldsAreRefusedUnlessIgnorable(t *testing.T) {
	b := goldenEdit().encode(nil, notSnapshot)
	_, err := DecodeEdit(appendField(bytes.Clone(b), 200, []byte("x")))
	require.ErrorIs(t, err, ErrUnknownFormat)
	e, err := DecodeEdit(appendField(bytes.Clone(b), 201, []byte("x")))
	require.NoError(t, err)
	require.Equal(t, goldenEdit(), e)

	newer := bytes.Clone(b)
	newer[0] = 2
	_, err = DecodeEdit(newer)
	require.ErrorIs(t, err, ErrUnknownFormat)

	table := func(tag uint64) []byte {
		body := goldenEdit().Added[0].Table.encode([]byte{6})
		return appendField([]byte{editVersion}, tagAdd, appendField(body, tag, []byte("y")))
	}
	_, err = DecodeEdit(table(2))
	require.ErrorIs(t, err, ErrUnknownFormat)
	e, err = DecodeEdit(table(3))
	require.NoError(t, err)
	require.Equal(t, goldenEdit().Added, e.Added)
}

// The danger: what is written is not what is read.
func TestEditsSurviveTheirEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.Uint64Range(1, 1<<50)
		e := &Edit{LogFloor: number.Draw(t, "floor"), NextFile: number.Draw(t, "next"), LastSeq: ikey.Seq(number.Draw(t, "seq"))}
		for range rapid.IntRange(0, 4).Draw(t, "added") {
			a, b := rapid.SliceOf(rapid.Byte()).Draw(t, "a"), rapid.SliceOf(rapid.Byte()).Draw(t, "b")
			if bytes.Compare(a, b) > 0 {
				a, b = b, a
			}
			table := &Table{Num: number.Draw(t, "num"), Origin: OriginFlush, Quarantined: rapid.Bool().Draw(t, "q")}
			for _, n := range table.numbers() {
				*n = number.Draw(t, "n")
			}
			table.MinSeq = min(table.MinSeq, table.MaxSeq)
			table.Size, table.Digest = number.Draw(t, "size"), rapid.Uint64().Draw(t, "digest")
			table.Smallest, table.Largest = ikey.Make(append([]byte{}, a...), 9, 1), ikey.Make(append([]byte{}, b...), 3, 1)
			e.Added = append(e.Added, Added{Level: rapid.IntRange(0, 6).Draw(t, "level"), Table: table})
		}
		for range rapid.IntRange(0, 3).Draw(t, "deleted") {
			e.Deleted = append(e.Deleted, Deleted{Level: rapid.IntRange(0, 6).Draw(t, "level"), Num: number.Draw(t, "num")})
		}
		if m := rapid.MapOfN(rapid.StringN(1, 20, 200), rapid.String(), 0, 4).Draw(t, "meta"); len(m) > 0 {
			e.NodeMeta = m
		}
		got, err := DecodeEdit(e.encode(nil, notSnapshot))
		require.NoError(t, err)
		require.Equal(t, e, got)
	})
}

// FuzzDecodeEdit: bad bytes are an error, never a panic, and good ones decode to what encodes back.
func FuzzDecodeEdit(f *testing.F) {
	f.Add(goldenEdit().encode(nil, notSnapshot))
	f.Add(goldenEdit().encode(nil, snapshotLast))
	f.Add((&Edit{LogFloor: 1}).encode(nil, notSnapshot))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, part, err := decodeEdit(b)
		if err != nil {
			require.True(t, errors.Is(err, errMalformed) || errors.Is(err, ErrUnknownFormat), err)
			return
		}
		again, part2, err := decodeEdit(e.encode(nil, part))
		require.NoError(t, err)
		require.Equal(t, e, again)
		require.Equal(t, part, part2)
	})
}

// FuzzOpen: whatever a manifest file holds, opening it ends in a set that keeps the invariants or in
// an error.
func FuzzOpen(f *testing.F) {
	header := appendHeader(nil, 1)
	state := appendFrame(bytes.Clone(header), 1, headerBytes, 0, frameEdit, (&Edit{NextFile: 1}).encode(nil, snapshotLast))
	f.Add(header)
	f.Add(state)
	f.Add(appendFrame(bytes.Clone(state), 1, int64(len(state)), int64(len(state)), frameEdit, (&Edit{LogFloor: 5}).encode(nil, notSnapshot)))
	f.Fuzz(func(t *testing.T, b []byte) {
		mem := vfs.NewMem()
		require.NoError(t, mem.MkdirAll("/m", 0o770))
		for name, content := range map[string][]byte{fileName(1): b, (marker{1, 1}).name(): nil} {
			file, err := mem.Create("/m/"+name, filePerm)
			require.NoError(t, err)
			_, err = file.WriteAt(content, 0)
			require.NoError(t, err)
			require.NoError(t, file.Close())
		}
		s, _, err := Open(mem, "/m", Options{})
		if err != nil {
			require.True(t, errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnknownFormat), err)
			return
		}
		require.NoError(t, CheckInvariants(s.current.Load()))
		require.NoError(t, s.Close())
	})
}
