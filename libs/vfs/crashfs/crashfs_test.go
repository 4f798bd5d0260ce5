package crashfs_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
)

func create(t *testing.T, fsys vfs.FS, name, content string, sync bool) vfs.File {
	t.Helper()
	f, err := fsys.Create(name, 0o660)
	require.NoError(t, err)
	_, err = f.Write([]byte(content))
	require.NoError(t, err)
	if sync {
		require.NoError(t, f.Sync())
	}
	return f
}

// content returns what is in a file, and whether it is there.
func content(t *testing.T, fsys vfs.FS, name string) (string, bool) {
	t.Helper()
	if _, err := fsys.Stat(name); err != nil {
		return "", false
	}
	f, err := fsys.Open(name)
	require.NoError(t, err)
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	return string(b), true
}

// images calls check with many images of each mode.
func images(t *testing.T, fsys *crashfs.FS, check func(mode crashfs.Mode, image *crashfs.FS)) {
	t.Helper()
	for _, mode := range crashfs.Modes() {
		for seed := range uint64(50) {
			check(mode, fsys.CrashImage(mode, rand.New(rand.NewPCG(seed, uint64(mode)))))
		}
	}
}

// Danger: a crash test that loses what was synced blames innocent code, and is then made weaker.
func TestWhatWasSyncedIsInEveryImage(t *testing.T) {
	fsys := crashfs.New()
	require.NoError(t, fsys.MkdirAll("/a/b", 0o770))
	f := create(t, fsys, "/a/b/file", "durable", true)
	for _, dir := range []string{"/", "/a", "/a/b"} {
		require.NoError(t, vfs.SyncDir(fsys, dir))
	}
	_, err := f.WriteAt([]byte("!"), 100)
	require.NoError(t, err)
	create(t, fsys, "/a/b/other", "lost or not", false)
	images(t, fsys, func(mode crashfs.Mode, image *crashfs.FS) {
		got, ok := content(t, image, "/a/b/file")
		require.True(t, ok, mode)
		require.Equal(t, "durable", got[:7], mode)
	})
}

// Danger: a crash test that keeps what was not synced is green over every missing sync.
func TestWhatWasNotSyncedIsMissingInSomeImages(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(fsys *crashfs.FS)
		gone func(fsys *crashfs.FS) bool
	}{
		{"a write", func(fsys *crashfs.FS) {
			create(t, fsys, "/file", "x", false)
			require.NoError(t, vfs.SyncDir(fsys, "/"))
		}, func(fsys *crashfs.FS) bool { got, _ := content(t, fsys, "/file"); return got == "" }},
		{"a name", func(fsys *crashfs.FS) {
			create(t, fsys, "/file", "x", true)
		}, func(fsys *crashfs.FS) bool { _, ok := content(t, fsys, "/file"); return !ok }},
		{"a rename", func(fsys *crashfs.FS) {
			create(t, fsys, "/old", "x", true)
			require.NoError(t, vfs.SyncDir(fsys, "/"))
			require.NoError(t, fsys.Rename("/old", "/new"))
		}, func(fsys *crashfs.FS) bool { _, ok := content(t, fsys, "/new"); return !ok }},
		{"a removal", func(fsys *crashfs.FS) {
			create(t, fsys, "/file", "x", true)
			require.NoError(t, vfs.SyncDir(fsys, "/"))
			require.NoError(t, fsys.Remove("/file"))
		}, func(fsys *crashfs.FS) bool { _, ok := content(t, fsys, "/file"); return ok }},
		{"a directory's parent", func(fsys *crashfs.FS) {
			require.NoError(t, fsys.MkdirAll("/a/b", 0o770))
			create(t, fsys, "/a/b/file", "x", true)
			require.NoError(t, vfs.SyncDir(fsys, "/a/b"))
			require.NoError(t, vfs.SyncDir(fsys, "/"))
		}, func(fsys *crashfs.FS) bool { _, ok := content(t, fsys, "/a/b/file"); return !ok }},
		{"the first of two writes", func(fsys *crashfs.FS) {
			f := create(t, fsys, "/file", "x", false)
			_, err := f.WriteAt([]byte("y"), 4096)
			require.NoError(t, err)
			require.NoError(t, vfs.SyncDir(fsys, "/"))
		}, func(fsys *crashfs.FS) bool {
			got, _ := content(t, fsys, "/file")
			return len(got) == 4097 && got[0] == 0
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys := crashfs.New()
			c.run(fsys)
			gone, there := false, false
			images(t, fsys, func(_ crashfs.Mode, image *crashfs.FS) {
				gone, there = gone || c.gone(image), there || !c.gone(image)
			})
			require.True(t, gone, "it is in every image")
			require.True(t, there, "it is in no image")
		})
	}
}

// Danger: an image loses a file that no journalling file system loses, and recycling looks broken.
func TestARenamedFileIsNeverLostUnderBothNames(t *testing.T) {
	fsys := crashfs.New()
	require.NoError(t, fsys.MkdirAll("/a", 0o770))
	require.NoError(t, fsys.MkdirAll("/b", 0o770))
	create(t, fsys, "/a/old", "x", true)
	for _, dir := range []string{"/", "/a"} {
		require.NoError(t, vfs.SyncDir(fsys, dir))
	}
	require.NoError(t, fsys.Rename("/a/old", "/b/new"))
	create(t, fsys, "/a/old", "another", false)
	check := func(mode crashfs.Mode, image *crashfs.FS) {
		old, _ := content(t, image, "/a/old")
		moved, _ := content(t, image, "/b/new")
		require.True(t, old == "x" || moved == "x", "%v: %q %q", mode, old, moved)
	}
	images(t, fsys, check)
	require.NoError(t, vfs.SyncDir(fsys, "/a"))
	images(t, fsys, check)
}

// Danger: no image shows the old name beside the new one, and nobody is ready for the file that has two.
func TestARenamedFileMayBeFoundUnderBothNames(t *testing.T) {
	fsys := crashfs.New()
	create(t, fsys, "/old", "x", true)
	require.NoError(t, vfs.SyncDir(fsys, "/"))
	require.NoError(t, fsys.Rename("/old", "/new"))
	both := 0
	count := func(_ crashfs.Mode, image *crashfs.FS) {
		_, old := content(t, image, "/old")
		_, moved := content(t, image, "/new")
		if !old || !moved {
			return
		}
		both++
		f, err := image.OpenReadWrite("/new")
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("y"), 0)
		require.NoError(t, err)
		got, _ := content(t, image, "/old")
		require.Equal(t, "y", got, "it is one file")
	}
	images(t, fsys, count)
	require.NotZero(t, both)
	require.NoError(t, vfs.SyncDir(fsys, "/"))
	both = 0
	images(t, fsys, count)
	require.Zero(t, both)
}

// Danger: operations without a hook are moments at which nobody ever tried to crash.
func TestEveryMutatingOperationIsAnnounced(t *testing.T) {
	fsys := crashfs.New()
	var ops []string
	fsys.SetHook(func(op crashfs.Op) {
		require.Equal(t, len(ops), op.Index)
		fsys.CrashImage(crashfs.KeepAll, rand.New(rand.NewPCG(1, 1))) // no deadlock
		ops = append(ops, op.Kind)
	})
	require.NoError(t, fsys.MkdirAll("/d", 0o770))
	f := create(t, fsys, "/d/f", "x", true)
	_, err := f.WriteAt(nil, 0)
	require.NoError(t, err)
	require.NoError(t, f.Preallocate(10))
	require.NoError(t, f.Truncate(5))
	require.NoError(t, f.SyncData())
	require.NoError(t, f.Close())
	require.NoError(t, vfs.SyncDir(fsys, "/d"))
	require.NoError(t, fsys.Link("/d/f", "/d/g"))
	require.NoError(t, fsys.Rename("/d/g", "/d/h"))
	require.NoError(t, fsys.Remove("/d/h"))
	sealed, err := fsys.OpenForeign("/d/f", true)
	require.NoError(t, err)
	require.NoError(t, sealed.Close())
	require.NoError(t, fsys.RemoveAll("/d"))
	require.Equal(t, []string{"mkdir", "create", "write", "sync", "write", "preallocate", "truncate", "sync", "sync-dir",
		"link", "rename", "remove", "seal", "remove-all"}, ops)
	require.Equal(t, len(ops), fsys.Operations())
}

// Danger: the workload goes on and changes the image that is being checked.
func TestAnImageIsIndependentAndCrashesAgain(t *testing.T) {
	fsys := crashfs.New()
	f := create(t, fsys, "/file", "one", true)
	require.NoError(t, vfs.SyncDir(fsys, "/"))
	image := fsys.CrashImage(crashfs.DropUnsynced, rand.New(rand.NewPCG(1, 1)))
	_, err := f.WriteAt([]byte("two"), 0)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	got, _ := content(t, image, "/file")
	require.Equal(t, "one", got)

	g, err := image.OpenReadWrite("/file")
	require.NoError(t, err)
	_, err = g.WriteAt([]byte("six"), 0)
	require.NoError(t, err)
	again := image.CrashImage(crashfs.DropUnsynced, rand.New(rand.NewPCG(1, 1)))
	got, _ = content(t, again, "/file")
	require.Equal(t, "one", got)
}

// Danger: torn writes are torn at places where no disk tears, or nowhere.
func TestWritesTearAtSectors(t *testing.T) {
	fsys := crashfs.New()
	f := create(t, fsys, "/file", "", true)
	require.NoError(t, vfs.SyncDir(fsys, "/"))
	_, err := f.WriteAt(bytes.Repeat([]byte{'x'}, 4000), 100)
	require.NoError(t, err)
	shapes := map[string]bool{}
	images(t, fsys, func(mode crashfs.Mode, image *crashfs.FS) {
		got, _ := content(t, image, "/file")
		shape := ""
		for at := 0; at < len(got); at += 512 {
			sector := got[at:min(at+512, len(got))]
			x := bytes.Count([]byte(sector), []byte{'x'})
			require.True(t, x == 0 || x == len(sector) || at == 0 && x == 412, "%v: sector at %d has %d", mode, at, x)
			shape += fmt.Sprint(min(x, 1))
		}
		shapes[shape] = true
	})
	require.Greater(t, len(shapes), 20)
}
