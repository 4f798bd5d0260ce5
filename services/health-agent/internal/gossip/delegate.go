package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/pairdb/pairdb/libs/membership"
)

// The first byte of a message says what it carries.
const (
	// kindDeclarations: an encoded map.
	kindDeclarations = 1
	// kindLeave: a member takes leave: when its agent started, as a varint, and its node id. It is in the
	// meta as well, whose last version may be overtaken by the end itself.
	kindLeave = 2
)

// delegate is what memberlist calls.
type delegate struct{ g *Gossip }

var (
	_ memberlist.Delegate         = delegate{}
	_ memberlist.EventDelegate    = delegate{}
	_ memberlist.ConflictDelegate = delegate{}
	_ memberlist.AliveDelegate    = delegate{}
	_ memberlist.PingDelegate     = delegate{}
)

// NodeMeta returns what this agent says of itself.
func (d delegate) NodeMeta(int) []byte { return d.g.view.ownMeta().encode() }

// LocalState returns the declared map for a push/pull.
func (d delegate) LocalState(bool) []byte {
	d.g.o.Metrics.messages.WithLabelValues(msgPushPullSent).Inc()
	b, err := d.g.view.encoded()
	if err != nil {
		d.g.o.Log.Error("declared members are not sent", "error", err)
		return nil
	}
	return b
}

// MergeRemoteState takes the declared map of another.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	d.g.o.Metrics.messages.WithLabelValues(msgPushPullReceived).Inc()
	changed := d.g.take(b, refusedState)
	if len(changed) <= maxAtOnce {
		d.g.broadcast(changed)
	}
}

// NotifyMsg takes a message. memberlist uses the bytes again.
func (d delegate) NotifyMsg(b []byte) {
	if len(b) == 0 {
		d.g.refusals.note(refusedMessage, "unknown", "an empty message")
		return
	}
	switch b[0] {
	case kindDeclarations:
		d.g.o.Metrics.messages.WithLabelValues(msgDeclarations).Inc()
		d.g.broadcast(d.g.take(b[1:], refusedMessage))
	case kindLeave:
		f := fields{b: b[1:]}
		since, id := int64(f.number()&(1<<63-1)), string(f.b)
		if f.bad || !membership.ValidNodeID(id) {
			d.g.refusals.note(refusedMessage, "unknown", "a leave that can't be read")
		} else if d.g.view.leaves(id, since, time.Now()) {
			d.g.broadcastLeave(id, since)
		}
	default:
		d.g.refusals.note(refusedMessage, "unknown", fmt.Sprintf("a message of %d bytes of an unknown kind", len(b)))
	}
}

// broadcastLeave tells the others that a member takes leave.
func (g *Gossip) broadcastLeave(id string, since int64) {
	b := binary.AppendUvarint([]byte{kindLeave}, uint64(since))
	g.queue.QueueBroadcast(news{id: "leave/" + id, message: append(b, id...)})
}

// GetBroadcasts returns news for a packet.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.g.queue.GetBroadcasts(overhead, limit)
}

// take joins an encoded map and returns what was new.
func (g *Gossip) take(b []byte, reason string) []membership.Declaration {
	m, err := membership.Decode(b)
	if err != nil {
		g.refusals.note(reason, "unknown", err.Error())
		return nil
	}
	changed, err := g.view.merge(m.Sorted())
	if err != nil {
		g.refusals.note(refusedMembers, "unknown", err.Error())
	}
	return changed
}

// broadcast tells the others of declarations, one a message: the next of the same member replaces one
// that is still waiting.
func (g *Gossip) broadcast(changed []membership.Declaration) {
	for _, d := range changed {
		b, err := membership.Encode(membership.Map{d.NodeID: d})
		if err != nil {
			g.o.Log.Error("declaration is not sent", "node_id", d.NodeID, "error", err)
			continue
		}
		g.queue.QueueBroadcast(news{id: d.NodeID, message: append([]byte{kindDeclarations}, b...)})
	}
}

// anchor stays in the queue for ever, because no packet holds it. A queue that becomes empty counts its
// entries from 1 again, even while one that replaces the last of its name is on its way in; then two
// entries of equal length may get one number, and the first of them is lost (memberlist 0.7).
type anchor struct{}

var anchorMessage = make([]byte, 1<<16)

// Invalidates: it replaces nothing.
func (anchor) Invalidates(memberlist.Broadcast) bool { return false }

// Message is longer than any packet.
func (anchor) Message() []byte { return anchorMessage }

// Finished is never called.
func (anchor) Finished() {}

// UniqueBroadcast makes memberlist look for nothing that it replaces.
func (anchor) UniqueBroadcast() {}

// news are a message on its way.
type news struct {
	id      string // the next of the same id replaces it
	message []byte
}

// Invalidates reports whether older news are void.
func (n news) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(news)
	return ok && o.id == n.id
}

// Name makes memberlist find what is void by its name.
func (n news) Name() string { return n.id }

// Message returns the bytes.
func (n news) Message() []byte { return n.message }

// Finished is called when they were sent often enough.
func (n news) Finished() {}

// NotifyJoin notes a member that came.
func (d delegate) NotifyJoin(n *memberlist.Node) {
	d.seen(n, msgJoin)
}

// NotifyUpdate notes what a member says newly of itself.
func (d delegate) NotifyUpdate(n *memberlist.Node) {
	d.seen(n, msgUpdate)
}

func (d delegate) seen(n *memberlist.Node, kind string) {
	d.g.o.Metrics.messages.WithLabelValues(kind).Inc()
	meta, err := decodeMeta(n.Meta)
	if err != nil {
		return // NotifyAlive has refused it
	}
	d.g.view.observe(n.Name, Alive, &meta, n.Address(), time.Now())
}

// NotifyLeave notes a member that went.
func (d delegate) NotifyLeave(n *memberlist.Node) {
	d.g.o.Metrics.messages.WithLabelValues(msgLeave).Inc()
	d.g.view.lost(n.Name, time.Now())
}

var errRefused = errors.New("refused")

// NotifyAlive is asked before a member is taken, and before each of its changes.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	g := d.g
	if n.Name == g.o.NodeID {
		if !g.updating.Load() && n.Address() == g.Addr() {
			g.view.confirm(time.Now())
		}
		return nil // memberlist can't do without ourselves; another of our name is NotifyConflict's business
	}
	g.o.Metrics.messages.WithLabelValues(msgAlive).Inc()
	if !membership.ValidNodeID(n.Name) {
		g.refusals.note(refusedMeta, n.Address(), fmt.Sprintf("node id %.120q", n.Name))
		return errRefused
	}
	if _, err := decodeMeta(n.Meta); err != nil {
		g.refusals.note(refusedMeta, n.Address(), fmt.Sprintf("%s: %v", n.Name, err))
		return errRefused
	}
	if !g.view.room(n.Name) {
		g.refusals.note(refusedMembers, n.Address(), n.Name)
		return errRefused
	}
	return nil
}

// NotifyConflict notes that two members have one node id; memberlist keeps existing.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	g := d.g
	g.refusals.note(refusedDuplicate, other.Address(), fmt.Sprintf("%s is at %s", existing.Name, existing.Address()))
	if existing.Name != g.o.NodeID {
		return
	}
	meta, err := decodeMeta(other.Meta)
	if err != nil {
		g.refusals.note(refusedMeta, other.Address(), err.Error())
		return
	}
	if g.view.meet(meta, other.Address(), time.Now()) {
		g.o.Log.Debug("another member has this node id", "addr", other.Address())
	}
}

// AckPayload is asked for with each probe that is answered.
func (d delegate) AckPayload() []byte {
	d.g.o.Metrics.messages.WithLabelValues(msgPingAnswered).Inc()
	return nil
}

// NotifyPingComplete notes a probe that was answered.
func (d delegate) NotifyPingComplete(n *memberlist.Node, roundTrip time.Duration, _ []byte) {
	d.g.o.Metrics.messages.WithLabelValues(msgPing).Inc()
	d.g.o.Metrics.roundTrip.Observe(roundTrip.Seconds())
	d.g.view.answered(n.Name, time.Now())
}
