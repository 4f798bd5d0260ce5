// Package stages is what a request leaves behind of the parts of its work: when each began, how long it
// took, and where a read had to look. It never reads a clock, and never decides who wants to know.
//
// The parts of a request follow one another. So a Trail is a lap counter: whoever ends a part says when,
// and the time since the last part ended is that of this one. A part that is done again adds up. The time
// between two parts counts for the later one: nothing that a request waits for is lost.
//
// A request that nobody looks at has no trail: it pays for a comparison with nil.
package stages

import (
	"context"
	"time"
)

// Stage is a part of the work on a request.
type Stage uint8

// The stages, in the order in which a request can pass them.
const (
	// Decode is from the first bytes of the request to its message.
	Decode Stage = iota
	// Limits is the limits of node and tenant, and the check of the request.
	Limits
	// Lock is waiting for other writes of the same keys.
	Lock
	// Join is reading what is there and deciding what it becomes.
	Join
	// Delay is waiting because flushes or compactions are behind.
	Delay
	// Queue is waiting in the commit queue.
	Queue
	// Log is the write to the commit log, with the wait for a memtable if all are full.
	Log
	// Memtable is the insertion into the memtable and the row cache.
	Memtable
	// Sync is waiting until the write is durable.
	Sync
	// Read is finding what a read asks for.
	Read

	// Count is how many there are.
	Count
)

var names = [Count]string{"decode", "limits", "lock", "join", "delay", "queue", "log", "memtable", "sync", "read"}

// String returns the name that spans and logs use.
func (s Stage) String() string {
	if s < Count {
		return names[s]
	}
	return "unknown"
}

// Passage is one stage of a request.
type Passage struct {
	// Began is from the start of the trail to the first time that the stage began.
	Began time.Duration
	// Took adds up all times.
	Took time.Duration
	// Times is how often; 0: the request did not pass the stage.
	Times int32
}

// Lookups are the places that the reads of a request looked into.
type Lookups struct {
	// Rows counts answers of the row cache, Memtables those that no table was needed for.
	Rows, Memtables int64
	// Tables were searched, Skipped were ruled out by their filter.
	Tables, Skipped int64
}

// Trail is what one request leaves. One goroutine at a time uses it: while a write waits in the commit
// queue that is the one that commits for it.
type Trail struct {
	start, last time.Time
	passed      [Count]Passage
	lookups     Lookups
}

// Begin empties the trail for a request that begins now.
func (t *Trail) Begin(now time.Time) { *t = Trail{start: now, last: now} }

// Start returns when the request began.
func (t *Trail) Start() time.Time { return t.start }

// Lap ends a stage: it took since the last one ended.
func (t *Trail) Lap(s Stage, now time.Time) {
	p := &t.passed[s]
	if p.Times == 0 {
		p.Began = t.last.Sub(t.start)
	}
	p.Times++
	p.Took += max(now.Sub(t.last), 0)
	t.last = now
}

// Looked adds where a read looked.
func (t *Trail) Looked(l Lookups) {
	t.lookups.Rows += l.Rows
	t.lookups.Memtables += l.Memtables
	t.lookups.Tables += l.Tables
	t.lookups.Skipped += l.Skipped
}

// Passed returns what is known of a stage.
func (t *Trail) Passed(s Stage) Passage { return t.passed[s] }

// Lookups returns where the reads of the request looked.
func (t *Trail) Lookups() Lookups { return t.lookups }

// Key is under which a context has the trail of its request: a *Trail, which may be nil.
type Key struct{}

// From returns the trail of a request, or nil if nobody looks.
func From(ctx context.Context) *Trail {
	t, _ := ctx.Value(Key{}).(*Trail)
	return t
}

// With returns a context whose request leaves its trail in t.
func With(ctx context.Context, t *Trail) context.Context { return context.WithValue(ctx, Key{}, t) }
