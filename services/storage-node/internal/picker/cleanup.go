package picker

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// Bottommost returns the parts of a merge's span where a tombstone may be collected: nothing outside
// of it has anything older there (tables below, or older ones of level 0), and nothing anywhere
// outside, above or in a memtable, has a fragment, which would bring back to life what the
// tombstone covers. Nobody knows what a quarantined table has.
func Bottommost(v *manifest.Version, inputs []*manifest.Table, outputLevel int, memMerges []manifest.Span) []compact.Range {
	in := make(map[uint64]bool, len(inputs))
	var newest ikey.Seq
	for _, t := range inputs {
		in[t.Num] = true
		newest = max(newest, t.MaxSeq)
	}
	span := spanOf(inputs)
	var blocked []compact.Range
	for level, tables := range v.Levels {
		for _, t := range tables {
			older := level > outputLevel || level == 0 && t.MinSeq <= newest
			if !in[t.Num] && (older || t.Merges > 0 || t.Quarantined) && t.Span().Overlaps(span) {
				blocked = append(blocked, halfOpen(t.Span()))
			}
		}
	}
	for _, s := range memMerges {
		if s.Overlaps(span) {
			blocked = append(blocked, halfOpen(s))
		}
	}
	return subtract(halfOpen(span), blocked)
}

// halfOpen returns a span as a range; no End is the end of all keys.
func halfOpen(s manifest.Span) compact.Range {
	r := compact.Range{Start: s.Start, End: s.End}
	if s.End != nil && !s.Exclusive {
		r.End = append(bytes.Clone(s.End), 0)
	}
	return r
}

// subtract returns what is left of r without the blocked ranges.
func subtract(r compact.Range, blocked []compact.Range) (out []compact.Range) {
	slices.SortFunc(blocked, func(a, b compact.Range) int { return bytes.Compare(a.Start, b.Start) })
	at := r.Start
	for _, b := range blocked {
		if len(r.End) > 0 && bytes.Compare(b.Start, r.End) >= 0 {
			break
		}
		if bytes.Compare(at, b.Start) < 0 {
			out = append(out, compact.Range{Start: at, End: b.Start})
		}
		if len(b.End) == 0 {
			return out
		}
		if bytes.Compare(b.End, at) > 0 {
			at = b.End
		}
	}
	if len(r.End) == 0 || bytes.Compare(at, r.End) < 0 {
		out = append(out, compact.Range{Start: at, End: r.End})
	}
	return out
}

// covers reports whether the merge is bottommost for all of its span.
func covers(bottommost []compact.Range, s manifest.Span) bool {
	if len(bottommost) != 1 {
		return false
	}
	r := halfOpen(s)
	return bytes.Equal(bottommost[0].Start, r.Start) && bytes.Equal(bottommost[0].End, r.End)
}

// pickDrop takes out tables that a range delete covers entirely. Nobody can read what they have, and
// what is older below is covered as well.
func (w *view) pickDrop() (Plan, bool) {
	for _, d := range w.f.RangeDeletes {
		if w.f.OldestSnapshot != 0 && w.f.OldestSnapshot < d.Seq {
			continue
		}
		covered := manifest.Span{Start: d.Start, End: d.End, Exclusive: true}
		p := Plan{Kind: Drop, Reason: fmt.Sprintf("a range delete at %d covers all of it", d.Seq)}
		for level := range manifest.NumLevels {
			var tables []*manifest.Table
			for _, t := range w.v.Overlapping(level, covered) {
				if covered.Contains(t.Span()) && t.MaxSeq < d.Seq && w.free([]*manifest.Table{t}) && len(tables) < maxDrops {
					tables = append(tables, t)
				}
			}
			p.Inputs = append(p.Inputs, Inputs{level, tables})
		}
		if len(p.Tables()) > 0 {
			return w.finish(p, 1), true
		}
	}
	return Plan{}, false
}

// maxDrops bounds the edit of a drop, for each level.
const maxDrops = 1000

// pickCleanup rewrites, or takes down, a table for what it has to get rid of. It is only looked for
// when the tree is in shape.
func (w *view) pickCleanup() (Plan, bool) {
	for level := lastLevel; level >= 0; level-- {
		for _, t := range w.v.Levels[level] {
			if reason := w.dirty(t, level); reason != "" {
				if p, ok := w.clean(t, level, reason); ok {
					return w.finish(p, 0.5), true
				}
			}
		}
	}
	return Plan{}, false
}

// dirty says what a table could get rid of at the bottom; "" is nothing.
func (w *view) dirty(t *manifest.Table, level int) string {
	if w.f.NewestSnapshot != 0 && w.f.NewestSnapshot >= t.MinSeq {
		return "" // a snapshot may need it
	}
	if t.Tombstones > 0 && t.OldestCollectible > 0 && t.OldestCollectible < w.collectBefore(t) && w.mayCollect(t) {
		return fmt.Sprintf("table %06d has collectable tombstones", t.Num)
	}
	if t.RangeDeletes > 0 || t.Deletes > 0 && t.Deletes*20 >= t.Entries {
		return fmt.Sprintf("table %06d has deletes", t.Num)
	}
	if level == lastLevel && t.Merges > 0 && t.Merges*20 >= t.Entries {
		return fmt.Sprintf("table %06d has fragments", t.Num)
	}
	return ""
}

// collectBefore is the cut of collection less the delay.
func (w *view) collectBefore(t *manifest.Table) uint64 {
	delay := max(w.o.CollectDelay, 0)
	if t.Tombstones*4 >= t.Entries {
		delay /= 24
	}
	d := hybrid(delay)
	if w.f.GCBefore < d {
		return 0
	}
	return w.f.GCBefore - d
}

// mayCollect reports whether a rewrite of t can collect more than the last one left behind. What cuts
// hold back they may hold back for long, of a replica that is away, while those of other ranges go on
// changing: so it is tried again after a CollectDelay, and only if they have changed at all.
func (w *view) mayCollect(t *manifest.Table) bool {
	k, ok := w.f.Kept[t.Num]
	if !ok {
		return true
	}
	return k.CutsVersion != w.f.CutsVersion && w.f.GCBefore >= k.GCBefore+hybrid(max(w.o.CollectDelay, 0))
}

// hybrid returns a duration in the units of a hybrid-logical timestamp: milliseconds, then 16 bits.
func hybrid(d time.Duration) uint64 { return uint64(d/time.Millisecond) << 16 }

// clean takes a dirty table to the next level if something older is below, and rewrites it where
// it is otherwise. A rewrite must be bottommost for all of the table: then it leaves nothing that
// would have it picked again, but for what cuts hold back; see mayCollect.
func (w *view) clean(t *manifest.Table, level int, reason string) (Plan, bool) {
	one := []*manifest.Table{t}
	for below := level + 1; below < manifest.NumLevels; below++ {
		if len(w.v.Overlapping(below, t.Span())) == 0 {
			continue
		}
		if level == 0 {
			p, ok := w.mergeL0(w.closure(t))
			p.Reason = reason
			return p, ok
		}
		if _, ok := w.claim(one, level+1, t.Span()); ok {
			return w.down(t, level, reason), true
		}
		return w.split(t, level, level+1)
	}
	if level == 0 {
		return Plan{}, false // it goes down with the next ones
	}
	if !w.free(one) || w.busy.claimed(level, t.Span()) || t.Size > w.o.MaxInputBytes {
		return Plan{}, false
	}
	if !covers(Bottommost(w.v, one, level, w.f.MemMerges), t.Span()) {
		return Plan{}, false
	}
	return Plan{Kind: Merge, Inputs: []Inputs{{level, one}}, OutputLevel: level, Reason: reason}, true
}

// closure returns t with the older tables of level 0 that must leave it together with it.
func (w *view) closure(t *manifest.Table) []*manifest.Table {
	all := w.v.Levels[0]
	i := slices.Index(all, t)
	out := []*manifest.Table{t}
	for i--; i >= 0; i-- {
		if slices.ContainsFunc(out, func(o *manifest.Table) bool { return o.Span().Overlaps(all[i].Span()) }) {
			out = append(out, all[i])
		}
	}
	slices.Reverse(out)
	return out
}
