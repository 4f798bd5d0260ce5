package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/sidecar"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
)

// peers returns a client for what other pods ask of a node, and one for what its migrator does.
func (w *testNode) peers(t *testing.T) (replicav1.ReplicaServiceClient, migrationv1.MigrationServiceClient) {
	t.Helper()
	tcp, err := grpc.NewClient(w.Node.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	socket, err := sidecar.Dial(w.cfg.Socket)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, errors.Join(tcp.Close(), socket.Close())) })
	return replicav1.NewReplicaServiceClient(tcp), migrationv1.NewMigrationServiceClient(socket)
}

func (w *testNode) peer() *replicav1.Peer {
	return &replicav1.Peer{ClusterId: w.cfg.ClusterID, NodeId: "peer"}
}

// ingest sends batches of records and returns when all are durable.
func ingest(t *testing.T, to replicav1.ReplicaServiceClient, start *replicav1.IngestStart, batches ...[]*movev1.EncodedRecord) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := to.Ingest(ctx)
	require.NoError(t, err)
	if start != nil {
		_ = stream.Send(&replicav1.IngestRequest{Part: &replicav1.IngestRequest_Start{Start: start}}) // what is wrong Recv says
	}
	for i, b := range batches {
		_ = stream.Send(&replicav1.IngestRequest{Part: &replicav1.IngestRequest_Batch{Batch: &replicav1.IngestBatch{Number: uint64(i + 1), Records: b}}})
	}
	_ = stream.Send(&replicav1.IngestRequest{Part: &replicav1.IngestRequest_Finish{Finish: true}})
	last := uint64(0)
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			require.EqualValues(t, len(batches), last)
			return nil
		}
		if err != nil {
			return err
		}
		require.Greater(t, answer.GetDurableNumber(), last)
		last = answer.GetDurableNumber()
	}
}

func (w *testNode) start() *replicav1.IngestStart {
	return &replicav1.IngestStart{Peer: w.peer(), MoveId: "m", RecordFormat: 1, ReadAtMs: time.Now().UnixMilli()}
}

// Danger: what one process sends is not what the other one takes: a copy over the wire, with its tail, and
// the comparison that would find it out.
func TestAMoveOverTheWire(t *testing.T) {
	from, to := startNode(t, testConfig(t), realFS()).ready(), startNode(t, testConfig(t), realFS()).ready()
	ctx := t.Context()
	_, source := from.peers(t)
	target, _ := to.peers(t)
	for i := range 300 {
		require.NoError(t, from.put(fmt.Sprintf("k%03d", i), strings.Repeat("v", i*10)))
	}
	from.Node.withStorage(func(s *storage) {
		_, err := s.moves.Create(ctx, moves.Spec{
			ID: "m", Purpose: moves.PurposeReplicate, Mode: moves.Once, What: moves.Selection{Tenant: "t"}, Target: moves.Target{NodeID: "n2", Addr: "host:1"},
		})
		require.NoError(t, err)
	})
	pin, err := source.Pin(ctx, &migrationv1.PinRequest{MoveId: "m"})
	require.NoError(t, err)
	again, err := source.Pin(ctx, &migrationv1.PinRequest{MoveId: "m"})
	require.NoError(t, err)
	require.Equal(t, pin.GetSequence(), again.GetSequence())
	_, err = source.Release(ctx, &migrationv1.ReleaseRequest{MoveId: "m"})
	require.Equal(t, "MOVE_STATE", reason(err))
	require.NoError(t, from.put("later", "v"))

	export, err := source.Export(ctx, &migrationv1.ExportRequest{MoveId: "m"})
	require.NoError(t, err)
	var batches [][]*movev1.EncodedRecord
	for {
		m, err := export.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.NotZero(t, m.GetSequence())
		batches = append(batches, m.GetRecords())
		if m.GetFinished() {
			require.Contains(t, string(m.GetCursor()), "t\x00later")
		}
	}
	require.Greater(t, len(batches), 5)
	start := to.start()
	start.Sorted = true
	require.NoError(t, ingest(t, target, start, batches...))

	require.NoError(t, from.put("k001", "changed"))
	follow, err := source.Follow(ctx, &migrationv1.FollowRequest{MoveId: "m", FromSequence: pin.GetSequence()})
	require.NoError(t, err)
	for {
		m, err := follow.Recv()
		require.NoError(t, err)
		require.NoError(t, ingest(t, target, to.start(), m.GetRecords()))
		if m.GetSequence() == m.GetNewestSequence() {
			require.NotZero(t, m.GetAtMs())
			break
		}
	}
	require.Equal(t, "changed", to.get("k001"))
	require.Equal(t, "v", to.get("later"))
	require.Len(t, to.get("k299"), 2990)

	// Both are equal but for one key.
	require.NoError(t, to.put("k002", "elsewhere"))
	here, _ := from.peers(t)
	what := &movev1.Selection{Tenant: "t", HashRanges: []*datav1.HashRange{{Start: 0, End: 1 << 63}, {Start: 1 << 63, End: 0}}}
	digest := func(w *testNode, c replicav1.ReplicaServiceClient) *replicav1.DigestResponse {
		d, err := c.Digest(ctx, &replicav1.DigestRequest{Peer: w.peer(), What: what, LeavesPerRange: 16})
		require.NoError(t, err)
		require.Len(t, d.GetRoots(), 2)
		require.EqualValues(t, 301, d.GetRecords())
		return d
	}
	a, b := digest(from, here), digest(to, target)
	differ := 0
	if !bytes.Equal(a.GetRoots()[1], b.GetRoots()[1]) {
		differ = 1
	}
	require.Equal(t, a.GetRoots()[1-differ], b.GetRoots()[1-differ])
	la, err := here.Leaves(ctx, &replicav1.LeavesRequest{Peer: from.peer(), Tree: a.GetTree(), Ranges: []uint32{uint32(differ)}})
	require.NoError(t, err)
	lb, err := target.Leaves(ctx, &replicav1.LeavesRequest{Peer: to.peer(), Tree: b.GetTree(), Ranges: []uint32{uint32(differ)}})
	require.NoError(t, err)
	leaf := -1
	for i := range 16 {
		if !bytes.Equal(la.GetDigests()[i*16:i*16+16], lb.GetDigests()[i*16:i*16+16]) {
			require.Equal(t, -1, leaf)
			leaf = i
		}
	}
	keys, err := target.KeyDigests(ctx, &replicav1.KeyDigestsRequest{Peer: to.peer(), Tree: b.GetTree(), Leaves: []*replicav1.LeafID{{Range: uint32(differ), Leaf: uint32(leaf)}}})
	require.NoError(t, err)
	some, err := keys.Recv()
	require.NoError(t, err)
	var ask [][]byte
	for _, k := range some.GetKeys() {
		ask = append(ask, k.GetKey())
	}
	require.Contains(t, ask, []byte("t\x00k002"))
	now, err := target.CompareKeys(ctx, &replicav1.CompareKeysRequest{Peer: to.peer(), Keys: append(ask, []byte("t\x00none"))})
	require.NoError(t, err)
	for i, k := range some.GetKeys() {
		require.Equal(t, k.GetDigest(), now.GetDigests()[i])
	}
	require.Empty(t, now.GetDigests()[len(ask)])
	fetch, err := target.Fetch(ctx, &replicav1.FetchRequest{Peer: to.peer(), Keys: ask})
	require.NoError(t, err)
	records, err := fetch.Recv()
	require.NoError(t, err)
	require.Len(t, records.GetRecords(), len(ask))
	require.NoError(t, ingest(t, here, from.start(), records.GetRecords()))
	require.Equal(t, digest(from, here).GetRoots(), b.GetRoots())
	for _, renewed := range []bool{false, true} {
		d, err := target.Digest(ctx, &replicav1.DigestRequest{Peer: to.peer(), What: what, LeavesPerRange: 16, Renew: true})
		require.NoError(t, err)
		require.Equal(t, b.GetRoots(), d.GetRoots())
		require.Equal(t, renewed, d.GetRenewed())
	}

	count := func(w *testNode, name string) (v float64) {
		families, err := w.reg.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "pairdb_replica_"+name {
				return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return -1
	}
	require.EqualValues(t, 301, count(from, "exported_records_total"))
	require.Greater(t, count(from, "exported_bytes_total"), 400_000.0)
	require.GreaterOrEqual(t, count(from, "followed_records_total"), 2.0)
	require.Positive(t, count(from, "followed_bytes_total"))
	require.GreaterOrEqual(t, count(to, "ingested_records_total"), 303.0)
	require.Greater(t, count(to, "ingested_bytes_total"), 400_000.0)
	require.Zero(t, count(to, "skipped_records_total"))
	require.Greater(t, count(to, "digested_records_total"), 301.0)
	require.Greater(t, count(to, "digested_bytes_total"), 400_000.0)
	require.EqualValues(t, len(ask), count(to, "fetched_records_total"))
	require.Positive(t, count(to, "fetched_bytes_total"))
	require.Zero(t, count(to, "ingest_streams"))
	require.EqualValues(t, 3, count(to, "trees"))
	require.EqualValues(t, 1, count(to, "renewed_trees_total"))

	// What the node held for the move goes with it.
	from.Node.withStorage(func(s *storage) { require.Equal(t, []string{"move.m"}, s.engine.TailPins()) })
	_, err = from.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k002"})
	require.NoError(t, err)
	require.NoError(t, to.end())
	require.NoError(t, from.end())
}

// Danger: a node takes records of another cluster, that are too old, or no records at all, or tells nobody
// what is wrong.
func TestCallsOfPeersAreRefusedWithAReason(t *testing.T) {
	w := startNode(t, testConfig(t), realFS()).ready()
	ctx := t.Context()
	c, m := w.peers(t)
	about, err := c.Describe(ctx, &replicav1.DescribeRequest{Peer: w.peer()})
	require.NoError(t, err)
	require.Equal(t, w.cfg.NodeID, about.GetNodeId())
	require.Equal(t, []uint32{1}, about.GetRecordFormats())
	require.Len(t, about.GetIncarnation(), 16)
	require.Empty(t, about.GetRefusal())
	require.Positive(t, about.GetGcGraceSeconds())

	foreign := &replicav1.Peer{ClusterId: "other"}
	for name, err := range map[string]error{
		"describe": second(c.Describe(ctx, &replicav1.DescribeRequest{Peer: foreign})),
		"digest":   second(c.Digest(ctx, &replicav1.DigestRequest{Peer: foreign, LeavesPerRange: 1})),
		"leaves":   second(c.Leaves(ctx, &replicav1.LeavesRequest{})),
		"compare":  second(c.CompareKeys(ctx, &replicav1.CompareKeysRequest{Peer: foreign})),
		"tenants":  second(c.Tenants(ctx, &replicav1.TenantsRequest{Peer: foreign})),
	} {
		require.Equal(t, "OTHER_CLUSTER", reason(err), name)
	}
	start := w.start()
	start.Peer = foreign
	require.Equal(t, "OTHER_CLUSTER", reason(ingest(t, c, start)))
	start = w.start()
	start.ReadAtMs = 1
	require.Equal(t, "MOVE_TOO_OLD", reason(ingest(t, c, start)))
	start = w.start()
	start.RecordFormat = 2
	require.Equal(t, "INVALID_ARGUMENT_INGEST", reason(ingest(t, c, start)))
	bad := []*movev1.EncodedRecord{{Key: []byte("_tenants\x00t"), Value: []byte("v")}}
	require.Equal(t, "INVALID_ARGUMENT_INGEST", reason(ingest(t, c, w.start(), bad)))
	require.Equal(t, "INVALID_ARGUMENT_MESSAGE", reason(ingest(t, c, nil, nil)))
	_, err = c.Leaves(ctx, &replicav1.LeavesRequest{Peer: w.peer(), Tree: math.MaxUint64})
	require.Equal(t, "TREE_UNKNOWN", reason(err))
	_, err = m.Pin(ctx, &migrationv1.PinRequest{MoveId: "none"})
	require.Equal(t, "MOVE_NOT_FOUND", reason(err))
	_, err = m.Release(ctx, &migrationv1.ReleaseRequest{MoveId: "none"})
	require.NoError(t, err)
	export, err := m.Export(ctx, &migrationv1.ExportRequest{MoveId: "none"})
	require.NoError(t, err)
	_, err = export.Recv()
	require.Equal(t, "MOVE_NOT_FOUND", reason(err))

	answer, err := c.Tenants(ctx, &replicav1.TenantsRequest{Peer: w.peer()})
	require.NoError(t, err)
	require.Empty(t, answer.GetTenants())
	_, err = c.Tenants(ctx, &replicav1.TenantsRequest{Peer: w.peer(), Tenants: bad})
	require.NotEmpty(t, reason(err))

	// A node that leaves ends streams whose sender is silent.
	stream, err := c.Ingest(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.Send(&replicav1.IngestRequest{Part: &replicav1.IngestRequest_Start{Start: w.start()}}))
	require.NoError(t, stream.Send(&replicav1.IngestRequest{Part: &replicav1.IngestRequest_Batch{Batch: &replicav1.IngestBatch{Number: 1}}}))
	_, err = stream.Recv()
	require.NoError(t, err)
	require.NoError(t, w.end())
	_, err = stream.Recv()
	require.Error(t, err)
	require.NotEqual(t, "", status.Convert(err).Message())
}

func second[T any](_ T, err error) error { return err }
