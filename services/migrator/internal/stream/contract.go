package stream

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
)

// contractCalls is how many calls of one stream are under way: a call is a round trip and a sync.
const contractCalls = 16

// ErrContract says that a target refused a record in an answer of the established contract.
var ErrContract = errors.New("the target refuses a record")

// Contract is a Sink on the established contract of coordinators: each sibling of a record is one call.
// A part is acknowledged when Send returns. What the contract can't express is lost on the way, and only
// that: dots become entries of the clock, times to live end.
type Contract struct {
	o      Options
	client storagenodev1.StorageNodeServiceClient
	ctx    context.Context // of the stream
	cancel context.CancelFunc
}

// OpenContract returns a sink. It ends with ctx or Close.
func OpenContract(ctx context.Context, client storagenodev1.StorageNodeServiceClient, o Options) *Contract {
	ctx, cancel := context.WithCancel(ctx)
	return &Contract{o: o.withDefaults(), client: client, ctx: ctx, cancel: cancel}
}

// Send sends the siblings of records and waits until the target has them.
func (s *Contract) Send(ctx context.Context, records *Records, m Mark) error {
	m.Records, m.Bytes = int64(records.Len()), records.Bytes()
	if err := waitAll(ctx, s.o.Limits, int(m.Bytes), s.o.Waited); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.o.Stall, ErrStalled)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	if err := s.all(ctx, records); err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, ErrStalled) {
			return cause
		}
		return err
	}
	s.o.Acked(m)
	return nil
}

// all sends records a few at a time, and returns the first error when none is under way any more.
func (s *Contract) all(ctx context.Context, records *Records) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	free := make(chan struct{}, contractCalls)
	var wg sync.WaitGroup
	for key, value := range records.All() {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-free }()
			if err := s.one(ctx, key, value); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// one sends the siblings of a record.
func (s *Contract) one(ctx context.Context, name, value []byte) error {
	tenant, key, err := ikey.SplitEngineKey(name)
	if err != nil {
		return fmt.Errorf("record of key %s: %w", ikey.Hash(name), err)
	}
	record, err := causal.Decode(value)
	if err != nil {
		return fmt.Errorf("record of key %s: %w", ikey.Hash(name), err)
	}
	for i := range record.Siblings {
		if err := s.sibling(ctx, string(tenant), string(key), &record.Siblings[i]); err != nil {
			return fmt.Errorf("key %s: %w", ikey.Hash(name), err)
		}
	}
	return nil
}

// sibling sends one: a tombstone as Delete, a value as Repair, or as Write where Repair is not known.
func (s *Contract) sibling(ctx context.Context, tenant, key string, v *causal.Sibling) error {
	clock := contractClock(v)
	if v.Tombstone {
		a, err := s.client.Delete(ctx, &storagenodev1.DeleteRequest{TenantId: tenant, Key: key, VectorClock: clock}, failFast)
		return answered(a.GetSuccess(), a.GetErrorMessage(), err)
	}
	a, err := s.client.Repair(ctx, &storagenodev1.RepairRequest{TenantId: tenant, Key: key, Value: v.Value, VectorClock: clock}, failFast)
	if status.Code(err) != codes.Unimplemented {
		return answered(a.GetSuccess(), a.GetErrorMessage(), err)
	}
	w, err := s.client.Write(ctx, &storagenodev1.WriteRequest{TenantId: tenant, Key: key, Value: v.Value, VectorClock: clock}, failFast)
	return answered(w.GetSuccess(), w.GetErrorMessage(), err)
}

var failFast = grpc.WaitForReady(false)

// answered turns an answer of the contract into an error.
func answered(success bool, message string, err error) error {
	if err != nil || success {
		return err
	}
	return fmt.Errorf("%w: %s", ErrContract, message)
}

// contractClock is the whole clock of a sibling, its own write among it.
func contractClock(v *causal.Sibling) *storagenodev1.VectorClock {
	clock := v.Clock
	if !v.Dot.IsZero() {
		clock = clock.With(v.Dot, 0)
	}
	out := &storagenodev1.VectorClock{Entries: make([]*storagenodev1.VectorClockEntry, len(clock))}
	for i, e := range clock {
		out.Entries[i] = &storagenodev1.VectorClockEntry{
			CoordinatorNodeId: e.Node, LogicalTimestamp: int64(min(e.Counter, math.MaxInt64)),
		}
	}
	return out
}

// Finish ends the stream: everything is acknowledged already.
func (s *Contract) Finish(context.Context) error { return nil }

// Ended is never closed: each part is answered by itself.
func (s *Contract) Ended() <-chan struct{} { return nil }

// Err returns nil.
func (s *Contract) Err() error { return nil }

// Unacknowledged returns 0: a part that failed is sent again as a whole.
func (s *Contract) Unacknowledged() int64 { return 0 }

// Close breaks the stream off.
func (s *Contract) Close() { s.cancel() }
