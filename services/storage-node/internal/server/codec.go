package server

import (
	"bytes"
	"fmt"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// codec is gRPC's own, but for messages that cannot be parsed: gRPC answers them with INTERNAL and
// no reason before any interceptor sees them. So the codec hands on an empty message that carries
// the complaint in an unknown field, and malformed finds it there: one answer for every bad request.
// A client that sends such a field itself only gets its own call refused.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

// complaintField is the largest field number of the format; no message of ours has it.
const complaintField = protowire.MaxValidNumber

var complaintTag = protowire.AppendTag(nil, complaintField, protowire.BytesType)

const (
	// maxParts bounds the messages and list elements within one message. An empty one takes two
	// bytes on the wire and a hundred in memory, so 20 MiB could become a gigabyte. The largest
	// request that has a meaning, 1,000 operations with clocks of 1,000 entries, is below.
	maxParts = 1 << 20
	// countFrom: what is smaller can't become large.
	countFrom = 64 << 10
	// bytesPerPart is what parts take on average at least, beyond the first minParts of them. The
	// smallest that mean something, a clock's entries and a batch's deletes, take seven. So a message
	// takes a few dozen times its size in memory at most, and not fifty megabytes for one.
	bytesPerPart = 4
	minParts     = 8192
	// maxDepth is deeper than any message of ours.
	maxDepth = 16
)

// Unmarshal parses data into v.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	message, ok := v.(proto.Message)
	if !ok {
		raw, ok := v.(*rawMessage)
		if !ok {
			return c.CodecV2.Unmarshal(data, v)
		}
		raw.buffer = data.MaterializeToBuffer(poolFor(data.Len()))
		raw.data = raw.buffer.ReadOnlyData()
		if limit, over := tooManyParts(raw.data, pipelineRequest); over {
			raw.err = fmt.Errorf("%w: more than %d elements", errMalformed, limit)
		}
		return nil
	}
	buf := data.MaterializeToBuffer(poolFor(data.Len()))
	defer buf.Free()
	b := buf.ReadOnlyData()
	if limit, over := tooManyParts(b, message.ProtoReflect().Descriptor()); over {
		complain(message, fmt.Sprintf("more than %d elements", limit))
		return nil
	}
	if err := proto.Unmarshal(b, message); err != nil {
		complain(message, err.Error())
	}
	return nil
}

var pipelineRequest = (*storagev1.PipelineRequest)(nil).ProtoReflect().Descriptor()

// Marshal encodes v. Answers of a pipeline and of reads are encoded already.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	switch v := v.(type) {
	case answers:
		return v.message(), nil
	case *Encoded:
		return v.answers.message(), nil
	case proto.Message:
		return marshal(v)
	}
	return c.CodecV2.Marshal(v)
}

// marshal is what gRPC's codec does, but for the pool.
func marshal(m proto.Message) (mem.BufferSlice, error) {
	size := proto.Size(m)
	o := proto.MarshalOptions{UseCachedSize: true}
	if mem.IsBelowBufferPoolingThreshold(size) {
		b, err := o.Marshal(m)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	pool := poolFor(size)
	buf := pool.Get(size)
	if _, err := o.MarshalAppend((*buf)[:0], m); err != nil {
		pool.Put(buf)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(buf, pool)}, nil
}

// poolFor returns the pool for messages of a size. gRPC's has nothing between 32 KiB and 1 MiB: there each
// message of a stream would take a megabyte, and a reader that stops a few of them.
func poolFor(size int) mem.BufferPool {
	if size > 32<<10 && size < 1<<20 {
		return answersMemory
	}
	return mem.DefaultBufferPool()
}

// tooManyParts reports whether a message has more parts than its size, or any, allows.
func tooManyParts(b []byte, d protoreflect.MessageDescriptor) (limit int, over bool) {
	if len(b) <= countFrom {
		return 0, false
	}
	limit = min(maxParts, minParts+len(b)/bytesPerPart)
	return limit, countParts(b, d, 0) > limit
}

// countParts counts the messages and list elements in an encoded message, without allocating any.
// It stops at what it can't parse, and soon after maxParts.
func countParts(b []byte, d protoreflect.MessageDescriptor, depth int) (count int) {
	for len(b) > 0 && count <= maxParts {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return count
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return count
		}
		if field := d.Fields().ByNumber(number); field != nil && kind == protowire.BytesType {
			if field.IsList() || field.Message() != nil {
				count++
			}
			if inner := field.Message(); inner != nil && depth < maxDepth {
				value, _ := protowire.ConsumeBytes(b)
				count += countParts(value, inner, depth+1)
			}
		}
		b = b[n:]
	}
	return count
}

// complain empties a message and leaves a complaint in it.
func complain(message proto.Message, text string) {
	proto.Reset(message)
	message.ProtoReflect().SetUnknown(protowire.AppendString(bytes.Clone(complaintTag), text))
}

// malformed returns the complaint about a message that could not be parsed, or nil.
func malformed(v any) error {
	if raw, ok := v.(*rawMessage); ok {
		return raw.err
	}
	message, ok := v.(proto.Message)
	if !ok {
		return nil
	}
	unknown := message.ProtoReflect().GetUnknown()
	if rest, found := bytes.CutPrefix(unknown, complaintTag); found {
		text, _ := protowire.ConsumeString(rest)
		return fmt.Errorf("%w: %s", errMalformed, text)
	}
	return nil
}
