package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
)

// usedOf is a disk of 1,000 MiB of which so many per mille are used.
func usedOf(permille int) vfs.Usage {
	return vfs.Usage{TotalBytes: 1000 << 20, FreeBytes: uint64(1000-permille) << 20}
}

func TestDiskStatesBeginAndEndApart(t *testing.T) {
	// Too late, and compactions have no room to make room; without a distance between beginning and end,
	// a compaction switches writes off and on.
	o := Options{ReserveBytes: -1}.withDefaults()
	limits := o.spaceLimits()
	for _, c := range []struct {
		was  SpaceState
		used int // per mille
		want SpaceState
	}{
		{SpaceOK, 0, SpaceOK}, {SpaceOK, 849, SpaceOK}, {SpaceOK, 850, SpaceWarning}, {SpaceOK, 899, SpaceWarning},
		{SpaceOK, 900, SpaceThrottled}, {SpaceOK, 949, SpaceThrottled}, {SpaceOK, 950, SpaceFull}, {SpaceOK, 1000, SpaceFull},

		{SpaceWarning, 850, SpaceWarning}, {SpaceWarning, 831, SpaceWarning}, {SpaceWarning, 829, SpaceOK},
		{SpaceWarning, 900, SpaceThrottled}, {SpaceWarning, 950, SpaceFull},

		{SpaceThrottled, 900, SpaceThrottled}, {SpaceThrottled, 881, SpaceThrottled}, {SpaceThrottled, 879, SpaceWarning},
		{SpaceThrottled, 840, SpaceWarning}, {SpaceThrottled, 829, SpaceOK}, {SpaceThrottled, 950, SpaceFull},

		{SpaceFull, 950, SpaceFull}, {SpaceFull, 931, SpaceFull}, {SpaceFull, 929, SpaceThrottled}, {SpaceFull, 885, SpaceThrottled},
		{SpaceFull, 879, SpaceWarning}, {SpaceFull, 835, SpaceWarning}, {SpaceFull, 100, SpaceOK}, {SpaceFull, 1000, SpaceFull},
	} {
		require.Equal(t, c.want, limits.judge(usedOf(c.used), 0, c.was), "%s at %d", c.was, c.used)
	}
	require.Equal(t, SpaceThrottled, Options{ReserveBytes: -1}.JudgeSpace(usedOf(920)))
}

func TestDiskIsFullAtTheReserveWhateverThePercentage(t *testing.T) {
	// On a small volume five percent are less than one compaction needs; and what a running one was
	// promised must not go to writes.
	for _, c := range []struct {
		name             string
		free, reserve    uint64 // MiB of 1000
		promised         uint64
		percent          int
		want             SpaceState
		withoutDiskKnown bool
	}{
		{"above the reserve", 256, 256, 0, 95, SpaceWarning, false},
		{"below it", 255, 256, 0, 95, SpaceFull, false},
		{"twice the reserve is a warning", 511, 256, 0, 95, SpaceWarning, false},
		{"more is fine", 512, 256, 0, 95, SpaceOK, false},
		{"no reserve", 251, 0, 0, 95, SpaceOK, false},
		{"promised to compactions", 299, 100, 275, 95, SpaceFull, false},
		{"and a quarter of the reserve besides", 300, 100, 275, 95, SpaceOK, false},
		{"nothing is left and nothing is reserved", 0, 0, 0, 100, SpaceFull, false},
		{"a disk of unknown size", 0, 0, 0, 95, SpaceOK, true},
		{"the reserve counts there, too", 9, 10, 0, 95, SpaceFull, true},
	} {
		l := spaceLimits{warning: 75, throttled: min(c.percent, 90), full: c.percent, reserve: c.reserve << 20}
		u := vfs.Usage{TotalBytes: 1000 << 20, FreeBytes: c.free << 20}
		if c.withoutDiskKnown {
			u.TotalBytes = 0
		}
		require.Equal(t, c.want, l.judge(u, c.promised<<20, SpaceOK), c.name)
	}
}

func TestDiskThresholdsMustAscend(t *testing.T) {
	// A full disk that is not throttled would be reported as fine.
	for _, c := range []struct {
		warning, throttled, full int
		ok                       bool
	}{{85, 90, 95, true}, {90, 90, 90, true}, {1, 1, 100, true}, {91, 90, 95, false}, {85, 96, 95, false}, {85, 90, 101, false}, {-1, 90, 95, false}} {
		o := smallOptions(vfs.NewMem())
		o.DiskWarningPercent, o.DiskThrottledPercent, o.DiskFullPercent = c.warning, c.throttled, c.full
		require.Equal(t, c.ok, o.Validate() == nil, "%+v", c)
	}
}

// disk is an engine on a disk whose use a test sets.
type disk struct {
	*testing.T
	*Engine
	fs *vfs.MemFS
}

func openDisk(t *testing.T, reserveMiB int64) *disk {
	t.Helper()
	fs := vfs.NewMem()
	fs.SetUsage(usedOf(0))
	o := smallOptions(fs)
	o.MemtableBytes, o.LogSegmentBytes = 512<<10, 512<<10
	if reserveMiB > 0 {
		o.ReserveBytes = reserveMiB << 20
	}
	return &disk{t, mustOpen(t, o), fs}
}

// use sets how much of the disk is used, and waits until the engine is in a state.
func (d *disk) use(permille int, want SpaceState) {
	d.Helper()
	d.fs.SetUsage(usedOf(permille))
	require.Eventually(d, func() bool {
		s, u := d.Space()
		return s == want && u == usedOf(permille)
	}, eventually, tick, "%s at %d", want, permille)
}

// set writes a value, put a tombstone in its place; both return what the engine says.
func (d *disk) set(i, size int) error {
	var b Batch
	b.Set(testKey(i), rec(strings.Repeat("v", size)))
	return d.Apply(&b, SyncGroup)
}

func (d *disk) tombstone(i int) error {
	var b Batch
	b.Set(testKey(i), rec("")) // what stands for a tombstone here
	b.Removal()
	return d.Apply(&b, SyncGroup)
}

const (
	small = 100
	large = throttledBatchBytes + 1
)

func TestEachDiskStateTakesWhatItSays(t *testing.T) {
	// The way to a full disk and back: each state must refuse what would make it worse and nothing else.
	d := openDisk(t, 8)
	for _, c := range []struct {
		used                    int
		state                   SpaceState
		small, large, tombstone error
	}{
		{0, SpaceOK, nil, nil, nil},
		{860, SpaceWarning, nil, nil, nil},
		{910, SpaceThrottled, nil, ErrDiskThrottled, nil},
		{960, SpaceFull, ErrDiskFull, ErrDiskFull, nil},
		{997, SpaceFull, ErrDiskFull, ErrDiskFull, nil},         // below the reserve
		{999, SpaceFull, ErrDiskFull, ErrDiskFull, ErrDiskFull}, // below a quarter of it
		{997, SpaceFull, ErrDiskFull, ErrDiskFull, nil},
		{935, SpaceFull, ErrDiskFull, ErrDiskFull, nil}, // not yet two points below
		{925, SpaceThrottled, nil, ErrDiskThrottled, nil},
		{875, SpaceWarning, nil, nil, nil},
		{820, SpaceOK, nil, nil, nil},
	} {
		d.use(c.used, c.state)
		check := func(want error, f func() error, what string) {
			require.Eventually(t, func() bool { err := f(); return err == nil && want == nil || want != nil && errors.Is(err, want) },
				eventually, tick, "%s at %d", what, c.used)
		}
		check(c.small, func() error { return d.set(1, small) }, "small")
		check(c.large, func() error { return d.set(2, large) }, "large")
		check(c.tombstone, func() error { return d.tombstone(3) }, "tombstone")

		var b Batch
		b.DeleteRange(testKey(50), testKey(60))
		require.NoError(t, d.Apply(&b, SyncGroup), "a drop makes room")
		b.Reset()
		b.Urgent()
		b.Set(testKey(4), rec(strings.Repeat("s", large)))
		require.NoError(t, d.Apply(&b, SyncGroup), "the node's own records")

		requireValue(t, d.Engine, testKey(1), strings.Repeat("v", small))
		require.NoError(t, d.Flush(context.Background()), "flushes go on")
		_, err := d.Ingest(context.Background(), nil)
		switch {
		case c.state >= SpaceFull:
			require.ErrorIs(t, err, ErrDiskFull)
		case c.state == SpaceThrottled:
			require.ErrorIs(t, err, ErrDiskThrottled)
		default:
			require.NoError(t, err)
		}
	}
	require.NoError(t, d.Compact(context.Background(), nil, nil, nil))
	require.NoError(t, d.Close())
}

func TestWhateverTheDiskDoesReadsAnswerAndNothingIsLost(t *testing.T) {
	// A property over random courses of disk usage: every read answers, what was acknowledged stays, and
	// when there is room again writes go on without anybody's help.
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 77))
			d := openDisk(t, int64(r.IntN(3))*4)
			stored := map[int]string{} // what was acknowledged; "" is a tombstone
			refused := 0
			for step := range 3000 {
				if step%25 == 0 {
					d.fs.SetUsage(usedOf(r.IntN(1001)))
				}
				i := r.IntN(200)
				var err error
				var value string
				switch r.IntN(4) {
				case 0:
					err = d.tombstone(i)
				case 1:
					value = strings.Repeat("v", large)
					err = d.set(i, large)
				default:
					value = strings.Repeat("v", small+i)
					err = d.set(i, small+i)
				}
				if err == nil {
					stored[i] = value
				} else {
					require.True(t, errors.Is(err, ErrDiskFull) || errors.Is(err, ErrDiskThrottled) || errors.Is(err, ErrStalled), "%v", err)
					refused++
				}
				j := r.IntN(200)
				got, found, err := d.Get(testKey(j), nil)
				require.NoError(t, err, "reads always answer")
				want, known := stored[j]
				require.Equal(t, known, found)
				if known {
					require.Equal(t, rec(want), got)
				}
			}
			require.Positive(t, refused)
			d.use(100, SpaceOK)
			require.Eventually(t, func() bool { return d.set(1000, large) == nil }, eventually, tick)
			require.NoError(t, d.Flush(context.Background()))
			for i, want := range stored {
				got, found, err := d.Get(testKey(i), nil)
				require.NoError(t, err)
				require.True(t, found)
				require.Equal(t, rec(want), got)
			}
			require.NoError(t, d.Close())
		})
	}
}
