package engine

import (
	"context"
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
)

func TestOpenRefusesWhatItMustNotTouch(t *testing.T) {
	// A directory in use, of a newer program, or of somebody else must be refused with a clear word,
	// and left as it is.
	t.Run("locked", func(t *testing.T) {
		fs := vfs.NewMem()
		e := mustOpen(t, smallOptions(fs))
		_, err := Open(testDir, smallOptions(fs))
		require.ErrorIs(t, err, vfs.ErrLocked)
		put(t, e, testKey(1), "v")
		require.NoError(t, e.Close())
		e = mustOpen(t, smallOptions(fs))
		requireValue(t, e, testKey(1), "v")
		require.NoError(t, e.Close())
	})
	t.Run("newer format", func(t *testing.T) {
		fs := vfs.NewMem()
		require.NoError(t, mustOpen(t, smallOptions(fs)).Close())
		require.NoError(t, vfs.WriteFile(fs, path.Join(testDir, formatName), []byte("pairdb 99\n"), filePerm))
		_, err := Open(testDir, smallOptions(fs))
		require.ErrorIs(t, err, ErrNewerFormat)
		require.ErrorContains(t, err, "99")
	})
	for name, content := range map[string]string{"junk": "hello", "zero": "pairdb 0", "huge": strings.Repeat("x", maxSmallFile+1)} {
		t.Run("format "+name, func(t *testing.T) {
			fs := vfs.NewMem()
			require.NoError(t, mustOpen(t, smallOptions(fs)).Close())
			require.NoError(t, vfs.WriteFile(fs, path.Join(testDir, formatName), []byte(content), filePerm))
			_, err := Open(testDir, smallOptions(fs))
			require.ErrorIs(t, err, ErrCorrupt)
		})
	}
	t.Run("tables without a manifest", func(t *testing.T) {
		fs := vfs.NewMem()
		require.NoError(t, fs.MkdirAll("data/sst", 0o770))
		f, err := fs.Create("data/sst/000007.sst", 0o660)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		_, err = Open(testDir, smallOptions(fs))
		require.ErrorIs(t, err, ErrCorrupt)
		_, err = fs.Stat("data/sst/000007.sst")
		require.NoError(t, err, "it was not deleted")
	})
	t.Run("manifest lost", func(t *testing.T) {
		fs := vfs.NewMem()
		e := mustOpen(t, smallOptions(fs))
		put(t, e, testKey(1), "v")
		require.NoError(t, e.Close())
		require.NoError(t, fs.RemoveAll("data/manifest"))
		_, err := Open(testDir, smallOptions(fs))
		require.Error(t, err)
		names, err := fs.List("data/sst")
		require.NoError(t, err)
		require.NotEmpty(t, names)
	})
	t.Run("invalid options", func(t *testing.T) {
		for _, change := range []func(*Options){
			func(o *Options) { o.FS = nil }, func(o *Options) { o.Sync = 9 }, func(o *Options) { o.L0Slow = 99 },
			func(o *Options) { o.MemtableBytes = 1 }, func(o *Options) { o.DebtSlowBytes = 1 << 50 },
		} {
			o := smallOptions(vfs.NewMem())
			change(&o)
			_, err := Open(testDir, o)
			require.ErrorIs(t, err, ErrInvalidOptions)
		}
	})
}

func TestOpenDeletesOnlyItsOwnGarbage(t *testing.T) {
	// What a crash left must go, or the disk fills; anything else in the directory is not ours to
	// delete.
	fs := vfs.NewMem()
	e := mustOpen(t, smallOptions(fs))
	put(t, e, testKey(1), "v")
	require.NoError(t, e.Close())
	touch := func(name string) {
		f, err := fs.Create(name, 0o660)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	ours, foreign := "data/sst/000900.sst", []string{"data/sst/901.sst", "data/sst/000902.sst.bak", "data/sst/notes", "data/sst/00000903.sst"}
	touch(ours)
	for _, name := range foreign {
		touch(name)
	}
	require.NoError(t, fs.MkdirAll("data/staging/000001.e1", 0o770))
	e = mustOpen(t, smallOptions(fs))
	_, err := fs.Stat(ours)
	require.Error(t, err)
	_, err = fs.Stat("data/staging/000001.e1")
	require.Error(t, err)
	for _, name := range foreign {
		_, err := fs.Stat(name)
		require.NoError(t, err, name)
	}
	require.Greater(t, e.manifest.NewFile(), uint64(900), "numbers of files that were there are not given out again")
	requireValue(t, e, testKey(1), "v")
	require.NoError(t, e.Close())
}

func TestRecoveryIsBoundedAndTellsItsProgress(t *testing.T) {
	// A log that is much larger than a memtable must not need as much memory, and a node that is
	// silent for long is killed by those who watch it.
	fs := vfs.NewMem()
	o := smallOptions(fs)
	o.KeepMemtablesAtClose, o.MemtableBytes, o.NoAutoCompaction = true, 4<<20, true
	e := mustOpen(t, o)
	for i := range 4000 {
		put(t, e, testKey(i), strings.Repeat("z", 200))
	}
	require.NoError(t, e.Close())
	var done, total int64
	opened := 0
	o.Events = func(ev Event) {
		switch ev.Kind {
		case EventRecovery:
			done, total = ev.Bytes, ev.Total
		case EventOpened:
			opened++
		}
	}
	o.MemtableBytes = 64 << 10
	e = mustOpen(t, o)
	require.Equal(t, 1, opened)
	require.Positive(t, total)
	require.Equal(t, total, done)
	m := e.Metrics()
	require.Greater(t, m.Flushes, uint64(5), "memtables were flushed during the replay")
	require.Zero(t, m.Immutables)
	for i := range 4000 {
		requireValue(t, e, testKey(i), strings.Repeat("z", 200))
	}
	require.NoError(t, e.Close())
}

func TestCleanStopLeavesNothingToReplay(t *testing.T) {
	// Open after a clean stop must take the same time whatever was written.
	fs := vfs.NewMem()
	o := smallOptions(fs)
	e := mustOpen(t, o)
	for i := range 500 {
		put(t, e, testKey(i), "v")
	}
	require.NoError(t, e.Close())
	e = mustOpen(t, o)
	require.True(t, e.mu.mem.Empty())
	require.NoError(t, e.Close())
}

func TestTornTailIsCutAndDamageRefused(t *testing.T) {
	// A torn end was never acknowledged: it is cut and said. Damage before what was durable must stop
	// the node, naming file and offset: to go on would lose acknowledged writes silently.
	disk := crashfs.New()
	o := quietOptions(disk)
	o.KeepMemtablesAtClose = true
	o.NoLogCompression = true // the frame is to be long
	e := mustOpen(t, o)
	for i := range 20 {
		put(t, e, testKey(i), "v")
	}
	var b Batch
	b.Set(testKey(77), rec(strings.Repeat("t", 3000)))
	_, err := e.Submit(&b) // not durable
	require.NoError(t, err)
	// The last frame is cut in the middle.
	image := disk.CrashImage(crashfs.KeepAll, o.Rand)
	name := path.Join(testDir, logDir, "000001.log")
	f, err := image.OpenReadWrite(name)
	require.NoError(t, err)
	end := e.log.Written().Offset
	_, err = f.WriteAt(make([]byte, 2000), end-2000)
	require.NoError(t, err)
	var torn []Event
	io := quietOptions(image)
	io.KeepMemtablesAtClose = true
	io.Events = func(ev Event) {
		if ev.Kind == EventTornTail {
			torn = append(torn, ev)
		}
	}
	e2, err := Open(testDir, io)
	require.NoError(t, err)
	require.Len(t, torn, 1)
	require.Positive(t, torn[0].Bytes)
	m := e2.Metrics()
	require.Equal(t, uint64(1), m.TornTails)
	require.Equal(t, uint64(torn[0].Bytes), m.TornTailBytes)
	requireValue(t, e2, testKey(77), "")
	requireValue(t, e2, testKey(19), "v")
	put(t, e2, testKey(5), "after the cut")
	require.NoError(t, e2.Close())

	// Now a byte in the middle of what is durable.
	g, err := image.OpenReadWrite(name)
	require.NoError(t, err)
	_, err = g.WriteAt([]byte{0xff, 0xff}, 300)
	require.NoError(t, err)
	_, err = Open(testDir, quietOptions(image))
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, "000001.log")
	require.ErrorContains(t, err, "offset")
	require.NoError(t, e.Close())
}

func TestMissingTableIsQuarantinedAndSaid(t *testing.T) {
	// A table that is gone must not read as "not found", and the rest of the data must stay readable.
	fs := vfs.NewMem()
	o := quietOptions(fs)
	e := mustOpen(t, o)
	put(t, e, testKey(1), "v")
	require.NoError(t, e.Flush(context.Background()))
	put(t, e, testKey(2), "w")
	require.NoError(t, e.Flush(context.Background()))
	require.NoError(t, e.Close())
	tables, err := fs.List("data/sst")
	require.NoError(t, err)
	require.Len(t, tables, 2)
	require.NoError(t, fs.Remove(path.Join("data/sst", tables[0])))
	var said []uint64
	o.Events = func(ev Event) {
		if ev.Kind == EventQuarantined {
			said = append(said, ev.Table)
		}
	}
	e = mustOpen(t, o)
	_, _, err = e.Get(testKey(1), nil)
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, tables[0])
	requireValue(t, e, testKey(2), "w")
	require.Len(t, said, 1)
	q, err := e.Quarantined()
	require.NoError(t, err)
	require.Len(t, q, 1)
	require.Equal(t, 1, e.Metrics().Quarantined)
	require.Positive(t, e.Metrics().Reads.CorruptReads)
	require.NoError(t, e.Close())
}

func TestNodeMetaIsDurableAndNotMixedWithOurs(t *testing.T) {
	// Actors and reserved counters are kept here: one that is lost makes a dot twice.
	disk := crashfs.New()
	o := quietOptions(disk)
	e := mustOpen(t, o)
	require.NoError(t, e.SetNodeMeta(map[string]string{"incarnation": "7", "gone": "x"}))
	require.NoError(t, e.SetNodeMeta(map[string]string{"gone": ""}))
	require.ErrorIs(t, e.SetNodeMeta(map[string]string{metaFlushed: "1"}), ErrInvalidKey)
	require.NoError(t, e.PinTail("p", 1))
	require.Equal(t, map[string]string{"incarnation": "7"}, e.NodeMeta())
	image := disk.CrashImage(crashfs.DropUnsynced, o.Rand)
	e2, err := Open(testDir, quietOptions(image))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"incarnation": "7"}, e2.NodeMeta())
	require.NoError(t, e2.Close())
	require.NoError(t, e.Close())
	require.ErrorIs(t, e.SetNodeMeta(map[string]string{"a": "b"}), ErrClosed)
}

func TestCheckpointIsOneStateAndStaysItsOwn(t *testing.T) {
	// A checkpoint that shares a file which is written again is no copy.
	fs := vfs.NewMem()
	o := smallOptions(fs)
	o.LogRecycled = 4
	e := mustOpen(t, o)
	for i := range 300 {
		put(t, e, testKey(i), "one")
	}
	require.NoError(t, e.Checkpoint(context.Background(), "cp"))
	require.Error(t, e.Checkpoint(context.Background(), "cp"), "the name is taken")
	for round := range 5 {
		for i := range 300 {
			put(t, e, testKey(i), fmt.Sprintf("two-%d", round))
		}
	}
	require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
	require.NoError(t, e.Close())
	c, err := Open("cp", smallOptions(fs))
	require.NoError(t, err)
	for i := range 300 {
		requireValue(t, c, testKey(i), "one")
	}
	_, err = c.Tail(1)
	require.ErrorIs(t, err, ErrOutOfRange, "its feed begins where it was made")
	require.NoError(t, c.Close())
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	e = mustOpen(t, o)
	require.ErrorIs(t, e.Checkpoint(canceled, "cp2"), context.Canceled)
	for _, name := range []string{"cp2", "cp2.tmp"} {
		_, err := fs.Stat(name)
		require.Error(t, err, name)
	}
	require.NoError(t, e.Close())
}

func TestAnyLostTableIsFoundAtOpen(t *testing.T) {
	// A volume that lost its newest file, or all of them, looks like one that never had them: the
	// node would call itself whole until somebody asks for a key.
	for name, lose := range map[string]func(tables []string) []string{
		"the oldest": func(tables []string) []string { return tables[:1] },
		"the newest": func(tables []string) []string { return tables[len(tables)-1:] },
		"all":        func(tables []string) []string { return tables },
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			o := smallOptions(fs)
			o.NoAutoCompaction = true
			e := mustOpen(t, o)
			for i := range 3 {
				put(t, e, testKey(i), "v")
				require.NoError(t, e.Flush(t.Context()))
			}
			require.NoError(t, e.Close())
			tables, err := fs.List("data/sst")
			require.NoError(t, err)
			require.Len(t, tables, 3)
			lost := lose(tables)
			for _, file := range lost {
				require.NoError(t, fs.Remove("data/sst/"+file))
			}
			e = mustOpen(t, o)
			marked, err := e.Quarantined()
			require.NoError(t, err)
			require.Len(t, marked, len(lost))
			require.NoError(t, e.Close())
		})
	}
}
