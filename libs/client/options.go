package client

import (
	"crypto/sha256"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// WriteOption changes one write. Options that contradict each other are an error with ReasonOptions,
// and nothing is sent.
type WriteOption func(*writeOptions)

type writeOptions struct {
	context, clock Clock
	ttl            time.Duration
	condition      *storagev1.Condition
	idempotencyKey string
	atLeastOnce    bool
	wrong          string // the first contradiction
}

func (o *writeOptions) contradiction(format string, args ...any) {
	if o.wrong == "" {
		o.wrong = fmt.Sprintf(format, args...)
	}
}

// WithContext makes the write supersede what the read that returned c has seen, and nothing else: for
// the nil clock of a key that was not there, nothing.
func WithContext(c Clock) WriteOption {
	if c == nil {
		c = &datav1.VectorClock{}
	}
	return func(o *writeOptions) {
		if o.context != nil {
			o.contradiction("the context is given twice")
		}
		o.context = c
	}
}

// WithClock sends the clock of the write itself; for coordinators.
func WithClock(c Clock) WriteOption {
	return func(o *writeOptions) {
		if len(c.GetEntries()) == 0 {
			o.contradiction("the clock of the write is empty: the coordinator raises its own entry in it")
		}
		o.clock = c
	}
}

// WithTTL lets the value expire after d, rounded up to whole seconds; 0 is never.
func WithTTL(d time.Duration) WriteOption {
	return func(o *writeOptions) {
		if d < 0 {
			o.contradiction("the time to live is %s: it is over already", d)
		}
		o.ttl = d
	}
}

// WithIdempotencyKey names the write, so that a repeat of it within a day, also by another process,
// gets the first answer and changes nothing: Result.Replayed. It holds for one write of one tenant on
// one node.
func WithIdempotencyKey(key string) WriteOption {
	return func(o *writeOptions) {
		if key == "" {
			o.contradiction("the idempotency key is empty")
		}
		o.idempotencyKey = key
	}
}

// AtLeastOnce lets the client send the write again after an answer that was lost, although that may
// be a second write which supersedes what somebody else wrote in between. It saves the node from
// keeping an idempotency key; for keys that have one writer.
func AtLeastOnce() WriteOption { return func(o *writeOptions) { o.atLeastOnce = true } }

// IfAbsent lets the write happen only if the key has no value. Like every condition it is checked and
// the write applied as one step on the node; other replicas are not asked.
func IfAbsent() WriteOption {
	return withCondition(&storagev1.Condition{When: &storagev1.Condition_Absent{Absent: true}})
}

// IfClock lets the write happen only if nothing was written since the read that returned c; nil: if
// the node has never seen the key.
func IfClock(c Clock) WriteOption {
	if c == nil {
		c = &datav1.VectorClock{}
	}
	return withCondition(&storagev1.Condition{When: &storagev1.Condition_Clock{Clock: c}})
}

// IfValue lets the write happen only if a read would return this value.
func IfValue(value []byte) WriteOption {
	sum := sha256.Sum256(value)
	return withCondition(&storagev1.Condition{When: &storagev1.Condition_ValueSha256{ValueSha256: sum[:]}})
}

func withCondition(c *storagev1.Condition) WriteOption {
	return func(o *writeOptions) {
		if o.condition != nil {
			o.contradiction("a write has one condition, two are given")
		}
		o.condition = c
	}
}

// apply collects the options of a single put or delete.
func apply(opts []WriteOption) writeOptions {
	var o writeOptions
	for _, f := range opts {
		f(&o)
	}
	if o.clock != nil && o.context != nil {
		o.contradiction("clock and context exclude each other: the clock of a write contains what it has seen")
	}
	if o.atLeastOnce && (o.condition != nil || o.idempotencyKey != "") {
		o.contradiction("at least once excludes a condition and an idempotency key, which need exact repeats")
	}
	return o
}

// applyItem is apply for an item of a batch or a pipeline.
func applyItem(opts []WriteOption) writeOptions {
	o := apply(opts)
	if o.idempotencyKey != "" {
		o.contradiction("only a single Put or Delete has an idempotency key")
	}
	if o.atLeastOnce {
		o.contradiction("at least once is for a single Put or Delete; a batch has a field of that name")
	}
	return o
}

// noTTL refuses the lifetime of a delete.
func (o writeOptions) noTTL() writeOptions {
	if o.ttl != 0 {
		o.contradiction("a delete has no time to live")
	}
	return o
}

func (o writeOptions) check() error {
	if o.wrong == "" {
		return nil
	}
	return &Error{Code: codes.InvalidArgument, Reason: ReasonOptions, Message: o.wrong}
}

func (o writeOptions) ttlSeconds() int64 { return int64((o.ttl + time.Second - 1) / time.Second) }

// exact reports whether a repeat of the write changes nothing by itself, and gets the same answer.
func (o writeOptions) exact() bool { return o.clock != nil && o.condition == nil }

// repeats returns what a repeat of a put or a delete does. keyed without a key: it needs one.
func (o *writeOptions) repeats(c *Client) effect {
	switch {
	case o.idempotencyKey != "":
		return keyed
	case o.exact():
		return exact
	case o.atLeastOnce:
		return again
	case c.options.RetryFor < 0:
		return blind // it is never repeated
	}
	return keyed
}

func (o writeOptions) putOp(value []byte) *storagev1.PutOp {
	op := &storagev1.PutOp{Value: value, TtlSeconds: o.ttlSeconds(), Condition: o.condition}
	switch {
	case o.clock != nil:
		op.Causality = &storagev1.PutOp_Clock{Clock: o.clock}
	case o.context != nil:
		op.Causality = &storagev1.PutOp_Context{Context: o.context}
	}
	return op
}

func (o writeOptions) deleteOp() *storagev1.DeleteOp {
	op := &storagev1.DeleteOp{Condition: o.condition}
	switch {
	case o.clock != nil:
		op.Causality = &storagev1.DeleteOp_Clock{Clock: o.clock}
	case o.context != nil:
		op.Causality = &storagev1.DeleteOp_Context{Context: o.context}
	}
	return op
}
