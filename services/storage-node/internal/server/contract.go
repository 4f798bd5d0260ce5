package server

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/ikey"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	// maxContractBytes is what a coordinator can receive, the default limit of gRPC clients; requests
	// are held to it too, so that what is stored through the contract can be read through it.
	maxContractBytes = 4 << 20
	// maxBatchHint is the largest batch_size of StreamKeys.
	maxBatchHint = 10_000
	// errorsKey is the metadata key with which a caller asks for status codes: errorsStatus.
	errorsKey    = "x-pairdb-errors"
	errorsStatus = "status"
)

// contractService serves existing coordinators: the store behind the contract that they speak.
type contractService struct {
	storagenodev1.UnimplementedStorageNodeServiceServer
	s *Server
}

// RegisterContract registers the service for existing coordinators.
func (s *Server) RegisterContract(r grpc.ServiceRegistrar) {
	storagenodev1.RegisterStorageNodeServiceServer(r, contractService{s: s})
}

// backend returns the backend for a request that its sender could also receive.
func (g contractService) backend(r proto.Message) (*Backend, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	if n := proto.Size(r); n > maxContractBytes {
		return nil, fmt.Errorf("%w: message has %d bytes, at most %d allowed", errMalformed, n, maxContractBytes)
	}
	return b, nil
}

func (g contractService) Write(ctx context.Context, r *storagenodev1.WriteRequest) (*storagenodev1.WriteResponse, error) {
	b, err := g.backend(r)
	if err != nil {
		return nil, err
	}
	clock, err := contractClockFromProto(r.GetVectorClock())
	if err != nil {
		return nil, err
	}
	res, err := b.Store.Write(ctx, store.WriteRequest{
		Tenant: r.GetTenantId(), Key: r.GetKey(), Value: r.GetValue(), Causality: store.Causality{Clock: clock},
		IdempotencyKey: r.GetIdempotencyKey(),
	})
	if err != nil {
		return nil, err
	}
	b.Hot.Write(r.GetTenantId(), r.GetKey(), len(r.GetValue()))
	return &storagenodev1.WriteResponse{
		Success: true, UpdatedVectorClock: contractClockToProto(res.Clock),
		Outcome: outcomeToProto(res.Outcome), SiblingCount: uint32(res.Siblings),
	}, nil
}

// Read answers for an absent key with success and without a value. Coordinators read a key on all
// replicas before they write it and take an empty value for an absent one, so half of all reads are
// of keys that are not there yet: success=false with "key not found" would make each of them a replica
// that failed, and the write of a new key a write without a quorum.
func (g contractService) Read(ctx context.Context, r *storagenodev1.ReadRequest) (*storagenodev1.ReadResponse, error) {
	b, err := g.backend(r)
	if err != nil {
		return nil, err
	}
	res, err := b.Store.Read(ctx, r.GetTenantId(), r.GetKey(), nil)
	if err != nil {
		return nil, err
	}
	b.Hot.Read(r.GetTenantId(), r.GetKey(), len(res.Value))
	resp := contractReadToProto(&res)
	size := proto.Size(resp)
	if size > maxContractBytes && len(resp.Siblings) > 0 {
		resp.Siblings = nil // such a coordinator does not look at them, and sibling_count tells others
		size = proto.Size(resp)
	}
	if size > maxContractBytes {
		return nil, errContractAnswer(r.GetKey(), size)
	}
	return resp, nil
}

// errContractAnswer says that a key can't be sent. It is no reason to call the key absent.
func errContractAnswer(key string, n int) error {
	return &store.Error{Reason: store.ReasonResponseTooLarge, Metadata: map[string]string{"key": key}, Message: fmt.Sprintf(
		"the answer for key %s has %d bytes, at most %d fit into a message of this service; pairdb.storage.v1 can read it",
		ikey.KeyHash(key), n, maxContractBytes)}
}

func (g contractService) Delete(ctx context.Context, r *storagenodev1.DeleteRequest) (*storagenodev1.DeleteResponse, error) {
	b, err := g.backend(r)
	if err != nil {
		return nil, err
	}
	clock, err := contractClockFromProto(r.GetVectorClock())
	if err != nil {
		return nil, err
	}
	res, err := b.Store.Delete(ctx, store.DeleteRequest{
		Tenant: r.GetTenantId(), Key: r.GetKey(), Causality: store.Causality{Clock: clock}, IdempotencyKey: r.GetIdempotencyKey(),
	})
	if err != nil {
		return nil, err
	}
	b.Hot.Write(r.GetTenantId(), r.GetKey(), 0)
	return &storagenodev1.DeleteResponse{
		Success: true, UpdatedVectorClock: contractClockToProto(res.Clock),
		Outcome: outcomeToProto(res.Outcome), SiblingCount: uint32(res.Siblings),
	}, nil
}

func (g contractService) Repair(ctx context.Context, r *storagenodev1.RepairRequest) (*storagenodev1.RepairResponse, error) {
	b, err := g.backend(r)
	if err != nil {
		return nil, err
	}
	sibling, err := contractSiblingFromProto(r, time.Now())
	if err != nil {
		return nil, err
	}
	if err := b.Store.Repair(ctx, store.RepairRequest{Tenant: r.GetTenantId(), Key: r.GetKey(), Siblings: sibling}); err != nil {
		return nil, err
	}
	return &storagenodev1.RepairResponse{Success: true}, nil
}

func (g contractService) StreamKeys(r *storagenodev1.StreamKeysRequest, stream grpc.ServerStreamingServer[storagenodev1.KeyValueEntry]) error {
	b, err := g.s.backend()
	if err != nil {
		return err
	}
	if n := r.GetBatchSize(); n < 0 || n > maxBatchHint {
		return fmt.Errorf("%w: batch_size is %d, 0 to %d allowed", errLimit, n, maxBatchHint)
	}
	out := sender[storagenodev1.KeyValueEntry]{stream: stream, limit: g.s.stall}
	now := time.Now().Unix()
	return b.Store.Stream(stream.Context(), store.StreamRequest{
		Tenant: r.GetTenantId(), Start: r.GetKeyRangeStart(), End: r.GetKeyRangeEnd(), IncludeTombstones: true,
	}, func(c store.Chunk) error {
		entries := make([]*storagenodev1.KeyValueEntry, 0, len(c.Records))
		var tooLarge error
		for i := 0; i < len(c.Records) && tooLarge == nil; i++ {
			entry := contractEntryToProto(r.GetTenantId(), &c.Records[i], now)
			size := proto.Size(entry)
			if size > maxContractBytes && len(entry.Siblings) > 0 {
				entry.Siblings = nil
				size = proto.Size(entry)
			}
			if size > maxContractBytes {
				tooLarge = errContractAnswer(entry.GetKey(), size)
			} else {
				entries = append(entries, entry)
			}
		}
		// What stands before such a record is sent, so that the reader knows how far the stream came.
		if err := out.send(entries...); err != nil {
			return err
		}
		return tooLarge
	})
}

func (g contractService) GetKeyRange(ctx context.Context, r *storagenodev1.GetKeyRangeRequest) (*storagenodev1.GetKeyRangeResponse, error) {
	b, err := g.backend(r)
	if err != nil {
		return nil, err
	}
	limit := int(r.GetMaxKeys())
	if limit == 0 {
		limit = store.DefaultPageKeys
	}
	ask := limit
	if limit > 0 && limit < store.MaxPageKeys {
		ask++ // the first key of the next page, if there is room to ask for it
	}
	page, err := b.Store.KeyRange(ctx, store.KeyRangeRequest{
		Tenant: r.GetTenantId(), Start: r.GetKeyRangeStart(), End: r.GetKeyRangeEnd(), MaxKeys: ask,
	})
	if err != nil {
		return nil, err
	}
	resp := &storagenodev1.GetKeyRangeResponse{}
	keys := page.Keys
	switch n := len(keys); {
	case n > limit:
		resp.HasMore, resp.NextKey, keys = true, keys[limit].Key, keys[:limit]
	case page.Next != "":
		// The next page begins where this one ended: with its last key, or with one that has no value.
		resp.HasMore, resp.NextKey = true, page.Last
		if n > 0 && keys[n-1].Key == page.Last {
			keys = keys[:n-1]
		}
	}
	resp.Keys = make([]string, len(keys))
	for i := range keys {
		resp.Keys[i] = keys[i].Key
	}
	return resp, nil
}

func (g contractService) HealthCheck(context.Context, *storagenodev1.HealthCheckRequest) (*storagenodev1.HealthCheckResponse, error) {
	return g.health(nil), nil
}

// health describes the node; cause is why it could not be asked properly, or nil.
func (g contractService) health(cause error) *storagenodev1.HealthCheckResponse {
	state, reason := g.s.node.State()
	ready, problems := g.s.node.Health()
	resp := &storagenodev1.HealthCheckResponse{Healthy: ready, Status: "unhealthy", Metrics: map[string]string{
		"node_id": g.s.node.ID, "version": g.s.node.Version, "state": state.String(),
		"uptime_seconds": strconv.FormatInt(int64(time.Since(g.s.node.Started).Seconds()), 10),
	}}
	facts := resp.Metrics
	if cause != nil {
		facts["error"] = itemError(cause).GetMessage()
	}
	switch {
	case ready && len(problems) == 0 && cause == nil:
		resp.Status = "healthy"
	case ready:
		resp.Status = "degraded"
	}
	if reason != "" {
		facts["reason"] = reason
	}
	if len(problems) > 0 {
		facts["degraded"] = strings.Join(problems, "; ")
	}
	if b := g.s.open.Load(); b != nil && state == StateServing {
		describeContract(facts, b)
	}
	for name, value := range facts {
		facts[name] = strings.ToValidUTF8(value, "?")
	}
	return resp
}

func describeContract(facts map[string]string, b *Backend) {
	m := b.Engine.Metrics()
	var tables, bytes int
	for _, l := range m.Levels {
		tables, bytes = tables+l.Tables, bytes+int(l.Bytes)
	}
	facts["write_pressure"] = writePressure(m.Pressure)
	for name, n := range map[string]uint64{
		"disk_free_bytes": m.DiskFreeBytes, "disk_total_bytes": m.DiskTotalBytes, "memtable_bytes": uint64(m.MemtableBytes),
		"commitlog_bytes": m.LogLiveBytes, "table_count": uint64(tables), "table_bytes": uint64(bytes),
		"quarantined_tables": uint64(m.Quarantined), "visible_sequence": m.VisibleSeq,
	} {
		facts[name] = strconv.FormatUint(n, 10)
	}
}

// failure implements inBand: coordinators take a status for a dead node, and on Write keep a hint for
// it that they can't deliver.
func (g contractService) failure(ctx context.Context, method string, err error) any {
	if slices.Contains(metadata.ValueFromIncomingContext(ctx, errorsKey), errorsStatus) {
		return nil
	}
	item, code := itemError(err), contractCode(lookup(err))
	switch method {
	case storagenodev1.StorageNodeService_Write_FullMethodName:
		return &storagenodev1.WriteResponse{ErrorMessage: item.GetMessage(), ErrorCode: code, Error: item}
	case storagenodev1.StorageNodeService_Read_FullMethodName:
		return &storagenodev1.ReadResponse{ErrorMessage: item.GetMessage(), ErrorCode: code, Error: item}
	case storagenodev1.StorageNodeService_Delete_FullMethodName:
		return &storagenodev1.DeleteResponse{ErrorMessage: item.GetMessage(), ErrorCode: code, Error: item}
	case storagenodev1.StorageNodeService_Repair_FullMethodName:
		return &storagenodev1.RepairResponse{ErrorMessage: item.GetMessage(), ErrorCode: code, Error: item}
	case storagenodev1.StorageNodeService_ReplicateData_FullMethodName:
		return &storagenodev1.ReplicateDataResponse{ErrorMessage: item.GetMessage(), ErrorCode: code, Error: item}
	case storagenodev1.StorageNodeService_DrainNode_FullMethodName:
		return &storagenodev1.DrainNodeResponse{Status: drainFailed, ErrorMessage: item.GetMessage(), ErrorCode: code, Error: item}
	case storagenodev1.StorageNodeService_StartStreaming_FullMethodName:
		return &storagenodev1.StartStreamingResponse{Message: item.GetMessage(), Error: item}
	case storagenodev1.StorageNodeService_StopStreaming_FullMethodName:
		return &storagenodev1.StopStreamingResponse{Message: item.GetMessage(), Error: item}
	case storagenodev1.StorageNodeService_NotifyStreamingComplete_FullMethodName:
		return &storagenodev1.NotifyStreamingCompleteResponse{Message: item.GetMessage(), Error: item}
	case storagenodev1.StorageNodeService_GetStreamStatus_FullMethodName:
		if item.GetReason() == string(store.ReasonMoveNotFound) {
			return &storagenodev1.GetStreamStatusResponse{State: streamUnknown}
		}
	case storagenodev1.StorageNodeService_HealthCheck_FullMethodName:
		return g.health(err)
	}
	return nil // an empty page, or "no stream", would be a wrong answer
}

// contractCode returns the nearest of the codes that the contract has.
func contractCode(r row) storagenodev1.ErrorCode {
	reason := r.reason
	switch {
	case reason == "TENANT_NOT_FOUND":
		return storagenodev1.ErrorCode_ERROR_CODE_TENANT_NOT_FOUND
	case reason == "KEY_NOT_FOUND":
		return storagenodev1.ErrorCode_ERROR_CODE_KEY_NOT_FOUND
	case reason == "DISK_FULL" || reason == "DISK_THROTTLED":
		return storagenodev1.ErrorCode_ERROR_CODE_DISK_FULL
	case reason == "STOPPING" || reason == "NODE_DRAINING" || reason == "RANGE_MOVING" || reason == "NOT_OWNER": // another node takes it
		return storagenodev1.ErrorCode_ERROR_CODE_NODE_DRAINING
	case r.code == codes.DataLoss:
		return storagenodev1.ErrorCode_ERROR_CODE_CORRUPTED_DATA
	case r.code == codes.ResourceExhausted && r.retry > 0:
		return storagenodev1.ErrorCode_ERROR_CODE_MEMORY_PRESSURE
	case nodesFault(r.code) || r.code == codes.Canceled || r.code == codes.Unimplemented:
		return storagenodev1.ErrorCode_ERROR_CODE_INTERNAL
	}
	return storagenodev1.ErrorCode_ERROR_CODE_INVALID_REQUEST // whatever else needs another request
}
