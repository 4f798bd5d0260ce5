package engine

import (
	"context"
	"fmt"
	"slices"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/picker"
)

// CleanupProgress is how far a Cleanup has come.
type CleanupProgress struct {
	CompactProgress
	// Dropped counts the records that are gone.
	Dropped uint64
}

// cleanup is a Cleanup that is under way. As long as it is, every merge into the last level drops what is
// to go, whoever wanted the merge.
type cleanup struct {
	drop []compact.HashCut
	rate int64

	// Guarded by Engine.mu.
	cleaned       map[uint64]bool // tables at the last level that such a merge wrote
	dropped, left uint64
}

// maxCleanupPasses bounds how often a cleanup goes through the tree: merges that others had begun before
// it can bring a table down behind its back, but none that began after it.
const maxCleanupPasses = 8

// Cleanup removes, by compactions, every entry whose key has a token in one of the ranges and whose
// sequence is not above the range's cut, of which none counts beyond what is visible now. What is written
// meanwhile stays. bytesPerSecond limits each of the merges, 0 is the usual limit. progress may be nil.
// When it returns without an error, nothing of what was to go is left in tables, memtables or caches. One
// cleanup runs at a time; more wait.
//
// It writes no delete, so nobody follows it, and nothing of it reaches the change feed. Until it is done a
// reader may find an older state of these keys than before: nobody may ask for them.
//
// Entries that a snapshot still sees can't go: then Cleanup does what it can and returns an error that is
// ErrSnapshotHolds. A call that was broken off, by an error or a crash, is completed by another one.
func (e *Engine) Cleanup(ctx context.Context, drop []compact.HashCut, bytesPerSecond int64, progress func(CleanupProgress)) error {
	select {
	case e.cleaning <- struct{}{}:
		defer func() { <-e.cleaning }()
	case <-ctx.Done():
		return ctx.Err()
	}
	visible := ikey.Seq(e.visible.Load())
	c := &cleanup{drop: slices.Clone(drop), rate: bytesPerSecond, cleaned: make(map[uint64]bool)}
	var seq ikey.Seq
	for i := range c.drop {
		c.drop[i].Seq = min(c.drop[i].Seq, visible)
		seq = max(seq, c.drop[i].Seq)
	}
	if c.drop = compact.UniteCuts(c.drop); len(c.drop) == 0 {
		return nil
	}
	if err := compact.CheckCuts(c.drop); err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	e.mu.Lock()
	e.mu.cleanup = c
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.mu.cleanup = nil
		e.mu.Unlock()
	}()
	if err := e.Flush(ctx); err != nil {
		return err
	}
	if err := e.cleanTables(ctx, c, seq, progress); err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	// Whoever reads tables that are gone holds a sequence of the time when they were there.
	e.rows.Clear(ikey.Seq(e.applied.Load()) + 1)
	if c.left > 0 {
		return fmt.Errorf("cleanup: %w: %d of them", ErrSnapshotHolds, c.left)
	}
	return nil
}

// cleanTables takes everything up to seq down to the last level, and rewrites what is there.
func (e *Engine) cleanTables(ctx context.Context, c *cleanup, seq ikey.Seq, progress func(CleanupProgress)) error {
	var at CleanupProgress
	for pass := 0; ; pass++ {
		v := e.manifest.Current()
		e.mu.Lock()
		unclean := picker.Unclean(v, seq, c.cleaned)
		e.mu.Unlock()
		v.Unref()
		if !unclean {
			return nil
		}
		if pass == maxCleanupPasses {
			return fmt.Errorf("tables still hold what is to go after %d passes", pass)
		}
		err := e.runManual(ctx, picker.Manual{Cleanup: true, Before: e.manifest.NewFile(), Seq: seq}, &at.CompactProgress, func() {
			e.mu.Lock()
			at.Dropped = c.dropped
			e.mu.Unlock()
			if progress != nil {
				progress(at)
			}
		})
		if err != nil {
			return err
		}
	}
}
