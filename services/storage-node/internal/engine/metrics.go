package engine

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/services/storage-node/internal/cache"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
	"github.com/pairdb/pairdb/services/storage-node/internal/picker"
)

// counters count since Open.
type counters struct {
	batches, changes, batchBytes           atomic.Uint64
	groups, logBytes, syncs                atomic.Uint64
	conflicts, refused, delayed, stalls    atomic.Uint64
	delayNanos, stallNanos                 atomic.Uint64
	rotations, flushes, flushBytes         atomic.Uint64
	flushFailures, flushSteps              atomic.Uint64
	installs, moves, installBytes          atomic.Uint64
	dropped                                atomic.Uint64
	jobBytesIn, jobBytesOut                atomic.Uint64
	ingests, ingestedTables, ingestedBytes atomic.Uint64
	deletedTables, deletedBytes            atomic.Uint64
	quarantined                            atomic.Uint64
	tornTails, tornBytes                   atomic.Uint64
	recoveryNanos                          atomic.Int64
	groupSizes                             groupSizes
}

// Metrics is a picture of the engine's numbers; counters count since Open.
type Metrics struct {
	// Sequences.
	AppliedSeq, VisibleSeq, FlushedSeq uint64

	// Writes. Delayed and refused ones met pressure; stalls waited for a flush.
	Batches, Changes, BatchBytes  uint64
	Groups, LogBytes, Syncs       uint64
	Conflicts, Refused, Delayed   uint64
	DelayTime                     time.Duration
	Stalls                        uint64
	StallTime                     time.Duration
	GroupSizes                    [GroupSizeBuckets]uint64 // groups of up to 1, 2, 4, 8… batches
	GroupedBatches                uint64                   // batches of all groups
	QueueLength                   int
	Log                           commitlog.Metrics
	LogSegments                   int
	LogLiveBytes, LogRetainedFrom uint64

	// Memtables.
	MemtableBytes   int64
	MemtableEntries int64
	Immutables      int
	ImmutableBytes  int64
	Rotations       uint64
	Flushes         uint64
	FlushBytes      uint64
	FlushFailures   uint64

	// Tree. Levels has the target and the score of each level, tables in jobs included.
	Levels          [manifest.NumLevels]picker.Level
	DebtBytes       int64
	Installs, Moves uint64
	// Dropped counts records that cleanups removed.
	Dropped        uint64
	InstalledBytes uint64
	JobBytesIn     uint64
	JobBytesOut    uint64
	Ingests        uint64
	IngestedTables uint64
	IngestedBytes  uint64
	Quarantined    int
	Versions       int
	Pressure       Pressure
	Poisoned       bool
	Board          jobs.Status
	ObsoleteTables int
	ObsoleteBytes  uint64
	DeletedTables  uint64
	DeletedBytes   uint64
	DiskState      SpaceState
	DiskFreeBytes  uint64
	DiskTotalBytes uint64
	TailPins       int
	OpenTails      int
	TornTails      uint64
	TornTailBytes  uint64
	RecoveryTime   time.Duration
	Reads          ReadMetrics
	BlockCache     cache.Metrics
	RowCache       cache.Metrics
	Limits         Limits
}

// Limits are where writes wait, are delayed or refused, or where a call fails.
type Limits struct {
	Immutables                   int
	L0SlowTables, L0StopTables   int
	DebtSlowBytes, DebtStopBytes int64
	OpenTables                   int
	TailPins                     int
	TailRetentionBytes           int64
}

// GroupSizeBuckets is how many sizes of commit groups are told apart: the last one holds groups of
// more than 32,768 batches, which no limit of the node lets wait together.
const GroupSizeBuckets = 17

// groupSizes counts commit groups by the power of two that their number of batches does not exceed.
type groupSizes struct {
	groups  [GroupSizeBuckets]atomic.Uint64
	batches atomic.Uint64
}

// add counts a group of n batches, n > 0.
func (g *groupSizes) add(n int) {
	g.groups[min(bits.Len(uint(n-1)), GroupSizeBuckets-1)].Add(1)
	g.batches.Add(uint64(n))
}

// Metrics returns the engine's numbers. They are read one by one, not at one moment.
func (e *Engine) Metrics() Metrics {
	s := &e.stats
	m := Metrics{
		AppliedSeq: e.applied.Load(), VisibleSeq: e.visible.Load(), FlushedSeq: e.flushed.Load(),
		Batches: s.batches.Load(), Changes: s.changes.Load(), BatchBytes: s.batchBytes.Load(),
		Groups: s.groups.Load(), LogBytes: s.logBytes.Load(), Syncs: s.syncs.Load(),
		Conflicts: s.conflicts.Load(), Refused: s.refused.Load(), Delayed: s.delayed.Load(),
		DelayTime: time.Duration(s.delayNanos.Load()), Stalls: s.stalls.Load(), StallTime: time.Duration(s.stallNanos.Load()),
		Rotations: s.rotations.Load(), Flushes: s.flushes.Load(), FlushBytes: s.flushBytes.Load(), FlushFailures: s.flushFailures.Load(),
		Installs: s.installs.Load(), Moves: s.moves.Load(), Dropped: s.dropped.Load(), InstalledBytes: s.installBytes.Load(),
		JobBytesIn: s.jobBytesIn.Load(), JobBytesOut: s.jobBytesOut.Load(),
		Ingests: s.ingests.Load(), IngestedTables: s.ingestedTables.Load(), IngestedBytes: s.ingestedBytes.Load(),
		DeletedTables: s.deletedTables.Load(), DeletedBytes: s.deletedBytes.Load(),
		TornTails: s.tornTails.Load(), TornTailBytes: s.tornBytes.Load(), RecoveryTime: time.Duration(s.recoveryNanos.Load()),
		Poisoned: e.poisoned.Load() != nil, Versions: e.manifest.Versions(), Board: e.board.Status(),
		Reads: e.readMetrics(),
	}
	if p := e.pressure.Load(); p != nil {
		m.Pressure, m.DebtBytes = *p, p.DebtBytes
	}
	for i := range s.groupSizes.groups {
		m.GroupSizes[i] = s.groupSizes.groups[i].Load()
	}
	m.GroupedBatches = s.groupSizes.batches.Load()
	m.Limits = e.limits()
	log := e.log.Metrics()
	m.Log = log
	m.LogSegments, m.LogLiveBytes, m.LogRetainedFrom = int(log.LiveSegments), log.LiveBytes, log.OldestSegment
	e.tails.mu.Lock()
	m.TailPins, m.OpenTails = len(e.tails.pins), len(e.tails.open)
	e.tails.mu.Unlock()
	e.memoryMetrics(&m)
	e.treeMetrics(&m)
	e.diskMetrics(&m)
	m.BlockCache, m.RowCache = e.blocks.Metrics(), e.rows.Metrics()
	return m
}

func (e *Engine) limits() Limits {
	o := &e.opts
	return Limits{
		Immutables: o.MaxImmutables, L0SlowTables: o.L0Slow, L0StopTables: o.L0Stop, DebtSlowBytes: o.DebtSlowBytes,
		DebtStopBytes: o.DebtStopBytes, OpenTables: o.MaxOpenTables, TailPins: o.MaxTailPins, TailRetentionBytes: o.TailRetentionBytes,
	}
}

func (e *Engine) memoryMetrics(m *Metrics) {
	e.commit.mu.Lock()
	m.QueueLength = e.commit.length
	e.commit.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	m.MemtableBytes, m.MemtableEntries = int64(e.mu.mem.SizeBytes()), int64(e.mu.mem.Entries())
	m.Immutables = len(e.mu.imm)
	for _, h := range e.mu.imm {
		m.ImmutableBytes += int64(h.SizeBytes())
	}
}

func (e *Engine) treeMetrics(m *Metrics) {
	v := e.manifest.Current()
	defer v.Unref()
	_, m.Levels = picker.Status(v, new(picker.Busy), e.pickerOptions())
	m.Quarantined = quarantinedIn(v)
}

// QuarantinedTables returns how many damaged tables are set aside.
func (e *Engine) QuarantinedTables() int {
	v := e.manifest.Current()
	defer v.Unref()
	return quarantinedIn(v)
}

func quarantinedIn(v *manifest.Version) (n int) {
	for _, tables := range v.Levels {
		for _, t := range tables {
			if t.Quarantined {
				n++
			}
		}
	}
	return n
}

func (e *Engine) diskMetrics(m *Metrics) {
	s := &e.space
	s.mu.Lock()
	defer s.mu.Unlock()
	m.ObsoleteTables, m.ObsoleteBytes = len(s.obsolete), s.waiting
	m.DiskState, m.DiskFreeBytes, m.DiskTotalBytes = s.state, s.usage.FreeBytes, s.usage.TotalBytes
}
