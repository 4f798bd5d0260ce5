package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/token"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/hot"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	// maxPipelineOps is how many operations of one stream may be without an answer before the node
	// stops to receive: enough for a sync of the log to be shared by thousands, and 200 KiB of state.
	maxPipelineOps = 4096
	// maxPipelineBytes is the same for answers that the transport has not taken.
	maxPipelineBytes = 4 << 20
	// maxPipelineMessage bounds a message of answers, unless one answer is larger. With its head it
	// stays below 64 KiB, the window that gRPC begins with: a larger message waits for the reader.
	maxPipelineMessage = 64<<10 - 1<<10
	// leaveGrace is how long the answers of a stream may take to leave a node that stops.
	leaveGrace = time.Second
	// stallTicks is how often within the limit the watch looks whether a message was taken.
	stallTicks = 4
)

// Pipelined is what the operations of one message of a pipeline came to.
type Pipelined struct {
	// Reads and Writes count those that were answered, with the bytes of their values.
	Reads, Writes, ReadBytes, WriteBytes int
	// Rejected and Failed count the others, by whose fault it was: the caller's, or the node's.
	RejectedReads, FailedReads, RejectedWrites, FailedWrites int
	// Reasons has that of each operation that was rejected or failed. It must not be kept.
	Reasons []string
	// ReadTook is how long each of the reads took. It must not be kept.
	ReadTook []time.Duration
	// WriteTook is how long the writes took, all the same: until they were durable.
	WriteTook time.Duration
}

// pipeline is one stream of operations.
//
// Reads are done one after the other, so a stream has one of them in work. Writes take places, which all
// streams share, from when they are applied until they are durable; who finds none does not receive on.
//
// Two goroutines work for it. The receiver takes a message, answers its reads and submits its writes
// as one batch, so that operations are applied in the order in which they came. The acknowledger
// waits until the newest submitted write is durable and releases the answers of all up to it. Whoever
// has answers sends them, unless the other one is sending: then that one takes them along, and they
// share a message. The handler watches: for the end of the stream, and for a reader that takes
// nothing.
type pipeline struct {
	// Immutable.
	ctx     context.Context
	stream  grpc.ServerStream
	store   *store.Store
	writes  *places
	observe func(Pipelined) // may be nil
	hot     *hot.Tracker    // may be nil
	call    *call           // may be nil
	// may is why an operation on keys of a tenant is refused, or nil.
	may func(tenant string, v token.Verbs) error
	// done delivers why the stream is over: from the receiver, and from an acknowledger that crashed.
	done chan error

	in pipelineInput // of the receiver

	mu sync.Mutex
	// changed wakes the receiver that waits for room and the handler that waits for the end; work
	// wakes the acknowledger.
	changed, work sync.Cond
	// Guarded by mu.
	unanswered int       // operations that were taken and whose answers the transport has not taken
	unsent     int       // bytes of answers that the transport has not taken
	outbox     []answers // to be sent, in this order
	sending    bool      // someone is
	sent       uint64    // messages that the transport has taken
	submitted  []submission
	received   bool // nothing is submitted any more
	acked      bool // the acknowledger has ended
	busy       int  // goroutines that are in the store
	places     int  // that writes have taken
	ended      error
	crash      string // what a goroutine of the stream panicked with, and its stack
}

// submission is a message's writes, applied and not yet durable.
type submission struct {
	pending store.Pending
	answers answers
	tags    []uint64 // for the case that they never become durable
	// Of the last one of a message: what its writes came to, since when, and their places.
	use    Pipelined
	began  time.Time
	places int
	note   *message // nil: nobody looks
}

// Pipeline serves one stream of operations.
func (g storageService) Pipeline(stream grpc.BidiStreamingServer[storagev1.PipelineRequest, storagev1.PipelineResponse]) error {
	grant, err := g.s.grant(stream.Context())
	if err != nil {
		g.s.refused(stream.Context(), err)
		return err
	}
	b, err := g.s.backend()
	if err != nil {
		return err
	}
	p := &pipeline{
		ctx: stream.Context(), stream: stream, store: b.Store, writes: b.writes, observe: b.Pipelined, done: make(chan error, 2),
		hot: b.Hot, call: callFrom(stream.Context()),
		may: func(tenant string, v token.Verbs) error { return g.s.allows(stream.Context(), grant, tenant, v) },
	}
	p.changed.L, p.work.L = &p.mu, &p.mu
	acked := make(chan struct{})
	go func() {
		defer close(acked)
		p.acknowledge()
	}()
	// The receiver may sit in the transport until this handler returns, and ends then.
	go func() {
		err := p.receive()
		p.finish()
		<-acked
		p.done <- err
	}()
	return p.watch(g.s.stall)
}

// watch returns when the stream is over: by the client, an error, or because it has to be.
func (p *pipeline) watch(stall time.Duration) error {
	tick := time.NewTicker(stall / stallTicks)
	defer tick.Stop()
	var sent uint64
	idle := 0
	for {
		select {
		case err := <-p.done:
			return p.end(err)
		case <-p.ctx.Done():
			if errors.Is(context.Cause(p.ctx), ErrStopping) {
				p.drain()
				return p.end(ErrStopping)
			}
			return p.end(p.ctx.Err())
		case <-tick.C:
			p.mu.Lock()
			if !p.sending || p.sent != sent {
				idle = 0
			} else if idle++; idle >= stallTicks {
				p.mu.Unlock()
				return p.end(fmt.Errorf("%w: no answer was taken for %s", errSlowReader, stall))
			}
			sent = p.sent
			p.mu.Unlock()
		}
	}
}

// end stops both goroutines and returns when neither is in the store any more; then the engine may
// be closed. What they do in the transport ends with the stream.
func (p *pipeline) end(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended == nil {
		p.ended = errPipelineEnded
	}
	p.work.Broadcast()
	p.changed.Broadcast()
	for p.busy > 0 {
		p.changed.Wait()
	}
	p.writes.give(p.places)
	p.places = 0
	if p.crash != "" {
		panic(p.crash) // for the interceptor, which logs it and answers
	}
	return err
}

var errPipelineEnded = errors.New("pipeline has ended")

// drain takes no further message and gives the outstanding answers some time.
func (p *pipeline) drain() {
	timer := time.AfterFunc(leaveGrace, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended = errPipelineEnded
		p.changed.Broadcast()
	})
	defer timer.Stop()
	p.finish()
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.ended == nil && !(p.acked && p.busy == 0 && p.unsent == 0) {
		p.changed.Wait()
	}
}

// enter begins work in the store; false when there is none to be begun any more.
func (p *pipeline) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended != nil || p.received {
		return false
	}
	p.busy++
	return true
}

func (p *pipeline) leave() {
	p.mu.Lock()
	p.busy--
	p.changed.Broadcast()
	if p.received {
		p.work.Signal() // the acknowledger waits for the last message
	}
	p.mu.Unlock()
}

// finish says that nothing is submitted any more.
func (p *pipeline) finish() {
	p.mu.Lock()
	p.received = true
	p.work.Broadcast()
	p.mu.Unlock()
}

// receive takes messages until the client has no more, or one ends the stream.
func (p *pipeline) receive() error {
	var frame rawMessage
	for {
		if err := p.room(); err != nil {
			return err
		}
		if err := p.stream.RecvMsg(&frame); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if !p.enter() {
			frame.free()
			return errPipelineEnded
		}
		err := p.protected(func() error { return p.handle(frame.data) })
		frame.free()
		p.leave()
		if err != nil {
			return err
		}
	}
}

// protected turns a panic into an error, as the interceptor does for handlers: it would end the
// process.
func (p *pipeline) protected(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: panic", errInternal)
			p.mu.Lock()
			p.crash = fmt.Sprintf("%v\n%s", r, debug.Stack())
			p.mu.Unlock()
		}
	}()
	return f()
}

// room returns when another message may be taken.
func (p *pipeline) room() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.ended == nil && (p.unanswered >= maxPipelineOps || p.unsent >= maxPipelineBytes) {
		p.changed.Wait()
	}
	return p.ended
}

// roomForAnswers returns when more answers of the same message may be made.
func (p *pipeline) roomForAnswers() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.ended == nil && p.unsent >= maxPipelineBytes {
		p.changed.Wait()
	}
	return p.ended
}

// handle does the operations of one message: the reads at once, the writes together after them.
func (p *pipeline) handle(message []byte) error {
	in := &p.in
	defer in.forget()
	if err := in.begin(message); err != nil {
		return err
	}
	p.mu.Lock()
	p.unanswered += in.count
	p.mu.Unlock()
	use := Pipelined{ReadTook: in.took[:0]}
	out, last := newAnswers(), time.Now()
	note := p.call.watchMessage(last)
	reads := note.readsContext(p.ctx)
	var slowest slowestRead
	for in.next() {
		if in.kind != opRead {
			in.keep()
			continue
		}
		before := out.len()
		var res store.ReadResult
		err := p.may(in.tenant, token.Read)
		if err == nil {
			res, err = p.store.Read(reads, in.tenant, in.op.Key, in.buf)
		}
		if err == nil {
			p.hot.Read(in.tenant, in.op.Key, len(res.Value))
			in.buf = reusable(res.Buf)
			err = out.read(in.tag, &res)
		}
		if err != nil {
			out.fail(in.tag, err)
		}
		now := time.Now()
		use.read(len(res.Value), now.Sub(last), err)
		slowest.note(now.Sub(last), in.op.Key)
		last = now
		if out.len() < maxPipelineMessage {
			continue
		}
		full := out
		out = full.split(before)
		if err := p.push(full); err != nil {
			return err
		}
		if err := p.roomForAnswers(); err != nil {
			return err
		}
		last = time.Now() // waiting for the client is no part of a read
	}
	in.took = use.ReadTook
	if in.err != nil {
		out.release()
		return in.err
	}
	if p.observe != nil && len(use.ReadTook) > 0 {
		p.observe(use)
	}
	p.call.endReads(note, in.tenant, &use, slowest.took, slowest.key)
	if err := p.push(out); err != nil || len(in.ops) == 0 {
		return err
	}
	return p.submit(note)
}

// submit applies the writes of a message and leaves their answers to the acknowledger.
func (p *pipeline) submit(note *message) error {
	in := &p.in
	last := submission{began: time.Now(), note: note}
	ctx := note.writesContext(p.ctx, in, last.began)
	var err error
	if last.places, err = p.takePlaces(len(in.ops)); err != nil {
		return err
	}
	results := in.results()
	if err = p.may(in.tenant, token.Write); err == nil {
		last.pending, err = p.store.Submit(ctx, store.BatchWriteRequest{Tenant: in.tenant, Ops: in.ops, OmitClocks: in.omitClocks}, results)
	}
	out, first := newAnswers(), 0
	for i := range results {
		before := out.len()
		if err != nil {
			results[i].Err = err // of all
		}
		if results[i].Err != nil {
			out.fail(in.tags[i], results[i].Err)
		} else {
			out.write(in.tags[i], &results[i].WriteResult)
			p.hot.Write(in.tenant, in.ops[i].Key, len(in.ops[i].Value))
		}
		last.use.write(len(in.ops[i].Value), results[i].Err)
		if out.len() >= maxPipelineMessage {
			full := out
			out = full.split(before)
			p.later(submission{pending: last.pending, answers: full, tags: in.tags[first : first+full.count]})
			first += full.count
		}
	}
	last.answers, last.tags = out, in.tags[first:]
	if last.pending.Done() {
		p.settle(&last, nil)
	}
	p.later(last)
	if last.pending.Done() {
		return p.flush(true)
	}
	return nil
}

// takePlaces waits for places for n writes. Meanwhile the caller does not count as busy.
func (p *pipeline) takePlaces(n int) (taken int, err error) {
	taken, ok := p.writes.try(n)
	if !ok {
		p.leave()
		taken, err = p.writes.take(p.ctx, n)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !ok {
		p.busy++
		if err == nil && (p.ended != nil || p.received) {
			p.writes.give(taken)
			err = errPipelineEnded
		}
	}
	if err == nil {
		p.places += taken
	}
	return taken, err
}

// settle gives the places of writes back and reports them; err says why they are not durable.
func (p *pipeline) settle(s *submission, err error) {
	if s.places == 0 {
		return // not the last one of its message
	}
	p.mu.Lock()
	p.places -= s.places
	p.mu.Unlock()
	p.writes.give(s.places)
	s.places = 0
	now := time.Now()
	s.use.WriteTook = now.Sub(s.began)
	s.note.lapSync(s.pending, now)
	if err != nil {
		lost := s.use.Writes
		s.use.Writes, s.use.WriteBytes = 0, 0
		for range lost {
			s.use.write(0, err)
		}
	}
	if p.observe != nil {
		p.observe(s.use)
	}
	p.call.endWrites(s.note, &s.use)
}

// later sends answers once what they say is durable. It copies tags.
func (p *pipeline) later(s submission) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unsent += s.answers.len()
	if s.pending.Done() {
		p.enqueueLocked(s.answers)
		return
	}
	s.tags = slices.Clone(s.tags)
	p.submitted = append(p.submitted, s)
	p.work.Signal()
}

// acknowledge releases the answers of writes that are durable.
func (p *pipeline) acknowledge() {
	defer func() {
		p.mu.Lock()
		p.acked = true
		p.changed.Broadcast()
		p.mu.Unlock()
	}()
	var batch []submission
	for {
		p.mu.Lock()
		for len(p.submitted) == 0 && !(p.received && p.busy == 0) && p.ended == nil {
			p.work.Wait()
		}
		if len(p.submitted) == 0 || p.ended != nil {
			p.mu.Unlock()
			return
		}
		batch, p.submitted = p.submitted, batch[:0]
		p.busy++
		p.mu.Unlock()
		err := p.protected(func() error { return release(batch) })
		for i := range batch {
			p.settle(&batch[i], err)
		}
		p.leave()
		p.mu.Lock()
		for i := range batch {
			s := &batch[i]
			if err != nil {
				p.unsent -= s.answers.len()
				s.answers.reset()
				for _, tag := range s.tags {
					s.answers.fail(tag, err)
				}
				p.unsent += s.answers.len()
			}
			p.enqueueLocked(s.answers)
		}
		p.mu.Unlock()
		clear(batch)
		if p.flush(false) != nil {
			return // the stream is broken: the receiver and the watch see it too
		}
		if errors.Is(err, errInternal) {
			p.done <- err
			return
		}
	}
}

// release waits for the newest of all.
func release(batch []submission) error {
	newest := batch[0].pending
	for _, s := range batch[1:] {
		newest = newest.Later(s.pending)
	}
	return newest.Wait()
}

// push sends answers; for the receiver.
func (p *pipeline) push(a answers) error {
	p.mu.Lock()
	p.unsent += a.len()
	p.enqueueLocked(a)
	p.mu.Unlock()
	return p.flush(true)
}

// enqueueLocked puts answers into the outbox, into a message that is there already if they fit.
// They count as unsent already. mu is held.
func (p *pipeline) enqueueLocked(a answers) {
	if a.count == 0 {
		a.release()
		return
	}
	if n := len(p.outbox); n > 0 && p.outbox[n-1].len()+a.len() <= maxPipelineMessage {
		p.outbox[n-1].join(a)
		return
	}
	p.outbox = append(p.outbox, a)
}

// flush sends what is in the outbox, unless someone is sending: who does takes it along. busy says
// that the caller counts as busy, which it is not while it sends: that may last as long as the
// handler.
func (p *pipeline) flush(busy bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sending {
		return p.ended
	}
	p.sending = true
	if busy {
		p.busy--
		defer func() { p.busy++ }()
	}
	for len(p.outbox) > 0 && p.ended == nil {
		a := p.outbox[0]
		n := copy(p.outbox, p.outbox[1:])
		p.outbox[n] = answers{}
		p.outbox = p.outbox[:n]
		size, count := a.len(), a.count
		p.mu.Unlock()
		err := p.stream.SendMsg(a)
		p.mu.Lock()
		p.unsent -= size
		p.unanswered -= count
		p.sent++
		if err != nil && p.ended == nil {
			p.ended = err
		}
		p.changed.Broadcast()
	}
	p.sending = false
	return p.ended
}
