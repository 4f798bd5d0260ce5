package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sidecar"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/outbox"
)

// broker is a NATS server on a port of its own that can go away and come back.
type broker struct {
	t      *testing.T
	port   int
	dir    string
	server *server.Server
}

func newBroker(t *testing.T) *broker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	b := &broker{t: t, port: l.Addr().(*net.TCPAddr).Port, dir: t.TempDir()}
	require.NoError(t, l.Close())
	t.Cleanup(b.down)
	return b
}

func (b *broker) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", b.port) }

func (b *broker) up() *broker {
	b.t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: b.port, NoSigs: true, NoLog: true, JetStream: true, StoreDir: b.dir,
	})
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

// events returns what the stream holds, in its order.
func (b *broker) events() (out []event.Event) {
	b.t.Helper()
	nc, err := nats.Connect(b.url())
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
	for i := uint64(1); i <= stream.CachedInfo().State.LastSeq; i++ {
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

func kinds(events []event.Event) (out []string) {
	for _, e := range events {
		out = append(out, e.Kind)
	}
	return out
}

// find waits for the first event of a kind and returns it with its payload.
func (b *broker) find(kind string) (event.Event, proto.Message) {
	b.t.Helper()
	var found event.Event
	require.Eventually(b.t, func() bool {
		for _, e := range b.events() {
			if e.Kind == kind {
				found = e
				return true
			}
		}
		return false
	}, 30*time.Second, 20*time.Millisecond, kind)
	payload, err := found.Payload()
	require.NoError(b.t, err)
	return found, payload
}

// inOrder checks that each event is there once, and that their sequences rise.
func inOrder(t *testing.T, events []event.Event) {
	t.Helper()
	seen := map[string]bool{}
	last := uint64(0)
	for _, e := range events {
		require.False(t, seen[e.ID], "%s twice", e.ID)
		seen[e.ID] = true
		require.Greater(t, e.Sequence, last)
		last = e.Sequence
	}
}

// Danger: the life of a node can't be followed, or is told in another order than it happened.
func TestLifeOfANodeIsPublished(t *testing.T) {
	b := newBroker(t).up()
	cfg := testConfig(t)
	cfg.NATSURL = b.url()
	w := startNode(t, cfg, realFS()).ready()
	_, err := w.admin.Snapshot(t.Context(), &adminv1.SnapshotRequest{Name: "s1"})
	require.NoError(t, err)
	require.NoError(t, w.end())
	events := b.events()
	require.Equal(t, []string{event.NodeStarted, event.NodeReady, event.SnapshotCreated, event.NodeStopping}, kinds(events))
	inOrder(t, events)
	for _, e := range events {
		require.Equal(t, "pairdb n1", e.Cluster+" "+e.Node)
		require.WithinDuration(t, time.Now(), e.Time, time.Minute)
	}
	_, started := b.find(event.NodeStarted)
	require.Equal(t, w.identity.Incarnation, started.(*eventv1.NodeStarted).GetIncarnation())
	require.NotEmpty(t, w.identity.Incarnation)
	_, created := b.find(event.SnapshotCreated)
	require.Equal(t, "s1", created.(*eventv1.SnapshotCreated).GetName())
	require.Positive(t, created.(*eventv1.SnapshotCreated).GetSizeBytes())
	_, stopping := b.find(event.NodeStopping)
	require.Equal(t, "asked to stop", stopping.(*eventv1.NodeStopping).GetReason())
}

// Danger: a node does not start, or does not serve, because NATS is away; or what happened meanwhile
// is lost, doubled or out of order.
func TestEventsOfAnOutageArePublishedAfterIt(t *testing.T) {
	b := newBroker(t)
	cfg := testConfig(t)
	cfg.NATSURL = b.url()
	w := startNode(t, cfg, realFS()).ready()
	snapshot := func(name string) {
		_, err := w.admin.Snapshot(t.Context(), &adminv1.SnapshotRequest{Name: name})
		require.NoError(t, err)
	}
	snapshot("s1")
	require.GreaterOrEqual(t, w.publish.out.Status().Length, 3) // a slow machine has said by now that NATS is away
	b.up()                                                      // it was not there at the start
	eventually(t, "published", func() bool { return w.publish.out.Status().Length == 0 })
	b.down()
	snapshot("s2")
	snapshot("s3")
	require.NoError(t, w.end(), "nobody waits for a NATS that is away")
	require.Empty(t, w.log.values("stage left behind", "stage"))

	w = startNode(t, cfg, realFS()).ready()
	snapshot("s4")
	b.up()
	eventually(t, "published", func() bool { return w.publish.out.Status().Length == 0 })
	events := b.events()
	require.Equal(t, []string{
		event.NodeStarted, event.NodeReady, event.SnapshotCreated, event.SnapshotCreated, event.SnapshotCreated, event.NodeStopping,
		event.NodeStarted, event.NodeReady, event.SnapshotCreated,
	}, slices.DeleteFunc(kinds(events), func(k string) bool { return k == event.NodeDegraded })) // a slow machine is degraded by the outage for long enough to say so
	inOrder(t, events)
	require.NoError(t, w.end())
}

// Danger: a node without NATS does not start, or its outbox grows for ever.
func TestNodeRunsWithoutNATS(t *testing.T) {
	cfg := testConfig(t)
	cfg.OutboxEvents = 5
	w := startNode(t, cfg, realFS()).ready()
	for i := range 10 {
		w.publish.note(event.SnapshotCreated, &eventv1.SnapshotCreated{Sequence: uint64(i)})
	}
	eventually(t, "bounded", func() bool { s := w.publish.out.Status(); return s.Length == 5 && s.Dropped == 7 })
	resp, err := http.Get("http://" + w.OpsAddr() + "/metrics") //nolint:noctx // a server of this process
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	for _, line := range []string{
		`pairdb_event_outbox_length{node_id="n1"} 5`, `pairdb_event_outbox_capacity{node_id="n1"} 5`, `pairdb_event_dropped_total{node_id="n1"} 7`,
		`pairdb_event_connected{node_id="n1"} 0`, `pairdb_event_published_total{node_id="n1"} 0`, `pairdb_event_publish_failures_total{node_id="n1"} 0`,
		`pairdb_event_outbox_memory{node_id="n1"} 0`, `pairdb_event_connection_refusals_total{node_id="n1"} 0`, `pairdb_event_outbox_oldest_seconds{node_id="n1"} `,
	} {
		require.Contains(t, string(body), line)
	}
	require.NotContains(t, string(body), `pairdb_event_outbox_oldest_seconds{node_id="n1"} 0`+"\n")
	require.NoError(t, w.end())
}

// Danger: a file of credentials with a wrong name looks like a quiet NATS.
func TestWrongNATSFilesEndTheStart(t *testing.T) {
	cfg := testConfig(t)
	cfg.NATSURL, cfg.NATSCredentials = "nats://127.0.0.1:1", "/does/not/exist"
	rt := &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: service.NewRegistry("storage-node"), Build: service.ThisBuild()}
	_, err := New(cfg, rt, realFS())
	require.ErrorContains(t, err, "PAIRDB_NATS_CREDENTIALS")
}

// Danger: the one event that says why a node is gone goes with it.
func TestPoisonedEngineIsPublishedOrLeftForTheNextStart(t *testing.T) {
	for name, withNATS := range map[string]bool{"connected": true, "NATS away": false} {
		t.Run(name, func(t *testing.T) {
			b := newBroker(t)
			if withNATS {
				b.up()
			}
			cfg := testConfig(t)
			cfg.NATSURL = b.url()
			fs := realFS()
			w := startNode(t, cfg, fs).ready()
			if withNATS {
				b.find(event.NodeReady)
			}
			fs.failSync.Store(true)
			require.Error(t, w.put("k", "v"))
			require.Error(t, <-w.done)
			fs.failSync.Store(false)
			if !withNATS {
				b.up()
				again := startNode(t, cfg, fs).ready()
				defer func() { require.NoError(t, again.end()) }()
				b.find(event.EnginePoisoned)
			}
			_, poisoned := b.find(event.EnginePoisoned)
			require.Contains(t, poisoned.(*eventv1.EnginePoisoned).GetError(), syscall.EIO.Error())
			_, stopping := b.find(event.NodeStopping)
			require.Contains(t, stopping.(*eventv1.NodeStopping).GetReason(), "poisoned")
			inOrder(t, b.events())
		})
	}
}

// Danger: damage is found and nobody is told which file.
func TestDamagedTableIsPublished(t *testing.T) {
	b := newBroker(t).up()
	cfg := testConfig(t)
	cfg.NATSURL = b.url()
	w := startNode(t, cfg, realFS()).ready()
	for i := range 200 {
		require.NoError(t, w.put(fmt.Sprint("key", i), strings.Repeat("v", 500)))
	}
	_, err := w.admin.Flush(t.Context(), &adminv1.FlushRequest{})
	require.NoError(t, err)
	require.NoError(t, w.end())
	tables, err := filepath.Glob(filepath.Join(cfg.DataDir, "sst", "*.sst"))
	require.NoError(t, err)
	require.NotEmpty(t, tables)
	content, err := os.ReadFile(tables[0])
	require.NoError(t, err)
	for i := range content {
		content[i] ^= 0x55
	}
	require.NoError(t, os.Chmod(tables[0], 0o660))
	require.NoError(t, os.WriteFile(tables[0], content, 0o660))

	w = startNode(t, cfg, realFS()).ready()
	verify, err := w.admin.Verify(t.Context(), &adminv1.VerifyRequest{})
	for err == nil {
		_, err = verify.Recv()
	}
	_, corrupt := b.find(event.TableCorrupt)
	require.Equal(t, fmt.Sprintf("%06d.sst", corrupt.(*eventv1.TableCorrupt).GetTable()), filepath.Base(tables[0]))
	require.NotEmpty(t, corrupt.(*eventv1.TableCorrupt).GetError())
	// A table that is set aside stays a reason until it is replaced.
	_, degraded := b.find(event.NodeDegraded)
	require.Equal(t, "quarantine", degraded.(*eventv1.NodeDegraded).GetReasons()[0].GetName())
	require.NoError(t, w.end())
}

// Danger: nobody notices that events do not arrive; or a NATS server that is away takes the node out of
// service.
func TestNATSThatIsAwayDegradesAndDoesNotUnready(t *testing.T) {
	b := newBroker(t)
	cfg := testConfig(t)
	cfg.NATSURL = b.url()
	w := startNode(t, cfg, realFS()).ready()
	degraded := func() string {
		code, text := w.probe("/ready")
		require.Equal(t, http.StatusOK, code)
		return text
	}
	require.Contains(t, degraded(), "NATS is not reached")
	require.NoError(t, w.put("k", "v"))
	b.up()
	eventually(t, "the node is whole again", func() bool { return !strings.Contains(degraded(), `"events"`) })
	require.NoError(t, w.end())
}

// Danger: an event of a sidecar is lost between the socket and NATS, or doubled by a repeat.
func TestEventsOfSidecarsArePublishedOnce(t *testing.T) {
	b := newBroker(t).up()
	cfg := testConfig(t)
	cfg.NATSURL = b.url()
	w := startNode(t, cfg, realFS()).ready()
	conn, err := sidecar.Dial(cfg.Socket)
	require.NoError(t, err)
	defer conn.Close()
	client := nodev1.NewNodeServiceClient(conn)
	for _, kind := range []string{event.MembershipJoined, event.MembershipFailed, event.MembershipLeft} {
		row, _ := event.Lookup(kind)
		data, err := event.EncodePayload(kind, row.Example)
		require.NoError(t, err)
		for range 2 {
			_, err = client.Emit(t.Context(), &nodev1.EmitRequest{Id: "agent." + kind, Kind: kind, TimeMs: 1_796_000_000_000, Payload: data})
			require.NoError(t, err)
		}
		e, payload := b.find(kind)
		require.Equal(t, "agent."+kind, e.ID)
		require.True(t, proto.Equal(row.Example, payload))
	}
	_, err = client.Emit(t.Context(), &nodev1.EmitRequest{Id: "x", Kind: "node.exploded", TimeMs: 1, Payload: []byte(`{}`)})
	require.Equal(t, "INVALID_ARGUMENT_EVENT", reason(err))
	require.NoError(t, w.end())
	inOrder(t, b.events())
}

// Danger: what the engine and its jobs say is told under a wrong kind, or not at all.
func TestEngineEventsAreToldByTheirKind(t *testing.T) {
	b := newBroker(t).up()
	cfg := testConfig(t)
	cfg.NATSURL = b.url()
	w := startNode(t, cfg, realFS()).ready()
	job := jobs.Key{ID: 93, Epoch: 2}
	for _, e := range []jobs.Event{
		{Kind: jobs.EventWorkersGone, Reason: "no worker for 30s"},
		{Kind: jobs.EventQuarantined, Key: job, Reason: "3 attempts failed"},
		{Kind: jobs.EventWorkersBack, Worker: "c@1"},
		{Kind: jobs.EventLeased, Key: job},
	} {
		w.handle(engine.Event{Kind: engine.EventJob, Job: &e})
	}
	_, degraded := b.find(event.CompactionDegraded)
	require.Equal(t, "no worker for 30s", degraded.(*eventv1.CompactionChanged).GetReason())
	_, quarantined := b.find(event.CompactionQuarantined)
	require.Equal(t, job.String(), quarantined.(*eventv1.CompactionChanged).GetJob())
	_, back := b.find(event.CompactionRecovered)
	require.Equal(t, "c@1 is there", back.(*eventv1.CompactionChanged).GetReason())
	require.Equal(t, []string{
		event.CompactionDegraded, event.CompactionQuarantined, event.CompactionRecovered,
	}, kinds(b.events())[2:5])
	require.NoError(t, w.end())
}

// Danger: an operator learns that a disk is full, and not that there is room again.
func TestDiskThatFillsAndEmptiesIsPublished(t *testing.T) {
	b := newBroker(t).up()
	cfg := testConfig(t)
	cfg.NATSURL = b.url()
	fs := realFS()
	fs.usage.Store(disk(10))
	w := startNode(t, cfg, fs).ready()
	fs.usage.Store(disk(96))
	_, full := b.find(event.DiskFull)
	require.InDelta(t, 96, full.(*eventv1.DiskChanged).GetUsedPercent(), 0.1)
	fs.usage.Store(disk(50))
	_, recovered := b.find(event.DiskRecovered)
	require.InDelta(t, 50, recovered.(*eventv1.DiskChanged).GetUsedPercent(), 0.1)
	require.NoError(t, w.end())
}

// Danger: two of the metrics have one name, or a scrape before the start ends the process.
func TestMetricsOfEventsAreThereFromTheStart(t *testing.T) {
	p := &publish{out: outbox.New(outbox.Options{Node: "n"})}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(p.collectors(prometheus.Labels{"node_id": "n"})...)
	families, err := registry.Gather()
	require.NoError(t, err)
	require.Len(t, families, 9)
}

// Danger: a long or broken error makes an event that no stream takes.
func TestTextsOfEventsFit(t *testing.T) {
	s := text(strings.Repeat("ä", maxTextBytes) + "\xff")
	require.LessOrEqual(t, len(s), maxTextBytes)
	require.True(t, json.Valid([]byte(fmt.Sprintf("%q", s))))
	require.Empty(t, errorText(nil))
	require.Equal(t, "a", text("a\xff"))
}
