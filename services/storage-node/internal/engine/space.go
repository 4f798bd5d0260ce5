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

// SpaceState is how full the disk is.
type SpaceState uint8

const (
	// SpaceOK: enough.
	SpaceOK SpaceState = iota
	// SpaceLow: below twice the reserve.
	SpaceLow
	// SpaceFull: below the reserve. Writes are refused; reads, flushes, compactions and deletes go
	// on.
	SpaceFull
)

// String returns the name that events and status use.
func (s SpaceState) String() string {
	return [...]string{"ok", "low", "full"}[min(s, SpaceFull)]
}

// judgeSpace says how full a disk is.
func judgeSpace(u vfs.Usage, reserve uint64) SpaceState {
	switch {
	case u.FreeBytes < reserve:
		return SpaceFull
	case u.FreeBytes < 2*reserve:
		return SpaceLow
	}
	return SpaceOK
}

// spaceState is the disk, and the files that wait for their deletion.
type spaceState struct {
	mu       sync.Mutex
	usage    vfs.Usage
	state    SpaceState
	obsolete []manifest.Obsolete
	waiting  uint64 // bytes of them
}

// noteDiskFull has the disk looked at now: something found it full.
func (e *Engine) noteDiskFull() { notify(e.wake.space) }

// looksPerRemap: which tables are in the page cache changes within minutes; to find out costs
// about 50 µs a table.
const looksPerRemap = 6

// spaceLoop looks at the disk from time to time, and at what of it is in memory.
func (e *Engine) spaceLoop() {
	for look := 1; ; look++ {
		e.lookAtDisk()
		if look%looksPerRemap == 0 {
			e.tables.remap()
		}
		select {
		case <-e.opts.Clock.After(e.opts.SpacePoll):
		case <-e.wake.space:
		case <-e.stop:
			return
		}
	}
}

// lookAtDisk updates what is known of the disk. A disk that does not answer counts as before.
func (e *Engine) lookAtDisk() {
	u, err := e.fs.Usage(e.dir)
	if err != nil {
		return
	}
	s := judgeSpace(u, uint64(e.opts.ReserveBytes))
	e.space.mu.Lock()
	old := e.space.state
	e.space.usage, e.space.state = u, s
	e.space.mu.Unlock()
	if s == old {
		return
	}
	e.emit(Event{Kind: EventDiskSpace, Reason: fmt.Sprintf("%s, was %s", s, old), Bytes: int64(u.FreeBytes), Total: int64(u.TotalBytes)})
	if s < old {
		notify(e.wake.flush)
		notify(e.wake.schedule)
	}
	e.updatePressure()
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
