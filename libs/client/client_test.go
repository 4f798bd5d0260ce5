package client_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pairdb/pairdb/libs/client"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// node answers as a test tells it to.
type node struct {
	storagev1.UnimplementedStorageServiceServer
	write  func(*storagev1.WriteRequest) (*storagev1.WriteResponse, error)
	batch  func(*storagev1.BatchWriteRequest) (*storagev1.BatchWriteResponse, error)
	stream func(*storagev1.StreamKeysRequest, grpc.ServerStreamingServer[storagev1.StreamKeysResponse]) error

	pipeline func(grpc.BidiStreamingServer[storagev1.PipelineRequest, storagev1.PipelineResponse]) error
}

func (n *node) Pipeline(s grpc.BidiStreamingServer[storagev1.PipelineRequest, storagev1.PipelineResponse]) error {
	return n.pipeline(s)
}

func (n *node) Write(_ context.Context, r *storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
	return n.write(r)
}

func (n *node) BatchWrite(_ context.Context, r *storagev1.BatchWriteRequest) (*storagev1.BatchWriteResponse, error) {
	return n.batch(r)
}

func (n *node) StreamKeys(r *storagev1.StreamKeysRequest, s grpc.ServerStreamingServer[storagev1.StreamKeysResponse]) error {
	return n.stream(r, s)
}

func dial(t *testing.T, n storagev1.StorageServiceServer, o client.Options) *client.Client {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	s := grpc.NewServer(grpc.MaxRecvMsgSize(client.MaxMessageBytes)) // as the node has it
	storagev1.RegisterStorageServiceServer(s, n)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	o.DialOptions = append(o.DialOptions, grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return l.Dial() }))
	c, err := client.New("passthrough:///node", o)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, c.Close())
		s.Stop()
		require.NoError(t, <-served)
	})
	return c
}

func overloaded(after time.Duration) error {
	s, _ := status.New(codes.ResourceExhausted, "overloaded").WithDetails(
		&errdetails.ErrorInfo{Domain: "pairdb", Reason: "OVERLOADED"},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(after)},
	)
	return s.Err()
}

func TestOnlyWhatCanHelpIsRetried(t *testing.T) {
	// A repeat of a refused write would hide the refusal, or do the work twice for nothing.
	for _, c := range []struct {
		name  string
		err   error
		calls int32
	}{
		{"unavailable", status.Error(codes.Unavailable, "starting"), 3},
		{"overloaded with a delay", overloaded(time.Millisecond), 3},
		{"exhausted for good", status.Error(codes.ResourceExhausted, "too many siblings"), 1},
		{"invalid", status.Error(codes.InvalidArgument, "bad key"), 1},
		{"corrupt", status.Error(codes.DataLoss, "table"), 1},
		{"internal", status.Error(codes.Internal, "bug"), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var calls atomic.Int32
			n := &node{write: func(*storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
				if calls.Add(1) < 3 {
					return nil, c.err
				}
				return &storagev1.WriteResponse{Outcome: storagev1.Outcome_OUTCOME_APPLIED}, nil
			}}
			_, err := dial(t, n, client.Options{}).Put(t.Context(), "k", []byte("v"))
			require.Equal(t, c.calls, calls.Load())
			require.Equal(t, c.calls == 1, err != nil)
		})
	}
}

func TestRetryBudgetEnds(t *testing.T) {
	// A node that asks for more time than the caller has must not hold the caller.
	n := &node{write: func(*storagev1.WriteRequest) (*storagev1.WriteResponse, error) { return nil, overloaded(time.Hour) }}
	_, err := dial(t, n, client.Options{}).Put(t.Context(), "k", nil)
	require.Equal(t, "OVERLOADED", client.Reason(err))
	require.Equal(t, codes.ResourceExhausted, client.Code(err))
}

func TestBatchNamesTheRefusedItems(t *testing.T) {
	n := &node{batch: func(r *storagev1.BatchWriteRequest) (*storagev1.BatchWriteResponse, error) {
		resp := &storagev1.BatchWriteResponse{}
		for i := range r.Ops {
			res := &storagev1.BatchWriteResult{Outcome: storagev1.Outcome_OUTCOME_APPLIED}
			if i == 1 {
				res = &storagev1.BatchWriteResult{Error: &storagev1.ItemError{Code: int32(codes.InvalidArgument), Reason: "INVALID_ARGUMENT_KEY", Message: "too long"}}
			}
			resp.Results = append(resp.Results, res)
		}
		return resp, nil
	}}
	var b client.Batch
	b.Put("a", nil)
	b.Put("b", nil)
	b.Delete("c")
	err := dial(t, n, client.Options{}).Write(t.Context(), &b)
	var item *client.ItemError
	require.ErrorAs(t, err, &item)
	require.Equal(t, 1, item.Index)
	require.Equal(t, codes.InvalidArgument, client.Code(err))
	b.Reset()
	require.Zero(t, b.Len())
}

func TestScanResumesABrokenStreamWithoutGapOrRepeat(t *testing.T) {
	keys := []string{"a", "b", "c", "d", "e"}
	snapshot := uint64(0)
	n := &node{stream: func(r *storagev1.StreamKeysRequest, s grpc.ServerStreamingServer[storagev1.StreamKeysResponse]) error {
		sent := 0
		snapshot++
		for _, k := range keys {
			if r.Cursor != "" && k <= r.Cursor {
				continue
			}
			if sent == 2 {
				return status.Error(codes.Unavailable, "restarting")
			}
			sent++
			rec := &datav1.Record{Key: k, Siblings: []*datav1.Sibling{{Value: []byte(k)}}}
			if err := s.Send(&storagev1.StreamKeysResponse{Records: []*datav1.Record{rec}, Cursor: k, Sequence: snapshot}); err != nil {
				return err
			}
		}
		return nil
	}}
	var got []string
	var sequence uint64
	for r, err := range dial(t, n, client.Options{}).Scan(t.Context(), "", "", client.SnapshotSequence(&sequence)) {
		require.NoError(t, err)
		got = append(got, r.Key)
	}
	require.Equal(t, keys, got)
	require.EqualValues(t, 1, sequence, "of the first snapshot, whose records are the oldest")
}

func TestContextOfAnAbsentKeySupersedesNothing(t *testing.T) {
	// Two clients that find no value and both write: sent without a context, the second write would
	// supersede the first, which it has never seen.
	var sent *storagev1.WriteRequest
	n := &node{write: func(r *storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
		sent = r
		return &storagev1.WriteResponse{}, nil
	}}
	c := dial(t, n, client.Options{})
	_, err := c.Put(t.Context(), "k", nil, client.WithContext(nil))
	require.NoError(t, err)
	require.NotNil(t, sent.GetContext(), "an empty context, not none")
	require.Empty(t, sent.GetContext().GetEntries())
	_, err = c.Put(t.Context(), "k", nil)
	require.NoError(t, err)
	require.Nil(t, sent.GetCausality())
}

func TestLifetimeIsNeverRoundedToForEver(t *testing.T) {
	// A lifetime that was computed and is over by a little must not become a value that never expires.
	var sent []int64
	n := &node{write: func(r *storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
		sent = append(sent, r.TtlSeconds)
		return &storagev1.WriteResponse{}, nil
	}}
	c := dial(t, n, client.Options{})
	for _, d := range []time.Duration{0, 1, time.Second, time.Second + 1} {
		_, err := c.Put(t.Context(), "k", nil, client.WithTTL(d))
		require.NoError(t, err)
	}
	require.Equal(t, []int64{0, 1, 1, 2}, sent)
	for _, d := range []time.Duration{-1, -time.Second} {
		_, err := c.Put(t.Context(), "k", nil, client.WithTTL(d))
		require.Equal(t, codes.InvalidArgument, client.Code(err))
	}
	require.Len(t, sent, 4, "nothing was sent")
}

// slow never answers, and remembers repairs.
type slow struct {
	*memoryNode
	repairs []*datav1.Record
}

func (n *slow) Read(ctx context.Context, _ *storagev1.ReadRequest) (*storagev1.ReadResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (n *slow) Repair(_ context.Context, r *storagev1.RepairRequest) (*storagev1.RepairResponse, error) {
	if n.repairs = append(n.repairs, r.Record); len(n.repairs) == 1 {
		return nil, status.Error(codes.Unavailable, "connection reset")
	}
	return &storagev1.RepairResponse{}, nil
}

func TestCallWithoutADeadlineEnds(t *testing.T) {
	// A node that hangs must not hang its callers for ever.
	c := dial(t, &slow{memoryNode: newMemoryNode()}, client.Options{Timeout: 20 * time.Millisecond})
	_, err := c.Get(t.Context(), "k")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, codes.DeadlineExceeded, client.Code(err))
	require.False(t, client.MaybeApplied(err), "a read applies nothing")
	require.False(t, client.Retryable(err), "a node that is too slow gets no more to do")
}

func TestRepairIsSentAgain(t *testing.T) {
	// It joins: a second time it changes nothing.
	n := &slow{memoryNode: newMemoryNode()}
	c := dial(t, n, client.Options{Tenant: "shop"})
	siblings := []*client.Sibling{{Value: []byte("a")}, {Tombstone: true}}
	require.NoError(t, c.Repair(t.Context(), "k", siblings))
	require.Len(t, n.repairs, 2)
	require.Equal(t, "shop", c.Tenant())
	require.Equal(t, "shop", n.repairs[1].Tenant)
	require.Len(t, n.repairs[1].Siblings, 2)
}

func TestBatchOfDeletesSaysWhatEachFollowsFrom(t *testing.T) {
	var sent []*storagev1.BatchOp
	n := &node{batch: func(r *storagev1.BatchWriteRequest) (*storagev1.BatchWriteResponse, error) {
		sent = r.Ops
		return &storagev1.BatchWriteResponse{Results: make([]*storagev1.BatchWriteResult, len(r.Ops))}, nil
	}}
	clock := &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: "n", Counter: 7}}}
	var b client.Batch
	b.Delete("blind")
	empty := b.Bytes()
	b.Delete("context", client.WithContext(clock))
	b.Delete("clock", client.WithClock(clock))
	b.Delete("condition", client.IfClock(nil))
	b.Put("put", []byte("v"), client.WithContext(nil), client.WithTTL(time.Minute))
	require.Greater(t, b.Bytes(), 5*empty)
	require.NoError(t, dial(t, n, client.Options{}).Write(t.Context(), &b))
	require.Nil(t, sent[0].GetDelete().GetCausality())
	require.EqualValues(t, 7, sent[1].GetDelete().GetContext().GetEntries()[0].Counter)
	require.EqualValues(t, 7, sent[2].GetDelete().GetClock().GetEntries()[0].Counter)
	require.NotNil(t, sent[3].GetDelete().GetCondition().GetClock())
	require.NotNil(t, sent[4].GetPut().GetContext())
	require.EqualValues(t, 60, sent[4].GetPut().GetTtlSeconds())
}
