package causal

import (
	"math"
	"sync/atomic"
	"time"
)

// HLC is a hybrid logical clock: timestamps that never repeat, never go back and stay as close to
// wall time as its source (Kulkarni et al., "Logical Physical Clocks", 2014). Milliseconds stand in
// the upper 48 bits, a counter in the lower 16; a counter that overflows carries into the
// milliseconds. It is safe for concurrent use.
type HLC struct {
	wall func() time.Time
	last atomic.Uint64
}

// NewHLC returns a clock over a source of wall time.
func NewHLC(wall func() time.Time) *HLC { return &HLC{wall: wall} }

// Now returns a timestamp that is larger than all that Now returned or Observe saw before.
func (h *HLC) Now() uint64 {
	wall := Timestamp(h.wall())
	for {
		last := h.last.Load()
		next := max(wall, last+1)
		if last == math.MaxUint64 {
			return last
		}
		if h.last.CompareAndSwap(last, next) {
			return next
		}
	}
}

// Observe makes later timestamps larger than ts. The caller refuses timestamps that are too far
// ahead first: one wrong clock would drag all others along.
func (h *HLC) Observe(ts uint64) {
	for {
		last := h.last.Load()
		if ts <= last || h.last.CompareAndSwap(last, ts) {
			return
		}
	}
}

// Timestamp returns the first hybrid logical timestamp of the millisecond of t; 0 before 1970.
func Timestamp(t time.Time) uint64 { return uint64(max(t.UnixMilli(), 0)) << 16 }

// Time returns the wall time of a hybrid logical timestamp.
func Time(ts uint64) time.Time { return time.UnixMilli(int64(ts >> 16)) }
