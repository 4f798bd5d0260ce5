package event

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Source is where events wait until the stream has them.
type Source interface {
	// Next returns the oldest event that was not acknowledged, and waits for one until ctx ends. It
	// returns the same one again until Ack.
	Next(ctx context.Context) (Event, error)
	// Ack says that the event with this id is done with. One that is not there any more is no error.
	Ack(id string)
}

const (
	// ackTimeout bounds the wait for an acknowledgement: far above what a server needs, and no longer
	// than an operator waits before looking why.
	ackTimeout = 5 * time.Second
	// Pauses after a publication that failed.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	// tooLarge is the code of a message above the stream's limit.
	tooLarge jetstream.ErrorCode = 10054
)

// Publisher drains a source into the stream, one event at a time and in order.
type Publisher struct {
	conn   *Conn
	js     jetstream.JetStream
	source Source
	log    *slog.Logger

	published, failures, refused atomic.Int64

	problem string // of Run: that was logged last
	checked bool   // of Run: the stream was looked at
}

// NewPublisher returns a publisher over a connection, which it does not close.
func NewPublisher(conn *Conn, source Source, log *slog.Logger) (*Publisher, error) {
	js, err := jetstream.New(conn.NATS())
	if err != nil {
		return nil, fmt.Errorf("JetStream: %w", err)
	}
	return &Publisher{conn: conn, js: js, source: source, log: log}, nil
}

// Published returns how many events the stream has acknowledged.
func (p *Publisher) Published() int64 { return p.published.Load() }

// Failures returns how many attempts to publish have failed.
func (p *Publisher) Failures() int64 { return p.failures.Load() }

// Refused returns how many events were given up because no stream would take them.
func (p *Publisher) Refused() int64 { return p.refused.Load() }

// Run publishes until ctx ends. It is called once.
func (p *Publisher) Run(ctx context.Context) {
	for {
		e, err := p.source.Next(ctx)
		if err != nil {
			return
		}
		if !p.deliver(ctx, e) {
			return
		}
		p.source.Ack(e.ID)
	}
}

// deliver tries until the stream has the event, or never will; it reports false when ctx ended before.
func (p *Publisher) deliver(ctx context.Context, e Event) bool {
	pause := firstRetry
	for {
		err := p.publish(ctx, e)
		if err == nil {
			p.published.Add(1)
			p.note(nil)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if never(err) {
			p.refused.Add(1)
			p.log.Error("event given up", "id", e.ID, "kind", e.Kind, "error", err)
			return true
		}
		if !errors.Is(err, errAway) {
			p.failures.Add(1)
			p.note(err)
		}
		p.conn.wait(ctx, pause)
		pause = min(2*pause, lastRetry)
	}
}

// errAway says that there is no connection: the connection itself has said so already.
var errAway = errors.New("not connected")

// never reports whether an event will be refused each time.
func never(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, ErrInvalid) || errors.Is(err, nats.ErrMaxPayload) || errors.As(err, &api) && api.ErrorCode == tooLarge
}

// publish sends an event once and waits for the acknowledgement.
func (p *Publisher) publish(ctx context.Context, e Event) error {
	b, err := e.Encode()
	if err != nil {
		return err
	}
	if !p.conn.Connected() {
		return errAway
	}
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	p.lookAtStream(ctx)
	m := nats.NewMsg(e.Subject())
	m.Data = b
	m.Header.Set(jetstream.MsgIDHeader, e.ID)
	m.Header.Set("Content-Type", "application/cloudevents+json")
	_, err = p.js.PublishMsg(ctx, m)
	if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		if err := p.createStream(ctx); err != nil {
			return err
		}
		_, err = p.js.PublishMsg(ctx, m)
	}
	return err
}

// createStream makes the stream where nothing takes the subjects. Somebody else may have made it just
// now.
func (p *Publisher) createStream(ctx context.Context) error {
	_, err := p.js.CreateStream(ctx, Stream())
	if err == nil {
		p.log.Info("stream created", "stream", StreamName)
		return nil
	}
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil
	}
	return fmt.Errorf("create stream %s: %w", StreamName, err)
}

// lookAtStream says once when the stream forgets ids sooner than events may wait: then an event whose
// acknowledgement was lost can be there twice. Who may not look does not know.
func (p *Publisher) lookAtStream(ctx context.Context) {
	if p.checked {
		return
	}
	p.checked = true
	ctx, cancel := context.WithTimeout(ctx, ackTimeout/5)
	defer cancel()
	s, err := p.js.Stream(ctx, StreamName)
	if err != nil {
		return
	}
	if d := s.CachedInfo().Config.Duplicates; d < DuplicateWindow {
		p.log.Warn("the stream forgets ids sooner than events may wait: one may be there twice after a failure",
			"stream", StreamName, "duplicate_window", d, "wanted", DuplicateWindow)
	}
}

// note logs a problem when it is another one than before, and its end.
func (p *Publisher) note(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == p.problem {
		return
	}
	if err != nil {
		p.log.Warn("event not published, it is tried again", "error", err)
	} else {
		p.log.Info("events are published again")
	}
	p.problem = text
}
