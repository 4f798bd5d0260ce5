package command

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// Verb is a command: which call it is. Unary makes one.
type Verb struct {
	// Name is the last part of the subject.
	Name string
	// What says in a sentence what it does.
	What string
	// Timeout bounds the call.
	Timeout time.Duration
	// MaxRequestBytes bounds a request; 0: 16 KiB.
	MaxRequestBytes int
	// Request returns an empty request of the call.
	Request func() proto.Message
	// Complete, if not nil, fills in what the sender left out and what the id of its request decides: a
	// repeat that nobody remembers any more must be the same request.
	Complete func(requestID string, request proto.Message)
	// Call makes the call with a message of Request.
	Call func(context.Context, adminv1.AdminServiceClient, proto.Message) (proto.Message, error)
}

// Unary returns the verb of a call with one answer, given as the method of the client.
func Unary[Q, R any, Request interface {
	*Q
	proto.Message
}, Response interface {
	*R
	proto.Message
}](name, what string, timeout time.Duration,
	call func(adminv1.AdminServiceClient, context.Context, Request, ...grpc.CallOption) (Response, error),
) Verb {
	return Verb{
		Name: name, What: what, Timeout: timeout,
		Request: func() proto.Message { return Request(new(Q)) },
		Call: func(ctx context.Context, c adminv1.AdminServiceClient, m proto.Message) (proto.Message, error) {
			request, ok := m.(Request)
			if !ok {
				return nil, fmt.Errorf("%s: %T is no request of it", name, m) // a mistake in the table of verbs
			}
			return call(c, ctx, request)
		},
	}
}

// Arguments are the names of the fields of its request, in their order.
func (v Verb) Arguments() []string {
	fields := v.Request().ProtoReflect().Descriptor().Fields()
	names := make([]string, fields.Len())
	for i := range names {
		names[i] = string(fields.Get(i).Name())
	}
	return names
}

// Table is the table of verbs in the documentation.
func Table(verbs []Verb) string {
	var b strings.Builder
	b.WriteString("| verb | what it does | arguments |\n|---|---|---|\n")
	for _, v := range verbs {
		arguments := "–"
		if names := v.Arguments(); len(names) > 0 {
			arguments = "`" + strings.Join(names, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.Name, v.What, arguments)
	}
	return b.String()
}

const (
	// maxRequestBytes bounds a request whose verb sets no limit: most have a name or two.
	maxRequestBytes = 16 << 10
	// maxRequestID bounds a request id.
	maxRequestID = 128
)

// request is a request that was taken apart.
type request struct {
	id      string
	message proto.Message
}

// parse takes a request apart for a node. The error is a refusal with its reason.
func parse(v Verb, nodeID string, data []byte) (request, error) {
	if limit := v.maxRequest(); len(data) > limit {
		return request{}, refuse("REQUEST_TOO_LARGE", "the request has %d bytes, at most %d", len(data), limit)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil || fields == nil {
		return request{}, refuse("MALFORMED", "the request is no JSON object")
	}
	var id, node string
	if !take(fields, "request_id", &id) || !take(fields, "node_id", &node) {
		return request{}, refuse("MALFORMED", "request_id and node_id are texts")
	}
	if len(id) < 1 || len(id) > maxRequestID {
		return request{}, refuse("NO_REQUEST_ID", "the request has no request_id of 1 to %d bytes", maxRequestID)
	}
	if node != "" && node != nodeID {
		return request{id: id}, refuse("OTHER_NODE", "the request is for node %.100q, this is %q", node, nodeID)
	}
	rest, err := json.Marshal(fields)
	if err != nil {
		return request{id: id}, refuse("MALFORMED", "the request is no JSON object")
	}
	m := v.Request()
	if err := protojson.Unmarshal(rest, m); err != nil {
		return request{id: id}, refuse("MALFORMED", "arguments of %s: %.200s", v.Name, err)
	}
	if v.Complete != nil {
		v.Complete(id, m)
	}
	return request{id: id, message: m}, nil
}

func (v Verb) maxRequest() int {
	if v.MaxRequestBytes > 0 {
		return v.MaxRequestBytes
	}
	return maxRequestBytes
}

// take removes a text from the fields; it reports false for what is no text.
func take(fields map[string]json.RawMessage, key string, into *string) bool {
	raw, ok := fields[key]
	delete(fields, key)
	return !ok || json.Unmarshal(raw, into) == nil
}

// refusal is a request that is not passed on.
type refusal struct{ reason, message string }

func (r *refusal) Error() string { return r.reason + ": " + r.message }

func refuse(reason, format string, args ...any) error {
	return &refusal{reason, fmt.Sprintf(format, args...)}
}
