package engine

import (
	"time"

	"github.com/pairdb/pairdb/services/storage-node/internal/picker"
)

// Pressure is what happens to writes because flushes, compactions or the disk are behind. Reads,
// deletes and everything that makes room go on.
type Pressure struct {
	// Delay is what each write waits; Refuse says that it is refused instead.
	Delay  time.Duration
	Refuse bool
	// Reason says why; empty without pressure.
	Reason string
	// DiskFull says that the disk is the reason.
	DiskFull bool
	// RetryAfter is when a refused writer should try again.
	RetryAfter time.Duration
	// What it was judged by.
	L0Tables  int
	DebtBytes int64
}

// retryAfterRefusal: a compaction of level 0 takes about a second.
const retryAfterRefusal = time.Second

// updatePressure judges the state of tree and disk anew. Nobody calls it with e.mu held.
func (e *Engine) updatePressure() {
	v := e.manifest.Current()
	p := Pressure{L0Tables: len(v.Levels[0]), DebtBytes: picker.Debt(v, e.pickerOptions())}
	v.Unref()
	load := picker.Load{L0Tables: p.L0Tables, DebtBytes: p.DebtBytes}
	limits := picker.Limits{L0Slow: e.opts.L0Slow, L0Stop: e.opts.L0Stop, DebtSlowBytes: e.opts.DebtSlowBytes, DebtStopBytes: e.opts.DebtStopBytes}
	e.space.mu.Lock()
	full := e.space.state == SpaceFull
	if full {
		load.FreeBytes, limits.ReserveBytes = e.space.usage.FreeBytes, uint64(e.opts.ReserveBytes)
	}
	e.space.mu.Unlock()
	p.Delay, p.Refuse, p.Reason = picker.Pressure(load, limits)
	p.DiskFull = full && p.Refuse
	if p.Refuse {
		p.RetryAfter = retryAfterRefusal
	}
	old := e.pressure.Swap(&p)
	if old == nil {
		old = &Pressure{}
	}
	if old.Refuse != p.Refuse || (old.Delay > 0) != (p.Delay > 0) {
		e.emit(Event{Kind: EventPressure, Reason: p.Reason, Duration: p.Delay, Tables: p.L0Tables, Bytes: p.DebtBytes})
	}
	if e.board != nil {
		e.board.SetUrgent(p.L0Tables >= e.opts.L0Slow)
	}
}

// pickerOptions are the shape of the tree.
func (e *Engine) pickerOptions() picker.Options {
	return picker.Options{L0Trigger: e.opts.L0Trigger, L0Lazy: e.opts.L0Lazy, BaseBytes: uint64(e.opts.BaseBytes), LevelMultiplier: e.opts.LevelMultiplier,
		TableBytes: uint64(e.opts.TableBytes), MaxInputBytes: uint64(e.opts.MaxJobInputBytes)}
}
