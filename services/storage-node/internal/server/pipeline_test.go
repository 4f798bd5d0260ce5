package server

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

type pipelineClient = storagev1.StorageService_PipelineClient

// pipe opens a pipeline. At the end of the test no goroutine of either side may be left.
func pipe(t *testing.T, ctx context.Context, w *world) pipelineClient {
	t.Helper()
	stream, err := w.storage.Pipeline(ctx)
	require.NoError(t, err)
	return stream
}

// noLeak must be called before start.
func noLeak(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

func putOp(tag uint64, key, value string) *storagev1.PipelineOp {
	return &storagev1.PipelineOp{Tag: tag, Key: key, Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{Value: []byte(value)}}}
}

func readOp(tag uint64, key string) *storagev1.PipelineOp {
	return &storagev1.PipelineOp{Tag: tag, Key: key, Op: &storagev1.PipelineOp_Read{Read: &storagev1.ReadOp{}}}
}

func deleteOp(tag uint64, key string) *storagev1.PipelineOp {
	return &storagev1.PipelineOp{Tag: tag, Key: key, Op: &storagev1.PipelineOp_Delete{Delete: &storagev1.DeleteOp{}}}
}

func send(t *testing.T, s pipelineClient, ops ...*storagev1.PipelineOp) {
	t.Helper()
	require.NoError(t, s.Send(&storagev1.PipelineRequest{Tenant: "t", Ops: ops}))
}

// take receives until n more answers are there.
func take(t *testing.T, s pipelineClient, n int) map[uint64]*storagev1.PipelineResult {
	t.Helper()
	got := map[uint64]*storagev1.PipelineResult{}
	for len(got) < n {
		m, err := s.Recv()
		require.NoError(t, err)
		require.NotEmpty(t, m.GetResults())
		for _, r := range m.GetResults() {
			require.NotContains(t, got, r.GetTag(), "answered twice")
			got[r.GetTag()] = r
		}
	}
	require.Len(t, got, n)
	return got
}

// Every kind of operation must do over the stream what its call does, and be answered under its tag.
func TestPipelineAnswersEachOperationUnderItsTag(t *testing.T) {
	noLeak(t)
	w := start(t)
	s := pipe(t, t.Context(), w)
	send(t, s, putOp(1, "a", "one"), putOp(2, "b", "two"), readOp(3, "zz"), deleteOp(0, "gone"),
		&storagev1.PipelineOp{Tag: 4, Key: "r", Op: &storagev1.PipelineOp_Repair{Repair: &storagev1.RepairOp{Siblings: []*datav1.Sibling{
			{Dot: &datav1.ClockEntry{NodeId: "x", Counter: 1}, Value: []byte("r"), Timestamp: 5}}}}})
	got := take(t, s, 5)
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, got[1].GetWrite().GetOutcome())
	require.EqualValues(t, 1, got[1].GetWrite().GetSiblings())
	require.NotEmpty(t, got[2].GetWrite().GetClock().GetEntries())
	require.NotNil(t, got[3].GetRead())
	require.False(t, got[3].GetRead().GetFound())
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, got[0].GetWrite().GetOutcome())
	require.NotNil(t, got[4].GetWrite())

	// The answer to a read is that of the call.
	for _, key := range []string{"a", "gone", "r"} {
		send(t, s, readOp(9, key))
		want, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: key})
		require.NoError(t, err)
		require.True(t, proto.Equal(want, take(t, s, 1)[9].GetRead()), key)
	}

	// A clock and a context mean what they mean in a call; so does a lifetime.
	clock := got[1].GetWrite().GetClock()
	send(t, s, &storagev1.PipelineOp{Tag: 1, Key: "a", Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{
		Value: []byte("next"), TtlSeconds: 3600, Causality: &storagev1.PutOp_Context{Context: clock}}}})
	require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, take(t, s, 1)[1].GetWrite().GetOutcome())
	send(t, s, &storagev1.PipelineOp{Tag: 1, Key: "a", Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{
		Value: []byte("blind to the last"), Causality: &storagev1.PutOp_Context{Context: clock}}}})
	require.Equal(t, storagev1.Outcome_OUTCOME_SIBLING, take(t, s, 1)[1].GetWrite().GetOutcome())
	send(t, s, readOp(2, "a"))
	require.Len(t, take(t, s, 1)[2].GetRead().GetSiblings(), 2)

	require.NoError(t, s.Send(&storagev1.PipelineRequest{Ops: []*storagev1.PipelineOp{putOp(1, "q", "v")}, OmitClocks: true}), "the tenant stays")
	require.Nil(t, take(t, s, 1)[1].GetWrite().GetClock())
	require.NoError(t, s.CloseSend())
	_, err := s.Recv()
	require.ErrorIs(t, err, io.EOF)
}

// Two writes of one key that change places lose the newer one.
func TestPipelineAppliesWritesInTheirOrder(t *testing.T) {
	noLeak(t)
	w := start(t)
	s := pipe(t, t.Context(), w)
	const rounds, keys = 30, 7
	for i := range rounds {
		var ops []*storagev1.PipelineOp
		for k := range keys {
			for j := range 3 {
				ops = append(ops, putOp(uint64(i*keys*3+k*3+j), fmt.Sprint("k", k), fmt.Sprint(i, " ", j)))
			}
		}
		send(t, s, ops...)
	}
	for _, r := range take(t, s, rounds*keys*3) {
		require.Equal(t, storagev1.Outcome_OUTCOME_APPLIED, r.GetWrite().GetOutcome())
	}
	for k := range keys {
		read, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: fmt.Sprint("k", k)})
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(rounds-1, " ", 2), string(read.GetValue()))
	}
}

// A write that is answered before it is durable is lost in a crash; a read behind it must not wait.
func TestPipelineAnswersWritesWhenTheyAreDurable(t *testing.T) {
	noLeak(t)
	w := start(t)
	hold := make(chan struct{})
	w.engine.set(func(f *fakeEngine) { f.wait = func() error { <-hold; return nil } })
	s := pipe(t, t.Context(), w)
	send(t, s, putOp(1, "a", "v"), readOp(2, "x"))
	require.Contains(t, take(t, s, 1), uint64(2))
	send(t, s, putOp(3, "b", "v"))
	send(t, s, readOp(4, "x"))
	require.Contains(t, take(t, s, 1), uint64(4))
	require.NoError(t, s.CloseSend())
	close(hold)
	take(t, s, 2) // the half close waits for them
	_, err := s.Recv()
	require.ErrorIs(t, err, io.EOF)
}

// A sync that failed must never become an acknowledgement.
func TestPipelineReportsWhatDidNotBecomeDurable(t *testing.T) {
	noLeak(t)
	w := start(t)
	w.engine.set(func(f *fakeEngine) { f.wait = func() error { return ErrStopping } })
	s := pipe(t, t.Context(), w)
	send(t, s, putOp(1, "a", "v"), putOp(2, "", "v"), readOp(3, "a"))
	got := take(t, s, 3)
	for tag, reason := range map[uint64]string{1: "STOPPING", 2: "STOPPING"} {
		require.Equal(t, reason, got[tag].GetError().GetReason())
		require.Nil(t, got[tag].GetWrite())
	}
	require.EqualValues(t, 1000, got[1].GetError().GetRetryAfterMs())
	require.NotNil(t, got[3].GetRead())
}

// One bad operation must not take the stream with it.
func TestPipelineErrorsStayWithTheirOperation(t *testing.T) {
	noLeak(t)
	var used recorder
	w := start(t, func(w *world, _ *Options) { w.pipelined = used.add })
	s := pipe(t, t.Context(), w)
	long := strings.Repeat("k", 1025)
	send(t, s, putOp(1, long, ""), putOp(2, long[:1024], ""), readOp(3, long), readOp(4, long[:1024]), putOp(5, "", ""),
		&storagev1.PipelineOp{Tag: 6, Key: "k"}, putOp(7, "k", strings.Repeat("v", 10<<20+1)), putOp(8, "c\x01", ""),
		&storagev1.PipelineOp{Tag: 9, Key: "k", Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{Causality: &storagev1.PutOp_Clock{Clock: clockOf(1001, 6)}}}},
		&storagev1.PipelineOp{Tag: 10, Key: "k", Op: &storagev1.PipelineOp_Put{Put: &storagev1.PutOp{Causality: &storagev1.PutOp_Clock{Clock: clockOf(1000, 6)}}}})
	got := take(t, s, 10)
	for tag, reason := range map[uint64]string{
		1: "INVALID_ARGUMENT_KEY", 2: "", 3: "INVALID_ARGUMENT_KEY", 4: "", 5: "INVALID_ARGUMENT_KEY", 6: "INVALID_ARGUMENT_BATCH",
		7: "INVALID_ARGUMENT_VALUE", 8: "INVALID_ARGUMENT_KEY", 9: "INVALID_ARGUMENT_CLOCK", 10: "",
	} {
		require.Equal(t, reason, got[tag].GetError().GetReason(), "operation %d", tag)
		if reason != "" {
			require.Equal(t, int32(codes.InvalidArgument), got[tag].GetError().GetCode())
			require.Zero(t, got[tag].GetError().GetRetryAfterMs())
		}
	}
	for tenant, reason := range map[string]string{
		"a:b": "INVALID_ARGUMENT_TENANT", "_x": "INVALID_ARGUMENT_TENANT", strings.Repeat("t", 257): "INVALID_ARGUMENT_TENANT", strings.Repeat("t", 256): "",
	} {
		require.NoError(t, s.Send(&storagev1.PipelineRequest{Tenant: tenant, Ops: []*storagev1.PipelineOp{putOp(1, "k", "v"), readOp(2, "k")}}))
		got := take(t, s, 2)
		require.Equal(t, reason, got[1].GetError().GetReason(), tenant)
		require.Equal(t, reason, got[2].GetError().GetReason(), tenant)
	}
	require.NoError(t, s.CloseSend())
	_, err := s.Recv()
	require.ErrorIs(t, err, io.EOF)

	s = pipe(t, t.Context(), w)
	used.total()
	require.NoError(t, s.Send(&storagev1.PipelineRequest{Ops: []*storagev1.PipelineOp{readOp(1, "k")}}))
	require.Equal(t, "INVALID_ARGUMENT_TENANT", take(t, s, 1)[1].GetError().GetReason(), "no tenant was named yet")
	w.engine.set(func(f *fakeEngine) { f.fail = errOverloaded })
	send(t, s, putOp(1, "k", "v"), readOp(2, "k"), readOp(3, ""))
	got = take(t, s, 3)
	for tag := range uint64(2) {
		require.Equal(t, "OVERLOADED", got[tag+1].GetError().GetReason())
		require.EqualValues(t, 100, got[tag+1].GetError().GetRetryAfterMs())
	}
	require.NoError(t, s.CloseSend())
	_, err = s.Recv()
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, Pipelined{RejectedReads: 3, RejectedWrites: 1}, used.total())
}

// recorder adds up what pipelines report, and requires that there is a duration for each operation.
type recorder struct {
	mu   sync.Mutex
	sum  Pipelined
	took []time.Duration // of reads
}

func (r *recorder) add(p Pipelined) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(p.ReadTook) != p.Reads+p.RejectedReads+p.FailedReads || (p.WriteTook > 0) != (p.Writes+p.RejectedWrites+p.FailedWrites > 0) {
		panic(fmt.Sprintf("durations of %+v", p))
	}
	r.took = append(r.took, p.ReadTook...)
	r.sum.Reads += p.Reads
	r.sum.ReadBytes += p.ReadBytes
	r.sum.RejectedReads += p.RejectedReads
	r.sum.FailedReads += p.FailedReads
	r.sum.Writes += p.Writes
	r.sum.WriteBytes += p.WriteBytes
	r.sum.RejectedWrites += p.RejectedWrites
	r.sum.FailedWrites += p.FailedWrites
	r.sum.WriteTook = max(r.sum.WriteTook, p.WriteTook)
}

// total returns the counts since the last call.
func (r *recorder) total() Pipelined {
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := r.sum
	r.sum, sum.WriteTook = Pipelined{}, 0
	return sum
}

// A message over a limit ends the stream, after the answers to everything before it.
func TestPipelineMessageLimits(t *testing.T) {
	noLeak(t)
	w := start(t)
	many := func(n int) []*storagev1.PipelineOp {
		ops := make([]*storagev1.PipelineOp, n)
		for i := range ops {
			ops[i] = putOp(uint64(i), fmt.Sprint("k", i), "v")
		}
		return ops
	}
	s := pipe(t, t.Context(), w)
	send(t, s, many(1000)...)
	take(t, s, 1000)
	send(t, s) // nothing to do is no mistake
	send(t, s, many(1)...)
	send(t, s, many(1001)...)
	take(t, s, 1)
	_, err := s.Recv()
	require.Equal(t, "INVALID_ARGUMENT_BATCH", refused(t, err).reason)

	for name, message := range map[string][]byte{
		"cut":             {0x12, 0x7f, 1},
		"key is not text": {0x12, 0x04, 0x12, 0x02, 0xff, 0xfe},
		"tenant":          {0x0a, 0x01, 0xff},
		"operation":       {0x12, 0x02, 0x22, 0x7f},
	} {
		s := pipe(t, t.Context(), w)
		m := &storagev1.PipelineRequest{}
		m.ProtoReflect().SetUnknown(message)
		require.NoError(t, s.Send(m))
		_, err := s.Recv()
		require.Equal(t, "INVALID_ARGUMENT_MESSAGE", refused(t, err).reason, name)
	}
}

// Messages of answers stay below 64 KiB, whatever is read; one large value travels alone.
func TestPipelineMessagesStaySmall(t *testing.T) {
	noLeak(t)
	w := start(t)
	w.put("small", strings.Repeat("s", 1000))
	w.put("large", strings.Repeat("l", 1<<20))
	s := pipe(t, t.Context(), w)
	var ops []*storagev1.PipelineOp
	for i := range 500 {
		key := "small"
		if i%100 == 50 {
			key = "large"
		}
		ops = append(ops, readOp(uint64(i), key))
	}
	send(t, s, ops...)
	got := 0
	for got < len(ops) {
		m, err := s.Recv()
		require.NoError(t, err)
		got += len(m.GetResults())
		if size := proto.Size(m); size >= 64<<10 {
			require.Equal(t, 1, len(m.GetResults()), "a message of %d bytes", size)
		}
	}
}

// A reader that takes nothing must not fill the node's memory with answers.
func TestPipelineSlowReaderIsBounded(t *testing.T) {
	noLeak(t)
	ended := make(chan struct{})
	w := start(t, func(w *world, o *Options) {
		w.server.stall = 100 * time.Millisecond
		o.Observe = func(c Call) {
			if strings.HasSuffix(c.Method, "/Pipeline") {
				close(ended)
			}
		}
	})
	const value = 32 << 10
	w.put("k", strings.Repeat("v", value))
	reads := 0
	w.engine.set(func(f *fakeEngine) { f.hook = func() { reads++ } }) // of one goroutine
	s := pipe(t, t.Context(), w)
	var ops []*storagev1.PipelineOp
	for i := range 1000 {
		ops = append(ops, readOp(uint64(i), "k"))
	}
	send(t, s, ops...)
	<-ended
	var err error
	for err == nil { // what the windows held arrives, then the end
		_, err = s.Recv()
	}
	require.Equal(t, "SLOW_READER", refused(t, err).reason)
	// The limit, one message more, and what gRPC itself holds: the windows of both sides.
	require.LessOrEqual(t, reads*value, maxPipelineBytes+4*maxPipelineMessage+1<<20)
}

// Operations without an answer are bounded too: their number is what a stream keeps in memory.
func TestPipelineStopsToReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		hold := make(chan struct{})
		w.engine.set(func(f *fakeEngine) { f.wait = func() error { <-hold; return nil } })
		s := pipe(t, t.Context(), w)
		const messages, size = 12, 500
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for i := range messages {
				var ops []*storagev1.PipelineOp
				for j := range size {
					ops = append(ops, putOp(uint64(i*size+j), fmt.Sprint("k", i*size+j), "v"))
				}
				send(t, s, ops...)
			}
		}()
		synctest.Wait()
		w.engine.mu.Lock()
		require.EqualValues(t, 9*size, w.engine.seq, "4,096 are reached within the ninth message")
		w.engine.mu.Unlock()
		close(hold)
		take(t, s, messages*size)
		<-sent
		require.NoError(t, s.CloseSend())
		_, err := s.Recv()
		require.ErrorIs(t, err, io.EOF)
	})
}

// Streams together must not have more writes in work than the node is meant for; who finds no place waits,
// is refused nothing, and keeps nobody from reading.
func TestPipelinesShareThePlacesOfWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var used recorder
		w := start(t, func(w *world, _ *Options) { w.maxWrites, w.pipelined = 10, used.add })
		hold := make(chan struct{})
		w.engine.set(func(f *fakeEngine) { f.wait = func() error { <-hold; return nil } })
		seq := func() int {
			w.engine.mu.Lock()
			defer w.engine.mu.Unlock()
			return int(w.engine.seq)
		}
		puts := func(n, from int) (ops []*storagev1.PipelineOp) {
			for i := range n {
				ops = append(ops, putOp(uint64(from+i), fmt.Sprint("k", from+i), "v"))
			}
			return ops
		}
		var streams []pipelineClient
		for range 4 {
			streams = append(streams, pipe(t, t.Context(), w))
		}
		send(t, streams[0], puts(6, 0)...)
		synctest.Wait()
		send(t, streams[1], puts(5, 10)...) // does not fit
		synctest.Wait()
		send(t, streams[2], puts(3, 20)...) // would, but it is not its turn
		synctest.Wait()
		require.Equal(t, 6, seq())
		send(t, streams[3], readOp(1, "k"))
		take(t, streams[3], 1)
		send(t, streams[3], puts(30, 40)...) // more than there are: it takes all
		synctest.Wait()
		time.Sleep(time.Second)
		close(hold)
		take(t, streams[0], 6)
		take(t, streams[1], 5)
		take(t, streams[2], 3)
		take(t, streams[3], 30)
		for _, s := range streams {
			require.NoError(t, s.CloseSend())
			_, err := s.Recv()
			require.ErrorIs(t, err, io.EOF)
		}
		b, err := w.server.backend()
		require.NoError(t, err)
		require.Zero(t, b.writes.taken)
		require.Equal(t, time.Second, used.sum.WriteTook, "they took until they were durable")
		require.Equal(t, 44, used.sum.Writes)
	})
}

// A stream that ends while it waits for places, or holds some, must give back what it has; or the others
// wait for ever.
func TestPipelineThatEndsGivesItsPlacesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, func(w *world, _ *Options) { w.maxWrites = 10 })
		hold := make(chan struct{})
		w.engine.set(func(f *fakeEngine) { f.wait = func() error { <-hold; return nil } })
		ops := []*storagev1.PipelineOp{putOp(1, "a", ""), putOp(2, "b", ""), putOp(3, "c", ""), putOp(4, "d", ""), putOp(5, "e", ""), putOp(6, "f", "")}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		holds, waits := pipe(t, ctx, w), pipe(t, ctx, w)
		send(t, holds, ops...)
		synctest.Wait()
		send(t, waits, ops...)
		synctest.Wait()
		last := pipe(t, t.Context(), w)
		send(t, last, ops...)
		synctest.Wait()
		cancel()
		for _, s := range []pipelineClient{holds, waits} {
			_, err := s.Recv()
			require.Equal(t, codes.Canceled, status.Code(err))
		}
		synctest.Wait()
		w.engine.set(func(f *fakeEngine) { f.wait = nil })
		close(hold)
		take(t, last, len(ops))
		require.NoError(t, last.CloseSend())
		_, err := last.Recv()
		require.ErrorIs(t, err, io.EOF)
		b, err := w.server.backend()
		require.NoError(t, err)
		require.Zero(t, b.writes.taken)
		require.Empty(t, b.writes.waiting)
	})
}

// A node that stops must not wait for a stream that waits for places.
func TestPipelineThatWaitsForPlacesEndsWithTheNode(t *testing.T) {
	noLeak(t)
	w := start(t, func(w *world, _ *Options) { w.maxWrites = 1 })
	hold, waiting := make(chan struct{}), make(chan struct{}, 2)
	w.engine.set(func(f *fakeEngine) { f.wait = func() error { waiting <- struct{}{}; <-hold; return nil } })
	first, second := pipe(t, t.Context(), w), pipe(t, t.Context(), w)
	send(t, first, putOp(1, "a", "v"))
	<-waiting
	send(t, second, putOp(1, "b", "v"))
	b, err := w.server.backend()
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		b.writes.mu.Lock()
		defer b.writes.mu.Unlock()
		return len(b.writes.waiting) == 1
	}, 10*time.Second, time.Millisecond)
	w.server.Leave()
	_, err = second.Recv()
	require.Equal(t, "STOPPING", refused(t, err).reason)
	close(hold)
	require.NotNil(t, take(t, first, 1)[1].GetWrite())
	require.NotContains(t, w.engine.data, "t\x00b")
}

// A client that goes away, or whose time is over, must leave nothing behind.
func TestPipelineEndsWithItsContext(t *testing.T) {
	noLeak(t)
	w := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	s := pipe(t, ctx, w)
	send(t, s, putOp(1, "k", "v"))
	take(t, s, 1)
	cancel()
	_, err := s.Recv()
	require.Equal(t, codes.Canceled, status.Code(err))

	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	s = pipe(t, ctx, w)
	_, err = s.Recv()
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
}

// A node that stops takes nothing more, but says what became of what it took.
func TestPipelineOfANodeThatStops(t *testing.T) {
	noLeak(t)
	w := start(t)
	hold, waiting := make(chan struct{}), make(chan struct{})
	w.engine.set(func(f *fakeEngine) { f.wait = func() error { close(waiting); <-hold; return nil } })
	s := pipe(t, t.Context(), w)
	send(t, s, putOp(1, "k", "v"))
	<-waiting
	w.server.Leave()
	close(hold)
	require.NotNil(t, take(t, s, 1)[1].GetWrite())
	_, err := s.Recv()
	require.Equal(t, "STOPPING", refused(t, err).reason)
}

// A panic below must end this stream, and neither the process nor the locks.
func TestPipelineSurvivesAPanic(t *testing.T) {
	noLeak(t)
	w := start(t)
	for _, set := range []func(*fakeEngine){
		func(f *fakeEngine) { f.hook = func() { panic("in a read") } },
		func(f *fakeEngine) { f.wait = func() error { panic("in a wait") } },
	} {
		w.engine.set(set)
		s := pipe(t, t.Context(), w)
		send(t, s, putOp(1, "k", "v"))
		var err error
		for err == nil {
			var m *storagev1.PipelineResponse
			m, err = s.Recv()
			for _, r := range m.GetResults() {
				require.Equal(t, "INTERNAL", r.GetError().GetReason())
			}
		}
		require.Equal(t, "INTERNAL", refused(t, err).reason)
		w.engine.set(func(f *fakeEngine) { f.hook, f.wait = nil, nil })
	}
	w.put("k", "after")
}

// Before the engine is open there is nothing to be piped.
func TestPipelineWhileRecovering(t *testing.T) {
	noLeak(t)
	w := start(t, func(w *world, _ *Options) { w.phase = StateRecovering })
	_, err := pipe(t, t.Context(), w).Recv()
	require.Equal(t, "RECOVERING", refused(t, err).reason)
}
