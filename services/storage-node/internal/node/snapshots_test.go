package node

import (
	"context"
	"errors"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

// fakeEngine writes one table into a checkpoint, or fails half-way.
type fakeEngine struct {
	fs  vfs.FS
	err error
}

func (f *fakeEngine) Checkpoint(_ context.Context, dir string) error {
	if err := f.fs.MkdirAll(path.Join(dir, "sst"), 0o770); err != nil {
		return err
	}
	if err := vfs.WriteFile(f.fs, path.Join(dir, "sst", "000001.sst"), make([]byte, 1000), filePerm); err != nil {
		return err
	}
	return f.err
}

func newSnapshots(t *testing.T) (*snapshots, *fakeEngine) {
	t.Helper()
	engine := &fakeEngine{fs: vfs.NewMem()}
	s := &snapshots{
		fs: engine.fs, dir: "/d", engine: engine, seq: func() uint64 { return 42 },
		now: func() time.Time { return time.Unix(1000, 0) },
	}
	require.NoError(t, openSnapshots(s))
	return s, engine
}

func TestSnapshotsAreMadeListedAndDeleted(t *testing.T) {
	s, _ := newSnapshots(t)
	made, err := s.Create(t.Context(), "before-upgrade.1")
	require.NoError(t, err)
	require.Equal(t, "snapshots/before-upgrade.1", made.Path)
	require.EqualValues(t, 42, made.Sequence)
	require.EqualValues(t, 1000, made.CreatedAt)
	require.Greater(t, made.SizeBytes, int64(1000))
	all, err := s.List()
	require.NoError(t, err)
	require.Equal(t, []server.Snapshot{made}, all)

	_, err = s.Create(t.Context(), "before-upgrade.1")
	require.ErrorIs(t, err, server.ErrSnapshotExists)
	require.NoError(t, s.Delete("before-upgrade.1"))
	require.ErrorIs(t, s.Delete("before-upgrade.1"), server.ErrNoSnapshot)
	all, err = s.List()
	require.NoError(t, err)
	require.Empty(t, all)
	left, err := s.fs.List("/d/snapshots")
	require.NoError(t, err)
	require.Empty(t, left)
}

// A name from the wire becomes a path: it must not leave the directory, nor hide.
func TestSnapshotNamesAreChecked(t *testing.T) {
	s, _ := newSnapshots(t)
	for _, name := range []string{"a", "0-a.b", strings.Repeat("x", 128)} {
		_, err := s.Create(t.Context(), name)
		require.NoError(t, err, name)
	}
	for _, name := range []string{"", ".", "..", ".a", "a/b", "../a", "A", "a b", "ä", "a\x00", strings.Repeat("x", 129)} {
		_, err := s.Create(t.Context(), name)
		require.Error(t, err, name)
		require.Error(t, s.Delete(name), name)
	}
}

// A checkpoint that failed half-way must never be listed as a backup.
func TestFailedSnapshotLeavesNothing(t *testing.T) {
	s, engine := newSnapshots(t)
	engine.err = errors.New("disk on fire")
	_, err := s.Create(t.Context(), "a")
	require.ErrorContains(t, err, "disk on fire")
	left, err := s.fs.List("/d/snapshots")
	require.NoError(t, err)
	require.Empty(t, left)

	// The same after a crash in the middle.
	require.NoError(t, engine.fs.MkdirAll("/d/snapshots/.b/sst", 0o770))
	require.NoError(t, openSnapshots(s))
	left, err = s.fs.List("/d/snapshots")
	require.NoError(t, err)
	require.Empty(t, left)
}

// A script that forgets to delete must not fill the disk for ever.
func TestNumberOfSnapshotsIsLimited(t *testing.T) {
	s, engine := newSnapshots(t)
	for i := range maxSnapshots {
		require.NoError(t, engine.fs.MkdirAll(path.Join("/d/snapshots", "n"+strings.Repeat("x", i%100)+string(rune('a'+i/100))), 0o770))
	}
	_, err := s.Create(t.Context(), "one-more")
	require.ErrorIs(t, err, server.ErrTooManySnapshots)
}
