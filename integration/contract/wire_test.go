package contract

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/pairdb/pairdb/proto/coordinator/proto/v1"   // registers what is tested
	_ "github.com/pairdb/pairdb/proto/coordinator/storage/v1" // likewise
)

var update = flag.Bool("update", false, "write golden files instead of comparing them")

// Values that no two fields share, and that tell signed from unsigned and from zigzag.
func sampleText(f field, i int) string { return fmt.Sprintf("%s-%d", f.name, i) }
func sampleInt(f field, i int) int64   { return -int64(f.number)*1000 - int64(i) - 1 }
func sampleUint(f field, i int) uint64 {
	if f.typ == "uint32" {
		return uint64(f.number)*1000 + uint64(i)
	}
	return 1<<63 | uint64(f.number)*1000 | uint64(i)
}

func (f field) count() int {
	if f.repeated {
		return 2
	}
	return 1
}

// encode writes a message with a sample in every field, as the table has it.
func (w wire) encode(message string, added bool) []byte {
	var b []byte
	for _, f := range w.fields(message, added) {
		for i := range f.count() {
			b = w.encodeField(b, f, i, added)
		}
	}
	return b
}

func (w wire) encodeField(b []byte, f field, i int, added bool) []byte {
	switch f.typ {
	case "string", "bytes":
		b = protowire.AppendTag(b, f.number, protowire.BytesType)
		return protowire.AppendString(b, sampleText(f, i))
	case "bool":
		b = protowire.AppendTag(b, f.number, protowire.VarintType)
		return protowire.AppendVarint(b, 1)
	case "int32", "int64":
		b = protowire.AppendTag(b, f.number, protowire.VarintType)
		return protowire.AppendVarint(b, uint64(sampleInt(f, i)))
	case "uint32", "uint64":
		b = protowire.AppendTag(b, f.number, protowire.VarintType)
		return protowire.AppendVarint(b, sampleUint(f, i))
	case "map":
		b = protowire.AppendTag(b, f.number, protowire.BytesType)
		entry := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "name")
		entry = protowire.AppendString(protowire.AppendTag(entry, 2, protowire.BytesType), "value")
		return protowire.AppendBytes(b, entry)
	}
	if last, ok := enums[f.typ]; ok {
		b = protowire.AppendTag(b, f.number, protowire.VarintType)
		return protowire.AppendVarint(b, uint64(last))
	}
	b = protowire.AppendTag(b, f.number, protowire.BytesType)
	return protowire.AppendBytes(b, w.encode(f.typ, added))
}

// check requires that a decoded message has the samples under the names of the table, and nothing
// else.
func (w wire) check(t *testing.T, message string, m protoreflect.Message, added bool) {
	t.Helper()
	require.Empty(t, m.GetUnknown(), message)
	want := w.fields(message, added)
	for _, f := range want {
		d := m.Descriptor().Fields().ByName(protoreflect.Name(f.name))
		require.NotNil(t, d, "%s has no field %s", message, f.name)
		require.Equal(t, f.number, d.Number(), "%s.%s", message, f.name)
		require.Equal(t, f.repeated, d.IsList(), "%s.%s", message, f.name)
		v := m.Get(d)
		switch {
		case f.repeated:
			require.Equal(t, f.count(), v.List().Len(), "%s.%s", message, f.name)
			for i := range f.count() {
				w.checkValue(t, message, f, i, d, v.List().Get(i), added)
			}
		case f.typ == "map":
			require.Equal(t, 1, v.Map().Len())
			require.Equal(t, "value", v.Map().Get(protoreflect.ValueOfString("name").MapKey()).String())
		default:
			w.checkValue(t, message, f, 0, d, v, added)
		}
	}
	set := 0
	m.Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool { set++; return true })
	require.Equal(t, len(want), set, message)
}

func (w wire) checkValue(t *testing.T, message string, f field, i int, d protoreflect.FieldDescriptor, v protoreflect.Value, added bool) {
	t.Helper()
	where := message + "." + f.name
	switch f.typ {
	case "string":
		require.Equal(t, protoreflect.StringKind, d.Kind(), where)
		require.Equal(t, sampleText(f, i), v.String(), where)
	case "bytes":
		require.Equal(t, protoreflect.BytesKind, d.Kind(), where)
		require.Equal(t, sampleText(f, i), string(v.Bytes()), where)
	case "bool":
		require.Equal(t, protoreflect.BoolKind, d.Kind(), where)
		require.True(t, v.Bool(), where)
	case "int32", "int64":
		require.Equal(t, f.typ, d.Kind().String(), where)
		require.Equal(t, sampleInt(f, i), v.Int(), where)
	case "uint32", "uint64":
		require.Equal(t, f.typ, d.Kind().String(), where)
		require.Equal(t, sampleUint(f, i), v.Uint(), where)
	default:
		if last, ok := enums[f.typ]; ok {
			require.Equal(t, protoreflect.EnumKind, d.Kind(), where)
			require.EqualValues(t, last, v.Enum(), where)
			require.NotNil(t, d.Enum().Values().ByNumber(protoreflect.EnumNumber(last)), where)
			return
		}
		w.check(t, f.typ, v.Message(), added)
	}
}

// A number that is off by one is a field that the other side does not see: it reads "no error", or no
// clock, and loses data. So every message is compared, byte by byte and in both directions, with bytes
// that were made from the table alone.
func TestEveryMessageOfTheContractHasItsBytes(t *testing.T) {
	for _, w := range []wire{storage, coordinatorService} {
		golden := filepath.Join("testdata", w.pkg+".txt")
		var got strings.Builder
		for _, message := range w.names() {
			typ, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(w.pkg + "." + message))
			require.NoError(t, err)
			for _, added := range []bool{false, true} {
				if added && additions[message] == "" {
					continue
				}
				b := w.encode(message, added)
				name := message
				if added {
					name += " with additions"
				}
				fmt.Fprintf(&got, "%s: %s\n", name, hex.EncodeToString(b))
				m := typ.New()
				require.NoError(t, proto.Unmarshal(b, m.Interface()), name)
				w.check(t, message, m, added)
				again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Interface())
				require.NoError(t, err)
				require.Equal(t, hex.EncodeToString(b), hex.EncodeToString(again), name)
			}
			require.Equal(t, len(w.fields(message, true)), typ.Descriptor().Fields().Len(), "%s has a field that the table does not know", message)
		}
		if *update {
			require.NoError(t, os.MkdirAll("testdata", 0o755))
			require.NoError(t, os.WriteFile(golden, []byte(got.String()), 0o644))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		require.Equal(t, string(want), got.String(), "the bytes of the contract never change")
	}
}

// Additions are what existing coordinators must be able to skip, and what their own later fields must
// not meet.
func TestAdditionsStayAwayFromTheContract(t *testing.T) {
	for message := range additions {
		for _, f := range storage.fields(message, false) {
			require.Less(t, int(f.number), 100, "%s.%s", message, f.name)
		}
		for _, f := range parse(additions[message]) {
			require.GreaterOrEqual(t, int(f.number), 100, "%s.%s", message, f.name)
		}
	}
}

func TestServicesHaveTheirMethods(t *testing.T) {
	for _, w := range []wire{storage, coordinatorService} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(w.pkg + "." + w.service))
		require.NoError(t, err)
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		require.Equal(t, len(w.methods), methods.Len())
		for _, line := range w.methods {
			words := strings.Fields(line)
			response, stream := strings.CutPrefix(words[2], "*")
			m := methods.ByName(protoreflect.Name(words[0]))
			require.NotNil(t, m, words[0])
			require.EqualValues(t, words[1], m.Input().Name())
			require.EqualValues(t, response, m.Output().Name())
			require.Equal(t, stream, m.IsStreamingServer())
			require.False(t, m.IsStreamingClient())
		}
	}
}

// The codes are numbers of the contract: a name that moves is another meaning.
func TestErrorCodesHaveTheirNumbers(t *testing.T) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName("storage.ErrorCode")
	require.NoError(t, err)
	values := d.(protoreflect.EnumDescriptor).Values()
	want := []string{"UNSPECIFIED", "INVALID_REQUEST", "TENANT_NOT_FOUND", "KEY_NOT_FOUND", "INTERNAL", "DISK_FULL", "MEMORY_PRESSURE", "NODE_DRAINING", "CORRUPTED_DATA"}
	require.Equal(t, len(want), values.Len())
	for i, name := range want {
		require.EqualValues(t, "ERROR_CODE_"+name, values.ByNumber(protoreflect.EnumNumber(i)).Name())
	}
}
