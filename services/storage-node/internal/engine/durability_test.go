package engine

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs/crashfs"
)

func TestPowerCutAtEveryOperationOfOneStep(t *testing.T) {
	// The order of two operations matters for a moment only, which a sample of operations may miss: the
	// log goes after the edit that replaces it, names are durable before something counts on them.
	steps := map[string]func(w *workload){
		"flush": func(w *workload) { require.NoError(w.c.t, w.e.Flush(context.Background())) },
		"compaction": func(w *workload) {
			require.NoError(w.c.t, w.e.Compact(context.Background(), nil, nil, nil))
		},
		"checkpoint": (*workload).checkpoint,
	}
	for name, step := range steps {
		t.Run(name, func(t *testing.T) {
			c := &crashTest{t: t, disk: crashfs.New(), rng: rand.New(rand.NewPCG(3, 8)), every: 1, checkpoints: map[string]int{}}
			require.NoError(t, c.disk.MkdirAll("checkpoints", 0o770))
			w := &workload{c: c, rng: rand.New(rand.NewPCG(3, 7))}
			w.opts = func() Options {
				o := crashOptions(c.disk, w.rng)
				o.NoAutoCompaction, o.MemtableBytes = true, 256<<10
				o.LogRecycled = -1 // what is trimmed is gone at once
				return o
			}
			w.open()
			for range 2 {
				require.NoError(t, w.e.Flush(context.Background()))
				for segment := w.e.log.Segment(); w.e.log.Segment() < segment+2; {
					w.write(true)
				}
			}
			operations := c.disk.Operations()
			c.disk.SetHook(c.hook)
			step(w)
			c.disk.SetHook(nil)
			t.Logf("%d operations, %d recoveries", c.disk.Operations()-operations, c.recoveries)
			require.Positive(t, c.recoveries)
			require.NoError(t, w.e.Close())
			requireNothingPinned(t, w.e)
		})
	}
}
