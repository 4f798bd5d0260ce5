package sstable

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
)

// entry is a point entry in a test.
type entry struct {
	k ikey.Key
	v string
}

// mapCache is the simplest BlockCache: it forgets nothing. For one goroutine.
type mapCache map[[2]uint64][]byte

func (m mapCache) Get(file, offset uint64) []byte        { return m[[2]uint64{file, offset}] }
func (m mapCache) Put(file, offset uint64, block []byte) { m[[2]uint64{file, offset}] = block }

// build writes a table into a memory file and returns it with the writer's Meta.
func build(t require.TestingT, o WriterOptions, entries []entry, ranges []ikey.RangeDelete) (vfs.FS, Meta) {
	fs := vfs.NewMem()
	f, err := fs.Create("t.sst", 0o660)
	require.NoError(t, err)
	w := NewWriter(f, o)
	for _, e := range entries {
		require.NoError(t, w.Add(e.k, []byte(e.v)))
	}
	for _, d := range ranges {
		require.NoError(t, w.AddRangeDelete(d))
	}
	m, err := w.Finish()
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	return fs, m
}

// reopen opens the table that build made.
func reopen(t require.TestingT, fs vfs.FS, o ReaderOptions) *Reader {
	f, err := fs.Open("t.sst")
	require.NoError(t, err)
	r, err := Open(f, o)
	require.NoError(t, err)
	return r
}

// contents returns the bytes of the table that build made.
func contents(t testing.TB, fs vfs.FS) []byte {
	f, err := fs.Open("t.sst")
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	info, err := f.Stat()
	require.NoError(t, err)
	b := make([]byte, info.Size())
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	return b
}

// openBytes opens bytes as a table.
func openBytes(t testing.TB, b []byte, o ReaderOptions) (*Reader, error) {
	fs := vfs.NewMem()
	f, err := fs.Create("t.sst", 0o660)
	require.NoError(t, err)
	_, err = f.WriteAt(b, 0)
	require.NoError(t, err)
	return Open(f, o)
}
