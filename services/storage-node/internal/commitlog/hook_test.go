package commitlog

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
)

// hookFS lets a test look at moments that no other file system here shows.
type hookFS struct {
	vfs.FS
	// synced is called once, behind a sync of data that succeeded, before its caller hears of it.
	synced func()
	// wrote is called behind every write; its error is what the writer is told.
	wrote func(name string, off int64, p []byte) error
}

type hookedFile struct {
	vfs.File
	fs   *hookFS
	name string
}

func (h *hookFS) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return hookedFile{f, h, name}, nil
}

func (h *hookFS) Create(name string, perm fs.FileMode) (vfs.File, error) {
	f, err := h.FS.Create(name, perm)
	return h.wrap(name, f, err)
}

func (h *hookFS) OpenReadWrite(name string) (vfs.File, error) {
	f, err := h.FS.OpenReadWrite(name)
	return h.wrap(name, f, err)
}

func (f hookedFile) SyncData() error {
	err := f.File.SyncData()
	if synced := f.fs.synced; synced != nil {
		f.fs.synced = nil
		synced()
	}
	return err
}

func (f hookedFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	if err == nil && f.fs.wrote != nil {
		err = f.fs.wrote(f.name, off, p)
	}
	return n, err
}

func newHooked(t *testing.T) (*hookFS, *crashfs.FS, *Log) {
	t.Helper()
	disk := crashfs.New()
	require.NoError(t, disk.MkdirAll("/data", 0o770))
	require.NoError(t, vfs.SyncDir(disk, "/"))
	h := &hookFS{FS: disk}
	l, _, _ := reopen(t, h, 0, small)
	return h, disk, l
}

func dropUnsynced(disk *crashfs.FS) *crashfs.FS {
	return disk.CrashImage(crashfs.DropUnsynced, rand.New(rand.NewPCG(1, 1)))
}

// Danger: a frame that was written while the sync ran is called durable.
func TestAFrameWrittenDuringASyncIsNotDurable(t *testing.T) {
	h, _, l := newHooked(t)
	first, err := l.Append(1, []byte("before"))
	require.NoError(t, err)
	var second Position
	h.synced = func() {
		second, err = l.Append(1, []byte("during"))
		require.NoError(t, err)
	}
	require.NoError(t, l.SyncTo(first))
	require.Equal(t, first, l.Durable())
	require.NoError(t, l.SyncTo(second))
	require.Equal(t, second, l.Durable())
}

// Danger: the header of a successor is on the disk although its write was reported as failed; frames
// that the old segment takes afterwards are cut off by it.
func TestASegmentTakesNothingOnceASuccessorWasTried(t *testing.T) {
	h, disk, l := newHooked(t)
	large := make([]byte, 5000)
	old, err := l.Append(1, large)
	require.NoError(t, err)
	errDisk := errors.New("input/output error")
	h.wrote = func(string, int64, []byte) error { return errDisk }
	require.ErrorIs(t, l.Reserve(len(large)), errDisk)
	h.wrote = nil
	pos, err := l.Append(1, []byte("small enough for the old one"))
	require.NoError(t, err)
	require.Greater(t, pos.Segment, old.Segment)
	require.NoError(t, l.SyncTo(pos))
	_, got, _ := reopen(t, dropUnsynced(disk), 0, small)
	require.Equal(t, []string{string(large), "small enough for the old one"}, got)
}

// Danger: what a failed write left behind is read as a part of the frames after it.
func TestAFailedWriteSealsTheSegment(t *testing.T) {
	h, disk, l := newHooked(t)
	first, err := l.Append(1, []byte("first"))
	require.NoError(t, err)
	h.wrote = func(string, int64, []byte) error { return vfs.ErrNoSpace }
	_, err = l.Append(1, []byte("reported as failed, but written in full"))
	require.ErrorIs(t, err, vfs.ErrNoSpace)
	require.Equal(t, first, l.Written())
	require.Equal(t, uint64(1), l.Metrics().FailedWrites)
	h.wrote = nil
	second, err := l.Append(1, []byte("second"))
	require.NoError(t, err)
	require.Greater(t, second.Segment, first.Segment)
	require.NoError(t, l.SyncTo(second))
	_, got, _ := reopen(t, dropUnsynced(disk), 0, small)
	require.Equal(t, []string{"first", "second"}, got)
}

// Danger: after a failed sync and a restart the log is read from a page cache that the disk never
// got; the next power cut takes what readers have seen.
func TestStartWritesWhatIsNotProvenOnceMore(t *testing.T) {
	h, _, l := newHooked(t)
	first, err := l.Append(1, []byte("proven by the second frame"))
	require.NoError(t, err)
	require.NoError(t, l.SyncTo(first))
	second, err := l.Append(1, []byte("second"))
	require.NoError(t, err)
	var from, to int64
	h.wrote = func(_ string, off int64, p []byte) error {
		from, to = off, off+int64(len(p))
		return nil
	}
	_, got, _ := reopen(t, h, 0, small)
	require.Len(t, got, 2)
	require.Equal(t, []int64{first.Offset, second.Offset}, []int64{from, to})
}

// Danger: a clean stop is not one after a power cut right behind it.
func TestACloseSurvivesAPowerCut(t *testing.T) {
	_, disk, l := newHooked(t)
	want := appendN(t, l, 0, 5)
	require.NoError(t, l.Close())
	_, got, found := reopen(t, dropUnsynced(disk), 0, small)
	require.Equal(t, want, got)
	require.True(t, found.Clean)
}

// Danger: a number is used twice, and frames of its first use fit into the second.
func TestNumbersAreNeverUsedAgain(t *testing.T) {
	h, disk, l := newHooked(t)
	appendN(t, l, 0, 2)
	writeAll(t, disk, testDir+"/000009.log", make([]byte, small.SegmentBytes))
	l, _, _ = reopen(t, h, 0, small)
	pos, err := l.Append(1, []byte("next"))
	require.NoError(t, err)
	require.EqualValues(t, 10, pos.Segment)
	require.Zero(t, l.Metrics().Recycled, "what was prepared before the crash may be a second name of a file")
}

// Danger: a power cut leaves a spare file that was being renamed under both names; the log takes it for
// two files, and the second use wipes out the first.
func TestAFileUnderTwoNamesIsUsedOnce(t *testing.T) {
	for name, chained := range map[string]bool{"a segment below the floor": true, "a spare": false} {
		for _, prewrite := range []Prewrite{PrewriteNever, PrewriteAlways} {
			t.Run(name+", prewrite "+prewrite.String(), func(t *testing.T) {
				o := small
				o.Prewrite = prewrite
				fsys, l := newLog(t, o)
				large := make([]byte, 5000)
				for number := uint64(1); number <= 3; number++ {
					pos, err := l.Append(1, large)
					require.NoError(t, err)
					require.Equal(t, number, pos.Segment)
				}
				require.NoError(t, fsys.Link(testDir+"/000001.log", testDir+"/000004.log"))
				if !chained {
					require.NoError(t, fsys.Remove(testDir+"/000002.log"))
				}
				l, got, _ := reopen(t, fsys, 3, o)
				require.Equal(t, []string{string(large)}, got)
				require.NoError(t, l.Trim(3))
				want := append(got, appendN(t, l, 0, 12)...)
				require.NotZero(t, l.Metrics().Recycled)
				_, got, _ = reopen(t, fsys, 3, o)
				require.Equal(t, want, got)
			})
		}
	}
}
