package stream

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// MaxMessageBytes is the largest message that a migrator takes: one record of 48 MiB with its frame.
const MaxMessageBytes = 64 << 20

var (
	// reconnect finds a target that is back within five seconds; moves wait longer by themselves.
	reconnect = backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}
	// alive notices a target that is gone without a word within 20 s. Nodes allow a ping each 5 s.
	alive = keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}
)

// Bulk are options of connections over which records travel: a message of 48 KiB takes a call of the system,
// not four, and the sender is not held up for a window that is told too late.
func Bulk() []grpc.DialOption {
	const buffer, window = 128 << 10, 1 << 20 // of two messages; of twenty
	return []grpc.DialOption{
		grpc.WithReadBufferSize(buffer), grpc.WithWriteBufferSize(buffer),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(2 * window),
	}
}

// Targets are connections to other nodes, one for each address, shared by all who send there. It is
// safe for concurrent use.
type Targets struct {
	options []grpc.DialOption

	mu    sync.Mutex
	conns map[string]*shared // guarded by mu
}

// shared is a connection and how many use it.
type shared struct {
	conn *grpc.ClientConn
	uses int // guarded by Targets.mu
}

// NewTargets returns an empty set. The options are added to those of every connection.
func NewTargets(more ...grpc.DialOption) *Targets {
	return &Targets{conns: map[string]*shared{}, options: slices.Concat(Bulk(), []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
		grpc.WithKeepaliveParams(alive),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)),
	}, more)}
}

// Dial returns the connection to an address, host:port, and what gives it back: call it once. It does
// not wait for the other side: calls do, or fail.
func (t *Targets) Dial(addr string) (grpc.ClientConnInterface, func(), error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.conns[addr]
	if s == nil {
		conn, err := grpc.NewClient("dns:///"+addr, t.options...)
		if err != nil {
			return nil, nil, fmt.Errorf("dial %s: %w", addr, err)
		}
		s = &shared{conn: conn}
		t.conns[addr] = s
	}
	s.uses++
	var once sync.Once
	return s.conn, func() { once.Do(func() { t.giveBack(addr, s) }) }, nil
}

func (t *Targets) giveBack(addr string, s *shared) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.uses--; s.uses == 0 {
		delete(t.conns, addr)
		_ = s.conn.Close() // nothing uses it any more
	}
}
