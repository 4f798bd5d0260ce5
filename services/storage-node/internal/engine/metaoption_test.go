package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"sync"
	"testing"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/stretchr/testify/require"
)

// metaOption is one set of options of the metamorphic test.
type metaOption struct {
	keys, largeValue int
	memtable         int
	segment          int64
	table, base      int64
	block            int
	compression      []sstable.Compression
	filterBits       int
	valueBlocks      int // from which length on a value has a block of its own
	noMapped         bool
	blockCache, rows int64
	openTables       int
	l0, multiplier   int
	eager            bool // level 0 does not wait for a merge that pays
	sync             SyncMode
	external         bool
	manual           bool // no compaction but those that are asked for
	keepMemtables    bool
	prewrite         commitlog.Prewrite
	packed           bool
	noHashIndex      bool
	noWarming        bool
	noAdmission      bool
	noHeld           bool
	noOverlap        bool
	noSpare          bool
}

func pick[T any](rng *rand.Rand, values ...T) T { return values[rng.IntN(len(values))] }

// metaOptions returns option set i: corners first, the rest random.
func metaOptions(i int, rng *rand.Rand) metaOption {
	c := sstable.None
	o := metaOption{
		keys:        pick(rng, 5, 30, 100, 300),
		largeValue:  pick(rng, 300, 3_000, 30_000),
		memtable:    pick(rng, 8<<10, 16<<10, 64<<10, 256<<10),
		segment:     pick(rng, int64(16<<10), 64<<10, 1<<20),
		table:       pick(rng, int64(8<<10), 32<<10, 128<<10),
		base:        pick(rng, int64(16<<10), 64<<10, 512<<10),
		block:       pick(rng, 256, 1<<10, 4<<10, 32<<10),
		filterBits:  pick(rng, -1, 1, 5, 10, 20),
		valueBlocks: pick(rng, -1, 1, 100, 1<<10),
		noMapped:    rng.IntN(3) == 0,
		blockCache:  pick(rng, int64(-1), 4<<10, 64<<10, 8<<20),
		rows:        pick(rng, int64(-1), 4<<10, 64<<10, 8<<20),
		openTables:  pick(rng, 1, 2, 8, 100),
		l0:          pick(rng, 1, 2, 4),
		multiplier:  pick(rng, 2, 4, 10),
		eager:       rng.IntN(2) == 0,
		sync:        pick(rng, SyncGroup, SyncGroup, SyncInterval, SyncNever),
		external:    rng.IntN(2) == 0,
		manual:      rng.IntN(6) == 0,
	}
	o.keepMemtables = rng.IntN(3) == 0
	o.packed = rng.IntN(2) == 0
	o.prewrite = pick(rng, commitlog.PrewriteAuto, commitlog.PrewriteNever, commitlog.PrewriteAlways)
	switch rng.IntN(4) {
	case 0:
		o.compression = []sstable.Compression{c}
	case 1:
		o.compression = []sstable.Compression{sstable.S2}
	case 2:
		o.compression = []sstable.Compression{sstable.Zstd}
	case 3:
		o.compression = []sstable.Compression{c, sstable.S2, sstable.Zstd}
	}
	for _, off := range []*bool{&o.noHashIndex, &o.noWarming, &o.noAdmission, &o.noHeld, &o.noOverlap, &o.noSpare} {
		*off = rng.IntN(3) == 0
	}
	switch i { // corners that must be in every run
	case 0:
		o.rows, o.blockCache, o.filterBits, o.openTables, o.sync = -1, -1, -1, 1, SyncGroup
		o.valueBlocks, o.noMapped = -1, true
		o.noHashIndex, o.noWarming, o.noAdmission, o.noHeld, o.noOverlap, o.noSpare = true, true, true, true, true, true
	case 1:
		o.rows, o.blockCache, o.sync, o.external, o.manual = 8<<20, 8<<20, SyncGroup, true, false
		o.valueBlocks, o.noMapped = 1, false
		o.noHashIndex, o.noWarming, o.noAdmission, o.noHeld, o.noOverlap, o.noSpare = false, false, false, false, false, false
	case 2:
		o.rows, o.external, o.manual, o.l0, o.base = 8<<20, false, false, 1, 16<<10
	case 3:
		o.memtable, o.keys, o.largeValue, o.table = 8<<10, 5, 30_000, 8<<10
	case 4:
		o.sync, o.keepMemtables, o.rows = SyncNever, true, 64<<10
	case 5:
		o.sync, o.manual = SyncInterval, true
	}
	return o
}

func (o metaOption) String() string { return fmt.Sprint(o.fields()) }

func (o metaOption) fields() map[string]any {
	return map[string]any{"keys": o.keys, "large": o.largeValue, "memtable": o.memtable, "segment": o.segment,
		"table": o.table, "base": o.base, "block": o.block, "compression": o.compression, "filter": o.filterBits, "valueBlocks": o.valueBlocks, "noMapped": o.noMapped,
		"blockCache": o.blockCache, "rows": o.rows, "open": o.openTables, "l0": o.l0, "eager": o.eager, "multiplier": o.multiplier,
		"sync": o.sync.String(), "external": o.external, "manual": o.manual, "keepMemtables": o.keepMemtables, "prewrite": o.prewrite, "packed": o.packed,
		"noHashIndex": o.noHashIndex, "noWarming": o.noWarming, "noAdmission": o.noAdmission, "noHeld": o.noHeld, "noOverlap": o.noOverlap, "noSpare": o.noSpare}
}

// systemClock is the clock of tests that need no control over time.
type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

func (o metaOption) options(fs vfs.FS, rng *rand.Rand) Options {
	opts := Options{
		FS: fs, Clock: systemClock{}, Rand: rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64())),
		Sync: o.sync, SyncInterval: time.Millisecond, LogSegmentBytes: o.segment, LogPrewrite: o.prewrite, NoLogCompression: !o.packed,
		MemtableBytes: o.memtable, KeepMemtablesAtClose: o.keepMemtables,
		TableBytes: o.table, BlockBytes: o.block, Compression: o.compression, FilterBitsPerKey: o.filterBits,
		ValueBlockBytes: o.valueBlocks, NoMappedTables: o.noMapped, NoHashIndex: o.noHashIndex, NoTableWarming: o.noWarming,
		NoRowAdmission: o.noAdmission, NoHeldGroups: o.noHeld, NoOverlappedApply: o.noOverlap, NoSpareMemtable: o.noSpare,
		MaxOpenTables: o.openTables, BlockCacheBytes: o.blockCache, RowCacheBytes: o.rows,
		L0Trigger: o.l0, L0Slow: 1000, L0Stop: 2000, BaseBytes: o.base, LevelMultiplier: o.multiplier,
		NoAutoCompaction: o.manual, ReserveBytes: -1, DeleteBytesPerSecond: -1,
		Jobs: jobs.Options{Mode: jobs.ModeAlways, VerifyProbability: 1, LocalRate: -1},
	}
	if o.eager {
		opts.L0Lazy = o.l0
	}
	if o.external {
		opts.Jobs.Mode = jobs.ModeNever
	}
	return opts
}

// externalWorker does the jobs of an engine as another process would: it knows the board's calls
// and the files, nothing else of the engine.
type externalWorker struct {
	board  *jobs.Board
	fs     vfs.FS
	dir    string
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func startExternalWorker(e *Engine, fs vfs.FS, dir string) *externalWorker {
	ctx, cancel := context.WithCancel(context.Background())
	w := &externalWorker{board: e.Board(), fs: fs, dir: dir, cancel: cancel}
	w.done.Go(func() { w.loop(ctx) })
	return w
}

func (w *externalWorker) stop() {
	w.cancel()
	w.done.Wait()
}

func (w *externalWorker) loop(ctx context.Context) {
	me := jobs.Worker{Name: "test", FreeSlots: 1, TotalSlots: 1, Formats: []uint32{sstable.FormatVersion}}
	for ctx.Err() == nil {
		leases, err := w.board.Lease(ctx, me)
		if errors.Is(err, jobs.ErrClosed) {
			return
		}
		for _, l := range leases {
			w.attempt(ctx, l)
		}
	}
}

func (w *externalWorker) attempt(ctx context.Context, l jobs.Lease) {
	staging := path.Join(w.dir, compact.StagingDir, compact.AttemptName(l.Key.ID, l.Key.Epoch))
	outs, stats, corrupt, err := compact.Run(ctx, l.Job, compact.Env{
		OpenInput: func(in compact.Input) (vfs.File, error) {
			return w.fs.Open(path.Join(w.dir, compact.TableDir, compact.TableName(in.Num)))
		},
		OpenOutput: func(index int) (vfs.File, error) {
			return w.fs.OpenReadWrite(path.Join(staging, compact.OutputName(index)))
		},
		Progress: func(done int64) { w.board.Heartbeat(l.Key, done) },
		Throttle: func(ctx context.Context, _ int) error { return ctx.Err() },
	})
	if err != nil {
		reason := jobs.AbandonIOError
		if ctx.Err() != nil {
			reason = jobs.AbandonShutdown
		}
		w.board.Abandon(l.Key, reason, err.Error(), corrupt)
		return
	}
	_, _ = w.board.Complete(ctx, l.Key, jobs.Report{Outputs: outs, Stats: stats, Corrupt: corrupt}) // the board acts on it
}

// requireNothingPinned checks after Close that nothing is held any more.
func requireNothingPinned(t testing.TB, e *Engine) {
	t.Helper()
	require.Zero(t, e.states.Load(), "read states are pinned")
	require.Zero(t, e.iters.Load(), "iterators are open")
	require.Zero(t, e.snapshots.count(), "snapshots are open")
	require.Zero(t, e.tables.files.Load(), "table files are open")
}
