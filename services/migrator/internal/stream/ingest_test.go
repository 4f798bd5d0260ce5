package stream

import (
	"context"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

// taker is a target whose behaviour the test decides.
type taker struct {
	replicav1.UnimplementedReplicaServiceServer
	// each is called for each message after the first; it may answer by ack.
	each func(r *replicav1.IngestRequest, ack func(number uint64) error) error
	// hold, if there is one, is waited for before anything is read.
	hold chan struct{}

	mu    sync.Mutex
	start *replicav1.IngestStart // guarded by mu
}

func (k *taker) Ingest(in grpc.BidiStreamingServer[replicav1.IngestRequest, replicav1.IngestResponse]) error {
	if k.hold != nil {
		select {
		case <-k.hold:
		case <-in.Context().Done():
			return in.Context().Err()
		}
	}
	first, err := in.Recv()
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.start = first.GetStart()
	k.mu.Unlock()
	ack := func(n uint64) error { return in.Send(&replicav1.IngestResponse{DurableNumber: n}) }
	for {
		r, err := in.Recv()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = k.each(r, ack)
		}
		if err != nil || r.GetFinish() {
			return err
		}
	}
}

func open(t *testing.T, k *taker, o Options) *Ingest {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s, served := grpc.NewServer(), make(chan error, 1)
	replicav1.RegisterReplicaServiceServer(s, k)
	go func() { served <- s.Serve(l) }()
	targets := NewTargets()
	conn, release, err := targets.Dial(l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() {
		release()
		s.Stop()
		require.NoError(t, <-served)
		require.Empty(t, targets.conns)
	})
	o.MoveID = "m1"
	in, err := OpenIngest(t.Context(), replicav1.NewReplicaServiceClient(conn), o)
	require.NoError(t, err)
	t.Cleanup(in.Close)
	return in
}

// some returns n records of size bytes.
func some(n, size int) *Records {
	var out Records
	for range n {
		out.Append([]byte("k"), make([]byte, size-1))
	}
	return &out
}

// A mark that comes back early is data that is taken for sent and is not.
func TestMarksComeBackInOrderAndOnlyWhenDurable(t *testing.T) {
	durable := uint64(0)
	var mu sync.Mutex
	k := &taker{}
	k.each = func(r *replicav1.IngestRequest, ack func(uint64) error) error {
		n := r.GetBatch().GetNumber()
		if n%3 != 0 && !r.GetFinish() {
			return nil
		}
		mu.Lock()
		if n > 0 {
			durable = n
		} else {
			durable, n = 10, 10
		}
		mu.Unlock()
		return ack(n)
	}
	var marks []Mark
	in := open(t, k, Options{Sorted: true, ReadAt: time.UnixMilli(5), Acked: func(m Mark) {
		mu.Lock()
		defer mu.Unlock()
		marks = append(marks, m)
		require.LessOrEqual(t, m.Sequence, 2*durable, "acknowledged before it was durable")
	}})
	for i := uint64(1); i <= 10; i++ {
		require.NoError(t, in.Send(t.Context(), some(2, 50), Mark{Sequence: 2*i - 1}))
		require.NoError(t, in.Send(t.Context(), &Records{}, Mark{Sequence: 2 * i}), "a mark without records waits for what is before it")
	}
	require.NoError(t, in.Finish(t.Context()))
	require.Zero(t, in.Unacknowledged())
	var records, bytes int64
	last := uint64(0)
	for _, m := range marks {
		require.Greater(t, m.Sequence, last)
		last = m.Sequence
		records, bytes = records+m.Records, bytes+m.Bytes
	}
	require.Equal(t, uint64(20), last)
	require.Equal(t, int64(20), records)
	require.Equal(t, int64(1000), bytes)
	require.True(t, k.start.GetSorted())
	require.Equal(t, int64(5), k.start.GetReadAtMs())
}

// A target that takes everything and acknowledges nothing, or reads nothing at all, must not fill the
// memory of the migrator; and it must be noticed.
func TestATargetThatStopsHoldsTheStreamUpAndIsNoticed(t *testing.T) {
	for _, c := range []struct {
		name string
		k    *taker
	}{
		{"acknowledges nothing", &taker{each: func(*replicav1.IngestRequest, func(uint64) error) error { return nil }}},
		{"reads nothing", &taker{hold: make(chan struct{})}},
	} {
		t.Run(c.name, func(t *testing.T) {
			const window, size = 1 << 20, 32 << 10
			in := open(t, c.k, Options{WindowBytes: window, Stall: 500 * time.Millisecond, Acked: func(Mark) { t.Error("acknowledged") }})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			sent := 0
			var err error
			for err == nil {
				if err = in.Send(t.Context(), some(1, size), Mark{}); err == nil {
					sent += size
				}
				require.LessOrEqual(t, sent, window)
			}
			require.ErrorIs(t, err, ErrStalled)
			runtime.ReadMemStats(&after)
			require.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(16*window))
			require.ErrorIs(t, in.Err(), ErrStalled)
			<-in.Ended()
		})
	}
}

// A record that is larger than the window must pass, alone.
func TestARecordLargerThanTheWindowPasses(t *testing.T) {
	k := &taker{each: func(r *replicav1.IngestRequest, ack func(uint64) error) error { return ack(r.GetBatch().GetNumber()) }}
	n := int64(0)
	in := open(t, k, Options{WindowBytes: 1 << 10, Acked: func(m Mark) { n += m.Bytes }})
	for range 3 {
		require.NoError(t, in.Send(t.Context(), some(1, 64<<10), Mark{}))
	}
	require.NoError(t, in.Finish(t.Context()))
	require.Equal(t, int64(3*64<<10), n)
}

// The reason of a target that refuses must come through, whichever side of the stream hears it; and one
// that ends the stream without acknowledging must not pass for one that has.
func TestWhyAStreamEndedIsSaid(t *testing.T) {
	full := status.Error(codes.ResourceExhausted, "disk full")
	for _, c := range []struct {
		name string
		end  error
		want func(error)
	}{
		{"refused", full, func(err error) { require.Equal(t, codes.ResourceExhausted, status.Code(err), "%v", err) }},
		{"ended early", nil, func(err error) { require.ErrorIs(t, err, ErrBroken) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &taker{each: func(r *replicav1.IngestRequest, ack func(uint64) error) error {
				if r.GetBatch().GetNumber() < 5 && !r.GetFinish() {
					return ack(r.GetBatch().GetNumber())
				}
				if c.end != nil {
					return c.end
				}
				return io.ErrUnexpectedEOF
			}}
			if c.end == nil {
				k.each = func(r *replicav1.IngestRequest, _ func(uint64) error) error { return nil } // finish ends it
			}
			in := open(t, k, Options{Acked: func(Mark) {}})
			var err error
			for i := 0; err == nil && i < 10; i++ {
				err = in.Send(t.Context(), some(1, 100), Mark{})
			}
			if err == nil {
				err = in.Finish(t.Context())
			}
			c.want(err)
			require.Error(t, in.Send(t.Context(), &Records{}, Mark{}), "nothing is taken any more")
		})
	}
}

// A caller that ends must not wait for a target.
func TestSendAndFinishEndWithTheirContext(t *testing.T) {
	in := open(t, &taker{each: func(*replicav1.IngestRequest, func(uint64) error) error { return nil }}, Options{WindowBytes: 100, Acked: func(Mark) {}})
	require.NoError(t, in.Send(t.Context(), some(1, 100), Mark{}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, in.Send(ctx, some(1, 100), Mark{}), context.Canceled)
}
