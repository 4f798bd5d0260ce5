package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/stretchr/testify/require"
)

// manyTables puts n tables of one key each into level 1.
func manyTables(s *shelf, n int) {
	for i := range n {
		key := ikey.Make(fmt.Appendf(nil, "k%03d", i), ikey.Seq(i+1), ikey.KindSet)
		s.table(1, []entry{{key: key, value: fmt.Appendf(nil, "v%d", i)}}, sstable.WriterOptions{FilterBitsPerKey: 10})
	}
	s.publish(ikey.Seq(n))
}

func (s *shelf) want(key, value string) {
	s.t.Helper()
	got, found, err := s.e.Get([]byte(key), nil)
	require.NoError(s.t, err)
	require.True(s.t, found, key)
	require.Equal(s.t, value, string(got))
}

// Descriptors are a limited resource of the process: a store with more tables than that must work,
// with the least useful ones closed, and everything closed in the end.
func TestOpenTablesAreBounded(t *testing.T) {
	s := newShelf(t, 0, 3)
	manyTables(s, 20)
	for i := range 200 {
		n := i * 7 % 20
		s.want(fmt.Sprintf("k%03d", n), fmt.Sprintf("v%d", n))
		require.LessOrEqual(t, s.e.tables.files.Load(), int64(3))
	}
	require.Equal(t, int64(3), s.e.readMetrics().OpenTables)
	s.close()
}

// A hot table must not be closed for cold ones: each reopening costs several reads.
func TestHotTableStaysOpen(t *testing.T) {
	s := newShelf(t, 0, 3)
	manyTables(s, 20)
	hot := s.e.current.Load().levels[1][0].slot
	s.want("k000", "v0")
	first := hot.reader.Load()
	for i := 1; i < 20; i++ {
		s.want(fmt.Sprintf("k%03d", i), fmt.Sprintf("v%d", i))
		s.want("k000", "v0")
	}
	require.Same(t, first, hot.reader.Load())
	s.close()
}

// Many readers of a cold table must not each parse its index: that was two reads a second once.
func TestColdTableIsOpenedOnce(t *testing.T) {
	s := newShelf(t, 0, 3)
	manyTables(s, 1)
	var start, done sync.WaitGroup
	start.Add(1)
	for range 32 {
		done.Go(func() {
			start.Wait()
			value, found, err := s.e.Get([]byte("k000"), nil)
			if err != nil || !found || string(value) != "v0" {
				t.Errorf("%q %v %v", value, found, err)
			}
		})
	}
	start.Done()
	done.Wait()
	require.Equal(t, uint64(1), s.e.readMetrics().TableOpens)
	s.close()
}

// Evicting a table (its file is about to be deleted) must not close it under a reader.
func TestEvictedTableStaysOpenForItsUsers(t *testing.T) {
	s := newShelf(t, 0, 3)
	manyTables(s, 2)
	it, err := s.e.NewIter(IterOptions{})
	require.NoError(t, err)
	require.True(t, it.First())
	s.e.tables.evict(1)
	require.Equal(t, "k000", string(it.Key()))
	require.Equal(t, int64(1), s.e.tables.files.Load())
	require.True(t, it.Next())
	require.Equal(t, "k001", string(it.Key()))
	require.NoError(t, it.Close())
	s.close()
}

// failingFS fails what a test asks for.
type failingFS struct {
	*vfs.MemFS
	openErr, readErr atomic.Pointer[error]
}

func (f *failingFS) Open(name string) (vfs.File, error) {
	if err := f.openErr.Load(); err != nil && *err != nil {
		return nil, *err
	}
	file, err := f.MemFS.Open(name)
	return &failingFile{File: file, fs: f}, err
}

type failingFile struct {
	vfs.File
	fs *failingFS
}

func (f *failingFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.fs.readErr.Load(); err != nil && *err != nil {
		return 0, *err
	}
	return f.File.ReadAt(b, off)
}

// A disk that fails to read is not an absence and not damage: the read fails, the table stays in
// use, and the next read may work.
func TestReadErrorIsNeitherAbsenceNorDamage(t *testing.T) {
	s := newShelf(t, 0, 3)
	fs := &failingFS{MemFS: s.fs}
	s.e.tables.fs = fs
	manyTables(s, 1)
	boom, none := errors.New("input/output error"), error(nil)

	fs.openErr.Store(&boom)
	_, found, err := s.e.Get([]byte("k000"), nil)
	require.ErrorIs(t, err, boom)
	require.False(t, found)
	fs.openErr.Store(&none)
	s.want("k000", "v0")

	fs.readErr.Store(&boom)
	_, _, err = s.e.Get([]byte("k000"), nil)
	require.ErrorIs(t, err, boom)
	it, err := s.e.NewIter(IterOptions{})
	require.NoError(t, err)
	require.False(t, it.First())
	require.ErrorIs(t, it.Err(), boom)
	require.False(t, it.Last())
	require.ErrorIs(t, it.Err(), boom)
	fs.readErr.Store(&none)
	require.True(t, it.First(), "positioning again tries again")
	require.NoError(t, it.Close())
	s.want("k000", "v0")
	require.Empty(t, s.corrupt, "nothing is quarantined for a read error")
	s.close()
}

// A table that the manifest names and that is gone is damage: never an absence.
func TestMissingTableIsDamage(t *testing.T) {
	s := newShelf(t, 0, 3)
	manyTables(s, 2)
	require.NoError(t, s.fs.Remove("sst/"+compact.TableName(1)))
	_, found, err := s.e.Get([]byte("k000"), nil)
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, compact.TableName(1))
	require.False(t, found)
	require.Equal(t, []uint64{1}, s.corrupt)
	s.want("k001", "v1")
	s.close()
}

// A quarantined table is in the way of what it may hold, and of nothing else: older and newer keys
// beside it stay readable, a newer Set above it hides it.
func TestQuarantinedTableFailsOnlyWhatNeedsIt(t *testing.T) {
	s := newShelf(t, 0, 3)
	manyTables(s, 5)
	bad := *s.levels[1][2]
	bad.Quarantined = true
	s.levels[1][2] = &bad
	s.publish(10)
	_, found, err := s.e.Get([]byte("k002"), nil)
	require.ErrorIs(t, err, ErrCorrupt)
	require.False(t, found)
	s.want("k001", "v1")
	s.want("k003", "v3")
	_, found, err = s.e.Get([]byte("k0025"), nil)
	require.NoError(t, err, "between tables: nothing is in the way")
	require.False(t, found)

	it, err := s.e.NewIter(IterOptions{})
	require.NoError(t, err)
	require.True(t, it.First())
	for it.Next() {
		require.Less(t, string(it.Key()), "k002")
	}
	require.ErrorIs(t, it.Err(), ErrCorrupt)
	require.NoError(t, closeAfterError(it))
	it, err = s.e.NewIter(IterOptions{Lower: []byte("k003")})
	require.NoError(t, err)
	require.True(t, it.First(), "out of the bounds, out of the way")
	require.NoError(t, it.Close())

	s.memtable([]entry{{key: ikey.Make([]byte("k002"), 9, ikey.KindSet), value: []byte("new")}})
	s.publish(10)
	s.want("k002", "new")
	s.close()
}

func closeAfterError(it *Iter) error {
	if err := it.Close(); !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("close returned %v, the iterator's error expected", err)
	}
	return nil
}

// Readers take the read state without a lock while it is replaced: none may be torn down in use,
// none may stay.
func TestReadStatesComeAndGoUnderReaders(t *testing.T) {
	s := newShelf(t, 0, 2)
	manyTables(s, 3)
	var stop atomic.Bool
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(1, 2))
			for !stop.Load() {
				n := rng.IntN(3)
				value, found, err := s.e.Get(fmt.Appendf(nil, "k%03d", n), nil)
				if err != nil || !found || string(value) != fmt.Sprintf("v%d", n) {
					t.Errorf("%q %v %v", value, found, err)
					return
				}
			}
		})
	}
	for range 2_000 {
		s.publish(3)
		s.e.tables.evict(99)
	}
	stop.Store(true)
	readers.Wait()
	s.close()
	_, _, err := s.e.Get([]byte("k000"), nil)
	require.ErrorIs(t, err, ErrClosed)
	_, err = s.e.NewIter(IterOptions{})
	require.ErrorIs(t, err, ErrClosed)
}

// Every byte of a table counts: with any one flipped, a read gives the right answer or an error, a
// walk as well, and verification always notices.
func TestEveryFlippedByteOfATableIsFound(t *testing.T) {
	s := newShelf(t, 0, 100)
	rng := rand.New(rand.NewPCG(3, 3))
	h := randomHistory(rng, 60, 20)
	s.table(1, h.entries, sstable.WriterOptions{BlockBytes: 256, FilterBitsPerKey: 10, IndexPartitionBytes: 128})
	s.publish(60)
	name := "sst/" + compact.TableName(1)
	good := readAll(t, s.fs, name)
	at := ikey.Seq(60)
	for pos := range good {
		flipped := append([]byte(nil), good...)
		flipped[pos] ^= 1 << (pos % 8)
		writeAll(t, s.fs, name, flipped)
		s.e.tables.evict(1)
		s.publish(60)
		state, err := s.e.acquireFixed()
		require.NoError(t, err)
		for _, k := range h.m.sorted {
			value, found, err := state.get([]byte(k), at, nil)
			if err != nil {
				require.ErrorIs(t, err, ErrCorrupt, "byte %d", pos)
				continue
			}
			want := h.m.get(k, at)
			require.Equal(t, want != nil, found, "byte %d key %s", pos, k)
			require.Equal(t, string(want), string(value), "byte %d key %s", pos, k)
		}
		walkFlipped(t, state, h.m, at, pos)
		c := checker{fs: s.fs, dir: "."}
		require.NoError(t, c.tables(context.Background(), state.version))
		require.NotEmpty(t, c.findings, "byte %d is not noticed by verification", pos)
		state.unref()
	}
	t.Logf("%d bytes, all noticed", len(good))
	s.close()
}

// walkFlipped walks both ways: every record that is given is right, and none is missing unless the
// walk says that it failed.
func walkFlipped(t *testing.T, state *readState, m *model, at ikey.Seq, pos int) {
	require.True(t, state.tryRef())
	it, err := newIter(state, at, IterOptions{})
	if err != nil {
		require.ErrorIs(t, err, ErrCorrupt)
		return
	}
	keys := m.present(at, "", "")
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		require.Equal(t, keys[n], string(it.Key()), "byte %d", pos)
		require.Equal(t, string(m.get(keys[n], at)), string(it.Value()), "byte %d", pos)
		n++
	}
	if it.Err() == nil {
		require.Len(t, keys, n, "byte %d: records are missing", pos)
	} else {
		require.ErrorIs(t, it.Err(), ErrCorrupt)
	}
	n = len(keys)
	for ok := it.Last(); ok; ok = it.Prev() {
		n--
		require.Equal(t, keys[n], string(it.Key()), "byte %d", pos)
		require.Equal(t, string(m.get(keys[n], at)), string(it.Value()), "byte %d", pos)
	}
	if it.Err() == nil {
		require.Zero(t, n, "byte %d: records are missing", pos)
	} else {
		require.ErrorIs(t, it.Err(), ErrCorrupt)
	}
	_ = it.Close()
}

func readAll(t testing.TB, fs vfs.FS, name string) []byte {
	f, err := fs.Open(name)
	require.NoError(t, err)
	info, err := f.Stat()
	require.NoError(t, err)
	b := make([]byte, info.Size())
	_, err = f.ReadAt(b, 0)
	if !errors.Is(err, io.EOF) {
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	return b
}

func writeAll(t testing.TB, fs vfs.FS, name string, b []byte) {
	require.NoError(t, fs.Remove(name)) // it is read-only
	f, err := fs.Create(name, 0o440)
	require.NoError(t, err)
	_, err = f.WriteAt(b, 0)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
}
