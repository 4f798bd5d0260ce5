package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// valueBytes is the size of values, keyBytes that of keys.
const (
	valueBytes = 100
	keyBytes   = 24
	batchSize  = 64
)

// echo is the node without a node: the same service, messages and codec, the same shape of answers,
// and nothing behind it.
type echo struct {
	storagev1.UnimplementedStorageServiceServer
}

// The answers are made once: an echo allocates nothing of its own.
var (
	echoClock = &datav1.VectorClock{Entries: []*datav1.ClockEntry{{NodeId: "bench/0123456789", Counter: 12_345}}}
	echoRead  = &storagev1.ReadResponse{Found: true, Value: make([]byte, valueBytes), Clock: echoClock, Timestamp: 1 << 60}
	echoWrite = &storagev1.WriteResponse{Outcome: storagev1.Outcome_OUTCOME_APPLIED, Clock: echoClock, Siblings: 1}
	echoMany  = func() *storagev1.BatchReadResponse {
		r := &storagev1.BatchReadResponse{}
		for range batchSize {
			r.Results = append(r.Results, &storagev1.BatchReadResult{Response: echoRead})
		}
		return r
	}()
	echoManyWritten = func() *storagev1.BatchWriteResponse {
		r := &storagev1.BatchWriteResponse{}
		for range batchSize {
			r.Results = append(r.Results, &storagev1.BatchWriteResult{Outcome: storagev1.Outcome_OUTCOME_APPLIED, Clock: echoClock})
		}
		return r
	}()
)

func (echo) Read(context.Context, *storagev1.ReadRequest) (*storagev1.ReadResponse, error) {
	return echoRead, nil
}

func (echo) Write(context.Context, *storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
	return echoWrite, nil
}

func (echo) BatchRead(context.Context, *storagev1.BatchReadRequest) (*storagev1.BatchReadResponse, error) {
	return echoMany, nil
}

func (echo) BatchWrite(context.Context, *storagev1.BatchWriteRequest) (*storagev1.BatchWriteResponse, error) {
	return echoManyWritten, nil
}

func (echo) Pipeline(s grpc.BidiStreamingServer[storagev1.PipelineRequest, storagev1.PipelineResponse]) error {
	result := &storagev1.PipelineResult{Result: &storagev1.PipelineResult_Read{Read: echoRead}}
	resp := &storagev1.PipelineResponse{Results: []*storagev1.PipelineResult{result}}
	for {
		if _, err := s.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := s.Send(resp); err != nil {
			return err
		}
	}
}

func serveEcho() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	// Workers as the node has them: they help the echo as well.
	s := grpc.NewServer(grpc.NumStreamWorkers(8))
	storagev1.RegisterStorageServiceServer(s, echo{})
	fmt.Println(l.Addr())
	return s.Serve(l)
}

// serveEtcd runs one etcd with its data in dir, as durable as it comes.
func serveEtcd(dir string) error {
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel = dir, "error"
	var urls [2]url.URL
	for i := range urls {
		addr, err := freeAddr()
		if err != nil {
			return err
		}
		urls[i] = url.URL{Scheme: "http", Host: addr}
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = urls[:1], urls[:1]
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = urls[1:], urls[1:]
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer e.Close()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return err
	}
	fmt.Println(urls[0].Host)
	return <-e.Err()
}
