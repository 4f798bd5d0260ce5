package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

const (
	// MaxIDBytes bounds an id: that of a node is up to 100 bytes of its name, 16 of its session and a
	// counter.
	MaxIDBytes = 128
	// MaxPayloadBytes bounds the JSON of a payload.
	MaxPayloadBytes = 16 << 10
	// MaxEncodedBytes bounds an encoded event: a payload and an envelope, which has less than 1 KiB.
	MaxEncodedBytes = 32 << 10

	typePrefix = "pairdb."
	// sequenceAttribute is text: an extension that is a number holds 32 bits.
	sequenceAttribute = "pairdbsequence"
)

var (
	// ErrInvalid says that an event, or a part of one, is outside of what is allowed.
	ErrInvalid = errors.New("invalid event")
	// ErrUnknownKind says that the catalogue of this binary does not have a kind.
	ErrUnknownKind = errors.New("unknown kind of event")
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Event is one happening. Data is shared, not copied: nobody changes it.
type Event struct {
	// ID is unique for ever: 1 to 128 visible ASCII characters.
	ID string
	// Kind is a name of the catalogue, or of a newer one.
	Kind string
	// Cluster and Node say where it happened.
	Cluster, Node string
	// Time is when it happened.
	Time time.Time
	// Sequence orders the events of a node; 0 is not known.
	Sequence uint64
	// Data is a JSON object: the payload.
	Data json.RawMessage
}

var payloadOptions = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}

// EncodePayload returns the JSON of a payload, which must be of the kind's type. Fields have the names
// of the .proto file; those that are zero are there too.
func EncodePayload(kind string, payload proto.Message) (json.RawMessage, error) {
	row, ok := Lookup(kind)
	if !ok {
		return nil, fmt.Errorf("%w: %q", ErrUnknownKind, kind)
	}
	want, got := row.Example.ProtoReflect().Descriptor().FullName(), payload.ProtoReflect().Descriptor().FullName()
	if want != got {
		return nil, invalid("the payload of %s is a %s, not a %s", kind, want, got)
	}
	b, err := payloadOptions.Marshal(payload)
	if err != nil {
		return nil, invalid("payload of %s: %v", kind, err)
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil { // protojson puts spaces where it likes
		return nil, invalid("payload of %s: %v", kind, err)
	}
	if out.Len() > MaxPayloadBytes {
		return nil, invalid("the payload of %s has %d bytes, at most %d", kind, out.Len(), MaxPayloadBytes)
	}
	return out.Bytes(), nil
}

// DecodePayload returns the payload of a kind. Fields that are not known are left out: the writer may
// be newer than the reader.
func DecodePayload(kind string, data []byte) (proto.Message, error) {
	row, ok := Lookup(kind)
	if !ok {
		return nil, fmt.Errorf("%w: %q", ErrUnknownKind, kind)
	}
	if len(data) > MaxPayloadBytes {
		return nil, invalid("the payload of %s has %d bytes, at most %d", kind, len(data), MaxPayloadBytes)
	}
	m := row.Empty()
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, m); err != nil {
		return nil, invalid("payload of %s: %s", kind, protojsonProblem(err))
	}
	return m, nil
}

// protojsonProblem leaves out the prefix that the library varies on purpose.
func protojsonProblem(err error) string {
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	return strings.TrimPrefix(text, "proto: ")
}

// Payload returns the decoded data; ErrUnknownKind for a kind that is newer than this binary.
func (e Event) Payload() (proto.Message, error) { return DecodePayload(e.Kind, e.Data) }

// CheckID accepts what can be an id: it travels in a header, which would lose other characters.
func CheckID(id string) error {
	if len(id) < 1 || len(id) > MaxIDBytes {
		return invalid("the id has %d bytes, 1 to %d are allowed", len(id), MaxIDBytes)
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return invalid("the id contains the byte %#02x; visible ASCII characters are allowed", id[i])
		}
	}
	return nil
}

// Times that the format of a CloudEvent holds.
var (
	earliest = time.Unix(0, 0)
	latest   = time.Date(9999, time.December, 31, 0, 0, 0, 0, time.UTC)
)

// CheckTime accepts times from 1970 to 9999.
func CheckTime(t time.Time) error {
	if !t.After(earliest) || t.After(latest) {
		return invalid("the time is not between the years 1970 and 9999")
	}
	return nil
}

// check says what is wrong with an event that is to be sent.
func (e Event) check() error {
	if err := CheckID(e.ID); err != nil {
		return err
	}
	if err := CheckTime(e.Time); err != nil {
		return err
	}
	if !validKind(e.Kind) {
		return invalid("%q is not a kind: lower-case words with dots between them", e.Kind)
	}
	for _, name := range []string{e.Cluster, e.Node} {
		if len(name) < 1 || len(name) > maxNameBytes {
			return invalid("a name has %d bytes, 1 to %d are allowed", len(name), maxNameBytes)
		}
	}
	if len(e.Data) > MaxPayloadBytes {
		return invalid("the payload has %d bytes, at most %d", len(e.Data), MaxPayloadBytes)
	}
	if !json.Valid(e.Data) || !isObject(e.Data) {
		return invalid("the payload is no JSON object")
	}
	return nil
}

func isObject(data []byte) bool {
	data = bytes.TrimLeft(data, " \t\r\n")
	return len(data) > 0 && data[0] == '{'
}

// Encode returns the event as CloudEvents 1.0 JSON.
func (e Event) Encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	c := cloudevents.New(cloudevents.CloudEventsVersionV1)
	c.SetID(e.ID)
	c.SetSource(source(e.Cluster, e.Node))
	c.SetType(typePrefix + e.Kind)
	c.SetTime(e.Time.UTC())
	if e.Sequence > 0 {
		c.SetExtension(sequenceAttribute, strconv.FormatUint(e.Sequence, 10))
	}
	c.SetDataContentType(cloudevents.ApplicationJSON)
	c.DataEncoded = e.Data
	b, err := json.Marshal(c)
	if err != nil {
		return nil, invalid("%v", err)
	}
	if len(b) > MaxEncodedBytes {
		return nil, invalid("%d bytes encoded, at most %d", len(b), MaxEncodedBytes)
	}
	return b, nil
}

// Decode reads what Encode wrote, of this binary or another.
func Decode(b []byte) (Event, error) {
	if len(b) > MaxEncodedBytes {
		return Event{}, invalid("%d bytes, at most %d", len(b), MaxEncodedBytes)
	}
	var c cloudevents.Event
	if err := json.Unmarshal(b, &c); err != nil {
		return Event{}, invalid("no CloudEvent: %v", err)
	}
	if err := c.Validate(); err != nil {
		return Event{}, invalid("no CloudEvent: %v", strings.TrimSpace(err.Error()))
	}
	kind, ok := strings.CutPrefix(c.Type(), typePrefix)
	if !ok {
		return Event{}, invalid("the type %q does not begin with %q", c.Type(), typePrefix)
	}
	e := Event{ID: c.ID(), Kind: kind, Time: c.Time().UTC(), Data: c.Data()}
	var err error
	if e.Cluster, e.Node, err = parseSource(c.Source()); err != nil {
		return Event{}, err
	}
	if e.Sequence, err = sequenceOf(&c); err != nil {
		return Event{}, err
	}
	if m := c.DataMediaType(); m != "" && m != cloudevents.ApplicationJSON {
		return Event{}, invalid("the data is %q, not %s", m, cloudevents.ApplicationJSON)
	}
	return e, e.check()
}

func sequenceOf(c *cloudevents.Event) (uint64, error) {
	value, ok := c.Extensions()[sequenceAttribute]
	if !ok {
		return 0, nil
	}
	text, ok := value.(string)
	if !ok {
		return 0, invalid("%s is a %T, a text expected", sequenceAttribute, value)
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, invalid("%s is %q, a number expected", sequenceAttribute, text)
	}
	return n, nil
}

// source names a node in a CloudEvent.
func source(cluster, node string) string {
	return "/pairdb/" + url.PathEscape(cluster) + "/" + url.PathEscape(node)
}

func parseSource(s string) (cluster, node string, err error) {
	parts := strings.Split(s, "/")
	if len(parts) != 4 || parts[0] != "" || parts[1] != "pairdb" {
		return "", "", invalid("the source %q is not /pairdb/<cluster>/<node>", s)
	}
	if cluster, err = url.PathUnescape(parts[2]); err == nil {
		node, err = url.PathUnescape(parts[3])
	}
	if err != nil {
		return "", "", invalid("source: %v", err)
	}
	return cluster, node, nil
}
