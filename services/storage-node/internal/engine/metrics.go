package engine

import (
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/services/storage-node/internal/cache"
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
	flushFailures                          atomic.Uint64
	installs, moves, installBytes          atomic.Uint64
	jobBytesIn, jobBytesOut                atomic.Uint64
	ingests, ingestedTables, ingestedBytes atomic.Uint64
	deletedTables, deletedBytes            atomic.Uint64
	quarantined                            atomic.Uint64
	tornTails, tornBytes                   atomic.Uint64
	recoveryNanos                          atomic.Int64
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
	QueueLength                   int
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
	FlushInProgress bool

	// Tree. Levels has the target and the score of each level, tables in jobs included.
	Levels          [manifest.NumLevels]picker.Level
	DebtBytes       int64
	Installs, Moves uint64
	InstalledBytes  uint64
	JobBytesIn      uint64
	JobBytesOut     uint64
	Ingests         uint64
	IngestedTables  uint64
	IngestedBytes   uint64
	Quarantined     int
	Versions        int
	Pressure        Pressure
	Poisoned        bool
	Board           jobs.Status
	ObsoleteTables  int
	ObsoleteBytes   uint64
	DeletedTables   uint64
	DeletedBytes    uint64
	DiskState       SpaceState
	DiskFreeBytes   uint64
	DiskTotalBytes  uint64
	TailPins        int
	TornTails       uint64
	TornTailBytes   uint64
	RecoveryTime    time.Duration
	Reads           ReadMetrics
	BlockCache      cache.Metrics
	RowCache        cache.Metrics
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
		Installs: s.installs.Load(), Moves: s.moves.Load(), InstalledBytes: s.installBytes.Load(),
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
	log := e.log.Metrics()
	m.LogSegments, m.LogLiveBytes, m.LogRetainedFrom = int(log.LiveSegments), log.LiveBytes, log.OldestSegment
	e.tails.mu.Lock()
	m.TailPins = len(e.tails.pins)
	e.tails.mu.Unlock()
	e.memoryMetrics(&m)
	e.treeMetrics(&m)
	e.diskMetrics(&m)
	m.BlockCache, m.RowCache = e.blocks.Metrics(), e.rows.Metrics()
	return m
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
	for _, tables := range v.Levels {
		for _, t := range tables {
			if t.Quarantined {
				m.Quarantined++
			}
		}
	}
}

func (e *Engine) diskMetrics(m *Metrics) {
	s := &e.space
	s.mu.Lock()
	defer s.mu.Unlock()
	m.ObsoleteTables, m.ObsoleteBytes = len(s.obsolete), s.waiting
	m.DiskState, m.DiskFreeBytes, m.DiskTotalBytes = s.state, s.usage.FreeBytes, s.usage.TotalBytes
}
