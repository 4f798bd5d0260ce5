package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/health-agent/internal/gossip"
)

const (
	// maxPending bounds the events that wait for the node: a failure of every other member of a large
	// cluster. The oldest go first.
	maxPending = 1000
	// emitsAtOnce bounds what one round emits, so that reports are not late.
	emitsAtOnce = 50
)

// kindOf returns the kind of event that a change is, "" when it is none: being suspected is no event.
func kindOf(t gossip.Transition) string {
	switch to := t.Member.Liveness; {
	case to == gossip.Down:
		return "membership.failed"
	case to == gossip.Left:
		return "membership.left"
	case to == gossip.Alive && t.From != gossip.Suspect:
		return "membership.joined"
	}
	return ""
}

// newEvent returns the event of a change that observer saw.
func newEvent(observer string, t gossip.Transition) (*nodev1.EmitRequest, error) {
	kind := kindOf(t)
	payload, err := protojson.Marshal(&eventv1.MembershipChanged{Member: memberToProto(t.Member)})
	if err != nil {
		return nil, err
	}
	at := t.Member.Since.UnixMilli()
	// 12 bytes of the hash: behind an observer of 100 bytes they leave the id below its 128.
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%s/%d", observer, t.Member.Declared.NodeID, kind, at))
	return &nodev1.EmitRequest{Id: observer + "/" + hex.EncodeToString(sum[:12]), Kind: kind, TimeMs: at, Payload: payload}, nil
}

// collect turns changes into events that wait for the node.
func (a *Agent) collect(transitions []gossip.Transition) {
	for _, t := range transitions {
		a.o.Log.Info("member changed", "member", t.Member.Declared.NodeID, "from", t.From.String(), "to", t.Member.Liveness.String(), "addr", t.Member.Addr)
		if kindOf(t) == "" {
			continue
		}
		e, err := newEvent(a.identity.nodeID, t)
		if err != nil {
			a.o.Log.Error("event is not sent", "member", t.Member.Declared.NodeID, "error", err)
			continue
		}
		a.pending = append(a.pending, e)
	}
	if n := len(a.pending) - maxPending; n > 0 {
		a.o.Log.Warn("events dropped", "count", n)
		a.pending = a.pending[n:]
	}
}

// emit hands events to the node, in their order. What the node refuses for good is dropped; the rest
// waits for the next round.
func (a *Agent) emit(ctx context.Context) {
	for range emitsAtOnce {
		if len(a.pending) == 0 {
			return
		}
		e := a.pending[0]
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := a.o.Node.Emit(ctx, e, failFast)
		cancel()
		switch status.Code(err) {
		case codes.OK:
		case codes.InvalidArgument, codes.Unimplemented, codes.PermissionDenied:
			a.o.Log.Warn("event refused", "id", e.GetId(), "kind", e.GetKind(), "error", err)
		default:
			return
		}
		a.pending = a.pending[1:]
	}
}
