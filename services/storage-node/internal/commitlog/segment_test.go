package commitlog

import (
	"errors"
	"path"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
)

// readAlone reads every segment of the log by itself.
func readAlone(t *testing.T, fsys vfs.FS) (got []string, infos []SegmentInfo) {
	t.Helper()
	numbers, err := listSegments(fsys, testDir)
	require.NoError(t, err)
	for _, n := range numbers {
		begun := SegmentInfo{}
		info, err := ReadSegment(fsys, path.Join(testDir, FileName(n)), func(i SegmentInfo) error { begun = i; return nil }, collect(&got))
		require.NoError(t, err)
		require.Equal(t, begun.Number, info.Number)
		if info.Number != 0 {
			infos = append(infos, info)
		}
	}
	return got, infos
}

// Danger: a tool shows other frames than recovery replays: those of a recycled file's life before, or
// not those behind a rotation.
func TestSegmentsReadAloneShowWhatReplayShows(t *testing.T) {
	fsys, l := newLog(t, small)
	var floor uint64
	for i := range 60 {
		pos, err := l.Append(1, []byte(payload(i)))
		require.NoError(t, err)
		if i == 30 {
			require.NoError(t, l.Trim(pos.Segment))
			floor = pos.Segment
		}
	}
	require.NoError(t, l.Close())
	var want []string
	found, err := Replay(fsys, testDir, floor, collect(&want), nil)
	require.NoError(t, err)
	got, infos := readAlone(t, fsys)
	require.Equal(t, want, got)
	require.Len(t, infos, len(found.Segments))
	for i, s := range found.Segments {
		require.Equal(t, s.Number, infos[i].Number)
		require.Equal(t, s.Bytes, infos[i].End)
		require.Equal(t, i < len(infos)-1, infos[i].Sealed)
	}
	require.True(t, infos[len(infos)-1].Closed)
}

// Danger: damage is named in a file of another name, or hides what stands before it.
func TestDamageOfASegmentReadAloneIsNamed(t *testing.T) {
	fsys, l := newLog(t, small)
	want := appendN(t, l, 0, 20)
	require.NoError(t, l.Close())
	name := path.Join(testDir, FileName(1))
	f, err := fsys.OpenReadWrite(name)
	require.NoError(t, err)
	info, err := ReadSegment(fsys, name, func(SegmentInfo) error { return nil }, func(Frame) error { return nil })
	require.NoError(t, err)
	require.True(t, info.Sealed)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, info.End-1)
	require.NoError(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, info.End-1)
	require.NoError(t, err)
	require.NoError(t, f.Close())

	var got []string
	_, err = ReadSegment(fsys, name, func(SegmentInfo) error { return nil }, collect(&got))
	var bad *CorruptionError
	require.True(t, errors.As(err, &bad), "%v", err)
	require.Equal(t, name, bad.File)
	require.NotEmpty(t, got)
	require.Equal(t, want[:len(got)], got)

	// A copy under any name is what its header says.
	_, err = vfs.CopyFile(fsys, name, "/data/copy")
	require.NoError(t, err)
	info, err = ReadSegment(fsys, "/data/copy", func(i SegmentInfo) error { require.EqualValues(t, 1, i.Number); return nil }, func(Frame) error { return nil })
	require.NoError(t, err, "by itself, its end is a torn tail")
	require.Positive(t, info.TornBytes)
}
