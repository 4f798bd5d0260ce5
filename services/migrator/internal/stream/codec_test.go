package stream

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

// received is a message as the transport brings it: in pieces.
func received(t *testing.T, rng *rand.Rand, m proto.Message) mem.BufferSlice {
	t.Helper()
	b, err := proto.Marshal(m)
	require.NoError(t, err)
	return pieces(rng, b)
}

func pieces(rng *rand.Rand, b []byte) (out mem.BufferSlice) {
	for len(b) > 0 {
		n := min(1+rng.IntN(16<<10), len(b))
		out = append(out, mem.Copy(b[:n], messages))
		b = b[n:]
	}
	return out
}

// What is passed on as it came must be what the generated code would have passed on: a field that is lost
// or doubled on the way is data that is lost.
func TestPartsAreThoseOfTheGeneratedCode(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	c := codec{encoding.GetCodecV2(grpcproto.Name)}
	exported, followed := &migrationv1.ExportResponse{}, &migrationv1.FollowResponse{}
	of := map[bool]*Part{true: {Rest: exported}, false: {Rest: followed}}
	for i := range 400 {
		var records []*movev1.EncodedRecord
		var made Records
		size := int64(0)
		for range rng.IntN(40) {
			r := &movev1.EncodedRecord{Key: make([]byte, rng.IntN(200)), Value: make([]byte, rng.IntN(1+rng.IntN(4000)))}
			for i := range r.Value {
				r.Value[i] = byte(rng.Uint32())
			}
			records = append(records, r)
			made.Append(r.GetKey(), r.GetValue())
			size += int64(len(r.GetKey()) + len(r.GetValue()))
		}
		part := of[i%2 == 0]
		if i%2 == 0 {
			want := &migrationv1.ExportResponse{Records: records, Cursor: []byte("c"), Sequence: rng.Uint64(), RemainingBytes: rng.Int64(), Finished: i%4 == 0}
			require.NoError(t, c.Unmarshal(received(t, rng, want), part))
			want.Records = nil
			require.True(t, proto.Equal(want, exported))
		} else {
			want := &migrationv1.FollowResponse{Records: records, Sequence: rng.Uint64(), NewestSequence: rng.Uint64(), AtMs: rng.Int64()}
			require.NoError(t, c.Unmarshal(received(t, rng, want), part))
			want.Records = nil
			require.True(t, proto.Equal(want, followed))
		}
		want := &replicav1.IngestRequest{Part: &replicav1.IngestRequest_Batch{Batch: &replicav1.IngestBatch{Records: records, Number: uint64(i)}}}
		for _, from := range []*Records{&part.Records, &made} {
			require.Equal(t, len(records), from.Len())
			require.Equal(t, size, from.Bytes())
			n := 0
			for key, value := range from.All() {
				require.True(t, bytes.Equal(records[n].GetKey(), key) && bytes.Equal(records[n].GetValue(), value))
				n++
			}
			require.Equal(t, len(records), n)
			sent, err := c.Marshal(&batch{records: from, number: uint64(i)})
			require.NoError(t, err)
			got := &replicav1.IngestRequest{}
			require.NoError(t, proto.Unmarshal(sent.Materialize(), got))
			require.True(t, proto.Equal(want, got))
			sent.Free()
		}
	}
	for _, p := range of {
		p.Free()
		p.Free()
		require.Zero(t, p.Records.Len())
	}
}

// What is on its way still must not be overwritten by what comes next.
func TestWhatIsOnItsWayOutlivesItsPart(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	c := codec{encoding.GetCodecV2(grpcproto.Name)}
	p := &Part{Rest: &migrationv1.ExportResponse{}}
	message := func(fill byte) *migrationv1.ExportResponse {
		return &migrationv1.ExportResponse{Cursor: []byte("c"), Records: []*movev1.EncodedRecord{{Key: []byte("k"), Value: bytes.Repeat([]byte{fill}, 40<<10)}}}
	}
	require.NoError(t, c.Unmarshal(received(t, rng, message(1)), p))
	out, err := c.Marshal(&batch{records: &p.Records, number: 1})
	require.NoError(t, err)
	for range 10 {
		require.NoError(t, c.Unmarshal(received(t, rng, message(2)), p))
	}
	p.Free()
	got := &replicav1.IngestRequest{}
	require.NoError(t, proto.Unmarshal(out.Materialize(), got))
	require.Equal(t, bytes.Repeat([]byte{1}, 40<<10), got.GetBatch().GetRecords()[0].GetValue())
	out.Free()
}

// Other encoders may order fields as they like; what no encoder makes is refused and not passed on.
func TestPartsInAnyOrderAndDamagedOnes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	part := func(records ...*movev1.EncodedRecord) []byte {
		b, err := proto.Marshal(&migrationv1.ExportResponse{Records: records})
		require.NoError(t, err)
		return b
	}
	rest, err := proto.Marshal(&migrationv1.ExportResponse{Cursor: []byte("cursor"), Sequence: 3})
	require.NoError(t, err)
	a, b := &movev1.EncodedRecord{Key: []byte("a"), Value: []byte("1")}, &movev1.EncodedRecord{Key: []byte("b"), Value: []byte("2")}
	about := &migrationv1.ExportResponse{}
	for _, order := range [][][]byte{{rest, part(a, b)}, {part(a), rest, part(b)}, {part(a), rest, part(b, a), part(b)}} {
		p := &Part{Rest: about}
		whole := bytes.Join(order, nil)
		require.NoError(t, p.parse(pieces(rng, whole)))
		want := &migrationv1.ExportResponse{}
		require.NoError(t, proto.Unmarshal(whole, want))
		i := 0
		for key, value := range p.Records.All() {
			require.Equal(t, want.GetRecords()[i].GetKey(), key)
			require.Equal(t, want.GetRecords()[i].GetValue(), value)
			i++
		}
		require.Len(t, want.GetRecords(), i)
		require.Equal(t, "cursor", string(about.GetCursor()))
		p.Free()
	}
	whole := append(part(a, b), rest...)
	for cut := range whole {
		p := &Part{Rest: about}
		damaged := bytes.Clone(whole[:cut])
		want := proto.Unmarshal(damaged, &migrationv1.ExportResponse{})
		require.Equal(t, want == nil, p.parse(pieces(rng, damaged)) == nil, "cut at %d", cut)
		p.Free()
	}
	p := &Part{Rest: about}
	inner := protowire.AppendBytes(protowire.AppendTag(nil, recordsField, protowire.BytesType), []byte{0xff})
	require.Error(t, p.parse(pieces(rng, inner)))
}
