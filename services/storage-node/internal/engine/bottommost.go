package engine

import (
	"bytes"
	"slices"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// keyRange is a half-open range of engine keys; a nil end is unbounded.
type keyRange struct{ start, end []byte }

// halfOpen returns the keys of a span as a half-open range.
func halfOpen(s manifest.Span) keyRange {
	r := keyRange{start: s.Start, end: s.End}
	if s.End != nil && !s.Exclusive {
		r.end = append(bytes.Clone(s.End), 0)
	}
	return r
}

// bottommostRanges returns the parts of the job's span in which a record may be collected, and a
// fragment becomes a complete record: nothing outside of the job may hold anything older there, nor a
// newer fragment, which would bring back to life what a collected tombstone covered.
//
// Outside of the job, a table blocks its span
//   - below the output level: it is older;
//   - in level 0, if some of its entries may be older than some of the job's;
//   - anywhere, if it has fragments, or is quarantined, so that nobody knows what it has.
//
// merges are the spans of the fragments in memtables.
func bottommostRanges(v *manifest.Version, job []*manifest.Table, outputLevel int, merges []manifest.Span) []compact.Range {
	inJob := make(map[uint64]bool, len(job))
	span, newest := job[0].Span(), ikey.Seq(0)
	for _, t := range job {
		inJob[t.Num] = true
		span = span.Union(t.Span())
		newest = max(newest, t.MaxSeq)
	}
	var blocked []keyRange
	block := func(s manifest.Span) {
		if s.Overlaps(span) {
			blocked = append(blocked, halfOpen(s))
		}
	}
	for level, tables := range v.Levels {
		for _, t := range tables {
			if inJob[t.Num] {
				continue
			}
			if level > outputLevel || t.Merges > 0 || t.Quarantined || level == 0 && t.MinSeq <= newest {
				block(t.Span())
			}
		}
	}
	for _, s := range merges {
		block(s)
	}
	return subtract(halfOpen(span), blocked)
}

// subtract returns what is left of r without blocked, ascending and disjoint.
func subtract(r keyRange, blocked []keyRange) []compact.Range {
	slices.SortFunc(blocked, func(a, b keyRange) int { return bytes.Compare(a.start, b.start) })
	var out []compact.Range
	at := r.start
	for _, b := range blocked {
		if r.end != nil && bytes.Compare(b.start, r.end) >= 0 {
			break
		}
		if bytes.Compare(at, b.start) < 0 {
			out = append(out, compact.Range{Start: at, End: b.start})
		}
		if b.end == nil {
			return out
		}
		if bytes.Compare(b.end, at) > 0 {
			at = b.end
		}
	}
	if r.end == nil || bytes.Compare(at, r.end) < 0 {
		out = append(out, compact.Range{Start: at, End: r.end})
	}
	return out
}

// mergeSpans returns the spans of the fragments in memtables. e.mu is held.
func (e *Engine) mergeSpansLocked() []manifest.Span {
	var spans []manifest.Span
	for _, h := range append([]*memHandle{e.mu.mem}, e.mu.imm...) {
		if n, low, high := h.Merges(); n > 0 {
			spans = append(spans, manifest.Span{Start: bytes.Clone(low), End: bytes.Clone(high)})
		}
	}
	return spans
}
