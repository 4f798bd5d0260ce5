package ownership

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// step is a call of a hand-over, and where the move is after it at least.
type step struct {
	move  string
	stage stage
	call  func(n *node) error
}

var steps = []step{
	{"a", fenced, func(n *node) error { _, _, err := n.Fence(bg, "a", q(0)); return err }},
	{"n2/b", prepared, func(n *node) error { _, err := n.Prepare(bg, "b", q(1), n2); return err }},
	{"a", given, func(n *node) error { return n.Give(bg, "a", n2, 1) }},
	{"n2/b", accepted, func(n *node) error { return n.Accept(bg, "b", "n2", 1) }},
	{"c", fenced, func(n *node) error { _, _, err := n.Fence(bg, "c", q(2)); return err }},
	{"n2/d", prepared, func(n *node) error { _, err := n.Prepare(bg, "d", q(3), n2); return err }},
	{"c", lifted, func(n *node) error { return n.Lift(bg, "c") }},
	{"n2/d", declined, func(n *node) error { _, err := n.Decline(bg, "d", "n2"); return err }},
}

// Danger: a power cut takes back a step that was answered, or leaves one from which the repeat of the call
// does not go on; then two nodes own a range, or none.
func TestAPowerCutTakesNoStepBackAndEachCanBeRepeated(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	type image struct {
		fs       *crashfs.FS
		answered int
		op       crashfs.Op
		mode     crashfs.Mode
	}
	var mu sync.Mutex // the engine works in the background too
	var images []image
	var answered atomic.Int64
	fs := crashfs.New()
	w := &wall{now: time.UnixMilli(1_700_000_000_000)}
	n := start(t, fs, w, "i1")
	fs.SetHook(func(op crashfs.Op) {
		mu.Lock()
		defer mu.Unlock()
		for _, mode := range crashfs.Modes() {
			before := int(answered.Load()) // what is answered while the image is made need not be in it
			images = append(images, image{fs.CrashImage(mode, rng), before, op, mode})
		}
	})
	for i, s := range steps {
		require.NoError(t, s.call(n), "step %d", i)
		answered.Store(int64(i + 1))
	}
	fs.SetHook(nil)
	mu.Lock()
	defer mu.Unlock()
	require.Greater(t, len(images), len(steps))
	for _, im := range images {
		n := start(t, im.fs, w, "i1")
		require.NoError(t, n.Damage())
		for _, s := range steps[:im.answered] {
			require.GreaterOrEqual(t, n.state.Load().facts[s.move].stage, s.stage, "%s after %d steps, before %v in mode %s", s.move, im.answered, im.op, im.mode)
		}
		for i, s := range steps[im.answered:] {
			require.NoError(t, s.call(n), "step %d again, before %v in mode %s", im.answered+i, im.op, im.mode)
		}
		v := n.View()
		require.Equal(t, q(0), v.Given)
		require.Empty(t, v.Fenced)
		require.Empty(t, v.Prepared)
		requireReason(t, store.ReasonNotOwner, n.write(keyIn(q(0), 0)))
		require.NoError(t, n.write(keyIn(q(1), 0)))
		require.NoError(t, n.engine.Close())
	}
	t.Logf("%d power cuts", len(images))
}
