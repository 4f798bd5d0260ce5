package sstable

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable/filter"
	"github.com/pairdb/pairdb/libs/vfs"
)

// longValues are entries with values around the length from which on values have blocks, half of
// each one random.
func longValues(n int) []entry {
	rng := rand.New(rand.NewPCG(1, 2))
	es := make([]entry, n)
	for i := range es {
		v := make([]byte, 900+rng.IntN(300))
		for j := range v[:len(v)/2] {
			v[j] = byte(rng.Uint32())
		}
		es[i] = entry{ikey.Make(fmt.Appendf(nil, "tenant\x00key%08d", i), 7, ikey.KindSet), string(v)}
	}
	return es
}

// Every hundredth value is collectible at the time in its first byte.
func inspectSome(value []byte) (uint64, bool) { return uint64(value[0]), value[0]%100 == 0 }

// Danger: a merge copies values without looking into them. What it writes must be what it would have
// written had it unpacked them, or a copy loses a tombstone's time, or counts other bytes.
func TestStoredCopiesEqualFreshWrites(t *testing.T) {
	o := WriterOptions{BlockBytes: 4 << 10, Compression: S2, FilterBitsPerKey: 10, ValueBlockBytes: 1000, Inspect: inspectSome}
	es := longValues(2000)
	fs, meta := build(t, o, es, nil)
	r := reopen(t, fs, ReaderOptions{})
	f, err := fs.Create("copy.sst", 0o660)
	require.NoError(t, err)
	w := NewWriter(f, o)
	it := r.NewScan(ScanOptions{ChunkBytes: 64 << 10})
	copied := 0
	for ok := it.First(); ok; ok = it.Next() {
		s, ok := it.Stored()
		if ok && o.Takes(s) {
			copied++
			require.NoError(t, w.AddStored(it.Key(), s.Clone(nil)))
			continue
		}
		require.NoError(t, w.Add(it.Key(), it.Value()))
	}
	require.NoError(t, it.Close())
	require.NoError(t, r.Close())
	got, err := w.Finish()
	require.NoError(t, err)
	require.Equal(t, meta, got)
	require.Greater(t, copied, 1000)
	require.Positive(t, meta.Tombstones)
	original := contents(t, fs)
	copyFS, err := fs.Open("copy.sst")
	require.NoError(t, err)
	b := make([]byte, len(original))
	_, err = copyFS.ReadAt(b, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(original, b), "the copy has other bytes")
}

// Values that another writer would pack in another way, or must look into, are not copied.
func TestTakesOnlyWhatIsWrittenAlike(t *testing.T) {
	plain := Stored{raw: 1000, packing: S2, plain: true}
	o := WriterOptions{ValueBlockBytes: 1000, Compression: S2, Inspect: inspectSome}
	require.True(t, o.Takes(plain))
	for name, change := range map[string]func(*WriterOptions, *Stored){
		"no value blocks":   func(o *WriterOptions, _ *Stored) { o.ValueBlockBytes = 0 },
		"too short":         func(_ *WriterOptions, s *Stored) { s.raw = 999 },
		"other compression": func(o *WriterOptions, _ *Stored) { o.Compression = Zstd },
		"collectible":       func(_ *WriterOptions, s *Stored) { s.plain = false },
	} {
		o, s := o, plain
		change(&o, &s)
		require.False(t, o.Takes(s), name)
	}
}

// writeTable writes entries to a file of the operating system.
func writeTable(t *testing.T, es []entry) (name string) {
	name = filepath.Join(t.TempDir(), "t.sst")
	f, err := vfs.OS.Create(name, 0o660)
	require.NoError(t, err)
	w := NewWriter(f, WriterOptions{Compression: S2, ValueBlockBytes: 1000})
	for _, e := range es {
		require.NoError(t, w.Add(e.k, []byte(e.v)))
	}
	_, err = w.Finish()
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	return name
}

func openMapped(t *testing.T, name string) *Reader {
	f, err := vfs.OS.Open(name)
	require.NoError(t, err)
	r, err := Open(f, ReaderOptions{Name: "t.sst"})
	require.NoError(t, err)
	mapped, err := r.Map()
	require.NoError(t, err)
	require.True(t, mapped, "a file that was just written is in the page cache")
	return r
}

// Danger: a disk that can't give a page of a mapped file raises a signal, which ends the process
// with all that it serves.
func TestFaultInAMappedTableIsAnError(t *testing.T) {
	es := longValues(500)
	name := writeTable(t, es)
	r := openMapped(t, name)
	defer func() { require.NoError(t, r.Close()) }()
	_, v, ok, err := r.Get(es[400].k.User, filter.Hash(es[400].k.User), ikey.MaxSeq, nil)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, es[400].v, string(v))

	require.NoError(t, os.Truncate(name, 4096))
	_, _, _, err = r.Get(es[400].k.User, filter.Hash(es[400].k.User), ikey.MaxSeq, nil)
	require.ErrorContains(t, err, "page of the mapped file")
	require.NotErrorIs(t, err, ErrCorrupt, "the disk failed, the table may be as it was")
	it := r.NewIter()
	for ok := it.First(); ok; ok = it.Next() {
		_ = it.Value()
	}
	require.ErrorContains(t, it.Close(), "page of the mapped file")
}

// Danger: a page of a mapped file may rot after it was checked and evicted; a value that is taken
// from it must be checked again.
func TestMappedBytesAreCheckedAtEachRead(t *testing.T) {
	es := longValues(500)
	name := writeTable(t, es)
	r := openMapped(t, name)
	defer func() { require.NoError(t, r.Close()) }()
	_, _, ok, err := r.Get(es[100].k.User, filter.Hash(es[100].k.User), ikey.MaxSeq, nil)
	require.NoError(t, err)
	require.True(t, ok)

	b, err := os.ReadFile(name)
	require.NoError(t, err)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	require.NoError(t, err)
	for i := headerBytes; i < int(r.foot.dataEnd); i++ {
		b[i] ^= 1
	}
	_, err = f.WriteAt(b, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, _, _, err = r.Get(es[100].k.User, filter.Hash(es[100].k.User), ikey.MaxSeq, nil)
	require.ErrorIs(t, err, ErrCorrupt)
}

// A table that is not in memory is not read through a mapping: the page fault would hold a
// processor until the disk answers.
func TestTablesThatAreNotInMemoryAreNotMapped(t *testing.T) {
	es := longValues(200)
	fs, _ := build(t, WriterOptions{ValueBlockBytes: 1000}, es, nil)
	f, err := fs.Open("t.sst")
	require.NoError(t, err)
	half := &coldFile{File: f}
	r, err := Open(half, ReaderOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	for _, cold := range []bool{true, false, true} {
		half.cold = cold
		mapped, err := r.Map()
		require.NoError(t, err)
		require.Equal(t, !cold, mapped)
		_, v, ok, err := r.Get(es[100].k.User, filter.Hash(es[100].k.User), ikey.MaxSeq, nil)
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, es[100].v, string(v))
	}
	require.NoError(t, r.Verify(context.Background(), nil))
}

// coldFile is a file of which half is in memory while it is cold.
type coldFile struct {
	vfs.File
	cold bool
}

func (c *coldFile) Map(size int64) (vfs.Mapping, error) {
	m, err := c.File.Map(size)
	return coldMapping{m, c}, err
}

type coldMapping struct {
	vfs.Mapping
	file *coldFile
}

func (c coldMapping) ResidentBytes() (int64, error) {
	n := int64(len(c.Bytes()))
	if c.file.cold {
		n /= 2
	}
	return n, nil
}

// A read that ignores the hash index finds the same, and does need the data block.
func TestWithoutTheHashIndexReadsSearch(t *testing.T) {
	es := longValues(300)
	fs, _ := build(t, WriterOptions{ValueBlockBytes: 1000, FilterBitsPerKey: 10}, es, nil)
	good := contents(t, fs)
	damaged := bytes.Clone(good)
	damaged[headerBytes+1] ^= 1 // in the first data block
	e := es[slices.IndexFunc(es, func(e entry) bool { return len(e.v) >= 1000 })]
	for _, off := range []bool{false, true} {
		for _, b := range [][]byte{good, damaged} {
			r, err := openBytes(t, b, ReaderOptions{Name: "t.sst", NoHashIndex: off})
			require.NoError(t, err)
			mapped, err := r.Map()
			require.NoError(t, err)
			require.True(t, mapped)
			_, v, ok, err := r.Get(e.k.User, filter.Hash(e.k.User), ikey.MaxSeq, nil)
			if off && &b[0] == &damaged[0] {
				require.ErrorIs(t, err, ErrCorrupt)
			} else {
				require.NoError(t, err)
				require.True(t, ok)
				require.Equal(t, e.v, string(v))
			}
			require.NoError(t, r.Close())
		}
	}
}

// Danger: the hash index is read without a checksum. Whatever its bytes say, an answer must be right.
func TestAnyHashIndexGivesTheRightAnswers(t *testing.T) {
	es := longValues(300)
	es = append(es, entry{ikey.Make([]byte("tenant\x00twice"), 9, ikey.KindSet), es[0].v}, entry{ikey.Make([]byte("tenant\x00twice"), 8, ikey.KindSet), es[1].v})
	fs, _ := build(t, WriterOptions{ValueBlockBytes: 1000, Compression: S2, FilterBitsPerKey: 10}, es, nil)
	good := contents(t, fs)
	r := reopen(t, fs, ReaderOptions{})
	at, end := r.foot.hashIndex().offset+r.foot.hashPad(), r.foot.behindData()-trailerBytes
	require.NoError(t, r.Close())
	rng := rand.New(rand.NewPCG(1, 9))
	for round := range 300 {
		b := bytes.Clone(good)
		for i := at; i < end; i++ {
			if round == 0 || rng.IntN(20) == 0 {
				b[i] = b[at+rng.Uint64N(end-at)] // tags, offsets and lengths of other keys too
			}
		}
		if round == 0 {
			b = good
		}
		r, err := openBytes(t, b, ReaderOptions{Name: "t.sst"})
		require.NoError(t, err)
		mapped, err := r.Map()
		require.NoError(t, err)
		require.True(t, mapped)
		probed := 0
		for _, e := range es {
			_, v, ok, err := r.Get(e.k.User, filter.Hash(e.k.User), e.k.Seq(), nil)
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, e.v, string(v))
			if _, _, ok := r.probe(r.mapped(), e.k.User, filter.Hash(e.k.User), e.k.Seq(), nil); ok {
				probed++
			}
			_, _, ok, err = r.Get(e.k.User, filter.Hash(e.k.User), 0, nil)
			require.NoError(t, err)
			require.False(t, ok, "nothing is that old")
			absent := append(bytes.Clone(e.k.User), 'x')
			_, _, ok, err = r.Get(absent, filter.Hash(e.k.User), ikey.MaxSeq, nil) // an equal hash
			require.NoError(t, err)
			require.False(t, ok)
		}
		if round == 0 {
			require.Greater(t, probed, 100, "the hash index answers for long values")
		}
		require.NoError(t, r.Close())
	}
}
