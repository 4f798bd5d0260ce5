package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// benchServer serves a map over loopback TCP: what is measured is the wire and what each call
// passes, with client and server on the same processors.
func benchServer(b *testing.B, more ...grpc.ServerOption) *grpc.ClientConn {
	b.Helper()
	return benchServerWith(b, Options{}, more...)
}

// benchServerWith is benchServer with some options of its own.
func benchServerWith(b *testing.B, o Options, more ...grpc.ServerOption) *grpc.ClientConn {
	b.Helper()
	engine := newFake()
	st, err := store.New(engine, store.Options{NodeID: "n1"})
	require.NoError(b, err)
	s := New(Node{ID: "n1", State: func() (State, string) { return StateServing, "" }})
	s.Open(Backend{Store: st, Engine: engine})
	o.Log, o.Timeout, o.MaxInFlight, o.Observe = slog.New(slog.DiscardHandler), time.Minute, 4096, func(Call) {}
	g := s.GRPC(o, health.NewServer(), more...)
	s.RegisterStorage(g)
	s.RegisterContract(g)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	go g.Serve(listener) //nolint:errcheck // ends with Stop
	b.Cleanup(g.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(b, err)
	b.Cleanup(func() { conn.Close() })
	_, err = storagev1.NewStorageServiceClient(conn).Write(b.Context(), &storagev1.WriteRequest{Tenant: "t", Key: "k", Value: make([]byte, 100)})
	require.NoError(b, err)
	return conn
}

// inFlight runs b.N calls with n in flight.
func inFlight(b *testing.B, n int, call func(context.Context) error) {
	b.Helper()
	ctx := b.Context()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range n {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := call(ctx); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// BenchmarkUnary compares a read with the health check, which is as empty as a call can be, for
// several numbers of stream workers.
func BenchmarkUnary(b *testing.B) {
	for _, workers := range []uint32{0, 2, 8} {
		conn := benchServer(b, grpc.NumStreamWorkers(workers))
		read, check := storagev1.NewStorageServiceClient(conn), healthv1.NewHealthClient(conn)
		for _, n := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("call=read/workers=%d/inflight=%d", workers, n), func(b *testing.B) {
				inFlight(b, n, func(ctx context.Context) error {
					_, err := read.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k"})
					return err
				})
			})
			b.Run(fmt.Sprintf("call=empty/workers=%d/inflight=%d", workers, n), func(b *testing.B) {
				inFlight(b, n, func(ctx context.Context) error {
					_, err := check.Check(ctx, &healthv1.HealthCheckRequest{})
					return err
				})
			})
		}
	}
}

// BenchmarkContractRead compares the reads of an existing coordinator, of which half are misses, with the
// same read through StorageService.
func BenchmarkContractRead(b *testing.B) {
	conn := benchServer(b)
	native, contract := storagev1.NewStorageServiceClient(conn), storagenodev1.NewStorageNodeServiceClient(conn)
	for name, key := range map[string]string{"hit": "k", "miss": "absent"} {
		b.Run("native/"+name, func(b *testing.B) {
			inFlight(b, 16, func(ctx context.Context) error {
				_, err := native.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: key})
				return err
			})
		})
		b.Run("contract/"+name, func(b *testing.B) {
			inFlight(b, 16, func(ctx context.Context) error {
				_, err := contract.Read(ctx, &storagenodev1.ReadRequest{TenantId: "t", Key: key})
				return err
			})
		})
	}
}

// BenchmarkPipeline is what an operation costs over a stream, with many in a message.
func BenchmarkPipeline(b *testing.B) {
	for _, kind := range []string{"read", "write"} {
		b.Run(kind, func(b *testing.B) {
			stream, err := storagev1.NewStorageServiceClient(benchServer(b)).Pipeline(b.Context())
			require.NoError(b, err)
			const ops, inFlight = 100, 20
			request := &storagev1.PipelineRequest{Tenant: "t", OmitClocks: true}
			for i := range ops {
				op := readOp(uint64(i), "k")
				if kind == "write" {
					op = putOp(uint64(i), fmt.Sprint("k", i), "value")
				}
				request.Ops = append(request.Ops, op)
			}
			outstanding := 0
			receive := func(until int) {
				for outstanding > until {
					m, err := stream.Recv()
					require.NoError(b, err)
					outstanding -= len(m.GetResults())
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, stream.Send(request))
				outstanding += ops
				receive(ops * inFlight)
			}
			receive(0)
			b.ReportMetric(float64(b.N*ops)/b.Elapsed().Seconds(), "ops/s")
		})
	}
}
