package ownership

import (
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// gate is what requests are held against. It is immutable; all ranges are in normal form.
type gate struct {
	damage error
	// given are other nodes', foreign too, but what the node has of them is still read here; owners are those
	// nodes. fenced take no writes, moving take nothing.
	given, foreign []ring.HashRange
	owners         []part
	fenced, moving []ring.HashRange
}

// gateOf returns the gate of a state, nil when it would let everything pass.
func gateOf(s *state) *gate {
	g := &gate{
		given: s.view.Given, owners: s.ground.given, fenced: s.view.Fenced,
		moving: ring.Union(s.view.Prepared, s.view.Regained),
	}
	if s.leaving != nil {
		g.owners = append(slices.Clone(g.owners), s.leaving.others...)
		if all := allOf(s.leaving.others); s.leaving.gone {
			g.given = ring.Union(g.given, all)
		} else {
			g.foreign = ring.Subtract(all, allOf(s.ground.taken)) // its own until it hands them over too
		}
	}
	if !s.harmless {
		g.damage = s.damage
	}
	if s.joining || s.unheard {
		// What it was not handed over, it does not have: it must not call a key absent.
		g.moving = ring.Union(g.moving, ring.Subtract([]ring.HashRange{{}}, allOf(s.ground.taken)))
	}
	if g.damage == nil && len(g.given) == 0 && len(g.foreign) == 0 && len(g.fenced) == 0 && len(g.moving) == 0 {
		return nil
	}
	return g
}

// How long a client waits that meets a range on its way, and a node that has to wait for a drop.
const (
	movingRetry = 100 * time.Millisecond
	dropWait    = time.Second
)

var errMoving = &store.Error{
	Reason: store.ReasonRangeMoving, RetryAfter: movingRetry,
	Message: "the range of the key is being handed over from one node to another: try again",
}

var errDropping = &store.Error{
	Reason: store.ReasonRangeMoving, RetryAfter: dropWait,
	Message: "what this node held of the range when it last had it is removed first: try again",
}

// Active reports whether any request could be refused. It costs one atomic load.
func (r *Registry) Active() bool { return r.gate.Load() != nil }

// Admit returns why a request for a key with the token is refused, or nil: NOT_OWNER for ranges that were
// given away, and for writes of those that a node which leaves never had; RANGE_MOVING for reads and writes
// of ranges that are being taken over, and for writes of those that are fenced. Writes ask under the lock of
// their key.
func (r *Registry) Admit(token uint64, write bool) error {
	g := r.gate.Load()
	switch {
	case g == nil:
		return nil
	case g.damage != nil:
		return damaged(g.damage)
	case ring.In(g.given, token), write && ring.In(g.foreign, token):
		r.notOwner.Add(1)
		return notOwner(g.owners, token)
	case ring.In(g.moving, token), write && ring.In(g.fenced, token):
		r.moving.Add(1)
		return errMoving
	}
	return nil
}

// notOwner names the owner of the range of a token.
func notOwner(owners []part, token uint64) error {
	var o Owner
	for _, p := range owners {
		if ring.In(p.ranges, token) {
			o = p.node
			break
		}
	}
	return &store.Error{
		Reason: store.ReasonNotOwner, Message: "the range of the key belongs to node " + o.NodeID + " now",
		Metadata: map[string]string{"owner_node_id": o.NodeID, "owner_addr": o.Addr},
	}
}

// Refused counts requests since the start that were refused with NOT_OWNER and with RANGE_MOVING.
func (r *Registry) Refused() (notOwner, moving uint64) { return r.notOwner.Load(), r.moving.Load() }

// Ingest has apply bring in a batch of records that another node sent, if those with the tokens may come
// in. apply returns when all are applied, durable or not, and takes as long as that takes: a Fence waits.
//
// Ranges that were given away are admitted: they may be on their way back, and nobody is served from them
// before Accept. What is fenced is refused, so that nothing is newer than the fence, and so is what has a
// residue: that goes first, in the background, and the refusal says when to come back.
func (r *Registry) Ingest(tokens []uint64, apply func() error) error {
	r.ingesting.RLock()
	defer r.ingesting.RUnlock()
	s := r.state.Load()
	if s.damage != nil {
		return damaged(s.damage)
	}
	if len(s.view.Fenced) > 0 || len(s.ground.residue) > 0 {
		for _, token := range tokens {
			if err := r.admitIngest(s, token); err != nil {
				return err
			}
		}
	}
	return apply()
}

func (r *Registry) admitIngest(s *state, token uint64) error {
	if ring.In(s.view.Fenced, token) {
		return errMoving
	}
	for _, e := range s.ground.residue {
		if ring.In(e.Ranges, token) {
			r.want(e.Ranges)
			return errDropping
		}
	}
	return nil
}

// Exchange returns why ranges, none for the whole ring, can't be compared with those of another replica or
// copied to one, or nil: what the node holds of them from an earlier time has to go first, which happens in
// the background.
func (r *Registry) Exchange(ranges []ring.HashRange) error {
	s := r.state.Load()
	if s.damage != nil {
		return damaged(s.damage)
	}
	if len(ranges) == 0 {
		ranges = []ring.HashRange{{}}
	}
	if old := ring.Intersect(s.view.Regained, ranges); len(old) > 0 {
		r.want(old)
		return errDropping
	}
	return nil
}
