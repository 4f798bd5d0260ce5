package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/pairdb/pairdb/libs/membership"
)

// Options of a Gossip. NodeID, ClusterID, Addr, Log and Metrics are required.
type Options struct {
	// NodeID is the name of this member, ClusterID the label of all packets.
	NodeID, ClusterID string
	// Addr is where to listen, TCP and UDP: IP:port, or :port for all addresses; port 0 is any.
	Addr string
	// Advertise is where others reach this agent, IP:port; empty: Addr, or a private address of the
	// machine when that is of all.
	Advertise string
	// Seeds are host:port, or dns+host:port for all addresses of a name.
	Seeds []string
	// Keyring is the file of the keys; empty: gossip is not encrypted.
	Keyring string
	// Meta is said from the first moment on.
	Meta Meta
	Log  *slog.Logger
	// Metrics count; they are of one Gossip.
	Metrics *Metrics

	// keyringEvery is how often the file of the keys is read; a test can't wait.
	keyringEvery time.Duration
}

const (
	// keyringEvery is how soon a rotation is seen, well below the time between its steps.
	keyringEvery = 5 * time.Second
	// updateTimeout is how long to wait until somebody was told of a new meta; it is told later too.
	updateTimeout = 2 * time.Second
	// leaveTimeout is how long to wait until somebody was told of our end: several gossip intervals.
	leaveTimeout = 3 * time.Second
	// maxAtOnce is how many changes of a push/pull are sent on as messages: above that it was a first
	// meeting, and the others get the map in the same way.
	maxAtOnce = 16
)

// Gossip is a running member. Close it.
type Gossip struct {
	o        Options
	list     *memberlist.Memberlist
	ring     *memberlist.Keyring // nil: not encrypted
	view     *view
	refusals *refusals
	queue    *memberlist.TransmitLimitedQueue
	resolver *net.Resolver
	metaDue  chan struct{} // capacity 1: the meta changed

	cancel    context.CancelFunc
	wg        sync.WaitGroup
	published chan struct{} // closed when publish has ended
	updating  atomic.Bool   // memberlist hears of ourselves from us
	close     sync.Once
	err       error // of Close
}

// Open listens and begins to join. It fails when the address or the keys can't be used; seeds that
// do not answer are tried for ever.
func Open(o Options) (*Gossip, error) {
	if o.keyringEvery == 0 {
		o.keyringEvery = keyringEvery
	}
	now := time.Now()
	o.Meta.since = now.UnixMilli()
	g := &Gossip{
		o: o, view: newView(o.NodeID, o.Meta, now), refusals: newRefusals(o.Log, o.Metrics),
		resolver: net.DefaultResolver, metaDue: make(chan struct{}, 1), published: make(chan struct{}),
	}
	g.queue = &memberlist.TransmitLimitedQueue{NumNodes: g.view.alive, RetransmitMult: retransmitMult}
	g.queue.QueueBroadcast(anchor{})
	config, err := g.config()
	if err != nil {
		return nil, err
	}
	transport, err := listen(config)
	if err != nil {
		return nil, fmt.Errorf("gossip on %s: %w", o.Addr, err)
	}
	config.Transport = transport
	if g.list, err = memberlist.Create(config); err != nil {
		// It ends the transport in some cases and forgets it in others. Whoever tries again needs the address.
		return nil, errors.Join(fmt.Errorf("gossip on %s: %w", o.Addr, err), transport.Shutdown())
	}
	// Only here: what memberlist returns belongs to it, and changes.
	local := g.list.LocalNode().Address()
	g.view.set(func(v *view) { v.addr = local })

	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	g.wg.Go(func() { g.join(ctx) })
	g.wg.Go(func() { g.publish(ctx) })
	if g.ring != nil {
		g.wg.Go(func() { g.watchKeyring(ctx) })
	}
	return g, nil
}

// listen binds the address of a configuration. A port that the kernel chooses is free for TCP, and may be taken for
// UDP: then another one is tried.
func listen(c *memberlist.Config) (*memberlist.NetTransport, error) {
	const tries = 10
	for i := 1; ; i++ {
		t, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{c.BindAddr}, BindPort: c.BindPort, Logger: c.Logger, MetricLabels: c.MetricLabels,
		})
		if err == nil || c.BindPort != 0 || i == tries {
			return t, err
		}
	}
}

// retransmitMult is how often news are sent, times the logarithm of the number of members: memberlist's
// own number on a LAN.
const retransmitMult = 4

// config is memberlist's preset for a LAN with what differs.
func (g *Gossip) config() (*memberlist.Config, error) {
	o := g.o
	bind, err := parseAddr(o.Addr)
	if err != nil {
		return nil, err
	}
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label = o.NodeID, o.ClusterID
	c.BindAddr, c.BindPort = bind.Addr().String(), int(bind.Port())
	if o.Advertise != "" {
		advertise, err := parseAddr(o.Advertise)
		if err != nil {
			return nil, err
		}
		c.AdvertiseAddr, c.AdvertisePort = advertise.Addr().String(), int(advertise.Port())
	}
	if o.Keyring != "" {
		keys, err := ReadKeyring(o.Keyring)
		if err != nil {
			return nil, err
		}
		if g.ring, err = memberlist.NewKeyring(keys, keys[0]); err != nil {
			return nil, fmt.Errorf("keyring: %w", err)
		}
		c.Keyring = g.ring
	}
	c.Delegate, c.Events, c.Conflict, c.Alive, c.Ping = delegate{g}, delegate{g}, delegate{g}, delegate{g}, delegate{g}
	c.Logger = log.New(&logReader{
		log: o.Log, refusals: g.refusals, suspect: func(id string) { g.view.suspect(id, time.Now()) },
	}, "", 0)

	// A dead member is to be seen as one within 10 s. It is probed within 3 s in small clusters, and by
	// more members in larger ones; a suspect then has 3 probes (4 in the preset) to object, and twice
	// that (6 times) when no second member confirms: 3 + 6 s at worst. Being taken for dead too early
	// costs little here, for it moves no data.
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = 3, 2
	// A member that finds itself slow probes up to 2 times more slowly (8 times), for the same bound.
	c.AwarenessMaxMultiplier = 2
	// 15 s (30 s): the declared map must be the same everywhere soon even when messages are lost.
	c.PushPullInterval = 15 * time.Second
	// 3 s (10 s): within a cluster a connection takes milliseconds; a seed whose machine is gone must not
	// hold up the others, nor a shutdown.
	c.TCPTimeout = 3 * time.Second
	// 1 s (never): a pod comes back with another address, and takes its place once its end was noticed.
	c.DeadNodeReclaimTime = time.Second
	return c, nil
}

// parseAddr parses IP:port, or :port for all addresses.
func parseAddr(addr string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(addr)
	if err == nil && host == "" {
		host = "0.0.0.0"
	}
	var ip netip.Addr
	var n uint64
	if err == nil {
		ip, err = netip.ParseAddr(host)
	}
	if err == nil {
		n, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q: %w", addr, err)
	}
	return netip.AddrPortFrom(ip, uint16(n)), nil
}

// Addr returns where others reach this agent, host:port.
func (g *Gossip) Addr() string {
	g.view.mu.Lock()
	defer g.view.mu.Unlock()
	return g.view.addr
}

// Changes delivers a token when the view may have changed since the last one was taken.
func (g *Gossip) Changes() <-chan struct{} { return g.view.changes }

// View returns what is known now, and shows it in the metrics.
func (g *Gossip) View() View {
	v := g.view.snapshot()
	g.o.Metrics.show(v)
	return v
}

// Transitions returns, once each and in their order, the changes of what is seen of other members since
// the first full view.
func (g *Gossip) Transitions() []Transition { return g.view.takeTransitions() }

// SetMeta says something new of this pod. It does not wait.
func (g *Gossip) SetMeta(m Meta) {
	if !g.view.say(m) {
		return
	}
	select {
	case g.metaDue <- struct{}{}:
	default: // it is due already
	}
}

// Merge joins declarations into the map and tells the others of those that are new.
func (g *Gossip) Merge(declarations ...membership.Declaration) error {
	changed, err := g.view.merge(declarations)
	g.broadcast(changed)
	return err
}

// Close takes leave of the others, so that they see an end and no failure, and stops. It takes a few
// seconds at most. A duplicate goes without a word: its leave would be that of the other.
func (g *Gossip) Close() error {
	g.close.Do(func() { g.err = g.stop(!g.view.conflicting()) })
	return g.err
}

func (g *Gossip) stop(leave bool) error {
	g.cancel()
	if leave {
		<-g.published // an update of the meta that comes later would displace the one below
		g.view.set(func(v *view) { v.own.leaving = true })
		g.broadcastLeave(g.o.NodeID, g.view.ownMeta().since)
		if err := errors.Join(g.list.UpdateNode(updateTimeout), g.list.Leave(leaveTimeout)); err != nil {
			g.o.Log.Warn("nobody heard the goodbye", "error", err)
		}
	}
	err := g.list.Shutdown()
	g.wg.Wait()
	return err
}

// publish tells the others of changes of the meta.
func (g *Gossip) publish(ctx context.Context) {
	defer close(g.published)
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.metaDue:
		}
		g.updating.Store(true)
		err := g.list.UpdateNode(updateTimeout)
		g.updating.Store(false)
		if err != nil {
			g.o.Log.Debug("meta waits for its turn", "error", err)
		}
	}
}

// watchKeyring rotates the keys when their file changes.
func (g *Gossip) watchKeyring(ctx context.Context) {
	used := g.ring.GetKeys()
	tick := time.NewTicker(g.o.keyringEvery)
	defer tick.Stop()
	problem := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := ""
		keys, err := ReadKeyring(g.o.Keyring)
		if err == nil && !sameKeys(keys, used) {
			if err = rotate(g.ring, keys); err == nil {
				g.o.Log.Info("gossip keys rotated", "keys", len(keys))
				used = keys
			}
		}
		if err != nil {
			now = err.Error()
		}
		if now == problem {
			continue
		}
		problem = now
		g.view.set(func(v *view) { v.keyring = problem })
		if problem != "" {
			g.o.Log.Error("gossip keys stay as they are", "error", problem)
		}
	}
}
