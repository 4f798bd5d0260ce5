package tenant

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// held counts the keys that the engine has of a tenant, and of its idempotency keys.
func held(t *testing.T, e *engine.Engine, tenant string) int {
	t.Helper()
	n := 0
	for _, s := range store.TenantSpans(tenant) {
		it, err := e.NewIter(engine.IterOptions{Lower: s.Start, Upper: s.End})
		require.NoError(t, err)
		for ok := it.First(); ok; ok = it.Next() {
			n++
		}
		require.NoError(t, it.Close())
	}
	return n
}

// remember stores an answer under an idempotency key, as the store does.
func (n *node) remember(t *testing.T, tenant, key string) {
	t.Helper()
	var b engine.Batch
	b.Set(ikey.AppendEngineKey(nil, "_idempotency", tenant+"\x00"+key), []byte("answer"))
	require.NoError(t, n.engine.Apply(&b, engine.SyncGroup))
}

// neighbours have names and keys that begin with one another's bytes.
var neighbours = []string{"a", "ab", "a ", "b"}

func fillNeighbours(t *testing.T, n *node, keys int) {
	t.Helper()
	for round := range 2 {
		for _, name := range neighbours {
			for i := range keys {
				require.NoError(t, n.put(name, fmt.Sprintf("ab/%d/%04d", round, i), name))
			}
			n.remember(t, name, fmt.Sprint("id", round))
		}
		if round == 0 {
			require.NoError(t, n.engine.Flush(bg))
		}
	}
}

// Danger: a crash in a drop leaves a tenant that is half there, that is refused for ever, or that takes
// others with it.
func TestDropSurvivesACrashAtEachStep(t *testing.T) {
	disk := crashfs.New()
	n := start(t, disk, Options{})
	for _, name := range neighbours {
		n.create(t, name, Quota{})
	}
	const keys = 20
	fillNeighbours(t, n, keys)

	type image struct {
		fs       *crashfs.FS
		when     string
		dropping bool // DROPPING was durable
	}
	var mu sync.Mutex // guards the rest: background goroutines write as well
	var images []image
	var dropping bool
	rng := rand.New(rand.NewPCG(1, 2))
	cut := func(when string) {
		for _, mode := range crashfs.Modes() {
			images = append(images, image{disk.CrashImage(mode, rng), fmt.Sprint(when, ", ", mode), dropping})
		}
	}
	disk.SetHook(func(op crashfs.Op) {
		mu.Lock()
		defer mu.Unlock()
		cut(fmt.Sprint("before ", op.Kind, " of ", op.Name))
	})
	n.calls.beforeDelete = func() error {
		mu.Lock()
		defer mu.Unlock()
		dropping = true
		cut("before the range delete")
		return nil
	}
	n.calls.afterDelete = func() error {
		mu.Lock()
		defer mu.Unlock()
		cut("after the range delete")
		return nil
	}
	_, err := n.Drop(bg, "a")
	require.NoError(t, err)
	disk.SetHook(nil)
	mu.Lock()
	defer mu.Unlock()
	cut("at the end")
	require.Greater(t, len(images), 40)

	states := map[State]int{}
	for _, im := range images {
		after, err := open(t, im.fs, Options{})
		require.NoError(t, err, im.when)
		for i, name := range neighbours {
			want := 2*keys + 2
			if after.known.Load().byName[name].State == Dropped {
				require.Zero(t, i, im.when)
				want = 0
			}
			require.Equal(t, want, held(t, after.engine, name), "%s: %q", im.when, name)
		}
		got := after.known.Load().byName["a"].State
		require.NotEqual(t, Dropping, got, im.when)
		require.False(t, im.dropping && got != Dropped, im.when)
		states[got]++
		require.NoError(t, after.engine.Close())
	}
	require.Positive(t, states[Active], "some cut came before the drop had begun")
	require.Greater(t, states[Dropped], len(crashfs.Modes()))
}

// Danger: a drop that fails half-way is reported as done, or can't be repeated.
func TestDropThatFailsIsRepeatedOrFinishedAtTheNextOpen(t *testing.T) {
	broken := errors.New("broken")
	for _, reopen := range []bool{false, true} {
		for step := range 2 {
			fs := vfs.NewMem()
			n := start(t, fs, Options{})
			n.create(t, "t", Quota{})
			require.NoError(t, n.put("t", "k", "v"))
			fail := func() error { return broken }
			if step == 0 {
				n.calls.beforeDelete = fail
			} else {
				n.calls.afterDelete = fail
			}
			_, err := n.Drop(bg, "t")
			require.ErrorIs(t, err, broken)
			require.Equal(t, Dropping, n.List(false)[0].State)
			requireReason(t, store.ReasonTenantNotFound, n.put("t", "k", "v"))
			if reopen {
				n = restart(t, n, fs, Options{})
			} else {
				n.calls.beforeDelete, n.calls.afterDelete = nil, nil
				_, err = n.Drop(bg, "t")
				require.NoError(t, err)
			}
			require.Empty(t, n.List(false))
			require.Equal(t, Dropped, n.List(true)[0].State)
			require.Zero(t, held(t, n.engine, "t"))
		}
	}
}

// Danger: of two drops at once the second removes what a new generation has written since.
func TestDropsOfOneLifeDoNotReachTheNext(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	n.create(t, "t", Quota{})
	first := n.known.Load().byName["t"]
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := n.Drop(bg, "t"); err != nil {
				t.Errorf("drop: %v", err)
			}
		})
	}
	wg.Wait()
	n.create(t, "t", Quota{})
	require.NoError(t, n.put("t", "k", "v"))
	late, err := n.finish(bg, first)
	require.NoError(t, err)
	require.Equal(t, Dropped, late.State)
	require.EqualValues(t, 1, late.Generation)
	require.Equal(t, "v", n.get(t, "t", "k"))
}

// tableBytes sums the live tables with keys of a tenant.
func tableBytes(t *testing.T, e *engine.Engine, tenant string) (sum uint64) {
	t.Helper()
	start, end := ikey.TenantBounds(tenant)
	tables, err := e.Tables()
	require.NoError(t, err)
	for _, x := range tables {
		if bytes.Compare(x.Largest.User, start) >= 0 && bytes.Compare(x.Smallest.User, end) < 0 {
			sum += x.Size
		}
	}
	return sum
}

// noise does not compress.
func noise(rng *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('!' + rng.IntN(90))
	}
	return string(b)
}

// Danger: a drop hides what the tenant stored, and the disk stays full.
func TestDropFreesTheSpace(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	rng := rand.New(rand.NewPCG(5, 6))
	// The large one fills tables of its own, the small ones share theirs with it.
	sizes := map[string]int{"a": 1000, "big": 4000, "c": 1000}
	for name, records := range sizes {
		n.create(t, name, Quota{})
		for i := range records {
			require.NoError(t, n.put(name, fmt.Sprintf("%04d", i), noise(rng, 1<<10)))
		}
	}
	require.NoError(t, n.engine.Flush(bg))
	require.NoError(t, n.engine.Compact(bg, nil, nil, nil))
	require.NoError(t, n.Refresh(bg))
	estimates := map[string]int64{}
	for _, x := range n.List(false) {
		want := float64(sizes[x.Name]) * 1024
		require.InDelta(t, want, x.StoredBytes, 512<<10, x.Name)
		estimates[x.Name] = x.StoredBytes
	}
	require.Greater(t, tableBytes(t, n.engine, "big"), uint64(3<<20))

	_, err := n.Drop(bg, "big")
	require.NoError(t, err)
	// What it had for itself goes by itself.
	require.Eventually(t, func() bool { return tableBytes(t, n.engine, "big") <= 2*(256<<10+64<<10) }, 20*time.Second, 5*time.Millisecond)
	// What it shares goes with the next merge.
	require.NoError(t, n.engine.Compact(bg, nil, nil, nil))
	tables, err := n.engine.Tables()
	require.NoError(t, err)
	var total uint64
	for _, x := range tables {
		total += x.Size
		require.Zero(t, x.RangeDeletes, "nothing is left to be deleted")
	}
	require.Less(t, total, uint64(2500<<10))
	start, end := ikey.TenantBounds("big")
	left, err := n.engine.ApproximateBytes(start, end)
	require.NoError(t, err)
	require.Zero(t, left)
	require.Eventually(t, func() bool { return n.engine.Metrics().ObsoleteBytes == 0 }, 20*time.Second, 5*time.Millisecond)
	for _, name := range []string{"a", "c"} {
		require.Len(t, n.get(t, name, "0000"), 1<<10)
	}
	require.NoError(t, n.Refresh(bg))
	for _, x := range n.List(true) {
		if x.Name == "big" {
			require.Zero(t, x.StoredBytes)
		} else {
			require.InDelta(t, estimates[x.Name], x.StoredBytes, 512<<10, x.Name)
		}
	}
}

// Danger: a range that ends too late takes a neighbour, one that ends too early leaves something.
func TestDropTakesATenantAndNoNeighbour(t *testing.T) {
	const keys = 10
	for _, drop := range neighbours {
		n := start(t, vfs.NewMem(), Options{})
		fillNeighbours(t, n, keys)
		n.create(t, drop, Quota{})
		_, err := n.Drop(bg, drop)
		require.NoError(t, err)
		for _, name := range neighbours {
			want := 2*keys + 2
			if name == drop {
				want = 0
			}
			require.Equal(t, want, held(t, n.engine, name), "%q after the drop of %q", name, drop)
		}
		require.NoError(t, n.put("other", strings.Repeat("k", 3), "v"))
	}
}

// Danger: a write slips through between the look at the gate and the range delete. Run under the race
// detector.
func TestDropUnderTraffic(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	for round := range 20 {
		name := fmt.Sprint("t", round)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					err := n.put(name, fmt.Sprint(g, "/", i%10), "v")
					if reason := store.ReasonOf(err); err != nil && reason != store.ReasonTenantNotFound {
						t.Errorf("write: %v", err)
						return
					}
				}
			})
		}
		if round%2 == 0 {
			require.Eventually(t, func() bool { return held(t, n.engine, name) > 0 }, 20*time.Second, time.Millisecond)
		}
		n.create(t, name, Quota{})
		_, err := n.Drop(bg, name)
		require.NoError(t, err)
		for range 3 {
			require.Zero(t, held(t, n.engine, name))
		}
		close(stop)
		wg.Wait()
		require.Zero(t, held(t, n.engine, name))
	}
}

// Danger: the one thing that would help a full disk is refused because the disk is full.
func TestDropWorksOnAFullDisk(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs, Options{})
	n.create(t, "t", Quota{})
	require.NoError(t, n.put("t", "k", "v"))
	fs.SetUsage(fullDisk)
	require.Eventually(t, func() bool { return errors.Is(n.put("t", "k", "v"), engine.ErrDiskFull) }, 20*time.Second, time.Millisecond)
	_, err := n.Drop(bg, "t")
	require.NoError(t, err)
	require.Zero(t, held(t, n.engine, "t"))
	require.ErrorIs(t, n.put("u", "k", "v"), engine.ErrDiskFull)
}
