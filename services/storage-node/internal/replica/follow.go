package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	// followBeat is the longest time between two messages: with it the receiver knows how far behind it
	// is when nothing of its selection changes.
	followBeat = 200 * time.Millisecond
	// passedChanges is how many changes that nobody wants are passed over before a message tells so.
	passedChanges = 50_000
)

// FollowRequest asks for the changes of a selection.
type FollowRequest struct {
	What Selection
	// From is the first sequence that is wanted.
	From uint64
}

// Changes are a part of the feed. What they hold is valid until the callback returns.
type Changes struct {
	// Records and fragments in the order of their changes; may be empty.
	Records []Record
	// Sequence: every change up to it was sent.
	Sequence uint64
	// Newest is the newest durable change of the node.
	Newest uint64
	// AtMillis: everything that was durable then was sent, in milliseconds since the Unix epoch; 0: it is
	// not known when that was. It rises.
	AtMillis int64
}

// Follow calls send with the durable changes of a selection from a sequence on, in their order, and at
// least every 200 ms, until ctx ends. send blocks for as long as the receiver is slow; its error ends the
// feed and is returned. SEQUENCE_TOO_OLD says that the engine does not keep the changes any more.
func (r *Replica) Follow(ctx context.Context, q FollowRequest, send func(Changes) error) (err error) {
	what, err := q.What.check()
	if err != nil {
		return err
	}
	from := max(ikey.Seq(q.From), 1)
	tail, err := r.e.Tail(from)
	if err != nil {
		return tooOld(from, fmt.Errorf("follow: %w", err))
	}
	defer func() {
		if cerr := tail.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("follow: %w", cerr)
		}
	}()
	f := &follow{r: r, what: what, send: send, tail: tail, done: from - 1}
	return tooOld(from, f.run(ctx))
}

// follow is one feed on its way.
type follow struct {
	r      *Replica
	what   *selected
	send   func(Changes) error
	tail   store.Tail
	tokens tokens
	packer packer

	done   ikey.Seq // every change up to it is sent or in the packer
	passed int      // changes since the last message
	at     int64    // of the last message
	sent   time.Time
}

func (f *follow) run(ctx context.Context) error {
	look, cancel := context.WithCancel(ctx)
	cancel() // a context that is over asks the tail what is there already
	for {
		// What is durable now was handed out when the tail has nothing more.
		newest := f.newest()
		if err := f.drain(ctx, look); err != nil {
			return err
		}
		f.done = max(f.done, newest)
		if err := f.flush(f.done); err != nil {
			return err
		}
		c, came, err := f.wait(ctx)
		if err != nil {
			return err
		}
		if came {
			if err := f.take(ctx, c); err != nil {
				return err
			}
		}
	}
}

// newest returns the newest durable sequence, and remembers when that was.
func (f *follow) newest() ikey.Seq {
	newest := f.r.e.VisibleSeq()
	f.r.newest.note(newest, f.r.o.Now())
	return newest
}

// drain takes what is there already.
func (f *follow) drain(ctx, look context.Context) error {
	for n := 1; ; n++ {
		if n%recordsPerLook == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f.beat(); err != nil {
				return err
			}
		}
		c, err := f.tail.Next(look)
		if errors.Is(err, context.Canceled) {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("follow: %w", err)
		}
		if err := f.take(ctx, c); err != nil {
			return err
		}
	}
}

// beat sends progress when it is time to: a feed of changes that nobody wants is silent otherwise.
func (f *follow) beat() error {
	if f.r.o.Now().Sub(f.sent) < followBeat {
		return nil
	}
	return f.flush(f.done - 1) // others of the newest sequence may follow
}

// wait returns the next change, or came false when there is none for a while.
func (f *follow) wait(ctx context.Context) (c store.TailChange, came bool, err error) {
	beat, cancel := context.WithTimeout(ctx, followBeat)
	defer cancel()
	c, err = f.tail.Next(beat)
	switch {
	case err == nil:
		return c, true, nil
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return c, false, nil
	case ctx.Err() != nil:
		return c, false, ctx.Err()
	}
	return c, false, fmt.Errorf("follow: %w", err)
}

// take adds a change to the message. One that does not fit sends what is together; complete is then what
// lies before its sequence, as others of the same one may follow.
func (f *follow) take(ctx context.Context, c store.TailChange) error {
	wanted, err := f.wants(&c)
	if err != nil {
		return err
	}
	before := func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return f.flush(min(f.done, c.Seq-1))
	}
	if f.passed++; f.passed > passedChanges {
		err = before()
	}
	if wanted && err == nil {
		err = parts(c.Key, c.Value, func(part []byte) error {
			if !f.packer.fits(c.Key, part) {
				if err := before(); err != nil {
					return err
				}
			}
			f.packer.add(c.Key, part)
			return nil
		})
	}
	f.done = max(f.done, c.Seq)
	return err
}

// wants reports whether a change is handed on: physical deletes and range deletes are not, nor what a tenant
// stored in a life before.
func (f *follow) wants(c *store.TailChange) (bool, error) {
	if c.Kind != ikey.KindSet && c.Kind != ikey.KindMerge || !f.what.has(c.Key) {
		return false, nil
	}
	// The log still has what a tenant stored before it was dropped and created again; whoever knows the
	// new life only would take it.
	if tenant, _, err := ikey.SplitEngineKey(c.Key); err != nil || c.Seq <= f.r.tenants.Floor(tenant) {
		return false, nil
	}
	if !f.what.hashes.all {
		token, err := f.tokens.of(c.Key)
		if err != nil {
			return false, corrupted(c.Key, err)
		}
		if !f.what.hashes.has(token) {
			return false, nil
		}
	}
	if _, err := causal.Summarize(c.Value, 0); err != nil {
		return false, corrupted(c.Key, err)
	}
	return true, nil
}

// flush sends what is together and says that the feed is complete up to seq.
func (f *follow) flush(seq ikey.Seq) error {
	// At once, unless readers see what is not durable yet: only in modes that promise no more.
	if err := f.r.e.WaitDurable(seq); err != nil {
		return fmt.Errorf("follow: %w", err)
	}
	newest := f.newest()
	f.at = max(f.at, f.r.newest.at(seq))
	c := Changes{Records: f.packer.records(), Sequence: uint64(seq), Newest: uint64(max(newest, seq)), AtMillis: f.at}
	if err := f.send(c); err != nil {
		return err
	}
	f.r.counts.followedRecords.Add(uint64(len(c.Records)))
	f.r.counts.followedBytes.Add(uint64(f.packer.size))
	f.packer.reset()
	f.passed, f.sent = 0, f.r.o.Now()
	return nil
}

// samples remember when which sequence was the newest durable one, so that a sequence tells a time: all
// that was durable at the time of a sample is below its sequence. The zero value is ready to be used.
type samples struct {
	mu  sync.Mutex
	all []sample // ascending; thinned out when there are too many
}

type sample struct {
	seq ikey.Seq
	at  time.Time
}

// maxSamples and sampleEvery: more than three minutes before every other one is forgotten, in 100 KiB.
const (
	maxSamples  = 4096
	sampleEvery = 50 * time.Millisecond
)

func (s *samples) note(seq ikey.Seq, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.all); n > 0 {
		last := &s.all[n-1]
		switch {
		case seq < last.seq:
			return // another feed looked later and was noted first
		case seq == last.seq:
			last.at = later(last.at, at)
			return
		case n > 1 && at.Sub(s.all[n-2].at) < sampleEvery:
			*last = sample{seq, later(last.at, at)}
			return
		}
	}
	if s.all = append(s.all, sample{seq, at}); len(s.all) > maxSamples {
		kept := s.all[:0]
		for i := 0; i < len(s.all); i += 2 {
			kept = append(kept, s.all[i])
		}
		s.all = kept
	}
}

// at returns when the newest sample up to seq was, in milliseconds since the Unix epoch; 0: there is none.
func (s *samples) at(seq ikey.Seq) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.all) - 1; i >= 0; i-- {
		if s.all[i].seq <= seq {
			return s.all[i].at.UnixMilli()
		}
	}
	return 0
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
