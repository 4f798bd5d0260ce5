package server

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/token"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// storageService serves the keys of tenants.
type storageService struct {
	storagev1.UnimplementedStorageServiceServer
	s *Server
}

func (g storageService) Write(ctx context.Context, r *storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
	b, err := g.open(ctx, r.GetTenant(), token.Write)
	if err != nil {
		return nil, err
	}
	res, err := b.Store.Write(ctx, store.WriteRequest{
		Tenant: r.GetTenant(), Key: r.GetKey(), Value: r.GetValue(),
		Causality: causality(r.GetClock(), r.GetContext()), TTL: r.GetTtlSeconds(),
		Condition: conditionFromProto(r.GetCondition()), IdempotencyKey: r.GetIdempotencyKey(),
	})
	if err != nil {
		return nil, err
	}
	b.Hot.Write(r.GetTenant(), r.GetKey(), len(r.GetValue()))
	return &storagev1.WriteResponse{
		Outcome: outcomeToProto(res.Outcome), Clock: clockToProto(res.Clock), Siblings: uint32(res.Siblings), Replayed: res.Replayed,
	}, nil
}

func (g storageService) Delete(ctx context.Context, r *storagev1.DeleteRequest) (*storagev1.DeleteResponse, error) {
	b, err := g.open(ctx, r.GetTenant(), token.Write)
	if err != nil {
		return nil, err
	}
	res, err := b.Store.Delete(ctx, store.DeleteRequest{
		Tenant: r.GetTenant(), Key: r.GetKey(), Causality: causality(r.GetClock(), r.GetContext()),
		Condition: conditionFromProto(r.GetCondition()), IdempotencyKey: r.GetIdempotencyKey(),
	})
	if err != nil {
		return nil, err
	}
	b.Hot.Write(r.GetTenant(), r.GetKey(), 0)
	return &storagev1.DeleteResponse{
		Outcome: outcomeToProto(res.Outcome), Clock: clockToProto(res.Clock), Siblings: uint32(res.Siblings), Replayed: res.Replayed,
	}, nil
}

func (g storageService) Repair(ctx context.Context, r *storagev1.RepairRequest) (*storagev1.RepairResponse, error) {
	b, err := g.open(ctx, r.GetRecord().GetTenant(), token.Write)
	if err != nil {
		return nil, err
	}
	rec := r.GetRecord()
	err = b.Store.Repair(ctx, store.RepairRequest{
		Tenant: rec.GetTenant(), Key: rec.GetKey(), Siblings: siblingsFromProto(rec.GetSiblings()),
	})
	if err != nil {
		return nil, err
	}
	return &storagev1.RepairResponse{}, nil
}

func (g storageService) BatchWrite(ctx context.Context, r *storagev1.BatchWriteRequest) (*storagev1.BatchWriteResponse, error) {
	b, err := g.open(ctx, r.GetTenant(), token.Write)
	if err != nil {
		return nil, err
	}
	// Before anything is allocated for them.
	if n := len(r.GetOps()); n > store.MaxBatchOps {
		return nil, fmt.Errorf("%w: batch has %d operations, at most %d allowed", errLimit, n, store.MaxBatchOps)
	}
	ops := make([]store.Op, len(r.GetOps()))
	for i, op := range r.GetOps() {
		ops[i] = opFromProto(op)
	}
	results, err := b.Store.BatchWrite(ctx, store.BatchWriteRequest{
		Tenant: r.GetTenant(), Ops: ops, Atomic: r.GetAtomic(), OmitClocks: r.GetOmitClocks(),
	})
	if err != nil {
		return nil, err
	}
	resp := &storagev1.BatchWriteResponse{Results: make([]*storagev1.BatchWriteResult, len(results))}
	block := make([]storagev1.BatchWriteResult, len(results))
	for i := range results {
		res, out := &results[i], &block[i]
		resp.Results[i] = out
		if res.Err != nil {
			out.Error = itemError(res.Err)
			continue
		}
		out.Outcome, out.Clock = outcomeToProto(res.Outcome), clockToProto(res.Clock)
		b.Hot.Write(r.GetTenant(), ops[i].Key, len(ops[i].Value))
	}
	return resp, nil
}

func (g storageService) GetKeyRange(ctx context.Context, r *storagev1.GetKeyRangeRequest) (*storagev1.GetKeyRangeResponse, error) {
	b, err := g.open(ctx, r.GetTenant(), token.Read)
	if err != nil {
		return nil, err
	}
	page, err := b.Store.KeyRange(ctx, store.KeyRangeRequest{
		Tenant: r.GetTenant(), Start: r.GetRange().GetStart(), End: r.GetRange().GetEnd(),
		MaxKeys: int(r.GetMaxKeys()), PageToken: r.GetPageToken(), IncludeClocks: r.GetIncludeClocks(),
	})
	if err != nil {
		return nil, err
	}
	resp := &storagev1.GetKeyRangeResponse{Keys: make([]*storagev1.KeyEntry, len(page.Keys)), NextPageToken: page.Next}
	block := make([]storagev1.KeyEntry, len(page.Keys))
	for i, k := range page.Keys {
		block[i].Key, block[i].Clock = k.Key, clockToProto(k.Clock)
		resp.Keys[i] = &block[i]
	}
	return resp, nil
}

func (g storageService) StreamKeys(r *storagev1.StreamKeysRequest, stream grpc.ServerStreamingServer[storagev1.StreamKeysResponse]) error {
	b, ctx, end, err := g.openStream(stream.Context(), r.GetTenant())
	if err != nil {
		return err
	}
	defer end()
	hashes := r.GetHashRanges().GetRanges()
	hashes = hashes[:min(len(hashes), store.MaxHashRanges+1)] // the store refuses the one too many
	if _, ok := r.GetWhat().(*storagev1.StreamKeysRequest_HashRanges); ok && len(hashes) == 0 {
		return fmt.Errorf("%w: no hash range is given", errRange)
	}
	ranges := make([]ring.HashRange, len(hashes))
	for i, h := range hashes {
		ranges[i] = ring.HashRange{Start: h.GetStart(), End: h.GetEnd()}
	}
	out := sender[storagev1.StreamKeysResponse]{stream: stream, limit: g.s.stall}
	return whileGranted(ctx, b.Store.Stream(ctx, store.StreamRequest{
		Tenant: r.GetTenant(), Start: r.GetRange().GetStart(), End: r.GetRange().GetEnd(), HashRanges: ranges,
		Cursor: r.GetCursor(), IncludeTombstones: r.GetIncludeTombstones(),
	}, func(c store.Chunk) error {
		msg := &storagev1.StreamKeysResponse{Cursor: c.Cursor, Sequence: c.Sequence, Records: make([]*datav1.Record, len(c.Records))}
		for i, rec := range c.Records {
			msg.Records[i] = recordToProto(r.GetTenant(), rec.Key, rec.Siblings)
		}
		return out.send(msg)
	}))
}

func (g storageService) Watch(r *storagev1.WatchRequest, stream grpc.ServerStreamingServer[storagev1.WatchResponse]) error {
	b, ctx, end, err := g.openStream(stream.Context(), r.GetTenant())
	if err != nil {
		return err
	}
	defer end()
	out := sender[storagev1.WatchResponse]{stream: stream, limit: g.s.stall}
	return whileGranted(ctx, b.Store.Watch(ctx, store.WatchRequest{
		Tenant: r.GetTenant(), Start: r.GetRange().GetStart(), End: r.GetRange().GetEnd(), After: r.GetAfterSequence(),
	}, func(c store.Changes) error {
		msg := &storagev1.WatchResponse{Sequence: c.Sequence, Changes: make([]*storagev1.Change, len(c.Changes))}
		for i := range c.Changes {
			msg.Changes[i] = changeToProto(r.GetTenant(), &c.Changes[i])
		}
		return out.send(msg)
	}))
}

// sender sends the messages of a stream, and gives up a reader that takes none for so long: its
// snapshot, or its place in the commit log, keeps files and memory of the node.
type sender[M any] struct {
	stream grpc.ServerStreamingServer[M]
	limit  time.Duration
}

// send returns when the transport has taken the messages, which it does as far as the reader's window
// goes. After it returned errSlowReader the handler must end.
func (s sender[M]) send(messages ...*M) error {
	sent := make(chan error, 1)
	go func() { sent <- s.sendAll(messages) }() // ends with the stream, at the latest
	timer := time.NewTimer(s.limit)
	defer timer.Stop()
	select {
	case err := <-sent:
		return err
	case <-s.stream.Context().Done(): // also of a node that stops, which the transport knows nothing of
		return s.stream.Context().Err()
	case <-timer.C:
		return fmt.Errorf("%w: no message was taken for %s; resume after the last one", errSlowReader, s.limit)
	}
}

func (s sender[M]) sendAll(messages []*M) error {
	for _, m := range messages {
		if err := s.stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}
