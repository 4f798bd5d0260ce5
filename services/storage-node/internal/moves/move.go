package moves

import (
	"fmt"
	"strings"
	"time"

	"github.com/pairdb/pairdb/libs/ring"
)

// State is where a move stands. The numbers are stored, and those of the wire.
type State uint8

// The states, in the order of a move's life.
const (
	// Planned is wanted, and nothing has happened.
	Planned State = iota + 1
	// Pinned: the log is held.
	Pinned
	// Copying sends records of a snapshot.
	Copying
	// Tailing sends changes since the pin.
	Tailing
	// Verifying compares both sides, while changes are sent on.
	Verifying
	// Fenced refuses writes of the ranges.
	Fenced
	// Accepted: the target has the ranges, durably.
	Accepted
	// Committed: the source knows it, durably.
	Committed
	// Released holds nothing any more; it is over.
	Released
	// Failed can't go on, and can be resumed.
	Failed
	// Cancelled was called off; it is over.
	Cancelled
)

// States are all of them.
var States = []State{Planned, Pinned, Copying, Tailing, Verifying, Fenced, Accepted, Committed, Released, Failed, Cancelled}

var stateNames = [...]string{
	Planned: "PLANNED", Pinned: "PINNED", Copying: "COPYING", Tailing: "TAILING", Verifying: "VERIFYING", Fenced: "FENCED",
	Accepted: "ACCEPTED", Committed: "COMMITTED", Released: "RELEASED", Failed: "FAILED", Cancelled: "CANCELLED",
}

// String returns the word for a state.
func (s State) String() string { return word("State", stateNames[:], uint8(s)) }

func (s State) known() bool { return s >= Planned && s <= Cancelled }

// Ended reports whether nothing follows any more.
func (s State) Ended() bool { return s == Released || s == Cancelled }

// Mode says when a move ends. The numbers are stored, and those of the wire.
type Mode uint8

// The modes.
const (
	// Once ends when the target has everything and both sides were compared.
	Once Mode = iota + 1
	// Follow ends when it is told to.
	Follow
)

var modeNames = [...]string{Once: "ONCE", Follow: "FOLLOW"}

// String returns the word for a mode.
func (m Mode) String() string { return word("Mode", modeNames[:], uint8(m)) }

func (m Mode) known() bool { return m == Once || m == Follow }

// Purpose says what a move is for. The numbers are stored, and those of the wire.
type Purpose uint8

// The purposes.
const (
	// PurposeReplicate copies at an operator's word.
	PurposeReplicate Purpose = iota + 1
	// PurposeDrain gives the ranges of a node that leaves away.
	PurposeDrain
	// PurposeBootstrap gives a node that joins its ranges.
	PurposeBootstrap
	// PurposeRepair compares, and exchanges both ways what differs.
	PurposeRepair
	// PurposeStream follows at the word of an existing coordinator.
	PurposeStream
)

// Purposes are all of them.
var Purposes = []Purpose{PurposeReplicate, PurposeDrain, PurposeBootstrap, PurposeRepair, PurposeStream}

var purposeNames = [...]string{
	PurposeReplicate: "REPLICATE", PurposeDrain: "DRAIN", PurposeBootstrap: "BOOTSTRAP", PurposeRepair: "REPAIR", PurposeStream: "STREAM",
}

// String returns the word for a purpose.
func (p Purpose) String() string { return word("Purpose", purposeNames[:], uint8(p)) }

func (p Purpose) known() bool { return p >= PurposeReplicate && p <= PurposeStream }

// word returns a name, or a number where there is none.
func word(kind string, names []string, n uint8) string {
	if int(n) < len(names) && names[n] != "" {
		return names[n]
	}
	return fmt.Sprintf("%s(%d)", kind, n)
}

// Selection says which records are meant. What is set narrows it down together; the zero value is
// everything that clients stored. Its slices are shared: nobody changes them.
type Selection struct {
	// Tenant is empty for all tenants.
	Tenant string
	// Start and End bound the keys of the tenant, half-open; empty is no bound.
	Start, End string
	// Keys of the tenant; none is all.
	Keys []string
	// HashRanges of tokens; none is the whole ring.
	HashRanges []ring.HashRange
}

// Target is where a move goes.
type Target struct {
	// NodeID is its PAIRDB_NODE_ID.
	NodeID string
	// Addr is where it serves clients, host:port; empty: as the members know it.
	Addr string
}

// Spec is what a move is made with, and does not change.
type Spec struct {
	// ID is 1 to MaxIDBytes of a-z, 0-9, dash and dot.
	ID      string
	Purpose Purpose
	Mode    Mode
	What    Selection
	Target  Target
	// HandOver makes the target the owner of the ranges.
	HandOver bool
	// MaxBytesPerSecond is of this move alone; 0 is none.
	MaxBytesPerSecond int64
	// Parent is the drain or bootstrap that it is part of; may be empty.
	Parent string
}

// Progress is how far a move is; as pairdb.move.v1.Progress.
type Progress struct {
	CopiedRecords, CopiedBytes int64
	TailedRecords, TailedBytes int64
	TotalBytes                 int64
	ResentBytes                int64
	BytesPerSecond             int64
	// RemainingSeconds and LagMS are -1 when they are not known.
	RemainingSeconds int64
	LagRecords       int64
	LagMS            int64
	ComparedKeys     int64
	RepairedKeys     int64
	Resumes          int64
}

// Move is data on its way to another node. It is a value; CopyCursor and the slices of What are shared and
// nobody changes them.
type Move struct {
	Spec
	// Version rises with each durable change.
	Version uint64
	State   State
	// ResumeState is of failed ones: where it stood.
	ResumeState State
	// Reason says why it failed, was cancelled or waits; may be empty.
	Reason string
	// PinnedSequence is from where on changes are tailed; 0: not pinned.
	PinnedSequence uint64
	// CopyCursor is where the copy goes on.
	CopyCursor []byte
	// TailSequence: every change up to it is at the target.
	TailSequence uint64
	// FenceSequence: no write of the ranges is newer; 0: not fenced.
	FenceSequence uint64
	// Epoch is that of the ownership that is handed over.
	Epoch uint64
	// VerifiedAt is when both sides were equal, in milliseconds since the Unix epoch; 0: not yet.
	VerifiedAt int64
	// CreatedAt and UpdatedAt are in milliseconds since the Unix epoch.
	CreatedAt, UpdatedAt int64
	// Finishing: it follows, and ends once it was verified once more.
	Finishing bool
	// Cancelling: it is fenced and called off as soon as the target has declined.
	Cancelling bool

	// Foreign: it was under way in another life of the directory, and is over in this one. It is not stored.
	Foreign bool

	// Progress is durable only together with something else.
	Progress Progress
	// ProgressAt is when Progress was told, in milliseconds since the Unix epoch; 0: not since the start.
	ProgressAt int64
}

// notVerified begins the reason of a move whose target has no means to compare: it knows the established
// contract of coordinators only. The migrator says so once the target has everything.
const notVerified = "not verified: "

// Unverifiable reports whether a copy has come as far as it can without having been compared. Nothing is
// handed over so.
func (m *Move) Unverifiable() bool {
	return !m.HandOver && (m.Purpose == PurposeStream || m.Purpose == PurposeReplicate) && strings.HasPrefix(m.Reason, notVerified)
}

// Active reports whether there is still something to do.
func (m *Move) Active() bool { return !m.State.Ended() }

// MayBeFenced reports whether its ranges may be fenced, or given away: for any other move a fence is what a
// crash has left.
func (m *Move) MayBeFenced() bool {
	at := m.State
	if at == Failed {
		at = m.ResumeState
	}
	return m.HandOver && (m.Foreign || at >= Fenced && at <= Released)
}

// fresh is how old what a migrator said of a move may be before its silence counts as lag: it says so each
// second.
const fresh = 5 * time.Second

// Lag returns how far the target of a move that follows is behind, and ok whether that is known. Where the
// migrator is silent it grows with time.
func (m *Move) Lag(now time.Time) (lag time.Duration, ok bool) {
	if m.Mode != Follow || !m.Active() || m.State == Failed || m.ProgressAt == 0 || m.Progress.LagMS < 0 {
		return 0, false
	}
	lag = time.Duration(m.Progress.LagMS) * time.Millisecond
	if silent := now.Sub(time.UnixMilli(m.ProgressAt)); silent > fresh {
		lag += silent
	}
	return lag, true
}

// DrainState is where a drain stands. The numbers are stored, and those of the wire.
type DrainState uint8

// The states of a drain.
const (
	// DrainRequested: its moves are not planned yet.
	DrainRequested DrainState = iota + 1
	// DrainMoving: they are under way.
	DrainMoving
	// DrainCompleted: everything is at its next owner.
	DrainCompleted
	// DrainCancelled was called off.
	DrainCancelled
)

var drainStateNames = [...]string{
	DrainRequested: "REQUESTED", DrainMoving: "MOVING", DrainCompleted: "COMPLETED", DrainCancelled: "CANCELLED",
}

// String returns the word for a state.
func (s DrainState) String() string { return word("DrainState", drainStateNames[:], uint8(s)) }

func (s DrainState) known() bool { return s >= DrainRequested && s <= DrainCancelled }

// Ended reports whether nothing follows any more.
func (s DrainState) Ended() bool { return s == DrainCompleted || s == DrainCancelled }

// Drain is a node that gives everything away. It is a value.
type Drain struct {
	ID      string
	Version uint64
	State   DrainState
	// Reason is what it waits for, or why it was asked for or cancelled; may be empty.
	Reason string
	// ForceReason is why it was forced; empty: it was not.
	ForceReason string
	// MovesDone of MovesTotal are over with their ranges handed over; both 0 until they are planned.
	MovesDone, MovesTotal int
	// CreatedAt and UpdatedAt are in milliseconds since the Unix epoch.
	CreatedAt, UpdatedAt int64
}
