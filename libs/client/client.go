// Package client is the Go client of a PairDB storage node: connection, deadlines, retries of what
// can be retried, and calls in terms of keys and values. It never hides a conflict: siblings and
// clocks are part of every answer.
package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// DefaultTenant is the tenant of a client that names none.
const DefaultTenant = "default"

// MaxMessageBytes is the largest message that the client sends or receives: a batch of 16 MiB and
// its frame.
const MaxMessageBytes = 17 << 20

// Options of a client. The zero value of each field is its default.
type Options struct {
	// Tenant whose keys the client reads and writes; default "default".
	Tenant string
	// Timeout of a call whose context has no deadline; default 10 s. Streams have none.
	Timeout time.Duration
	// RetryFor is how long a call is repeated while the answer says that a repeat can help;
	// default 5 s, negative for no repeats. The context's deadline counts as well.
	RetryFor time.Duration
	// DialOptions are added to the client's own.
	DialOptions []grpc.DialOption
}

// Client talks to one storage node. It is safe for concurrent use; its connection is made when it
// is first needed and again when it breaks.
type Client struct {
	conn    *grpc.ClientConn
	storage storagev1.StorageServiceClient
	options Options
}

// New returns a client of the node at addr ("host:port", or "unix:/path"). It does not connect:
// the first call does.
func New(addr string, o Options) (*Client, error) {
	if o.Tenant == "" {
		o.Tenant = DefaultTenant
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.RetryFor == 0 {
		o.RetryFor = 5 * time.Second
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)),
		// A peer that vanished without a word is noticed within 30 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithInitialWindowSize(1 << 20),
		grpc.WithInitialConnWindowSize(4 << 20),
	}
	conn, err := grpc.NewClient(addr, append(dial, o.DialOptions...)...)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", addr, err)
	}
	return &Client{conn: conn, storage: storagev1.NewStorageServiceClient(conn), options: o}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Admin returns the operator's calls on the same connection.
func (c *Client) Admin() adminv1.AdminServiceClient { return adminv1.NewAdminServiceClient(c.conn) }

// Tenant returns the tenant of the client.
func (c *Client) Tenant() string { return c.options.Tenant }

// Clock is the causal past of a value: pass the clock of a read as the Context of the write that
// follows from it. It is opaque to most applications.
type Clock = *datav1.VectorClock

// Value is the answer of a read.
type Value struct {
	// Found is false for a key without a live value.
	Found bool
	// Bytes of the winner among the siblings.
	Bytes []byte
	// Clock of everything this node knows of the key; nil for a key that it has never seen.
	Clock Clock
	// Time of the winner's write.
	Time time.Time
	// ExpiresAt is zero when the value never expires.
	ExpiresAt time.Time
	// Siblings are all concurrent values, tombstones included, the winner first; nil when there
	// is just one value.
	Siblings []*datav1.Sibling
}

// Outcome says what a write did.
type Outcome = storagev1.Outcome

// Result is the answer of a write.
type Result struct {
	Outcome Outcome
	// Clock of the key after the write.
	Clock Clock
	// Siblings is the number of live values now; more than one calls for a merge.
	Siblings int
}

// WriteOption changes one write.
type WriteOption func(*writeOptions)

type writeOptions struct {
	context, clock Clock
	ttl            time.Duration
}

// WithContext makes the write supersede what the read that returned c has seen, and nothing else: for
// the nil clock of a key that was not there, nothing.
func WithContext(c Clock) WriteOption {
	if c == nil {
		c = &datav1.VectorClock{}
	}
	return func(o *writeOptions) { o.context = c }
}

// WithClock sends the clock of the write itself; for coordinators.
func WithClock(c Clock) WriteOption { return func(o *writeOptions) { o.clock = c } }

// WithTTL lets the value expire after d, rounded up to whole seconds.
func WithTTL(d time.Duration) WriteOption { return func(o *writeOptions) { o.ttl = d } }

func apply(opts []WriteOption) writeOptions {
	var o writeOptions
	for _, f := range opts {
		f(&o)
	}
	return o
}

func (o writeOptions) ttlSeconds() int64 { return int64((o.ttl + time.Second - 1) / time.Second) }

// Put stores a value. Without WithContext or WithClock it supersedes what the node knows.
func (c *Client) Put(ctx context.Context, key string, value []byte, opts ...WriteOption) (Result, error) {
	o := apply(opts)
	req := &storagev1.WriteRequest{Tenant: c.options.Tenant, Key: key, Value: value, TtlSeconds: o.ttlSeconds()}
	switch {
	case o.clock != nil:
		req.Causality = &storagev1.WriteRequest_Clock{Clock: o.clock}
	case o.context != nil:
		req.Causality = &storagev1.WriteRequest_Context{Context: o.context}
	}
	resp, err := call(ctx, c, func(ctx context.Context) (*storagev1.WriteResponse, error) { return c.storage.Write(ctx, req) })
	if err != nil {
		return Result{}, fmt.Errorf("put %q: %w", key, err)
	}
	return Result{Outcome: resp.Outcome, Clock: resp.Clock, Siblings: int(resp.Siblings)}, nil
}

// Get reads a key. An absent key is no error: Found is false.
func (c *Client) Get(ctx context.Context, key string) (Value, error) {
	req := &storagev1.ReadRequest{Tenant: c.options.Tenant, Key: key}
	resp, err := call(ctx, c, func(ctx context.Context) (*storagev1.ReadResponse, error) { return c.storage.Read(ctx, req) })
	if err != nil {
		return Value{}, fmt.Errorf("get %q: %w", key, err)
	}
	return toValue(resp), nil
}

func toValue(r *storagev1.ReadResponse) Value {
	v := Value{Found: r.Found, Bytes: r.Value, Clock: r.Clock, Siblings: r.Siblings}
	if r.Timestamp != 0 {
		v.Time = time.UnixMilli(int64(r.Timestamp >> 16))
	}
	if r.ExpiresAt != 0 {
		v.ExpiresAt = time.Unix(r.ExpiresAt, 0)
	}
	return v
}

// Delete stores a tombstone.
func (c *Client) Delete(ctx context.Context, key string, opts ...WriteOption) (Result, error) {
	o := apply(opts)
	req := &storagev1.DeleteRequest{Tenant: c.options.Tenant, Key: key}
	switch {
	case o.clock != nil:
		req.Causality = &storagev1.DeleteRequest_Clock{Clock: o.clock}
	case o.context != nil:
		req.Causality = &storagev1.DeleteRequest_Context{Context: o.context}
	}
	resp, err := call(ctx, c, func(ctx context.Context) (*storagev1.DeleteResponse, error) { return c.storage.Delete(ctx, req) })
	if err != nil {
		return Result{}, fmt.Errorf("delete %q: %w", key, err)
	}
	return Result{Outcome: resp.Outcome, Clock: resp.Clock, Siblings: int(resp.Siblings)}, nil
}

// Limits of one batch.
const (
	MaxBatchOps   = 1000
	MaxBatchBytes = 16 << 20
)

// Batch collects writes. The zero value is empty; it can be sent again and reused after Reset.
type Batch struct {
	ops   []*storagev1.BatchOp
	bytes int
}

// Put adds a blind write. The batch keeps value.
func (b *Batch) Put(key string, value []byte) {
	b.ops = append(b.ops, &storagev1.BatchOp{Key: key, Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: value}}})
	b.bytes += len(key) + len(value) + 16
}

// Delete adds a blind delete.
func (b *Batch) Delete(key string) {
	b.ops = append(b.ops, &storagev1.BatchOp{Key: key, Op: &storagev1.BatchOp_Delete{Delete: &storagev1.DeleteOp{}}})
	b.bytes += len(key) + 16
}

// Len is the number of operations.
func (b *Batch) Len() int { return len(b.ops) }

// Bytes is the approximate size of the request.
func (b *Batch) Bytes() int { return b.bytes }

// Reset empties the batch.
func (b *Batch) Reset() {
	clear(b.ops)
	b.ops, b.bytes = b.ops[:0], 0
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
}

func (e *ItemError) Error() string {
	if e.Index < 0 {
		return fmt.Sprintf("%s (%s)", e.Message, e.Reason)
	}
	return fmt.Sprintf("item %d: %s (%s)", e.Index, e.Message, e.Reason)
}

// Write sends the batch and returns nil when every item is durable, or the refused items as
// *ItemError joined into one error. Repeats are harmless: a batch whose answer was lost is sent
// again.
func (c *Client) Write(ctx context.Context, b *Batch) error {
	if b.Len() == 0 {
		return nil
	}
	req := &storagev1.BatchWriteRequest{Tenant: c.options.Tenant, Ops: b.ops, OmitClocks: true}
	resp, err := call(ctx, c, func(ctx context.Context) (*storagev1.BatchWriteResponse, error) {
		return c.storage.BatchWrite(ctx, req)
	})
	if err != nil {
		return fmt.Errorf("batch of %d: %w", b.Len(), err)
	}
	if len(resp.Results) != b.Len() {
		return fmt.Errorf("batch of %d: the node answered %d items", b.Len(), len(resp.Results))
	}
	var errs []error
	for i, r := range resp.Results {
		if r.Error != nil {
			errs = append(errs, itemError(i, r.Error))
		}
	}
	return errors.Join(errs...)
}

// GetMany reads up to 1,000 keys with one call; the answers have the order of keys.
func (c *Client) GetMany(ctx context.Context, keys []string) ([]Value, error) {
	req := &storagev1.BatchReadRequest{Tenant: c.options.Tenant, Keys: keys}
	resp, err := call(ctx, c, func(ctx context.Context) (*storagev1.BatchReadResponse, error) { return c.storage.BatchRead(ctx, req) })
	if err != nil {
		return nil, fmt.Errorf("read %d keys: %w", len(keys), err)
	}
	values := make([]Value, 0, len(resp.Results))
	for i, r := range resp.Results {
		if r.Error != nil {
			return nil, itemError(i, r.Error)
		}
		values = append(values, toValue(r.Response))
	}
	return values, nil
}

// Keys lists the live keys in [start, end), in order; an empty end is the end of the tenant.
func (c *Client) Keys(ctx context.Context, start, end string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		req := &storagev1.GetKeyRangeRequest{
			Tenant: c.options.Tenant, Range: &datav1.KeyRange{Start: start, End: end}, MaxKeys: 10_000,
		}
		for {
			page, err := call(ctx, c, func(ctx context.Context) (*storagev1.GetKeyRangeResponse, error) {
				return c.storage.GetKeyRange(ctx, req)
			})
			if err != nil {
				yield("", fmt.Errorf("list keys: %w", err))
				return
			}
			for _, k := range page.Keys {
				if !yield(k.Key, nil) {
					return
				}
			}
			if page.NextPageToken == "" {
				return
			}
			req.PageToken = page.NextPageToken
		}
	}
}

// Scan walks the records in [start, end) in key order. A broken stream is resumed from its cursor,
// without a gap and without a repeat; the records after a resumption are of a newer snapshot.
func (c *Client) Scan(ctx context.Context, start, end string) iter.Seq2[*datav1.Record, error] {
	return func(yield func(*datav1.Record, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		req := &storagev1.StreamKeysRequest{
			Tenant: c.options.Tenant,
			What:   &storagev1.StreamKeysRequest_Range{Range: &datav1.KeyRange{Start: start, End: end}},
		}
		retry := newRetrier(c.options.RetryFor)
		for {
			done, err := c.scanOnce(ctx, req, retry, yield)
			if done {
				return
			}
			if !retry.wait(ctx, err) {
				yield(nil, fmt.Errorf("scan: %w", err))
				return
			}
		}
	}
}

// scanOnce runs one stream and keeps the cursor in req. It reports true when the walk has ended.
func (c *Client) scanOnce(ctx context.Context, req *storagev1.StreamKeysRequest, retry *retrier, yield func(*datav1.Record, error) bool) (bool, error) {
	stream, err := c.storage.StreamKeys(ctx, req)
	if err != nil {
		return false, err
	}
	for {
		msg, err := stream.Recv()
		if err != nil {
			return isEOF(err), err
		}
		retry.reset()
		for _, r := range msg.Records {
			if !yield(r, nil) {
				return true, nil
			}
		}
		req.Cursor = msg.Cursor
	}
}

// Winner returns the value of a record as a read would: the first live sibling.
func Winner(r *datav1.Record) (value []byte, found bool) {
	for _, s := range r.Siblings {
		if !s.Tombstone {
			return s.Value, true
		}
	}
	return nil, false
}

// call runs f with the default deadline, again while a repeat can help.
func call[T any](ctx context.Context, c *Client, f func(context.Context) (T, error)) (T, error) {
	retry := newRetrier(c.options.RetryFor)
	for {
		attempt, cancel := c.withTimeout(ctx)
		resp, err := f(attempt)
		cancel()
		if err == nil || !retry.wait(ctx, err) {
			return resp, err
		}
	}
}

func (c *Client) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, c.options.Timeout)
}

// Reason returns the reason of the error table that err carries, or "".
func Reason(err error) string {
	var item *ItemError
	if errors.As(err, &item) {
		return item.Reason
	}
	if info := errorInfo(err); info != nil {
		return info.Reason
	}
	return ""
}

// Code returns the gRPC code of err.
func Code(err error) codes.Code {
	var item *ItemError
	if errors.As(err, &item) {
		return item.Code
	}
	return status.Code(unwrapStatus(err))
}
