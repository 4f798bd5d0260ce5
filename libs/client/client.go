package client

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

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
	// Timeout of each try of a call whose context has no deadline; default 10 s. Streams have none.
	Timeout time.Duration
	// RetryFor is how long after its first failure a call is repeated while a repeat can help and
	// does no harm, and a stream goes on without progress; default 5 s, negative for no repeats. The
	// context's deadline counts as well.
	RetryFor time.Duration
	// TLS encrypts the connection, checks the node and shows it who the client is; nil: plaintext.
	// TLSFromFiles makes one. Other credentials can be among DialOptions instead.
	TLS *tls.Config
	// Token returns what says that the client may read or write the tenant, for nodes that ask for that beside
	// a certificate; it is called for each call and must be quick. TokenFromFile makes one. Nil: none is sent.
	Token func(ctx context.Context) (string, error)
	// DialOptions are added to the client's own: interceptors, the handler of a tracer.
	DialOptions []grpc.DialOption
}

// Client talks to one storage node. It is safe for concurrent use; its connection is made when it
// is first needed and again when it breaks.
type Client struct {
	conn    *grpc.ClientConn
	storage storagev1.StorageServiceClient
	options Options
	pace    pacer
}

// New returns a client of the node at addr ("host:port", or "unix:/path"). It does not connect:
// the first call does. The address is that of one node: clocks and idempotency keys are not known to
// others at once.
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
	transport := insecure.NewCredentials()
	if o.TLS != nil {
		transport = credentials.NewTLS(o.TLS)
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)),
		// A node that comes back is found within 3 s; the default of gRPC grows to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		// A peer that vanished without a word is noticed within 30 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithInitialWindowSize(1 << 20),
		grpc.WithInitialConnWindowSize(4 << 20),
	}
	if o.Token != nil {
		dial = append(dial, grpc.WithPerRPCCredentials(bearer(o.Token)))
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

// Sibling is one of the concurrent values of a key.
type Sibling = datav1.Sibling

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
	Siblings []*Sibling
}

// Live returns the concurrent values without tombstones, the winner first; nil when there is just one
// value, or none.
func (v Value) Live() []*Sibling {
	var live []*Sibling
	for _, s := range v.Siblings {
		if !s.Tombstone {
			live = append(live, s)
		}
	}
	return live
}

// Outcome says what a write did.
type Outcome = storagev1.Outcome

// Result is the answer of a write.
type Result struct {
	Outcome Outcome
	// Clock of the key after the write: the context of the next one.
	Clock Clock
	// Siblings is the number of live values now; more than one calls for a merge. 0 in the result of a
	// batch, which does not say.
	Siblings int
	// Replayed is true when this is the answer to an earlier request with the same idempotency key.
	Replayed bool
}

// Put stores a value and returns when that is durable. Without WithContext or WithClock it supersedes
// what the node knows.
func (c *Client) Put(ctx context.Context, key string, value []byte, opts ...WriteOption) (Result, error) {
	o := apply(opts)
	if err := o.check(); err != nil {
		return Result{}, fmt.Errorf("put %q: %w", key, err)
	}
	req := &storagev1.WriteRequest{
		Tenant: c.options.Tenant, Key: key, Value: value, TtlSeconds: o.ttlSeconds(), Condition: o.condition,
	}
	switch {
	case o.clock != nil:
		req.Causality = &storagev1.WriteRequest_Clock{Clock: o.clock}
	case o.context != nil:
		req.Causality = &storagev1.WriteRequest_Context{Context: o.context}
	}
	resp, err := single(ctx, c, &o, func(ctx context.Context, idempotencyKey string, o grpc.CallOption) (*storagev1.WriteResponse, error) {
		req.IdempotencyKey = idempotencyKey
		return c.storage.Write(ctx, req, o)
	})
	if err != nil {
		return Result{}, fmt.Errorf("put %q: %w", key, err)
	}
	return Result{Outcome: resp.Outcome, Clock: resp.Clock, Siblings: int(resp.Siblings), Replayed: resp.Replayed}, nil
}

// Delete stores a tombstone and returns when that is durable.
func (c *Client) Delete(ctx context.Context, key string, opts ...WriteOption) (Result, error) {
	o := apply(opts).noTTL()
	if err := o.check(); err != nil {
		return Result{}, fmt.Errorf("delete %q: %w", key, err)
	}
	req := &storagev1.DeleteRequest{Tenant: c.options.Tenant, Key: key, Condition: o.condition}
	switch {
	case o.clock != nil:
		req.Causality = &storagev1.DeleteRequest_Clock{Clock: o.clock}
	case o.context != nil:
		req.Causality = &storagev1.DeleteRequest_Context{Context: o.context}
	}
	resp, err := single(ctx, c, &o, func(ctx context.Context, idempotencyKey string, o grpc.CallOption) (*storagev1.DeleteResponse, error) {
		req.IdempotencyKey = idempotencyKey
		return c.storage.Delete(ctx, req, o)
	})
	if err != nil {
		return Result{}, fmt.Errorf("delete %q: %w", key, err)
	}
	return Result{Outcome: resp.Outcome, Clock: resp.Clock, Siblings: int(resp.Siblings), Replayed: resp.Replayed}, nil
}

// single makes a put or a delete: f sends it with the idempotency key that it is given.
func single[T any](ctx context.Context, c *Client, o *writeOptions, f func(context.Context, string, grpc.CallOption) (T, error)) (T, error) {
	what, idempotencyKey := o.repeats(c), o.idempotencyKey
	drawn := what == keyed && idempotencyKey == ""
	if drawn {
		idempotencyKey = rand.Text()
	}
	send := func(ctx context.Context, o grpc.CallOption) (T, error) { return f(ctx, idempotencyKey, o) }
	resp, err := call(ctx, c, what, send)
	if drawn && Reason(err) == reasonCorrupted && !MaybeApplied(err) {
		// Perhaps it is only the node's memory of keys that is damaged. This one is new: nothing is lost
		// with it but the repeats.
		idempotencyKey = ""
		resp, err = call(ctx, c, blind, send)
	}
	return resp, err
}

// Repair joins siblings that were read together, on this or another node, into the key; for
// coordinators. A repeat changes nothing.
func (c *Client) Repair(ctx context.Context, key string, siblings []*Sibling) error {
	req := &storagev1.RepairRequest{Record: &Record{Tenant: c.options.Tenant, Key: key, Siblings: siblings}}
	_, err := call(ctx, c, exact, func(ctx context.Context, o grpc.CallOption) (*storagev1.RepairResponse, error) {
		return c.storage.Repair(ctx, req, o)
	})
	if err != nil {
		return fmt.Errorf("repair %q: %w", key, err)
	}
	return nil
}

// Get reads a key. An absent key is no error: Found is false.
func (c *Client) Get(ctx context.Context, key string) (Value, error) {
	req := &storagev1.ReadRequest{Tenant: c.options.Tenant, Key: key}
	resp, err := call(ctx, c, reads, func(ctx context.Context, o grpc.CallOption) (*storagev1.ReadResponse, error) {
		return c.storage.Read(ctx, req, o)
	})
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
