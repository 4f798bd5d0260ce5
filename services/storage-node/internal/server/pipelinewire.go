package server

import (
	"fmt"
	"math"
	"sync"
	"time"
	"unicode/utf8"
	"unsafe"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/causal"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// This file reads and writes the messages of Pipeline by hand: the generated code allocates six
// times an operation, which costs more than the operation. What is rare (clocks from outside,
// conditions, siblings, errors) goes through the generated code, and a fuzz test compares both.

// rawMessage is a message that the codec leaves as it came. data is valid until free.
type rawMessage struct {
	buffer mem.Buffer
	data   []byte
	err    error // why it must not be read
}

func (m *rawMessage) free() {
	if m.buffer != nil {
		m.buffer.Free()
	}
	*m = rawMessage{}
}

// Field numbers; TestPipelineFieldNumbers compares them with the descriptor.
const (
	requestTenant, requestOps, requestOmitClocks = 1, 2, 3
	opTag, opKey, opReadField, opPut, opDelete   = 1, 2, 3, 4, 5
	putValue, putTTL                             = 1, 4
	responseResults                              = 1
	resultTag, resultRead, resultWrite           = 1, 2, 3
	readFound, readValue, readClock              = 1, 2, 3
	readTimestamp, readExpiresAt                 = 4, 5
	writeOutcome, writeClock, writeSiblings      = 1, 2, 3
	clockEntries, entryNode, entryCounter        = 1, 1, 2
)

// opRead is the kind of a read beside those of the store.
const opRead = store.OpKind(math.MaxUint8)

// pipelineInput walks over the operations of a message, and collects those that are writes. Its
// memory is used again for the next message.
type pipelineInput struct {
	tenant     string // of the newest message that named one
	omitClocks bool
	count      int // operations of the message
	rest       []byte
	err        error

	// The current operation; it aliases the message.
	tag  uint64
	kind store.OpKind
	op   store.Op

	// The writes so far.
	ops  []store.Op
	tags []uint64

	outcomes []store.OpResult
	buf      []byte // for the value of a read
	took     []time.Duration
}

// begin reads everything of a message but its operations.
func (in *pipelineInput) begin(message []byte) error {
	in.rest, in.err = message, nil
	in.count, in.omitClocks = 0, false
	var tenant []byte
	for b := message; len(b) > 0; {
		number, kind, value, n := consumeField(b)
		if n < 0 {
			return fmt.Errorf("%w: invalid field", errMalformed)
		}
		b = b[n:]
		switch {
		case number == requestTenant && kind == protowire.BytesType:
			if !utf8.Valid(value) {
				return fmt.Errorf("%w: tenant is not UTF-8", errMalformed)
			}
			tenant = value[:min(len(value), store.MaxTenantBytes+1)] // enough for the store to refuse it
		case number == requestOps && kind == protowire.BytesType:
			in.count++
		case number == requestOmitClocks && kind == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(value)
			in.omitClocks = v != 0
		}
	}
	if len(tenant) > 0 && string(tenant) != in.tenant {
		in.tenant = string(tenant)
	}
	if in.count > store.MaxBatchOps {
		return fmt.Errorf("%w: message has %d operations, at most %d allowed", errLimit, in.count, store.MaxBatchOps)
	}
	return nil
}

// keptOps bounds the memory that a stream keeps between messages: 250 bytes each.
const keptOps = 256

// forget drops everything that aliases the message.
func (in *pipelineInput) forget() {
	in.op, in.rest = store.Op{}, nil
	if cap(in.took) > keptOps {
		in.took = nil
	}
	if cap(in.ops) > keptOps {
		in.ops, in.tags, in.outcomes = nil, nil, nil
		return
	}
	clear(in.ops)
	clear(in.outcomes)
	in.ops, in.tags, in.outcomes = in.ops[:0], in.tags[:0], in.outcomes[:0]
}

// next reads the next operation; false at the end and when err is set.
func (in *pipelineInput) next() bool {
	for len(in.rest) > 0 {
		number, kind, value, n := consumeField(in.rest)
		in.rest = in.rest[n:]
		if number != requestOps || kind != protowire.BytesType {
			continue
		}
		in.tag, in.kind, in.op = 0, 0, store.Op{}
		if !in.parse(value) {
			in.err = in.parseRare(value)
		}
		return in.err == nil
	}
	return false
}

// keep adds the current operation to the writes.
func (in *pipelineInput) keep() {
	in.op.Kind = in.kind
	in.ops, in.tags = append(in.ops, in.op), append(in.tags, in.tag)
}

// results returns room for the outcomes of the writes.
func (in *pipelineInput) results() []store.OpResult {
	if cap(in.outcomes) < len(in.ops) {
		in.outcomes = make([]store.OpResult, len(in.ops), max(len(in.ops), keptOps))
	}
	in.outcomes = in.outcomes[:len(in.ops)]
	return in.outcomes
}

// reusable returns the memory of a read for the next one, unless it is large.
func reusable(buf []byte) []byte {
	if cap(buf) > maxPipelineMessage {
		return nil
	}
	return buf[:0]
}

// consumeField returns the next field: number, type, and the bytes of its value, without the length
// in front. n < 0 is an error.
func consumeField(b []byte) (number protowire.Number, kind protowire.Type, value []byte, n int) {
	number, kind, n = protowire.ConsumeTag(b)
	if n < 0 {
		return 0, 0, nil, n
	}
	if number > protowire.MaxValidNumber {
		return 0, 0, nil, -1
	}
	if kind == protowire.BytesType {
		value, m := protowire.ConsumeBytes(b[n:])
		if m < 0 {
			return 0, 0, nil, m
		}
		return number, kind, value, n + m
	}
	m := protowire.ConsumeFieldValue(number, kind, b[n:])
	if m < 0 {
		return 0, 0, nil, m
	}
	return number, kind, b[n : n+m], n + m
}

// parse reads an operation of the usual shape. It reports false for any other, which may be right or
// wrong.
func (in *pipelineInput) parse(b []byte) bool {
	for len(b) > 0 {
		number, kind, value, n := consumeField(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		switch {
		case number == opTag && kind == protowire.VarintType:
			in.tag, _ = protowire.ConsumeVarint(value)
		case number == opKey && kind == protowire.BytesType:
			if !utf8.Valid(value) {
				return false
			}
			in.op.Key = unsafe.String(unsafe.SliceData(value), len(value)) // the store keeps no key
		case in.kind != 0 || kind != protowire.BytesType:
			return false // two operations in one, or something that this version does not know
		case number == opReadField && len(value) == 0:
			in.kind = opRead
		case number == opDelete && len(value) == 0:
			in.kind = store.Delete
		case number == opPut:
			in.kind = store.Put
			if !in.parsePut(value) {
				return false
			}
		default:
			return false
		}
	}
	return in.kind != 0
}

func (in *pipelineInput) parsePut(b []byte) bool {
	for len(b) > 0 {
		number, kind, value, n := consumeField(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		switch {
		case number == putValue && kind == protowire.BytesType:
			in.op.Value = value
		case number == putTTL && kind == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(value)
			in.op.TTL = int64(v)
		default:
			return false
		}
	}
	return true
}

// parseRare reads an operation of any shape through the generated code.
func (in *pipelineInput) parseRare(b []byte) error {
	var op storagev1.PipelineOp
	if err := proto.Unmarshal(b, &op); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	in.tag = op.GetTag()
	in.op = store.Op{}
	switch o := op.GetOp().(type) {
	case *storagev1.PipelineOp_Read:
		in.op.Kind = opRead
	case *storagev1.PipelineOp_Put:
		p := o.Put
		in.op.Kind, in.op.Value, in.op.TTL = store.Put, p.GetValue(), p.GetTtlSeconds()
		in.op.Causality, in.op.Condition = causality(p.GetClock(), p.GetContext()), conditionFromProto(p.GetCondition())
	case *storagev1.PipelineOp_Delete:
		in.op.Kind, in.op.Causality = store.Delete, causality(o.Delete.GetClock(), o.Delete.GetContext())
		in.op.Condition = conditionFromProto(o.Delete.GetCondition())
	case *storagev1.PipelineOp_Repair:
		in.op.Kind, in.op.Siblings = store.Repair, siblingsFromProto(o.Repair.GetSiblings())
	}
	in.op.Key, in.kind = op.GetKey(), in.op.Kind
	return nil
}

// answers are encoded results on their way into one message: a PipelineResponse.
type answers struct {
	buf   *[]byte
	count int
}

// answersPool keeps the memory of messages. It is used by the transport, too: it gives back what it
// has sent.
type answersPool struct{ pool sync.Pool }

var answersMemory = &answersPool{sync.Pool{New: func() any { b := make([]byte, 0, answersBytes); return &b }}}

const (
	// answersBytes holds 30 small results.
	answersBytes = 4 << 10
	// maxAnswersBytes is what may stay in the pool.
	maxAnswersBytes = 128 << 10
)

// Get implements mem.BufferPool.
func (p *answersPool) Get(n int) *[]byte {
	b := p.pool.Get().(*[]byte)
	if cap(*b) < n {
		*b = make([]byte, n)
	}
	*b = (*b)[:n]
	return b
}

// Put implements mem.BufferPool.
func (p *answersPool) Put(b *[]byte) {
	if cap(*b) > maxAnswersBytes {
		return
	}
	*b = (*b)[:0]
	p.pool.Put(b)
}

func newAnswers() answers { return answers{buf: answersMemory.Get(0)} }

func (a *answers) len() int { return len(*a.buf) }

func (a *answers) reset() { *a.buf, a.count = (*a.buf)[:0], 0 }

func (a *answers) release() { answersMemory.Put(a.buf) }

// join adds the answers of o, which it takes.
func (a *answers) join(o answers) {
	*a.buf = append(*a.buf, *o.buf...)
	a.count += o.count
	o.release()
}

// split takes the last result, which begins at byte at, into answers of its own, unless it is the
// only one.
func (a *answers) split(at int) answers {
	last := newAnswers()
	if a.count > 1 {
		*last.buf = append(*last.buf, (*a.buf)[at:]...)
		*a.buf = (*a.buf)[:at]
		last.count, a.count = 1, a.count-1
	}
	return last
}

// message hands the answers over to the transport.
func (a answers) message() mem.BufferSlice {
	return mem.BufferSlice{mem.NewBuffer(a.buf, answersMemory)}
}

// read adds the answer to a read. It returns an error for one that is too large to be sent.
func (a *answers) read(tag uint64, r *store.ReadResult) error {
	if len(r.Siblings) > 0 {
		result := &storagev1.PipelineResult{Tag: tag, Result: &storagev1.PipelineResult_Read{Read: readToProto(r)}}
		if proto.Size(result) > maxPipelineResult {
			return errPipelineResult
		}
		a.rare(result)
		return nil
	}
	size := sizeRead(r)
	if size > maxPipelineResult {
		return errPipelineResult
	}
	b, err := appendRead(a.head(tag, resultRead, size), r)
	*a.buf = b
	return err
}

// maxPipelineResult bounds one result: what the transport refuses to send would end the stream.
const maxPipelineResult = maxResponseBytes - 1<<10

var errPipelineResult = &store.Error{
	Reason: store.ReasonResponseTooLarge, Message: fmt.Sprintf("the answer exceeds %d bytes", maxPipelineResult),
}

// write adds the answer to a write, a delete or a repair.
func (a *answers) write(tag uint64, r *store.WriteResult) {
	outcome := outcomeToProto(r.Outcome)
	clock := sizeClock(r.Clock)
	b := a.head(tag, resultWrite, sizeUint(uint64(outcome))+sizeMessage(clock, len(r.Clock) > 0)+sizeUint(uint64(r.Siblings)))
	b = appendUint(b, writeOutcome, uint64(outcome))
	if len(r.Clock) > 0 {
		b = append(b, writeClock<<3|byte(protowire.BytesType))
		b = appendClock(protowire.AppendVarint(b, uint64(clock)), r.Clock)
	}
	*a.buf = appendUint(b, writeSiblings, uint64(r.Siblings))
}

// fail adds the error of an operation.
func (a *answers) fail(tag uint64, err error) {
	a.rare(&storagev1.PipelineResult{Tag: tag, Result: &storagev1.PipelineResult_Error{Error: itemError(err)}})
}

// rare adds any result, through the generated code.
func (a *answers) rare(r *storagev1.PipelineResult) {
	a.count++
	b := append(*a.buf, responseResults<<3|byte(protowire.BytesType))
	b = protowire.AppendVarint(b, uint64(proto.Size(r)))
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, r)
	if err != nil {
		panic(fmt.Sprintf("server: a result can't be encoded: %v", err)) // texts are made UTF-8 where they are made
	}
	*a.buf = b
}

// head begins a result: everything in front of the fields of its answer, which take size bytes.
func (a *answers) head(tag uint64, field byte, size int) []byte {
	a.count++
	b := append(*a.buf, responseResults<<3|byte(protowire.BytesType))
	b = protowire.AppendVarint(b, uint64(sizeUint(tag)+1+protowire.SizeBytes(size)))
	b = appendUint(b, resultTag, tag)
	b = append(b, field<<3|byte(protowire.BytesType))
	return protowire.AppendVarint(b, uint64(size))
}

// The sizes of fields with numbers below 16, whose tag is one byte; proto3 leaves out zero values.

func sizeBool(v bool) int {
	if v {
		return 2
	}
	return 0
}

func sizeUint(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

func sizeBytes(n int) int { return sizeMessage(n, n > 0) }

func sizeMessage(n int, present bool) int {
	if !present {
		return 0
	}
	return 1 + protowire.SizeBytes(n)
}

func appendUint(b []byte, field byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(append(b, field<<3|byte(protowire.VarintType)), v)
}

func sizeEntry(e *causal.Entry) int { return sizeBytes(len(e.Node)) + sizeUint(e.Counter) }

func sizeClock(c causal.Clock) (n int) {
	for i := range c {
		n += 1 + protowire.SizeBytes(sizeEntry(&c[i]))
	}
	return n
}

func appendClock(b []byte, c causal.Clock) []byte {
	for i := range c {
		e := &c[i]
		b = append(b, clockEntries<<3|byte(protowire.BytesType))
		b = protowire.AppendVarint(b, uint64(sizeEntry(e)))
		if e.Node != "" {
			b = append(b, entryNode<<3|byte(protowire.BytesType))
			b = protowire.AppendString(b, e.Node)
		}
		b = appendUint(b, entryCounter, e.Counter)
	}
	return b
}

// read and write count an operation that is over.
func (u *Pipelined) read(bytes int, took time.Duration, err error) {
	u.ReadTook = append(u.ReadTook, took)
	u.count(err, bytes, &u.Reads, &u.ReadBytes, &u.RejectedReads, &u.FailedReads)
}

func (u *Pipelined) write(bytes int, err error) {
	u.count(err, bytes, &u.Writes, &u.WriteBytes, &u.RejectedWrites, &u.FailedWrites)
}

func (u *Pipelined) count(err error, bytes int, done, total, rejected, failed *int) {
	if err == nil {
		*done++
		*total += bytes
		return
	}
	r := lookup(err)
	u.Reasons = append(u.Reasons, r.reason)
	if nodesFault(r.code) {
		*failed++
	} else {
		*rejected++
	}
}

// retryMillis is how a time to retry travels within a batch: rounded up, so that it is never 0.
func retryMillis(d time.Duration) uint32 {
	return uint32(min((d+time.Millisecond-1)/time.Millisecond, math.MaxUint32))
}
