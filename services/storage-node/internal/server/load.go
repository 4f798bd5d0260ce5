package server

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
)

// StreamKind tells streams apart by what they hold of the node.
type StreamKind uint8

// The kinds of streams: operations, records of a snapshot, the change feed, and those of operators and
// tools.
const (
	StreamPipeline StreamKind = iota
	StreamScan
	StreamWatch
	StreamOther
	// StreamKinds is how many there are.
	StreamKinds
)

// String returns the name that metrics use.
func (k StreamKind) String() string {
	return [...]string{"pipeline", "scan", "watch", "other"}[min(k, StreamOther)]
}

// streamKind returns the kind of a method, given by its full name.
func streamKind(method string) StreamKind {
	switch _, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/"); name {
	case "Pipeline":
		return StreamPipeline
	case "StreamKeys":
		return StreamScan
	case "Watch":
		return StreamWatch
	}
	return StreamOther
}

// Load is what one gRPC server has in work. Its methods may be called from any goroutine; the zero
// value is a server that takes nothing up.
type Load struct {
	limit    atomic.Int64
	inFlight atomic.Int64
	refused  atomic.Uint64
	accepted atomic.Uint64
	open     [StreamKinds]atomic.Int64
	opened   [StreamKinds]atomic.Uint64
}

// InFlight returns how many calls are worked on, streams among them, and how many may be.
func (l *Load) InFlight() (now, limit int64) { return l.inFlight.Load(), l.limit.Load() }

// Refused returns how many calls found the limit reached.
func (l *Load) Refused() uint64 { return l.refused.Load() }

// Connections returns how many connections were accepted by what Listen returned.
func (l *Load) Connections() uint64 { return l.accepted.Load() }

// Listen returns a listener that counts what it accepts. The connections are those of inner, as they
// are: the transport asks them for more than net.Conn has.
func (l *Load) Listen(inner net.Listener) net.Listener { return countedListener{inner, l} }

type countedListener struct {
	net.Listener
	load *Load
}

// Accept implements net.Listener.
func (c countedListener) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.load.accepted.Add(1)
	}
	return conn, err
}

// Streams returns how many streams of a kind are open, and how many were opened.
func (l *Load) Streams(k StreamKind) (open int64, opened uint64) {
	return l.open[k].Load(), l.opened[k].Load()
}

// enter takes a place among the calls in flight.
func (l *Load) enter() error {
	if limit := l.limit.Load(); l.inFlight.Add(1) > limit {
		l.inFlight.Add(-1)
		l.refused.Add(1)
		return fmt.Errorf("%w: %d requests are in flight, the limit (PAIRDB_MAX_IN_FLIGHT)", errOverloaded, limit)
	}
	return nil
}

func (l *Load) leave() { l.inFlight.Add(-1) }

// enterStream counts a stream that was taken up, until leave is called.
func (l *Load) enterStream(method string) (leave func()) {
	k := streamKind(method)
	l.opened[k].Add(1)
	l.open[k].Add(1)
	return func() { l.open[k].Add(-1) }
}
