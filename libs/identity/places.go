package identity

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
)

// maxConnections bounds the connections to the port for requests: a client keeps one, and each takes some
// 50 KiB. Handshakes take half of the places at most, so that strangers who connect and wait do not keep
// those out who have been let in: theirs stay.
const maxConnections = 8192

// errTooMany says that there is no place for another connection.
var errTooMany = errors.New("too many connections")

// places are those of connections.
type places struct {
	limit, open, shaking atomic.Int64
}

// begin takes a place for a handshake, until end.
func (p *places) begin() error {
	shaking := p.shaking.Add(1)
	if limit := p.limit.Load(); shaking > limit/2 || shaking+p.open.Load() > limit {
		p.shaking.Add(-1)
		return errTooMany
	}
	return nil
}

// end gives the place of a handshake up, or makes it that of a connection, until leave.
func (p *places) end(made bool) {
	if made {
		p.open.Add(1)
	}
	p.shaking.Add(-1)
}

func (p *places) leave() { p.open.Add(-1) }

// placed is a connection that has a place.
type placed struct {
	net.Conn
	once  sync.Once
	leave func()
}

// Close implements net.Conn.
func (c *placed) Close() error {
	c.once.Do(c.leave)
	return c.Conn.Close()
}
