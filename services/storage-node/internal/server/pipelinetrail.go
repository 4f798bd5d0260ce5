package server

import (
	"context"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// tracedMessages is how many messages of a recorded stream get spans in a second: one stream may bring
// ten thousand, and the queue of the exporter would lose those of other calls.
const tracedMessages = 10

// message is what is known of one message of a pipeline, if somebody looks.
type message struct {
	began  time.Time
	traced bool
	trail  stages.Trail // of its writes, and of its reads if it is traced
	tenant string
	key    string // of its first write
}

// watchMessage returns what to note of a message, or nil if nobody looks.
func (c *call) watchMessage(now time.Time) *message {
	if c == nil {
		return nil
	}
	m := &message{began: now}
	if c.span != nil {
		if c.messages == nil {
			c.messages = rate.NewLimiter(tracedMessages, tracedMessages)
		}
		m.traced = c.messages.Allow()
	}
	if !m.traced && c.g.slow.over == 0 {
		return nil
	}
	m.trail.Begin(now)
	return m
}

// readsContext is the context of the reads of a message: their trail costs a look at the clock for each,
// which only those pay that are traced.
func (m *message) readsContext(ctx context.Context) context.Context {
	if m == nil || !m.traced {
		return ctx
	}
	return stages.With(ctx, &m.trail)
}

// writesContext is the same of its writes, which look at the clock once for all of them.
func (m *message) writesContext(ctx context.Context, in *pipelineInput, now time.Time) context.Context {
	if m == nil {
		return ctx
	}
	m.began = now
	m.trail.Begin(now)
	key := in.ops[0].Key
	m.tenant, m.key = in.tenant, strings.Clone(key[:min(len(key), store.MaxKeyBytes)])
	return stages.With(ctx, &m.trail)
}

// endReads says what there is to say about the reads of a message. slowest is the one that took longest,
// with its key.
func (c *call) endReads(m *message, tenant string, use *Pipelined, slowest time.Duration, key string) {
	if m == nil || len(use.ReadTook) == 0 {
		return
	}
	s := subject{known: true, tenant: tenant, key: key, keys: len(use.ReadTook), bytes: use.ReadBytes}
	if m.traced {
		c.messageSpan("pipeline reads", m, s, time.Now())
	}
	if over := c.g.slow.over; over > 0 && slowest >= over {
		c.g.slow.log(c, c.method+" (reads)", s, answered(use.FailedReads), slowest, &m.trail)
	}
}

// endWrites is the same for the writes of a message, which took until they were durable.
func (c *call) endWrites(m *message, use *Pipelined) {
	if m == nil {
		return
	}
	s := subject{
		known: true, tenant: m.tenant, key: m.key, bytes: use.WriteBytes,
		keys: use.Writes + use.RejectedWrites + use.FailedWrites,
	}
	if m.traced {
		c.messageSpan("pipeline writes", m, s, m.began.Add(use.WriteTook))
	}
	if over := c.g.slow.over; over > 0 && use.WriteTook >= over {
		c.g.slow.log(c, c.method+" (writes)", s, answered(use.FailedWrites), use.WriteTook, &m.trail)
	}
}

// answered is the code of a message of which so many operations failed by the node's fault.
func answered(failed int) codes.Code {
	if failed > 0 {
		return codes.Unknown // each has its own, in its answer
	}
	return codes.OK
}

// messageSpan makes a child of the stream's span for a part of a message, with its stages below.
func (c *call) messageSpan(name string, m *message, s subject, end time.Time) {
	ctx, span := c.g.tracer.Start(c, name, trace.WithTimestamp(m.began), trace.WithAttributes(s.attributes()...))
	c.stageSpans(ctx, &m.trail)
	span.End(trace.WithTimestamp(end))
}

// lapSync ends the last stage of writes that had to become durable.
func (m *message) lapSync(p store.Pending, now time.Time) {
	if m != nil && !p.Done() {
		m.trail.Lap(stages.Sync, now)
	}
}

// slowestRead keeps the read of a message that took longest.
type slowestRead struct {
	took time.Duration
	key  string // aliases the message
}

func (s *slowestRead) note(took time.Duration, key string) {
	if took >= s.took {
		s.took, s.key = took, key
	}
}
