package engine

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
	"github.com/pairdb/pairdb/services/storage-node/internal/picker"
)

// running is a plan that was taken: from the pick until it is installed or given up, its tables are
// busy and its span is claimed. The tables are pinned, so that their files stay.
type running struct {
	plan   picker.Plan
	tables []*manifest.Table
	// gcBefore, cuts, cutsInForce and cutsVersion are what the job collects by.
	gcBefore    uint64
	cuts        []compact.HashCut
	cutsInForce bool
	cutsVersion uint64
	// cleanup is the one that the job works for; nil: it drops nothing.
	cleanup *cleanup
	// Guarded by e.mu: how it ended.
	done  bool
	state jobs.State
	err   error
}

// scheduleLoop offers merges while the tree is out of shape, whenever something changed, and when
// nothing was written for QuietAfter.
func (e *Engine) scheduleLoop() {
	var written uint64 // what was applied when the loop last looked
	for {
		var quietAfter <-chan time.Time
		if e.lazy() {
			quietAfter = e.opts.Clock.After(e.opts.QuietAfter)
		}
		quiet := false
		select {
		case <-e.wake.schedule:
		case <-quietAfter:
			quiet = e.applied.Load() == written
		case <-e.stop:
			return
		}
		written = e.applied.Load()
		more, err := true, error(nil)
		for more && err == nil {
			more, err = e.scheduleOne(quiet)
		}
		if err == nil {
			continue
		}
		// Ending the failed plan rang the bell: without a pause it would be tried without end.
		select {
		case <-e.opts.Clock.After(e.opts.FlushRetry):
		case <-e.stop:
			return
		}
	}
}

// lazy reports whether level 0 has tables that wait for a quiet time.
func (e *Engine) lazy() bool {
	if e.opts.NoAutoCompaction {
		return false
	}
	v := e.manifest.Current()
	defer v.Unref()
	return picker.Lazy(v, e.pickerOptions())
}

// scheduleOne takes the most urgent plan and runs it. It reports whether there may be another.
func (e *Engine) scheduleOne(quiet bool) (more bool, err error) {
	if e.opts.NoAutoCompaction || e.writable() != nil {
		return false, nil
	}
	r, snapshots := e.pick(func(p *picking) (picker.Plan, bool) {
		if p.jobs >= e.opts.MaxJobs {
			return picker.Plan{}, false
		}
		p.facts.Quiet = quiet
		return picker.Pick(p.version, p.busy, e.pickerOptions(), p.facts)
	})
	if r == nil {
		return false, nil
	}
	err = e.take(r, snapshots)
	if err != nil && !errors.Is(err, jobs.ErrClosed) {
		e.emit(Event{Kind: EventScheduleFailed, Err: err, Reason: r.plan.Reason})
	}
	return err == nil, err
}

// picking is what a pick looks at.
type picking struct {
	version *manifest.Version
	busy    *picker.Busy
	facts   picker.Facts
	jobs    int
}

// pick asks choose for a plan, with e.mu held, and makes it busy. It returns nil if there is none.
// The snapshots are those of the job: taken after the version is referenced and the range deletes are
// listed, so that none that comes later can see less than the newest entry of a table or a range
// delete in it.
func (e *Engine) pick(choose func(*picking) (picker.Plan, bool)) (*running, []ikey.Seq) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.closing {
		return nil, nil
	}
	v := e.manifest.Current()
	defer v.Unref()
	e.loadCutsLocked()
	p := &picking{version: v, busy: &e.mu.busy, jobs: e.mu.jobs, facts: picker.Facts{
		MemMerges: e.mergeSpansLocked(), GCBefore: e.opts.GCBefore(), Cursors: e.mu.cursors, RangeDeletes: e.rangeDeletesLocked(),
		Kept: e.mu.kept, CutsVersion: e.mu.cutsVersion,
	}}
	if e.mu.cleanup != nil {
		p.facts.Cleaned = e.mu.cleanup.cleaned
	}
	snapshots := e.snapshots.sequences()
	if len(snapshots) > 0 && snapshots[0] == 0 {
		snapshots = snapshots[1:] // of the empty store: it needs nothing, and 0 is none for the picker
	}
	if n := len(snapshots); n > 0 {
		p.facts.OldestSnapshot, p.facts.NewestSnapshot = snapshots[0], snapshots[n-1]
	}
	plan, ok := choose(p)
	if !ok {
		return nil, nil
	}
	r := &running{plan: plan, tables: plan.Tables(), gcBefore: p.facts.GCBefore, cuts: e.mu.cuts, cutsInForce: e.mu.cutsInForce, cutsVersion: e.mu.cutsVersion}
	if plan.AtLastLevel() {
		r.cleanup = e.mu.cleanup
	}
	for _, t := range r.tables {
		t.Pin()
	}
	e.mu.busy.Add(&r.plan)
	e.mu.jobs++
	if plan.Cursor != nil {
		e.mu.cursors[plan.Inputs[0].Level] = plan.Cursor
	}
	return r, snapshots
}

// loadCutsLocked takes over the cuts of hash ranges as they are now. e.mu is held.
func (e *Engine) loadCutsLocked() {
	cuts, inForce := e.opts.Cuts()
	if inForce == e.mu.cutsInForce && slices.Equal(cuts, e.mu.cuts) {
		return
	}
	e.mu.cuts, e.mu.cutsInForce = cuts, inForce
	e.mu.cutsVersion++
}

// noteKeptLocked remembers which outputs of a merge have collectable things that its cuts held back, so
// that the tables are not rewritten for them again and again. e.mu is held.
func (e *Engine) noteKeptLocked(r *running, tables []*manifest.Table) {
	if !r.cutsInForce || !r.plan.Bottom() {
		return
	}
	for _, t := range tables {
		if t.Tombstones > 0 && t.OldestCollectible < r.gcBefore {
			e.mu.kept[t.Num] = picker.Kept{CutsVersion: r.cutsVersion, GCBefore: r.gcBefore}
		}
	}
}

// mergeSpansLocked returns the spans of the fragments in memtables. e.mu is held.
func (e *Engine) mergeSpansLocked() []manifest.Span {
	var spans []manifest.Span
	for _, h := range append([]*memHandle{e.mu.mem}, e.mu.imm...) {
		if n, low, high := h.Merges(); n > 0 {
			spans = append(spans, manifest.Span{Start: bytes.Clone(low), End: bytes.Clone(high)})
		}
	}
	return spans
}

// rangeDeletesLocked returns those range deletes in memtables that no crash can take and that readers
// see. e.mu is held.
func (e *Engine) rangeDeletesLocked() []ikey.RangeDelete {
	var out []ikey.RangeDelete
	e.durable.mu.Lock()
	durable := e.durable.synced // visible is not below it
	e.durable.mu.Unlock()
	for _, h := range append([]*memHandle{e.mu.mem}, e.mu.imm...) {
		for _, d := range h.RangeDeletes() {
			if d.Seq <= durable {
				out = append(out, d)
			}
		}
	}
	return out
}

// take carries a plan out: a merge becomes a job on the board, the rest is one edit.
func (e *Engine) take(r *running, snapshots []ikey.Seq) error {
	if r.plan.Kind != picker.Merge {
		err := e.applyEdit(r.plan.Edit(), nil, nil)
		if err == nil {
			e.stats.moves.Add(1)
			e.finish(r, jobs.StateInstalled, nil)
			return nil
		}
		e.finish(r, jobs.StateCancelled, err)
		return fmt.Errorf("%s: %w", r.plan.Kind, err)
	}
	_, err := e.board.Offer(e.jobPlan(r, snapshots))
	if err != nil {
		e.finish(r, jobs.StateCancelled, err)
		return fmt.Errorf("offer a merge into level %d: %w", r.plan.OutputLevel, err)
	}
	return nil
}

// jobPlan describes a merge by value.
func (e *Engine) jobPlan(r *running, snapshots []ikey.Seq) *jobs.Plan {
	p := &jobs.Plan{Priority: r.plan.Score, Reason: r.plan.Reason, Tag: r, MinSeq: ikey.MaxSeq}
	p.Job = compact.Job{
		Kind: compact.Merge, OutputLevel: r.plan.OutputLevel, Snapshots: snapshots, Bottommost: r.plan.Bottommost,
		GCBefore: r.gcBefore, CutsInForce: r.cutsInForce,
		Table: compact.TableOptions{Format: sstable.FormatVersion, TargetBytes: int64(r.plan.TargetBytes), BlockBytes: e.opts.BlockBytes,
			Compression: e.opts.compression(r.plan.OutputLevel), ValueBlockBytes: e.opts.ValueBlockBytes, FilterBits: e.opts.FilterBitsPerKey},
	}
	if r.cutsInForce {
		p.Job.Cuts = r.cuts
	}
	if r.cleanup != nil {
		p.Job.Drop, p.Job.MaxBytesPerSecond = r.cleanup.drop, r.cleanup.rate
	}
	for _, in := range r.plan.Inputs {
		tables := in.Tables
		if in.Level == 0 {
			tables = slices.Clone(tables)
			slices.Reverse(tables) // newest first
		}
		for _, t := range tables {
			p.Job.Inputs = append(p.Job.Inputs, jobInput(t, in.Level))
			p.Entries += t.Entries
			p.MinSeq, p.MaxSeq = min(p.MinSeq, t.MinSeq), max(p.MaxSeq, t.MaxSeq)
		}
	}
	return p
}

func jobInput(t *manifest.Table, level int) compact.Input {
	return compact.Input{Num: t.Num, Level: level, Size: int64(t.Size), Digest: t.Digest, Smallest: t.Smallest, Largest: t.Largest}
}

// finish ends a plan: its tables are free again. Those of a job that was given up for good stay busy,
// so that it is not offered for ever; a restart tries again.
func (e *Engine) finish(r *running, s jobs.State, err error) {
	e.mu.Lock()
	r.done, r.state, r.err = true, s, err
	e.mu.jobs--
	e.mu.finished++
	if s != jobs.StateQuarantined {
		e.mu.busy.Remove(&r.plan)
	}
	e.mu.changed.Broadcast()
	e.mu.Unlock()
	for _, t := range r.tables {
		t.Unpin()
	}
	notify(e.wake.schedule)
}

// nextScrub returns the table with the smallest number above after, or of all, and pins it.
func (e *Engine) nextScrub(after uint64) (in compact.Input, release func(), ok bool) {
	v := e.manifest.Current()
	defer v.Unref()
	var next, first *manifest.Table
	var nextLevel, firstLevel int
	for level, tables := range v.Levels {
		for _, t := range tables {
			if t.Quarantined {
				continue
			}
			if first == nil || t.Num < first.Num {
				first, firstLevel = t, level
			}
			if t.Num > after && (next == nil || t.Num < next.Num) {
				next, nextLevel = t, level
			}
		}
	}
	if next == nil {
		next, nextLevel = first, firstLevel
	}
	if next == nil {
		return compact.Input{}, nil, false
	}
	next.Pin()
	return jobInput(next, nextLevel), next.Unpin, true
}
