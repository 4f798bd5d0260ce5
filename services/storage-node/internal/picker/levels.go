package picker

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// pickL0 takes tables out of level 0 into the base level.
func (w *view) pickL0() (Plan, bool) {
	reason := fmt.Sprintf("level 0 has %d tables", len(w.v.Levels[0]))
	if p, ok := w.moveL0(); ok {
		p.Reason = reason
		return p, true
	}
	if p, ok := w.mergeL0(w.v.Levels[0]); ok {
		p.Reason = reason
		return p, true
	}
	if w.o.IntraL0 {
		if p, ok := w.insideL0(); ok {
			p.Reason = reason + ", the base level is busy"
			return p, true
		}
	}
	return Plan{}, false
}

// moveL0 collects tables that overlap nothing older in level 0 and nothing in the base level.
func (w *view) moveL0() (Plan, bool) {
	base := w.targets.Base
	var move []*manifest.Table
	var stay []manifest.Span
	for _, t := range w.v.Levels[0] {
		s := t.Span()
		blocked := slices.ContainsFunc(stay, s.Overlaps) || !w.free([]*manifest.Table{t}) ||
			slices.ContainsFunc(move, func(m *manifest.Table) bool { return m.Span().Overlaps(s) }) ||
			!w.canMove(t, base)
		if blocked {
			stay = append(stay, s)
		} else {
			move = append(move, t)
		}
	}
	if len(move) == 0 {
		return Plan{}, false
	}
	return Plan{Kind: Move, Inputs: []Inputs{{0, move}}, OutputLevel: base}, true
}

// canMove reports whether t fits into a level as it is, without a large merge that would follow.
func (w *view) canMove(t *manifest.Table, level int) bool {
	s := t.Span()
	if len(w.v.Overlapping(level, s)) > 0 || w.busy.claimed(level, s) {
		return false
	}
	return level == lastLevel || sizes(w.v.Overlapping(level+1, s)) <= w.o.MaxInputBytes/2
}

// mergeL0 merges tables of level 0 (candidates, oldest first) into the base level: as many as fit
// into a job, each only with all older ones that it overlaps.
func (w *view) mergeL0(candidates []*manifest.Table) (Plan, bool) {
	base := w.targets.Base
	var in, below []*manifest.Table
	var stay []manifest.Span
	var span manifest.Span
	for _, t := range w.v.Levels[0] {
		s := t.Span()
		if !slices.Contains(candidates, t) || slices.ContainsFunc(stay, s.Overlaps) {
			stay = append(stay, s)
			continue
		}
		union := s
		if len(in) > 0 {
			union = span.Union(s)
		}
		more, ok := w.claim(append(slices.Clone(in), t), base, union)
		if !ok {
			stay = append(stay, s)
			continue
		}
		in, below, span = append(in, t), more, union
	}
	if len(in) == 0 {
		return w.splitL0(candidates)
	}
	return Plan{Kind: Merge, Inputs: []Inputs{{0, in}, {base, below}}, OutputLevel: base}, true
}

// fits reports whether a job can read tables with what they overlap of the output level.
func (w *view) fits(tables []*manifest.Table, output int) bool {
	return sizes(tables)+sizes(w.v.Overlapping(output, spanOf(tables))) <= w.o.MaxInputBytes
}

// claim returns the tables of the output level that a merge of in must take, if it may run.
func (w *view) claim(in []*manifest.Table, output int, span manifest.Span) ([]*manifest.Table, bool) {
	below := w.v.Overlapping(output, span)
	if sizes(in)+sizes(below) > w.o.MaxInputBytes || !w.free(in) || !w.free(below) {
		return nil, false
	}
	if len(below) > 0 {
		span = span.Union(spanOf(below))
	}
	return below, !w.busy.claimed(output, span)
}

// insideL0 merges the longest run of neighbours in level 0 that are free and that, as one table, can
// still go down in a job: a larger one would be split, and its parts merged, without an end.
func (w *view) insideL0() (Plan, bool) {
	tables := w.v.Levels[0]
	var best []*manifest.Table
	for i := 0; i < len(tables); i++ {
		j := i
		for j < len(tables) && w.free(tables[j:j+1]) && w.fits(tables[i:j+1], w.targets.Base) {
			j++
		}
		if j-i > len(best) {
			best = tables[i:j]
		}
		i = max(i, j-1)
	}
	if len(best) < w.o.L0Trigger || w.busy.claimed(0, spanOf(best)) {
		return Plan{}, false
	}
	return Plan{Kind: Merge, Inputs: []Inputs{{0, best}}, OutputLevel: 0, TargetBytes: w.o.MaxInputBytes}, true
}

// splitL0 splits the oldest candidate that overlaps more of the base level than a job may read.
func (w *view) splitL0(candidates []*manifest.Table) (Plan, bool) {
	for _, t := range candidates {
		if p, ok := w.split(t, 0, w.targets.Base); ok {
			return p, true
		}
	}
	return Plan{}, false
}

// split rewrites a table as several at its own level, if it overlaps more of the output level than a
// job may read. A table with one entry can't be split.
func (w *view) split(t *manifest.Table, level, output int) (Plan, bool) {
	overlap := sizes(w.v.Overlapping(output, t.Span()))
	if w.fits([]*manifest.Table{t}, output) || t.Entries < 2 || !w.free([]*manifest.Table{t}) || w.busy.claimed(level, t.Span()) {
		return Plan{}, false
	}
	parts := max(min(2*overlap/w.o.MaxInputBytes+1, uint64(w.o.MaxOutputs)/2, t.Entries), 2)
	target := t.Size / parts
	if t.Num%4 == 3 {
		// A table with most of its bytes in its last key comes out as it was, under another number.
		// So sooner or later it is cut much finer, and the rest ends up in the last output.
		target >>= 12
	}
	return Plan{
		Kind: Merge, Inputs: []Inputs{{level, []*manifest.Table{t}}}, OutputLevel: level,
		TargetBytes: max(target, 1),
		Reason:      fmt.Sprintf("table %06d overlaps %d MiB of level %d: split", t.Num, overlap>>20, output),
	}, true
}

// pickLevel moves or merges one table of a level, or several neighbours, into the next level: the
// one that overlaps the least of it for its size. Of equals, the first behind the cursor.
func (w *view) pickLevel(level int) (Plan, bool) {
	tables := w.v.Levels[level]
	start := 0
	if c := w.f.Cursors[level]; c != nil {
		start = len(tables)
		for i, t := range tables {
			if bytes.Compare(t.Smallest.User, c) > 0 {
				start = i
				break
			}
		}
	}
	var best *manifest.Table
	bestCost := 0.0
	var large []*manifest.Table
	for i := range tables {
		t := tables[(start+i)%len(tables)]
		below, ok := w.claim([]*manifest.Table{t}, level+1, t.Span())
		if !ok {
			large = append(large, t)
			continue
		}
		if cost := float64(sizes(below)) / float64(t.Size); best == nil || cost < bestCost {
			best, bestCost = t, cost
		}
	}
	if best == nil {
		for _, t := range large {
			if p, ok := w.split(t, level, level+1); ok {
				return p, true
			}
		}
		return Plan{}, false
	}
	reason := fmt.Sprintf("level %d is above its target", level)
	if level < w.targets.Ideal {
		reason = fmt.Sprintf("level %d is not used any more", level)
	}
	return w.down(best, level, reason), true
}

// down makes the plan that takes t, for which claim succeeded, to the next level.
func (w *view) down(t *manifest.Table, level int, reason string) Plan {
	p := Plan{Inputs: []Inputs{{level, []*manifest.Table{t}}}, OutputLevel: level + 1, Reason: reason}
	if w.canMove(t, level+1) {
		p.Kind = Move
		return p
	}
	in, below := w.widen([]*manifest.Table{t}, level)
	p.Kind = Merge
	p.Inputs = []Inputs{{level, in}, {level + 1, below}}
	return p
}

// widen adds neighbours of the same level that lie within the span of the merge, as long as they
// cost nothing more of the next level.
func (w *view) widen(in []*manifest.Table, level int) (wide, below []*manifest.Table) {
	below, _ = w.claim(in, level+1, spanOf(in))
	if len(below) == 0 {
		return in, below
	}
	more := w.v.Overlapping(level, spanOf(below).Union(spanOf(in)))
	for len(more) > len(in) {
		if got, ok := w.claim(more, level+1, spanOf(more)); ok && len(got) == len(below) {
			return more, got
		}
		// Give up the end that is farther from what is in already.
		if more[0] != in[0] {
			more = more[1:]
		} else {
			more = more[:len(more)-1]
		}
	}
	return in, below
}
