package picker

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// Manual is how far a compaction that somebody asked for has come. It goes from level to level: all
// of the span in one level is taken down, then the next level's turn comes; at the last one
// tables with something to get rid of are rewritten. Each step goes through the keys once, and
// level 0 only takes tables with entries from before it began, so writes that go on can't keep it
// from ending.
type Manual struct {
	Span manifest.Span
	// Before is the next table number when it began, Seq the sequence of the newest entry in tables.
	Before uint64
	Seq    ikey.Seq
	// Cleanup rewrites every table at the last level with entries up to Seq that is not in Facts.Cleaned,
	// whatever it has, and leaves newer tables alone.
	Cleanup bool
	Level   int
	// Cursor is the largest key of the level that is done; nil at its start.
	Cursor []byte
}

// Outcome is the answer of PickManual.
type Outcome uint8

const (
	// Done: there is nothing left to do.
	Done Outcome = iota
	// Picked: run the plan, then ask again with the returned Manual.
	Picked
	// Blocked: what comes next is in other jobs; ask again when one has ended.
	Blocked
	// Impossible: a quarantined or too large table is in the way of the rest; it is left out if
	// the returned Manual is used.
	Impossible
)

// PickManual returns the next plan of a manual compaction, and the state to go on with when it is
// done.
func PickManual(v *manifest.Version, busy *Busy, o Options, f Facts, m Manual) (Plan, Manual, Outcome) {
	w := newView(v, busy, o, f)
	if m.Level == 0 {
		if p, outcome := w.manualL0(m); outcome != Done {
			next := m
			if outcome == Impossible {
				next.Level = 1
			}
			return p, next, outcome
		}
		m.Level, m.Cursor = 1, nil
	}
	for ; m.Level < manifest.NumLevels; m.Level, m.Cursor = m.Level+1, nil {
		for _, t := range w.v.Overlapping(m.Level, m.Span) {
			if m.Cursor != nil && bytes.Compare(t.Smallest.User, m.Cursor) <= 0 {
				continue
			}
			if m.Level == lastLevel && !w.worthRewriting(t, m) || m.Cleanup && t.MinSeq > m.Seq {
				continue
			}
			p, outcome := w.manualTable(t, m)
			next := m
			switch {
			case outcome == Impossible:
				next.Cursor = t.Largest.User
			case outcome == Picked && (p.OutputLevel != m.Level || m.Level == lastLevel):
				next.Cursor = p.Cursor // after a split its parts are next
			}
			return p, next, outcome
		}
	}
	return Plan{}, m, Done
}

// manualL0 takes the tables of level 0 that were there in the beginning, or what they became.
func (w *view) manualL0(m Manual) (Plan, Outcome) {
	var old []*manifest.Table
	for _, t := range w.v.Levels[0] {
		if t.MinSeq <= m.Seq && t.Span().Overlaps(m.Span) {
			for _, c := range w.closure(t) {
				if !slices.Contains(old, c) {
					old = append(old, c)
				}
			}
		}
	}
	if len(old) == 0 {
		return Plan{}, Done
	}
	p, ok := w.mergeL0(old)
	if !ok {
		return Plan{}, w.whyNot(old, 0, w.targets.Base)
	}
	if p.Reason == "" {
		p.Reason = "manual compaction of level 0"
	}
	return w.finish(p, 2), Picked
}

// worthRewriting says whether a table at the last level has anything that a rewrite can remove.
func (w *view) worthRewriting(t *manifest.Table, m Manual) bool {
	if m.Cleanup {
		return !w.f.Cleaned[t.Num]
	}
	if t.Num >= m.Before || w.f.NewestSnapshot != 0 && w.f.NewestSnapshot >= t.MaxSeq {
		return false
	}
	return t.Merges > 0 || t.Deletes > 0 || t.RangeDeletes > 0 ||
		t.Tombstones > 0 && t.OldestCollectible < w.f.GCBefore
}

// Unclean reports whether a cleanup of everything up to sequence seq has tables left to work on: any above
// the last level, and those at the last that are not in cleaned.
func Unclean(v *manifest.Version, seq ikey.Seq, cleaned map[uint64]bool) bool {
	for level, tables := range v.Levels {
		for _, t := range tables {
			if t.MinSeq <= seq && (level < lastLevel || !cleaned[t.Num]) {
				return true
			}
		}
	}
	return false
}

// AtLastLevel reports whether what a plan writes has nothing below it, ever.
func (p *Plan) AtLastLevel() bool { return p.Kind == Merge && p.OutputLevel == lastLevel }

// manualTable takes one table down, or rewrites it at the last level.
func (w *view) manualTable(t *manifest.Table, m Manual) (Plan, Outcome) {
	reason := fmt.Sprintf("manual compaction of level %d", m.Level)
	one := []*manifest.Table{t}
	if m.Level == lastLevel {
		if !w.free(one) || w.busy.claimed(lastLevel, t.Span()) {
			return Plan{}, w.whyNot(one, lastLevel, lastLevel)
		}
		return w.finish(Plan{Kind: Merge, Inputs: []Inputs{{lastLevel, one}}, OutputLevel: lastLevel, Reason: reason}, 2), Picked
	}
	if _, ok := w.claim(one, m.Level+1, t.Span()); ok {
		return w.finish(w.down(t, m.Level, reason), 2), Picked
	}
	if p, ok := w.split(t, m.Level, m.Level+1); ok {
		return w.finish(p, 2), Picked
	}
	return Plan{}, w.whyNot(one, m.Level, m.Level+1)
}

// whyNot says whether waiting can help: for a job that has the tables, or that may write into the level
// where they would be split or the one where they would be merged.
func (w *view) whyNot(tables []*manifest.Table, level, output int) Outcome {
	span := spanOf(tables)
	below := w.v.Overlapping(output, span)
	if len(below) > 0 {
		span = span.Union(spanOf(below))
	}
	all := append(slices.Clone(tables), below...)
	if slices.ContainsFunc(all, func(t *manifest.Table) bool { return w.busy.tables[t.Num] }) || w.busy.claimed(output, span) || w.busy.claimed(level, span) {
		return Blocked
	}
	return Impossible
}
