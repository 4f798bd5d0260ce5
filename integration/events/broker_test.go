// Package events watches what nodes publish, through a NATS server of its own that goes away, forgets
// and refuses. It never looks into a node.
package events

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/localpod"
)

// broker is a NATS server on loopback, with a port of its own, that can go away and come back.
type broker struct {
	t       *testing.T
	address string // of somebody else's server; empty for one of its own
	options server.Options
	server  *server.Server
}

func newBroker(t *testing.T) *broker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	require.NoError(t, l.Close())
	b := &broker{t: t, options: server.Options{
		Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
	}}
	t.Cleanup(b.down)
	return b
}

// brokerOf looks at the server of local pods.
func brokerOf(t *testing.T, pods *localpod.Pods) *broker {
	return &broker{t: t, address: pods.NATSURL()}
}

func (b *broker) url() string {
	if b.address != "" {
		return b.address
	}
	return fmt.Sprintf("nats://127.0.0.1:%d", b.options.Port)
}

func (b *broker) up() *broker {
	b.t.Helper()
	o := b.options
	s, err := server.NewServer(&o)
	require.NoError(b.t, err)
	go s.Start()
	require.True(b.t, s.ReadyForConnections(10*time.Second))
	b.server = s
	return b
}

func (b *broker) down() {
	if b.server != nil {
		b.server.Shutdown()
		b.server.WaitForShutdown()
		b.server = nil
	}
}

// jetStream returns the interface to the server's streams until the test ends.
func (b *broker) jetStream(options ...nats.Option) jetstream.JetStream {
	b.t.Helper()
	nc, err := nats.Connect(b.url(), options...)
	require.NoError(b.t, err)
	b.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(b.t, err)
	return js
}

// events returns what the stream holds, in its order; nothing while there is no stream.
func (b *broker) events(options ...nats.Option) (out []event.Event) {
	b.t.Helper()
	nc, err := nats.Connect(b.url(), options...)
	require.NoError(b.t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(b.t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stream, err := js.Stream(ctx, event.StreamName)
	if err != nil {
		return nil
	}
	state := stream.CachedInfo().State
	for i := max(state.FirstSeq, 1); i <= state.LastSeq; i++ {
		m, err := stream.GetMsg(ctx, i)
		require.NoError(b.t, err)
		e, err := event.Decode(m.Data)
		require.NoError(b.t, err)
		require.Equal(b.t, e.Subject(), m.Subject)
		require.Equal(b.t, e.ID, m.Header.Get("Nats-Msg-Id"))
		out = append(out, e)
	}
	return out
}

func ids(events []event.Event) (out []string) {
	for _, e := range events {
		out = append(out, e.ID)
	}
	return out
}
