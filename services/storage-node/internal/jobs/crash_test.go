package jobs

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"path"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/libs/vfs/errorfs"
)

const committed = testDir + "/COMMITTED"

// durableInstaller installs as the engine does: names, directories, and then the one thing that
// commits, here a file.
type durableInstaller struct{ *testEngine }

func (d durableInstaller) Install(p *Plan, outs []compact.Output, files []string, by Origin) error {
	if err := d.testEngine.Install(p, outs, files, by); err != nil {
		return err
	}
	if err := vfs.SyncDir(d.fs, path.Join(testDir, compact.TableDir)); err != nil {
		return err
	}
	f, err := d.fs.Create(committed, 0o660)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), vfs.SyncDir(d.fs, testDir))
}

func TestCrashAtAnyOperationLosesNothing(t *testing.T) {
	// compaction.md, steps 1 to 9. Before the commit the inputs count and must be whole, after it
	// the outputs; staging is never needed, and an attempt of before is nobody's.
	synctest.Test(t, func(t *testing.T) {
		disk := crashfs.New()
		e := newTestEngine(t, disk)
		p := e.somePlan("k")
		for _, dir := range []string{path.Join(testDir, compact.TableDir), testDir, "."} {
			require.NoError(t, vfs.SyncDir(disk, dir))
		}
		var key Key
		images, points := 0, 0
		rng := rand.New(rand.NewPCG(5, 6))
		disk.SetHook(func(crashfs.Op) {
			points++
			for _, mode := range crashfs.Modes() {
				images++
				recoverImage(t, disk.CrashImage(mode, rng), p, key)
			}
		})
		o := testOptions(disk, e)
		o.Installer = durableInstaller{e}
		b, err := NewBoard(o)
		require.NoError(t, err)
		_, err = b.Offer(p)
		require.NoError(t, err)
		ls, err := b.Lease(ctxb, someWorker("w"))
		require.NoError(t, err)
		key = ls[0].Key
		a := &attempt{t: t, fs: disk, dir: testDir, l: ls[0]}
		v, err := b.Complete(ctxb, key, a.honest(2))
		require.NoError(t, err)
		require.Equal(t, Installed, v.Outcome, v.Reason)
		require.NoError(t, b.Close())
		disk.SetHook(nil)
		recoverImage(t, disk.CrashImage(crashfs.DropUnsynced, rng), p, key)
		require.GreaterOrEqual(t, points, 20)
		t.Logf("%d crash points, %d images", points, images)
	})
}

// recoverImage opens a disk as it is found after a crash.
func recoverImage(t *testing.T, disk *crashfs.FS, p *Plan, old Key) {
	t.Helper()
	e := &testEngine{t: t, fs: disk, tables: map[uint64]sstable.Meta{}, released: map[uint64]State{}, reasons: map[uint64]string{}}
	o := testOptions(disk, e)
	o.Rand = rand.New(rand.NewPCG(9, 9))
	b, err := NewBoard(o)
	require.NoError(t, err)
	defer b.Close() //nolint:errcheck // nothing to end

	names, err := disk.List(path.Join(testDir, compact.StagingDir))
	require.NoError(t, err)
	require.Empty(t, names)
	v, err := b.Complete(ctxb, old, Report{})
	require.NoError(t, err)
	require.Equal(t, Fenced, v.Outcome)

	whole := []uint64{p.Job.Inputs[0].Num, p.Job.Inputs[1].Num}
	if _, err := disk.Stat(committed); err == nil {
		whole = []uint64{3, 4} // the outputs
	} else {
		require.ErrorIs(t, err, fs.ErrNotExist)
	}
	for _, num := range whole {
		f, err := disk.Open(e.path(num))
		require.NoError(t, err)
		table, err := sstable.Open(f, sstable.ReaderOptions{FileNum: num})
		require.NoError(t, err)
		require.NoError(t, table.Verify(context.Background(), func(int64) {}))
		require.NoError(t, table.Close())
	}
}

func TestAnyFailingOperationIsSurvived(t *testing.T) {
	// A failed listing, sync or rename must end in a verdict, and the job must come round again.
	for _, kinds := range []errorfs.Kind{errorfs.Mutating, errorfs.Reads} {
		for _, failure := range []error{errors.New("input/output error"), vfs.ErrNoSpace} {
			for i := 0; ; i++ {
				fired := false
				inj := errorfs.OnIndex(i, kinds, failure)
				synctest.Test(t, func(t *testing.T) { fired = surviveFailure(t, inj) })
				if !fired {
					require.Greater(t, i, 5)
					break
				}
			}
		}
	}
}

// surviveFailure runs one job on a disk of which one operation fails, and reports whether it did.
func surviveFailure(t *testing.T, inj *errorfs.Injector) bool {
	mem := vfs.NewMem()
	e := newTestEngine(t, mem) // the installation itself is the engine's to test
	p := e.somePlan("k")
	o := testOptions(errorfs.Wrap(mem, inj), e)
	b, err := NewBoard(o)
	if err != nil {
		fired, what := inj.Fired()
		require.True(t, fired, "%v", err)
		require.NotEmpty(t, what)
		return true
	}
	defer b.Close() //nolint:errcheck // closed below as well
	f := &fixture{T: t, fs: mem, e: e, b: b}
	id := f.offer(p)
	for range 50 {
		ls, err := b.Lease(ctxb, someWorker("w"))
		if err != nil || len(ls) == 0 {
			time.Sleep(time.Second)
			continue
		}
		v := f.complete(ls[0].Key, f.attempt(ls[0]).honest(2))
		if v.Outcome == Installed {
			break
		}
		require.NotEmpty(t, v.Reason)
	}
	f.requireOver(id, StateInstalled)
	verifyTree(t, mem, e)
	time.Sleep(time.Second) // the sweeper removes what could not be removed
	require.NoError(t, b.Close())
	checkClosed(t, b, mem)
	fired, _ := inj.Fired()
	return fired
}
