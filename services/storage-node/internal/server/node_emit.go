package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pairdb/pairdb/libs/event"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// Emitter takes the events of sidecars. Add returns when the event is stored; an id that was taken
// before changes nothing.
type Emitter interface {
	Add(ctx context.Context, e event.Event) error
}

// Emit takes an event of a sidecar. What is in it is checked here: it leaves the pod under the name of
// this node.
func (n *nodeService) Emit(ctx context.Context, r *nodev1.EmitRequest) (*nodev1.EmitResponse, error) {
	e, err := emitted(r)
	if err != nil {
		return nil, err
	}
	err = n.s.node.Events.Add(ctx, e)
	if err != nil && ctx.Err() == nil && !errors.Is(err, event.ErrInvalid) {
		return nil, fmt.Errorf("%w: %w", ErrStopping, err)
	}
	return &nodev1.EmitResponse{}, err
}

// emitted returns the event of a request. Its payload is written anew, so that readers find one form
// of JSON whoever made it.
func emitted(r *nodev1.EmitRequest) (event.Event, error) {
	if err := event.CheckID(r.GetId()); err != nil {
		return event.Event{}, err
	}
	payload, err := event.DecodePayload(r.GetKind(), r.GetPayload())
	if err != nil {
		return event.Event{}, err
	}
	e := event.Event{ID: r.GetId(), Kind: r.GetKind(), Time: time.UnixMilli(r.GetTimeMs())}
	if e.Data, err = event.EncodePayload(e.Kind, payload); err != nil {
		return event.Event{}, err
	}
	return e, event.CheckTime(e.Time)
}
