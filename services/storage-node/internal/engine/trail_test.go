package engine

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// A slow write is slow somewhere: in the queue, in the log or in the memtable. A trail that is written
// after its owner was woken would be a data race, and one that skips a stage would blame another.
func TestSubmittedWritesLeaveTheirStages(t *testing.T) {
	for _, sync := range []SyncMode{SyncGroup, SyncNever} {
		t.Run(sync.String(), func(t *testing.T) {
			o := smallOptions(vfs.NewMem())
			o.Sync = sync
			e := mustOpen(t, o)
			manyWriters(t, e)
			require.NoError(t, e.Close())
		})
	}
}

// manyWriters submits, and applies durably beside it, so that groups are mixed.
func manyWriters(t *testing.T, e *Engine) {
	t.Helper()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 50 {
				var b Batch
				b.Set(testKey(w*100+i), rec("v"))
				if w%2 == 0 {
					if err := e.Apply(&b, SyncGroup); err != nil {
						t.Error(err)
					}
					continue
				}
				var trail stages.Trail
				trail.Begin(time.Now())
				b.Trail(&trail)
				p, err := e.Submit(&b)
				if err != nil {
					t.Error(err)
					return
				}
				for _, s := range []stages.Stage{stages.Queue, stages.Log, stages.Memtable} {
					if trail.Passed(s).Times != 1 {
						t.Errorf("stage %s was passed %d times", s, trail.Passed(s).Times)
					}
				}
				if err := p.Wait(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// A write that was refused has been in the queue and nowhere else.
func TestRefusedWriteHasNoStageBehindTheLog(t *testing.T) {
	e := mustOpen(t, smallOptions(vfs.NewMem()))
	put(t, e, testKey(1), "old")
	_, _, seq, err := e.GetLatest(testKey(1), nil)
	require.NoError(t, err)
	put(t, e, testKey(1), "new")
	var trail stages.Trail
	trail.Begin(time.Now())
	var b Batch
	b.SetIfUnchanged(testKey(1), rec("late"), seq)
	b.Trail(&trail)
	_, err = e.Submit(&b)
	require.ErrorIs(t, err, ErrConflict)
	require.EqualValues(t, 1, trail.Passed(stages.Queue).Times)
	require.Zero(t, trail.Passed(stages.Memtable).Times)
	b.Reset()
	before := trail
	b.Set(testKey(2), rec("v"))
	require.NoError(t, e.Apply(&b, SyncDefault))
	require.Equal(t, before, trail, "a batch that is used again is another request's")
	require.NoError(t, e.Close())
}

// Where a read looked says whether a cache is too small or a tree too deep.
func TestReadsSayWhereTheyLooked(t *testing.T) {
	o := quietOptions(vfs.NewMem())
	o.RowCacheBytes = -1
	e := mustOpen(t, o)
	for i := range 10 {
		put(t, e, testKey(i), fmt.Sprint(i))
	}
	look := func(i int) stages.Lookups {
		var trail stages.Trail
		_, _, err := e.GetTrail(testKey(i), nil, &trail)
		require.NoError(t, err)
		return trail.Lookups()
	}
	require.Equal(t, stages.Lookups{Memtables: 1}, look(3))
	require.NoError(t, e.Flush(t.Context()))
	require.Equal(t, stages.Lookups{Tables: 1}, look(3))
	require.Equal(t, stages.Lookups{}, look(3000), "beyond the bounds of all tables")
	var trail stages.Trail
	_, _, _, err := e.GetLatestTrail(testKey(4), nil, &trail)
	require.NoError(t, err)
	require.Equal(t, stages.Lookups{Tables: 1}, trail.Lookups())
	require.NoError(t, e.Close())

	o = quietOptions(vfs.NewMem())
	o.NoRowAdmission = true
	e = mustOpen(t, o)
	put(t, e, testKey(1), "v")
	look(1)
	require.Equal(t, stages.Lookups{Rows: 1}, look(1))
	require.NoError(t, e.Close())
}

// A trail costs nobody anything who has none, and its owner no garbage.
func TestTrailsAllocateNothing(t *testing.T) {
	e := mustOpen(t, quietOptions(vfs.NewMem()))
	put(t, e, testKey(1), "v")
	var trail stages.Trail
	trail.Begin(time.Now())
	dst := make([]byte, 0, 256)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, _, err := e.GetTrail(testKey1, dst, &trail); err != nil {
			t.Error(err)
		}
	}))
	require.NoError(t, e.Close())
}

var testKey1 = testKey(1)
