package stream

import (
	"context"
	"errors"
	"time"
)

// Mark is how far a source is behind a part of its stream. Which fields count is the sender's matter.
type Mark struct {
	// Cursor of an export.
	Cursor []byte
	// Sequence of a feed, and when it was found durable, in milliseconds since the Unix epoch.
	Sequence uint64
	AtMs     int64
	// Records of the part and the bytes of their keys and values. Of marks that come back: all since
	// the last one that came back.
	Records, Bytes int64
}

// Sink takes a stream of records to a target. Send and Finish are called by one goroutine.
type Sink interface {
	// Send hands over a part; it may be empty. It waits while too much is not acknowledged. The records
	// are not changed, and not used after it has returned.
	Send(ctx context.Context, records *Records, m Mark) error
	// Finish waits until everything is acknowledged and ends the stream.
	Finish(ctx context.Context) error
	// Ended is closed when the stream is over, by whomever; Err says why then.
	Ended() <-chan struct{}
	Err() error
	// Unacknowledged returns how many bytes were sent and not acknowledged.
	Unacknowledged() int64
	// Close breaks the stream off and waits until Acked is not called any more.
	Close()
}

// Errors of streams.
var (
	// ErrStalled says that a target has acknowledged nothing for too long.
	ErrStalled = errors.New("the target acknowledges nothing")
	// ErrBroken says that a target has ended a stream before it had acknowledged everything.
	ErrBroken = errors.New("the target has ended the stream")
)

// Options of a sink. MoveID and Acked are required.
type Options struct {
	// MoveID names the move.
	MoveID string
	// ClusterID and NodeID say who sends.
	ClusterID, NodeID string
	// Sorted says that records come in key order, each key once.
	Sorted bool
	// ReadAt is when the oldest record was read.
	ReadAt time.Time
	// WindowBytes may be sent and not acknowledged; default 4 MiB. One larger part is sent alone.
	WindowBytes int64
	// Stall is how long a target may acknowledge nothing; default 1 min: a target that flushes and
	// throttles answers within seconds.
	Stall time.Duration
	// Limits are all waited for; nil ones are none.
	Limits []*Limiter
	// Waited is told how long a part has waited for limits; may be nil.
	Waited func(time.Duration)
	// Acked gets the newest mark of which everything is durable at the target. It is called by one
	// goroutine at a time, in order, and holds the stream up while it runs.
	Acked func(Mark)
}

const (
	defaultWindow = 4 << 20
	defaultStall  = time.Minute
)

func (o Options) withDefaults() Options {
	if o.WindowBytes <= 0 {
		o.WindowBytes = defaultWindow
	}
	if o.Stall <= 0 {
		o.Stall = defaultStall
	}
	return o
}
