package traffic

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pairdb/pairdb/integration/history"
	"github.com/pairdb/pairdb/libs/client"
)

// put writes a value to a node, or deletes the key, and records that. opts say the same as op.
func (a *actor) put(ctx context.Context, c *client.Client, op history.Op, value []byte, opts ...client.WriteOption) {
	if op.TTL != 0 {
		opts = append(opts, client.WithTTL(op.TTL))
	}
	var r client.Result
	var err error
	if op.Kind == history.Put {
		r, err = c.Put(ctx, op.Key, value, opts...)
	} else {
		r, err = c.Delete(ctx, op.Key, opts...)
	}
	a.answered(&op, r, err)
	a.t.o.Log.Add(op)
}

// application does one of the things that applications do, at any node.
func (a *actor) application(ctx context.Context) {
	key := a.sharedKey()
	p := a.peer(key)
	c := p.once
	if a.random.IntN(2) == 0 {
		c = p.stubborn
	}
	kind := history.Put
	if a.random.IntN(6) == 0 {
		kind = history.Delete
	}
	switch dice := a.random.IntN(100); {
	case dice < 35:
		a.read(ctx, p, key)
	case dice < 50: // blind
		op := a.begin(kind, p, key)
		op.Blind = true
		a.put(ctx, c, op, a.bytes(op.ID))
	case dice < 75: // with what was read before, now and then elsewhere
		from := p
		if a.random.IntN(3) == 0 {
			from = a.peer(key)
		}
		v, ok := a.read(ctx, from, key)
		if !ok {
			return
		}
		op := a.begin(kind, p, key)
		op.Seen = fromWire(v.Clock)
		a.put(ctx, c, op, a.bytes(op.ID), client.WithContext(v.Clock))
	case dice < 82:
		op := a.begin(history.Put, p, key)
		op.Blind, op.TTL = true, lifetime
		a.put(ctx, c, op, a.bytes(op.ID))
	case dice < 91:
		a.batch(ctx, p, c)
	default:
		a.pipeline(ctx, p)
	}
}

// several begins writes to some keys of one node.
func (a *actor) several(p *peer) (ops []history.Op) {
	seen := map[string]bool{}
	for range atOnce {
		key := a.sharedKey()
		if seen[key] || !slices.Contains(a.t.peers(key), p) {
			continue
		}
		seen[key] = true
		op := a.begin(history.Put, p, key)
		op.Blind = true
		ops = append(ops, op)
	}
	return ops
}

func (a *actor) batch(ctx context.Context, p *peer, c *client.Client) {
	b := client.Batch{Atomic: a.random.IntN(2) == 0}
	ops := a.several(p)
	if len(ops) == 0 {
		return
	}
	for i := range ops {
		if a.random.IntN(6) == 0 {
			ops[i].Kind = history.Delete
			b.Delete(ops[i].Key)
			continue
		}
		b.Put(ops[i].Key, a.bytes(ops[i].ID))
	}
	results, err := c.WriteResults(ctx, &b)
	for i := range ops {
		var r client.Result
		if i < len(results) {
			r = results[i]
		}
		if r.Outcome != 0 {
			a.answered(&ops[i], r, nil)
			continue
		}
		a.end(&ops[i], itemOf(err, i))
	}
	a.t.o.Log.Add(ops...)
}

// itemOf is what became of an item that has no result: its own error, or that of the whole batch.
func itemOf(err error, index int) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			var item *client.ItemError
			if errors.As(e, &item) && item.Index == index {
				return e
			}
			var whole *client.BatchError
			if errors.As(e, &whole) {
				return e
			}
		}
	}
	if err == nil {
		return errors.New("neither a result nor an error")
	}
	return err
}

func (a *actor) pipeline(ctx context.Context, p *peer) {
	ctx, cancel := context.WithTimeout(ctx, 2*timeout)
	defer cancel()
	s, err := p.once.Pipeline(ctx)
	if err != nil {
		return // nothing was sent
	}
	ops := a.several(p)
	if len(ops) == 0 {
		_ = s.Close() // nothing was sent
		return
	}
	writes := make([]*client.Future[client.Result], len(ops))
	for i := range ops {
		writes[i] = s.Put(ops[i].Key, a.bytes(ops[i].ID))
	}
	read := a.begin(history.Read, p, ops[0].Key)
	value := s.Get(read.Key)
	for i := range ops {
		r, err := writes[i].Wait(ctx)
		a.answered(&ops[i], r, err)
	}
	v, err := value.Wait(ctx)
	a.end(&read, err)
	if err == nil {
		Answer(&read, v)
	}
	a.t.o.Log.Add(append(ops, read)...)
	_ = s.Close() // what each operation came to is known
}

// quorum is how many of the replicas must answer a coordinator.
const quorum = 2

// coordinator reads a key at a quorum and writes it, with a clock of its own, to all replicas.
func (a *actor) coordinator(ctx context.Context) {
	key := a.sharedKey()
	peers := a.t.peers(key)

	seen := history.Clock{}
	seen.Join(a.clocks[key])
	answers := 0
	var mu sync.Mutex
	each(peers, func(p *peer) {
		v, ok := a.read(ctx, p, key)
		mu.Lock()
		defer mu.Unlock()
		if ok {
			answers++
			seen.Join(fromWire(v.Clock))
		}
	})
	if answers < quorum || a.random.IntN(4) == 0 {
		return
	}
	op := a.begin(history.Put, peers[0], key)
	op.Plain, op.Seen = true, seen
	op.Dot = history.Dot{Actor: a.name, Counter: seen[a.name] + 1}
	switch a.random.IntN(10) {
	case 0, 1:
		op.Kind = history.Delete
	case 2:
		op.TTL = lifetime
	}
	clock := maps.Clone(seen)
	clock[op.Dot.Actor] = op.Dot.Counter
	a.clocks[key] = clock
	value := a.bytes(op.ID)
	each(peers, func(p *peer) {
		mine := op
		mine.Node, mine.Start = p.Name, a.t.o.Log.Now()
		a.put(ctx, p.once, mine, value, client.WithClock(toWire(clock)))
	})
}

// each does something at all peers at once.
func each(peers []*peer, f func(*peer)) {
	var all sync.WaitGroup
	for _, p := range peers {
		all.Go(func() { f(p) })
	}
	all.Wait()
}

// register uses a key that only one node is asked for.
func (a *actor) register(ctx context.Context) {
	members := a.t.o.Nodes()
	n := members[a.random.IntN(len(members))]
	key := fmt.Sprintf("%s%s/%04d/%d", RegisterPrefix, n.Name, int(a.t.o.Log.Now()/generation), a.random.IntN(registers))
	peers := a.t.peers(key)
	at := slices.IndexFunc(peers, func(p *peer) bool { return p.Name == n.Name })
	if at < 0 {
		return // it does not keep this one
	}
	p := peers[at]
	switch dice := a.random.IntN(100); {
	case dice < 45:
		a.read(ctx, p, key)
	case dice < 65:
		op := a.begin(history.Put, p, key)
		op.Blind = true
		a.put(ctx, p.stubborn, op, a.bytes(op.ID))
	case dice < 75:
		op := a.begin(history.Delete, p, key)
		op.Blind = true
		a.put(ctx, p.stubborn, op, a.bytes(op.ID))
	case dice < 85:
		op := a.begin(history.Put, p, key)
		op.Blind, op.IfAbsent = true, true
		a.put(ctx, p.stubborn, op, a.bytes(op.ID), client.IfAbsent())
	default: // swap what was read
		v, ok := a.read(ctx, p, key)
		if !ok || !v.Found || v.Siblings != nil {
			return
		}
		op := a.begin(history.Put, p, key)
		op.Blind, op.IfValue = true, name(v.Bytes)
		a.put(ctx, p.stubborn, op, a.bytes(op.ID), client.IfValue(v.Bytes))
	}
}

// Final reads all keys of a history at nodes, as operations that come after it. It asks again until each
// node has answered, or ctx ends.
func Final(ctx context.Context, log *history.Log, nodes []Node) ([]history.Op, error) {
	seen := map[string]bool{}
	var keys []string
	for _, op := range log.Ops() {
		if !seen[op.Key] {
			seen[op.Key] = true
			keys = append(keys, op.Key)
		}
	}
	var out []history.Op
	for _, n := range nodes {
		c, err := client.New(n.Addr, client.Options{Tenant: Tenant, Timeout: 20 * time.Second, RetryFor: time.Minute})
		if err != nil {
			return nil, err
		}
		start := log.Now()
		values, err := c.GetMany(ctx, keys)
		c.Close() // nothing is under way
		if err != nil {
			return nil, fmt.Errorf("read everything at %s: %w", n.Name, err)
		}
		for i, v := range values {
			op := history.Op{Kind: history.Read, Key: keys[i], Client: "final", Node: n.Name, Start: start, End: log.Now(), Outcome: history.OK}
			Answer(&op, v)
			out = append(out, op)
		}
	}
	return out, nil
}
