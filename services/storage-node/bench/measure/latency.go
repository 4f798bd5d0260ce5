package measure

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latency counts durations in buckets of three significant digits (HdrHistogram), from a nanosecond
// to a minute; longer ones count as a minute. It is for one goroutine; Merge joins those of several.
type Latency struct{ h *hdrhistogram.Histogram }

const longest = int64(time.Minute)

// NewLatency returns an empty one. It takes some 200 KiB.
func NewLatency() *Latency { return &Latency{hdrhistogram.New(1, longest, 3)} }

// Record takes one duration. It allocates nothing.
func (l *Latency) Record(d time.Duration) { _ = l.h.RecordValue(min(max(int64(d), 1), longest)) }

// Merge adds the durations of o.
func (l *Latency) Merge(o *Latency) { l.h.Merge(o.h) }

// Count returns how many durations there are.
func (l *Latency) Count() uint64 { return uint64(l.h.TotalCount()) }

// Quantile returns the duration that percent of all don't exceed.
func (l *Latency) Quantile(percent float64) time.Duration {
	return time.Duration(l.h.ValueAtQuantile(percent))
}

// Max returns the longest.
func (l *Latency) Max() time.Duration { return time.Duration(l.h.Max()) }
