package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// Limits of one call with a batch. A larger batch is sent with several calls.
const (
	MaxBatchOps   = 1000
	MaxBatchBytes = 16 << 20
)

// Batch collects writes. The zero value is empty; it can be sent again and reused after Reset.
type Batch struct {
	// Atomic makes the batch one write: it must fit into one call, one refused item refuses all of
	// them, and a crash keeps all or none.
	Atomic bool
	// AtLeastOnce lets the client send the batch again after an answer that was lost, although the
	// items may be second writes then, which supersede what somebody else wrote to their keys in
	// between. Right for bulk loads.
	AtLeastOnce bool

	ops     []*storagev1.BatchOp
	bytes   int
	inexact int   // items whose repeat is a second write
	guarded int   // items with a condition
	wrong   error // the first item with contradicting options
}

// Put adds a write. The batch keeps value.
func (b *Batch) Put(key string, value []byte, opts ...WriteOption) {
	o := applyItem(opts)
	b.add(&storagev1.BatchOp{Key: key, Op: &storagev1.BatchOp_Put{Put: o.putOp(value)}}, &o)
}

// Delete adds a delete.
func (b *Batch) Delete(key string, opts ...WriteOption) {
	o := applyItem(opts).noTTL()
	b.add(&storagev1.BatchOp{Key: key, Op: &storagev1.BatchOp_Delete{Delete: o.deleteOp()}}, &o)
}

func (b *Batch) add(op *storagev1.BatchOp, o *writeOptions) {
	if err := o.check(); err != nil && b.wrong == nil {
		b.wrong = fmt.Errorf("item %d: %w", len(b.ops), err)
	}
	if !o.exact() {
		b.inexact++
	}
	if o.condition != nil {
		b.guarded++
	}
	b.ops = append(b.ops, op)
	b.bytes += opBytes(op)
}

// opBytes is the approximate size of an item, never below what the node counts.
func opBytes(op *storagev1.BatchOp) int {
	const frame = 16
	n := frame + len(op.Key)
	switch o := op.Op.(type) {
	case *storagev1.BatchOp_Put:
		n += len(o.Put.Value) + proto.Size(o.Put.GetClock()) + proto.Size(o.Put.GetContext()) + proto.Size(o.Put.Condition)
		n += 8 * (len(o.Put.GetClock().GetEntries()) + len(o.Put.GetContext().GetEntries())) // a counter is 8 bytes to the node
	case *storagev1.BatchOp_Delete:
		n += proto.Size(o.Delete.GetClock()) + proto.Size(o.Delete.GetContext()) + proto.Size(o.Delete.Condition)
		n += 8 * (len(o.Delete.GetClock().GetEntries()) + len(o.Delete.GetContext().GetEntries()))
	}
	return n
}

// Len is the number of operations.
func (b *Batch) Len() int { return len(b.ops) }

// Bytes is the approximate size of the request.
func (b *Batch) Bytes() int { return b.bytes }

// Reset empties the batch; its settings stay.
func (b *Batch) Reset() {
	clear(b.ops)
	*b = Batch{Atomic: b.Atomic, AtLeastOnce: b.AtLeastOnce, ops: b.ops[:0]}
}

// BatchError says how far a batch came whose call failed: the items before First were answered, those
// from First to before End have no answer, or not all of them, and those from End on were not sent.
type BatchError struct {
	First, End int
	// Len of the batch.
	Len int
	// Err is an *Error; its MaybeApplied is that of the items without an answer.
	Err error
}

func (e *BatchError) Error() string {
	if e.First == 0 && e.End == e.Len {
		return fmt.Sprintf("batch of %d: %v", e.Len, e.Err)
	}
	return fmt.Sprintf("batch of %d, items %d to %d: %v", e.Len, e.First, e.End-1, e.Err)
}

func (e *BatchError) Unwrap() error { return e.Err }

// Write sends the batch, with as many calls as it takes, one after the other, and returns nil when
// every item is durable. Otherwise it returns the refused items as *ItemError, and how far it came as
// *BatchError if a call failed, joined into one error.
func (c *Client) Write(ctx context.Context, b *Batch) error {
	_, err := c.write(ctx, b, true)
	return err
}

// WriteResults is Write, and tells what each item did: outcome and clock, in the order of the batch.
// The result of an item without an answer is zero.
func (c *Client) WriteResults(ctx context.Context, b *Batch) ([]Result, error) {
	return c.write(ctx, b, false)
}

func (c *Client) write(ctx context.Context, b *Batch, omitClocks bool) ([]Result, error) {
	if err := b.check(); err != nil {
		return nil, fmt.Errorf("batch of %d: %w", b.Len(), err)
	}
	what := blind
	switch {
	case b.inexact == 0:
		what = exact
	case b.AtLeastOnce:
		what = again
	}
	var results []Result
	if !omitClocks {
		results = make([]Result, b.Len())
	}
	var errs []error
	for first := 0; first < b.Len(); {
		end := b.chunk(first)
		refused, err := c.writeChunk(ctx, b, what, first, end, results)
		errs = append(errs, refused...)
		if err != nil {
			errs = append(errs, &BatchError{First: first, End: end, Len: b.Len(), Err: err})
			break
		}
		first = end
	}
	return results, errors.Join(errs...)
}

// writeChunk sends the items from first to before end with one call, and then those again that the node
// refused for now: it does so with all items of a key, so they keep their order. It returns the refused
// ones in their order.
func (c *Client) writeChunk(ctx context.Context, b *Batch, what effect, first, end int, results []Result) (refused []error, err error) {
	index := func(e error) int { return e.(*ItemError).Index }
	defer func() { slices.SortFunc(refused, func(a, b error) int { return index(a) - index(b) }) }()
	items := make([]int, end-first) // index in the batch
	for i := range items {
		items[i] = first + i
	}
	ops := b.ops[first:end]
	retry := c.newRetrier()
	for {
		req := &storagev1.BatchWriteRequest{Tenant: c.options.Tenant, Ops: ops, Atomic: b.Atomic, OmitClocks: results == nil}
		resp, err := call(ctx, c, what, func(ctx context.Context, o grpc.CallOption) (*storagev1.BatchWriteResponse, error) {
			return c.storage.BatchWrite(ctx, req, o)
		})
		if err == nil && len(resp.Results) != len(ops) {
			err = &Error{Code: codes.Internal, Message: fmt.Sprintf("the node answered %d of %d items", len(resp.Results), len(ops)), MaybeApplied: true}
		}
		if err != nil {
			return refused, err
		}
		var later []int
		var asked *Error // the longest wait
		for i, r := range resp.Results {
			switch {
			case r.Error != nil:
				item := itemError(items[i], true, r.Error)
				refused = append(refused, item)
				e := asError(item)
				if !e.retryable() || e.MaybeApplied && what == blind {
					continue
				}
				later = append(later, items[i])
				if asked == nil || e.RetryAfter > asked.RetryAfter {
					asked = e
				}
			case results != nil:
				results[items[i]] = Result{Outcome: r.Outcome, Clock: r.Clock}
			}
		}
		if len(later) == 0 || b.Atomic || !retry.wait(ctx, asked) {
			return refused, nil
		}
		items, ops = later, make([]*storagev1.BatchOp, len(later))
		for i, n := range later {
			ops[i] = b.ops[n]
		}
		refused = slices.DeleteFunc(refused, func(e error) bool {
			_, found := slices.BinarySearch(later, index(e))
			return found
		})
	}
}

func (b *Batch) check() error {
	var o writeOptions
	if b.Atomic && (b.Len() > MaxBatchOps || b.bytes > MaxBatchBytes) {
		o.contradiction("an atomic batch has at most %d items and %d bytes, this one has about %d bytes", MaxBatchOps, MaxBatchBytes, b.bytes)
	}
	if b.AtLeastOnce && b.guarded > 0 {
		o.contradiction("at least once excludes conditions, which need exact repeats")
	}
	if b.wrong != nil {
		return b.wrong
	}
	return o.check()
}

// chunk returns the end of what one call from first on takes: one item at least.
func (b *Batch) chunk(first int) int {
	if b.Len() <= MaxBatchOps && b.bytes <= MaxBatchBytes {
		return b.Len()
	}
	end, bytes := first+1, opBytes(b.ops[first])
	for ; end < b.Len() && end-first < MaxBatchOps; end++ {
		if bytes += opBytes(b.ops[end]); bytes > MaxBatchBytes {
			break
		}
	}
	return end
}

func itemError(index int, write bool, e *storagev1.ItemError) *ItemError {
	return &ItemError{
		Index: index, Code: codes.Code(e.Code), Reason: e.Reason, Message: e.Message,
		RetryAfter: time.Duration(e.RetryAfterMs) * time.Millisecond, write: write,
	}
}

// GetMany reads keys, with as many calls as it takes; the answers have the order of keys. Keys that
// could not be read are *ItemError, joined into one error, and their Value is zero; after a call that
// failed there are no values at all.
func (c *Client) GetMany(ctx context.Context, keys []string) ([]Value, error) {
	values := make([]Value, 0, len(keys))
	var errs []error
	for len(values) < len(keys) {
		rest := keys[len(values):]
		req := &storagev1.BatchReadRequest{Tenant: c.options.Tenant, Keys: rest[:min(len(rest), MaxBatchOps)]}
		resp, err := call(ctx, c, reads, func(ctx context.Context, o grpc.CallOption) (*storagev1.BatchReadResponse, error) {
			return c.storage.BatchRead(ctx, req, o)
		})
		if err == nil && len(resp.Results) != len(req.Keys) {
			err = &Error{Code: codes.Internal, Message: fmt.Sprintf("the node answered %d of %d keys", len(resp.Results), len(req.Keys))}
		}
		if err != nil {
			return nil, fmt.Errorf("read %d keys: %w", len(keys), err)
		}
		for i, r := range resp.Results {
			if r.Error == nil {
				values = append(values, toValue(r.Response))
				continue
			}
			if i > 0 && r.Error.Reason == ReasonResponseTooLarge {
				break // the next call goes on here
			}
			errs = append(errs, itemError(len(values), false, r.Error))
			values = append(values, Value{})
		}
	}
	return values, errors.Join(errs...)
}
