package vfs_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/pairdb/pairdb/libs/vfs"
)

// Danger: a worker plants a link or a pipe where its output should be, and the node reads (and
// chmods) another file or hangs.
func TestOpenForeignTakesRegularFilesOnly(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	require.NoError(t, os.WriteFile(target, []byte("secret"), 0o600))
	link, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	require.NoError(t, os.Symlink(target, link))
	require.NoError(t, unix.Mkfifo(fifo, 0o660))
	for _, name := range []string{link, fifo, dir} {
		_, err := vfs.OS.OpenForeign(name, true)
		require.Error(t, err, name)
	}
	info, err := os.Stat(target)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

// Danger: a full disk that is not recognised as one poisons the engine instead of pausing writes.
func TestOSFullDiskIsErrNoSpace(t *testing.T) {
	f, err := vfs.OS.OpenReadWrite("/dev/full")
	require.NoError(t, err, "every Linux has /dev/full")
	_, err = f.Write([]byte("x"))
	require.ErrorIs(t, err, vfs.ErrNoSpace)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NoError(t, f.Close())
}

// Disks are judged in percent: space that nobody but root may have would make a fresh one look half full.
func TestUsageCountsAsDfDoes(t *testing.T) {
	dir := t.TempDir()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	u, err := vfs.OS.Usage(dir)
	require.NoError(t, err)
	unit := uint64(st.Frsize)
	used := (st.Blocks - st.Bfree) * unit
	require.InDelta(t, used, u.TotalBytes-u.FreeBytes, float64(1<<30), "others write meanwhile")
	require.LessOrEqual(t, u.TotalBytes, st.Blocks*unit)
	require.Positive(t, u.FreeBytes)
}
