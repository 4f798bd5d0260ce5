package measure

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestQuantilesAreThoseOfTheDurations(t *testing.T) {
	// A histogram that rounds a tail away hides what it is there for.
	l, other := NewLatency(), NewLatency()
	for i := 1; i <= 10_000; i++ {
		if d := time.Duration(i) * time.Microsecond; i%2 == 0 {
			l.Record(d)
		} else {
			other.Record(d)
		}
	}
	l.Merge(other)
	require.EqualValues(t, 10_000, l.Count())
	for percent, want := range map[float64]time.Duration{50: 5 * time.Millisecond, 99: 9900 * time.Microsecond, 99.9: 9990 * time.Microsecond} {
		require.InEpsilon(t, want, l.Quantile(percent), 0.002, "%v %%", percent)
	}
	require.InEpsilon(t, 10*time.Millisecond, l.Max(), 0.002)
	l.Record(time.Hour)
	require.InEpsilon(t, time.Minute, l.Max(), 0.002, "what is beyond the range counts as its end")
	l.Record(-time.Second)
	require.EqualValues(t, 10_002, l.Count())
}

func TestRecordingAllocatesNothing(t *testing.T) {
	// Otherwise every engine would seem to allocate.
	l := NewLatency()
	require.Zero(t, testing.AllocsPerRun(1000, func() { l.Record(time.Millisecond) }))
}

func TestWrittenBytesCountSyncedPages(t *testing.T) {
	// The column of bytes written is worth nothing if it counts the same page once for ten syncs, or
	// bytes instead of pages.
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	before := Used()
	for range 10 {
		_, err = f.Write(make([]byte, 100))
		require.NoError(t, err)
		require.NoError(t, f.Sync())
	}
	used := Used().Since(before)
	require.NoError(t, f.Close())
	require.GreaterOrEqual(t, used.WrittenBytes, uint64(10*4096))
}

func TestDiskBytesAreThoseOfBlocks(t *testing.T) {
	// A preallocated file takes space before it has a length; a sparse one has a length and takes none.
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "below"), 0o777))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "below", "full"), make([]byte, 100_000), 0o666))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "sparse"), nil, 0o666))
	require.NoError(t, os.Truncate(filepath.Join(dir, "sparse"), 1<<30))
	n, err := DiskBytes(dir)
	require.NoError(t, err)
	require.InDelta(t, 100_000, n, 10_000)
}
