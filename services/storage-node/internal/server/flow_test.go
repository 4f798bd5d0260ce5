package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// realEngine is the engine as the store declares it, as in package node.
type realEngine struct{ *engine.Engine }

func (e realEngine) NewBatch() store.Batch { return new(engine.Batch) }

func (e realEngine) Submit(b store.Batch) (ikey.Seq, error) {
	p, err := e.Engine.Submit(b.(*engine.Batch))
	return p.Seq(), err
}

func (e realEngine) NewIter(lower, upper []byte) (store.Iter, error) {
	return e.Engine.NewIter(engine.IterOptions{Lower: lower, Upper: upper})
}

func (e realEngine) NewSnapshot() store.Snapshot { return realSnapshot{e.Engine.NewSnapshot()} }

type realSnapshot struct{ *engine.Snapshot }

func (s realSnapshot) NewIter(lower, upper []byte) (store.Iter, error) {
	return s.Snapshot.NewIter(engine.IterOptions{Lower: lower, Upper: upper})
}

func (e realEngine) Tail(from ikey.Seq) (store.Tail, error) {
	t, err := e.Engine.Tail(from)
	if errors.Is(err, engine.ErrOutOfRange) {
		err = fmt.Errorf("%w: %w", store.ErrOutOfRange, err)
	}
	return realTail{t}, err
}

type realTail struct{ *engine.Tail }

func (t realTail) Next(ctx context.Context) (store.TailChange, error) {
	c, err := t.Tail.Next(ctx)
	return store.TailChange(c), err
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// realWorld is a server over an engine on the disk, reached through TCP.
type realWorld struct {
	t      *testing.T
	engine *engine.Engine
	server *Server
	addr   string

	mu    sync.Mutex
	ended map[string]int // calls by method and code
}

func startReal(t *testing.T, stall time.Duration) *realWorld {
	t.Helper()
	e, err := engine.Open(t.TempDir(), engine.Options{
		FS: vfs.OS, Clock: systemClock{}, Rand: rand.New(rand.NewPCG(1, 2)), MaxBatchBytes: 48 << 20, ReserveBytes: -1,
		LogSegmentBytes: 4 << 20, BlockCacheBytes: 8 << 20, RowCacheBytes: 1 << 20, DeleteBytesPerSecond: -1,
		Jobs: jobs.Options{Mode: jobs.ModeAlways, LocalRate: -1},
	})
	require.NoError(t, err)
	st, err := store.New(realEngine{e}, store.Options{NodeID: "n1"})
	require.NoError(t, err)
	w := &realWorld{t: t, engine: e, ended: map[string]int{}}
	w.server = New(Node{ID: "n1", State: func() (State, string) { return StateServing, "" }})
	w.server.stall = stall
	w.server.Open(Backend{Store: st, Engine: e})
	g := w.server.GRPC(Options{
		Log: slog.New(slog.DiscardHandler), Timeout: time.Minute, MaxInFlight: 1000, Observe: w.observe,
	}, health.NewServer(), grpc.WaitForHandlers(true))
	w.server.RegisterStorage(g)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	w.addr = listener.Addr().String()
	t.Cleanup(func() {
		g.Stop()
		require.NoError(t, <-served)
		require.NoError(t, e.Close())
	})
	return w
}

func (w *realWorld) observe(c Call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended[c.Method+" "+c.Code.String()]++
}

func (w *realWorld) count(method string, code codes.Code) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended[method+" "+code.String()]
}

func (w *realWorld) dial() storagev1.StorageServiceClient {
	w.t.Helper()
	// Windows of a fixed size: what this side buffers is in the heap that is measured.
	conn, err := grpc.NewClient(w.addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(16<<20))
	require.NoError(w.t, err)
	w.t.Cleanup(func() { conn.Close() })
	return storagev1.NewStorageServiceClient(conn)
}

func (w *realWorld) put(c storagev1.StorageServiceClient, key, value string) {
	w.t.Helper()
	_, err := c.Write(w.t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: key, Value: []byte(value)})
	require.NoError(w.t, err)
}

// heap returns the bytes that are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC() // pools take two
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Readers that stop reading, of every kind of stream, must not hold more than a window's worth of memory on
// the node, nor its goroutines, snapshots or commit log for ever; and it goes on serving the others. The
// long form waits the whole minute that a node has patience.
func TestReadersThatStopHoldLittleAndAreGivenUp(t *testing.T) {
	noLeak(t)
	stall := time.Second
	if os.Getenv("PAIRDB_LONG") != "" {
		stall = streamStall
	}
	const size, count = 32 << 10, 512 // 16 MiB, more than any window
	w := startReal(t, stall)
	client := w.dial()
	ctx, cancel := context.WithCancel(t.Context())
	feed, err := client.Watch(ctx, &storagev1.WatchRequest{Tenant: "t"})
	require.NoError(t, err)
	first, err := feed.Recv()
	require.NoError(t, err)
	cancel()
	value := strings.Repeat("v", size)
	for i := range count {
		w.put(client, fmt.Sprintf("k%04d", i), value)
	}
	var reads []*storagev1.PipelineOp
	for i := range 1000 {
		reads = append(reads, readOp(uint64(i), "k0000"))
	}
	for _, c := range []struct {
		name, method string
		readers      int
		each         int64 // bytes of heap that one may hold
		open         func(t *testing.T, c storagev1.StorageServiceClient) receiver
	}{
		// The message that waits (once decoded, once encoded), and what gRPC buffers of it: 64 KiB each.
		{"StreamKeys", storagev1.StorageService_StreamKeys_FullMethodName, 20, 640 << 10, func(t *testing.T, c storagev1.StorageServiceClient) receiver {
			s, err := c.StreamKeys(t.Context(), &storagev1.StreamKeysRequest{Tenant: "t"})
			require.NoError(t, err)
			return s.RecvMsg
		}},
		// The same, and the buffer of the commit log's reader.
		{"Watch", storagev1.StorageService_Watch_FullMethodName, 20, 1 << 20, func(t *testing.T, c storagev1.StorageServiceClient) receiver {
			s, err := c.Watch(t.Context(), &storagev1.WatchRequest{Tenant: "t", AfterSequence: first.GetSequence()})
			require.NoError(t, err)
			return s.RecvMsg
		}},
		{"Pipeline", storagev1.StorageService_Pipeline_FullMethodName, 4, maxPipelineBytes + 2<<20, func(t *testing.T, c storagev1.StorageServiceClient) receiver {
			s := pipeOf(t, c)
			require.NoError(t, s.Send(&storagev1.PipelineRequest{Tenant: "t", Ops: reads}))
			return s.RecvMsg
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			slow := w.dial()
			_, err := slow.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
			require.NoError(t, err)
			before, goroutines := heap(), runtime.NumGoroutine()
			began := time.Now()
			var stuck []receiver
			for range c.readers {
				stuck = append(stuck, c.open(t, slow))
			}
			most, served := int64(0), 0
			for w.count(c.method, codes.ResourceExhausted) < c.readers {
				require.Less(t, time.Since(began), stall+30*time.Second)
				w.put(client, "other", fmt.Sprint(served))
				r, err := client.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "other"})
				require.NoError(t, err)
				require.Equal(t, fmt.Sprint(served), string(r.GetValue()))
				served++
				most = max(most, heap()-before)
			}
			require.GreaterOrEqual(t, time.Since(began), stall)
			require.Positive(t, served)
			t.Logf("%d readers held %d KiB each at most, %d calls of others were served", c.readers, most/int64(c.readers)>>10, served)
			require.Less(t, most, int64(c.readers)*c.each+4<<20)

			for _, receive := range stuck {
				require.Equal(t, "SLOW_READER", refused(t, drained(receive)).reason)
			}
			requireGoroutines(t, goroutines)
			requireNothingHeld(t, w.engine)
		})
	}
	require.NoError(t, w.engine.Flush(t.Context()))
	require.NoError(t, w.engine.Compact(t.Context(), nil, nil, nil))
	require.Eventually(t, func() bool { return w.engine.Metrics().ObsoleteTables == 0 }, 10*time.Second, 10*time.Millisecond)
}

// receiver takes the next message of a stream.
type receiver func(any) error

// drained receives what there is and returns the end.
func drained(receive receiver) (err error) {
	for err == nil {
		err = receive(new(storagev1.RepairResponse)) // its fields do not matter
	}
	return err
}

func pipeOf(t *testing.T, c storagev1.StorageServiceClient) pipelineClient {
	t.Helper()
	s, err := c.Pipeline(t.Context())
	require.NoError(t, err)
	return s
}

// requireGoroutines requires that no more than before are left soon.
func requireGoroutines(t *testing.T, before int) {
	t.Helper()
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 }, // and the one that looks
		10*time.Second, 10*time.Millisecond, "goroutines are left")
}

// requireNothingHeld requires that no call keeps memtables, tables or log of the engine.
func requireNothingHeld(t *testing.T, e *engine.Engine) {
	t.Helper()
	require.Eventually(t, func() bool {
		m := e.Metrics().Reads
		return m.Snapshots == 0 && m.Iterators == 0
	}, 10*time.Second, 10*time.Millisecond)
}

// Streams whose clients cancel, or whose deadline is over, in the midst of a message must end at once and
// hold nothing; one that never reads a small answer holds nothing either.
func TestStreamsOfClientsThatGoAwayHoldNothing(t *testing.T) {
	noLeak(t)
	w := startReal(t, time.Minute)
	client := w.dial()
	feed, err := client.Watch(t.Context(), &storagev1.WatchRequest{Tenant: "t"})
	require.NoError(t, err)
	first, err := feed.Recv()
	require.NoError(t, err)
	for i := range 64 {
		w.put(client, fmt.Sprint("k", i), strings.Repeat("v", 64<<10))
	}
	whole := &storagev1.StreamKeysRequest{Tenant: "t"}
	after := &storagev1.WatchRequest{Tenant: "t", AfterSequence: first.GetSequence()}
	for round, end := range []struct {
		context func() (context.Context, context.CancelFunc)
		code    codes.Code
	}{
		{func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) }, codes.Canceled},
		{func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 100*time.Millisecond)
		}, codes.DeadlineExceeded},
	} {
		goroutines := runtime.NumGoroutine()
		ctx, cancel := end.context()
		keys, err := client.StreamKeys(ctx, whole)
		require.NoError(t, err)
		watch, err := client.Watch(ctx, after)
		require.NoError(t, err)
		idle, err := client.Watch(ctx, &storagev1.WatchRequest{Tenant: "nobody"})
		require.NoError(t, err)
		pipeline, err := client.Pipeline(ctx)
		require.NoError(t, err)
		if end.code == codes.Canceled {
			_, err = keys.Recv()
			require.NoError(t, err)
			_, err = watch.Recv()
			require.NoError(t, err)
			_, err = idle.Recv()
			require.NoError(t, err)
			require.NoError(t, pipeline.Send(&storagev1.PipelineRequest{Tenant: "t", Ops: []*storagev1.PipelineOp{readOp(1, "k1")}}))
			cancel()
		}
		<-ctx.Done()
		for _, receive := range []receiver{keys.RecvMsg, watch.RecvMsg, idle.RecvMsg, pipeline.RecvMsg} {
			err := drained(receive)
			require.Equal(t, end.code, status.Code(err), "%v", err)
		}
		cancel()
		for method, n := range map[string]int{
			storagev1.StorageService_StreamKeys_FullMethodName: 1, storagev1.StorageService_Watch_FullMethodName: 2, storagev1.StorageService_Pipeline_FullMethodName: 1,
		} { // which of the two the node sees first is open
			require.Eventually(t, func() bool {
				return w.count(method, codes.Canceled)+w.count(method, codes.DeadlineExceeded) == n*(round+1)
			}, 10*time.Second, time.Millisecond, "%s", method)
		}
		requireGoroutines(t, goroutines)
		requireNothingHeld(t, w.engine)
	}

	// Half closes, in front of anything and behind it; nothing can be sent after one.
	empty := pipeOf(t, client)
	require.NoError(t, empty.CloseSend())
	_, err = empty.Recv()
	require.ErrorIs(t, err, io.EOF)
	some := pipeOf(t, client)
	require.NoError(t, some.Send(&storagev1.PipelineRequest{Tenant: "t", Ops: []*storagev1.PipelineOp{putOp(1, "a", "v")}}))
	require.NoError(t, some.CloseSend())
	require.NotNil(t, take(t, some, 1)[1].GetWrite())
	_, err = some.Recv()
	require.ErrorIs(t, err, io.EOF)
	late := pipeOf(t, client)
	require.NoError(t, late.CloseSend())
	require.Error(t, late.Send(&storagev1.PipelineRequest{Tenant: "t", Ops: []*storagev1.PipelineOp{putOp(2, "b", "v")}}))
	require.Error(t, drained(late.RecvMsg))
	r, err := client.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "b"})
	require.NoError(t, err)
	require.False(t, r.GetFound())
}

// A node that stops must not wait for a reader that takes nothing.
func TestStuckReadersDoNotHoldUpAShutdown(t *testing.T) {
	noLeak(t)
	w := startReal(t, time.Hour)
	client := w.dial()
	for i := range 64 {
		w.put(client, fmt.Sprint("k", i), strings.Repeat("v", 64<<10))
	}
	keys, err := client.StreamKeys(t.Context(), &storagev1.StreamKeysRequest{Tenant: "t"})
	require.NoError(t, err)
	watch, err := client.Watch(t.Context(), &storagev1.WatchRequest{Tenant: "nobody"})
	require.NoError(t, err)
	_, err = watch.Recv()
	require.NoError(t, err)
	require.Eventually(t, func() bool { return w.engine.Metrics().Reads.Snapshots == 1 }, 10*time.Second, time.Millisecond)
	w.server.Leave()
	for _, receive := range []receiver{keys.RecvMsg, watch.RecvMsg} {
		require.Equal(t, "STOPPING", refused(t, drained(receive)).reason)
	}
	requireNothingHeld(t, w.engine)
}

// The feed over the wire is that of the store: kinds, sequences, sizes, refusals with their facts.
func TestWatchOverTheWire(t *testing.T) {
	noLeak(t)
	w := startReal(t, time.Minute)
	client := w.dial()
	ctx, letGo := context.WithCancel(t.Context())
	defer letGo()
	feed, err := client.Watch(ctx, &storagev1.WatchRequest{Tenant: "t", Range: &datav1.KeyRange{Start: "b", End: "y"}})
	require.NoError(t, err)
	first, err := feed.Recv()
	require.NoError(t, err)
	require.Empty(t, first.GetChanges())
	require.Positive(t, first.GetSequence())

	w.put(client, "a", "not in the range")
	w.put(client, "b", "1")
	_, err = client.Repair(t.Context(), &storagev1.RepairRequest{Record: &datav1.Record{Tenant: "t", Key: "c", Siblings: []*datav1.Sibling{
		{Dot: &datav1.ClockEntry{NodeId: "m", Counter: 1}, Value: []byte("r"), Timestamp: 5}}}})
	require.NoError(t, err)
	_, err = client.Delete(t.Context(), &storagev1.DeleteRequest{Tenant: "t", Key: "b"})
	require.NoError(t, err)
	var drop engine.Batch
	drop.DeleteRange(ikey.TenantBounds("t"))
	require.NoError(t, w.engine.Apply(&drop, engine.SyncDefault))
	w.put(client, "large", strings.Repeat("v", 1<<20))
	for i := range 100 {
		w.put(client, fmt.Sprint("many", i), strings.Repeat("v", 2000))
	}
	var got []*storagev1.Change
	for len(got) < 105 {
		m, err := feed.Recv()
		require.NoError(t, err)
		got = append(got, m.GetChanges()...)
		require.True(t, proto.Size(m) < 64<<10 || len(m.GetChanges()) == 1)
		require.GreaterOrEqual(t, m.GetSequence(), got[len(got)-1].GetSequence())
	}
	require.Equal(t, "b", got[0].GetRecord().GetKey())
	require.Equal(t, "t", got[0].GetRecord().GetTenant())
	require.Equal(t, "r", string(got[1].GetJoined().GetSiblings()[0].GetValue()))
	require.True(t, got[2].GetRecord().GetSiblings()[0].GetTombstone())
	require.True(t, proto.Equal(&datav1.KeyRange{Start: "b", End: "y"}, got[3].GetRemoved()))
	require.Len(t, got[4].GetRecord().GetSiblings()[0].GetValue(), 1<<20)

	ahead, err := client.Watch(t.Context(), &storagev1.WatchRequest{Tenant: "t", AfterSequence: 1 << 50})
	require.NoError(t, err)
	_, err = ahead.Recv()
	require.Equal(t, refusal{code: codes.OutOfRange, reason: "SEQUENCE_AHEAD"}, refused(t, err))
	require.Equal(t, fmt.Sprint(got[len(got)-1].GetSequence()), facts(err)["newest_sequence"])
	require.Equal(t, "false", facts(err)["retryable"])

	// When nobody holds the log any more, what is flushed goes with the next flush, and who comes back late is
	// told.
	letGo()
	large := &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: make([]byte, 6<<20)}} // a segment and more
	_, err = client.BatchWrite(t.Context(), &storagev1.BatchWriteRequest{Tenant: "u", Ops: []*storagev1.BatchOp{{Key: "k", Op: large}, {Key: "l", Op: large}}})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		w.put(client, "k", "v")
		require.NoError(t, w.engine.Flush(t.Context()))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		late, err := client.Watch(ctx, &storagev1.WatchRequest{Tenant: "t", AfterSequence: first.GetSequence()})
		require.NoError(t, err)
		if _, err = late.Recv(); err == nil {
			return false
		}
		require.Equal(t, refusal{code: codes.OutOfRange, reason: "SEQUENCE_TOO_OLD"}, refused(t, err))
		oldest, err := strconv.ParseUint(facts(err)["oldest_sequence"], 10, 64)
		require.NoError(t, err)
		require.Greater(t, oldest, first.GetSequence()+1)
		return true
	}, 10*time.Second, 10*time.Millisecond)

	for _, r := range []*storagev1.WatchRequest{{}, {Tenant: "_system"}, {Tenant: "t", Range: &datav1.KeyRange{Start: "b", End: "a"}}} {
		bad, err := client.Watch(t.Context(), r)
		require.NoError(t, err)
		_, err = bad.Recv()
		require.Equal(t, codes.InvalidArgument, refused(t, err).code)
	}
}

// A client that sends on after its half close breaks the protocol: nothing of that may be applied, and the
// connection serves its other calls.
func TestWhatComesAfterAHalfCloseIsNotApplied(t *testing.T) {
	noLeak(t)
	w := startReal(t, time.Minute)
	conn, err := net.Dial("tcp", w.addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = conn.Write([]byte(http2.ClientPreface))
	require.NoError(t, err)
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	require.NoError(t, framer.WriteSettings())
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	begin := func(stream uint32) {
		block.Reset()
		for _, f := range [][2]string{
			{":method", "POST"}, {":scheme", "http"}, {":path", storagev1.StorageService_Pipeline_FullMethodName}, {":authority", w.addr},
			{"content-type", "application/grpc"}, {"te", "trailers"},
		} {
			require.NoError(t, encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
		}
		require.NoError(t, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}))
	}
	put := func(stream uint32, key string, end bool) {
		m := marshalled(t, &storagev1.PipelineRequest{Tenant: "t", Ops: []*storagev1.PipelineOp{putOp(1, key, "v")}})
		data := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
		require.NoError(t, framer.WriteData(stream, end, data))
	}
	// ended returns how a call ended, when its trailers come; of another one that may have ended with a reset.
	ended := func(stream uint32) string {
		for {
			frame, err := framer.ReadFrame()
			require.NoError(t, err)
			switch f := frame.(type) {
			case *http2.SettingsFrame:
				if !f.IsAck() {
					require.NoError(t, framer.WriteSettingsAck())
				}
			case *http2.MetaHeadersFrame:
				if f.StreamID != stream || !f.StreamEnded() {
					continue
				}
				for _, h := range f.Fields {
					if h.Name == "grpc-status" {
						return h.Value
					}
				}
			}
		}
	}
	begin(1)
	put(1, "a", true)
	put(1, "b", false)
	put(1, "c", true)
	begin(3)
	put(3, "d", true)
	require.Equal(t, "0", ended(3))
	client := w.dial()
	for key, found := range map[string]bool{"b": false, "c": false, "d": true} {
		r, err := client.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: key})
		require.NoError(t, err)
		require.Equal(t, found, r.GetFound(), key)
	}
}
