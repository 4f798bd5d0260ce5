package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// SpaceState is how full the disk is. Reads, flushes and compactions go on in each.
type SpaceState uint8

const (
	// SpaceOK: enough.
	SpaceOK SpaceState = iota
	// SpaceWarning: nothing changes, but somebody should make room.
	SpaceWarning
	// SpaceThrottled: large batches and ingests are refused.
	SpaceThrottled
	// SpaceFull: every write is refused but deletes, and what makes room.
	SpaceFull
)

// String returns the name that events and status use.
func (s SpaceState) String() string {
	return [...]string{"ok", "warning", "throttled", "full"}[min(s, SpaceFull)]
}

const (
	// leavePercent of the disk must be free beyond where a state began before it ends: a compaction
	// that takes and gives back its headroom must not switch writes off and on.
	leavePercent = 2
	// throttledBatchBytes is the largest batch that a throttled disk takes. Batches up to it are
	// records as most applications have them: counters, sessions, documents. They fill the twentieth of
	// the disk that is left slowly enough for somebody to come; what is larger, values of megabytes and
	// bulk loads, does not.
	throttledBatchBytes = 64 << 10
)

// spaceLimits are where the states begin.
type spaceLimits struct {
	// Used part of the disk in percent.
	warning, throttled, full int
	// reserve is the free space below which the disk is full whatever the percentages say.
	reserve uint64
}

func (o *Options) spaceLimits() spaceLimits {
	return spaceLimits{warning: o.DiskWarningPercent, throttled: o.DiskThrottledPercent, full: o.DiskFullPercent, reserve: uint64(o.ReserveBytes)}
}

// flushReserve is what of the reserve is left to log, flushes and manifest when deletes and compactions
// have taken their part: what jobs.Options.ReserveBytes leaves.
func (l spaceLimits) flushReserve() uint64 { return l.reserve / 4 }

// floors returns the free space below which each state begins, 0 for SpaceOK. promised is what running
// compactions may still write: writes must not take it from them, or they fail and the disk never gets
// emptier.
func (l spaceLimits) floors(total, promised uint64) [SpaceFull + 1]uint64 {
	part := func(percent int) uint64 {
		if total == 0 {
			return 0 // not known
		}
		return total/100*uint64(100-percent) + 1
	}
	return [...]uint64{
		SpaceWarning:   max(part(l.warning), 2*l.reserve),
		SpaceThrottled: part(l.throttled),
		SpaceFull:      max(part(l.full), l.reserve, promised+l.flushReserve()),
	}
}

// judge says how full a disk is that was in state was: a state begins at its floor and ends well above
// it.
func (l spaceLimits) judge(u vfs.Usage, promised uint64, was SpaceState) SpaceState {
	floors := l.floors(u.TotalBytes, promised)
	for s := SpaceFull; s > SpaceOK; s-- {
		floor := floors[s]
		if s <= was {
			floor += u.TotalBytes / 100 * leavePercent
		}
		if u.FreeBytes < floor {
			return s
		}
	}
	return SpaceOK
}

// JudgeSpace says how full a disk is that nobody has judged before; for who asks before Open.
func (o Options) JudgeSpace(u vfs.Usage) SpaceState {
	o = o.withDefaults()
	return o.spaceLimits().judge(u, 0, SpaceOK)
}

// spaceState is the disk, and the files that wait for their deletion.
type spaceState struct {
	mu    sync.Mutex
	usage vfs.Usage
	state SpaceState
	// exhausted: deletes have taken their part of the reserve.
	exhausted bool
	obsolete  []manifest.Obsolete
	waiting   uint64 // bytes of them
}

// Space returns how full the disk was when it was last looked at.
func (e *Engine) Space() (SpaceState, vfs.Usage) {
	s := &e.space
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.usage
}

// noteSpace has the disk looked at now: something found it full, or took as much of it as a memtable
// holds. Time alone is no measure: a fast writer fills what is between two states within a poll.
func (e *Engine) noteSpace() { notify(e.wake.space) }

// pollsPerRemap: which tables are in the page cache changes within minutes; to find out costs
// about 50 µs a table.
const pollsPerRemap = 6

// spaceLoop looks at the disk from time to time, and at what of it is in memory.
func (e *Engine) spaceLoop() {
	remapped := e.opts.Clock.Now()
	for {
		wait := e.opts.SpacePoll
		if e.lookAtDisk() > SpaceOK {
			wait = max(wait/5, 1)
		}
		if now := e.opts.Clock.Now(); now.Sub(remapped) >= pollsPerRemap*e.opts.SpacePoll {
			remapped = now
			e.tables.remap()
		}
		select {
		case <-e.opts.Clock.After(wait):
		case <-e.wake.space:
		case <-e.stop:
			return
		}
	}
}

// lookAtDisk updates what is known of the disk. A disk that does not answer counts as before.
func (e *Engine) lookAtDisk() SpaceState {
	u, err := e.fs.Usage(e.dir)
	limits, promised := e.opts.spaceLimits(), e.board.PromisedBytes()
	s := &e.space
	s.mu.Lock()
	old, was := s.state, s.exhausted
	if err == nil {
		s.usage, s.state = u, limits.judge(u, promised, old)
		s.exhausted = s.state == SpaceFull && u.FreeBytes < limits.flushReserve()
	}
	now, exhausted := s.state, s.exhausted
	s.mu.Unlock()
	if now != old {
		e.emit(Event{Kind: EventDiskSpace, Space: now, Reason: fmt.Sprintf("%s, was %s", now, old), Bytes: int64(u.FreeBytes), Total: int64(u.TotalBytes)})
	}
	if now < old {
		notify(e.wake.flush)
		notify(e.wake.schedule)
	}
	if now != old || exhausted != was {
		e.updatePressure()
	}
	return now
}

// noteObsolete queues the files of tables that nothing refers to any more. It is called with locks
// of the manifest, and possibly e.mu, held.
func (e *Engine) noteObsolete(tables []manifest.Obsolete) {
	s := &e.space
	s.mu.Lock()
	s.obsolete = append(s.obsolete, tables...)
	for _, t := range tables {
		s.waiting += t.Size
	}
	s.mu.Unlock()
	notify(e.wake.obsolete)
}

// deleteLoop deletes obsolete tables, paced.
func (e *Engine) deleteLoop() {
	for {
		select {
		case <-e.wake.obsolete:
		case <-e.stop:
			return
		}
		for {
			size, ok := e.deleteOne()
			if !ok {
				break
			}
			if e.opts.DeleteBytesPerSecond < 0 {
				continue
			}
			pause := time.Duration(float64(size) / float64(e.opts.DeleteBytesPerSecond) * float64(time.Second))
			if pause < time.Millisecond {
				continue // small tables: no timer is that exact
			}
			select {
			case <-e.opts.Clock.After(pause):
			case <-e.stop:
				return
			}
		}
	}
}

// deleteOne deletes the file of one obsolete table. Nothing refers to it: no version, no pin of a
// job, checkpoint or tail. The board is asked besides.
func (e *Engine) deleteOne() (size uint64, ok bool) {
	s := &e.space
	s.mu.Lock()
	if len(s.obsolete) == 0 {
		s.obsolete = nil
		s.mu.Unlock()
		return 0, false
	}
	t := s.obsolete[0]
	s.obsolete = s.obsolete[1:]
	s.waiting -= t.Size
	s.mu.Unlock()
	if e.board != nil && e.board.Holds(t.Num) {
		e.emit(Event{Kind: EventDeleteFailed, Table: t.Num, Reason: "a job still has it"})
		return 0, true
	}
	if e.tails.keepObsolete(t.Num) {
		return 0, true // a marker in the log names it
	}
	e.removeTable(t.Num)
	e.stats.deletedTables.Add(1)
	e.stats.deletedBytes.Add(t.Size)
	return t.Size, true
}

// removeTable deletes the file of a table that no version refers to. What can't be deleted goes at
// the next open.
func (e *Engine) removeTable(num uint64) {
	e.tables.evict(num)
	if err := e.fs.Remove(e.tablePath(num)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.emit(Event{Kind: EventDeleteFailed, Table: num, Err: err})
	}
}
