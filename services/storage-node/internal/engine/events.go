package engine

import (
	"fmt"
	"time"

	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// EventKind says what happened.
type EventKind uint8

const (
	// EventRecovery is the progress of Open: Bytes of Total log bytes are replayed.
	EventRecovery EventKind = iota
	// EventTornTail: the unfinished end of the commit log was cut; Bytes were dropped.
	EventTornTail
	// EventOpened: the engine takes reads and writes; Duration is how long Open took.
	EventOpened
	// EventFlushed: a memtable became Tables tables of Bytes bytes.
	EventFlushed
	// EventFlushFailed: it will be tried again; the memtable stays.
	EventFlushFailed
	// EventInstalled: a compaction's outputs are in the tree.
	EventInstalled
	// EventIngested: Tables tables were ingested at Seq.
	EventIngested
	// EventJob: see Job.
	EventJob
	// EventScheduleFailed: a compaction could not be offered.
	EventScheduleFailed
	// EventQuarantined: Table is damaged; reads that need it fail, the file stays.
	EventQuarantined
	// EventPressure: writes are delayed or refused, or no longer; Reason says why.
	EventPressure
	// EventDiskSpace: the state of the disk changed to Space; Reason names it and what it was.
	EventDiskSpace
	// EventDeleteFailed: a file could not be deleted; it is tried again at the next open.
	EventDeleteFailed
	// EventPinBroken: a tail pin held more log than the retention allows.
	EventPinBroken
	// EventPoisoned: a sync failed. The engine takes no more writes: the process must end.
	EventPoisoned
	// EventClosed: Close is done.
	EventClosed
)

var eventNames = [...]string{
	"recovery", "torn-tail", "opened", "flushed", "flush-failed", "installed", "ingested", "job",
	"schedule-failed", "quarantined", "pressure", "disk-space", "delete-failed", "pin-broken", "poisoned", "closed",
}

// String returns the name of the kind for logs.
func (k EventKind) String() string {
	if int(k) < len(eventNames) {
		return eventNames[k]
	}
	return fmt.Sprintf("event(%d)", uint8(k))
}

// Event is one state change. Which fields count is said with each kind; Err and Reason come with
// any of them.
type Event struct {
	Kind     EventKind
	Err      error
	Reason   string
	Bytes    int64
	Total    int64
	Tables   int
	Table    uint64
	Seq      uint64
	Duration time.Duration
	Space    SpaceState
	Job      *jobs.Event
}

// emit hands an event to the owner. Events are delivered one at a time, and never with a lock of
// the engine held that a method the owner may call needs.
func (e *Engine) emit(ev Event) {
	if e.opts.Events == nil {
		return
	}
	e.eventMu.Lock()
	defer e.eventMu.Unlock()
	e.opts.Events(ev)
}
