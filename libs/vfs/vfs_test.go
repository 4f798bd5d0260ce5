package vfs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/libs/vfs/errorfs"
)

// every runs a test on each implementation; dir is empty.
func every(t *testing.T, test func(t *testing.T, fsys vfs.FS, dir string)) {
	t.Run("OS", func(t *testing.T) { test(t, vfs.OS, t.TempDir()) })
	for name, fsys := range map[string]vfs.FS{
		"Mem":     vfs.NewMem(),
		"crashfs": crashfs.New(),
		"errorfs": errorfs.Wrap(vfs.NewMem(), errorfs.None()),
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, fsys.MkdirAll("/work/dir", 0o770))
			test(t, fsys, "/work/dir")
		})
	}
}

func write(t *testing.T, fsys vfs.FS, name, content string) {
	t.Helper()
	f, err := fsys.Create(name, 0o660)
	require.NoError(t, err)
	_, err = f.Write([]byte(content))
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
}

func read(t *testing.T, fsys vfs.FS, name string) string {
	t.Helper()
	f, err := fsys.Open(name)
	require.NoError(t, err)
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return string(b)
}

// Danger: the in-memory twins differ from the disk, and every test on them proves nothing.
func TestFilesBehaveAlikeEverywhere(t *testing.T) {
	every(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "a")
		f, err := fsys.Create(name, 0o660)
		require.NoError(t, err)
		_, err = f.Write([]byte("hello "))
		require.NoError(t, err)
		_, err = f.Write([]byte("world"))
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("W"), 6)
		require.NoError(t, err)
		require.NoError(t, f.SyncData())
		buf := make([]byte, 8)
		n, err := f.ReadAt(buf, 6)
		require.Equal(t, 5, n)
		require.Equal(t, io.EOF, err)
		require.Equal(t, "hello World", read(t, fsys, name))

		require.NoError(t, f.Truncate(3))
		require.NoError(t, f.Preallocate(100_000))
		require.NoError(t, f.Preallocate(10))
		info, err := f.Stat()
		require.NoError(t, err)
		require.EqualValues(t, 100_000, info.Size())
		require.Equal(t, "hel\x00\x00", read(t, fsys, name)[:5])
		_, err = f.WriteAt([]byte("end"), 99_999)
		require.NoError(t, err)
		f.DontNeed(0, 10)
		require.NoError(t, f.Close())
		require.Error(t, f.Close())
		_, err = f.WriteAt([]byte("x"), 0)
		require.ErrorIs(t, err, fs.ErrClosed)

		f, err = fsys.OpenReadWrite(name)
		require.NoError(t, err)
		_, err = f.Write([]byte("HEL"))
		require.NoError(t, err)
		require.NoError(t, f.Close())
		content := read(t, fsys, name)
		require.Len(t, content, 100_002)
		require.Equal(t, "HEL\x00", content[:4])
		require.Equal(t, "end", content[99_999:])

		f, err = fsys.Open(name)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("x"), 0)
		require.Error(t, err)
		require.NoError(t, f.Close())
		f, err = fsys.Create(name, 0o660)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.Empty(t, read(t, fsys, name))
	})
}

// Danger: a rename that does not replace, or a removal that takes a directory with content.
func TestNamesBehaveAlikeEverywhere(t *testing.T) {
	every(t, func(t *testing.T, fsys vfs.FS, dir string) {
		at := func(name string) string { return filepath.Join(dir, name) }
		require.NoError(t, fsys.MkdirAll(at("x/y"), 0o770))
		require.NoError(t, fsys.MkdirAll(at("x/y"), 0o770))
		write(t, fsys, at("x/1"), "one")
		write(t, fsys, at("x/y/2"), "two")
		require.NoError(t, vfs.SyncDir(fsys, at("x")))

		require.NoError(t, fsys.Link(at("x/1"), at("x/3")))
		require.ErrorIs(t, fsys.Link(at("x/1"), at("x/3")), fs.ErrExist)
		require.NoError(t, fsys.Rename(at("x/y/2"), at("x/1")))
		require.Equal(t, "two", read(t, fsys, at("x/1")))
		require.Equal(t, "one", read(t, fsys, at("x/3")))
		names, err := fsys.List(at("x"))
		require.NoError(t, err)
		require.Equal(t, []string{"1", "3", "y"}, names)
		require.NoError(t, fsys.Rename(at("x/y"), at("z")))
		require.ErrorIs(t, fsys.Rename(at("nothing"), at("w")), fs.ErrNotExist)

		require.Error(t, fsys.Remove(at("x")))
		require.NoError(t, fsys.Remove(at("z")))
		require.ErrorIs(t, fsys.Remove(at("z")), fs.ErrNotExist)
		_, err = vfs.CopyFile(fsys, at("x/1"), at("copy"))
		require.NoError(t, err)
		require.Equal(t, "two", read(t, fsys, at("copy")))
		require.NoError(t, fsys.RemoveAll(at("x")))
		require.NoError(t, fsys.RemoveAll(at("x")))
		_, err = fsys.Stat(at("x"))
		require.ErrorIs(t, err, fs.ErrNotExist)
		_, err = fsys.Open(at("x/1"))
		require.ErrorIs(t, err, fs.ErrNotExist)
		_, err = fsys.OpenDir(at("copy"))
		require.Error(t, err)
		usage, err := fsys.Usage(dir)
		require.NoError(t, err)
		require.Positive(t, usage.TotalBytes)
	})
}

// Danger: two nodes open one data directory.
func TestLockExcludesASecondHolder(t *testing.T) {
	every(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "LOCK")
		held, err := fsys.Lock(name)
		require.NoError(t, err)
		_, err = fsys.Lock(name)
		require.ErrorIs(t, err, vfs.ErrLocked)
		require.NoError(t, held.Close())
		held, err = fsys.Lock(name)
		require.NoError(t, err)
		require.NoError(t, held.Close())
	})
}

// Danger: a compactor that still has its output open writes into an installed table.
func TestSealRefusesAFileThatIsOpenForWriting(t *testing.T) {
	every(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "0001.sst")
		f, err := fsys.Create(name, 0o660)
		require.NoError(t, err)
		_, err = f.Write([]byte("table"))
		require.NoError(t, err)

		_, err = fsys.OpenForeign(name, true)
		if errors.Is(err, vfs.ErrNoLeases) {
			t.Logf("this file system has no leases: %v", err)
			return
		}
		require.ErrorIs(t, err, vfs.ErrStillOpen)
		unsealed, err := fsys.OpenForeign(name, false)
		require.NoError(t, err)
		require.NoError(t, unsealed.Close())
		require.NoError(t, f.Close())

		sealed, err := fsys.OpenForeign(name, true)
		require.NoError(t, err)
		info, err := sealed.Stat()
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o440), info.Mode().Perm())
		require.NoError(t, sealed.Close())
	})
}

// Danger: a mapping that shows other bytes than the file, or one of a file that must not have any.
func TestMappingsShowTheFile(t *testing.T) {
	every(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "mapped")
		content := bytes.Repeat([]byte("0123456789"), 1000)
		write(t, fsys, name, string(content))
		f, err := fsys.Open(name)
		require.NoError(t, err)
		m, err := f.Map(int64(len(content)))
		if errors.Is(err, vfs.ErrNotMapped) {
			require.Contains(t, t.Name(), "errorfs", "its reads must be able to fail")
			require.NoError(t, f.Close())
			return
		}
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.NoError(t, m.Populate())
		require.Equal(t, content, m.Bytes(), "it outlives the file's Close")
		n, err := m.ResidentBytes()
		require.NoError(t, err)
		require.EqualValues(t, len(content), n, "what was just written is in memory")
		require.NoError(t, m.Close())
	})
}
