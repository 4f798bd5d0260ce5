package engine

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// withTables returns an engine with a few tables in level 0.
func withTables(t *testing.T, o Options) *Engine {
	e := mustOpen(t, o)
	for round := range 4 {
		for i := range 40 {
			put(t, e, testKey(i), strings.Repeat("v", 100+round))
		}
		require.NoError(t, e.Flush(context.Background()))
	}
	return e
}

func TestCheckEndsSoonAfterItsContext(t *testing.T) {
	// An operator who gives up must not leave a scrub behind that reads terabytes.
	e := withTables(t, quietOptions(vfs.NewMem()))
	for _, metadataOnly := range []bool{false, true} {
		for at := range 3 {
			ctx, cancel := context.WithCancel(context.Background())
			files := 0
			_, err := e.Check(ctx, CheckOptions{MetadataOnly: metadataOnly, File: func(string, int64) {
				if files++; files == at+1 {
					cancel()
				}
			}})
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, at+1, files)
		}
	}
	// Also where it waits for its rate.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := e.Check(ctx, CheckOptions{BytesPerSecond: 1})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(began), 10*time.Second)
	over, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = e.Check(over, CheckOptions{File: func(string, int64) { t.Error("a file was read") }})
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, e.Close())
}

func TestCompactEndsSoonAfterItsContext(t *testing.T) {
	// A manual compaction that nobody waits for must not take the next step, nor hang where nobody merges.
	o := quietOptions(vfs.NewMem())
	o.Jobs = jobs.Options{Mode: jobs.ModeNever}
	e := withTables(t, o)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, e.Compact(ctx, nil, nil, nil), context.DeadlineExceeded)
	require.NoError(t, e.Close())

	e = withTables(t, quietOptions(vfs.NewMem()))
	ctx, cancel = context.WithCancel(context.Background())
	steps := 0
	err := e.Compact(ctx, nil, nil, func(CompactProgress) { steps++; cancel() })
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, steps)
	require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
	require.NoError(t, e.Close())
}
