package jobs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
)

// Key names one attempt of one job. A key of another session or of an older epoch is fenced.
type Key struct {
	// Session is random per board.
	Session uint64
	// ID is the job, never 0.
	ID uint64
	// Epoch rises by one with each lease of the job, from 1.
	Epoch uint32
}

// String prints the key as logs and staging directories do.
func (k Key) String() string { return fmt.Sprintf("%06d.e%d", k.ID, k.Epoch) }

// Plan is a job as the engine offers it. The board owns it from Offer to Installer.Release.
type Plan struct {
	// Job is what the worker gets. The board sets ID, and MaxOutputs where it is 0; it lowers
	// MaxOutputs to Options.MaxOutputs.
	Job compact.Job
	// Entries is the sum of the inputs' Meta.Entries; a merge that accounts for another number is
	// rejected.
	Entries uint64
	// MinSeq and MaxSeq bound the sequences of all inputs. An output outside of them is rejected.
	MinSeq, MaxSeq ikey.Seq
	// Priority orders the queue, highest first; equal ones go first in, first out.
	Priority float64
	// Reason says for people why the engine wants this.
	Reason string
	// Tag is the engine's own; the board hands it back untouched.
	Tag any
	// Stats are what became of the entries. The board fills them in before Installer.Install, from a
	// report that it has verified.
	Stats compact.Stats
}

// Origin says who wrote the outputs.
type Origin uint8

const (
	// External is a worker process.
	External Origin = iota
	// Local is the executor inside of this process.
	Local
)

// String returns the name that metrics and status use.
func (o Origin) String() string {
	if o == Local {
		return "local"
	}
	return "external"
}

// Installer is what the board asks of the engine. The calls come from the board's goroutines and
// from those of its callers, never with a lock of the board held, so an implementation may call the
// board back.
type Installer interface {
	// Check says, before outputs are verified, whether the plan still fits the current version.
	// An error cancels the job and is the reason; one that is vfs.ErrNoSpace has it tried later.
	Check(p *Plan) error
	// Install moves the verified outputs into place and commits them with one edit. outs carry
	// what the node itself read from the files: outs[i] is the file at files[i], sealed (0440,
	// no writer) and synced. No outputs is a valid result: the inputs just go. An error that is
	// ErrObsolete cancels the job, one that is vfs.ErrNoSpace has it tried later, any other one
	// costs the attempt.
	Install(p *Plan, outs []compact.Output, files []string, by Origin) error
	// Quarantine sets tables aside whose damage the node has seen itself. The plan is about to
	// be released.
	Quarantine(p *Plan, corrupt []compact.CorruptInput)
	// Release ends the plan: drop its pins. It is called exactly once for every offered plan.
	// After StateQuarantined the engine must not offer the same inputs again by itself; reason
	// says why.
	Release(p *Plan, s State, reason string)
}

var (
	// ErrObsolete is what an Installer returns when the plan does not fit the version any more.
	ErrObsolete = errors.New("plan is obsolete")
	// ErrClosed says that the board takes no more calls.
	ErrClosed = errors.New("job board is closed")
	// ErrQueueFull says that too many jobs wait already.
	ErrQueueFull = errors.New("job queue is full")
	// ErrBusy says that an input of the plan is in another job.
	ErrBusy = errors.New("table is in another job")
	// ErrInvalidPlan says that a plan can't be a job.
	ErrInvalidPlan = errors.New("invalid plan")
	// ErrInvalidWorker says that a worker's description is out of its limits.
	ErrInvalidWorker = errors.New("invalid worker")
)

// State is where a job stands.
type State uint8

const (
	// StateQueued waits for a worker.
	StateQueued State = iota
	// StateLeased is with a worker.
	StateLeased
	// StateVerifying is reported complete and being checked and installed; it can't expire.
	StateVerifying
	// StateLocal waits for the local executor, its last attempt.
	StateLocal
	// StateInstalled is done. Terminal.
	StateInstalled
	// StateCancelled was taken back. Terminal.
	StateCancelled
	// StateQuarantined failed too often, or its inputs are damaged. Terminal.
	StateQuarantined
)

var stateNames = [...]string{"queued", "leased", "verifying", "local", "installed", "cancelled", "quarantined"}

// String returns the name that status prints.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Terminal reports whether a job in this state is over.
func (s State) Terminal() bool { return s >= StateInstalled }

// Worker describes who asks for work.
type Worker struct {
	// Name is stable while the worker process lives; for people and metrics only.
	Name string
	// FreeSlots is how many jobs it takes now, TotalSlots how many at most.
	FreeSlots, TotalSlots int
	// Formats are the table formats that it reads and writes.
	Formats []uint32

	local bool // set by the executor of this package only
}

// Lease is one granted attempt.
type Lease struct {
	Key Key
	// Job is a copy by value; its slices are shared and read-only.
	Job compact.Job
	// Lease is how long it holds without a heartbeat, Heartbeat how often to send one.
	Lease, Heartbeat time.Duration
}

// Direction is the answer to a heartbeat.
type Direction struct {
	// Stop ends the attempt: close the files and forget it. Reason says why.
	Stop   bool
	Reason string
	// MaxBytesPerSecond is the limit from now on; 0 is none.
	MaxBytesPerSecond int64
}

// Report is what a worker says of a finished attempt. All of it may be a lie.
type Report struct {
	Outputs []compact.Output
	Stats   compact.Stats
	// Corrupt is the result of a scrub.
	Corrupt []compact.CorruptInput
}

// Outcome is the answer to a report.
type Outcome uint8

const (
	// Installed says that the outputs are in the tree, durably.
	Installed Outcome = iota + 1
	// AlreadyInstalled answers the repetition of a report that was installed.
	AlreadyInstalled
	// Rejected says that nothing of it was taken; the attempt is over.
	Rejected
	// Fenced says that the key is not, or no longer, that of a leased attempt.
	Fenced
)

// String returns the name as the wire's documentation writes it.
func (o Outcome) String() string {
	switch o {
	case Installed:
		return "INSTALLED"
	case AlreadyInstalled:
		return "ALREADY_INSTALLED"
	case Rejected:
		return "REJECTED"
	case Fenced:
		return "FENCED"
	}
	return fmt.Sprintf("OUTCOME(%d)", uint8(o))
}

// Verdict is an outcome with its reason.
type Verdict struct {
	Outcome Outcome
	Reason  string
}

// AbandonReason says why a worker gives a job back.
type AbandonReason uint8

const (
	// AbandonNoSpace: the disk is full. Tried again later, does not count.
	AbandonNoSpace AbandonReason = iota + 1
	// AbandonIOError: reading or writing failed.
	AbandonIOError
	// AbandonCorruptInput: inputs are damaged. The node looks itself before it believes it.
	AbandonCorruptInput
	// AbandonShutdown: the worker ends. Does not count.
	AbandonShutdown
	// AbandonUnsupportedFormat: the worker can't read or write the format.
	AbandonUnsupportedFormat
)

var abandonNames = [...]string{"unknown", "no space", "i/o error", "corrupt input", "shutdown", "unsupported format"}

// String returns the name that events use.
func (r AbandonReason) String() string {
	if int(r) < len(abandonNames) {
		return abandonNames[r]
	}
	return abandonNames[0]
}

// Mode says when the executor inside of this process works.
type Mode uint8

const (
	// ModeAuto: when no worker has been seen for Options.LocalAfter, or when the engine is under
	// pressure (SetUrgent), and for the last attempt of a job.
	ModeAuto Mode = iota
	// ModeNever: not even for the last attempt, which is left out.
	ModeNever
	// ModeAlways: beside the external workers.
	ModeAlways
)

// ParseMode reads auto, never or always.
func ParseMode(s string) (Mode, error) {
	switch s {
	case "auto":
		return ModeAuto, nil
	case "never":
		return ModeNever, nil
	case "always":
		return ModeAlways, nil
	}
	return 0, fmt.Errorf("local compaction mode %q: auto, never or always expected", s)
}

// ScrubSource hands out the next table to scrub: the first one numbered above after, or the very
// first if there is none above. The board calls release when it is done with the pin.
type ScrubSource func(after uint64) (in compact.Input, release func(), ok bool)

// Options configure a board. Zero values mean the default that is named with each field.
type Options struct {
	// FS holds Dir, the data directory: inputs are in sst/, attempts in staging/. Required.
	FS  vfs.FS
	Dir string
	// Now is a monotonic clock, After its timer. Required.
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time
	// Rand seeds the board's own source, which makes the session and picks what is read again in
	// full. It must differ from process to process. Required; used by NewBoard only.
	Rand *rand.Rand
	// Session names this process's leases; 0: a random one.
	Session uint64
	// Installer is the engine. Required.
	Installer Installer
	// Events gets every state change, in order. It must not call the board. May be nil.
	Events func(Event)

	// Lease is 15 s: three missed heartbeats of Heartbeat, 5 s.
	Lease, Heartbeat time.Duration
	// Stall is 60 s: an attempt that heartbeats but processes no byte for so long is stopped.
	Stall time.Duration
	// MaxAttempt is 1 h: the longest an attempt may take, whatever it claims; 2 GiB at 600 KiB/s.
	MaxAttempt time.Duration
	// Poll is 20 s: how long Lease waits for work. Below the idle time-outs of everything between.
	Poll time.Duration
	// Attempts is 3: then one local attempt, then quarantine.
	Attempts int
	// MaxQueued is 1,024 jobs that are not terminal.
	MaxQueued int
	// MaxInputBytes is 2 GiB a job; bounds lost work, headroom and the time of a lease.
	MaxInputBytes int64
	// MaxOutputs is 64 files a job.
	MaxOutputs int
	// ReserveBytes is the free space below which the engine refuses writes, kept for merges that
	// make room: merges may use all of it but a quarter, which the log and the manifest need.
	// Default 0.
	ReserveBytes uint64
	// VerifyProbability is how often outputs are read again in full before they are installed:
	// 0 never, 1 always.
	VerifyProbability float64
	// AuditProbability is how often the merge of another process is done again by the node, and compared
	// entry by entry; always, once a worker was caught at another result.
	AuditProbability float64

	// Mode, LocalAfter (30 s) and LocalRate (32 MiB/s, negative is no limit) govern the executor
	// in this process; it has one slot.
	Mode       Mode
	LocalAfter time.Duration
	LocalRate  int64
	// Formats are the table formats that this binary handles. Default: 1.
	Formats []uint32
	// Rate limits each external job in bytes per second, 0 is no limit; SetRate changes it.
	Rate int64

	// Scrub is where tables to scrub come from; nil: no scrubs. One table per ScrubInterval
	// (60 s) is offered, when a worker asks and nothing else waits, at ScrubRate (8 MiB/s).
	Scrub         ScrubSource
	ScrubInterval time.Duration
	ScrubRate     int64
}
