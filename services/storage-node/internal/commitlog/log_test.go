package commitlog

import (
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
)

const testDir = "/data/log"

// small has segments of two pages, and prepares them when they are needed.
var small = Options{SegmentBytes: 8 << 10, Recycle: 2, OnDemand: true}

// reopen replays and starts a log; it returns what was replayed.
func reopen(t testing.TB, fsys vfs.FS, floor uint64, o Options) (*Log, []string, Recovered) {
	t.Helper()
	l, err := Open(fsys, testDir, o)
	require.NoError(t, err)
	var got []string
	found, err := l.Replay(floor, collect(&got), nil)
	require.NoError(t, err)
	require.NoError(t, l.Start())
	return l, got, found
}

func collect(got *[]string) func(Frame) error {
	return func(f Frame) error {
		*got = append(*got, string(f.Payload))
		return nil
	}
}

func newLog(t testing.TB, o Options) (*vfs.MemFS, *Log) {
	t.Helper()
	fsys := vfs.NewMem()
	require.NoError(t, fsys.MkdirAll("/data", 0o770))
	l, got, found := reopen(t, fsys, 0, o)
	require.Empty(t, got)
	require.Zero(t, found.End)
	return fsys, l
}

// payload is the i-th one: of different lengths, some larger than a page.
func payload(i int) string { return fmt.Sprintf("%d:", i) + strings.Repeat("x", i*613%5000) }

func appendN(t testing.TB, l *Log, from, to int) (want []string) {
	t.Helper()
	for i := from; i < to; i++ {
		_, err := l.Append(1, []byte(payload(i)))
		require.NoError(t, err)
		want = append(want, payload(i))
	}
	return want
}

// Danger: frames lost or reordered at a rotation or at a restart.
func TestFramesAreReplayedInOrderAcrossSegmentsAndRestarts(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprintf("clean=%v", clean), func(t *testing.T) {
			fsys, l := newLog(t, small)
			var want []string
			for round := range 5 {
				want = append(want, appendN(t, l, round*20, round*20+20)...)
				if clean {
					require.NoError(t, l.Close())
					require.NoError(t, l.Close())
				}
				again, got, found := reopen(t, fsys, 0, small)
				require.Equal(t, want, got)
				require.Equal(t, clean, found.Clean)
				require.Zero(t, found.TornBytes)
				l = again
			}
		})
	}
}

// Danger: a segment that is written again replays what it held before, or a trimmed log does not open.
func TestRecycledSegmentsReplayOnlyTheirOwnFrames(t *testing.T) {
	fsys, l := newLog(t, small)
	recycled := uint64(0)
	for i := range 300 {
		pos, err := l.Append(1, []byte(payload(i)))
		require.NoError(t, err)
		require.NoError(t, l.Trim(pos.Segment))
		if i%17 == 0 { // kill
			m := l.Metrics()
			recycled += m.Recycled
			require.LessOrEqual(t, m.SpareSegments, uint64(small.Recycle))
			var got []string
			l, got, _ = reopen(t, fsys, pos.Segment, small)
			require.Equal(t, payload(i), got[len(got)-1])
			for k, p := range got {
				require.Equal(t, payload(i-len(got)+1+k), p)
			}
		}
	}
	require.Greater(t, recycled, uint64(10))
	names, err := fsys.List(testDir)
	require.NoError(t, err)
	require.LessOrEqual(t, len(names), small.Recycle+3, "files must not pile up")
}

// Danger: a frame larger than a segment is refused or cut.
func TestFramesLargerThanASegment(t *testing.T) {
	fsys, l := newLog(t, small)
	large := strings.Repeat("L", 100<<10)
	for _, p := range []string{"a", large, "b"} {
		_, err := l.Append(2, []byte(p))
		require.NoError(t, err)
	}
	_, err := l.Append(1, make([]byte, MaxPayloadBytes+1))
	require.ErrorIs(t, err, ErrTooLarge)
	for _, typ := range []uint8{0, MaxOwnerType + 1, typeHeader} {
		_, err = l.Append(typ, nil)
		require.Error(t, err)
	}
	require.NoError(t, l.Close())
	_, got, _ := reopen(t, fsys, 0, small)
	require.Equal(t, []string{"a", large, "b"}, got)
}

// Danger: a frame is acknowledged as durable that is not, because positions are compared wrongly.
func TestSyncToCoversThePositionAndNoMore(t *testing.T) {
	_, l := newLog(t, small)
	first, err := l.Append(1, []byte("first"))
	require.NoError(t, err)
	require.Negative(t, l.Durable().Compare(first))
	require.NoError(t, l.SyncTo(first))
	require.Equal(t, first, l.Durable())
	syncs := l.Metrics().Syncs
	require.NoError(t, l.SyncTo(first))
	require.Equal(t, syncs, l.Metrics().Syncs, "what is durable needs no sync")
	second, err := l.Append(1, []byte("second"))
	require.NoError(t, err)
	require.Equal(t, first, l.Durable())
	end, err := l.Sync()
	require.NoError(t, err)
	require.Equal(t, second, end)
	require.Error(t, l.SyncTo(Position{Segment: second.Segment, Offset: second.Offset + 1}))
}

// Danger: a follower's segments are written again under it.
func TestPinsKeepSegments(t *testing.T) {
	_, l := newLog(t, small)
	appendN(t, l, 0, 60)
	segments := l.Segments()
	require.Greater(t, len(segments), 4)
	release, err := l.Pin(segments[2].Number)
	require.NoError(t, err)
	twice, err := l.Pin(segments[2].Number)
	require.NoError(t, err)
	last := segments[len(segments)-1].Number
	require.NoError(t, l.Trim(last+100))
	require.Equal(t, segments[2:], l.Segments())
	release()
	release()
	require.NoError(t, l.Trim(last))
	require.Equal(t, segments[2:], l.Segments())
	twice()
	require.NoError(t, l.Trim(last))
	require.Equal(t, segments[len(segments)-1:], l.Segments())
	_, err = l.Pin(segments[2].Number)
	require.ErrorIs(t, err, ErrTrimmed)
	_, err = l.NewReader(Position{Segment: segments[2].Number})
	require.ErrorIs(t, err, ErrTrimmed)
}

// Danger: a follower sees frames twice, never, or before they are durable.
func TestReaderFollowsTheDurableLog(t *testing.T) {
	fsys, l := newLog(t, small)
	want := appendN(t, l, 0, 7)
	l, _, _ = reopen(t, fsys, 0, small) // the old head was never closed
	r, err := l.NewReader(Position{Segment: 1})
	require.NoError(t, err)
	var got []string
	var ends []Position
	read := func(limit Position) {
		for {
			f, err := r.Next(limit)
			if err == io.EOF {
				return
			}
			require.NoError(t, err)
			require.LessOrEqual(t, f.End.Compare(limit), 0)
			got = append(got, string(f.Payload))
			ends = append(ends, f.End)
		}
	}
	read(Position{})
	require.Empty(t, got)
	read(l.Durable())
	require.Equal(t, want, got)
	for i := 7; i < 60; i++ {
		want = append(want, appendN(t, l, i, i+1)...)
		if i%5 == 0 {
			_, err := l.Sync()
			require.NoError(t, err)
			read(l.Durable())
			require.Equal(t, want, got)
			require.NoError(t, l.Trim(l.Segment()))
		}
	}
	read(Position{Segment: 1 << 31})
	require.Equal(t, want, got, "a limit beyond the log is the log's end")
	require.NoError(t, l.Trim(l.Segment()))
	oldest := l.Segments()[0].Number
	require.Equal(t, r.number, oldest, "the pin moves on")

	for i, end := range ends[:len(ends)-1] {
		if end.Segment < oldest {
			continue
		}
		middle, err := l.NewReader(end)
		require.NoError(t, err)
		f, err := middle.Next(l.Written())
		require.NoError(t, err)
		require.Equal(t, want[i+1], string(f.Payload))
		require.NoError(t, middle.Close())
		require.NoError(t, middle.Close())
	}
	require.NoError(t, r.Close())
	_, err = r.Next(l.Written())
	require.ErrorIs(t, err, ErrClosed)
	require.Zero(t, l.Metrics().Pins)
}

// Danger: a limit in the middle of the log makes a follower read what a recycled file held before.
func TestReaderStopsAtTheEndOfASealedSegment(t *testing.T) {
	_, l := newLog(t, small)
	want := appendN(t, l, 0, 60)
	var got []string
	for i, s := range l.Segments() {
		r, err := l.NewReader(Position{Segment: s.Number})
		require.NoError(t, err)
		for {
			f, err := r.Next(Position{Segment: s.Number, Offset: 1 << 62})
			if err == io.EOF {
				break
			}
			require.NoError(t, err)
			got = append(got, string(f.Payload))
		}
		require.NoError(t, r.Close())
		require.Equal(t, want[:len(got)], got, "segment %d", i)
	}
	require.Equal(t, want, got)
}

// Danger: syncs beside appends and rotations call frames durable that are not in the file; the race
// detector sees shared state without a lock.
func TestAppendsSyncsTrimsAndFollowersTogether(t *testing.T) {
	for _, onDemand := range []bool{false, true} {
		o := small
		o.OnDemand = onDemand
		fsys, l := newLog(t, o)
		const count = 400
		var wg sync.WaitGroup
		positions := make(chan Position, count)
		for range 3 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for pos := range positions {
					if err := l.SyncTo(pos); err != nil || l.Durable().Compare(pos) < 0 {
						t.Errorf("sync to %v: %v", pos, err)
					}
				}
			}()
		}
		wg.Add(1)
		started := make(chan Position, 1)
		go func() {
			defer wg.Done()
			from := <-started
			r, err := l.NewReader(Position{Segment: from.Segment})
			if err != nil {
				t.Error(err)
				return
			}
			for i := 0; i < count; {
				f, err := r.Next(l.Durable())
				switch {
				case err == io.EOF:
					runtime.Gosched()
				case err != nil || string(f.Payload) != payload(i):
					t.Errorf("follow %d: %v", i, err)
					return
				default:
					i++
				}
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}()
		for i := range count {
			pos, err := l.Append(1, []byte(payload(i)))
			require.NoError(t, err)
			if i == 0 {
				started <- pos
			}
			positions <- pos
			if i%20 == 19 && l.Metrics().Pins > 0 {
				require.NoError(t, l.Trim(pos.Segment))
			}
		}
		close(positions)
		wg.Wait()
		require.NoError(t, l.Close())
		require.Positive(t, l.Metrics().Rotations)
		_, err := Replay(fsys, testDir, l.Segments()[0].Number, func(Frame) error { return nil }, nil)
		require.NoError(t, err)
	}
}

// Danger: the real file system behaves differently from the one in memory.
func TestOnTheRealFileSystem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	var want []string
	for round := range 3 {
		l, err := Open(vfs.OS, dir, Options{SegmentBytes: 64 << 10, Recycle: 2})
		require.NoError(t, err)
		var got []string
		_, err = l.Replay(0, collect(&got), nil)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.NoError(t, l.Start())
		want = append(want, appendN(t, l, round*50, round*50+50)...)
		require.NoError(t, l.Close())
	}
}

// Danger: a call out of order works by accident, on a log that was never read.
func TestCallsOutOfOrderAreRefused(t *testing.T) {
	fsys := vfs.NewMem()
	require.NoError(t, fsys.MkdirAll("/data", 0o770))
	l, err := Open(fsys, testDir, small)
	require.NoError(t, err)
	require.ErrorIs(t, l.Start(), ErrClosed)
	require.ErrorIs(t, l.Reserve(1), ErrClosed)
	_, err = l.Append(1, nil)
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, l.Trim(1), ErrClosed)
	require.EqualValues(t, 1, l.Segment())
	_, err = l.Replay(0, nil, nil)
	require.NoError(t, err)
	require.NoError(t, l.Start())
	require.ErrorIs(t, l.Start(), ErrClosed)
	appendN(t, l, 0, 1)
	require.NoError(t, l.Close())
	_, err = l.Append(1, nil)
	require.ErrorIs(t, err, ErrClosed)
	_, err = l.Sync()
	require.ErrorIs(t, err, ErrClosed)
}

// Danger: garbage per append keeps the collector busy on the write path.
func TestAppendDoesNotAllocate(t *testing.T) {
	_, l := newLog(t, Options{OnDemand: true})
	p := []byte(strings.Repeat("v", 1000))
	appendN(t, l, 0, 200)
	require.Zero(t, int(testing.AllocsPerRun(1000, func() {
		_, _ = l.Append(1, p)
	})))
}

func BenchmarkAppend(b *testing.B) {
	for _, sync := range []bool{false, true} {
		b.Run(fmt.Sprintf("sync=%v", sync), func(b *testing.B) {
			l, err := Open(vfs.OS, filepath.Join(b.TempDir(), "log"), Options{Recycle: 2})
			require.NoError(b, err)
			_, err = l.Replay(0, nil, nil)
			require.NoError(b, err)
			require.NoError(b, l.Start())
			p := []byte(strings.Repeat("v", 1024))
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				pos, err := l.Append(1, p)
				if err == nil && sync {
					err = l.SyncTo(pos)
				}
				if err == nil && pos.Segment > 2 {
					err = l.Trim(pos.Segment)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			require.NoError(b, l.Close())
		})
	}
}
