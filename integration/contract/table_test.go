// Package contract holds the storage node to the contract of existing coordinators: field by field,
// and as a coordinator that was built from nothing but the table below. It never uses the generated
// code to say what is right.
package contract

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// wire is one service with its messages, by hand. A message is a list "name number type"; a star is a
// repeated field, a name with a capital a message or an enum.
type wire struct {
	pkg, service string
	// methods are "Method Request Response", a star before the response is a stream.
	methods  []string
	messages map[string]string
}

// storage is what existing coordinators call.
var storage = wire{
	pkg: "storage", service: "StorageNodeService",
	methods: []string{
		"Write WriteRequest WriteResponse",
		"Read ReadRequest ReadResponse",
		"Delete DeleteRequest DeleteResponse",
		"Repair RepairRequest RepairResponse",
		"ReplicateData ReplicateDataRequest ReplicateDataResponse",
		"StreamKeys StreamKeysRequest *KeyValueEntry",
		"GetKeyRange GetKeyRangeRequest GetKeyRangeResponse",
		"DrainNode DrainNodeRequest DrainNodeResponse",
		"StartStreaming StartStreamingRequest StartStreamingResponse",
		"StopStreaming StopStreamingRequest StopStreamingResponse",
		"NotifyStreamingComplete NotifyStreamingCompleteRequest NotifyStreamingCompleteResponse",
		"GetStreamStatus GetStreamStatusRequest GetStreamStatusResponse",
		"HealthCheck HealthCheckRequest HealthCheckResponse",
	},
	messages: map[string]string{
		"VectorClock":                     "entries 1 *VectorClockEntry",
		"VectorClockEntry":                "coordinator_node_id 1 string, logical_timestamp 2 int64",
		"WriteRequest":                    "tenant_id 1 string, key 2 string, value 3 bytes, vector_clock 4 VectorClock, idempotency_key 5 string",
		"WriteResponse":                   "success 1 bool, updated_vector_clock 2 VectorClock, error_message 3 string, error_code 4 ErrorCode",
		"ReadRequest":                     "tenant_id 1 string, key 2 string",
		"ReadResponse":                    "success 1 bool, value 2 bytes, vector_clock 3 VectorClock, error_message 4 string, error_code 5 ErrorCode",
		"DeleteRequest":                   "tenant_id 1 string, key 2 string, vector_clock 3 VectorClock, idempotency_key 4 string",
		"DeleteResponse":                  "success 1 bool, updated_vector_clock 2 VectorClock, error_message 3 string",
		"RepairRequest":                   "tenant_id 1 string, key 2 string, value 3 bytes, vector_clock 4 VectorClock",
		"RepairResponse":                  "success 1 bool, error_message 2 string, error_code 3 ErrorCode",
		"ReplicateDataRequest":            "tenant_id 1 string, key_range_start 2 string, key_range_end 3 string, keys 4 *string, target_node_id 5 string, include_vector_clock 6 bool",
		"ReplicateDataResponse":           "success 1 bool, keys_replicated 2 int64, error_message 3 string, error_code 4 ErrorCode",
		"StreamKeysRequest":               "tenant_id 1 string, key_range_start 2 string, key_range_end 3 string, batch_size 4 int32",
		"KeyValueEntry":                   "tenant_id 1 string, key 2 string, value 3 bytes, vector_clock 4 VectorClock, timestamp 5 int64, is_tombstone 6 bool",
		"GetKeyRangeRequest":              "tenant_id 1 string, key_range_start 2 string, key_range_end 3 string, max_keys 4 int32",
		"GetKeyRangeResponse":             "keys 1 *string, has_more 2 bool, next_key 3 string",
		"DrainNodeRequest":                "graceful 1 bool, timeout_seconds 2 int32",
		"DrainNodeResponse":               "success 1 bool, status 2 string, error_message 3 string, error_code 4 ErrorCode",
		"StartStreamingRequest":           "source_node_id 1 string, target_node_id 2 string, target_host 3 string, target_port 4 int32, key_ranges 5 *KeyRange",
		"KeyRange":                        "start_hash 1 uint64, end_hash 2 uint64",
		"StartStreamingResponse":          "success 1 bool, message 2 string",
		"StopStreamingRequest":            "source_node_id 1 string, target_node_id 2 string",
		"StopStreamingResponse":           "success 1 bool, message 2 string",
		"NotifyStreamingCompleteRequest":  "source_node_id 1 string, target_node_id 2 string",
		"NotifyStreamingCompleteResponse": "success 1 bool, message 2 string",
		"GetStreamStatusRequest":          "source_node_id 1 string, target_node_id 2 string",
		"GetStreamStatusResponse":         "active 1 bool, state 2 string, keys_copied 3 int64, keys_streamed 4 int64, bytes_copied 5 int64, bytes_streamed 6 int64",
		"HealthCheckRequest":              "",
		"HealthCheckResponse":             "healthy 1 bool, status 2 string, metrics 3 map",
	},
}

// coordinatorService is what the node calls.
var coordinatorService = wire{
	pkg: "proto", service: "CoordinatorService",
	methods: []string{
		"AddStorageNode AddStorageNodeRequest AddStorageNodeResponse",
		"ListStorageNodes ListStorageNodesRequest ListStorageNodesResponse",
		"GetTenant GetTenantRequest GetTenantResponse",
	},
	messages: map[string]string{
		"AddStorageNodeRequest":    "node_id 1 string, host 2 string, port 3 int32, virtual_nodes 4 int32",
		"AddStorageNodeResponse":   "success 1 bool, node_id 2 string, migration_id 3 string, message 4 string, error_message 6 string",
		"ListStorageNodesRequest":  "",
		"ListStorageNodesResponse": "success 1 bool, nodes 2 *StorageNode",
		"StorageNode":              "node_id 1 string, host 2 string, port 3 int32, status 4 string, virtual_nodes 5 int32",
		"GetTenantRequest":         "tenant_id 1 string",
		"GetTenantResponse":        "success 1 bool, tenant_id 2 string, replication_factor 3 int32",
	},
}

// additions are the fields that this node adds to messages of storage; existing coordinators do not
// know them.
var additions = map[string]string{
	"WriteResponse":                   "error 100 ItemError, outcome 101 Outcome, sibling_count 102 uint32",
	"ReadResponse":                    "error 100 ItemError, sibling_count 102 uint32, siblings 103 *Sibling, found 104 bool",
	"DeleteResponse":                  "error 100 ItemError, outcome 101 Outcome, sibling_count 102 uint32, error_code 105 ErrorCode",
	"RepairRequest":                   "is_tombstone 106 bool",
	"RepairResponse":                  "error 100 ItemError",
	"ReplicateDataResponse":           "error 100 ItemError",
	"KeyValueEntry":                   "sibling_count 102 uint32, siblings 103 *Sibling",
	"DrainNodeResponse":               "error 100 ItemError",
	"StartStreamingResponse":          "error 100 ItemError",
	"StopStreamingResponse":           "error 100 ItemError",
	"NotifyStreamingCompleteResponse": "error 100 ItemError",
}

// shared are messages of this node's own services within the additions.
var shared = map[string]string{
	"ItemError":   "code 1 int32, reason 2 string, message 3 string, retry_after_ms 4 uint32",
	"Sibling":     "clock 1 SharedClock, dot 2 ClockEntry, value 3 bytes, timestamp 4 uint64, expires_at 5 int64, tombstone 6 bool",
	"SharedClock": "entries 1 *ClockEntry",
	"ClockEntry":  "node_id 1 string, counter 2 uint64",
}

// enums have their largest number.
var enums = map[string]int32{"ErrorCode": 8, "Outcome": 4}

// field is a field of the table.
type field struct {
	name     string
	number   protowire.Number
	typ      string
	repeated bool
}

// parse reads a list of fields.
func parse(list string) (out []field) {
	for item := range strings.SplitSeq(list, ", ") {
		if item == "" {
			continue
		}
		words := strings.Fields(item)
		number, err := strconv.Atoi(words[1])
		if err != nil {
			panic(item)
		}
		typ, repeated := strings.CutPrefix(words[2], "*")
		out = append(out, field{name: words[0], number: protowire.Number(number), typ: typ, repeated: repeated})
	}
	return out
}

// fields returns the fields of a message: those of the contract, or the additions as well.
func (w wire) fields(message string, added bool) []field {
	if list, ok := shared[message]; ok {
		return parse(list)
	}
	out := parse(w.messages[message])
	if added && w.pkg == storage.pkg {
		out = append(out, parse(additions[message])...)
	}
	return out
}

var scalars = map[string]descriptorpb.FieldDescriptorProto_Type{
	"string": descriptorpb.FieldDescriptorProto_TYPE_STRING, "bytes": descriptorpb.FieldDescriptorProto_TYPE_BYTES,
	"bool": descriptorpb.FieldDescriptorProto_TYPE_BOOL, "int32": descriptorpb.FieldDescriptorProto_TYPE_INT32,
	"int64": descriptorpb.FieldDescriptorProto_TYPE_INT64, "uint64": descriptorpb.FieldDescriptorProto_TYPE_UINT64,
}

// descriptor builds the file that a coordinator was generated from: without any addition.
func (w wire) descriptor(t *testing.T) protoreflect.FileDescriptor {
	t.Helper()
	file := &descriptorpb.FileDescriptorProto{
		Name: proto.String(w.pkg + "/by_hand.proto"), Package: proto.String(w.pkg), Syntax: proto.String("proto3"),
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String(w.service)}},
	}
	code := &descriptorpb.EnumDescriptorProto{Name: proto.String("ErrorCode")}
	for i := range enums["ErrorCode"] + 1 {
		code.Value = append(code.Value, &descriptorpb.EnumValueDescriptorProto{Name: proto.String("CODE_" + strconv.Itoa(int(i))), Number: proto.Int32(i)})
	}
	file.EnumType = append(file.EnumType, code)
	for name, list := range w.messages {
		m := &descriptorpb.DescriptorProto{Name: proto.String(name)}
		for _, f := range parse(list) {
			m.Field = append(m.Field, w.fieldDescriptor(m, f))
		}
		file.MessageType = append(file.MessageType, m)
	}
	for _, line := range w.methods {
		words := strings.Fields(line)
		response, stream := strings.CutPrefix(words[2], "*")
		file.Service[0].Method = append(file.Service[0].Method, &descriptorpb.MethodDescriptorProto{
			Name: proto.String(words[0]), InputType: proto.String("." + w.pkg + "." + words[1]),
			OutputType: proto.String("." + w.pkg + "." + response), ServerStreaming: proto.Bool(stream),
		})
	}
	built, err := protodesc.NewFile(file, &protoregistry.Files{})
	require.NoError(t, err)
	return built
}

func (w wire) fieldDescriptor(in *descriptorpb.DescriptorProto, f field) *descriptorpb.FieldDescriptorProto {
	d := &descriptorpb.FieldDescriptorProto{
		Name: proto.String(f.name), Number: proto.Int32(int32(f.number)), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
	}
	if f.repeated {
		d.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
	}
	typ, scalar := scalars[f.typ]
	switch {
	case f.typ == "map": // text to text
		entry := &descriptorpb.DescriptorProto{
			Name: proto.String("MetricsEntry"), Options: &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)},
		}
		for _, part := range parse("key 1 string, value 2 string") {
			entry.Field = append(entry.Field, w.fieldDescriptor(entry, part))
		}
		in.NestedType = append(in.NestedType, entry)
		d.Label, d.Type = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum(), descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum()
		d.TypeName = proto.String("." + w.pkg + "." + in.GetName() + ".MetricsEntry")
	case scalar:
		d.Type = typ.Enum()
	case enums[f.typ] > 0:
		d.Type, d.TypeName = descriptorpb.FieldDescriptorProto_TYPE_ENUM.Enum(), proto.String("."+w.pkg+"."+f.typ)
	default:
		d.Type, d.TypeName = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum(), proto.String("."+w.pkg+"."+f.typ)
	}
	return d
}

// names returns the messages in a fixed order.
func (w wire) names() []string {
	var out []string
	for name := range w.messages {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
