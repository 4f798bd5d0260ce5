package event

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// A server that comes back is found within five seconds; one that refuses us is asked every half
	// minute: somebody has to change something first.
	firstPause   = 100 * time.Millisecond
	lastPause    = 5 * time.Second
	refusedPause = 30 * time.Second

	// dialTimeout bounds one attempt, TLS included.
	dialTimeout = 5 * time.Second
	// A connection whose other end went away without a word is given up after 30 s.
	pingInterval = 10 * time.Second
	maxPings     = 2
)

// Conn is a connection to NATS that comes back by itself for ever. What is published while it is away
// fails at once: nothing is kept here, so that there is one place where events wait.
type Conn struct {
	nc  *nats.Conn
	log *slog.Logger

	refusals atomic.Int64
	made     chan struct{} // closed when nc is there, for callbacks that come before
	back     chan struct{} // told when a connection is there; capacity 1

	mu      sync.Mutex
	problem string // guarded by mu; that was logged last, empty while connected
}

// Connect begins to connect and returns at once, connected or not. name is what operators of the
// server see. The error is one of the configuration.
func Connect(c Config, name string, log *slog.Logger) (*Conn, error) {
	options, err := c.options()
	if err != nil {
		return nil, err
	}
	out := &Conn{log: log, made: make(chan struct{}), back: make(chan struct{}, 1)}
	options = append(options,
		nats.Name(name), nats.Timeout(dialTimeout), nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(maxPings),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectBufSize(-1), nats.CustomReconnectDelay(out.pause),
		nats.ConnectHandler(out.connected), nats.ReconnectHandler(out.connected),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { out.failed(err) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { out.lost(err) }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) { out.asyncError(sub, err) }),
	)
	if out.nc, err = nats.Connect(c.NATSURL, options...); err != nil {
		return nil, fmt.Errorf("PAIRDB_NATS_URL: %w", err)
	}
	close(out.made)
	return out, nil
}

// NATS returns the connection itself.
func (c *Conn) NATS() *nats.Conn { return c.nc }

// Connected says whether there is a connection now.
func (c *Conn) Connected() bool { return c.nc.IsConnected() }

// Refusals returns how often a server did not take our credentials.
func (c *Conn) Refusals() int64 { return c.refusals.Load() }

// Close ends the connection.
func (c *Conn) Close() { c.nc.Close() }

// pause returns how long to wait before the next attempt. It is also where a refusal is seen: the
// library has no callback for one.
func (c *Conn) pause(attempts int) time.Duration {
	<-c.made
	err := c.nc.LastError()
	refused := err != nil && isRefusal(err)
	if refused {
		c.refusals.Add(1)
		c.note(refusedText, err)
	}
	return pauseAfter(attempts, refused)
}

// pauseAfter returns how long to wait after so many attempts; a cluster that lost one server does not
// come back in one moment.
func pauseAfter(attempts int, refused bool) time.Duration {
	d := lastPause
	if refused {
		d = refusedPause
	} else if attempts < 7 {
		d = min(lastPause, firstPause<<max(attempts-1, 0))
	}
	return d - rand.N(d/2+1)
}

func (c *Conn) connected(nc *nats.Conn) {
	c.mu.Lock()
	c.problem = ""
	c.mu.Unlock()
	c.log.Info("connected to NATS", "server", nc.ConnectedUrlRedacted())
	select {
	case c.back <- struct{}{}:
	default:
	}
}

// refusedText says what a refusal is.
const refusedText = "NATS refuses this process: check PAIRDB_NATS_CREDENTIALS"

// failed notes an attempt that failed before the server had a word.
func (c *Conn) failed(err error) { c.note("NATS is not reached", err) }

// lost notes the end of a connection. A server says so when it ends one whose credentials expired.
func (c *Conn) lost(err error) {
	if err != nil {
		c.note("connection to NATS lost", err)
	}
}

// asyncError notes what a server says outside of any answer: most of all that a subject is not ours.
func (c *Conn) asyncError(sub *nats.Subscription, err error) {
	if isRefusal(err) {
		c.note(refusedText, err)
		return
	}
	subject := ""
	if sub != nil {
		subject = sub.Subject
	}
	c.log.Warn("NATS reports an error", "error", err, "subject", subject)
}

// note logs a problem when it is of another kind than before: attempts go on for ever, and the words of
// the error change with each of several servers.
func (c *Conn) note(what string, err error) {
	c.mu.Lock()
	known := c.problem == what
	c.problem = what
	c.mu.Unlock()
	if !known {
		c.log.Warn(what, "error", err)
	}
}

func isRefusal(err error) bool {
	for _, e := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired} {
		if errors.Is(err, e) {
			return true
		}
	}
	// Credentials that can't be read, or are none, fail before the server sees them.
	text := strings.ToLower(err.Error())
	return strings.Contains(text, "authorization violation") || strings.Contains(text, "authentication") || strings.Contains(text, "nkey") || strings.Contains(text, "credential")
}

// wait waits until a connection comes back, for d, or until ctx ends.
func (c *Conn) wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c.back:
	case <-timer.C:
	case <-ctx.Done():
	}
}
