package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

const (
	// MaxPipelineOps is how many operations of one pipeline may be without an answer; then Get, Put
	// and Delete wait. The node stops to receive at 4,096.
	MaxPipelineOps = 2048
	// pipelineMessageBytes is when a message is full, pipelineMessageOps the node's limit.
	pipelineMessageBytes = 48 << 10
	pipelineMessageOps   = 1000
)

// ErrPipelineClosed is the error of an operation that was begun after Close.
var ErrPipelineClosed = errors.New("pipeline is closed")

// Pipeline sends operations over one stream without waiting for their answers. Operations that are
// begun while a message is on its way share the next one. It is safe for concurrent use.
//
// Writes are applied in the order in which they are begun, by one goroutine. A Get sees the writes
// whose answer was there before it was begun; whether it sees one that has no answer yet is left
// open.
//
// Nothing is repeated: when the stream breaks, every operation without an answer gets the error, and
// a write of them may have been applied or not.
type Pipeline struct {
	stream grpc.ClientStream
	cancel context.CancelFunc
	done   chan struct{} // closed when the receiver has ended

	mu sync.Mutex
	// work wakes the sender, room those who wait to begin an operation.
	work, room sync.Cond
	// Guarded by mu.
	queue   []requestChunk // to be sent, in this order
	sending bool           // someone is
	begun   []operation    // by tag; nil is free
	free    []uint64       // tags that are free
	tenant  string         // not sent yet
	closed  bool
	err     error // why the stream is over
}

// requestChunk is an encoded PipelineRequest.
type requestChunk struct {
	buf   *[]byte
	count int
}

// operation is a Future of any type.
type operation interface {
	// answer takes the encoded fields of a result: its number and its bytes.
	answer(field protowire.Number, b []byte)
	fail(err error)
	// lost says that the stream ended with e before the answer came.
	lost(e Error)
}

// Future is an answer that may not be there yet.
type Future[T any] struct {
	what, key string
	done      chan struct{}
	decode    func([]byte) (T, error)
	field     protowire.Number
	// Written before done is closed.
	value T
	err   error
}

// Wait returns the answer when it is there. When ctx ends first, the operation goes on: a write may have been
// applied then (MaybeApplied).
func (f *Future[T]) Wait(ctx context.Context) (T, error) {
	select {
	case <-f.done: // the usual case: no look at the context
		return f.value, f.err
	default:
	}
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		var zero T
		e := *asError(ctx.Err())
		e.MaybeApplied = f.field == resultWrite
		return zero, fmt.Errorf("%s %q: not waited for: %w", f.what, f.key, &e)
	}
}

// Done is closed when the answer is there.
func (f *Future[T]) Done() <-chan struct{} { return f.done }

func (f *Future[T]) fail(err error) {
	f.err = fmt.Errorf("%s %q: %w", f.what, f.key, err)
	close(f.done)
}

func (f *Future[T]) lost(e Error) {
	e.MaybeApplied = f.field == resultWrite
	f.fail(&e)
}

// unreadable says that there was an answer and nobody knows which.
func (f *Future[T]) unreadable(why string) { f.lost(Error{Code: codes.Internal, Message: why}) }

func (f *Future[T]) answer(field protowire.Number, b []byte) {
	switch field {
	case f.field:
		v, err := f.decode(b)
		if err != nil {
			f.unreadable(err.Error())
			return
		}
		f.value = v
		close(f.done)
	case resultError:
		var e storagev1.ItemError
		if err := proto.Unmarshal(b, &e); err != nil {
			f.unreadable(err.Error())
			return
		}
		f.fail(itemError(-1, f.field == resultWrite, &e))
	default:
		f.unreadable("the node answered another operation")
	}
}

// Field numbers of PipelineRequest, PipelineOp, PutOp and PipelineResult.
const (
	requestTenant, requestOps             = 1, 2
	opTag, opKey, opRead, opPut, opDelete = 1, 2, 3, 4, 5
	putValue, putTTL                      = 1, 4
	putClock, putContext, putCondition    = 2, 3, 5
	deleteClock, deleteContext            = 1, 2
	deleteCondition                       = 3
	responseResults                       = 1
	resultTag, resultRead, resultWrite    = 1, 2, 3
	resultError                           = 4
)

// Pipeline opens a stream of operations. It lasts until Close, or until ctx ends, and has no other
// deadline.
func (c *Client) Pipeline(ctx context.Context) (*Pipeline, error) {
	ctx, cancel := context.WithCancel(ctx)
	desc := &grpc.StreamDesc{StreamName: "Pipeline", ServerStreams: true, ClientStreams: true}
	stream, err := c.conn.NewStream(ctx, desc, storagev1.StorageService_Pipeline_FullMethodName, grpc.ForceCodecV2(pipelineCodec{}))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("pipeline: %w", asError(err))
	}
	p := &Pipeline{stream: stream, cancel: cancel, done: make(chan struct{}), tenant: c.options.Tenant}
	p.work.L, p.room.L = &p.mu, &p.mu
	go p.send()
	go p.receive()
	return p, nil
}

// Get begins to read a key.
func (p *Pipeline) Get(key string) *Future[Value] {
	f := &Future[Value]{what: "get", key: key, done: make(chan struct{}), field: resultRead, decode: func(b []byte) (Value, error) {
		var r storagev1.ReadResponse
		err := proto.Unmarshal(b, &r)
		return toValue(&r), err
	}}
	p.begin(f, key, opRead, nil, &writeOptions{})
	return f
}

// Put begins to store a value; it is copied.
func (p *Pipeline) Put(key string, value []byte, opts ...WriteOption) *Future[Result] {
	f := &Future[Result]{what: "put", key: key, done: make(chan struct{}), field: resultWrite, decode: decodeResult}
	o := applyItem(opts)
	p.begin(f, key, opPut, value, &o)
	return f
}

// Delete begins to store a tombstone.
func (p *Pipeline) Delete(key string, opts ...WriteOption) *Future[Result] {
	f := &Future[Result]{what: "delete", key: key, done: make(chan struct{}), field: resultWrite, decode: decodeResult}
	o := applyItem(opts).noTTL()
	p.begin(f, key, opDelete, nil, &o)
	return f
}

func decodeResult(b []byte) (Result, error) {
	var r storagev1.WriteResponse
	err := proto.Unmarshal(b, &r)
	return Result{Outcome: r.Outcome, Clock: r.Clock, Siblings: int(r.Siblings)}, err
}

// Close waits for the answers of everything that was begun, and ends the stream. It returns why the
// stream was over before that, if it was. Close is idempotent.
func (p *Pipeline) Close() error {
	p.mu.Lock()
	p.closed = true
	p.work.Signal()
	p.room.Broadcast()
	p.mu.Unlock()
	<-p.done
	p.cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil && !errors.Is(p.err, io.EOF) {
		return fmt.Errorf("pipeline: %w", asError(p.err))
	}
	return nil
}

// begin gives an operation a tag and puts it into a message.
func (p *Pipeline) begin(op operation, key string, kind protowire.Number, value []byte, o *writeOptions) {
	body, err := opBody(kind, o)
	if err != nil {
		op.fail(err)
		return
	}
	p.mu.Lock()
	for p.err == nil && !p.closed && len(p.free) == 0 && len(p.begun) == MaxPipelineOps {
		p.room.Wait()
	}
	if p.err != nil || p.closed {
		err := p.err
		p.mu.Unlock()
		if err == nil || errors.Is(err, io.EOF) {
			err = ErrPipelineClosed
		} else {
			err = asError(err)
		}
		op.fail(err)
		return
	}
	var tag uint64
	if n := len(p.free); n > 0 {
		tag, p.free = p.free[n-1], p.free[:n-1]
		p.begun[tag] = op
	} else {
		tag = uint64(len(p.begun))
		p.begun = append(p.begun, op)
	}
	first := len(p.queue) == 0 && !p.sending
	p.encode(tag, key, kind, value, body)
	if first && len(p.begun)-len(p.free) == 1 {
		p.sendOne() // nothing else is in flight: there is nobody to share a message with
	}
	wake := len(p.queue) > 0 && !p.sending
	p.mu.Unlock()
	if wake {
		p.work.Signal()
	}
}

// sendOne sends the first message of the queue. mu is held, and released meanwhile.
func (p *Pipeline) sendOne() {
	chunk := p.queue[0]
	n := copy(p.queue, p.queue[1:])
	p.queue[n] = requestChunk{}
	p.queue = p.queue[:n]
	p.sending = true
	p.mu.Unlock()
	_ = p.stream.SendMsg(chunk) // the receiver gets the reason
	p.mu.Lock()
	p.sending = false
	if p.closed || p.err != nil {
		p.work.Signal() // the sender waits to close its side
	}
}

// opBody returns the rare fields of an operation: causality, condition and lifetime.
func opBody(kind protowire.Number, o *writeOptions) (body []byte, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	clock, context, condition := protowire.Number(putClock), protowire.Number(putContext), protowire.Number(putCondition)
	if kind == opDelete {
		clock, context, condition = deleteClock, deleteContext, deleteCondition
	}
	switch {
	case o.clock != nil:
		body, err = appendMessage(body, clock, o.clock)
	case o.context != nil:
		body, err = appendMessage(body, context, o.context)
	}
	if err == nil && o.condition != nil {
		body, err = appendMessage(body, condition, o.condition)
	}
	if err != nil {
		return nil, err
	}
	if ttl := o.ttlSeconds(); ttl != 0 && kind == opPut {
		body = protowire.AppendVarint(protowire.AppendTag(body, putTTL, protowire.VarintType), uint64(ttl))
	}
	return body, nil
}

func appendMessage(b []byte, number protowire.Number, m proto.Message) ([]byte, error) {
	field, err := proto.Marshal(m)
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), field), err
}

// encode appends an operation to the last message, or to a new one. mu is held.
func (p *Pipeline) encode(tag uint64, key string, kind protowire.Number, value, body []byte) {
	inner := len(body)
	if len(value) > 0 {
		inner += 1 + protowire.SizeBytes(len(value))
	}
	size := 1 + protowire.SizeVarint(tag) + 1 + protowire.SizeBytes(len(key)) + 1 + protowire.SizeBytes(inner)
	n := len(p.queue)
	if n == 0 || p.queue[n-1].count == pipelineMessageOps || len(*p.queue[n-1].buf)+size > pipelineMessageBytes {
		p.queue = append(p.queue, requestChunk{buf: requestMemory.Get(0)})
		n++
	}
	chunk := &p.queue[n-1]
	b := *chunk.buf
	if p.tenant != "" {
		b = protowire.AppendString(protowire.AppendTag(b, requestTenant, protowire.BytesType), p.tenant)
		p.tenant = ""
	}
	b = protowire.AppendVarint(protowire.AppendTag(b, requestOps, protowire.BytesType), uint64(size))
	b = protowire.AppendVarint(protowire.AppendTag(b, opTag, protowire.VarintType), tag)
	b = protowire.AppendString(protowire.AppendTag(b, opKey, protowire.BytesType), key)
	b = protowire.AppendVarint(protowire.AppendTag(b, kind, protowire.BytesType), uint64(inner))
	if len(value) > 0 {
		b = protowire.AppendBytes(protowire.AppendTag(b, putValue, protowire.BytesType), value)
	}
	*chunk.buf = append(b, body...)
	chunk.count++
}

// send sends messages until the pipeline is closed and everything is sent.
func (p *Pipeline) send() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for p.sending || len(p.queue) == 0 && !p.closed && p.err == nil {
			p.work.Wait()
			// Who else is about to begin an operation shall share this message.
			p.mu.Unlock()
			runtime.Gosched()
			p.mu.Lock()
		}
		if len(p.queue) == 0 || p.err != nil {
			_ = p.stream.CloseSend() // never fails: the receiver reports what is wrong
			return
		}
		p.sendOne()
	}
}

// receive hands out answers until the stream is over, and then its end.
func (p *Pipeline) receive() {
	defer close(p.done)
	var m responseChunk
	for {
		err := p.stream.RecvMsg(&m)
		if err == nil {
			err = p.deliver(m.data)
			m.free()
		}
		if err != nil {
			p.end(err)
			return
		}
	}
}

// end fails what has no answer.
func (p *Pipeline) end(err error) {
	p.mu.Lock()
	p.err = err
	lost := p.begun
	p.begun, p.free = nil, nil
	p.work.Signal()
	p.room.Broadcast()
	p.mu.Unlock()
	p.cancel()
	if errors.Is(err, io.EOF) {
		err = errors.New("the node ended the pipeline without an answer")
	}
	e := asError(err)
	for _, op := range lost {
		if op != nil {
			op.lost(*e)
		}
	}
}

var errResponse = errors.New("malformed answer")

// deliver gives the results of a message to their operations.
func (p *Pipeline) deliver(b []byte) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errResponse
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return errResponse
		}
		if number == responseResults && kind == protowire.BytesType {
			result, _ := protowire.ConsumeBytes(b)
			if err := p.deliverOne(result); err != nil {
				return err
			}
		}
		b = b[n:]
	}
	return nil
}

func (p *Pipeline) deliverOne(b []byte) error {
	var tag uint64
	var field protowire.Number
	var answer []byte
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errResponse
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return errResponse
		}
		switch {
		case number == resultTag && kind == protowire.VarintType:
			tag, _ = protowire.ConsumeVarint(b)
		case kind == protowire.BytesType && number >= resultRead && number <= resultError:
			field = number
			answer, _ = protowire.ConsumeBytes(b)
		}
		b = b[n:]
	}
	p.mu.Lock()
	if tag >= uint64(len(p.begun)) || p.begun[tag] == nil {
		p.mu.Unlock()
		return fmt.Errorf("%w: tag %d is not in flight", errResponse, tag)
	}
	op := p.begun[tag]
	p.begun[tag] = nil
	p.free = append(p.free, tag)
	full := len(p.begun) == MaxPipelineOps
	p.mu.Unlock()
	if full {
		p.room.Signal()
	}
	op.answer(field, answer)
	return nil
}
