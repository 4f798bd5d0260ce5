package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
)

// WatchRequest asks for the changes of a tenant in [Start, End); an empty End is the end of the tenant.
type WatchRequest struct {
	Tenant, Start, End string
	// After is the sequence behind which to begin; 0 is what is written from now on.
	After uint64
}

// ChangeKind says what a change does.
type ChangeKind uint8

// The kinds of changes.
const (
	// ChangeSet: Siblings are the whole state of Key.
	ChangeSet ChangeKind = iota + 1
	// ChangeJoin: Siblings were joined into Key.
	ChangeJoin
	// ChangeRemove: everything in [Start, End) is gone; an empty End is the end of the tenant.
	ChangeRemove
)

// Change is one change of the feed. Sequences rise, but for changes that were brought in together from
// a file: these have one.
type Change struct {
	Sequence   uint64
	Kind       ChangeKind
	Key        string
	Siblings   []causal.Sibling
	Start, End string
}

// Changes is a part of the feed. Its values are valid until the callback returns.
type Changes struct {
	// Changes may be empty: then only the sequence has moved, or the node says that it is there.
	Changes []Change
	// Sequence: every change up to it was sent, none after it is left out when the feed goes on from
	// here.
	Sequence uint64
}

// feedSequence is how clients see a sequence: one above the engine's, so that a snapshot of an empty node
// has one that is not 0, which would ask for what is written from now on.
func feedSequence(seq ikey.Seq) uint64 { return uint64(seq) + 1 }

// watchBeat is after how much time without a change the sequence is sent all the same: a client that
// comes back goes on near the end of the feed, which the log still has.
const watchBeat = 5 * time.Second

// Watch calls send with the durable changes of a range in their order, once at the beginning, and goes
// on until ctx ends. send blocks for as long as the receiver is slow; its error ends the feed and is
// returned. What was not sent yet waits in the commit log, as far as the engine keeps it.
func (s *Store) Watch(ctx context.Context, r WatchRequest, send func(Changes) error) (err error) {
	lower, upper, err := bounds(r.Tenant, r.Start, r.End)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	w := watch{s: s, r: &r, send: send, lower: lower, upper: upper, prefix: len(r.Tenant) + 1, endBeat: func() {}}
	if w.admission, err = s.admitStream(r.Tenant); err != nil {
		return err
	}
	defer w.admission.Release()
	if err := w.begin(); err != nil {
		return w.explain(err)
	}
	defer func() {
		if cerr := w.tail.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("watch: %w", cerr)
		}
	}()
	return w.explain(w.run(ctx))
}

// watch is one feed on its way.
type watch struct {
	s            *Store
	r            *WatchRequest
	send         func(Changes) error
	lower, upper []byte
	prefix       int // of tenant and separator in engine keys
	tail         Tail
	admission    StreamAdmission

	changes []Change
	parcel  parcel
	passed  int      // changes since the last message
	last    ikey.Seq // of the newest change that the tail handed out
	// beat ends when it is time to send the sequence; nil until the feed waits for the first time since
	// the last message.
	beat    context.Context
	endBeat context.CancelFunc
}

// begin opens the tail and decides from where on.
func (w *watch) begin() error {
	_, newest, err := w.s.e.FeedRange()
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	w.last = newest
	if after := w.r.After; after != 0 {
		if after > feedSequence(newest) {
			return &Error{
				Reason: ReasonSequenceAhead,
				Message: fmt.Sprintf("sequence is %d, the newest of this node %d; is it of another node, or of one that was restored since?",
					after, feedSequence(newest)),
				Metadata: map[string]string{"newest_sequence": strconv.FormatUint(feedSequence(newest), 10)},
			}
		}
		w.last = ikey.Seq(after - 1)
	}
	if w.tail, err = w.s.e.Tail(w.last + 1); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	return nil
}

// explain turns the end of what the engine keeps into a refusal that says from where on it goes.
func (w *watch) explain(err error) error {
	if !errors.Is(err, ErrOutOfRange) {
		return err
	}
	oldest, _, rerr := w.s.e.FeedRange()
	if rerr != nil {
		return fmt.Errorf("watch: %w", rerr)
	}
	return &Error{
		Reason: ReasonSequenceTooOld,
		Message: fmt.Sprintf("changes after %d are not kept any more, the oldest is %d: read the range again and watch from there",
			feedSequence(w.last), feedSequence(oldest)),
		Metadata: map[string]string{"oldest_sequence": strconv.FormatUint(feedSequence(oldest), 10)},
		Err:      err,
	}
}

func (w *watch) run(ctx context.Context) error {
	defer func() { w.endBeat() }()
	if err := w.flush(ctx, w.last); err != nil {
		return err
	}
	look, cancel := context.WithCancel(ctx)
	cancel() // a context that is over asks the tail what is there already
	for n := 0; ; n++ {
		if n%256 == 255 && ctx.Err() != nil {
			return ctx.Err()
		}
		c, err := w.tail.Next(look)
		came := err == nil
		switch {
		case errors.Is(err, context.Canceled):
			c, came, err = w.wait(ctx)
		case err != nil:
			err = fmt.Errorf("watch: %w", err)
		}
		if came {
			err = w.take(ctx, c)
		}
		if err != nil {
			return err
		}
	}
}

// wait sends what is together and waits for the next change. came is false if it sent the sequence
// instead, for want of one.
func (w *watch) wait(ctx context.Context) (c TailChange, came bool, err error) {
	if len(w.changes) > 0 {
		if err := w.flush(ctx, w.last); err != nil {
			return c, false, err
		}
	}
	if w.beat == nil {
		w.beat, w.endBeat = context.WithTimeout(ctx, watchBeat)
	}
	c, err = w.tail.Next(w.beat)
	switch {
	case err == nil:
		return c, true, nil
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return c, false, w.flush(ctx, w.last)
	}
	return c, false, fmt.Errorf("watch: %w", err)
}

// take adds a change to the message. One that does not fit sends what is together; complete is then
// what lies before its sequence, as others of the same one may follow.
func (w *watch) take(ctx context.Context, c TailChange) error {
	if w.passed++; w.passed > idleScan {
		if err := w.flush(ctx, c.Seq-1); err != nil {
			return err
		}
	}
	fits, err := w.add(c)
	if err == nil && !fits {
		if err = w.flush(ctx, c.Seq-1); err == nil {
			_, err = w.add(c)
		}
	}
	w.last = c.Seq
	return err
}

// add takes what a change does to the range. Physical deletes do nothing that concerns a reader: they
// are collected garbage.
func (w *watch) add(c TailChange) (fits bool, err error) {
	change := Change{Sequence: feedSequence(c.Seq)}
	switch c.Kind {
	case ikey.KindSet, ikey.KindMerge:
		if bytes.Compare(c.Key, w.lower) < 0 || bytes.Compare(c.Key, w.upper) >= 0 {
			return true, nil
		}
		rec, fits, err := w.parcel.add(len(c.Key), c.Value)
		if err != nil {
			return false, corrupted(c.Key, err)
		}
		if !fits {
			return false, nil
		}
		change.Kind, change.Key, change.Siblings = ChangeSet, string(c.Key[w.prefix:]), rec.Siblings
		if c.Kind == ikey.KindMerge {
			change.Kind = ChangeJoin
		}
	case ikey.KindRangeDelete:
		start, end := later(c.Key, w.lower), w.upper
		if bytes.Compare(c.Value, end) < 0 {
			end = c.Value
		}
		if bytes.Compare(start, end) >= 0 {
			return true, nil
		}
		if !w.parcel.room(len(start) + len(end)) {
			return false, nil
		}
		// Behind the tenant and the separator; the end of the tenant is as long as both, so "".
		change.Kind, change.Start, change.End = ChangeRemove, string(start[w.prefix:]), string(end[w.prefix:])
	default:
		return true, nil
	}
	w.changes = append(w.changes, change)
	return true, nil
}

func later(a, b []byte) []byte {
	if bytes.Compare(a, b) > 0 {
		return a
	}
	return b
}

// flush sends what is together and says that the feed is complete up to seq.
func (w *watch) flush(ctx context.Context, seq ikey.Seq) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// That the tenant was dropped is told, before its feed ends for it.
	told := slices.ContainsFunc(w.changes, func(c Change) bool { return c.Kind == ChangeRemove })
	if err := w.admission.Pace(ctx, len(w.changes), w.parcel.bytes); err != nil && !told {
		return err
	}
	// At once, unless readers see what is not durable yet: only in modes that promise no more.
	if err := w.s.e.WaitDurable(seq); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	if err := w.send(Changes{Changes: w.changes, Sequence: feedSequence(seq)}); err != nil {
		return err
	}
	w.s.counts.watchChanges.Add(uint64(len(w.changes)))
	w.s.counts.watchBytes.Add(uint64(w.parcel.bytes))
	clear(w.changes)
	w.changes, w.passed = w.changes[:0], 0
	w.parcel.reset()
	w.endBeat()
	w.beat = nil
	return nil
}
