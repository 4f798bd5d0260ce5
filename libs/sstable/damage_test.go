package sstable

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable/filter"
)

var rewrite = flag.Bool("rewrite", false, "write golden files anew")

// goldenEntries are the content of the golden tables. They never change.
func goldenEntries() ([]entry, []ikey.RangeDelete) {
	es := numbered(40, 30)
	es = append(es, entry{ikey.Make([]byte("tenant\x00z"), 9, ikey.KindMerge), "fragment"},
		entry{ikey.Make([]byte("tenant\x00z"), 8, ikey.KindDelete), ""},
		entry{ikey.Make([]byte("tenant\x00z"), 7, ikey.KindSet), string(bytes.Repeat([]byte("large "), 300))})
	return es, []ikey.RangeDelete{{Start: []byte("tenant\x00a"), End: []byte("tenant\x00b"), Seq: 100}, {Start: []byte("u"), End: []byte("v"), Seq: 3}}
}

var goldenTables = map[string]WriterOptions{
	"v1-plain.sst": {BlockBytes: 300, FilterBitsPerKey: 10, IndexPartitionBytes: 120},
	"v1-s2.sst":    {BlockBytes: 1000, FilterBitsPerKey: 10, Compression: S2},
	"v1-zstd.sst":  {BlockBytes: 1000, Compression: Zstd},
	// With value blocks.
	"v1-values.sst":    {BlockBytes: 300, FilterBitsPerKey: 10, ValueBlockBytes: 30},
	"v1-values-s2.sst": {BlockBytes: 1000, Compression: S2, ValueBlockBytes: 100},
}

// Tables of a released format must stay readable for ever.
func TestGoldenTablesStayReadable(t *testing.T) {
	es, ranges := goldenEntries()
	for name, o := range goldenTables {
		fs, meta := build(t, o, es, ranges)
		if *rewrite {
			require.NoError(t, os.MkdirAll("testdata", 0o755))
			require.NoError(t, os.WriteFile("testdata/"+name, contents(t, fs), 0o644))
		}
		golden, err := os.ReadFile("testdata/" + name)
		require.NoError(t, err)
		r, err := openBytes(t, golden, ReaderOptions{Name: name})
		require.NoError(t, err)
		require.NoError(t, r.Verify(context.Background(), nil))
		require.Equal(t, es, scanAll(t, r))
		require.Equal(t, ranges, r.RangeDeletes())
		require.NoError(t, r.Close())
		if o.Compression == None {
			// The bytes of the packers may differ between their versions; ours may not.
			require.Equal(t, golden, contents(t, fs), name)
			require.Equal(t, meta, r.Meta())
		}
	}
}

func scanAll(t testing.TB, r *Reader) []entry {
	var out []entry
	it := r.NewIter()
	for ok := it.First(); ok; ok = it.Next() {
		out = append(out, entry{it.Key().Clone(), string(it.Value())})
	}
	require.NoError(t, it.Close())
	return out
}

// A flipped bit that changes an answer without an error is the worst that a store can do.
func TestEveryFlippedByteIsDetected(t *testing.T) {
	for name := range goldenTables {
		golden, err := os.ReadFile("testdata/" + name)
		require.NoError(t, err)
		for i := range golden {
			for _, flip := range []byte{0x01, 0x80, 0xff} {
				b := bytes.Clone(golden)
				b[i] ^= flip
				r, err := openBytes(t, b, ReaderOptions{})
				if err == nil {
					err = r.Verify(context.Background(), nil)
					require.NoError(t, r.Close())
				}
				require.ErrorIs(t, err, ErrCorrupt, "%s: byte %d", name, i)
				require.NotErrorIs(t, err, ErrNewerFormat)
			}
		}
	}
}

// Readers meet damage before any scrub does: they must say so, never answer wrong.
func TestReadsOfDamagedTablesFailOrAreRight(t *testing.T) {
	es, _ := goldenEntries()
	golden, err := os.ReadFile("testdata/v1-plain.sst")
	require.NoError(t, err)
	for i := range golden {
		b := bytes.Clone(golden)
		b[i] ^= 0x10
		r, err := openBytes(t, b, ReaderOptions{})
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			continue
		}
		for _, e := range es {
			tr, v, ok, err := r.Get(e.k.User, filter.Hash(e.k.User), e.k.Seq(), nil)
			if err != nil {
				require.ErrorIs(t, err, ErrCorrupt)
				continue
			}
			require.True(t, ok)
			require.Equal(t, e.k.Trailer, tr)
			require.Equal(t, e.v, string(v))
		}
		it := r.NewIter()
		n := 0
		for ok := it.First(); ok; ok = it.Next() {
			require.Equal(t, es[n].v, string(it.Value()))
			n++
		}
		if it.Err() == nil {
			require.Equal(t, len(es), n)
		} else {
			require.ErrorIs(t, it.Err(), ErrCorrupt)
		}
		require.ErrorIs(t, it.Close(), it.Err())
		require.NoError(t, r.Close())
	}
}

// A file that lost its end, or is no table, must be refused by name.
func TestOpenRefusesTruncatedAndForeignFiles(t *testing.T) {
	golden, err := os.ReadFile("testdata/v1-plain.sst")
	require.NoError(t, err)
	for n := range golden {
		_, err := openBytes(t, golden[:n], ReaderOptions{Name: "x.sst"})
		var c *CorruptionError
		require.ErrorAs(t, err, &c)
		require.Equal(t, "x.sst", c.File)
	}
	_, err = openBytes(t, bytes.Repeat([]byte("foreign "), 100), ReaderOptions{})
	require.ErrorIs(t, err, ErrCorrupt)
	_, err = openBytes(t, append(bytes.Clone(golden), 0), ReaderOptions{})
	require.ErrorIs(t, err, ErrCorrupt)
}

// A newer format must be told from damage: the file is good, the program is old.
func TestOpenRefusesNewerFormats(t *testing.T) {
	golden, err := os.ReadFile("testdata/v1-plain.sst")
	require.NoError(t, err)
	foot := len(golden) - footerBytes
	for name, at := range map[string]int{"header version": 8, "header key": 12, "version": foot + 112, "key": foot + 108, "features": foot + 104} {
		b := bytes.Clone(golden)
		b[at] = 2
		binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
		binary.LittleEndian.PutUint32(b[foot+116:], crc32.Checksum(b[foot:foot+116], castagnoli))
		_, err := openBytes(t, b, ReaderOptions{})
		require.ErrorIs(t, err, ErrNewerFormat, name)
		require.ErrorIs(t, err, ErrCorrupt, name)
	}
}

// A disk that returns a block of another address passes a checksum of the content alone.
func TestBlockAtAnotherPlaceIsDamage(t *testing.T) {
	payload := []byte("some block\x00")
	require.NotEqual(t, checksum(payload, 100), checksum(payload, 4196))
}

// An I/O error is not damage: quarantining a good table would lose it.
func TestReadErrorIsNotCorruption(t *testing.T) {
	fs, _ := build(t, WriterOptions{}, numbered(500, 20), nil)
	r := reopen(t, fs, ReaderOptions{})
	require.NoError(t, r.f.Close())
	_, _, _, err := r.Get([]byte("tenant\x00key00000001"), filter.Hash([]byte("tenant\x00key00000001")), ikey.MaxSeq, nil)
	require.Error(t, err)
	require.False(t, errors.Is(err, ErrCorrupt))
	require.Nil(t, AsCorrupt(err))
}
