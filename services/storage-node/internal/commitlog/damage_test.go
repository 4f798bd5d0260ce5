package commitlog

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/record"
	"github.com/pairdb/pairdb/libs/vfs"
)

var update = flag.Bool("update", false, "rewrite golden files")

func readAll(t testing.TB, fsys vfs.FS, name string) []byte {
	t.Helper()
	f, err := fsys.Open(name)
	require.NoError(t, err)
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return b
}

func writeAll(t testing.TB, fsys vfs.FS, name string, b []byte) {
	t.Helper()
	f, err := fsys.Create(name, 0o660)
	require.NoError(t, err)
	_, err = f.Write(b)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// twoSegments makes a log of two small segments, whose every frame was synced, closed or not. It
// returns the payloads.
func twoSegments(t testing.TB, closed bool) (*vfs.MemFS, []string) {
	t.Helper()
	fsys, l := newLog(t, Options{SegmentBytes: 4 << 10, OnDemand: true})
	var want []string
	for i := range 6 {
		p := fmt.Sprintf("payload %d ", i) + strings.Repeat(".", 20)
		if i == 2 {
			p += strings.Repeat(" ", 3800) // to the next segment, but for its header
		}
		if i > 2 {
			p = p[:12]
		}
		pos, err := l.Append(uint8(1+i%2), []byte(p))
		require.NoError(t, err)
		require.NoError(t, l.SyncTo(pos))
		want = append(want, p)
	}
	require.Len(t, l.Segments(), 2)
	if closed {
		require.NoError(t, l.Close())
	}
	return fsys, want
}

// Danger: a changed layout makes every log of an older release unreadable.
func TestLogBytesAreThoseOfTheFormat(t *testing.T) {
	fsys, want := twoSegments(t, true)
	var got strings.Builder
	for _, name := range []string{"000001.log", "000002.log"} {
		b := readAll(t, fsys, path.Join(testDir, name))
		fmt.Fprintf(&got, "%s %d bytes\n%s", name, len(b), hex.Dump(bytes.TrimRight(b, "\x00")))
	}
	golden := filepath.Join("testdata", "log.hex")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o770))
		require.NoError(t, os.WriteFile(golden, []byte(got.String()), 0o660))
	}
	pinned, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(pinned), got.String())

	// What an older release wrote is read: the golden bytes, not those of today's writer.
	old := vfs.NewMem()
	require.NoError(t, old.MkdirAll(testDir, 0o770))
	restoreGolden(t, old, string(pinned))
	var payloads []string
	found, err := Replay(old, testDir, 0, collect(&payloads), nil)
	require.NoError(t, err)
	require.Equal(t, want, payloads)
	require.True(t, found.Clean)
}

// restoreGolden writes the files of a golden text.
func restoreGolden(t *testing.T, fsys vfs.FS, text string) {
	t.Helper()
	files := map[string][]byte{}
	name := ""
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); strings.HasSuffix(fields[0], ".log") {
			name = fields[0]
			continue
		}
		if len(line) < 60 {
			continue // the length at the end of a dump
		}
		b, err := hex.DecodeString(strings.ReplaceAll(line[10:58], " ", ""))
		require.NoError(t, err)
		files[name] = append(files[name], b...)
	}
	require.NotEmpty(t, files)
	for name, b := range files {
		writeAll(t, fsys, path.Join(testDir, name), append(b, make([]byte, 4096)...))
	}
}

// Danger: a flipped bit is served as data, or makes acknowledged writes vanish silently.
func TestEveryFlippedByteIsDetected(t *testing.T) {
	for _, closed := range []bool{true, false} {
		t.Run(fmt.Sprintf("closed=%v", closed), func(t *testing.T) {
			fsys, want := twoSegments(t, closed)
			var found Recovered
			var ends []Position
			found, err := Replay(fsys, testDir, 0, func(f Frame) error { ends = append(ends, f.Start); return nil }, nil)
			require.NoError(t, err)
			flipped, detected, tail, unread := 0, 0, 0, 0
			for _, s := range found.Segments {
				name := path.Join(testDir, FileName(s.Number))
				whole := readAll(t, fsys, name)
				for i := range whole {
					b := bytes.Clone(whole)
					b[i] ^= byte(1 << (i % 8))
					writeAll(t, fsys, name, b)
					var got []string
					_, err := Replay(fsys, testDir, 0, collect(&got), nil)
					flipped++
					switch {
					case err != nil:
						require.ErrorIs(t, err, ErrCorrupt)
						var at *CorruptionError
						require.ErrorAs(t, err, &at)
						require.Equal(t, name, at.File)
						require.LessOrEqual(t, at.Offset, int64(i))
						detected++
					case int64(i) >= s.Bytes:
						require.Equal(t, want, got, "byte %d is behind the end", i)
						unread++
					case closed:
						// Only the close frame is not proven, and nothing depends on it.
						require.GreaterOrEqual(t, int64(i), s.Bytes-record.HeaderBytes)
						require.Equal(t, want, got)
						tail++
					default:
						require.Equal(t, want[:len(want)-1], got, "byte %d is not in the last, unproven group", i)
						require.GreaterOrEqual(t, Position{s.Number, int64(i)}.Compare(ends[len(ends)-1]), 0)
						tail++
					}
				}
				writeAll(t, fsys, name, whole)
			}
			t.Logf("%d bytes flipped: %d detected, %d in the unproven tail, %d behind the end", flipped, detected, tail, unread)
		})
	}
}

// Danger: a missing or shortened file is taken for the end of the log.
func TestMissingFilesAreDamage(t *testing.T) {
	for _, c := range []struct {
		name  string
		floor uint64
		harm  func(t *testing.T, fsys vfs.FS)
		want  error
		what  string
	}{
		{name: "nothing", harm: func(*testing.T, vfs.FS) {}},
		{name: "all", harm: func(t *testing.T, fsys vfs.FS) { require.NoError(t, fsys.RemoveAll(testDir)) }},
		{name: "all, with a floor", floor: 2, harm: func(t *testing.T, fsys vfs.FS) { require.NoError(t, fsys.RemoveAll(testDir)) },
			want: ErrCorrupt, what: "000002.log: offset 0: the log must begin with this segment"},
		{name: "first", harm: func(t *testing.T, fsys vfs.FS) { require.NoError(t, fsys.Remove(testDir+"/000001.log")) },
			want: ErrCorrupt, what: "000001.log: offset 0: the file is missing; 000002.log continues it"},
		{name: "first, below the floor", floor: 2, harm: func(t *testing.T, fsys vfs.FS) { require.NoError(t, fsys.Remove(testDir+"/000001.log")) }},
		{name: "floor above the log", floor: 3, harm: func(*testing.T, vfs.FS) {}, want: ErrCorrupt, what: "000003.log"},
		{name: "first, shortened", harm: func(t *testing.T, fsys vfs.FS) {
			b := readAll(t, fsys, testDir+"/000001.log")
			writeAll(t, fsys, testDir+"/000001.log", b[:100])
		}, want: ErrCorrupt, what: "000001.log: offset 100: the file ends here"},
		{name: "first, exchanged", harm: func(t *testing.T, fsys vfs.FS) {
			writeAll(t, fsys, testDir+"/000001.log", readAll(t, fsys, testDir+"/000002.log"))
		}, want: ErrCorrupt, what: "000001.log: offset 0"},
		{name: "newer version", harm: func(t *testing.T, fsys vfs.FS) {
			p := []byte(headerMagic + "\x02\x00\x00\x00 and whatever it likes")
			writeAll(t, fsys, testDir+"/000003.log", record.Append(nil, record.Header{Epoch: 3, Type: typeHeader}, p))
		}, want: ErrUnknownFormat, what: "version 2, 1 is known: use a newer release"},
		{name: "foreign names", harm: func(t *testing.T, fsys vfs.FS) {
			for _, name := range []string{"3.log", "000003.log.bak", "x.log", "000000.log", "-00003.log"} {
				writeAll(t, fsys, path.Join(testDir, name), []byte("not ours"))
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys, _ := twoSegments(t, true)
			c.harm(t, fsys)
			_, err := Replay(fsys, testDir, c.floor, func(Frame) error { return nil }, nil)
			require.ErrorIs(t, err, c.want)
			if c.want != nil {
				require.ErrorContains(t, err, c.what)
			}
		})
	}
}

// Danger: half a frame behind a failed write is glued to the next acknowledged one.
func TestATornTailIsCutAndCounted(t *testing.T) {
	fsys, want := twoSegments(t, false)
	name := testDir + "/000002.log"
	b := readAll(t, fsys, name)
	end := len(bytes.TrimRight(b, "\x00"))
	clear(b[end-3:])
	writeAll(t, fsys, name, b)
	l, got, found := reopen(t, fsys, 0, small)
	require.Equal(t, want[:len(want)-1], got)
	require.EqualValues(t, record.HeaderBytes+len(want[len(want)-1]), found.TornBytes)
	require.False(t, found.Clean)
	pos, err := l.Append(1, []byte("after the cut"))
	require.NoError(t, err)
	require.EqualValues(t, 3, pos.Segment, "never behind a cut")
	_, got, found = reopen(t, fsys, 0, small)
	require.Equal(t, append(want[:len(want)-1:len(want)-1], "after the cut"), got)
	require.Zero(t, found.TornBytes)
}

// Danger: an error of the visitor, or no progress to be seen, during a long replay.
func TestReplayTellsProgressAndStopsAtTheVisitorsError(t *testing.T) {
	fsys, l := newLog(t, Options{SegmentBytes: 2 << 20, OnDemand: true})
	for range 60 {
		_, err := l.Append(1, make([]byte, 100<<10))
		require.NoError(t, err)
	}
	var steps []int64
	found, err := Replay(fsys, testDir, 0, func(Frame) error { return nil }, func(done, total int64) {
		require.LessOrEqual(t, done, total)
		steps = append(steps, done)
	})
	require.NoError(t, err)
	require.EqualValues(t, 60, found.Frames)
	require.EqualValues(t, 60*100<<10, found.Bytes)
	require.Greater(t, len(steps), 3)
	require.IsIncreasing(t, steps)
	stop := errors.New("stop")
	_, err = Replay(fsys, testDir, 0, func(Frame) error { return stop }, nil)
	require.ErrorIs(t, err, stop)
}

func FuzzReplay(f *testing.F) {
	// Small seeds: the fuzzer spends its time on shrinking large ones.
	frame := func(b []byte, epoch uint32, typ uint8, p string) []byte {
		return record.Append(b, record.Header{Epoch: epoch, Synced: uint64(len(b)), Type: typ, Position: uint64(len(b))}, []byte(p))
	}
	first := frame(header{number: 1}.appendFrame(nil), 1, 1, "one")
	first = frame(first, 1, 2, "two")
	second := frame(header{number: 2, prev: 1, prevLength: int64(len(first))}.appendFrame(nil), 2, 1, "three")
	second = frame(second, 2, typeClose, "")
	f.Add(first, second)
	f.Add(first, second[:len(second)-3])
	f.Add(first[:80], second)
	f.Add(first, []byte{})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		fsys := vfs.NewMem()
		require.NoError(t, fsys.MkdirAll(testDir, 0o770))
		writeAll(t, fsys, testDir+"/000001.log", first)
		writeAll(t, fsys, testDir+"/000002.log", second)
		var got []string
		found, err := Replay(fsys, testDir, 0, collect(&got), nil)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnknownFormat) {
				t.Fatal(err)
			}
			return
		}
		// What is accepted once is accepted for ever, and goes on.
		l, again, _ := reopen(t, fsys, 0, small)
		require.Equal(t, got, again)
		_, err = l.Append(1, []byte("more"))
		require.NoError(t, err)
		_, again, next := reopen(t, fsys, 0, small)
		require.Equal(t, append(got, "more"), again)
		require.Greater(t, next.End.Segment, found.End.Segment)
	})
}
