package server

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/token"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// This file answers Read and BatchRead without a message in between: the answer is encoded from what
// the store returned. The generated types would cost seven allocations a key, and the reflection
// that encodes them as much again.

// Encoded is the answer to a read, as it goes over the wire.
type Encoded struct {
	// ValueBytes is how many bytes of values are in it.
	ValueBytes int
	// Reasons are those of the keys of a batch that could not be read.
	Reasons []string

	answers answers
}

// RegisterStorage registers the service for clients and coordinators.
func (s *Server) RegisterStorage(r grpc.ServiceRegistrar) {
	desc := storagev1.StorageService_ServiceDesc
	desc.Methods = slices.Clone(desc.Methods)
	for i := range desc.Methods {
		switch m := &desc.Methods[i]; m.MethodName {
		case "Read":
			m.Handler = encodedHandler(storagev1.StorageService_Read_FullMethodName, storageService.read)
		case "BatchRead":
			m.Handler = encodedHandler(storagev1.StorageService_BatchRead_FullMethodName, storageService.batchRead)
		}
	}
	r.RegisterService(&desc, storageService{s: s})
}

// encodedHandler is what the generated code makes of a method, for one whose answer is encoded.
func encodedHandler[Req any](method string, f func(storageService, context.Context, *Req) (*Encoded, error)) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		in := new(Req)
		if err := decode(in); err != nil {
			return nil, err
		}
		info := &grpc.UnaryServerInfo{Server: srv, FullMethod: method}
		return interceptor(ctx, in, info, func(ctx context.Context, req any) (any, error) {
			return f(srv.(storageService), ctx, req.(*Req))
		})
	}
}

func (g storageService) read(ctx context.Context, r *storagev1.ReadRequest) (*Encoded, error) {
	b, err := g.open(ctx, r.GetTenant(), token.Read)
	if err != nil {
		return nil, err
	}
	res, err := b.Store.Read(ctx, r.GetTenant(), r.GetKey(), nil)
	if err != nil {
		return nil, err
	}
	b.Hot.Read(r.GetTenant(), r.GetKey(), len(res.Value))
	out := &Encoded{ValueBytes: len(res.Value)}
	size := sizeRead(&res)
	out.answers.buf = answersMemory.Get(size)
	*out.answers.buf, err = appendRead((*out.answers.buf)[:0], &res)
	return out, err
}

func (g storageService) batchRead(ctx context.Context, r *storagev1.BatchReadRequest) (*Encoded, error) {
	b, err := g.open(ctx, r.GetTenant(), token.Read)
	if err != nil {
		return nil, err
	}
	results, err := b.Store.BatchRead(ctx, r.GetTenant(), r.GetKeys())
	if err != nil {
		return nil, err
	}
	total := 0
	for i := range results {
		total += sizeRead(&results[i].ReadResult) + maxItemHead
	}
	out := &Encoded{answers: answers{buf: answersMemory.Get(total)}}
	enc := (*out.answers.buf)[:0]
	for i := range results {
		res := &results[i]
		enc = append(enc, batchResults<<3|byte(protowire.BytesType))
		if res.Err != nil {
			item := &storagev1.BatchReadResult{Error: itemError(res.Err)}
			out.Reasons = append(out.Reasons, item.GetError().GetReason())
			enc = protowire.AppendVarint(enc, uint64(proto.Size(item)))
			if enc, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(enc, item); err != nil {
				return nil, fmt.Errorf("%w: %w", errInternal, err)
			}
			continue
		}
		size := sizeRead(&res.ReadResult)
		enc = protowire.AppendVarint(enc, uint64(1+protowire.SizeBytes(size)))
		enc = append(enc, batchResponse<<3|byte(protowire.BytesType))
		if enc, err = appendRead(protowire.AppendVarint(enc, uint64(size)), &res.ReadResult); err != nil {
			return nil, err
		}
		out.ValueBytes += len(res.Value)
		b.Hot.Read(r.GetTenant(), r.GetKeys()[i], len(res.Value))
	}
	*out.answers.buf = enc
	return out, nil
}

// Field numbers of BatchReadResponse and BatchReadResult.
const batchResults, batchResponse = 1, 1

// maxItemHead is the most that stands in front of an answer within a batch: two tags and lengths.
const maxItemHead = 2 * (1 + 5)

// sizeRead returns the size of a ReadResponse.
func sizeRead(r *store.ReadResult) int {
	if len(r.Siblings) > 0 {
		return proto.Size(readToProto(r))
	}
	return sizeBool(r.Found) + sizeBytes(len(r.Value)) + sizeMessage(sizeClock(r.Clock), len(r.Clock) > 0) +
		sizeUint(r.Timestamp) + sizeUint(uint64(r.ExpiresAt))
}

// appendRead appends a ReadResponse.
func appendRead(b []byte, r *store.ReadResult) ([]byte, error) {
	if len(r.Siblings) > 0 {
		b, err := proto.MarshalOptions{}.MarshalAppend(b, readToProto(r))
		if err != nil {
			return b, fmt.Errorf("%w: %w", errInternal, err)
		}
		return b, nil
	}
	if r.Found {
		b = append(b, readFound<<3|byte(protowire.VarintType), 1)
	}
	if len(r.Value) > 0 {
		b = append(b, readValue<<3|byte(protowire.BytesType))
		b = protowire.AppendBytes(b, r.Value)
	}
	if len(r.Clock) > 0 {
		b = append(b, readClock<<3|byte(protowire.BytesType))
		b = appendClock(protowire.AppendVarint(b, uint64(sizeClock(r.Clock))), r.Clock)
	}
	b = appendUint(b, readTimestamp, r.Timestamp)
	return appendUint(b, readExpiresAt, uint64(r.ExpiresAt)), nil
}
