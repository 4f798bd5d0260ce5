package node

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/vfs"
	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/outbox"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

const (
	// outboxDir is below the data directory: events belong to it.
	outboxDir = "outbox"
	// lastEvents is how long a node that ends waits for its last events to be published. What is not
	// is published by the next process.
	lastEvents = 2 * time.Second
	// maxTextBytes bounds a text of the node in an event.
	maxTextBytes = 1 << 10
)

// publish is the node's own account of what happens to it: it turns that into events for the outbox,
// and publishes the outbox while there is NATS. No method waits for a disk or a network, but for Stop
// of its stage.
type publish struct {
	log       *slog.Logger
	version   string
	state     *state
	out       *outbox.Outbox
	conn      *event.Conn      // nil without NATS
	publisher *event.Publisher // nil without NATS
}

// newPublish makes the outbox, and begins to connect to NATS if there is one. The error is one of the
// configuration.
func newPublish(cfg *config.Config, rt *service.Runtime, log *slog.Logger, fsys vfs.FS, s *state) (*publish, error) {
	p := &publish{log: log, version: rt.Build.Version, state: s, out: outbox.New(outbox.Options{
		FS: fsys, Dir: path.Join(cfg.DataDir, outboxDir), Cluster: cfg.ClusterID, Node: cfg.NodeID, Capacity: cfg.OutboxEvents, Log: log,
	})}
	if cfg.NATSURL == "" {
		return p, nil
	}
	var err error
	if p.conn, err = event.Connect(cfg.Config, "storage-node "+cfg.NodeID, log); err != nil {
		return nil, service.WithExitCode(service.ExitUsage, err)
	}
	if p.publisher, err = event.NewPublisher(p.conn, p.out, log); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// problem says why events are not published as they should be; empty when they are, or when nobody wants
// them.
func (p *publish) problem() string {
	s := p.out.Status()
	switch {
	case p.conn != nil && !p.conn.Connected():
		return fmt.Sprintf("NATS is not reached, %d events wait", s.Length)
	case s.Memory:
		return fmt.Sprintf("the disk does not take events, %d wait in memory", s.Length)
	}
	return ""
}

func (p *publish) close() {
	if p.conn != nil {
		p.conn.Close()
	}
}

// stage runs the outbox and the publisher. It stops after the engine, whose last events are the ones
// that matter.
func (p *publish) stage(limit time.Duration) service.Stage {
	ctx, cancel := context.WithCancel(context.Background())
	return service.Stage{
		Name: "events", Limit: limit,
		Run: func() error { p.run(ctx); return nil },
		Stop: func(stopping context.Context) error {
			p.flush(stopping)
			cancel()
			return nil
		},
	}
}

func (p *publish) run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { p.out.Run(ctx) })
	if p.publisher != nil {
		all.Go(func() { p.publisher.Run(ctx) })
	}
	all.Wait()
	p.close()
}

// flush waits for the last events, while there is somebody who takes them.
func (p *publish) flush(ctx context.Context) {
	if p.conn == nil || !p.conn.Connected() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lastEvents)
	defer cancel()
	if !p.out.WaitEmpty(ctx) {
		p.log.Warn("events are left for the next start", "events", p.out.Status().Length)
	}
}

// note hands over an event that happens now.
func (p *publish) note(kind string, payload proto.Message) { p.noteAt(time.Now(), kind, payload) }

func (p *publish) noteAt(at time.Time, kind string, payload proto.Message) {
	data, err := event.EncodePayload(kind, payload)
	if err != nil {
		p.log.Error("event not sent", "kind", kind, "error", err)
		return
	}
	p.out.Note(kind, at, data)
}

// started tells that the data directory is this process' own; before it nothing is told.
func (p *publish) started(at time.Time, incarnation string) {
	p.noteAt(at, event.NodeStarted, &eventv1.NodeStarted{Version: p.version, Incarnation: incarnation})
	p.out.Attach()
}

func (p *publish) ready(took time.Duration) {
	p.note(event.NodeReady, &eventv1.NodeReady{TookMs: took.Milliseconds()})
}

func (p *publish) stopping(reason string) {
	p.note(event.NodeStopping, &eventv1.NodeStopping{Reason: text(reason)})
}

func (p *publish) snapshot(s server.Snapshot) {
	p.note(event.SnapshotCreated, &eventv1.SnapshotCreated{Name: s.Name, Sequence: s.Sequence, SizeBytes: s.SizeBytes})
}

// engine takes an event of the engine, one at a time.
func (p *publish) engine(e engine.Event) {
	switch e.Kind {
	case engine.EventQuarantined:
		p.note(event.TableCorrupt, &eventv1.TableCorrupt{Table: e.Table, Error: errorText(e.Err)})
	case engine.EventPoisoned:
		p.note(event.EnginePoisoned, &eventv1.EnginePoisoned{Error: errorText(e.Err)})
	case engine.EventJob:
		if e.Job != nil {
			p.job(*e.Job)
		}
	}
}

// job tells what became of compaction as a whole. Damage that a job finds is an event of the table: the
// engine sets it aside.
func (p *publish) job(e jobs.Event) {
	m := &eventv1.CompactionChanged{Reason: text(e.Reason)}
	if e.Key.ID != 0 {
		m.Job = e.Key.String()
	}
	switch e.Kind {
	case jobs.EventWorkersGone:
		p.note(event.CompactionDegraded, m)
	case jobs.EventWorkersBack:
		m.Reason = text(e.Worker + " is there")
		p.note(event.CompactionRecovered, m)
	case jobs.EventQuarantined:
		p.state.set(func(s *state) { m.QuarantinedTables = int64(s.quarantined) })
		p.note(event.CompactionQuarantined, m)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return text(err.Error())
}

// text makes a text fit for an event.
func text(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxTextBytes)], "")
}

// collectors are the metrics of events.
func (p *publish) collectors(labels prometheus.Labels) []prometheus.Collector {
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "pairdb_event_" + name, Help: help, ConstLabels: labels}, f)
	}
	counter := func(name, help string, f func() int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "pairdb_event_" + name, Help: help, ConstLabels: labels},
			func() float64 { return float64(f()) })
	}
	published := func(f func(*event.Publisher) int64) func() int64 {
		return func() int64 {
			if p.publisher == nil {
				return 0
			}
			return f(p.publisher)
		}
	}
	refused := published((*event.Publisher).Refused)
	return []prometheus.Collector{
		gauge("outbox_length", "Events that wait to be published.", func() float64 { return float64(p.out.Status().Length) }),
		gauge("outbox_capacity", "Events that may wait; the oldest is dropped for one more.", func() float64 { return float64(p.out.Status().Capacity) }),
		gauge("outbox_oldest_seconds", "Age of the oldest event that waits; 0 when none does.", func() float64 { return age(p.out.Status().Oldest) }),
		gauge("outbox_memory", "1 while the disk does not take events and they are kept in memory only.", func() float64 { return flag(p.out.Status().Memory) }),
		gauge("connected", "1 while there is a connection to NATS.", func() float64 { return flag(p.conn != nil && p.conn.Connected()) }),
		counter("published_total", "Events that the stream has acknowledged.", published((*event.Publisher).Published)),
		counter("publish_failures_total", "Attempts to publish that failed while there was a connection.", published((*event.Publisher).Failures)),
		counter("dropped_total", "Events that were not published: there was no room, they were too old, or no stream takes them.",
			func() int64 { return p.out.Status().Dropped + refused() }),
		counter("connection_refusals_total", "Times that NATS did not take this node's credentials.", func() int64 {
			if p.conn == nil {
				return 0
			}
			return p.conn.Refusals()
		}),
	}
}

func age(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return max(0, time.Since(t).Seconds())
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
