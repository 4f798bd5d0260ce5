package tenant

import (
	"context"
	"sync"
	"sync/atomic"
)

// gate counts requests that are inside, until it is closed.
type gate struct {
	inside  atomic.Int64
	closed  atomic.Bool
	streams atomic.Int64

	once  sync.Once
	empty chan struct{} // closed when the gate is closed and nobody is inside any more
}

func newGate() *gate { return &gate{empty: make(chan struct{})} }

// load is how many requests and streams are inside.
func (g *gate) load() int64 { return g.inside.Load() + g.streams.Load() }

// enter reports whether the caller is inside, and with how many others.
func (g *gate) enter() (inside int64, ok bool) {
	inside = g.inside.Add(1)
	if g.closed.Load() {
		g.leave()
		return 0, false
	}
	return inside, true
}

func (g *gate) leave() {
	if g.inside.Add(-1) == 0 && g.closed.Load() {
		g.signal()
	}
}

// signal is called when the gate is closed and was seen empty. From then on whoever counts himself
// leaves again.
func (g *gate) signal() { g.once.Do(func() { close(g.empty) }) }

// close lets nobody in any more.
func (g *gate) close() {
	g.closed.Store(true)
	if g.inside.Load() == 0 {
		g.signal()
	}
}

// wait returns when a closed gate is empty.
func (g *gate) wait(ctx context.Context) error {
	select {
	case <-g.empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gate) isEmpty() bool {
	select {
	case <-g.empty:
		return true
	default:
		return false
	}
}
