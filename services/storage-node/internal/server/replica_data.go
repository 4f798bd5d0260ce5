package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/merkle"
	"github.com/pairdb/pairdb/libs/ring"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/replica"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// maxTenantRecords bounds one exchange of tenants, as the registry bounds their number.
const maxTenantRecords = 10_000

// replica returns what a call of a peer needs, if the peer is of this cluster.
func (g replicaService) replica(p *replicav1.Peer) (*Backend, error) {
	b, err := g.s.backend()
	if err != nil {
		return nil, err
	}
	if err := b.Replica.CheckCluster(p.GetClusterId()); err != nil {
		return nil, err
	}
	return b, nil
}

// Describe says who this node is, and whether it may be sent data.
func (g replicaService) Describe(_ context.Context, r *replicav1.DescribeRequest) (*replicav1.DescribeResponse, error) {
	b, err := g.replica(r.GetPeer())
	if err != nil {
		return nil, err
	}
	about := b.Replica.Describe()
	out := &replicav1.DescribeResponse{
		ClusterId: about.ClusterID, NodeId: g.s.node.ID, Incarnation: about.Incarnation, Version: g.s.node.Version,
		RecordFormats: []uint32{replica.RecordFormat}, Refusal: about.Refusal, GcGraceSeconds: int64(about.GCGrace / time.Second),
	}
	for _, m := range b.Members.View().Members {
		if m.Declared.NodeID == g.s.node.ID && m.Declared.Incarnation == about.Incarnation {
			out.State = clusterv1.MemberState(m.Declared.State)
		}
	}
	return out, nil
}

// Ingest joins the records of a stream with what is there.
func (g replicaService) Ingest(stream grpc.BidiStreamingServer[replicav1.IngestRequest, replicav1.IngestResponse]) error {
	var first rawMessage
	if err := stream.RecvMsg(&first); err != nil {
		return ignoreEnd(err)
	}
	var m replicav1.IngestRequest
	err := proto.Unmarshal(first.data, &m)
	first.free()
	start := m.GetStart()
	if err != nil || start == nil {
		return fmt.Errorf("%w: a stream of records begins with its start", errMalformed)
	}
	b, err := g.replica(start.GetPeer())
	if err != nil {
		return err
	}
	out := sender[replicav1.IngestResponse]{stream: stream, limit: g.s.stall}
	in, err := b.Replica.Ingest(stream.Context(), replica.IngestStart{
		Peer: start.GetPeer().GetNodeId(), MoveID: start.GetMoveId(), Format: start.GetRecordFormat(),
		ReadAt: time.UnixMilli(start.GetReadAtMs()), Sorted: start.GetSorted(),
	}, func(number uint64) error { return out.send(&replicav1.IngestResponse{DurableNumber: number}) })
	if err != nil {
		return err
	}
	defer in.Close()
	// The receiver may sit in the transport until this handler returns, and ends then: what it would still
	// bring is refused by the closed stream.
	received := make(chan error, 1)
	go func() { received <- receiveRecords(stream, in) }()
	select {
	case err = <-received:
	case <-in.Failed():
		err = in.Err()
	case <-stream.Context().Done():
		err = stream.Context().Err()
	}
	if failed := in.Err(); failed != nil {
		return failed
	}
	return err
}

// receiveRecords takes batches until the stream ends, and returns when all of them are durable.
func receiveRecords(stream grpc.ServerStream, in *replica.Ingest) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: panic while records were taken: %v", errInternal, p)
		}
	}()
	var frame rawMessage
	var batch recordBatch
	for {
		if err := stream.RecvMsg(&frame); err != nil {
			if errors.Is(err, io.EOF) {
				return in.Finish()
			}
			return err
		}
		err := batch.parse(frame.data)
		if err == nil && !batch.finish {
			err = in.Add(batch.number, batch.records)
		}
		frame.free()
		if err != nil {
			return err
		}
		if batch.finish {
			return in.Finish()
		}
	}
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Digest hashes what is selected.
func (g replicaService) Digest(ctx context.Context, r *replicav1.DigestRequest) (*replicav1.DigestResponse, error) {
	b, err := g.replica(r.GetPeer())
	if err != nil {
		return nil, err
	}
	what, err := selectedFromProto(r.GetWhat())
	if err != nil {
		return nil, err
	}
	if err := b.Ownership.Exchange(what.HashRanges); err != nil {
		return nil, err
	}
	d, err := b.Replica.Digest(ctx, replica.DigestRequest{
		What: what, LeavesPerRange: int(r.GetLeavesPerRange()), CollectedBefore: r.GetCollectedBefore(), Renew: r.GetRenew(),
	})
	if err != nil {
		return nil, err
	}
	out := &replicav1.DigestResponse{Tree: d.Tree, Sequence: d.Sequence, Records: d.Records, Renewed: d.Renewed, Roots: make([][]byte, len(d.Roots))}
	all := merkle.Append(nil, d.Roots...)
	for i := range out.Roots {
		out.Roots[i] = all[i*merkle.DigestBytes : (i+1)*merkle.DigestBytes]
	}
	return out, nil
}

// Leaves tells the leaves of a tree.
func (g replicaService) Leaves(_ context.Context, r *replicav1.LeavesRequest) (*replicav1.LeavesResponse, error) {
	b, err := g.replica(r.GetPeer())
	if err != nil {
		return nil, err
	}
	leaves, err := b.Replica.Leaves(r.GetTree(), r.GetRanges())
	if err != nil {
		return nil, err
	}
	return &replicav1.LeavesResponse{Digests: merkle.Append(nil, leaves...)}, nil
}

// KeyDigests tells the digests of keys in leaves of a tree.
func (g replicaService) KeyDigests(r *replicav1.KeyDigestsRequest, stream grpc.ServerStreamingServer[replicav1.KeyDigestsResponse]) error {
	b, err := g.replica(r.GetPeer())
	if err != nil {
		return err
	}
	leaves := make([]replica.LeafID, len(r.GetLeaves()))
	for i, l := range r.GetLeaves() {
		leaves[i] = replica.LeafID{Range: l.GetRange(), Leaf: l.GetLeaf()}
	}
	out := sender[replicav1.KeyDigestsResponse]{stream: stream, limit: g.s.stall}
	return b.Replica.KeyDigests(stream.Context(), r.GetTree(), leaves, func(keys []replica.KeyDigest) error {
		msg := &replicav1.KeyDigestsResponse{Keys: make([]*replicav1.KeyDigest, len(keys))}
		block := make([]replicav1.KeyDigest, len(keys))
		for i := range keys {
			block[i].Key, block[i].Digest = keys[i].Key, keys[i].Digest[:]
			msg.Keys[i] = &block[i]
		}
		return out.send(msg)
	})
}

// CompareKeys tells the digests of keys as they are now.
func (g replicaService) CompareKeys(ctx context.Context, r *replicav1.CompareKeysRequest) (*replicav1.CompareKeysResponse, error) {
	b, err := g.replica(r.GetPeer())
	if err != nil {
		return nil, err
	}
	digests, err := b.Replica.CompareKeys(ctx, r.GetKeys(), r.GetCollectedBefore())
	if err != nil {
		return nil, err
	}
	out := &replicav1.CompareKeysResponse{Digests: make([][]byte, len(digests))}
	for i := range digests {
		if !digests[i].IsZero() {
			out.Digests[i] = digests[i][:]
		}
	}
	return out, nil
}

// Fetch sends records as they are now.
func (g replicaService) Fetch(r *replicav1.FetchRequest, stream grpc.ServerStreamingServer[replicav1.FetchResponse]) error {
	b, err := g.replica(r.GetPeer())
	if err != nil {
		return err
	}
	return b.Replica.Fetch(stream.Context(), r.GetKeys(), func(records []replica.Record) error {
		return sendEncoded(stream, g.s.stall, encodeFetched(records))
	})
}

// Tenants joins two lists of tenants.
func (g replicaService) Tenants(ctx context.Context, r *replicav1.TenantsRequest) (*replicav1.TenantsResponse, error) {
	b, err := g.replica(r.GetPeer())
	if err != nil {
		return nil, err
	}
	if n := len(r.GetTenants()); n > maxTenantRecords {
		return nil, fmt.Errorf("%w: %d tenants, at most %d allowed", errLimit, n, maxTenantRecords)
	}
	theirs := make([]tenant.Record, len(r.GetTenants()))
	for i, t := range r.GetTenants() {
		theirs[i] = tenant.Record{Name: string(t.GetKey()), Value: t.GetValue()}
	}
	if err := b.Tenants.JoinRecords(ctx, theirs); err != nil {
		return nil, err
	}
	// Before the list is read: what changes in between is of a later exchange.
	b.Replica.Agree(r.GetPeer().GetNodeId())
	ours, err := b.Tenants.Records(ctx)
	if err != nil {
		return nil, err
	}
	out := &replicav1.TenantsResponse{Tenants: make([]*movev1.EncodedRecord, len(ours))}
	for i, t := range ours {
		out.Tenants[i] = &movev1.EncodedRecord{Key: []byte(t.Name), Value: t.Value}
	}
	return out, nil
}

// selectedFromProto converts a selection; the rest is for the replica to refuse.
func selectedFromProto(in *movev1.Selection) (replica.Selection, error) {
	if n := len(in.GetHashRanges()); n > replica.MaxSelectedHashes {
		return replica.Selection{}, &store.Error{Reason: store.ReasonRange, Message: fmt.Sprintf("%d hash ranges, at most %d allowed", n, replica.MaxSelectedHashes)}
	}
	return replica.Selection{
		Tenant: in.GetTenant(), Start: in.GetRange().GetStart(), End: in.GetRange().GetEnd(), Keys: in.GetKeys(),
		HashRanges: hashRangesOf(in.GetHashRanges()),
	}, nil
}

func hashRangesOf(in []*datav1.HashRange) []ring.HashRange {
	out := make([]ring.HashRange, len(in))
	for i, h := range in {
		out[i] = ring.HashRange{Start: h.GetStart(), End: h.GetEnd()}
	}
	return out
}
