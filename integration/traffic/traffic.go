// Package traffic is many clients of a cluster at once, of every kind that there is: applications that write
// with and without what they read before, coordinators that write to a quorum, users of one register.
// Everything that they do, and what came of it, is in a history. It never judges.
package traffic

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pairdb/pairdb/integration/history"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/ring"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
)

// Tenant has all keys of the traffic.
const Tenant = "robust"

// Node is where a node serves clients.
type Node struct{ Name, Addr string }

// Options of a traffic.
type Options struct {
	// Nodes are the members of the ring: who of them keeps a key is asked for it.
	Nodes func() []Node
	// Log receives what is done.
	Log *history.Log
	// Seed of what the clients choose; the order of their calls is the machine's.
	Seed uint64
	// PerSecond is how many steps all clients take together; a step is one to twelve calls.
	PerSecond int
}

const (
	// applications, coordinators and users are the numbers of clients.
	applications, coordinators, users = 6, 3, 4
	// Keys are left behind after a generation, so that each has a history that can be judged; one step in
	// rareOld goes to one of an earlier generation.
	generation = 5 * time.Second
	rareOld    = 20
	// sharedKeys and registers (of each node) are the keys of a generation.
	sharedKeys, registers = 16, 3
	// timeout of a try, and patience of a client that repeats.
	timeout, patience = 2 * time.Second, time.Second
	// lifetime of the values that have one.
	lifetime = 3 * time.Second
	// filling is how much longer a value is than its name, at most.
	filling = 3 << 10
	// atOnce are the writes of a batch or a pipeline.
	atOnce = 8
)

// RegisterPrefix begins the keys that are used at one node only: each of them is a register.
const RegisterPrefix = "register/"

// Traffic is running clients.
type Traffic struct {
	o      Options
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	conns   map[string]*peer // guarded by mu; by address
	members []Node           // guarded by mu; those of ring
	ring    *ring.Ring       // guarded by mu
	// guarded by mu; the largest counter that an answer had, by key and actor
	seen map[string]uint64
}

// peer is a node with two clients: one that repeats what it can do exactly, one that never does.
type peer struct {
	Node
	stubborn, once *client.Client
}

// Start starts the clients.
func Start(ctx context.Context, o Options) *Traffic {
	ctx, cancel := context.WithCancel(ctx)
	t := &Traffic{o: o, cancel: cancel, conns: map[string]*peer{}, seen: map[string]uint64{}}
	stream := uint64(0)
	begin := func(kind string, count int, step func(*actor, context.Context)) {
		for i := range count {
			stream++
			a := &actor{t: t, name: fmt.Sprintf("%s-%d", kind, i), random: rand.New(rand.NewPCG(o.Seed, stream)), clocks: map[string]history.Clock{}}
			t.done.Go(func() { a.run(ctx, step) })
		}
	}
	begin("app", applications, (*actor).application)
	begin("coordinator", coordinators, (*actor).coordinator)
	begin("user", users, (*actor).register)
	return t
}

// Stop ends the clients and waits for what is under way.
func (t *Traffic) Stop() {
	t.cancel()
	t.done.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.conns {
		p.stubborn.Close() // nothing is under way
		p.once.Close()
	}
	clear(t.conns)
}

// replication is how many nodes keep a key.
const replication = 3

// peers are the nodes that keep a key, connected.
func (t *Traffic) peers(key string) []*peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	if members := t.o.Nodes(); !slices.Equal(members, t.members) {
		var of []ring.Member
		for _, n := range members {
			of = append(of, ring.Member{NodeID: n.Name, VirtualNodes: 150})
		}
		t.members, t.ring = members, ring.New(of, replication)
	}
	owners := t.ring.Replicas(ring.Token(Tenant, key))
	var out []*peer
	for _, n := range t.members {
		if slices.Contains(owners, n.Name) {
			out = append(out, t.connect(n))
		}
	}
	return out
}

// connect returns the clients of a node; mu is held.
func (t *Traffic) connect(n Node) *peer {
	p := t.conns[n.Addr]
	if p != nil {
		return p
	}
	p = &peer{Node: n}
	var err error
	if p.stubborn, err = client.New(n.Addr, client.Options{Tenant: Tenant, Timeout: timeout, RetryFor: patience}); err != nil {
		panic(err) // an address that the runner made
	}
	if p.once, err = client.New(n.Addr, client.Options{Tenant: Tenant, Timeout: timeout, RetryFor: -1}); err != nil {
		panic(err) // likewise
	}
	t.conns[n.Addr] = p
	return p
}

// actor is one client.
type actor struct {
	t      *Traffic
	name   string
	random *rand.Rand
	writes int
	clocks map[string]history.Clock // of a coordinator: what it last wrote, by key
}

func (a *actor) run(ctx context.Context, step func(*actor, context.Context)) {
	pace := time.NewTicker(time.Second * (applications + coordinators + users) / time.Duration(a.t.o.PerSecond))
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		// What was begun is not cut off, so that less is unknown.
		step(a, context.WithoutCancel(ctx))
	}
}

// id is the name of a new write.
func (a *actor) id() string {
	a.writes++
	return fmt.Sprintf("%s-%d", a.name, a.writes)
}

// bytes is the value of a write: its name and something that nobody looks at.
func (a *actor) bytes(id string) []byte {
	return []byte(id + " " + strings.Repeat("x", a.random.IntN(filling)))
}

// generation is that of now, or now and then an earlier one.
func (a *actor) generation() int {
	g := int(a.t.o.Log.Now() / generation)
	if g > 0 && a.random.IntN(rareOld) == 0 {
		return a.random.IntN(g)
	}
	return g
}

func (a *actor) sharedKey() string {
	return fmt.Sprintf("shared/%04d/%d", a.generation(), a.random.IntN(sharedKeys))
}

// peer is one of those that keep a key.
func (a *actor) peer(key string) *peer {
	all := a.t.peers(key)
	return all[a.random.IntN(len(all))]
}

// begin is an operation that starts now.
func (a *actor) begin(kind history.Kind, p *peer, key string) history.Op {
	op := history.Op{Kind: kind, Key: key, Client: a.name, Node: p.Name, Start: a.t.o.Log.Now()}
	if kind != history.Read {
		op.ID = a.id()
	}
	return op
}

// end says how an operation ended.
func (a *actor) end(op *history.Op, err error) {
	op.End = a.t.o.Log.Now()
	op.Outcome = history.OK
	if err == nil {
		return
	}
	op.Outcome, op.Error = history.Failed, err.Error()
	if client.MaybeApplied(err) && op.Kind != history.Read {
		op.Outcome = history.Unknown
	}
	op.Refused = client.ConditionFailed(err)
}

// answered ends a write with its result.
func (a *actor) answered(op *history.Op, r client.Result, err error) {
	a.end(op, err)
	if err != nil {
		return
	}
	op.Clock = fromWire(r.Clock)
	if !op.Plain {
		op.Dot = a.t.dotOf(op.Key, op.Clock, op.Node)
	}
}

// dotOf returns the number that a node gave to the write of a key that led to a clock. Each process of a node
// is an actor of its own: of several, it is the one whose entry nobody has seen before. Where that does not
// tell, the write has no known number.
func (t *Traffic) dotOf(key string, c history.Clock, node string) history.Dot {
	t.mu.Lock()
	defer t.mu.Unlock()
	var own, fresh []history.Dot
	for actor, n := range c {
		if !strings.HasPrefix(actor, node+"/") {
			continue
		}
		own = append(own, history.Dot{Actor: actor, Counter: n})
		if n > t.seen[key+"\x00"+actor] {
			fresh = append(fresh, history.Dot{Actor: actor, Counter: n})
		}
	}
	t.noteLocked(key, c)
	switch {
	case len(own) == 1:
		return own[0]
	case len(fresh) == 1:
		return fresh[0]
	}
	return history.Dot{}
}

// noteLocked remembers the entries of a clock of a key; mu is held.
func (t *Traffic) noteLocked(key string, c history.Clock) {
	for actor, n := range c {
		k := key + "\x00" + actor
		t.seen[k] = max(t.seen[k], n)
	}
}

// note is noteLocked.
func (t *Traffic) note(key string, c history.Clock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noteLocked(key, c)
}

// read reads a key at a node and records it. The value is zero if that failed.
func (a *actor) read(ctx context.Context, p *peer, key string) (client.Value, bool) {
	op := a.begin(history.Read, p, key)
	v, err := p.once.Get(ctx, key)
	a.end(&op, err)
	if err == nil {
		Answer(&op, v)
		a.t.note(key, op.Clock)
	}
	a.t.o.Log.Add(op)
	return v, err == nil
}

// Answer puts what a read found into its operation.
func Answer(op *history.Op, v client.Value) {
	op.Clock = fromWire(v.Clock)
	if v.Found && v.Siblings == nil {
		op.Values = append(op.Values, name(v.Bytes))
	}
	for _, s := range v.Live() {
		op.Values = append(op.Values, name(s.GetValue()))
	}
}

// name is the write that stored a value.
func name(value []byte) string {
	id, _, _ := strings.Cut(string(value), " ")
	return id
}

func fromWire(c client.Clock) history.Clock {
	if c == nil {
		return nil
	}
	out := history.Clock{}
	for _, e := range c.GetEntries() {
		out[e.GetNodeId()] = e.GetCounter()
	}
	return out
}

func toWire(c history.Clock) client.Clock {
	out := &datav1.VectorClock{}
	for actor, n := range c {
		out.Entries = append(out.Entries, &datav1.ClockEntry{NodeId: actor, Counter: n})
	}
	return out
}
