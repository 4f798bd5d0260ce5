package commitlog

import (
	"fmt"
	"strings"
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
func payload(i int) string { return fmt.Sprintf("%d:", i) + strings.Repeat("x", i*37%5000) }

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
