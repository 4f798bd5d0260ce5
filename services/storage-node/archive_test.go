package main

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
)

// snapshotDir makes what looks like a snapshot: a file of some size, one below a directory, FORMAT.
func snapshotDir(t *testing.T) (dir string, files map[string]string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "snapshot")
	files = map[string]string{"FORMAT": "1\n", "SNAPSHOT": "{}", "sst/000001.sst": string(bytes.Repeat([]byte("table"), 3000)), "log/000001.log": ""}
	for name, content := range files {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o770))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o440))
	}
	return dir, files
}

func archived(t *testing.T, dir string) []byte {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, archive(context.Background(), dir, &out))
	return out.Bytes()
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		require.NoError(t, err)
		b, err := os.ReadFile(name)
		out[rel] = string(b)
		return err
	}))
	return out
}

// Danger: a backup that is not what was backed up.
func TestExtractGivesBackWhatWasArchived(t *testing.T) {
	dir, files := snapshotDir(t)
	to := filepath.Join(t.TempDir(), "data")
	require.NoError(t, os.MkdirAll(filepath.Join(to, "lost+found"), 0o700))
	require.NoError(t, os.MkdirAll(filepath.Join(to, "sst"), 0o770))
	n, err := extract(context.Background(), bytes.NewReader(archived(t, dir)), to)
	require.NoError(t, err)
	require.EqualValues(t, 15_000+2+2, n)
	require.Equal(t, files, contents(t, to))
}

// Danger: a connection that breaks while an archive is copied, and a node that starts on the half that came.
func TestArchiveThatIsCutOffAnywhereIsRefusedAndLeavesNothing(t *testing.T) {
	dir, _ := snapshotDir(t)
	all := archived(t, dir)
	end := len(all) - 3*512 // what follows is the block of FORMAT's content, and two empty ones
	for n := 0; n <= end; n += 256 {
		to := t.TempDir()
		_, err := extract(context.Background(), bytes.NewReader(all[:n]), to)
		require.Error(t, err, "%d of %d bytes", n, len(all))
		require.Empty(t, contents(t, to), "%d of %d bytes", n, len(all))
	}
}

// Danger: an archive of somebody else that writes beside the directory, or over data that is there.
func TestExtractWritesNowhereElseAndOverNothing(t *testing.T) {
	strange := func(h tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		require.NoError(t, w.WriteHeader(&h))
		_, err := io.CopyN(w, zeros{}, h.Size)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		return b.Bytes()
	}
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeReg, Name: "../outside", Size: 3},
		{Typeflag: tar.TypeReg, Name: "/etc/outside", Size: 3},
		{Typeflag: tar.TypeSymlink, Name: "sst", Linkname: "/etc"},
		{Typeflag: tar.TypeReg, Name: "no-format", Size: 3},
	} {
		above := t.TempDir()
		_, err := extract(context.Background(), bytes.NewReader(strange(h)), filepath.Join(above, "data"))
		require.Error(t, err, h.Name)
		require.Empty(t, contents(t, above), h.Name)
	}

	dir, _ := snapshotDir(t)
	to := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(to, "FORMAT"), []byte("somebody's"), 0o600))
	_, err := extract(context.Background(), bytes.NewReader(archived(t, dir)), to)
	require.ErrorContains(t, err, "nothing is overwritten")
	require.Equal(t, map[string]string{"FORMAT": "somebody's"}, contents(t, to))
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// Danger: the archive of a running node, of which half is of one moment and half of another.
func TestOnlySnapshotsAreArchived(t *testing.T) {
	servicetest.ClearEnvironment(t)
	dir, _ := snapshotDir(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "IDENTITY"), nil, 0o600))
	code, stdout, stderr := run(t, "archive", dir)
	require.Equal(t, service.ExitUsage, code)
	require.Empty(t, stdout)
	require.Contains(t, stderr, "archive a snapshot of it")
	for _, args := range [][]string{{"archive"}, {"archive", t.TempDir()}, {"archive", dir, dir}, {"extract"}, {"extract", "--what"}, {"extract", dir}} {
		code, stdout, _ = run(t, args...)
		require.Equal(t, service.ExitUsage, code, "%v", args)
		require.Empty(t, stdout)
	}
}
