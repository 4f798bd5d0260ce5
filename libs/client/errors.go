package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
)

// Reasons that an application may act upon; all reasons of a node are in docs/ERRORS.md.
const (
	// ReasonConditionFailed: the condition of a write does not hold. Error.Clock is the key's.
	ReasonConditionFailed = "CONDITION_FAILED"
	// ReasonTooManySiblings: the key holds as many values as it may. Error.Siblings are what has to be
	// merged, if they fit into an error; Resolve does it.
	ReasonTooManySiblings = "TOO_MANY_SIBLINGS"
	// ReasonSequenceTooOld: the node does not keep changes from so far back: scan, and watch from then on.
	ReasonSequenceTooOld = "SEQUENCE_TOO_OLD"
	// ReasonSequenceAhead: the node has not reached the sequence: it is of another node, or of data that
	// is gone. Scan, and watch from then on.
	ReasonSequenceAhead = "SEQUENCE_AHEAD"
	// ReasonIdempotencyKeyReused: another request had the idempotency key.
	ReasonIdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED"
	// ReasonResponseTooLarge: the answer of a batch of reads is full.
	ReasonResponseTooLarge = "RESPONSE_TOO_LARGE"
	// ReasonNotOwner: the key was handed over to another node, which Owner names. The client knows one node
	// and asks no other.
	ReasonNotOwner = "NOT_OWNER"
	// ReasonOptions is the client's own: options of a call contradict each other. Nothing was sent.
	ReasonOptions = "INVALID_ARGUMENT_OPTIONS"
)

// reasonCorrupted is damage that is in the way.
const reasonCorrupted = "CORRUPTED_DATA"

// errorDomain is the domain of the node's own errors.
const errorDomain = "pairdb"

// Error is how a call ended that failed. errors.As finds it in every error of a call, also in that of
// one item of a batch or a pipeline.
type Error struct {
	Code codes.Code
	// Reason of the error table; empty when the error is not the node's, as that of a connection.
	Reason string
	// Message in words.
	Message string
	// RetryAfter is when the same call may succeed; 0 when the node did not say.
	RetryAfter time.Duration
	// MaybeApplied is true for a write of which it is not known whether it was applied.
	MaybeApplied bool
	// Metadata says more, by names that depend on the reason; may be nil.
	Metadata map[string]string
	// Clock of the key as it is, for ReasonConditionFailed; nil when this node has never seen the key.
	Clock Clock
	// Siblings of the key, for ReasonTooManySiblings.
	Siblings []*Sibling

	status *status.Status // as it came; nil for an error of the client or of an item
	domain string
}

func (e *Error) Error() string {
	name := e.Reason
	if name == "" {
		name = e.Code.String()
	}
	text := fmt.Sprintf("%s (%s)", e.Message, name)
	if e.MaybeApplied {
		text += "; the write may have been applied"
	}
	return text
}

// GRPCStatus returns the status of the call, so that a server that passes the error on keeps its code.
func (e *Error) GRPCStatus() *status.Status {
	if e.status != nil {
		return e.status
	}
	return status.New(e.Code, e.Message)
}

// Is makes errors.Is true for the errors of a context that ended the call.
func (e *Error) Is(target error) bool {
	return target == context.Canceled && e.Code == codes.Canceled ||
		target == context.DeadlineExceeded && e.Code == codes.DeadlineExceeded
}

// OldestSequence returns the sequence of the oldest change that the node has, for ReasonSequenceTooOld.
func (e *Error) OldestSequence() (uint64, bool) {
	n, err := strconv.ParseUint(e.Metadata["oldest_sequence"], 10, 64)
	return n, err == nil
}

// ItemError is the refusal of one item of a batch or a pipeline.
type ItemError struct {
	// Index of the item in the batch; -1 for an operation of a pipeline.
	Index int
	// Code, Reason and Message are those of the single call.
	Code            codes.Code
	Reason, Message string
	// RetryAfter is when the same operation may succeed; 0 when a repeat can't help, or when the
	// node did not say.
	RetryAfter time.Duration

	write bool
}

func (e *ItemError) Error() string {
	if e.Index < 0 {
		return fmt.Sprintf("%s (%s)", e.Message, e.Reason)
	}
	return fmt.Sprintf("item %d: %s (%s)", e.Index, e.Message, e.Reason)
}

// Unwrap returns the error as that of the single call.
func (e *ItemError) Unwrap() error {
	err := &Error{Code: e.Code, Reason: e.Reason, Message: e.Message, RetryAfter: e.RetryAfter, domain: errorDomain}
	err.MaybeApplied = e.write && err.leavesOpen()
	return err
}

// Reason returns the reason of the error table that err carries, or "". Of the errors of a batch, the
// first counts for it and for Code, Retryable and the other predicates.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	return asError(err).Reason
}

// Code returns the gRPC code of err.
func Code(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	return asError(err).Code
}

// Retryable reports whether the same call may succeed later: the node could not be reached, is
// starting or stopping, or asked to come back. The client has repeated it already, as long as
// Options.RetryFor allows; for a write see MaybeApplied first.
func Retryable(err error) bool { return err != nil && asError(err).retryable() }

// MaybeApplied reports whether err leaves open if the write was applied, or any of a batch. Read the
// key, or repeat the write in a way that is exact: with the idempotency key or the clock that it had.
func MaybeApplied(err error) bool {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		return slices.ContainsFunc(joined.Unwrap(), MaybeApplied)
	}
	return err != nil && asError(err).MaybeApplied
}

// ConditionFailed reports whether a write was refused because its condition does not hold.
func ConditionFailed(err error) bool { return Reason(err) == ReasonConditionFailed }

// TooManySiblings reports whether a write was refused until the siblings of its key are merged.
func TooManySiblings(err error) bool { return Reason(err) == ReasonTooManySiblings }

// MustRescan reports whether a watch can't go on from where it was: scan, and watch from then on.
func MustRescan(err error) bool {
	r := Reason(err)
	return r == ReasonSequenceTooOld || r == ReasonSequenceAhead
}

// Owner returns the node that has the key, if err says that the node that was asked has handed it over
// (ReasonNotOwner): its id, and where it serves clients, host:port. They are empty where that is not
// known: items of a batch or a pipeline have no more than the reason.
func Owner(err error) (nodeID, addr string, ok bool) {
	if err == nil {
		return "", "", false
	}
	e := asError(err)
	if e.Reason != ReasonNotOwner {
		return "", "", false
	}
	return e.Metadata["owner_node_id"], e.Metadata["owner_addr"], true
}

// refusedBefore are the reasons of a node that is there and takes nothing for now.
var refusedBefore = []string{"RECOVERING", "RANGE_MOVING", "NODE_DRAINING"}

func (e *Error) retryable() bool {
	return e.Code == codes.Unavailable || e.Code == codes.ResourceExhausted && e.RetryAfter > 0
}

// leavesOpen reports whether a write that came to e may have been applied. What the node refuses, it
// refuses before it applies anything; but that it stops, fails, or has no time left may come after.
func (e *Error) leavesOpen() bool {
	switch e.Code {
	case codes.Unavailable:
		return e.domain != errorDomain || !slices.Contains(refusedBefore, e.Reason)
	case codes.Canceled, codes.DeadlineExceeded, codes.Unknown, codes.Internal, codes.Aborted:
		return true
	}
	return false
}

// asError returns the Error in err, or makes one of the status or the end of a context that it wraps.
// err is not nil.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var of interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &of) {
		s := status.FromContextError(err) // Unknown for everything else
		return &Error{Code: s.Code(), Message: s.Message()}
	}
	s := of.GRPCStatus()
	e = &Error{Code: s.Code(), Message: s.Message(), status: s}
	for _, detail := range s.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			e.Reason, e.Metadata, e.domain = d.GetReason(), d.GetMetadata(), d.GetDomain()
		case *errdetails.RetryInfo:
			e.RetryAfter = d.GetRetryDelay().AsDuration()
		case *datav1.VectorClock:
			if len(d.GetEntries()) > 0 {
				e.Clock = d
			}
		case *datav1.Record:
			e.Siblings = d.GetSiblings()
		}
	}
	return e
}
