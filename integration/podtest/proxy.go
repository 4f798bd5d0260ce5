package podtest

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"
)

// Proxy is a network to one address, over TCP, that can be cut and slowed down. It is safe for concurrent
// use.
type Proxy struct {
	// Addr is where it listens, "127.0.0.1:port".
	Addr string

	to    string
	limit *rate.Limiter
	end   context.Context
	all   sync.WaitGroup

	mu    sync.Mutex
	open  chan struct{}         // guarded by mu; closed while bytes pass
	conns map[net.Conn]struct{} // guarded by mu; both sides of each connection
}

// chunkBytes pass at once, so that a slow network is slow in small steps.
const chunkBytes = 16 << 10

// NewProxy starts a proxy that passes everything on to an address. It ends with the test.
func NewProxy(t testing.TB, to string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	end, cancel := context.WithCancel(context.Background())
	p := &Proxy{
		Addr: l.Addr().String(), to: to, limit: rate.NewLimiter(rate.Inf, chunkBytes), end: end,
		open: make(chan struct{}), conns: map[net.Conn]struct{}{},
	}
	close(p.open)
	p.all.Go(func() { p.accept(l) })
	t.Cleanup(func() {
		cancel()
		l.Close() // its end is what is wanted
		p.Break()
		p.all.Wait()
	})
	return p
}

// Cut lets nothing pass in either direction until Mend. No side is told: connections stay, new ones are
// begun and get no answer.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
		p.open = make(chan struct{})
	default:
	}
}

// Mend ends a Cut: what was on the way arrives.
func (p *Proxy) Mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
	default:
		close(p.open)
	}
}

// Break closes all connections; what was on the way is lost.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close() // its end is what is wanted
	}
}

// Limit bounds the bytes per second of all connections together to the address; 0 or less: not.
func (p *Proxy) Limit(bytesPerSecond int) {
	if bytesPerSecond <= 0 {
		p.limit.SetLimit(rate.Inf)
		return
	}
	p.limit.SetLimit(rate.Limit(bytesPerSecond))
}

func (p *Proxy) accept(l net.Listener) {
	for {
		in, err := l.Accept()
		if err != nil {
			return // the test ends
		}
		p.all.Go(func() { p.serve(in) })
	}
}

// serve passes one connection on until a side closes it.
func (p *Proxy) serve(in net.Conn) {
	defer p.drop(in)
	if !p.keep(in) || p.passing() != nil {
		return
	}
	out, err := (&net.Dialer{}).DialContext(p.end, "tcp", p.to)
	if err != nil {
		return // who has dialled finds out
	}
	defer p.drop(out)
	if !p.keep(out) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.pass(out, in, p.limit); p.drop(in); p.drop(out) })
	both.Go(func() { p.pass(in, out, nil); p.drop(in); p.drop(out) })
	both.Wait()
}

// pass copies until either side ends.
func (p *Proxy) pass(to, from net.Conn, limit *rate.Limiter) {
	buf := make([]byte, chunkBytes)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if limit != nil && limit.WaitN(p.end, n) != nil || p.passing() != nil {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// passing waits for the end of a cut; an error says that the test ends.
func (p *Proxy) passing() error {
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	select {
	case <-open:
		return nil
	case <-p.end.Done():
		return p.end.Err()
	}
}

// keep notes a connection; false: there is no use in it any more.
func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end.Err() != nil {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	c.Close() // its end is what is wanted
}
