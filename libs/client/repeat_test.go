package client_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pairdb/pairdb/libs/client"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// loseFirst makes the node apply the first call and lose its answer; meanwhile runs before the answer
// is lost.
func loseFirst(n *memoryNode, meanwhile func()) (calls *int) {
	calls = new(int)
	n.after = func(string) error {
		if *calls++; *calls == 1 {
			meanwhile()
			return status.Error(codes.Unavailable, "connection reset")
		}
		return nil
	}
	return calls
}

func TestRepeatOfALostAnswerIsNotASecondWrite(t *testing.T) {
	// The repeat of a write that was applied would supersede what somebody else wrote in between: an
	// acknowledged write would be lost.
	clock := &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: "n", Counter: 1}}}
	for _, c := range []struct {
		name     string
		do       func(context.Context, *client.Client) error
		calls    int
		repeated bool // answered at last
		writes   int  // by this client
	}{
		{"put", func(ctx context.Context, c *client.Client) error {
			_, err := c.Put(ctx, "k", []byte("mine"))
			return err
		}, 2, true, 1},
		{"delete", func(ctx context.Context, c *client.Client) error { _, err := c.Delete(ctx, "k"); return err }, 2, true, 1},
		{"put with a context", func(ctx context.Context, c *client.Client) error {
			_, err := c.Put(ctx, "k", nil, client.WithContext(nil))
			return err
		}, 2, true, 1},
		{"put if absent", func(ctx context.Context, c *client.Client) error {
			r, err := c.Put(ctx, "k", []byte("mine"), client.IfAbsent())
			if err == nil && !r.Replayed {
				return errors.New("the first answer is wanted")
			}
			return err
		}, 2, true, 1},
		{"put with a key", func(ctx context.Context, c *client.Client) error {
			_, err := c.Put(ctx, "k", nil, client.WithIdempotencyKey("order-17"))
			return err
		}, 2, true, 1},
		{"put at least once", func(ctx context.Context, c *client.Client) error {
			_, err := c.Put(ctx, "k", nil, client.AtLeastOnce())
			return err
		}, 2, true, 2},
		{"batch", func(ctx context.Context, c *client.Client) error {
			var b client.Batch
			b.Put("k", nil)
			b.Put("c", nil, client.WithClock(clock))
			return c.Write(ctx, &b)
		}, 1, false, 2},
		{"batch at least once", func(ctx context.Context, c *client.Client) error {
			b := client.Batch{AtLeastOnce: true}
			b.Put("k", nil)
			return c.Write(ctx, &b)
		}, 2, true, 2},
		{"batch of clocks", func(ctx context.Context, c *client.Client) error {
			var b client.Batch
			b.Put("k", nil, client.WithClock(clock)) // the fake knows no clocks: it writes again
			return c.Write(ctx, &b)
		}, 2, true, 2},
		{"batch of clocks and a condition", func(ctx context.Context, c *client.Client) error {
			var b client.Batch
			b.Put("k", nil, client.WithClock(clock), client.IfAbsent())
			return c.Write(ctx, &b)
		}, 1, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newMemoryNode()
			calls := loseFirst(n, func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				_, err := n.put("k", &datav1.Sibling{Value: []byte("theirs")}, nil, nil)
				require.NoError(t, err)
			})
			err := c.do(t.Context(), dial(t, n, client.Options{}))
			require.Equal(t, c.calls, *calls)
			require.Equal(t, c.writes+1, n.writes)
			require.Equal(t, c.repeated, err == nil, "%v", err)
			require.Equal(t, !c.repeated, client.MaybeApplied(err))
			if c.writes == 1 {
				require.Equal(t, "theirs", string(n.read("k").Value))
			}
		})
	}
}

func TestWhoDoesNotRepeatNeedsNoKey(t *testing.T) {
	// A key costs the node a record that it keeps for a day.
	var sent []*storagev1.WriteRequest
	n := &node{write: func(r *storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
		sent = append(sent, r)
		return &storagev1.WriteResponse{}, nil
	}}
	clock := &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: "c", Counter: 1}}}
	c := dial(t, n, client.Options{})
	for _, opts := range [][]client.WriteOption{
		nil, nil, {client.WithClock(clock), client.IfAbsent()}, // these have one
		{client.WithClock(clock)}, {client.AtLeastOnce()},
	} {
		_, err := c.Put(t.Context(), "k", nil, opts...)
		require.NoError(t, err)
	}
	_, err := dial(t, n, client.Options{RetryFor: -1}).Put(t.Context(), "k", nil)
	require.NoError(t, err)
	var named []bool
	for _, r := range sent {
		named = append(named, r.IdempotencyKey != "")
	}
	require.Equal(t, []bool{true, true, true, false, false, false}, named)
	require.NotEqual(t, sent[0].IdempotencyKey, sent[1].IdempotencyKey)
}

func TestDamageAmongTheKeysOfANodeStopsNoWrite(t *testing.T) {
	// The node keeps idempotency keys among all else: where a table of them is damaged it can't tell
	// repeats, but a key that was drawn just now has none.
	var sent []bool
	var answers []error
	damaged := refusal(codes.DataLoss, "CORRUPTED_DATA", "000007.sst")
	lost := status.Error(codes.Unavailable, "connection reset")
	n := &node{write: func(r *storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
		sent = append(sent, r.IdempotencyKey != "")
		err := answers[0]
		answers = answers[1:]
		return &storagev1.WriteResponse{}, err
	}}
	c := dial(t, n, client.Options{})
	for _, try := range []struct {
		name    string
		answers []error
		opts    []client.WriteOption
		keyed   []bool
		code    codes.Code
		maybe   bool
	}{
		{"only the keys", []error{damaged, nil}, nil, []bool{true, false}, codes.OK, false},
		{"the record too", []error{damaged, damaged}, nil, []bool{true, false}, codes.DataLoss, false},
		{"never a second time without the key", []error{damaged, lost}, nil, []bool{true, false}, codes.Unavailable, true},
		{"nor after a lost answer", []error{lost, damaged}, nil, []bool{true, true}, codes.DataLoss, true},
		{"a key of the application", []error{damaged}, []client.WriteOption{client.WithIdempotencyKey("x")}, []bool{true}, codes.DataLoss, false},
	} {
		sent, answers = nil, try.answers
		_, err := c.Put(t.Context(), "k", nil, try.opts...)
		require.Equal(t, try.code, client.Code(err), try.name)
		require.Equal(t, try.maybe, client.MaybeApplied(err), try.name)
		require.Equal(t, try.keyed, sent, try.name)
	}
}

func TestErrorSaysWhetherTheWriteMayHaveBeenApplied(t *testing.T) {
	// Who is told "refused" writes again; who is told "perhaps" looks first.
	lost := status.Error(codes.Unavailable, "connection reset")
	busy := refusal(codes.ResourceExhausted, "OVERLOADED", "busy")
	failed := refusal(codes.FailedPrecondition, "CONDITION_FAILED", "no")
	for _, c := range []struct {
		name    string
		answers []error
		opts    []client.WriteOption
		maybe   bool
	}{
		{"refused", []error{busy}, nil, false},
		{"invalid", []error{status.Error(codes.InvalidArgument, "bad")}, nil, false},
		{"starting", []error{refusal(codes.Unavailable, "RECOVERING", "starting")}, nil, false},
		{"the range moves", []error{refusal(codes.Unavailable, "RANGE_MOVING", "moving")}, nil, false},
		{"flushed for a restart", []error{refusal(codes.Unavailable, "NODE_DRAINING", "draining")}, nil, false},
		{"lost, then the range moves", []error{lost, refusal(codes.Unavailable, "RANGE_MOVING", "moving")}, nil, true},
		{"log failed", []error{refusal(codes.Unavailable, "LOG_WRITE", "disk")}, nil, true},
		{"poisoned", []error{refusal(codes.Unavailable, "ENGINE_POISONED", "disk")}, nil, true},
		{"a bug", []error{refusal(codes.Internal, "INTERNAL", "bug")}, nil, true},
		{"lost", []error{lost}, nil, true},
		{"no time", []error{status.Error(codes.DeadlineExceeded, "late")}, nil, true},
		{"no time, says the node", []error{refusal(codes.DeadlineExceeded, "DEADLINE_EXCEEDED", "late")}, nil, true},
		{"stopping", []error{refusal(codes.Unavailable, "STOPPING", "bye")}, nil, true},
		{"lost, then refused for now", []error{lost, busy}, nil, true},
		{"lost, then decided", []error{lost, failed}, []client.WriteOption{client.IfAbsent()}, false},
		{"lost, then moved away", []error{lost, refusal(codes.FailedPrecondition, "NOT_OWNER", "moved")}, nil, true},
		{"lost, then decided, without a key", []error{lost, failed}, []client.WriteOption{client.AtLeastOnce()}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			answers := c.answers
			n := &node{write: func(*storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
				err := answers[0]
				if len(answers) > 1 {
					answers = answers[1:]
				}
				return nil, err
			}}
			_, err := dial(t, n, client.Options{RetryFor: 100 * time.Millisecond}).Put(t.Context(), "k", nil, c.opts...)
			require.Error(t, err)
			require.Equal(t, c.maybe, client.MaybeApplied(err), "%v", err)
		})
	}
}

func TestCallsGoOnWhenARangeHasMoved(t *testing.T) {
	// A hand-over takes less than a second: whoever gives up then loses a write that would be taken.
	for _, reason := range []string{"RANGE_MOVING", "NODE_DRAINING"} {
		s, err := status.New(codes.Unavailable, "moving").WithDetails(
			&errdetails.ErrorInfo{Domain: "pairdb", Reason: reason}, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Millisecond)})
		require.NoError(t, err)
		calls := 0
		n := &node{write: func(*storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
			if calls++; calls < 3 {
				return nil, s.Err()
			}
			return &storagev1.WriteResponse{Outcome: storagev1.Outcome_OUTCOME_APPLIED}, nil
		}}
		c := dial(t, n, client.Options{})
		_, err = c.Put(t.Context(), "k", nil)
		require.NoError(t, err)
		require.Equal(t, 3, calls)

		stalled := &stalling{memoryNode: newMemoryNode(), left: 2, err: &storagev1.ItemError{Code: int32(codes.Unavailable), Reason: reason, Message: "moving", RetryAfterMs: 1}}
		var b client.Batch
		for i := range 20 {
			b.Put(strconv.Itoa(i), []byte("v"))
		}
		require.NoError(t, dial(t, stalled, client.Options{}).Write(t.Context(), &b), "blind items were not applied either")
		require.Equal(t, 20, stalled.writes)
	}
}

func TestOwnerNamesWhoHasTheKeyNow(t *testing.T) {
	// Whoever is sent away must learn where to.
	s, err := status.New(codes.FailedPrecondition, "moved").WithDetails(&errdetails.ErrorInfo{
		Domain: "pairdb", Reason: "NOT_OWNER", Metadata: map[string]string{"owner_node_id": "n2", "owner_addr": "10.0.0.2:8080"},
	})
	require.NoError(t, err)
	calls := 0
	n := &node{write: func(*storagev1.WriteRequest) (*storagev1.WriteResponse, error) { calls++; return nil, s.Err() }}
	_, err = dial(t, n, client.Options{}).Put(t.Context(), "k", nil)
	require.Equal(t, 1, calls, "the same node has it no more")
	id, addr, ok := client.Owner(err)
	require.True(t, ok)
	require.Equal(t, "n2", id)
	require.Equal(t, "10.0.0.2:8080", addr)
	require.False(t, client.Retryable(err))
	require.False(t, client.MaybeApplied(err))
	for _, other := range []error{nil, overloaded(time.Second), context.Canceled} {
		_, _, ok := client.Owner(other)
		require.False(t, ok)
	}
}

func TestCallsWaitForANodeThatRestarts(t *testing.T) {
	// What never reached the node is safe to send again, batches too; and the client must notice at
	// once that the node is back.
	n := newMemoryNode()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close()) // nobody listens now
	c, err := client.New(addr, client.Options{RetryFor: 20 * time.Second})
	require.NoError(t, err)
	defer c.Close()
	quick, err := client.New(addr, client.Options{RetryFor: -1})
	require.NoError(t, err)
	defer quick.Close()
	_, err = quick.Put(t.Context(), "k", nil)
	require.Equal(t, codes.Unavailable, client.Code(err))
	require.False(t, client.MaybeApplied(err), "it was never sent: %v", err)

	l, err = net.Listen("tcp", addr)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		var b client.Batch
		b.Put("k", []byte("v"))
		done <- c.Write(t.Context(), &b)
	}()
	first, err := l.Accept() // a try, which fails
	require.NoError(t, err)
	require.NoError(t, first.Close())
	s := grpc.NewServer()
	storagev1.RegisterStorageServiceServer(s, n)
	go func() { _ = s.Serve(l) }() // ends with Stop
	defer s.Stop()
	require.NoError(t, <-done)
	require.Equal(t, 1, n.writes)
}

func TestErrorsCarryWhatTheNodeSays(t *testing.T) {
	clock := &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: "n", Counter: 7}}}
	siblings := []*datav1.Sibling{{Value: []byte("a")}, {Value: []byte("b")}}
	var answer error
	n := &node{
		write: func(*storagev1.WriteRequest) (*storagev1.WriteResponse, error) { return nil, answer },
	}
	c := dial(t, n, client.Options{RetryFor: -1})
	put := func() (*client.Error, error) {
		_, err := c.Put(t.Context(), "k", nil)
		var e *client.Error
		require.ErrorAs(t, err, &e)
		return e, err
	}

	answer = refusal(codes.FailedPrecondition, "CONDITION_FAILED", "the key has a value", clock)
	e, err := put()
	require.True(t, client.ConditionFailed(err))
	require.EqualValues(t, 7, e.Clock.Entries[0].Counter)
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "a server that passes it on keeps the code")
	require.EqualError(t, err, `put "k": the key has a value (CONDITION_FAILED)`)

	answer = refusal(codes.FailedPrecondition, "CONDITION_FAILED", "never seen", &datav1.VectorClock{})
	e, _ = put()
	require.Nil(t, e.Clock, "as a read answers it")

	answer = refusal(codes.ResourceExhausted, "TOO_MANY_SIBLINGS", "64 siblings", &datav1.Record{Siblings: siblings})
	e, err = put()
	require.True(t, client.TooManySiblings(err))
	require.False(t, client.Retryable(err))
	require.Len(t, e.Siblings, 2)

	answer = overloaded(70 * time.Millisecond)
	e, err = put()
	require.True(t, client.Retryable(err))
	require.Equal(t, 70*time.Millisecond, e.RetryAfter)

	answer = status.Error(codes.Unavailable, "connection reset")
	_, err = put()
	require.EqualError(t, err, `put "k": connection reset (Unavailable); the write may have been applied`)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Put(ctx, "k", nil)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, context.DeadlineExceeded)
	require.Empty(t, client.Reason(nil))
	require.Equal(t, codes.OK, client.Code(nil))
	require.False(t, client.MaybeApplied(nil) || client.Retryable(nil))
}

func TestContradictingOptionsAreRefusedBeforeAnythingIsSent(t *testing.T) {
	// One of two options would win silently, and the write would not be what it was meant to be.
	clock := &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: "n", Counter: 7}}}
	for _, c := range []struct {
		name   string
		opts   []client.WriteOption
		only   string // "" everywhere, or where it is wrong
		wanted string
	}{
		{"clock and context", []client.WriteOption{client.WithClock(clock), client.WithContext(clock)}, "", "exclude each other"},
		{"empty clock", []client.WriteOption{client.WithClock(nil)}, "", "clock of the write is empty"},
		{"two contexts", []client.WriteOption{client.WithContext(clock), client.WithContext(nil)}, "", "twice"},
		{"two conditions", []client.WriteOption{client.IfAbsent(), client.IfClock(clock)}, "", "one condition"},
		{"over already", []client.WriteOption{client.WithTTL(-1)}, "", "over already"},
		{"empty key", []client.WriteOption{client.WithIdempotencyKey("")}, "", "idempotency key is empty"},
		{"at least once, but not twice", []client.WriteOption{client.AtLeastOnce(), client.IfAbsent()}, "", "exact repeats"},
		{"delete with a lifetime", []client.WriteOption{client.WithTTL(time.Second)}, "delete", "no time to live"},
		{"item with a key", []client.WriteOption{client.WithIdempotencyKey("x")}, "item", "only a single"},
		{"item at least once", []client.WriteOption{client.AtLeastOnce()}, "item", "batch has a field"},
		{"update with a condition", []client.WriteOption{client.IfAbsent()}, "update", "no option but"},
		{"update with a key", []client.WriteOption{client.WithIdempotencyKey("x")}, "update", "no option but"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newMemoryNode()
			cl := dial(t, n, client.Options{})
			p, err := cl.Pipeline(t.Context())
			require.NoError(t, err)
			defer p.Close()
			refused := map[string]func() error{
				"put":    func() error { _, err := cl.Put(t.Context(), "k", nil, c.opts...); return err },
				"delete": func() error { _, err := cl.Delete(t.Context(), "k", c.opts...); return err },
				"item": func() error {
					var b client.Batch
					b.Put("fine", nil)
					b.Put("k", nil, c.opts...)
					err := cl.Write(t.Context(), &b)
					require.ErrorContains(t, err, "item 1")
					return err
				},
				"pipeline": func() error { _, err := p.Put("k", nil, c.opts...).Wait(t.Context()); return err },
				"update": func() error {
					_, err := cl.Update(t.Context(), "k", func(client.Value) ([]byte, error) { return nil, nil }, c.opts...)
					return err
				},
			}
			for where, f := range refused {
				wrong := c.only == "" || c.only == where || c.only == "item" && where == "pipeline"
				if c.only == "" && where == "update" || !wrong {
					continue // another refusal comes first, or the write is in order
				}
				err := f()
				require.ErrorContains(t, err, c.wanted, where)
				require.Equal(t, client.ReasonOptions, client.Reason(err), where)
				require.Equal(t, codes.InvalidArgument, client.Code(err), where)
			}
			require.Zero(t, n.writes)
		})
	}
}

// tags is a tracer as far as gRPC sees one.
type tags struct {
	stats.Handler
	methods []string
}

func (s *tags) TagRPC(ctx context.Context, i *stats.RPCTagInfo) context.Context {
	s.methods = append(s.methods, i.FullMethodName)
	return metadata.AppendToOutgoingContext(ctx, "traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
}
func (s *tags) HandleRPC(context.Context, stats.RPCStats)                         {}
func (s *tags) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (s *tags) HandleConn(context.Context, stats.ConnStats)                       {}

func TestTracerSeesEveryTryAndItsHeaderArrives(t *testing.T) {
	tracer := &tags{}
	var headers []string
	l := newMemoryNode()
	calls := 0
	l.before = func(string) error {
		if calls++; calls == 1 {
			return refusal(codes.Unavailable, "RECOVERING", "starting")
		}
		return nil
	}
	seen := &tracedNode{memoryNode: l, headers: &headers}
	c := dial(t, seen, client.Options{DialOptions: []grpc.DialOption{grpc.WithStatsHandler(tracer)}})
	_, err := c.Put(t.Context(), "k", nil)
	require.NoError(t, err)
	require.Equal(t, slices.Repeat([]string{storagev1.StorageService_Write_FullMethodName}, 2), tracer.methods)
	require.Equal(t, slices.Repeat([]string{"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, 2), headers)
}

type tracedNode struct {
	*memoryNode
	headers *[]string
}

func (n *tracedNode) Write(ctx context.Context, r *storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
	*n.headers = append(*n.headers, metadata.ValueFromIncomingContext(ctx, "traceparent")...)
	return n.memoryNode.Write(ctx, r)
}
