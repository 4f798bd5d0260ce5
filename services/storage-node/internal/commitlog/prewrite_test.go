package commitlog

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/libs/vfs/errorfs"
)

func appendSynced(t *testing.T, l *Log, n int) (last Position) {
	t.Helper()
	for range n {
		pos, err := l.Append(1, []byte("frame"))
		require.NoError(t, err)
		require.NoError(t, l.SyncTo(pos))
		last = pos
	}
	return last
}

// Danger: zeros that are written ahead overwrite frames, or the log is left half-way between two
// segments.
func TestALogThatIsSyncedOftenMovesToAPrewrittenSegment(t *testing.T) {
	disk := crashfs.New()
	require.NoError(t, disk.MkdirAll("/data", 0o770))
	require.NoError(t, vfs.SyncDir(disk, "/"))
	o := Options{SegmentBytes: 1 << 20, Recycle: 2}
	l, _, _ := reopen(t, disk, 0, o)
	n := 0
	require.Eventually(t, func() bool {
		last := appendSynced(t, l, prewriteAfterSyncs)
		n += prewriteAfterSyncs
		return last.Segment > 1
	}, 20*time.Second, time.Millisecond)
	require.EqualValues(t, 1, l.Metrics().Prewritten)
	require.EqualValues(t, 1, l.Metrics().Rotations, "long before the first segment was full")
	for _, mode := range crashfs.Modes() {
		_, got, _ := reopen(t, disk.CrashImage(mode, rand.New(rand.NewPCG(1, uint64(mode)))), 0, o)
		require.Len(t, got, n)
	}
	require.NoError(t, l.Close())
}

// Danger: a writer waits for the zeros, or takes a segment into which zeros are still written.
func TestPrewritingEndsWhenTheSegmentIsNeeded(t *testing.T) {
	forever := make(chan time.Time)
	o := Options{SegmentBytes: 1 << 20, Recycle: 2, After: func(time.Duration) <-chan time.Time { return forever }}
	_, l := newLog(t, o)
	appendSynced(t, l, prewriteAfterSyncs)
	require.Eventually(t, func() bool {
		appendSynced(t, l, prewriteAfterSyncs)
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.prepared != nil && l.prepared.writing != nil
	}, 20*time.Second, time.Millisecond)
	large, err := l.Append(1, make([]byte, 1<<20))
	require.NoError(t, err)
	require.EqualValues(t, 2, large.Segment)
	require.Zero(t, l.Metrics().Prewritten)
	require.NoError(t, l.Close())
}

// Danger: a full disk ends the log because zeros could not be written; or a disk that fails is trusted.
func TestFailedPrewritingIsReportedOrHarmless(t *testing.T) {
	for name, c := range map[string]struct {
		kind errorfs.Kind
		err  error
		want error
	}{
		"full":  {errorfs.Writes, vfs.ErrNoSpace, nil},
		"write": {errorfs.Writes, errors.New("input/output error"), nil},
		"sync":  {errorfs.Syncs, errors.New("input/output error"), ErrPoisoned},
	} {
		t.Run(name, func(t *testing.T) {
			j := errorfs.None()
			fsys := errorfs.Wrap(vfs.NewMem(), j)
			require.NoError(t, fsys.MkdirAll("/data", 0o770))
			l, _, _ := reopen(t, fsys, 0, Options{SegmentBytes: 1 << 20, OnDemand: true, Prewrite: PrewriteNever})
			s, err := l.makeSegment(9, spare{})
			require.NoError(t, err)
			j.FailAll(c.kind, c.err)
			err = l.writeBlocks(s, nil)
			j.FailAll(c.kind, nil)
			switch {
			case c.want != nil:
				require.ErrorIs(t, err, c.want)
			case errors.Is(c.err, vfs.ErrNoSpace):
				require.NoError(t, err)
			default:
				require.ErrorIs(t, err, c.err)
			}
			require.False(t, s.prewritten)
			l.discard(s)
			_ = l.Close()
		})
	}
}
