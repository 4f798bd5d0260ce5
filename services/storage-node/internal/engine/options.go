package engine

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// SyncMode says when a write is durable.
type SyncMode uint8

const (
	// SyncDefault is that of the engine's Options; there it means SyncGroup.
	SyncDefault SyncMode = iota
	// SyncGroup: a write returns when it is durable. Nothing acknowledged is ever lost.
	SyncGroup
	// SyncInterval: the log is synced every Options.SyncInterval. A crash of the machine may lose
	// what was acknowledged within it; a crash of the process loses nothing.
	SyncInterval
	// SyncNever: the log is synced when much of it is written, and at Close. A crash of the machine may lose up
	// to a segment of acknowledged writes; a crash of the process loses nothing.
	SyncNever
)

// ParseSyncMode reads group, interval or never.
func ParseSyncMode(s string) (SyncMode, error) {
	for m := SyncGroup; m <= SyncNever; m++ {
		if m.String() == s {
			return m, nil
		}
	}
	return 0, fmt.Errorf("%w: sync mode %q: group, interval or never expected", ErrInvalidOptions, s)
}

// String returns the name that ParseSyncMode reads.
func (m SyncMode) String() string {
	return [...]string{"default", "group", "interval", "never"}[min(m, SyncNever)]
}

// Options configure an engine. A zero value means the default that is named with each field;
// a negative one means none where the field says so.
type Options struct {
	// FS, Clock and Rand are required. The engine owns Rand.
	FS    vfs.FS
	Clock Clock
	Rand  *rand.Rand
	// Events gets typed events, one at a time. It must return soon and not call the engine.
	Events func(Event)
	// Locked is called by Open when the directory is this process's, before anything is read. It must
	// return soon. May be nil.
	Locked func()

	// Sync is SyncGroup.
	Sync SyncMode
	// SyncInterval is 100 ms, for SyncInterval, and for writes under SyncGroup nobody waits for.
	SyncInterval time.Duration
	// MaxBatchBytes is 16 MiB and MaxBatchOps 100,000: a batch is in memory several times (caller,
	// log buffer, memtable) and holds up everybody behind it.
	MaxBatchBytes, MaxBatchOps int
	// MaxGroupBytes is 1 MiB, beyond its first batch: more does not amortise a sync better, and the
	// members of a group wait for each other.
	MaxGroupBytes int
	// NoHeldGroups commits a group as soon as there is a leader, also while a sync runs. Otherwise
	// batches that wait for durability are held until it ends, and those that it woke are let in:
	// 60 of 64 writers share a sync, instead of 26.
	NoHeldGroups bool
	// NoOverlappedApply has the leader apply a group before it syncs. Otherwise another member applies a
	// group of four or more meanwhile.
	NoOverlappedApply bool
	// LogSegmentBytes is 32 MiB, preallocated: about what the writes of a memtable take when they are
	// packed, so that a flush frees one or two. A quiet store has four: the one that is written, the
	// next, and LogRecycled.
	LogSegmentBytes int64
	// LogRecycled is 2: segments kept to be written again, instead of allocated anew. Negative: none.
	LogRecycled int
	// LogPrewrite is PrewriteAuto: once the log is synced often, the blocks of segments are written ahead
	// with zeros, so that a sync has no metadata to write.
	LogPrewrite commitlog.Prewrite
	// NoLogCompression writes the groups of the log as they are. Otherwise they are packed with S2
	// where that saves an eighth: less to write, and to sync, for about 0.4 µs per KiB.
	NoLogCompression bool
	// LogOnDemand makes log segments when they are needed, instead of ahead; for tests that count
	// operations.
	LogOnDemand bool

	// MemtableBytes is 64 MiB: large enough that a flush makes one good table, small enough that
	// recovery replays it within a second.
	MemtableBytes int
	// MaxImmutables is 2 memtables that are flushed or wait for it; then writes wait. Bounds memory
	// (with the active one and a spare arena: four times MemtableBytes) and the log.
	MaxImmutables int
	// NoSpareMemtable makes the next memtable when it is needed, in fresh memory, while all writers
	// wait: for 64 MiB 30 to 50 ms. Otherwise it is made ahead, or one that was flushed is used again.
	NoSpareMemtable bool
	// KeepMemtablesAtClose leaves memtables to the next open's replay, instead of flushing them.
	KeepMemtablesAtClose bool
	// FlushRetry is 1 s: the wait after a failed flush; it doubles up to 30 times that.
	FlushRetry time.Duration

	// TableBytes is 64 MiB: at 2 GiB a job that is 32 inputs; a read looks into few files.
	TableBytes int64
	// BlockBytes is the table format's default; see sstable.WriterOptions.
	BlockBytes int
	// Compression by level, the last one for all levels below. Default: S2 everywhere.
	Compression []sstable.Compression
	// ValueBlockBytes is 1 KiB: from that length on a value gets a block of its own in a table, so
	// that a read unpacks no other one and a merge copies it as it is. Shorter ones are packed
	// better beside each other. Negative: none.
	ValueBlockBytes int
	// FilterBitsPerKey is 10: one in a hundred misses reads a block. Negative: no filters.
	FilterBitsPerKey int
	// MaxOpenTables is 1,000 table readers with their resident metadata.
	MaxOpenTables int
	// NoMappedTables makes every read of a table a system call. Otherwise tables that are in the
	// page cache are mapped, and only the others are read like that.
	NoMappedTables bool
	// NoHashIndex makes point reads search the index of a table. Otherwise a read of a mapped table
	// asks its hash index first where a long value is. Tables have one all the same, as their format
	// says; without ValueBlockBytes they have none.
	NoHashIndex bool
	// NoTableWarming leaves a new table to be opened by its first read. Otherwise it is opened before
	// the version that has it, so that no read waits for its metadata.
	NoTableWarming bool
	// BlockCacheBytes and RowCacheBytes are 128 MiB each. Negative: no cache.
	BlockCacheBytes, RowCacheBytes int64
	// NoRowAdmission makes a full row cache take every row that is read. Otherwise it takes a row that
	// is read again: most are read once, and cost a copy in and another row out.
	NoRowAdmission bool

	// L0Trigger is 4 tables in level 0 that make a compaction worthwhile, if they have at least
	// three quarters of the bytes that are rewritten with them; a quarter if nothing was written
	// for QuietAfter.
	L0Trigger int
	// L0Lazy is three times L0Trigger, and at most L0Slow: so many tables are compacted whatever
	// they weigh. As many as L0Trigger: always at once, which writes about twice as much and keeps
	// scans quicker.
	L0Lazy int
	// QuietAfter is 1 s without a write.
	QuietAfter time.Duration
	// BaseBytes is 1 GiB: the target of the first level below 0 that is used.
	BaseBytes int64
	// LevelMultiplier is 10 between the targets of neighbouring levels.
	LevelMultiplier int
	// MaxJobInputBytes is 2 GiB: bounds lost work, headroom and lease time of one job.
	MaxJobInputBytes int64
	// MaxJobs is 8 merges offered at a time: twice the default slots of a worker.
	MaxJobs int
	// L0Slow and L0Stop are 20 and 36 tables in level 0: from the first writes are delayed, from
	// the second refused. Between L0Lazy and L0Slow is what comes during a compaction.
	L0Slow, L0Stop int
	// DebtSlowBytes and DebtStopBytes are 16 GiB and 64 GiB of pending compaction.
	DebtSlowBytes, DebtStopBytes int64
	// GCBefore returns the cut of collection (hybrid-logical timestamp): tombstones and expired
	// siblings below it may go where nothing older is left. Default: nothing is collected.
	GCBefore func() uint64
	// Cuts returns, when inForce, up to which sequence the entries of each hash range may be collected;
	// see compact.Job.Cuts. They are as compact.UniteCuts returns them, and nobody changes them. Default:
	// never in force.
	Cuts func() (cuts []compact.HashCut, inForce bool)
	// NoAutoCompaction leaves compaction to Compact; for tests and bulk loads.
	NoAutoCompaction bool
	// Jobs configures the board; the engine fills FS, Dir, Now, After, Rand, Installer and Events.
	Jobs jobs.Options

	// ReserveBytes is 256 MiB of free disk space below which writes are refused, so that flushes,
	// compactions and the manifest can still free space. Negative: none.
	ReserveBytes int64
	// DiskWarningPercent is 85 % of the disk in use: somebody should make room.
	DiskWarningPercent int
	// DiskThrottledPercent is 90 % of the disk in use: large batches are refused, and ingests.
	DiskThrottledPercent int
	// DiskFullPercent is 95 % of the disk in use: only what makes room is taken, as below ReserveBytes.
	DiskFullPercent int
	// SpacePoll is 5 s between looks at the disk, 1 s from the warning on, because others may fill it. It
	// is looked at besides when a memtable is full, when one is flushed, and at an ENOSPC.
	SpacePoll time.Duration
	// DeleteBytesPerSecond is 512 MiB/s: deleting many files at once stalls some file systems.
	// Negative: no limit.
	DeleteBytesPerSecond int64

	// TailRetentionBytes is 1 GiB of log that pins may hold beyond what recovery needs; then they
	// break and their holders get ErrOutOfRange.
	TailRetentionBytes int64
	// MaxTailPins is 64 named pins.
	MaxTailPins int
}

// minMemtableBytes: smaller ones have no room for their own structure.
const minMemtableBytes = 4 << 10

func orDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// withDefaults returns o with its zero values replaced.
func (o Options) withDefaults() Options {
	if o.Sync == SyncDefault {
		o.Sync = SyncGroup
	}
	orDefault(&o.SyncInterval, 100*time.Millisecond)
	orDefault(&o.MaxBatchBytes, 16<<20)
	orDefault(&o.MaxBatchOps, 100_000)
	orDefault(&o.MaxGroupBytes, 1<<20)
	orDefault(&o.LogSegmentBytes, 32<<20)
	orDefault(&o.LogRecycled, 2)
	o.LogRecycled = max(o.LogRecycled, 0)
	orDefault(&o.MemtableBytes, 64<<20)
	orDefault(&o.MaxImmutables, 2)
	orDefault(&o.FlushRetry, time.Second)
	orDefault(&o.TableBytes, 64<<20)
	if len(o.Compression) == 0 {
		o.Compression = []sstable.Compression{sstable.S2}
	}
	orDefault(&o.ValueBlockBytes, 1<<10)
	o.ValueBlockBytes = max(o.ValueBlockBytes, 0)
	orDefault(&o.FilterBitsPerKey, 10)
	o.FilterBitsPerKey = max(o.FilterBitsPerKey, 0)
	orDefault(&o.MaxOpenTables, 1000)
	orDefault(&o.BlockCacheBytes, 128<<20)
	orDefault(&o.RowCacheBytes, 128<<20)
	orDefault(&o.L0Trigger, 4)
	orDefault(&o.QuietAfter, time.Second)
	orDefault(&o.BaseBytes, 1<<30)
	orDefault(&o.LevelMultiplier, 10)
	orDefault(&o.MaxJobInputBytes, 2<<30)
	orDefault(&o.MaxJobs, 8)
	orDefault(&o.L0Slow, 20)
	orDefault(&o.L0Stop, 36)
	orDefault(&o.L0Lazy, max(min(3*o.L0Trigger, o.L0Slow), o.L0Trigger))
	orDefault(&o.DebtSlowBytes, 16<<30)
	orDefault(&o.DebtStopBytes, 64<<30)
	if o.GCBefore == nil {
		o.GCBefore = func() uint64 { return 0 }
	}
	if o.Cuts == nil {
		o.Cuts = func() ([]compact.HashCut, bool) { return nil, false }
	}
	orDefault(&o.ReserveBytes, 256<<20)
	o.ReserveBytes = max(o.ReserveBytes, 0)
	orDefault(&o.DiskWarningPercent, 85)
	orDefault(&o.DiskThrottledPercent, 90)
	orDefault(&o.DiskFullPercent, 95)
	orDefault(&o.SpacePoll, 5*time.Second)
	orDefault(&o.DeleteBytesPerSecond, 512<<20)
	orDefault(&o.TailRetentionBytes, 1<<30)
	orDefault(&o.MaxTailPins, 64)
	return o
}

// Validate reports what is wrong with the options once defaults are filled in.
func (o Options) Validate() error {
	o = o.withDefaults()
	for _, c := range []struct {
		ok   bool
		text string
	}{
		{o.FS != nil && o.Clock != nil && o.Rand != nil, "FS, Clock and Rand are required"},
		{o.Sync <= SyncNever, "sync mode is unknown"},
		{o.SyncInterval > 0, "SyncInterval must be positive"},
		{o.MaxBatchBytes >= 1<<10 && o.MaxBatchBytes <= 48<<20, "MaxBatchBytes must be between 1 KiB and 48 MiB, a log frame's limit"},
		{o.MaxBatchOps > 0 && o.MaxGroupBytes > 0, "MaxBatchOps and MaxGroupBytes must be positive"},
		{o.LogSegmentBytes >= 4<<10, "LogSegmentBytes must be at least 4 KiB"},
		{o.LogPrewrite <= commitlog.PrewriteAlways, "LogPrewrite is unknown"},
		{o.MemtableBytes >= minMemtableBytes && o.MemtableBytes <= 4<<30, "MemtableBytes must be between 4 KiB and 4 GiB"},
		{o.MaxImmutables > 0, "MaxImmutables must be positive"},
		{o.FlushRetry > 0, "FlushRetry must be positive"},
		{o.TableBytes >= 4<<10, "TableBytes must be at least 4 KiB"},
		{o.MaxOpenTables > 0, "MaxOpenTables must be positive"},
		{len(o.Compression) <= manifest.NumLevels, "Compression names more levels than there are"},
		{o.L0Trigger > 0 && o.L0Trigger <= o.L0Lazy && o.L0Lazy <= o.L0Slow && o.L0Slow < o.L0Stop, "L0Trigger <= L0Lazy <= L0Slow < L0Stop must hold"},
		{o.QuietAfter > 0, "QuietAfter must be positive"},
		{o.DebtSlowBytes > 0 && o.DebtSlowBytes < o.DebtStopBytes, "DebtSlowBytes must be below DebtStopBytes"},
		{o.LevelMultiplier >= 2 && o.BaseBytes > 0, "LevelMultiplier must be at least 2 and BaseBytes positive"},
		{o.MaxJobs > 0 && o.MaxJobInputBytes >= o.TableBytes, "MaxJobs must be positive and MaxJobInputBytes hold a table"},
		{o.SpacePoll > 0, "SpacePoll must be positive"},
		{0 < o.DiskWarningPercent && o.DiskWarningPercent <= o.DiskThrottledPercent && o.DiskThrottledPercent <= o.DiskFullPercent && o.DiskFullPercent <= 100,
			"0 < DiskWarningPercent <= DiskThrottledPercent <= DiskFullPercent <= 100 must hold"},
		{o.TailRetentionBytes > 0 && o.MaxTailPins > 0, "TailRetentionBytes and MaxTailPins must be positive"},
	} {
		if !c.ok {
			return fmt.Errorf("%w: %s", ErrInvalidOptions, c.text)
		}
	}
	return nil
}

// compression returns the compression of tables at level.
func (o *Options) compression(level int) sstable.Compression {
	return o.Compression[min(level, len(o.Compression)-1)]
}
