package events

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/event"
	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
)

// queue is a source in memory.
type queue struct {
	t       *testing.T
	mu      sync.Mutex
	events  []event.Event
	made    int
	acked   []string
	changed chan struct{}
	// losing: acknowledgements do not arrive, as when the process dies before it notes them.
	losing bool
}

func newQueue(t *testing.T) *queue { return &queue{t: t, changed: make(chan struct{})} }

// add makes n events and returns their ids.
func (q *queue) add(n int) (ids []string) {
	q.t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	for range n {
		q.made++
		data, err := event.EncodePayload(event.NodeReady, &eventv1.NodeReady{TookMs: int64(q.made)})
		require.NoError(q.t, err)
		id := fmt.Sprint("n.", q.made)
		q.events = append(q.events, event.Event{
			ID: id, Kind: event.NodeReady, Cluster: "c.1", Node: "n.1", Time: time.Now(), Sequence: uint64(q.made), Data: data,
		})
		ids = append(ids, id)
	}
	close(q.changed)
	q.changed = make(chan struct{})
	return ids
}

// Next implements event.Source.
func (q *queue) Next(ctx context.Context) (event.Event, error) {
	for {
		q.mu.Lock()
		if len(q.events) > 0 {
			defer q.mu.Unlock()
			return q.events[0], nil
		}
		changed := q.changed
		q.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return event.Event{}, ctx.Err()
		}
	}
}

// Ack implements event.Source.
func (q *queue) Ack(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.acked = append(q.acked, id)
	if q.losing {
		q.losing = false
		return
	}
	if len(q.events) > 0 && q.events[0].ID == id {
		q.events = q.events[1:]
	}
}

func (q *queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.events) == 0
}

// lines collects the log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), what)
}

// publication is a publisher that runs.
type publication struct {
	*event.Publisher
	conn *event.Conn
	log  *lines
	stop func()
}

// publish runs a publisher until the test ends or stop is called.
func publish(t *testing.T, c event.Config, q *queue) *publication {
	t.Helper()
	p := &publication{log: &lines{}}
	log := slog.New(slog.NewTextHandler(p.log, nil))
	var err error
	p.conn, err = event.Connect(c, "test", log)
	require.NoError(t, err)
	p.Publisher, err = event.NewPublisher(p.conn, q, log)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		p.conn.Close()
	})
	t.Cleanup(p.stop)
	return p
}

func eventually(t *testing.T, limit time.Duration, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, limit, 10*time.Millisecond, what)
}

// Danger: NATS that is away, at the start or later, loses events, doubles them or mixes them up.
func TestEachEventArrivesOnceAndInOrderWhateverNATSDoes(t *testing.T) {
	b, q := newBroker(t), newQueue(t)
	p := publish(t, event.Config{NATSURL: b.url()}, q)
	want := q.add(3)
	eventually(t, 10*time.Second, "it says that NATS is away", func() bool { return p.log.count("NATS is not reached") > 0 })
	require.False(t, p.conn.Connected())
	b.up()
	eventually(t, 30*time.Second, "published", q.empty)
	for range 3 {
		want = append(want, q.add(5)...)
		b.down()
		want = append(want, q.add(5)...)
		b.up()
		want = append(want, q.add(2)...)
		eventually(t, 30*time.Second, "published", q.empty)
	}
	require.Equal(t, want, ids(b.events()))
	require.EqualValues(t, len(want), p.Published())
	require.Equal(t, 1, p.log.count("stream created"))
}

// Danger: a server that lost its disk takes no more events until somebody makes the stream again.
func TestLostStreamIsMadeAgain(t *testing.T) {
	b, q := newBroker(t), newQueue(t)
	b.up()
	p := publish(t, event.Config{NATSURL: b.url()}, q)
	q.add(2)
	eventually(t, 20*time.Second, "published", q.empty)
	b.down()
	b.options.StoreDir = t.TempDir()
	want := q.add(2)
	b.up()
	eventually(t, 30*time.Second, "published", q.empty)
	require.Equal(t, want, ids(b.events()))
	require.NoError(t, b.jetStream().DeleteStream(t.Context(), event.StreamName))
	want = q.add(1)
	eventually(t, 30*time.Second, "published", q.empty)
	require.Equal(t, want, ids(b.events()))
	require.Equal(t, 3, p.log.count("stream created"))
}

// Danger: an event that the stream has and whose acknowledgement was lost is there twice.
func TestRepeatsAreDroppedByTheStream(t *testing.T) {
	b, q := newBroker(t), newQueue(t)
	b.up()
	q.losing = true
	want := q.add(3)
	publish(t, event.Config{NATSURL: b.url()}, q)
	eventually(t, 20*time.Second, "published", q.empty)
	require.Equal(t, []string{"n.1", "n.1", "n.2", "n.3"}, q.acked)
	require.Equal(t, want, ids(b.events()))
	// Also by a server that was restarted meanwhile.
	b.down()
	b.up()
	q.made = 0
	q.add(3)
	eventually(t, 20*time.Second, "published", q.empty)
	require.Equal(t, want, ids(b.events()))
}

// Danger: an operator's own stream is replaced, or a window that is too short goes unnoticed.
func TestStreamOfAnOperatorIsLeftAsItIs(t *testing.T) {
	b, q := newBroker(t), newQueue(t)
	b.up()
	own := event.Stream()
	own.MaxMsgs, own.Duplicates = 77, time.Minute
	_, err := b.jetStream().CreateStream(t.Context(), own)
	require.NoError(t, err)
	q.add(1)
	p := publish(t, event.Config{NATSURL: b.url()}, q)
	eventually(t, 20*time.Second, "published", q.empty)
	s, err := b.jetStream().Stream(t.Context(), event.StreamName)
	require.NoError(t, err)
	require.EqualValues(t, 77, s.CachedInfo().Config.MaxMsgs)
	require.Equal(t, 1, p.log.count("forgets ids sooner"))
}

// Danger: one event that no stream takes holds up all that come after it.
func TestEventThatIsNeverTakenIsGivenUp(t *testing.T) {
	b, q := newBroker(t), newQueue(t)
	b.up()
	q.add(3)
	q.events[0].Kind = "no.kind.>" // can't be encoded
	small := event.Stream()
	small.MaxMsgSize = 1500
	_, err := b.jetStream().CreateStream(t.Context(), small)
	require.NoError(t, err)
	q.events[1].Data = []byte(`{"x":"` + strings.Repeat("x", 3000) + `"}`)
	p := publish(t, event.Config{NATSURL: b.url()}, q)
	eventually(t, 20*time.Second, "the third is published", q.empty)
	require.Equal(t, []string{"n.3"}, ids(b.events()))
	require.EqualValues(t, 2, p.Refused())
	require.Equal(t, 2, p.log.count("event given up"))
}

// Danger: wrong credentials fill the log, or a repaired user is not noticed.
func TestWrongCredentialsAreSaidOnceAndRetried(t *testing.T) {
	user, err := nkeys.CreateUser()
	require.NoError(t, err)
	public, err := user.PublicKey()
	require.NoError(t, err)
	seed, err := user.Seed()
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "user.nk")
	require.NoError(t, os.WriteFile(file, seed, 0o600))

	b, q := newBroker(t), newQueue(t)
	admin := &server.User{Username: "admin", Password: "a"}
	b.options.Users = []*server.User{admin}
	b.up()
	want := q.add(2)
	p := publish(t, event.Config{NATSURL: b.url(), NATSCredentials: file}, q)
	for i := int64(1); i <= 3; i++ {
		eventually(t, 20*time.Second, "refused", func() bool { return p.conn.Refusals() >= i })
		require.NoError(t, p.conn.NATS().ForceReconnect()) // the pause is half a minute
	}
	require.Equal(t, 1, p.log.count("NATS refuses this process"))
	require.Empty(t, b.events(nats.UserInfo("admin", "a")))

	b.down() // the operator adds the user
	b.options.Nkeys = []*server.NkeyUser{{Nkey: public}}
	b.up()
	eventually(t, 30*time.Second, "published", func() bool {
		if !p.conn.Connected() {
			_ = p.conn.NATS().ForceReconnect() // likewise
		}
		return q.empty()
	})
	require.Equal(t, want, ids(b.events(nats.UserInfo("admin", "a"))))
}

// Danger: a user that may not publish loses the events, silently.
func TestPublisherWithoutPermissionKeepsEventsAndSaysSo(t *testing.T) {
	b, q := newBroker(t), newQueue(t)
	b.options.Users = []*server.User{{Username: "reader", Password: "r", Permissions: &server.Permissions{
		Publish: &server.SubjectPermission{Allow: []string{"$JS.API.>"}}, Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
	}}}
	b.up()
	q.add(1)
	user := filepath.Join(t.TempDir(), "user")
	require.NoError(t, os.WriteFile(user, []byte("reader:r\n"), 0o600))
	p := publish(t, event.Config{NATSURL: b.url(), NATSCredentials: user}, q)
	eventually(t, 30*time.Second, "it says so", func() bool { return p.log.count("ermissions") > 0 && p.Failures() > 0 })
	require.False(t, q.empty())
}

// proxy passes connections to a server on; what the server answers can be held back.
type proxy struct {
	net.Listener
	mu   sync.Mutex
	gate chan struct{} // nil is open
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{Listener: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			go func() { io.Copy(s, c); s.Close() }() //nolint:errcheck // the connection ends
			go func() { p.answers(c, s); c.Close() }()
		}
	}()
	t.Cleanup(func() { l.Close() })
	return p
}

func (p *proxy) answers(c, s net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := s.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		gate := p.gate
		p.mu.Unlock()
		if gate != nil {
			<-gate
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// hold keeps answers back until the function that it returns is called.
func (p *proxy) hold() (release func()) {
	gate := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = gate
	return func() {
		p.mu.Lock()
		p.gate = nil
		p.mu.Unlock()
		close(gate)
	}
}

// Danger: a server that answers late is sent an event again, and has it twice or out of order.
func TestSlowServerHasEachEventOnce(t *testing.T) {
	b, q := newBroker(t), newQueue(t)
	b.up()
	slow := newProxy(t, strings.TrimPrefix(b.url(), "nats://"))
	p := publish(t, event.Config{NATSURL: "nats://" + slow.Addr().String()}, q)
	want := q.add(1)
	eventually(t, 20*time.Second, "published", q.empty)
	release := slow.hold()
	want = append(want, q.add(3)...)
	eventually(t, 30*time.Second, "an acknowledgement does not come in time", func() bool { return p.Failures() > 0 })
	release()
	eventually(t, 30*time.Second, "published", q.empty)
	require.Equal(t, want, ids(b.events()))
}

// Danger: one publication at a time takes hours for what has piled up in an outage.
func TestABacklogIsPublishedInSeconds(t *testing.T) {
	b, q := newBroker(t), newQueue(t)
	b.up()
	want := q.add(2000)
	began := time.Now()
	publish(t, event.Config{NATSURL: b.url()}, q)
	eventually(t, time.Minute, "published", q.empty)
	t.Logf("%d events in %s", len(want), time.Since(began).Round(time.Millisecond))
	s, err := b.jetStream().Stream(t.Context(), event.StreamName)
	require.NoError(t, err)
	require.EqualValues(t, len(want), s.CachedInfo().State.Msgs)
	m, err := s.GetMsg(t.Context(), uint64(len(want)))
	require.NoError(t, err)
	require.Equal(t, want[len(want)-1], m.Header.Get(jetstream.MsgIDHeader))
}
