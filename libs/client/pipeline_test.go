package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/client"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

type pipeStream = grpc.BidiStreamingServer[storagev1.PipelineRequest, storagev1.PipelineResponse]

// open returns a pipeline of its own client. At the end of the test no goroutine of either side may be left.
func open(t *testing.T, serve func(pipeStream) error) *client.Pipeline {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) }) // after the client is closed
	p, err := dial(t, &node{pipeline: serve}, client.Options{Tenant: "shop"}).Pipeline(t.Context())
	require.NoError(t, err)
	return p
}

// echo answers every operation from a map, each message in reverse.
func echo(s pipeStream) error {
	data := map[string][]byte{}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if proto.Size(m) >= 64<<10 && len(m.Ops) > 1 || len(m.Ops) > 1000 {
			return status.Error(codes.InvalidArgument, "message is too large")
		}
		resp := &storagev1.PipelineResponse{}
		for _, op := range m.Ops {
			r := &storagev1.PipelineResult{Tag: op.Tag}
			switch o := op.Op.(type) {
			case *storagev1.PipelineOp_Read:
				v, ok := data[op.Key]
				r.Result = &storagev1.PipelineResult_Read{Read: &storagev1.ReadResponse{Found: ok, Value: v}}
			case *storagev1.PipelineOp_Put:
				data[op.Key] = o.Put.Value
				r.Result = &storagev1.PipelineResult_Write{Write: &storagev1.WriteResponse{Outcome: storagev1.Outcome_OUTCOME_APPLIED, Siblings: 1}}
			case *storagev1.PipelineOp_Delete:
				delete(data, op.Key)
				r.Result = &storagev1.PipelineResult_Error{Error: &storagev1.ItemError{
					Code: int32(codes.ResourceExhausted), Reason: "OVERLOADED", Message: "busy", RetryAfterMs: 50}}
			}
			resp.Results = append([]*storagev1.PipelineResult{r}, resp.Results...)
		}
		if err := s.Send(resp); err != nil {
			return err
		}
	}
}

func TestPipelineGivesEachAnswerToItsOperation(t *testing.T) {
	// A value under the wrong key is the worst that a client can do.
	p := open(t, echo)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			var writes []*client.Future[client.Result]
			for i := range 1000 {
				writes = append(writes, p.Put(fmt.Sprint(g, "/", i), fmt.Append(nil, g, i)))
			}
			for _, w := range writes {
				r, err := w.Wait(t.Context())
				if err != nil || r.Outcome != storagev1.Outcome_OUTCOME_APPLIED || r.Siblings != 1 {
					t.Error(r, err)
				}
			}
			for i := range 1000 {
				v, err := p.Get(fmt.Sprint(g, "/", i)).Wait(t.Context())
				if err != nil || string(v.Bytes) != fmt.Sprint(g, i) {
					t.Error(string(v.Bytes), err)
				}
			}
		})
	}
	wg.Wait()
	large := strings.Repeat("l", 1<<20)
	_, err := p.Put("large", []byte(large)).Wait(t.Context())
	require.NoError(t, err)
	last := p.Get("large")
	require.NoError(t, p.Close(), "the half close waits for what is in flight")
	<-last.Done()
	v, err := last.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, large, string(v.Bytes))
	_, err = p.Get("late").Wait(t.Context())
	require.ErrorIs(t, err, client.ErrPipelineClosed)
	require.NoError(t, p.Close())
}

func TestPipelineErrorsOfOneOperation(t *testing.T) {
	p := open(t, echo)
	_, err := p.Delete("k").Wait(t.Context())
	require.Equal(t, "OVERLOADED", client.Reason(err))
	require.Equal(t, codes.ResourceExhausted, client.Code(err))
	require.True(t, client.Retryable(err))
	require.ErrorContains(t, err, `delete "k": busy (OVERLOADED)`)
	_, err = p.Put("k", nil).Wait(t.Context())
	require.NoError(t, err, "the stream goes on")
	require.NoError(t, p.Close())
}

func TestPipelineSendsWhatThePutSays(t *testing.T) {
	// What is encoded by hand must be what the generated code reads.
	got := make(chan *storagev1.PipelineRequest, 10)
	p := open(t, func(s pipeStream) error {
		for {
			m, err := s.Recv()
			if err != nil {
				return nil //nolint:nilerr // the client is done
			}
			got <- m
		}
	})
	clock := &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: "n", Counter: 7}}}
	p.Put("a", []byte("v"), client.WithContext(clock), client.WithTTL(1500*time.Millisecond), client.IfAbsent())
	p.Put("b", nil, client.WithClock(clock))
	p.Delete("c", client.WithContext(clock), client.IfClock(clock))
	p.Delete("d", client.WithClock(clock))
	p.Get("e")
	var ops []*storagev1.PipelineOp
	for len(ops) < 5 {
		m := <-got
		if len(ops) == 0 {
			require.Equal(t, "shop", m.Tenant)
		}
		ops = append(ops, m.Ops...)
	}
	for i, want := range []*storagev1.PipelineOp{
		{Key: "a", Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{Value: []byte("v"), TtlSeconds: 2, Causality: &storagev1.PutOp_Context{Context: clock},
			Condition: &storagev1.Condition{When: &storagev1.Condition_Absent{Absent: true}}}}},
		{Key: "b", Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{Causality: &storagev1.PutOp_Clock{Clock: clock}}}},
		{Key: "c", Op: &storagev1.PipelineOp_Delete{Delete: &storagev1.DeleteOp{Causality: &storagev1.DeleteOp_Context{Context: clock},
			Condition: &storagev1.Condition{When: &storagev1.Condition_Clock{Clock: clock}}}}},
		{Key: "d", Op: &storagev1.PipelineOp_Delete{Delete: &storagev1.DeleteOp{Causality: &storagev1.DeleteOp_Clock{Clock: clock}}}},
		{Key: "e", Op: &storagev1.PipelineOp_Read{Read: &storagev1.ReadOp{}}},
	} {
		want.Tag = uint64(i)
		require.True(t, proto.Equal(want, ops[i]), "%v, %v", want, ops[i])
	}
	require.NoError(t, p.Close(), "the node ended the stream with OK")
}

func TestPipelineWaitsWhenTooMuchIsInFlight(t *testing.T) {
	// Without a bound a producer that is faster than the node fills the memory.
	release := make(chan struct{})
	p := open(t, func(s pipeStream) error { <-release; return echo(s) })
	begun := make(chan int, 1)
	var futures []*client.Future[client.Result]
	go func() {
		for i := range client.MaxPipelineOps + 10 {
			if i == client.MaxPipelineOps {
				begun <- i
			}
			futures = append(futures, p.Put(fmt.Sprint(i), nil))
		}
		close(begun)
	}()
	require.Equal(t, client.MaxPipelineOps, <-begun)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	select {
	case <-begun:
		t.Fatal("more operations were begun than may be in flight")
	case <-ctx.Done():
	}
	close(release)
	<-begun
	for _, f := range futures {
		_, err := f.Wait(t.Context())
		require.NoError(t, err)
	}
	require.NoError(t, p.Close())
}

func TestPipelineThatBreaksFailsWhatHasNoAnswer(t *testing.T) {
	// An operation that is forgotten keeps its caller waiting for ever.
	for name, serve := range map[string]func(pipeStream) error{
		"status": func(s pipeStream) error {
			_, _ = s.Recv()
			return status.Error(codes.Unavailable, "stopping")
		},
		"unknown tag": func(s pipeStream) error {
			_, _ = s.Recv()
			_ = s.Send(&storagev1.PipelineResponse{Results: []*storagev1.PipelineResult{{Tag: 99}}})
			<-s.Context().Done()
			return nil
		},
		"end": func(s pipeStream) error { _, _ = s.Recv(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t, serve)
			f := p.Put("k", nil)
			_, err := f.Wait(t.Context())
			require.Error(t, err)
			require.True(t, client.MaybeApplied(err), "%v", err)
			_, err = p.Put("k", nil).Wait(t.Context())
			require.Error(t, err)
			require.False(t, client.MaybeApplied(err), "it was never begun: %v", err)
			require.Equal(t, name == "end", p.Close() == nil)
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	p, err := dial(t, &node{pipeline: func(s pipeStream) error { <-s.Context().Done(); return nil }}, client.Options{}).Pipeline(ctx)
	require.NoError(t, err)
	f := p.Get("k")
	_, err = f.Wait(canceled())
	require.ErrorIs(t, err, context.Canceled)
	cancel()
	<-f.Done()
	require.Equal(t, codes.Canceled, client.Code(p.Close()))
}

// Whoever is told that a write was not made writes something else in its place. A caller that no longer waits
// for the answer, or can't read it, must be told that nobody knows.
func TestPipelinedWriteThatIsGivenUpMayHaveBeenApplied(t *testing.T) {
	silent, err := dial(t, &node{pipeline: func(s pipeStream) error { <-s.Context().Done(); return nil }}, client.Options{}).Pipeline(t.Context())
	require.NoError(t, err)
	late, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	for ctx, want := range map[context.Context]error{canceled(): context.Canceled, late: context.DeadlineExceeded} {
		_, err = silent.Put("k", nil).Wait(ctx)
		require.ErrorIs(t, err, want)
		require.True(t, client.MaybeApplied(err), "%v", err)
		_, err = silent.Delete("k").Wait(ctx)
		require.True(t, client.MaybeApplied(err), "%v", err)
		_, err = silent.Get("k").Wait(ctx)
		require.ErrorIs(t, err, want)
		require.False(t, client.MaybeApplied(err), "a read applies nothing: %v", err)
	}
	p := open(t, func(s pipeStream) error {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		tag := r.GetOps()[0].GetTag()
		_ = s.Send(&storagev1.PipelineResponse{Results: []*storagev1.PipelineResult{{Tag: tag, Result: &storagev1.PipelineResult_Read{Read: &storagev1.ReadResponse{}}}}})
		<-s.Context().Done()
		return nil
	})
	_, err = p.Put("k", nil).Wait(t.Context())
	require.ErrorContains(t, err, "another operation")
	require.True(t, client.MaybeApplied(err), "%v", err)
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
