package commitlog

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/libs/vfs/errorfs"
)

// history is what a workload asked of the log and was told.
type history struct {
	o       Options
	floor   uint64
	starts  map[uint64]int // first payload in a segment
	written int            // payloads appended, or tried
	acked   int            // payloads that were synced
}

// workload appends, syncs, rotates, trims and reopens. It stops at the first error that does not go
// away, and returns it.
func workload(fsys vfs.FS, h *history, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 2))
	h.starts, h.o = map[uint64]int{}, small
	if seed%2 == 1 {
		h.o.Prewrite = PrewriteAlways
	}
	for round := range 3 {
		l, err := Open(fsys, testDir, h.o)
		if err != nil {
			return err
		}
		// The floor is durable in the manifest before Trim is called with it.
		if _, err := l.Replay(h.floor, func(Frame) error { return nil }, nil); err != nil {
			return errors.Join(err, l.Close())
		}
		if err := l.Start(); err != nil {
			return errors.Join(err, l.Close())
		}
		for range 9 {
			if err := step(l, h, rng); err != nil {
				return errors.Join(err, l.Close())
			}
		}
		if round == 1 {
			if err := l.Close(); err != nil {
				return err
			}
			h.acked = h.written
		} // else: the process is killed
	}
	return nil
}

func step(l *Log, h *history, rng *rand.Rand) error {
	i := h.written
	h.written++ // a frame whose write fails may be found all the same
	pos, err := l.Append(1, []byte(payload(i)))
	if err != nil {
		return err
	}
	if _, ok := h.starts[pos.Segment]; !ok {
		h.starts[pos.Segment] = i
	}
	if rng.IntN(2) == 0 {
		if err := l.SyncTo(pos); err != nil {
			return err
		}
		h.acked = h.written
	}
	if rng.IntN(6) == 0 {
		h.floor = pos.Segment
		return l.Trim(h.floor)
	}
	return nil
}

// check replays what a crash left: a prefix of what was written, with all that was acknowledged; and
// the log goes on from there, until it has used every file again, also after another crash in which
// everything unsynced is lost.
func (h *history) check(t *testing.T, image *crashfs.FS, rng *rand.Rand, what string) {
	for round := range 2 {
		l, err := Open(image, testDir, h.o)
		require.NoError(t, err, what)
		var got []string
		found, err := l.Replay(h.floor, collect(&got), nil)
		require.NoError(t, err, what)
		h.checkPrefix(t, got, what)
		require.NoError(t, l.Start(), what)
		// What was replayed is durable now: readers have seen it.
		image = image.CrashImage(crashfs.DropUnsynced, rand.New(rand.NewPCG(1, 1)))
		var again []string
		_, err = Replay(image, testDir, h.floor, collect(&again), nil)
		require.NoError(t, err, what)
		require.Equal(t, got, again, what)
		if round == 0 {
			l, _, _ = reopen(t, image, h.floor, h.o)
			next := h.first() + len(got)
			h = &history{o: h.o, floor: h.floor, starts: maps.Clone(h.starts), written: next, acked: next}
			for range 9 {
				require.NoError(t, step(l, h, rng), what)
				require.Greater(t, l.Segment(), found.End.Segment, what)
			}
		}
	}
}

func (h *history) first() int {
	if h.floor == 0 {
		return 0
	}
	return h.starts[h.floor]
}

func (h *history) checkPrefix(t *testing.T, got []string, what string) {
	require.GreaterOrEqual(t, h.first()+len(got), h.acked, "%s: acknowledged payloads are lost", what)
	require.LessOrEqual(t, h.first()+len(got), h.written, what)
	for i, p := range got {
		require.True(t, p == payload(h.first()+i), "%s: payload %d is %.20q", what, h.first()+i, p)
	}
}

// Danger: a power cut at some moment loses acknowledged writes, brings back older bytes of a recycled
// file, or leaves a log that does not open.
func TestCrashAtEveryOperationLosesNothing(t *testing.T) {
	points, recoveries := 0, 0
	for seed := range uint64(4) {
		fsys := crashfs.New()
		require.NoError(t, fsys.MkdirAll("/data", 0o770))
		require.NoError(t, vfs.SyncDir(fsys, "/"))
		h := &history{}
		fsys.SetHook(func(op crashfs.Op) {
			points++
			for _, mode := range crashfs.Modes() {
				rng := rand.New(rand.NewPCG(seed, uint64(op.Index)<<8|uint64(mode)))
				h.check(t, fsys.CrashImage(mode, rng), rng, fmt.Sprintf("seed %d, before operation %d (%s %s), %v", seed, op.Index, op.Kind, op.Name, mode))
				recoveries += 2
			}
		})
		require.NoError(t, workload(fsys, h, seed))
	}
	t.Logf("%d crash points, %d recoveries", points, recoveries)
	require.Greater(t, points, 200)
}

// Danger: an I/O error is swallowed and the write acknowledged, or ends in a log that can't be read.
func TestEveryFailingOperationIsReportedOrHarmless(t *testing.T) {
	errDisk := errors.New("input/output error")
	injectors := map[string]func(i int) *errorfs.Injector{
		"EIO":    func(i int) *errorfs.Injector { return errorfs.OnIndex(i, errorfs.All, errDisk) },
		"ENOSPC": func(i int) *errorfs.Injector { return errorfs.OnIndex(i, errorfs.Mutating, vfs.ErrNoSpace) },
		"short":  func(i int) *errorfs.Injector { return errorfs.ShortWrite(i, errDisk) },
	}
	for name, inject := range injectors {
		t.Run(name, func(t *testing.T) {
			harmless := 0
			for i := 0; ; i++ {
				disk := crashfs.New()
				require.NoError(t, disk.MkdirAll("/data", 0o770))
				require.NoError(t, vfs.SyncDir(disk, "/"))
				inj := inject(i)
				h := &history{}
				err := workload(errorfs.Wrap(disk, inj), h, 1)
				fired, what := inj.Fired()
				if !fired {
					require.NoError(t, err)
					t.Logf("%d operations, %d harmless", i, harmless)
					break
				}
				if err == nil {
					harmless++
				}
				for _, mode := range []crashfs.Mode{crashfs.DropUnsynced, crashfs.KeepAll, crashfs.RandomEverything} {
					rng := rand.New(rand.NewPCG(uint64(i), uint64(mode)))
					h.check(t, disk.CrashImage(mode, rng), rng, fmt.Sprintf("failed %s, then %v", what, mode))
				}
			}
		})
	}
}

// Danger: after a failed sync the log syncs again, is told that all is well, and acknowledges.
func TestFailedSyncPoisonsForEver(t *testing.T) {
	disk := vfs.NewMem()
	require.NoError(t, disk.MkdirAll("/data", 0o770))
	errDisk := errors.New("input/output error")
	syncs := 0
	for i := 0; ; i++ {
		inj := errorfs.OnIndex(i, errorfs.Syncs, errDisk)
		require.NoError(t, disk.RemoveAll(testDir))
		l, err := Open(errorfs.Wrap(disk, inj), testDir, small)
		if fired, _ := inj.Fired(); fired {
			require.ErrorIs(t, err, errDisk)
			continue
		}
		require.NoError(t, err)
		_, err = l.Replay(0, func(Frame) error { return nil }, nil)
		require.NoError(t, err)
		require.NoError(t, l.Start())
		for n := 0; n < 12 && err == nil; n++ {
			if _, err = l.Append(1, []byte(payload(n))); err == nil {
				_, err = l.Sync()
			}
		}
		if fired, _ := inj.Fired(); !fired {
			require.NoError(t, err)
			err = l.Close()
			if fired, _ := inj.Fired(); fired {
				require.ErrorIs(t, err, ErrPoisoned)
				continue
			}
			require.NoError(t, err)
			break
		}
		syncs++
		require.ErrorIs(t, err, ErrPoisoned)
		require.ErrorIs(t, err, errDisk)
		_, err = l.Append(1, []byte("more"))
		require.ErrorIs(t, err, ErrPoisoned)
		require.ErrorIs(t, l.Reserve(1), ErrPoisoned)
		_, err = l.Sync()
		require.ErrorIs(t, err, ErrPoisoned)
		require.ErrorIs(t, l.Close(), ErrPoisoned)
	}
	require.Greater(t, syncs, 10)
}

// Danger: a full disk ends in a closed engine instead of refused writes, or half a frame is replayed.
func TestFullDiskIsSurvived(t *testing.T) {
	disk := vfs.NewMem()
	require.NoError(t, disk.MkdirAll("/data", 0o770))
	inj := errorfs.None()
	l, _, _ := reopen(t, errorfs.Wrap(disk, inj), 0, small)
	want := appendN(t, l, 0, 3)
	for i := 3; i < 30; i++ {
		inj.SetFull(true)
		if err := l.Reserve(len(payload(i))); err != nil {
			require.ErrorIs(t, err, vfs.ErrNoSpace)
			require.ErrorIs(t, l.Reserve(len(payload(i))), vfs.ErrNoSpace)
			_, err = l.Sync()
			require.NoError(t, err, "what is written can be synced all the same")
		}
		inj.SetFull(false)
		want = append(want, appendN(t, l, i, i+1)...)
	}
	// A copy-on-write file system may have no space even for reserved bytes.
	inj.SetFull(true)
	_, err := l.Append(1, []byte("refused"))
	require.ErrorIs(t, err, vfs.ErrNoSpace)
	_, err = l.Append(1, []byte("refused"))
	require.ErrorIs(t, err, vfs.ErrNoSpace)
	inj.SetFull(false)
	want = append(want, appendN(t, l, 30, 40)...)
	require.NoError(t, l.Close())
	_, got, found := reopen(t, disk, 0, small)
	require.Equal(t, want, got)
	require.True(t, found.Clean)

	// A full disk does not keep the log from opening.
	inj.SetFull(true)
	l, got, _ = reopen(t, errorfs.Wrap(disk, inj), 0, small)
	require.True(t, slices.Equal(want, got))
	require.ErrorIs(t, l.Reserve(1), vfs.ErrNoSpace)
	require.NoError(t, l.Close())
}
