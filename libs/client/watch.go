package client

import (
	"context"
	"fmt"
	"iter"

	"google.golang.org/grpc/codes"

	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// EventKind says what an event of a watch is about.
type EventKind int

const (
	// Progress: nothing was changed in the range; only the sequence has moved.
	Progress EventKind = iota
	// Written: Record is the whole state of a key after a write or a delete.
	Written
	// Joined: Record are siblings that a repair joined into the key; what was there before is not
	// repeated.
	Joined
	// Removed: all that Range held is gone.
	Removed
)

func (k EventKind) String() string {
	switch k {
	case Progress:
		return "progress"
	case Written:
		return "written"
	case Joined:
		return "joined"
	case Removed:
		return "removed"
	}
	return fmt.Sprintf("EventKind(%d)", int(k))
}

// Event is what a watch delivers.
type Event struct {
	// Sequence of the change on this node. Those of one batch follow each other; what the node took in
	// as a file has one for all.
	Sequence uint64
	// After is where another watch of this node goes on: everything up to it was delivered.
	After uint64
	Kind  EventKind
	// Record is nil but for Written and Joined.
	Record *Record
	// Range is nil but for Removed.
	Range *datav1.KeyRange
}

// Watch delivers the changes in [start, end), which are durable then, in the order in which the node
// made them, until the caller ends it or ctx ends. An empty end is the end of the tenant. It begins
// with the first change after the given sequence, that of an earlier event or of a scan
// (SnapshotSequence); for 0 with what is written after its first event, which is Progress. A broken
// stream goes on where it was cut, without a gap, and without a repeat but of a file that was cut in its
// midst, as long as Options.RetryFor allows.
//
// The node keeps changes only as long as its commit log, and longer while a watch needs them. A watch
// that asks for older ones, or falls too far behind, ends with an error for which MustRescan is true.
func (c *Client) Watch(ctx context.Context, start, end string, after uint64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		req := &storagev1.WatchRequest{
			Tenant: c.options.Tenant, Range: &datav1.KeyRange{Start: start, End: end}, AfterSequence: after,
		}
		retry := c.newRetrier()
		for {
			done, err := c.watchOnce(ctx, req, retry, yield)
			if done {
				return
			}
			if e := asError(err); !retry.wait(ctx, e) {
				yield(Event{}, fmt.Errorf("watch: %w", e))
				return
			}
		}
	}
}

// watchOnce runs one stream and keeps in req where it is. It reports true when the caller has ended
// the watch.
func (c *Client) watchOnce(ctx context.Context, req *storagev1.WatchRequest, retry *retrier, yield func(Event, error) bool) (bool, error) {
	stream, err := c.storage.Watch(ctx, req)
	if err != nil {
		return false, err
	}
	for {
		msg, err := stream.Recv()
		if isEOF(err) {
			return false, &Error{Code: codes.Unavailable, Message: "the node ended the watch"}
		}
		if err != nil {
			return false, err
		}
		retry.progress()
		oldest := msg.Sequence
		if len(msg.Changes) > 0 {
			oldest = min(oldest, msg.Changes[0].Sequence)
		}
		if oldest < req.AfterSequence {
			return false, &Error{
				Code: codes.OutOfRange, Reason: ReasonSequenceAhead,
				Message: fmt.Sprintf("the node sent sequence %d after %d: its data is not what it was", oldest, req.AfterSequence),
			}
		}
		if len(msg.Changes) == 0 && !yield(Event{Sequence: msg.Sequence, After: msg.Sequence}, nil) {
			return true, nil
		}
		for i, change := range msg.Changes {
			e := toEvent(change)
			switch {
			case i == len(msg.Changes)-1:
				e.After = msg.Sequence
			case msg.Changes[i+1].Sequence > change.Sequence:
				e.After = change.Sequence
			default: // more of the same sequence
				e.After = change.Sequence - 1
			}
			if !yield(e, nil) {
				return true, nil
			}
		}
		req.AfterSequence = msg.Sequence
	}
}

func toEvent(c *storagev1.Change) Event {
	e := Event{Sequence: c.Sequence}
	switch x := c.Change.(type) {
	case *storagev1.Change_Record:
		e.Kind, e.Record = Written, x.Record
	case *storagev1.Change_Joined:
		e.Kind, e.Record = Joined, x.Joined
	case *storagev1.Change_Removed:
		e.Kind, e.Range = Removed, x.Removed
	}
	return e
}
