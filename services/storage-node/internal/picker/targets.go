package picker

import (
	"math"
	"time"

	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// Targets is the shape that the tree should have.
type Targets struct {
	// Base is the level that level 0 is merged into. The levels between are empty.
	Base int
	// Bytes are the targets of the levels from the base on; 0 above it.
	Bytes [manifest.NumLevels]uint64
	// Ideal is where the base would be if the levels above it were empty: levels from Base to
	// before Ideal are drained when there is time.
	Ideal int
}

// targets computes the shape from the size of the largest level, which counts as the last.
func targets(v *manifest.Version, o Options) Targets {
	t := Targets{Base: lastLevel, Ideal: lastLevel}
	first := lastLevel
	var largest uint64
	for level := lastLevel; level > 0; level-- {
		if len(v.Levels[level]) > 0 {
			first = level
		}
		largest = max(largest, v.Bytes(level))
	}
	for size := largest; size > o.BaseBytes && t.Ideal > 1; size /= uint64(o.LevelMultiplier) {
		t.Ideal--
	}
	t.Base = min(first, t.Ideal)
	// From the ideal base on, the levels grow evenly up to the last.
	factor := 1.0
	if steps := lastLevel - t.Ideal; steps > 0 {
		factor = math.Pow(float64(largest)/float64(o.BaseBytes), 1/float64(steps))
	}
	size := float64(o.BaseBytes)
	for level := t.Ideal; level <= lastLevel; level++ {
		t.Bytes[level] = uint64(size)
		size *= factor
	}
	return t
}

// scores says how much each level is out of shape; from 1 on it should be compacted. What running
// jobs already take away does not count.
func (w *view) scores() (s [manifest.NumLevels]float64) {
	var idle [manifest.NumLevels]uint64
	l0 := 0
	for level, tables := range w.v.Levels {
		for _, t := range tables {
			if w.busy.tables[t.Num] {
				continue
			}
			idle[level] += t.Size
			if level == 0 {
				l0++
			}
		}
	}
	s[0] = max(float64(l0)/float64(l0Due(w.v, w.targets, w.o, idle[0], w.f.Quiet)), float64(idle[0])/float64(w.o.BaseBytes))
	for level := 1; level < lastLevel; level++ {
		switch target := w.targets.Bytes[level]; {
		case target > 0:
			s[level] = float64(idle[level]) / float64(target)
		case idle[level] > 0:
			s[level] = 1 // above where the base should be: drained, after all that is urgent
		}
	}
	return s
}

// l0Due returns how many tables level 0 must have for a merge: L0Trigger if their bytes pay for what
// is rewritten with them, else L0Lazy. They pay with three quarters of it; with a quarter when there
// is time, since by then the space that they may waste is worth it.
func l0Due(v *manifest.Version, t Targets, o Options, bytes uint64, quiet bool) int {
	if o.L0Lazy <= o.L0Trigger || len(v.Levels[0]) == 0 {
		return o.L0Trigger
	}
	below := sizes(v.Overlapping(t.Base, spanOf(v.Levels[0])))
	if pays := below / 4; bytes >= 3*pays || quiet && bytes > pays {
		return o.L0Trigger
	}
	return o.L0Lazy
}

// Lazy reports whether level 0 has tables that a pick takes as soon as it is Quiet, and not before.
func Lazy(v *manifest.Version, o Options) bool {
	o = o.withDefaults()
	n, t, bytes := len(v.Levels[0]), targets(v, o), v.Bytes(0)
	return n >= l0Due(v, t, o, bytes, true) && n < l0Due(v, t, o, bytes, false)
}

// Level is the state of one level.
type Level struct {
	Tables             int
	Bytes, TargetBytes uint64
	Score              float64
}

// Status returns the shape of the tree, for people and metrics.
func Status(v *manifest.Version, busy *Busy, o Options) (base int, levels [manifest.NumLevels]Level) {
	w := newView(v, busy, o, Facts{})
	scores := w.scores()
	for level := range levels {
		levels[level] = Level{Tables: len(v.Levels[level]), Bytes: v.Bytes(level), TargetBytes: w.targets.Bytes[level], Score: scores[level]}
	}
	return w.targets.Base, levels
}

// Debt estimates how many bytes compactions must read and write until the tree is in shape: what is
// too much in a level is rewritten together with its share of the next one, and then weighs there.
func Debt(v *manifest.Version, o Options) int64 {
	o = o.withDefaults()
	t := targets(v, o)
	debt, carried := 0.0, 0.0
	if len(v.Levels[0]) >= l0Due(v, t, o, v.Bytes(0), false) || v.Bytes(0) > o.BaseBytes {
		carried = float64(v.Bytes(0))
		debt = carried + float64(v.Bytes(t.Base))
	}
	for level := t.Base; level < lastLevel; level++ {
		size := float64(v.Bytes(level)) + carried
		carried = max(size-float64(t.Bytes[level]), 0)
		if carried > 0 {
			debt += carried * (1 + float64(v.Bytes(level+1))/size)
		}
	}
	return int64(min(debt, math.MaxInt64/2))
}

// Load is how the store is doing.
type Load struct {
	L0Tables  int
	DebtBytes int64
}

// Limits are where writes are slowed down and refused. Zero values mean the defaults.
type Limits struct {
	// L0Slow and L0Stop are 20 and 36 tables in level 0.
	L0Slow, L0Stop int
	// DebtSlowBytes and DebtStopBytes are 16 GiB and 64 GiB of pending compaction: at 200 MB/s
	// the compactor is 80 s, then over 5 minutes behind.
	DebtSlowBytes, DebtStopBytes int64
}

const (
	minDelay = time.Millisecond
	maxDelay = 100 * time.Millisecond
)

// Pressure says what happens to a write: it waits for delay, or is refused. reason is empty when
// neither.
func Pressure(l Load, o Limits) (delay time.Duration, refuse bool, reason string) {
	if o.L0Slow == 0 {
		o.L0Slow = 20
	}
	if o.L0Stop == 0 {
		o.L0Stop = 36
	}
	if o.DebtSlowBytes == 0 {
		o.DebtSlowBytes = 16 << 30
	}
	if o.DebtStopBytes == 0 {
		o.DebtStopBytes = 64 << 30
	}
	switch {
	case l.L0Tables >= o.L0Stop:
		return 0, true, "level 0 has too many tables"
	case l.DebtBytes >= o.DebtStopBytes:
		return 0, true, "too much compaction is pending"
	}
	// Each cause is a share of the way from slow to stop; the delay grows by the same factor with
	// each step of it.
	share := -1.0
	if l.L0Tables >= o.L0Slow {
		share, reason = float64(l.L0Tables-o.L0Slow)/float64(max(o.L0Stop-1-o.L0Slow, 1)), "level 0 has many tables"
	}
	if l.DebtBytes >= o.DebtSlowBytes {
		if s := float64(l.DebtBytes-o.DebtSlowBytes) / float64(max(o.DebtStopBytes-o.DebtSlowBytes, 1)); s > share {
			share, reason = s, "much compaction is pending"
		}
	}
	if share < 0 {
		return 0, false, ""
	}
	delay = time.Duration(float64(minDelay) * math.Pow(float64(maxDelay/minDelay), share))
	return min(delay.Round(time.Microsecond), maxDelay), false, reason
}
