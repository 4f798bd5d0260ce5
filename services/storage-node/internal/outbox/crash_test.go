package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/libs/vfs/errorfs"
)

// history is what a workload did: all ids in their order, how many of them were stored for sure, and
// how many were acknowledged.
type history struct {
	ids           []string
	stored, acked int
	sequences     map[uint64]string // that readers saw
	t             *testing.T
}

// see notes what a reader is given; a sequence is of one event only.
func (h *history) see(e event.Event) {
	if old, ok := h.sequences[e.Sequence]; ok {
		require.Equal(h.t, old, e.ID, "sequence %d of two events", e.Sequence)
	}
	h.sequences[e.Sequence] = e.ID
}

func newBox(fsys vfs.FS) *Outbox {
	var log bytes.Buffer
	o := options(fsys, &log)
	o.Now = func() time.Time { return time.Unix(1_800_000_000, 0) }
	return New(o)
}

func (h *history) event() event.Event {
	id := fmt.Sprint("e", len(h.ids))
	h.ids = append(h.ids, id)
	return event.Event{ID: id, Kind: event.DiskFull, Cluster: "c", Node: "n.1", Time: time.Unix(1_800_000_000, 0), Data: data}
}

// workload stores, publishes, settles, and opens again, cleanly and not.
func workload(fsys vfs.FS, h *history, rng *rand.Rand) {
	for round := range 4 {
		b := newBox(fsys)
		b.open()
		for range 12 {
			var items []item
			for range 1 + rng.IntN(3) {
				items = append(items, item{event: h.event()})
			}
			b.take(items)
			if !b.Status().Memory {
				h.stored = len(h.ids)
			}
			for range rng.IntN(4) {
				if b.Status().Length == 0 {
					break
				}
				e, err := b.Next(h.t.Context())
				require.NoError(h.t, err)
				h.see(e)
				b.Ack(e.ID)
				h.acked = slices.Index(h.ids, e.ID) + 1
			}
			switch rng.IntN(4) {
			case 0:
				b.settle()
			case 1:
				b.rewrite()
			}
		}
		if round%2 == 0 {
			b.close()
		} else if b.lock != nil {
			b.lock.Close() // killed: the kernel gives the lock back
		}
	}
}

// check opens what a crash left: all that was stored and not acknowledged is there, in order, perhaps
// after some that were acknowledged.
func (h *history) check(image vfs.FS, what string) {
	b := newBox(image)
	b.open()
	var got []string
	for _, e := range b.entries {
		got = append(got, e.event.ID)
		if old, ok := h.sequences[e.event.Sequence]; ok {
			require.Equal(h.t, old, e.event.ID, what)
		}
	}
	next := item{event: event.Event{ID: "after", Kind: event.DiskFull, Time: time.Unix(1_800_000_000, 0), Data: data}}
	b.take([]item{next})
	newest := b.entries[len(b.entries)-1].event
	require.Equal(h.t, "after", newest.ID)
	require.NotContains(h.t, h.sequences, newest.Sequence, "%s: the sequence was given before", what)
	b.close()
	if len(got) == 0 {
		require.GreaterOrEqual(h.t, h.acked, h.stored, what)
		return
	}
	at := slices.Index(h.ids, got[0])
	require.GreaterOrEqual(h.t, at, 0, what)
	require.LessOrEqual(h.t, at, h.acked, "%s: an event is missing at the front", what)
	require.GreaterOrEqual(h.t, at+len(got), h.stored, "%s: a stored event is lost", what)
	require.Equal(h.t, h.ids[at:at+len(got)], got, what)
}

func newHistory(t *testing.T) *history { return &history{t: t, sequences: map[uint64]string{}} }

// Danger: a power cut loses events that sidecars were told are stored, changes their ids or their
// order, gives one number twice, or leaves a file that does not open.
func TestCrashAtEveryOperationLosesNoEvent(t *testing.T) {
	points := 0
	for seed := range uint64(3) {
		fsys := crashfs.New()
		require.NoError(t, fsys.MkdirAll("/data", 0o770))
		require.NoError(t, vfs.SyncDir(fsys, "/"))
		h := newHistory(t)
		fsys.SetHook(func(op crashfs.Op) {
			points++
			for _, mode := range crashfs.Modes() {
				rng := rand.New(rand.NewPCG(seed, uint64(op.Index)<<8|uint64(mode)))
				h.check(fsys.CrashImage(mode, rng), fmt.Sprintf("seed %d, before operation %d (%s %s), %v", seed, op.Index, op.Kind, op.Name, mode))
			}
		})
		workload(fsys, h, rand.New(rand.NewPCG(seed, 7)))
		require.Greater(t, h.acked, 20)
	}
	t.Logf("%d crash points", points)
	require.Greater(t, points, 300)
}

// Danger: an operation of the disk that fails loses events, or is taken for success.
func TestEveryFailingOperationLosesNoEventOfTheProcess(t *testing.T) {
	errDisk := errors.New("input/output error")
	for name, inject := range map[string]func(i int) *errorfs.Injector{
		"EIO":    func(i int) *errorfs.Injector { return errorfs.OnIndex(i, errorfs.Mutating, errDisk) },
		"ENOSPC": func(i int) *errorfs.Injector { return errorfs.OnIndex(i, errorfs.Writes, vfs.ErrNoSpace) },
		"short":  func(i int) *errorfs.Injector { return errorfs.ShortWrite(i, errDisk) },
	} {
		t.Run(name, func(t *testing.T) {
			for i := 0; ; i++ {
				disk := crashfs.New()
				require.NoError(t, disk.MkdirAll("/data", 0o770))
				inj := inject(i)
				b := newBox(errorfs.Wrap(disk, inj))
				h := newHistory(t)
				b.open()
				for range 10 {
					b.take([]item{{event: h.event()}})
					b.settle()
					if b.Status().Memory {
						b.retryAt = time.Time{}
						b.settle()
					}
				}
				fired, what := inj.Fired()
				require.Len(t, b.entries, len(h.ids), what)
				if b.lock != nil { // else the directory could not even be made
					require.False(t, b.Status().Memory, "%s: one failure is got over", what)
					h.stored = len(h.ids)
				}
				b.close()
				if b.lock != nil && !b.Status().Memory {
					h.check(disk, "failed "+what)
				}
				if !fired {
					require.Greater(t, i, 10)
					return
				}
			}
		})
	}
}

// Danger: a flipped bit ends the node, or lets a changed event through.
func TestFlippedBitsAreNoticed(t *testing.T) {
	disk := vfs.NewMem()
	b := newBox(disk)
	h := newHistory(t)
	b.open()
	for range 6 {
		b.take([]item{{event: h.event()}})
	}
	b.close()
	whole, err := readFile(disk, dir+"/"+fileName)
	require.NoError(t, err)
	good, err := decode(whole)
	require.NoError(t, err)
	require.Len(t, good.events, 6)
	for i := range len(whole) * 8 {
		damaged := slices.Clone(whole)
		damaged[i/8] ^= 1 << (i % 8)
		c, err := decode(damaged)
		if err == nil {
			require.LessOrEqual(t, len(c.events), 6)
		}
		for j, e := range c.events {
			require.Equal(t, good.events[j], e, "bit %d", i)
		}
	}
}
