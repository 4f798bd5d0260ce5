// Package history records what clients asked of a cluster and what they were answered: who, where, when, and
// with which causal past. It never judges.
package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Kind is what an operation does.
type Kind string

// The kinds of operations.
const (
	Read   Kind = "read"
	Put    Kind = "put"
	Delete Kind = "delete"
)

// Outcome is how an operation ended.
type Outcome string

// The outcomes. Unknown is a write of which nobody knows whether it was made: the answer was lost.
const (
	OK      Outcome = "ok"
	Failed  Outcome = "failed"
	Unknown Outcome = "unknown"
)

// Clock is a vector clock: writes by actor.
type Clock map[string]uint64

// Dot is one write in the numbering of its actor; the zero Dot is none.
type Dot struct {
	Actor   string `json:"actor"`
	Counter uint64 `json:"counter"`
}

// Contains reports whether c has seen a write.
func (c Clock) Contains(d Dot) bool { return d != Dot{} && c[d.Actor] >= d.Counter }

// Join raises the entries of c to those of o.
func (c Clock) Join(o Clock) {
	for actor, n := range o {
		c[actor] = max(c[actor], n)
	}
}

// Op is one call to one node. A write that a coordinator sends to several nodes is one Op for each, all with
// the same ID.
type Op struct {
	// ID names a write, and is the value that it stored; each write has its own. Empty for reads.
	ID   string `json:"id,omitempty"`
	Kind Kind   `json:"kind"`
	Key  string `json:"key"`
	// Client did one thing after the other. Node is who was asked, by name.
	Client string `json:"client"`
	Node   string `json:"node"`
	// Start and End are since the start of the run, on one monotonic clock. Of an unknown outcome the write
	// may have happened long after End.
	Start time.Duration `json:"start"`
	End   time.Duration `json:"end"`

	// Dot of a write whose number is known: from the answer, or because its coordinator gave it.
	Dot Dot `json:"dot,omitzero"`
	// Seen is what a write superseded by its own words: the clock of a read that came before it, or of a
	// coordinator; nil of a blind write, which supersedes what its node knew.
	Seen Clock `json:"seen,omitempty"`
	// Blind says that Seen is not the client's: the write had neither context nor clock.
	Blind bool `json:"blind,omitempty"`
	// Plain says that a coordinator made the clock of the write, Seen and Dot.
	Plain bool `json:"plain,omitempty"`
	// TTL of the value; 0 is for ever.
	TTL time.Duration `json:"ttl,omitempty"`
	// IfAbsent and IfValue are the condition of a write; IfValue is the ID of the write that must stand there.
	IfAbsent bool   `json:"if_absent,omitempty"`
	IfValue  string `json:"if_value,omitempty"`

	Outcome Outcome `json:"outcome"`
	// Refused says that a failed write failed because its condition did not hold.
	Refused bool `json:"refused,omitempty"`
	// Error in words, of what did not end well.
	Error string `json:"error,omitempty"`
	// Clock is the clock of the key in the answer; nil: the node had never seen it.
	Clock Clock `json:"clock,omitempty"`
	// Values are the IDs of the live values that a read found.
	Values []string `json:"values,omitempty"`
}

// Log is a growing history. It is safe for concurrent use.
type Log struct {
	begun time.Time

	mu  sync.Mutex
	ops []Op // guarded by mu
}

// New returns an empty history that begins now.
func New() *Log { return &Log{begun: time.Now()} }

// Now is the time since the start of the history.
func (l *Log) Now() time.Duration { return time.Since(l.begun) }

// Add adds operations that have ended.
func (l *Log) Add(ops ...Op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ops = append(l.ops, ops...)
}

// Ops returns what was added so far; it must not be changed.
func (l *Log) Ops() []Op {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ops[:len(l.ops):len(l.ops)]
}

// Save writes operations to a file, one JSON object a line.
func Save(name string, ops []Op) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("save history: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for i := range ops {
		if err := enc.Encode(&ops[i]); err != nil {
			return fmt.Errorf("save history: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("save history: %w", err)
	}
	return nil
}

// Load reads what Save wrote: a failed run can be judged again.
func Load(name string) ([]Op, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("load history: %w", err)
	}
	defer f.Close()
	var ops []Op
	for dec := json.NewDecoder(bufio.NewReader(f)); ; {
		var op Op
		err := dec.Decode(&op)
		if errors.Is(err, io.EOF) {
			return ops, nil
		}
		if err != nil {
			return nil, fmt.Errorf("load history: operation %d: %w", len(ops), err)
		}
		ops = append(ops, op)
	}
}
