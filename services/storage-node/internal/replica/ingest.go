package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	// RecordFormat is that of records that are taken and given.
	RecordFormat = 1
	// unitBytes is what is applied, and acknowledged, together: batches of the stream are collected up to
	// it, since a batch of the engine costs more than a record in it. A sender has a MiB or more on its way
	// and then waits: a unit as large as that would wait for its age each time. A quarter keeps four under
	// way (48 MiB took 1.2 s, and 8 s with units of a MiB).
	unitBytes = 256 << 10
	// unitAge is how long a record may wait for others.
	unitAge = 100 * time.Millisecond
	// maxUnits is how many units may be applied and not durable yet, 8 MiB; then the sender waits. They are
	// in the memtable and the log: what waits here is their numbers.
	maxUnits = 32
	// maxStreams bounds the streams that come in at once.
	maxStreams = 32
	// maxStalls is for how long a unit is tried again that the engine refused for being behind.
	maxStalls = 30 * time.Second
	// maxMoveID is the longest name of a move.
	maxMoveID = 64
)

// ErrTooManyStreams says that as many streams come in as may.
var ErrTooManyStreams = &store.Error{Reason: store.ReasonOverloaded, RetryAfter: time.Second,
	Message: fmt.Sprintf("%d streams of records come in already", maxStreams)}

// IngestStart begins a stream.
type IngestStart struct {
	// Peer is the node that sends.
	Peer   string
	MoveID string
	Format uint32
	// ReadAt is when the oldest record was read.
	ReadAt time.Time
	// Sorted: the records come in key order.
	Sorted bool
}

// Ingest is a stream of records that comes in. Add and Finish are for one goroutine.
type Ingest struct {
	// Immutable.
	ctx    context.Context
	r      *Replica
	lives  Lives
	sorted bool
	ack    func(number uint64) error
	units  chan unit     // applied and not acknowledged; capacity maxUnits
	failed chan struct{} // closed when the stream can't go on
	stop   chan struct{}
	done   chan struct{} // closed when the acknowledger has ended

	mu     sync.Mutex
	check  *checker
	last   []byte // key, in sorted streams
	batch  store.Batch
	began  time.Time // of the oldest record in batch
	number uint64    // of the last stream batch that was added
	stays  map[string]Stay
	latest uint64   // timestamp of a record in batch
	count  int      // records in batch
	tokens []uint64 // of the records in batch
	room   []byte   // for what is hashed
	size   int
	err    error
	closed bool
}

// unit is a batch of the engine that was applied.
type unit struct {
	seq    ikey.Seq
	number uint64
	// finish is closed when everything up to the unit is acknowledged; nil: nobody waits.
	finish chan struct{}
}

// Ingest begins a stream. ack is called from another goroutine, with rising numbers: all batches up to one
// are durable and visible. The stream is closed by Close, which waits for that goroutine. Errors of later
// calls are final.
func (r *Replica) Ingest(ctx context.Context, s IngestStart, ack func(number uint64) error) (*Ingest, error) {
	if n := len(s.MoveID); n == 0 || n > maxMoveID {
		return nil, refuse(store.ReasonIngest, "move id has %d bytes, 1 to %d allowed", n, maxMoveID)
	}
	if s.Format != RecordFormat {
		return nil, refuse(store.ReasonIngest, "records are of format %d, this node takes %d", s.Format, RecordFormat)
	}
	if age := r.o.Now().Sub(s.ReadAt); age > r.o.GCGrace {
		return nil, refuse(store.ReasonMoveTooOld, "records were read %v ago, and tombstones are kept for %v: what was deleted since may be forgotten; begin anew",
			age.Round(time.Second), r.o.GCGrace)
	}
	if why := r.o.Refusal(); why != "" {
		return nil, &store.Error{Reason: store.ReasonTargetUnfit, Message: why}
	}
	if err := r.e.CheckRoom(); err != nil {
		return nil, err
	}
	if r.counts.streams.Add(1) > maxStreams {
		r.counts.streams.Add(-1)
		return nil, ErrTooManyStreams
	}
	in := &Ingest{
		ctx: ctx, r: r, lives: r.lives(s.Peer), sorted: s.Sorted, ack: ack, check: newChecker(r.clock), batch: r.e.NewBatch(),
		units: make(chan unit, maxUnits), failed: make(chan struct{}), stop: make(chan struct{}), done: make(chan struct{}),
		stays: map[string]Stay{},
	}
	go in.acknowledge()
	return in, nil
}

// Failed is closed when the stream can't go on, though nothing may come in any more; Err says why.
func (in *Ingest) Failed() <-chan struct{} { return in.failed }

// Err returns why the stream can't go on; nil: it can.
func (in *Ingest) Err() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.err
}

// Add takes the records of a batch, which may be used again when it returns. It blocks for as long as too
// much is not durable yet. A record that is refused ends the stream; what of it is not acknowledged then may
// be stored or not.
func (in *Ingest) Add(number uint64, records []Record) error {
	units, err := in.add(number, records)
	if err != nil {
		return err
	}
	for _, u := range units {
		if err := in.submit(u); err != nil {
			return err
		}
	}
	return nil
}

func (in *Ingest) add(number uint64, records []Record) (units []unit, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err == nil && number != in.number+1 {
		in.failLocked(refuse(store.ReasonIngest, "batch %d follows batch %d: numbers rise by one", number, in.number))
	}
	if in.err != nil {
		return nil, in.err
	}
	if in.closed {
		return nil, errEnded
	}
	for i := range records {
		if in.size > 0 && in.size+records[i].bytes() > unitBytes {
			u, err := in.applyLocked()
			if err != nil {
				return nil, err
			}
			units = append(units, u)
		}
		if err := in.takeLocked(&records[i]); err != nil {
			in.failLocked(err)
			return nil, err
		}
	}
	in.number = number
	switch {
	case in.size >= unitBytes:
		u, err := in.applyLocked()
		if err != nil {
			return nil, err
		}
		units = append(units, u)
	case in.size == 0: // nothing of it is to be stored
		units = append(units, unit{number: number})
	}
	return units, nil
}

// takeLocked validates a record and adds it to the batch, unless its tenant is gone.
func (in *Ingest) takeLocked(rec *Record) error {
	if in.sorted {
		if in.last != nil && bytes.Compare(in.last, rec.Key) > 0 { // a large record comes in parts
			return refuse(store.ReasonIngest, "key %s is before the one that came last, and the stream is said to be sorted", ikey.Hash(rec.Key))
		}
		in.last = append(in.last[:0], rec.Key...)
	}
	tenant, latest, err := in.check.check(rec)
	if err != nil {
		return err
	}
	stay, known := in.stays[tenant]
	if !known {
		s, ok, again := in.lives.Enter(tenant)
		switch {
		case ok:
			stay = s
		case again:
			return &store.Error{Reason: store.ReasonTenantDropping, RetryAfter: time.Second,
				Message: fmt.Sprintf("tenant %q was created again since tenants were exchanged: exchange them and begin a new stream", tenant)}
		}
		in.stays[tenant] = stay
	}
	if stay == nil {
		in.r.counts.skippedRecords.Add(1)
		return nil
	}
	if in.count == 0 {
		in.began = in.r.o.Now()
	}
	in.batch.Merge(rec.Key, rec.Value)
	in.tokens = append(in.tokens, ring.TokenOf(in.room[:0], rec.Key[:len(tenant)], rec.Key[len(tenant)+1:]))
	in.count++
	in.size += rec.bytes()
	in.latest = max(in.latest, latest)
	return nil
}

// applyLocked gives the batch to the engine. Batches of the stream before the one that is being added are
// in it or applied.
func (in *Ingest) applyLocked() (unit, error) {
	u := unit{number: in.number}
	defer in.leaveLocked()
	if in.count == 0 {
		return u, nil
	}
	// Before the records are there: a write that follows one must be later than it.
	in.r.clock.Observe(in.latest)
	seq, err := in.apply()
	if err != nil {
		in.failLocked(err)
		return u, err
	}
	u.seq = seq
	in.r.counts.ingestedRecords.Add(uint64(in.count))
	in.r.counts.ingestedBytes.Add(uint64(in.size))
	in.batch.Reset()
	in.count, in.size, in.latest, in.tokens = 0, 0, 0, in.tokens[:0]
	return u, nil
}

func (in *Ingest) leaveLocked() {
	for _, s := range in.stays {
		if s != nil {
			s.Leave()
		}
	}
	clear(in.stays)
}

// apply submits the batch, again while the engine is behind.
func (in *Ingest) apply() (ikey.Seq, error) {
	if err := in.r.e.CheckRoom(); err != nil {
		return 0, err
	}
	for waited := time.Duration(0); ; {
		var seq ikey.Seq
		err := in.r.o.Owners.Ingest(in.tokens, func() (err error) {
			seq, err = in.r.e.Submit(in.batch)
			return err
		})
		if err == nil {
			return seq, nil
		}
		var stalled *engine.StalledError
		if !errors.As(err, &stalled) || waited >= maxStalls {
			return 0, fmt.Errorf("ingest: %w", err)
		}
		pause := max(stalled.RetryAfter, 10*time.Millisecond)
		waited += pause
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-in.ctx.Done():
			timer.Stop()
			return 0, in.ctx.Err()
		case <-in.stop:
			timer.Stop()
			return 0, errEnded
		}
	}
}

var errEnded = errors.New("stream has ended")

// submit hands a unit to the acknowledger.
func (in *Ingest) submit(u unit) error {
	select {
	case in.units <- u:
		return nil
	case <-in.failed:
		return in.Err()
	case <-in.stop:
		return errEnded
	}
}

// Finish returns when everything is durable and acknowledged.
func (in *Ingest) Finish() error {
	in.mu.Lock()
	if in.err != nil || in.closed {
		defer in.mu.Unlock()
		return errors.Join(in.err, errEnded)
	}
	u, err := in.applyLocked()
	in.mu.Unlock()
	if err != nil {
		return err
	}
	u.finish = make(chan struct{})
	if err := in.submit(u); err != nil {
		return err
	}
	select {
	case <-u.finish:
		return nil
	case <-in.failed:
		return in.Err()
	case <-in.stop:
		return errEnded
	}
}

// acknowledge waits until units are durable, and applies what has waited for others long enough.
func (in *Ingest) acknowledge() {
	defer close(in.done)
	tick := time.NewTicker(unitAge / 2)
	defer tick.Stop()
	acked := uint64(0)
	for {
		var u unit
		select {
		case u = <-in.units:
		case <-tick.C:
			var ok bool
			if u, ok = in.aged(); !ok {
				continue
			}
		case <-in.stop:
			return
		}
		if u.seq != 0 {
			if err := in.r.e.WaitDurable(u.seq); err != nil {
				_ = in.fail(fmt.Errorf("ingest: %w", err))
				return
			}
		}
		if u.number > acked {
			if err := in.ack(u.number); err != nil {
				_ = in.fail(err)
				return
			}
			acked = u.number
		}
		if u.finish != nil {
			close(u.finish)
		}
	}
}

// aged applies what has waited long enough. Units before it are acknowledged with it: their sequences are
// lower.
func (in *Ingest) aged() (unit, bool) {
	// Who holds mu applies a unit, and may wait for this goroutine to take one.
	if !in.mu.TryLock() {
		return unit{}, false
	}
	defer in.mu.Unlock()
	if in.closed || in.err != nil || in.count == 0 || in.r.o.Now().Sub(in.began) < unitAge {
		return unit{}, false
	}
	u, err := in.applyLocked()
	return u, err == nil
}

// fail ends the stream; the first error counts and is returned.
func (in *Ingest) fail(err error) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.failLocked(err)
	return in.err
}

func (in *Ingest) failLocked(err error) {
	if in.err == nil {
		in.err = err
		close(in.failed)
	}
}

// Close ends the stream and returns when nothing of it is in the engine any more. What is not acknowledged
// may be stored or not.
func (in *Ingest) Close() {
	select {
	case <-in.stop:
		<-in.done
		return
	default:
	}
	close(in.stop)
	in.mu.Lock()
	in.closed = true
	in.leaveLocked()
	in.mu.Unlock()
	<-in.done
	in.r.counts.streams.Add(-1)
}
