package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
	"github.com/pairdb/pairdb/services/storage-node/internal/picker"
)

// CompactProgress is how far a Compact has come.
type CompactProgress struct {
	// Level is being compacted into the next one.
	Level int
	// Jobs counts the steps that are done, Bytes their inputs.
	Jobs  int
	Bytes uint64
}

// maxFailedSteps bounds how often a step of a manual compaction is taken back by others.
const maxFailedSteps = 16

// Compact flushes, then takes every table with keys in [start, end) down to the last level, so that
// at the end nothing is there twice and what may be collected is gone. A nil end is the end of all
// keys. progress may be nil. Tables that are written meanwhile are left alone.
func (e *Engine) Compact(ctx context.Context, start, end []byte, progress func(CompactProgress)) error {
	seq := ikey.Seq(e.visible.Load())
	if err := e.Flush(ctx); err != nil {
		return err
	}
	m := picker.Manual{Span: manifest.Span{Start: start, End: end, Exclusive: end != nil}, Before: e.manifest.NewFile(), Seq: seq}
	var at CompactProgress
	return e.runManual(ctx, m, &at, func() {
		if progress != nil {
			progress(at)
		}
	})
}

// runManual takes the steps of a manual compaction until there is none left. at is changed, and then step
// called, after each.
func (e *Engine) runManual(ctx context.Context, m picker.Manual, at *CompactProgress, step func()) error {
	var skipped, failed int
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, next, outcome, err := e.manualStep(m)
		if err != nil {
			return err
		}
		switch outcome {
		case picker.Done:
			if skipped > 0 {
				return fmt.Errorf("compact: %d steps were left out: damaged or too large tables are in the way", skipped)
			}
			return nil
		case picker.Impossible:
			skipped++
			m = next
			continue
		case picker.Blocked:
			if err := e.waitForJobs(ctx); err != nil {
				return err
			}
			continue
		}
		if err := e.waitUntil(ctx, func() (bool, error) { return r.done, nil }); err != nil {
			return err
		}
		if r.state != jobs.StateInstalled {
			if failed++; failed > maxFailedSteps || r.state == jobs.StateQuarantined {
				return fmt.Errorf("compact: a merge ended as %s: %w", r.state, errors.Join(r.err))
			}
			continue
		}
		m = next
		at.Level, at.Jobs, at.Bytes = r.plan.Inputs[0].Level, at.Jobs+1, at.Bytes+r.plan.Bytes()
		step()
	}
}

// manualStep takes the next step of a manual compaction, if there is one that can be taken.
func (e *Engine) manualStep(m picker.Manual) (r *running, next picker.Manual, outcome picker.Outcome, err error) {
	if err := e.writable(); err != nil {
		return nil, m, 0, err
	}
	r, snapshots := e.pick(func(p *picking) (plan picker.Plan, ok bool) {
		plan, next, outcome = picker.PickManual(p.version, p.busy, e.pickerOptions(), p.facts, m)
		return plan, outcome == picker.Picked
	})
	if r == nil {
		return nil, next, outcome, e.writable()
	}
	return r, next, outcome, e.take(r, snapshots)
}

// waitForJobs waits until a plan that runs now has ended.
func (e *Engine) waitForJobs(ctx context.Context) error {
	e.mu.Lock()
	before := e.mu.finished
	e.mu.Unlock()
	return e.waitUntil(ctx, func() (bool, error) { return e.mu.finished != before || e.mu.jobs == 0, nil })
}
