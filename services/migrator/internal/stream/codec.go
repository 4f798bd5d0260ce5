package stream

import (
	"bytes"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Encoded has a call leave records as they came: what is received with RecvMsg into a Part, and what Ingest
// sends. Everything else travels as with any other call. To take records apart and put them together again
// costs more than all else that a migrator does with them.
var Encoded = grpc.ForceCodecV2(codec{encoding.GetCodecV2(grpcproto.Name)})

// messages is the memory of messages. gRPC's has nothing between 32 KiB and 1 MiB, and clears all of what it
// gives: for each message of 48 KiB a megabyte.
var messages = mem.NewTieredBufferPool(4<<10, 64<<10, 256<<10)

// codec is gRPC's own, but for messages with records.
type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if b, ok := v.(*batch); ok {
		return b.message(), nil
	}
	return c.CodecV2.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if p, ok := v.(*Part); ok {
		return p.parse(data)
	}
	return c.CodecV2.Unmarshal(data, v)
}

// Part is a message of a stream of records. It can be received into again: what it had is valid until then.
type Part struct {
	Records Records
	// Rest is the message without its records; who makes a Part gives an empty one of the right type.
	Rest proto.Message

	buffer mem.Buffer
	others []byte // what Rest is made of
}

// Free gives the memory of the records back.
func (p *Part) Free() {
	if p.buffer != nil {
		p.buffer.Free()
	}
	p.buffer, p.Records = nil, Records{}
}

// parse takes a message apart.
func (p *Part) parse(message mem.BufferSlice) error {
	p.Free()
	p.buffer, p.others = message.MaterializeToBuffer(messages), p.others[:0]
	b := p.buffer.ReadOnlyData()
	var all Records
	start, end := 0, 0 // of the records
	for at := 0; at < len(b); {
		number, kind, n := protowire.ConsumeField(b[at:])
		if n < 0 {
			return protowire.ParseError(n)
		}
		field := b[at : at+n]
		at += n
		if number != recordsField || kind != protowire.BytesType {
			p.others = append(p.others, field...)
			continue
		}
		key, value, err := recordOf(field)
		if err != nil {
			return err
		}
		switch {
		case all.data != nil:
			all.data = append(all.data, field...)
		case all.count == 0:
			start, end = at-n, at
		case end == at-n:
			end = at
		default: // something stands between them, which no node does
			all.data = append(bytes.Clone(b[start:end]), field...)
		}
		all.note(key, value)
	}
	if all.data == nil {
		all.data, all.buffer = b[start:end], p.buffer.Slice(start, end)
		// The part has the one reference that there is to be.
		p.buffer.Free()
		p.buffer = all.buffer
	}
	p.Records = all
	return proto.Unmarshal(p.others, p.Rest)
}

// batch is an IngestRequest with a batch.
type batch struct {
	records *Records
	number  uint64
}

// message frames the records, whose memory it shares.
func (b *batch) message() mem.BufferSlice {
	data := mem.Buffer(mem.SliceBuffer(b.records.data))
	if b.records.buffer != nil {
		data = b.records.buffer
		data.Ref()
	}
	tail := protowire.AppendVarint(protowire.AppendTag(nil, batchNumber, protowire.VarintType), b.number)
	head := protowire.AppendTag(nil, ingestBatch, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(b.records.data)+len(tail)))
	return mem.BufferSlice{mem.SliceBuffer(head), data, mem.SliceBuffer(tail)}
}
