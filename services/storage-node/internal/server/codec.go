package server

import (
	"bytes"
	"fmt"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
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

// Unmarshal parses data into v.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	err := c.CodecV2.Unmarshal(data, v)
	message, ok := v.(proto.Message)
	if err == nil || !ok {
		return err
	}
	proto.Reset(message)
	complaint := protowire.AppendString(bytes.Clone(complaintTag), err.Error())
	message.ProtoReflect().SetUnknown(complaint)
	return nil
}

// malformed returns the complaint about a message that could not be parsed, or nil.
func malformed(v any) error {
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
