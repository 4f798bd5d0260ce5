package server

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/replica"
)

func someRecords() *rapid.Generator[[]replica.Record] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) replica.Record {
		return replica.Record{
			Key:   rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "key"),
			Value: bytes.Repeat([]byte("v"), rapid.SampledFrom([]int{1, 127, 128, 300, 20_000}).Draw(t, "value")),
		}
	}), 0, 5)
}

func sameRecords(t require.TestingT, want []replica.Record, got []*movev1.EncodedRecord) {
	require.Len(t, got, len(want))
	for i := range want {
		require.Equal(t, want[i].Key, got[i].GetKey())
		require.Equal(t, want[i].Value, got[i].GetValue())
	}
}

// Danger: what is written by hand is not what the description of the wire says, and another version of a
// migrator reads something else.
func TestReplicaMessagesAreThoseOfTheGeneratedCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		records := someRecords().Draw(t, "records")
		chunk := replica.Chunk{
			Records: records, Cursor: rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "cursor"), Sequence: rapid.Uint64().Draw(t, "sequence"),
			Remaining: rapid.Int64().Draw(t, "remaining"), Finished: rapid.Bool().Draw(t, "finished"),
		}
		var export migrationv1.ExportResponse
		require.NoError(t, proto.Unmarshal(*encodeExported(&chunk).buf, &export))
		sameRecords(t, records, export.GetRecords())
		require.True(t, bytes.Equal(chunk.Cursor, export.GetCursor()))
		require.Equal(t, chunk.Sequence, export.GetSequence())
		require.Equal(t, chunk.Remaining, export.GetRemainingBytes())
		require.Equal(t, chunk.Finished, export.GetFinished())

		changes := replica.Changes{Records: records, Sequence: chunk.Sequence, Newest: rapid.Uint64().Draw(t, "newest"), AtMillis: chunk.Remaining}
		var follow migrationv1.FollowResponse
		require.NoError(t, proto.Unmarshal(*encodeFollowed(&changes).buf, &follow))
		sameRecords(t, records, follow.GetRecords())
		require.Equal(t, changes.Sequence, follow.GetSequence())
		require.Equal(t, changes.Newest, follow.GetNewestSequence())
		require.Equal(t, changes.AtMillis, follow.GetAtMs())

		var fetch replicav1.FetchResponse
		require.NoError(t, proto.Unmarshal(*encodeFetched(records).buf, &fetch))
		sameRecords(t, records, fetch.GetRecords())

		batch := &replicav1.IngestBatch{Records: fetch.GetRecords(), Number: rapid.Uint64().Draw(t, "number")}
		message, err := proto.Marshal(&replicav1.IngestRequest{Part: &replicav1.IngestRequest_Batch{Batch: batch}})
		require.NoError(t, err)
		var got recordBatch
		require.NoError(t, got.parse(message))
		require.Equal(t, batch.GetNumber(), got.number)
		require.False(t, got.finish)
		require.Len(t, got.records, len(records))
		for i := range records {
			require.Equal(t, records[i], got.records[i])
		}
	})
	var got recordBatch
	finish, err := proto.Marshal(&replicav1.IngestRequest{Part: &replicav1.IngestRequest_Finish{Finish: true}})
	require.NoError(t, err)
	require.NoError(t, got.parse(finish))
	require.True(t, got.finish)
	require.ErrorIs(t, got.parse(nil), errMalformed)
	require.ErrorIs(t, got.parse([]byte{0x12}), errMalformed)
}

// Danger: bytes that are no message end the node, or are read beyond their end.
func FuzzIngestRequest(f *testing.F) {
	for _, m := range []*replicav1.IngestRequest{
		{Part: &replicav1.IngestRequest_Finish{Finish: true}},
		{Part: &replicav1.IngestRequest_Start{Start: &replicav1.IngestStart{MoveId: "m"}}},
		{Part: &replicav1.IngestRequest_Batch{Batch: &replicav1.IngestBatch{Number: 7, Records: []*movev1.EncodedRecord{{Key: []byte("t\x00k"), Value: []byte("v")}, {}}}}},
	} {
		b, err := proto.Marshal(m)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		var got recordBatch
		err := got.parse(message)
		var want replicav1.IngestRequest
		if proto.Unmarshal(message, &want) != nil || want.GetBatch() == nil {
			return // of what is not to be sent, no answer is right
		}
		if err != nil {
			t.Fatalf("%x is a message and refused: %v", message, err)
		}
		if !got.finish && len(got.records) != len(want.GetBatch().GetRecords()) && bytes.Count(message, []byte{0x12}) < 2 {
			t.Fatalf("%x: %d records of %d", message, len(got.records), len(want.GetBatch().GetRecords()))
		}
	})
}
