package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/service/servicetest"
)

// eventServer is a NATS on loopback with one event of each kind, alternating between two nodes.
func eventServer(t *testing.T, withStream bool) (url string, js jetstream.JetStream) {
	t.Helper()
	servicetest.ClearEnvironment(t)
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
	})
	require.NoError(t, err)
	go s.Start()
	require.True(t, s.ReadyForConnections(10*time.Second))
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	nc, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err = jetstream.New(nc)
	require.NoError(t, err)
	if withStream {
		_, err = js.CreateStream(t.Context(), event.Stream())
		require.NoError(t, err)
	}
	return s.ClientURL(), js
}

func publishAll(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	for i, k := range event.Kinds() {
		data, err := event.EncodePayload(k.Name, k.Example)
		require.NoError(t, err)
		e := event.Event{
			ID: fmt.Sprint("e", i), Kind: k.Name, Cluster: "c", Node: fmt.Sprint("n.", i%2), Sequence: uint64(i + 1),
			Time: time.Now().Add(-time.Duration(i) * time.Hour), Data: data,
		}
		b, err := e.Encode()
		require.NoError(t, err)
		_, err = js.Publish(t.Context(), e.Subject(), b)
		require.NoError(t, err)
	}
}

// events runs the command and returns its lines.
func events(t *testing.T, code int, args ...string) (lines []string, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got := Run(ctx, append([]string{"events"}, args...), Streams{Out: &out, Err: &errs})
	require.Equal(t, code, got, "%s%s", out.String(), errs.String())
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"), errs.String()
}

// Danger: an operator looks for what happened and a kind, a node or an hour is left out.
func TestEventsAreShownAndChosen(t *testing.T) {
	url, js := eventServer(t, true)
	lines, _ := events(t, exitOK, "--nats", url)
	require.Equal(t, []string{""}, lines, "an empty stream is no error")
	publishAll(t, js)
	_, err := js.Publish(t.Context(), "pairdb.c.event.n.some.thing", []byte("hello"))
	require.NoError(t, err)

	lines, stderr := events(t, exitOK, "--nats", url)
	require.Len(t, lines, len(event.Kinds()))
	require.Contains(t, stderr, "no event of PairDB")
	for i, k := range event.Kinds() {
		require.Contains(t, lines[i], k.Name)
		require.Contains(t, lines[i], fmt.Sprint("n.", i%2))
	}
	require.Contains(t, lines[1], "took_ms=840")
	require.Contains(t, lines[2], `reasons[0].name=compaction reasons[0].detail="no compactor is connected"`)
	require.Contains(t, lines[4], "member.declared.node_id=node-1")

	lines, _ = events(t, exitOK, "--nats", url, "--kind", "disk.")
	require.Len(t, lines, 4)
	lines, _ = events(t, exitOK, "--nats", url, "--node", "n.1")
	require.Len(t, lines, len(event.Kinds())/2)
	lines, _ = events(t, exitOK, "--nats", url, "--since", "150m")
	require.Len(t, lines, 3, "when it happened counts, not when it was published")
	lines, _ = events(t, exitOK, "--nats", url, "--limit", "2", "-o", "json")
	require.Len(t, lines, 2)
	var cloudEvent map[string]any
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &cloudEvent))
	require.Equal(t, "1.0", cloudEvent["specversion"])
	require.Equal(t, "pairdb.node.started", cloudEvent["type"])
}

// lockedBuffer is a writer for two goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// Danger: following shows the past, or misses what comes.
func TestEventsAreFollowed(t *testing.T) {
	url, js := eventServer(t, true)
	publishAll(t, js)
	ctx, stop := context.WithCancel(t.Context())
	var out, errs lockedBuffer
	code := make(chan int, 1)
	go func() {
		code <- Run(ctx, []string{"events", "--nats", url, "--follow"}, Streams{Out: &out, Err: &errs})
	}()
	require.Eventually(t, func() bool { return strings.Contains(errs.String(), "following") }, 20*time.Second, 5*time.Millisecond)
	require.Empty(t, out.String())
	publishAll(t, js)
	require.Eventually(t, func() bool { return strings.Count(out.String(), "\n") == len(event.Kinds()) }, 20*time.Second, 5*time.Millisecond)
	stop()
	require.Equal(t, exitOK, <-code)
}

// Danger: a wrong address looks like a quiet cluster.
func TestEventsSayWhyThereAreNone(t *testing.T) {
	url, _ := eventServer(t, false)
	_, stderr := events(t, exitUsage)
	require.Contains(t, stderr, "PAIRDB_NATS_URL")
	_, stderr = events(t, exitInvalid, "--nats", url)
	require.Contains(t, stderr, "no stream")
	_, stderr = events(t, exitUsage, "--nats", "localhost")
	require.Contains(t, stderr, "PAIRDB_NATS_URL")
	_, stderr = events(t, exitUsage, "--nats", url, "--since", "yesterday")
	require.Contains(t, stderr, "--since")
	_, stderr = events(t, exitInvalid, "--nats", url, "--nats-credentials", "/does/not/exist")
	require.Contains(t, stderr, "PAIRDB_NATS_CREDENTIALS")
}

func TestUnreachableNATSIsNamed(t *testing.T) {
	// Danger: the command waits for ever.
	a := &app{}
	err := a.events(t.Context(), eventFlags{nats: event.Config{NATSURL: "nats://127.0.0.1:1"}, connectionPeriod: 300 * time.Millisecond})
	require.ErrorIs(t, err, errNATS)
	require.Equal(t, exitUnavailable, exitCode(err))
}

// Danger: a refusal of a command looks like success, or a node that is not there like a slow one.
func TestCommandPrintsTheAnswerOrTheReason(t *testing.T) {
	url, _ := eventServer(t, false)
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	defer nc.Close()
	var request map[string]string
	_, err = nc.Subscribe(event.CommandSubject("pairdb", "n.1", "snapshot"), func(m *nats.Msg) {
		request = nil
		answer := `{"ok":true,"result":{"snapshot":{"name":"s"}}}`
		if json.Unmarshal(m.Data, &request) != nil || request["name"] == "" {
			answer = `{"ok":false,"error":{"reason":"INVALID_ARGUMENT_SNAPSHOT_NAME","message":"no name"}}`
		}
		require.NoError(t, m.Respond([]byte(answer)))
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	command := func(code int, args ...string) (string, string) {
		var out, errs bytes.Buffer
		require.Equal(t, code, Run(t.Context(), append([]string{"command", "--nats", url}, args...), Streams{Out: &out, Err: &errs}), "%s", errs.String())
		return out.String(), errs.String()
	}
	out, _ := command(exitOK, "snapshot", "--node", "n.1", "--name", "s")
	require.JSONEq(t, `{"snapshot":{"name":"s"}}`, out)
	require.NotEmpty(t, request["request_id"])
	require.Equal(t, "n.1", request["node_id"])
	out, _ = command(exitOK, "snapshot", "--node", "n.1", "--name", "s", "-o", "json")
	require.Equal(t, "{\"snapshot\":{\"name\":\"s\"}}\n", out)
	_, errs := command(exitFailed, "snapshot", "--node", "n.1")
	require.Contains(t, errs, "INVALID_ARGUMENT_SNAPSHOT_NAME: no name")
	_, errs = command(exitUnavailable, "snapshot", "--node", "n.2")
	require.Contains(t, errs, `no health-agent of node "n.2"`)
	_, errs = command(exitUsage, "snapshot")
	require.Contains(t, errs, "--node")
}
