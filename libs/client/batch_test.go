package client_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/client"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

func TestLargeBatchIsSentInOrderWithinTheLimits(t *testing.T) {
	// The node refuses what is over its limits as a whole; out of order, an older value of a key would
	// win.
	for _, c := range []struct {
		name  string
		items int
		value int
		calls int
	}{
		{"one", 1, 10, 1},
		{"the most items of a call", client.MaxBatchOps, 10, 1},
		{"one more", client.MaxBatchOps + 1, 10, 2},
		{"many", 3*client.MaxBatchOps + 1, 0, 4},
		{"bytes", 4, 5 << 20, 2},
		{"the most bytes of a call", 2, client.MaxBatchBytes/2 - 16 - len("k/000000"), 1},
		{"one byte more each", 2, client.MaxBatchBytes/2 - 16 - len("k/000000") + 1, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			var sent []string
			calls := 0
			n := &node{batch: func(r *storagev1.BatchWriteRequest) (*storagev1.BatchWriteResponse, error) {
				calls++
				if len(r.Ops) > client.MaxBatchOps || proto.Size(r) > client.MaxMessageBytes {
					return nil, status.Error(codes.InvalidArgument, "over a limit")
				}
				resp := &storagev1.BatchWriteResponse{}
				for _, op := range r.Ops {
					sent = append(sent, op.Key)
					resp.Results = append(resp.Results, &storagev1.BatchWriteResult{Outcome: storagev1.Outcome_OUTCOME_APPLIED})
				}
				return resp, nil
			}}
			var b client.Batch
			var want []string
			value := make([]byte, c.value)
			for i := range c.items {
				want = append(want, fmt.Sprintf("k/%06d", i))
				b.Put(want[i], value)
			}
			require.NoError(t, dial(t, n, client.Options{}).Write(t.Context(), &b))
			require.Equal(t, want, sent)
			require.Equal(t, c.calls, calls)
		})
	}
}

func TestBatchThatFailsInTheMiddleSaysHowFarItCame(t *testing.T) {
	// What was not sent must not count as stored, and what came after a gap must not be there.
	n := newMemoryNode()
	calls := 0
	n.before = func(string) error {
		if calls++; calls == 2 {
			return refusal(codes.DataLoss, "CORRUPTED_DATA", "table 000007")
		}
		return nil
	}
	var b client.Batch
	for i := range 2500 {
		b.Put(fmt.Sprint(i), nil)
	}
	b.Put("7", []byte("again"))
	err := dial(t, n, client.Options{}).Write(t.Context(), &b)
	var how *client.BatchError
	require.ErrorAs(t, err, &how)
	require.Equal(t, []int{1000, 2000, 2501}, []int{how.First, how.End, how.Len})
	require.Equal(t, codes.DataLoss, client.Code(err))
	require.False(t, client.MaybeApplied(err))
	require.ErrorContains(t, err, "batch of 2501, items 1000 to 1999: table 000007 (CORRUPTED_DATA)")
	require.Equal(t, 2, calls)
	require.Equal(t, 1000, n.writes)
}

// stalling refuses the items on every third key for now, until it has done so often enough.
type stalling struct {
	*memoryNode
	left int
	err  *storagev1.ItemError
}

func (n *stalling) BatchWrite(ctx context.Context, r *storagev1.BatchWriteRequest) (*storagev1.BatchWriteResponse, error) {
	refuse := n.left > 0 && len(r.Ops) > 1
	n.left--
	var taken storagev1.BatchWriteRequest
	later := func(op *storagev1.BatchOp) bool { return refuse && op.Key[len(op.Key)-1]%3 == 0 }
	for _, op := range r.Ops {
		if !later(op) {
			taken.Ops = append(taken.Ops, op)
		}
	}
	done, err := n.memoryNode.BatchWrite(ctx, &taken)
	if err != nil {
		return nil, err
	}
	resp := &storagev1.BatchWriteResponse{}
	for _, op := range r.Ops {
		if later(op) {
			resp.Results = append(resp.Results, &storagev1.BatchWriteResult{Error: n.err})
			continue
		}
		resp.Results = append(resp.Results, done.Results[0])
		done.Results = done.Results[1:]
	}
	return resp, nil
}

func TestItemsThatTheNodeRefusesForNowAreSentAgainAlone(t *testing.T) {
	// A stall in the middle of a batch is over soon: to give up would end a bulk load, and to send all of
	// it again would write twice.
	busy := &storagev1.ItemError{Code: int32(codes.ResourceExhausted), Reason: "OVERLOADED", Message: "busy", RetryAfterMs: 1}
	fill := func() *client.Batch {
		var b client.Batch
		for i := range 100 {
			b.Put(fmt.Sprint(i%50), fmt.Append(nil, i)) // each key twice, in this order
		}
		return &b
	}
	n := &stalling{memoryNode: newMemoryNode(), left: 3, err: busy}
	c := dial(t, n, client.Options{})
	results, err := c.WriteResults(t.Context(), fill())
	require.NoError(t, err)
	require.Equal(t, 100, n.writes)
	for i := range 50 {
		require.Equal(t, fmt.Sprint(50+i), string(n.read(fmt.Sprint(i)).Value))
		require.NotNil(t, results[i].Clock)
	}

	for name, c := range map[string]struct {
		err   *storagev1.ItemError
		after time.Duration
	}{
		"no repeats":           {busy, -1},
		"longer than it takes": {&storagev1.ItemError{Code: int32(codes.ResourceExhausted), Reason: "DISK_FULL", Message: "full", RetryAfterMs: 3_600_000}, 0},
		"perhaps it is there":  {&storagev1.ItemError{Code: int32(codes.Unavailable), Reason: "LOG_WRITE", Message: "log", RetryAfterMs: 1}, 0},
	} {
		n := &stalling{memoryNode: newMemoryNode(), left: 1000, err: c.err}
		err := dial(t, n, client.Options{RetryFor: c.after}).Write(t.Context(), fill())
		all := err.(interface{ Unwrap() []error }).Unwrap()
		require.Len(t, all, 2*refusedKeys(50), name)
		require.Equal(t, c.err.Reason, client.Reason(err), name)
		require.Equal(t, 100-len(all), n.writes, name)
		last := -1
		for _, e := range all {
			var item *client.ItemError
			require.ErrorAs(t, e, &item)
			require.Greater(t, item.Index, last, name)
			last = item.Index
		}
	}
}

func refusedKeys(n int) (refused int) {
	for i := range n {
		if key := fmt.Sprint(i); key[len(key)-1]%3 == 0 {
			refused++
		}
	}
	return refused
}

func TestRefusedItemDoesNotHideThatOthersMayBeApplied(t *testing.T) {
	n := newMemoryNode()
	calls := 0
	n.after = func(string) error {
		if calls++; calls == 2 {
			return status.Error(codes.Unavailable, "connection reset")
		}
		return nil
	}
	var b client.Batch
	b.Put(strings.Repeat("k", 1025), nil)
	for i := range client.MaxBatchOps {
		b.Put(fmt.Sprint(i), nil)
	}
	err := dial(t, n, client.Options{}).Write(t.Context(), &b)
	require.Equal(t, "INVALID_ARGUMENT_KEY", client.Reason(err))
	require.True(t, client.MaybeApplied(err), "item 1000")
	require.True(t, client.MaybeApplied(fmt.Errorf("load: %w", err)))
}

func TestRefusedItemsAreCountedOverTheWholeBatch(t *testing.T) {
	n := newMemoryNode()
	c := dial(t, n, client.Options{})
	_, err := c.Put(t.Context(), "1500", []byte("there"))
	require.NoError(t, err)
	var b client.Batch
	for i := range 2000 {
		switch i {
		case 3:
			b.Put(strings.Repeat("k", 1025), nil)
		case 1500:
			b.Put("1500", nil, client.IfAbsent())
		case 1501:
			b.Delete("1500", client.IfAbsent())
		default:
			b.Put(fmt.Sprint(i), nil)
		}
	}
	results, err := c.WriteResults(t.Context(), &b)
	var items []string
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		var item *client.ItemError
		require.ErrorAs(t, e, &item)
		items = append(items, fmt.Sprint(item.Index, " ", client.Reason(e)))
	}
	require.Equal(t, []string{"3 INVALID_ARGUMENT_KEY", "1500 CONDITION_FAILED", "1501 CONDITION_FAILED"}, items)
	require.Len(t, results, 2000)
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, results[1999].Outcome)
	require.NotNil(t, results[1999].Clock)
	require.Zero(t, results[1500].Outcome)
}

func TestAtomicBatchIsOneCallOrNone(t *testing.T) {
	// Split, it would not be atomic.
	atomic := false
	n := &node{batch: func(r *storagev1.BatchWriteRequest) (*storagev1.BatchWriteResponse, error) {
		atomic = r.Atomic
		return &storagev1.BatchWriteResponse{Results: make([]*storagev1.BatchWriteResult, len(r.Ops))}, nil
	}}
	c := dial(t, n, client.Options{})
	b := client.Batch{Atomic: true}
	for i := range client.MaxBatchOps {
		b.Put(fmt.Sprint(i), nil)
	}
	require.NoError(t, c.Write(t.Context(), &b))
	require.True(t, atomic)
	b.Delete("one more")
	require.Equal(t, client.ReasonOptions, client.Reason(c.Write(t.Context(), &b)))
	b.Reset()
	b.Put("a", make([]byte, 9<<20))
	b.Put("b", make([]byte, 9<<20))
	require.Equal(t, client.ReasonOptions, client.Reason(c.Write(t.Context(), &b)), "Reset keeps Atomic")
	b = client.Batch{AtLeastOnce: true}
	b.Put("a", nil, client.IfAbsent())
	require.Equal(t, client.ReasonOptions, client.Reason(c.Write(t.Context(), &b)), "a repeat would be refused by what the first did")
}

func TestBatchWithTheWrongNumberOfAnswersIsNoSuccess(t *testing.T) {
	n := &node{batch: func(*storagev1.BatchWriteRequest) (*storagev1.BatchWriteResponse, error) {
		return &storagev1.BatchWriteResponse{}, nil
	}}
	var b client.Batch
	b.Put("k", nil)
	err := dial(t, n, client.Options{}).Write(t.Context(), &b)
	require.ErrorContains(t, err, "answered 0 of 1 items")
	require.True(t, client.MaybeApplied(err))
}

// reader answers at most three keys of a call.
type reader struct {
	*memoryNode
	calls []int
}

func (r *reader) BatchRead(ctx context.Context, req *storagev1.BatchReadRequest) (*storagev1.BatchReadResponse, error) {
	r.calls = append(r.calls, len(req.Keys))
	if len(req.Keys) > client.MaxBatchOps {
		return nil, status.Error(codes.InvalidArgument, "too many keys")
	}
	resp, err := r.memoryNode.BatchRead(ctx, req)
	for i := range resp.Results {
		switch {
		case req.Keys[i] == "damaged":
			resp.Results[i] = &storagev1.BatchReadResult{Error: &storagev1.ItemError{Code: int32(codes.DataLoss), Reason: "CORRUPTED_DATA", Message: "table"}}
		case len(req.Keys) < 10 && i >= 3 || req.Keys[0] == "huge":
			resp.Results[i] = &storagev1.BatchReadResult{Error: &storagev1.ItemError{Code: int32(codes.ResourceExhausted), Reason: client.ReasonResponseTooLarge, Message: "full"}}
		}
	}
	return resp, err
}

func TestGetManyAnswersEveryKeyInItsPlace(t *testing.T) {
	// A value under the wrong key is the worst answer; a damaged one must not read as absent.
	n := &reader{memoryNode: newMemoryNode()}
	c := dial(t, n, client.Options{})
	var b client.Batch
	var keys []string
	for i := range 2007 {
		keys = append(keys, fmt.Sprint(i))
		b.Put(keys[i], []byte(keys[i]))
	}
	require.NoError(t, c.Write(t.Context(), &b))
	values, err := c.GetMany(t.Context(), keys)
	require.NoError(t, err)
	require.Len(t, values, len(keys))
	for i, v := range values {
		require.Equal(t, keys[i], string(v.Bytes))
	}
	require.Equal(t, []int{1000, 1000, 7, 4, 1}, n.calls)

	values, err = c.GetMany(t.Context(), []string{"1", "damaged", "absent"})
	require.Equal(t, "CORRUPTED_DATA", client.Reason(err))
	require.ErrorContains(t, err, "item 1")
	require.Equal(t, []bool{true, false, false}, []bool{values[0].Found, values[1].Found, values[2].Found})

	_, err = c.GetMany(t.Context(), []string{"huge"})
	require.Equal(t, client.ReasonResponseTooLarge, client.Reason(err), "no endless loop")
	values, err = c.GetMany(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, values)
}
