package compare

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/merkle"
	"github.com/pairdb/pairdb/libs/ring"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

// MaxRanges is how many hash ranges one run compares: what a Selection may have.
const MaxRanges = 4096

// DefaultRounds is how often keys that differ are compared again before they are told as different:
// with the pauses between (50 ms, doubled each time) about three seconds.
const DefaultRounds = 7

// Side is a node that is compared.
type Side struct {
	// Client reaches it. It must take messages of 64 MiB: a record has up to 48.
	Client replicav1.ReplicaServiceClient
	// Name is for errors: its node id.
	Name string
}

// Options of a run.
type Options struct {
	// Own is the node of the pod, Other the one that it is compared with. They differ in nothing but
	// the direction when Both is false.
	Own, Other Side
	// Peer is who calls, for both sides.
	Peer *replicav1.Peer
	// What is compared, at most MaxRanges hash ranges, of which none overlap. nil: everything.
	What *movev1.Selection
	// CollectedBefore leaves out tombstones and expired siblings that are older: a hybrid-logical
	// timestamp. 0: nothing is left out.
	CollectedBefore uint64
	// Both has each side get what the other has. Otherwise only Other gets what Own has, and a range is
	// equal when Other has all that Own has.
	Both bool
	// MoveID is what the nodes are told that the records are sent for; 1 to 64 bytes. Empty: "repair".
	MoveID string
	// Renew lets nodes bring trees of earlier runs like this one up to date by what has changed since, instead
	// of reading everything.
	Renew bool
	// Records is an estimate of what is compared, to choose the leaves by; 0: not known.
	Records uint64
	// LeavesPerRange is a power of two up to 65,536; 0: chosen by Records and the number of ranges.
	LeavesPerRange uint32
	// Rounds is how often keys that differ are looked at; 0: DefaultRounds.
	Rounds int
	// Limit is asked before records of so many bytes are sent, and waits. nil: no limit.
	Limit func(ctx context.Context, bytes int) error
	// Progress is told the counts so far, by the goroutine of Run. nil: nobody asks.
	Progress func(Progress)
	// Now is the clock of the sender, for the age of what is sent. nil: time.Now.
	Now func() time.Time
	// Pause is the time before look number 1, 2… at keys that differ; nil: 50 ms, doubled each time.
	Pause func(look int) time.Duration
}

// Progress is how far a run is.
type Progress struct {
	// ComparedKeys is how many records of the larger side the trees cover.
	ComparedKeys int64
	// DifferingKeys were different, or are on one side only.
	DifferingKeys int64
	// RepairedKeys were sent, at least in one direction.
	RepairedKeys int64
	// SentBytes of keys and values, in both directions.
	SentBytes int64
}

// Result is what a run found.
type Result struct {
	// Progress at its end.
	Progress
	// OwnTree and OtherTree name the trees at their nodes: what Equal and ReportEqual want.
	OwnTree, OtherTree uint64
	// OwnSequence and OtherSequence are those of the snapshots.
	OwnSequence, OtherSequence uint64
	// Ranges is how many were compared: 1 for a selection without hash ranges.
	Ranges int
	// EqualRanges are indexes of ranges, ascending, that are equal, or equal since what differed was
	// exchanged. After an error they are those whose roots were equal.
	EqualRanges []uint32
	// ExchangedRanges have keys that are written to so often that they were never seen equal, but each was
	// read on one side, joined into the other, and found in what was read back there, and the other way
	// round if Both. So what the snapshots had of the range is on both sides (on Other, if not Both).
	ExchangedRanges []uint32
	// UnequalRanges are all others of a run without an error.
	UnequalRanges []uint32
	// OpenKeys is how many keys were never seen equal.
	OpenKeys int64
	// Rounds is how often keys were looked at; 0: no root differed.
	Rounds int
}

// Equal reports whether every range is.
func (r *Result) Equal() bool { return r.Ranges > 0 && len(r.EqualRanges) == r.Ranges }

// errMalformed is what a side answers against its contract. Nothing of it was used.
var errMalformed = errors.New("malformed answer")

// Run compares the two sides and exchanges what differs. It returns when that is done, with an error if
// a side failed: what was exchanged till then stays, and running again is safe. It retries no call.
func Run(ctx context.Context, o Options) (Result, error) {
	if err := o.complete(); err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends streams that were not read to their end
	var ranges []ring.HashRange
	for _, h := range o.What.GetHashRanges() {
		ranges = append(ranges, ring.HashRange{Start: h.GetStart(), End: h.GetEnd()})
	}
	shape, err := merkle.NewShape(ranges, int(o.LeavesPerRange))
	if err != nil {
		return Result{}, fmt.Errorf("compare %s with %s: %w", o.Own.Name, o.Other.Name, err)
	}
	r := &run{Options: o, shape: shape, exchanged: map[uint32]bool{}, unequal: map[uint32]bool{}}
	r.result.Ranges = max(len(ranges), 1)
	if err := r.all(ctx); err != nil {
		return r.result, fmt.Errorf("compare %s with %s: %w", o.Own.Name, o.Other.Name, err)
	}
	return r.result, nil
}

func (o *Options) complete() error {
	if n := len(o.What.GetHashRanges()); n > MaxRanges {
		return fmt.Errorf("%d hash ranges are compared at once, at most %d allowed", n, MaxRanges)
	}
	if l := o.LeavesPerRange; l&(l-1) != 0 || l > maxLeavesPerRange {
		return fmt.Errorf("%d leaves a range, a power of two up to %d allowed", l, maxLeavesPerRange)
	}
	if o.MoveID == "" {
		o.MoveID = "repair"
	}
	if o.Rounds <= 0 {
		o.Rounds = DefaultRounds
	}
	if o.Limit == nil {
		o.Limit = func(context.Context, int) error { return nil }
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Pause == nil {
		o.Pause = func(look int) time.Duration { return 25 * time.Millisecond << min(look, 8) }
	}
	if o.LeavesPerRange == 0 {
		o.LeavesPerRange = leavesPerRange(max(len(o.What.GetHashRanges()), 1), o.Records)
	}
	return nil
}

// run is one call of Run.
type run struct {
	Options
	shape  *merkle.Shape
	tree   [2]uint64
	result Result
	// open are keys that were exchanged and differ still, in the order in which they were found; at most
	// maxOpenKeys.
	open [][]byte
	// exchanged and unequal are the ranges that will not be told as equal. unequal counts.
	exchanged, unequal map[uint32]bool
}

// rangeOf returns the index of the range that a key is in; false: it is in none.
func (r *run) rangeOf(key []byte) (uint32, bool) {
	tenant, user, err := ikey.SplitEngineKey(key)
	if err != nil {
		return 0, false
	}
	var scratch [128]byte
	i, _, ok := r.shape.Locate(ring.TokenOf(scratch[:0], tenant, user))
	return uint32(i), ok
}
