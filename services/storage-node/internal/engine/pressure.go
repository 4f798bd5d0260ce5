package engine

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/picker"
)

// Pressure is what happens to writes because flushes or compactions are behind, or disk or memory are
// used up. Reads and everything that makes room go on.
type Pressure struct {
	// Delay is what each write waits; Refuse says that it is refused instead.
	Delay  time.Duration
	Refuse bool
	// MaxBatchBytes: larger batches are refused, because the disk is nearly full. 0 is no limit.
	MaxBatchBytes int
	// Reason says why; empty without pressure.
	Reason string
	// DiskFull says that the disk is the reason of Refuse; deletes are taken then, unless NoDeletes
	// says that they have used up their part of the reserve, too.
	DiskFull, NoDeletes bool
	// Memory says that memory is the reason of Refuse.
	Memory bool
	// RetryAfter is when a refused writer should try again.
	RetryAfter time.Duration
	// What it was judged by.
	L0Tables  int
	DebtBytes int64
}

// retryAfterRefusal: a compaction of level 0 takes about a second.
const retryAfterRefusal = time.Second

// judgement is the pressure that holds. Its judges go one after another: one that has looked before a
// state ended must not have the last word, or writes are refused for ever, and with them all that would
// have the pressure judged again.
type judgement struct {
	mu  sync.Mutex // held by the judge
	now atomic.Pointer[Pressure]
}

// Load returns what holds; nil before the first judgement.
func (j *judgement) Load() *Pressure { return j.now.Load() }

// replace has the pressure judged, and what changed told, in the same order.
func (j *judgement) replace(judge func() Pressure, tell func(old, now Pressure)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := judge()
	old := j.now.Swap(&now)
	if old == nil {
		old = &Pressure{}
	}
	tell(*old, now)
}

// updatePressure judges the state of tree, disk and memory anew. Nobody calls it with e.mu held.
func (e *Engine) updatePressure() { e.pressure.replace(e.judgePressure, e.tellPressure) }

func (e *Engine) judgePressure() Pressure {
	v := e.manifest.Current()
	p := Pressure{L0Tables: len(v.Levels[0]), DebtBytes: picker.Debt(v, e.pickerOptions())}
	v.Unref()
	p.Delay, p.Refuse, p.Reason = picker.Pressure(picker.Load{L0Tables: p.L0Tables, DebtBytes: p.DebtBytes},
		picker.Limits{L0Slow: e.opts.L0Slow, L0Stop: e.opts.L0Stop, DebtSlowBytes: e.opts.DebtSlowBytes, DebtStopBytes: e.opts.DebtStopBytes})
	e.space.mu.Lock()
	p.addSpace(e.space.state, e.space.usage, e.space.exhausted)
	e.space.mu.Unlock()
	p.addMemory(MemoryState(e.memory.Load()))
	if p.Refuse {
		p.Delay, p.MaxBatchBytes, p.RetryAfter = 0, 0, retryAfterRefusal
	}
	return p
}

func (e *Engine) tellPressure(old, now Pressure) {
	if old.Refuse != now.Refuse || (old.Delay > 0) != (now.Delay > 0) || old.MaxBatchBytes != now.MaxBatchBytes {
		e.emit(Event{Kind: EventPressure, Reason: now.Reason, Duration: now.Delay, Tables: now.L0Tables, Bytes: now.DebtBytes})
	}
	if e.board != nil {
		e.board.SetUrgent(now.L0Tables >= e.opts.L0Slow)
	}
}

// addSpace adds what the disk does to writes.
func (p *Pressure) addSpace(s SpaceState, u vfs.Usage, exhausted bool) {
	used := "the size of the disk is not known"
	if u.TotalBytes > 0 {
		used = fmt.Sprintf("%.1f %% of the disk is used", 100-100*float64(u.FreeBytes)/float64(u.TotalBytes))
	}
	free := fmt.Sprintf("%s, %d MiB are free", used, u.FreeBytes>>20)
	switch s {
	case SpaceFull:
		p.Refuse, p.DiskFull, p.NoDeletes = true, true, exhausted
		if p.Reason = free + ": only deletes are taken"; exhausted {
			p.Reason = free + ": what is left is for flushes"
		}
	case SpaceThrottled:
		if p.MaxBatchBytes = throttledBatchBytes; p.Reason == "" {
			p.Reason = fmt.Sprintf("%s: writes above %d KiB are refused", free, throttledBatchBytes>>10)
		}
	}
}

// addMemory adds what memory does to writes. A full disk goes first: deletes help there.
func (p *Pressure) addMemory(s MemoryState) {
	if s == MemoryCritical && !p.DiskFull {
		p.Refuse, p.Memory, p.Reason = true, true, "memory is nearly used up"
	}
}

// pickerOptions are the shape of the tree.
func (e *Engine) pickerOptions() picker.Options {
	return picker.Options{L0Trigger: e.opts.L0Trigger, L0Lazy: e.opts.L0Lazy, BaseBytes: uint64(e.opts.BaseBytes), LevelMultiplier: e.opts.LevelMultiplier,
		TableBytes: uint64(e.opts.TableBytes), MaxInputBytes: uint64(e.opts.MaxJobInputBytes)}
}
