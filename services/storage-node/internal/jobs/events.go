package jobs

import "time"

// EventKind says what happened to a job, a worker or a table.
type EventKind uint8

const (
	// EventQueued: a job was offered, or is queued again.
	EventQueued EventKind = iota
	// EventLeased: an attempt was granted.
	EventLeased
	// EventInstalled: a job is done.
	EventInstalled
	// EventRejected: a report was not believed.
	EventRejected
	// EventExpired: a lease ran out.
	EventExpired
	// EventStalled: an attempt made no progress.
	EventStalled
	// EventAbandoned: a worker gave a job back.
	EventAbandoned
	// EventLocal: only the local executor may try now.
	EventLocal
	// EventQuarantined: a job will not be tried again.
	EventQuarantined
	// EventCancelled: a job was taken back.
	EventCancelled
	// EventScrubbed: a table was checked.
	EventScrubbed
	// EventCorrupt: the node has seen the damage of a table.
	EventCorrupt
	// EventNoSpace: no headroom for the outputs of a job.
	EventNoSpace
	// EventWorkersGone: no worker has been seen for Options.LocalAfter.
	EventWorkersGone
	// EventWorkersBack: a worker is there again.
	EventWorkersBack
	// EventCleanup: an attempt's directory could not be removed; it is tried again.
	EventCleanup
)

var eventNames = [...]string{
	"queued", "leased", "installed", "rejected", "expired", "stalled", "abandoned", "local", "quarantined",
	"cancelled", "scrubbed", "corrupt", "no-space", "workers-gone", "workers-back", "cleanup",
}

// String returns the name of the kind for logs.
func (k EventKind) String() string {
	if int(k) < len(eventNames) {
		return eventNames[k]
	}
	return "unknown"
}

// Event is one state change.
type Event struct {
	Kind EventKind
	// Key is the attempt; Epoch is 0 before the first one, the whole is zero for worker events.
	Key Key
	// Worker is who holds or held it.
	Worker string
	Origin Origin
	// Reason is for people.
	Reason string
	// Duration is how long the attempt ran, where one ended.
	Duration time.Duration
	// Inputs and Outputs count tables, BytesIn and BytesOut their sizes.
	Inputs, Outputs   int
	BytesIn, BytesOut int64
}

// Totals count since the board was made.
type Totals struct {
	Offered, InstalledExternal, InstalledLocal    uint64
	Rejected, Expired, Stalled, Abandoned, Fenced uint64
	Quarantined, Cancelled                        uint64
	Scrubbed, CorruptTables                       uint64
	HeadroomRefusals, WorkersGone                 uint64
	BytesInExternal, BytesInLocal                 uint64
	BytesOutExternal, BytesOutLocal               uint64
}

// WorkerStatus is a worker that was seen lately.
type WorkerStatus struct {
	Name       string
	Local      bool
	TotalSlots int
	// Leases is how many attempts it holds, Polling whether it waits for work now.
	Leases  int
	Polling bool
	// Idle is how long ago it was last heard of; 0 while it polls.
	Idle time.Duration
}

// JobStatus is a job that is not terminal.
type JobStatus struct {
	Key      Key
	Scrub    bool
	State    State
	Reason   string
	Priority float64
	// Inputs are the table numbers; the levels are InputLevel (the smallest) to OutputLevel.
	Inputs                  []uint64
	InputLevel, OutputLevel int
	InputBytes, DoneBytes   int64
	// Attempts is how many failed, LastFailure why the last one did.
	Attempts    int
	LastFailure string
	// Worker holds it, for Running; the rest of the lease is Left.
	Worker        string
	Running, Left time.Duration
}

// Status is a snapshot for people and metrics.
type Status struct {
	Session uint64
	Workers []WorkerStatus // by name
	Jobs    []JobStatus    // by id
	Totals  Totals
	// ExternalWorkers counts those that poll or hold leases; the local executor is not one.
	ExternalWorkers int
	// ReservedBytes is the headroom promised to attempts.
	ReservedBytes uint64
	// MaxJobs is how many jobs that are not terminal there may be.
	MaxJobs int
}
