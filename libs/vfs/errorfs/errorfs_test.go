package errorfs_test

import (
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/errorfs"
)

var errDisk = errors.New("input/output error")

// workload copies a file durably.
func workload(fsys vfs.FS) error {
	if _, err := vfs.CopyFile(fsys, "/from", "/to"); err != nil {
		return err
	}
	return vfs.SyncDir(fsys, "/")
}

func source(t *testing.T) *vfs.MemFS {
	t.Helper()
	mem := vfs.NewMem()
	f, err := mem.Create("/from", 0o660)
	require.NoError(t, err)
	_, err = f.Write([]byte("content"))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return mem
}

// Danger: an injected failure that nobody sees makes the loop over all indexes prove nothing.
func TestEveryIndexFailsOnceAndIsReported(t *testing.T) {
	for kinds, want := range map[errorfs.Kind]int{errorfs.Writes: 2, errorfs.Syncs: 2, errorfs.Mutating: 4, errorfs.All: 8} {
		i := 0
		for ; ; i++ {
			inj := errorfs.OnIndex(i, kinds, errDisk)
			err := workload(errorfs.Wrap(source(t), inj))
			fired, what := inj.Fired()
			if !fired {
				require.NoError(t, err)
				break
			}
			require.ErrorIs(t, err, errDisk, what)
			require.NotEmpty(t, what)
		}
		require.Equal(t, want, i)
	}
}

// Danger: a short write that writes all or nothing tests no torn frame.
func TestShortWriteWritesTheFirstHalf(t *testing.T) {
	mem := source(t)
	err := workload(errorfs.Wrap(mem, errorfs.ShortWrite(1, errDisk)))
	require.ErrorIs(t, err, errDisk)
	f, err := mem.Open("/to")
	require.NoError(t, err)
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	require.Equal(t, "con", string(b))
}

// Danger: recovery from a full disk is never tried because the disk stays full, or never was.
func TestFullDiskLastsUntilItIsSwitchedOff(t *testing.T) {
	inj := errorfs.None()
	fsys := errorfs.Wrap(source(t), inj)
	inj.SetFull(true)
	for range 3 {
		require.ErrorIs(t, workload(fsys), vfs.ErrNoSpace)
	}
	inj.SetFull(false)
	require.NoError(t, workload(fsys))
	fired, _ := inj.Fired()
	require.False(t, fired)
}
