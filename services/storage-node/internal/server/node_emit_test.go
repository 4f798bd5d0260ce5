package server

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/libs/event"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// emitter keeps what it is given.
type emitter struct {
	events []event.Event
	err    error
}

func (e *emitter) Add(_ context.Context, x event.Event) error {
	e.events = append(e.events, x)
	return e.err
}

func emitRequest() *nodev1.EmitRequest {
	return &nodev1.EmitRequest{
		Id: "agent.7f.1", Kind: event.MembershipJoined, TimeMs: 1_796_000_000_123, Payload: []byte(`{"member":{"declared":{"node_id":"n2"}}}`),
	}
}

// Danger: an event of a sidecar is changed on its way, or readers meet as many forms as there are
// sidecars.
func TestEmittedEventsAreHandedOverInOneForm(t *testing.T) {
	out := &emitter{}
	n := New(Node{Events: out}).NewNode(Identity{})
	r := emitRequest()
	r.Kind, r.Payload = event.NodeReady, []byte(`{ "tookMs": 840 }`)
	_, err := n.Emit(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, []event.Event{{ID: r.Id, Kind: r.Kind, Time: time.UnixMilli(r.TimeMs), Data: []byte(`{"took_ms":"840"}`)}}, out.events)
}

// Danger: a sidecar that is wrong, or hostile, publishes under the node's name what no reader can take.
func TestEventsThatAreNoneAreRefused(t *testing.T) {
	for name, change := range map[string]func(*nodev1.EmitRequest){
		"no id":               func(r *nodev1.EmitRequest) { r.Id = "" },
		"long id":             func(r *nodev1.EmitRequest) { r.Id = strings.Repeat("x", 129) },
		"id with a break":     func(r *nodev1.EmitRequest) { r.Id = "a\r\nNats-Expected-Stream: x" },
		"unknown kind":        func(r *nodev1.EmitRequest) { r.Kind = "node.exploded" },
		"no kind":             func(r *nodev1.EmitRequest) { r.Kind = "" },
		"no time":             func(r *nodev1.EmitRequest) { r.TimeMs = 0 },
		"time before time":    func(r *nodev1.EmitRequest) { r.TimeMs = -1 },
		"time after time":     func(r *nodev1.EmitRequest) { r.TimeMs = 1 << 60 },
		"no payload":          func(r *nodev1.EmitRequest) { r.Payload = nil },
		"payload no JSON":     func(r *nodev1.EmitRequest) { r.Payload = []byte(`{`) },
		"payload of another":  func(r *nodev1.EmitRequest) { r.Payload = []byte(`{"member":"n2"}`) },
		"payload too large":   func(r *nodev1.EmitRequest) { r.Payload = []byte(`{"x":"` + strings.Repeat("x", 16<<10) + `"}`) },
		"payload of a string": func(r *nodev1.EmitRequest) { r.Payload = []byte(`"member"`) },
	} {
		t.Run(name, func(t *testing.T) {
			out := &emitter{}
			r := emitRequest()
			change(r)
			_, err := New(Node{Events: out}).NewNode(Identity{}).Emit(t.Context(), r)
			require.Error(t, err)
			found := lookup(err)
			require.Equal(t, codes.InvalidArgument, found.code)
			require.Equal(t, "INVALID_ARGUMENT_EVENT", found.reason)
			require.Empty(t, out.events)
		})
	}
}

// Danger: a sidecar takes its event for stored while the node is going away.
func TestEventsOfANodeThatStopsAreRefusedForALittle(t *testing.T) {
	out := &emitter{err: errors.New("closed")}
	_, err := New(Node{Events: out}).NewNode(Identity{}).Emit(t.Context(), emitRequest())
	require.Equal(t, "STOPPING", lookup(err).reason)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out.err = ctx.Err()
	_, err = New(Node{Events: out}).NewNode(Identity{}).Emit(ctx, emitRequest())
	require.Equal(t, codes.Canceled, lookup(err).code)
}
