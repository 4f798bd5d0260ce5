package manifest_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/libs/vfs/errorfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// Small files, so that a few edits lead to a new one.
var smallFiles = manifest.Options{MaxFileBytes: 150}

// edit k adds table k and takes away table k-3, so each state can be told from the log floor.
func edit(t require.TestingT, k uint64) manifest.Edit {
	text := fmt.Sprintf("add L0 %d a-m seqs=%d-%d\nlog-floor %d\nnode at=%d", k, k*10+1, k*10+10, k, k)
	if k > 3 {
		text += fmt.Sprintf("\ndelete L0 %d", k-3)
	}
	e, err := manifest.ParseEdit(text, nil)
	require.NoError(t, err)
	return e
}

// requireState checks that all of the state is that after one edit between low and high.
func requireState(t require.TestingT, s *manifest.Set, low, high uint64) uint64 {
	k := s.LogFloor()
	require.GreaterOrEqual(t, k, low)
	require.LessOrEqual(t, k, high)
	var want, got []uint64
	for n := max(k, 3) - 2; n <= k; n++ {
		want = append(want, n)
	}
	v := s.Current()
	defer v.Unref()
	for _, table := range v.Levels[0] {
		got = append(got, table.Num)
	}
	require.Equal(t, want, got)
	require.Equal(t, want, s.LiveFiles())
	require.NoError(t, manifest.CheckInvariants(v))
	if k > 0 {
		require.EqualValues(t, k*10+10, s.LastSeq())
		require.Equal(t, fmt.Sprint(k), s.NodeMeta()["at"])
		require.Greater(t, s.NewFile(), k)
	}
	return k
}

// progress is how far the workload was when the lights went out.
type progress struct {
	created        bool
	acked, started uint64
}

// workload creates, applies, closes, opens and applies again. It stops at the first error.
func workload(t require.TestingT, fsys vfs.FS, p *progress) (err error) {
	s, err := manifest.Create(fsys, dir, smallFiles)
	if err != nil {
		return err
	}
	p.created = true
	for half := range uint64(2) {
		for p.started < 8*(half+1) {
			p.started++
			if err := s.Apply(edit(t, p.started)); err != nil {
				return errors.Join(err, s.Close())
			}
			p.acked = p.started
		}
		if err := s.Close(); err != nil {
			return err
		}
		if s, _, err = manifest.Open(fsys, dir, smallFiles); err != nil {
			return err
		}
	}
	return s.Close()
}

// recover opens what a crash left and checks that nothing acknowledged is missing, that it works, and
// that nothing old lies about.
func recoverAndCheck(t *testing.T, fsys vfs.FS, p progress) {
	s, _, err := manifest.Open(fsys, dir, smallFiles)
	if !p.created && errors.Is(err, manifest.ErrNoManifest) {
		s, err = manifest.Create(fsys, dir, smallFiles)
	}
	require.NoError(t, err)
	k := requireState(t, s, p.acked, p.started)
	names, err := fsys.List(dir)
	require.NoError(t, err)
	require.Len(t, names, 2, "%s", names)
	require.NoError(t, s.Apply(edit(t, k+1)))
	require.NoError(t, s.Close())
	s, _, err = manifest.Open(fsys, dir, smallFiles)
	require.NoError(t, err)
	requireState(t, s, k+1, k+1)
	require.NoError(t, s.Close())
}

// The danger: an edit that was acknowledged is gone after a power cut, or the store does not open, or
// is half way between two versions. The cut comes before each operation, also during recovery.
func TestAppliedEditsSurviveEveryCrash(t *testing.T) {
	fsys, p, images := crashfs.New(), &progress{}, 0
	require.NoError(t, fsys.MkdirAll("/data", 0o770))
	require.NoError(t, vfs.SyncDir(fsys, "/"))
	fsys.SetHook(func(op crashfs.Op) {
		for _, mode := range crashfs.Modes() {
			rng := rand.New(rand.NewPCG(uint64(op.Index), uint64(mode)))
			image := fsys.CrashImage(mode, rng)
			if images++; images%7 == 0 {
				crashAgain(t, image, *p, rng)
			} else {
				recoverAndCheck(t, image, *p)
			}
		}
	})
	require.NoError(t, workload(t, fsys, p))
	require.EqualValues(t, 16, p.acked)
	require.Greater(t, fsys.Operations(), 60)
	t.Logf("%d operations, %d images", fsys.Operations(), images)
}

// crashAgain cuts the power during recovery too.
func crashAgain(t *testing.T, fsys *crashfs.FS, p progress, rng *rand.Rand) {
	fsys.SetHook(func(op crashfs.Op) {
		mode := crashfs.Modes()[rng.IntN(len(crashfs.Modes()))]
		recoverAndCheck(t, fsys.CrashImage(mode, rng), p)
	})
	s, _, err := manifest.Open(fsys, dir, smallFiles)
	if !p.created && errors.Is(err, manifest.ErrNoManifest) {
		s, err = manifest.Create(fsys, dir, smallFiles)
	}
	require.NoError(t, err)
	fsys.SetHook(nil)
	require.NoError(t, s.Close())
}

// The danger: a failed write, sync, or creation is taken for a success, or ruins what was there.
// Every operation fails once, in several ways; afterwards the process starts again.
func TestEveryInputOutputErrorIsReportedOrHarmless(t *testing.T) {
	errBroken := errors.New("input/output error")
	for name, inject := range map[string]func(i int) *errorfs.Injector{
		"error":       func(i int) *errorfs.Injector { return errorfs.OnIndex(i, errorfs.All, errBroken) },
		"no space":    func(i int) *errorfs.Injector { return errorfs.OnIndex(i, errorfs.Writes, vfs.ErrNoSpace) },
		"short write": func(i int) *errorfs.Injector { return errorfs.ShortWrite(i, errBroken) },
		"short full":  func(i int) *errorfs.Injector { return errorfs.ShortWrite(i, vfs.ErrNoSpace) },
	} {
		t.Run(name, func(t *testing.T) {
			for i := 0; ; i++ {
				mem, p, j := vfs.NewMem(), &progress{}, inject(i)
				require.NoError(t, mem.MkdirAll("/data", 0o770))
				err := workload(t, errorfs.Wrap(mem, j), p)
				fired, what := j.Fired()
				if !fired {
					require.NoError(t, err)
					require.Greater(t, i, 20)
					return
				}
				if err == nil {
					require.NotContains(t, []string{"error", "short write"}, name, what)
				}
				recoverAfterError(t, mem, *p)
			}
		})
	}
}

// recoverAfterError is recoverAndCheck for a disk that lost nothing.
func recoverAfterError(t *testing.T, mem vfs.FS, p progress) {
	s, _, err := manifest.Open(mem, dir, smallFiles)
	if !p.created && err != nil {
		s, err = manifest.Create(mem, dir, smallFiles)
	}
	require.NoError(t, err)
	requireState(t, s, p.acked, p.started)
	require.NoError(t, s.Close())
}

// The danger: after a failed sync the next one succeeds, and what it covers is believed to be there.
func TestFailedSyncPoisonsForGood(t *testing.T) {
	mem := vfs.NewMem()
	require.NoError(t, mem.MkdirAll("/data", 0o770))
	s, err := manifest.Create(mem, dir, manifest.Options{})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	errBroken := errors.New("input/output error")
	for i := range 4 { // a list, an open, … until the sync of the edit
		j := errorfs.OnIndex(i+2, errorfs.Syncs, errBroken)
		s, _, err = manifest.Open(errorfs.Wrap(mem, j), dir, manifest.Options{})
		if err != nil {
			require.ErrorIs(t, err, errBroken)
			continue
		}
		require.ErrorIs(t, s.Apply(edit(t, 1)), manifest.ErrPoisoned)
		require.ErrorIs(t, s.Apply(edit(t, 2)), manifest.ErrPoisoned)
		require.ErrorIs(t, s.Apply(edit(t, 2)), errBroken)
		require.ErrorIs(t, s.Poisoned(), errBroken)
		v := s.Current()
		require.Zero(t, v.Count(), "an edit that is not durable must not be seen")
		v.Unref()
		require.NoError(t, s.Close())
		return
	}
	require.Fail(t, "the sync of an edit never failed")
}

// The danger: a full disk stops the store for good, or keeps it from opening.
func TestFullDiskIsSurvived(t *testing.T) {
	mem, j := vfs.NewMem(), errorfs.None()
	require.NoError(t, mem.MkdirAll("/data", 0o770))
	fsys := errorfs.Wrap(mem, j)
	s, err := manifest.Create(fsys, dir, smallFiles)
	require.NoError(t, err)
	require.NoError(t, s.Apply(edit(t, 1)))
	j.SetFull(true)
	for range 3 {
		require.ErrorIs(t, s.Apply(edit(t, 2)), vfs.ErrNoSpace)
		require.NoError(t, s.Poisoned())
		requireState(t, s, 1, 1)
	}
	require.NoError(t, s.Close())
	s, _, err = manifest.Open(fsys, dir, smallFiles)
	require.NoError(t, err, "it opens without space")
	requireState(t, s, 1, 1)
	require.ErrorIs(t, s.Apply(edit(t, 2)), vfs.ErrNoSpace)
	j.SetFull(false)
	for k := uint64(2); k < 9; k++ {
		require.NoError(t, s.Apply(edit(t, k)))
	}
	require.NoError(t, s.Close())
	s, _, err = manifest.Open(fsys, dir, smallFiles)
	require.NoError(t, err)
	requireState(t, s, 8, 8)
	require.NoError(t, s.Close())
}

// lateFull is a file system whose writes arrive whole and then report a full disk, while it is set.
type lateFull struct {
	vfs.FS
	full bool
}

type lateFullFile struct {
	vfs.File
	fs *lateFull
}

func (l *lateFull) Create(name string, perm fs.FileMode) (vfs.File, error) {
	f, err := l.FS.Create(name, perm)
	return lateFullFile{f, l}, err
}

func (f lateFullFile) WriteAt(b []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(b, off)
	if err == nil && f.fs.full {
		return n - 1, vfs.ErrNoSpace
	}
	return n, err
}

// The danger: an edit that was refused for want of space is there after a restart, and names tables
// that were deleted because it was refused.
func TestRefusedEditIsGoneAfterRestart(t *testing.T) {
	fsys := &lateFull{FS: vfs.NewMem()}
	require.NoError(t, fsys.MkdirAll("/data", 0o770))
	s, err := manifest.Create(fsys, dir, manifest.Options{})
	require.NoError(t, err)
	require.NoError(t, s.Apply(edit(t, 1)))
	fsys.full = true
	require.ErrorIs(t, s.Apply(edit(t, 2)), vfs.ErrNoSpace)
	fsys.full = false
	// The process dies here.
	s, _, err = manifest.Open(fsys, dir, manifest.Options{})
	require.NoError(t, err)
	requireState(t, s, 1, 1)
	require.NoError(t, s.Close())
}

// sealed returns a store of some edits that was closed, and the name of its manifest file.
func sealed(t *testing.T) (*vfs.MemFS, string) {
	mem := vfs.NewMem()
	require.NoError(t, mem.MkdirAll("/data", 0o770))
	s, err := manifest.Create(mem, dir, manifest.Options{})
	require.NoError(t, err)
	for k := uint64(1); k < 6; k++ {
		require.NoError(t, s.Apply(edit(t, k)))
	}
	require.NoError(t, s.Close())
	return mem, dir + "/MANIFEST-000001"
}

func readAll(t *testing.T, fsys vfs.FS, name string) []byte {
	f, err := fsys.Open(name)
	require.NoError(t, err)
	info, err := f.Stat()
	require.NoError(t, err)
	b := make([]byte, info.Size())
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return b
}

func writeAll(t *testing.T, fsys vfs.FS, name string, b []byte) {
	f, err := fsys.Create(name, 0o660)
	require.NoError(t, err)
	_, err = f.WriteAt(b, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// The danger: a flipped bit is taken for a torn tail, or for another table. In a file that was closed
// every byte but those of the last frame, the seal, is known to have been durable.
func TestEveryFlippedByteIsFound(t *testing.T) {
	fsys, name := sealed(t)
	good := readAll(t, fsys, name)
	const sealBytes = 28
	for i := range good {
		for _, bit := range []byte{1, 0x80} {
			b := append([]byte(nil), good...)
			b[i] ^= bit
			image := vfs.NewMem()
			require.NoError(t, image.MkdirAll(dir, 0o770))
			writeAll(t, image, name, b)
			writeAll(t, image, dir+"/CURRENT.000001.MANIFEST-000001", nil)
			s, _, err := manifest.Open(image, dir, manifest.Options{})
			if i >= len(good)-sealBytes {
				require.NoError(t, err)
				requireState(t, s, 5, 5)
				require.NoError(t, s.Close())
				continue
			}
			require.ErrorIs(t, err, manifest.ErrCorrupt, "byte %d of %d", i, len(good))
			require.ErrorContains(t, err, "MANIFEST-000001")
			require.ErrorContains(t, err, "offset")
		}
	}
}

// The danger: a file that was cut short is taken for a store with fewer tables. Without the seal, the
// last edit may be torn; it was the only one that no later frame proves.
func TestCutFileIsTornOnlyInTheLastEdit(t *testing.T) {
	fsys, name := sealed(t)
	good := readAll(t, fsys, name)
	seen := map[string]bool{}
	for n := range good {
		image := vfs.NewMem()
		require.NoError(t, image.MkdirAll(dir, 0o770))
		writeAll(t, image, name, good[:n])
		writeAll(t, image, dir+"/CURRENT.000001.MANIFEST-000001", nil)
		s, r, err := manifest.Open(image, dir, manifest.Options{})
		if err != nil {
			require.ErrorIs(t, err, manifest.ErrCorrupt)
			seen["corrupt"] = true
			continue
		}
		requireState(t, s, 0, 5)
		seen[fmt.Sprintf("state %d", s.LogFloor())] = true
		if r.TornTail > 0 {
			seen["torn"] = true
		}
		require.NoError(t, s.Close())
	}
	require.Len(t, seen, 8, "%v", seen)
}

// The danger: a marker that names nothing, or a file of a newer release, is passed over.
func TestOpenRefusesWhatItCannotRead(t *testing.T) {
	fsys, name := sealed(t)
	good := readAll(t, fsys, name)
	for what, c := range map[string]struct {
		change func() vfs.FS
		want   error
		text   string
	}{
		"no file":      {func() vfs.FS { return files(t, map[string][]byte{"CURRENT.000003.MANIFEST-000009": nil}) }, manifest.ErrCorrupt, "MANIFEST-000009"},
		"no directory": {func() vfs.FS { return vfs.NewMem() }, manifest.ErrNoManifest, ""},
		"an older marker beside a newer one": {func() vfs.FS {
			return files(t, map[string][]byte{"CURRENT.000001.MANIFEST-000001": nil, "CURRENT.000002.MANIFEST-000002": nil, "MANIFEST-000001": good})
		}, manifest.ErrCorrupt, "MANIFEST-000002"},
		"another file's content": {func() vfs.FS {
			return files(t, map[string][]byte{"CURRENT.000001.MANIFEST-000002": nil, "MANIFEST-000002": good})
		}, manifest.ErrCorrupt, "written as MANIFEST-000001"},
		"empty": {func() vfs.FS {
			return files(t, map[string][]byte{"CURRENT.000001.MANIFEST-000001": nil, "MANIFEST-000001": {}})
		}, manifest.ErrCorrupt, "no header"},
		"strange names": {func() vfs.FS {
			return files(t, map[string][]byte{"CURRENT.1.MANIFEST-000001": nil, "CURRENT.000001.MANIFEST-1": nil, "CURRENT": nil, "MANIFEST-000001": good})
		}, manifest.ErrNoManifest, ""},
	} {
		t.Run(what, func(t *testing.T) {
			_, _, err := manifest.Open(c.change(), dir, manifest.Options{})
			require.ErrorIs(t, err, c.want)
			require.True(t, strings.Contains(err.Error(), c.text), err)
		})
	}
}

func files(t *testing.T, content map[string][]byte) vfs.FS {
	fsys := vfs.NewMem()
	require.NoError(t, fsys.MkdirAll(dir, 0o770))
	for name, b := range content {
		writeAll(t, fsys, dir+"/"+name, b)
	}
	return fsys
}

// The danger: a reader counts a version or table wrong, and a file is deleted under it, or never.
func TestReadersAndEditsSideBySide(t *testing.T) {
	mem := vfs.NewMem()
	require.NoError(t, mem.MkdirAll("/data", 0o770))
	gone := make(chan uint64, 100)
	s, err := manifest.Create(mem, dir, manifest.Options{MaxFileBytes: 500, Obsolete: func(tables []manifest.Obsolete) {
		for _, o := range tables {
			gone <- o.Num
		}
	}})
	require.NoError(t, err)
	done := make(chan struct{})
	stopped := make(chan struct{}, 3)
	for range 3 {
		go func() {
			defer func() { stopped <- struct{}{} }()
			for {
				v := s.Current()
				for _, table := range v.Levels[0] {
					table.Pin()
				}
				tables := v.Levels[0]
				v.Unref()
				for _, table := range tables {
					table.Unpin()
				}
				select {
				case <-done:
					return
				default:
				}
			}
		}()
	}
	for k := uint64(1); k <= 60; k++ {
		require.NoError(t, s.Apply(edit(t, k)))
	}
	close(done)
	for range 3 {
		<-stopped
	}
	require.Equal(t, 1, s.Versions())
	require.Equal(t, []uint64{58, 59, 60}, s.LiveFiles())
	require.Len(t, gone, 57)
	require.NoError(t, s.Close())
}
