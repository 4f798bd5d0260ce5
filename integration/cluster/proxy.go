package cluster

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// proxy passes TCP connections on to a node, each chunk of bytes as late as it is told. Nothing is dropped
// or put in another order: that is TCP's promise. The node may have another address for each of them.
type proxy struct {
	l     net.Listener
	to    func() string
	delay atomic.Int64 // time.Duration

	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu
	ended bool              // guarded by mu
	done  sync.WaitGroup
}

func listen(host string, to func() string) (*proxy, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	p := &proxy{l: l, to: to, conns: map[net.Conn]bool{}}
	p.done.Go(p.accept)
	return p, nil
}

// Addr is where it listens.
func (p *proxy) Addr() string { return p.l.Addr().String() }

// Delay delays each chunk, in both directions.
func (p *proxy) Delay(d time.Duration) { p.delay.Store(int64(d)) }

// Close cuts all connections and waits for their end.
func (p *proxy) Close() {
	p.l.Close() // accept returns
	p.mu.Lock()
	p.ended = true
	for c := range p.conns {
		c.Close() // what was under way is lost with it
	}
	p.mu.Unlock()
	p.done.Wait()
}

func (p *proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.done.Go(func() { p.pass(c) })
	}
}

// hold remembers a connection for Close, and reports false after it.
func (p *proxy) hold(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		c.Close() // nobody will
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxy) release(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	c.Close() // both directions have ended
}

func (p *proxy) pass(in net.Conn) {
	if !p.hold(in) {
		return
	}
	defer p.release(in)
	out, err := net.DialTimeout("tcp", p.to(), 5*time.Second)
	if err != nil || !p.hold(out) {
		return // as if nobody listened
	}
	defer p.release(out)
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		both.Go(func() {
			_, _ = io.Copy(late{way[1], p}, way[0]) // the end of either is the end of both
			way[0].Close()
			way[1].Close()
		})
	}
	both.Wait()
}

// late writes after the proxy's delay.
type late struct {
	net.Conn
	p *proxy
}

// Write implements io.Writer.
func (l late) Write(b []byte) (int, error) {
	if d := time.Duration(l.p.delay.Load()); d > 0 {
		<-time.After(d)
	}
	return l.Conn.Write(b)
}
