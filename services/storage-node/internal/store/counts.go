package store

import (
	"sync/atomic"

	"github.com/pairdb/pairdb/libs/causal"
)

// Counts are what the store has done since New, over all tenants but those of the node itself.
type Counts struct {
	// Outcomes counts writes and deletes that were applied, those of batches one by one, by causal.Outcome.
	Outcomes [causal.SiblingKept + 1]uint64
	// Joined counts repairs that were applied, which have no outcome.
	Joined uint64
	// Remembered counts writes that were remembered under an idempotency key, Replayed the repeats that
	// got their answers.
	Remembered, Replayed uint64
	// Misses counts reads of keys without a live value, Concurrent those that found siblings.
	Misses, Concurrent uint64
	// ScanRecords and ScanBytes were sent by Stream, WatchChanges and WatchBytes by Watch. Bytes are
	// those of keys, values and clocks.
	ScanRecords, ScanBytes, WatchChanges, WatchBytes uint64
}

// counts is Counts in the making.
type counts struct {
	outcomes                                         [causal.SiblingKept + 1]atomic.Uint64
	joined, remembered, replayed, misses, concurrent atomic.Uint64
	scanRecords, scanBytes, watchChanges, watchBytes atomic.Uint64
}

// Counts returns the numbers of the store. They are read one by one, not at one moment.
func (s *Store) Counts() Counts {
	n := &s.counts
	c := Counts{
		Joined: n.joined.Load(), Remembered: n.remembered.Load(), Replayed: n.replayed.Load(),
		Misses: n.misses.Load(), Concurrent: n.concurrent.Load(),
		ScanRecords: n.scanRecords.Load(), ScanBytes: n.scanBytes.Load(),
		WatchChanges: n.watchChanges.Load(), WatchBytes: n.watchBytes.Load(),
	}
	for i := range n.outcomes {
		c.Outcomes[i] = n.outcomes[i].Load()
	}
	return c
}

// written counts what operations that were applied did: a few additions for all of a batch.
func (n *counts) written(ops []Op, results []OpResult, m mode) {
	var outcomes [causal.SiblingKept + 1]uint64
	var joined uint64
	for i := range results {
		switch r := &results[i]; {
		case r.Err != nil:
		case r.Replayed:
			n.replayed.Add(1)
		case ops[i].Kind == Repair:
			joined++
		default:
			outcomes[r.Outcome]++
		}
	}
	for i, k := range outcomes {
		if k > 0 {
			n.outcomes[i].Add(k)
		}
	}
	if joined > 0 {
		n.joined.Add(joined)
	}
	if m.once != nil && !results[0].Replayed {
		n.remembered.Add(1)
	}
}

// read counts a read that ended well.
func (n *counts) read(r *ReadResult) {
	if !r.Found {
		n.misses.Add(1)
	}
	if len(r.Siblings) > 1 {
		n.concurrent.Add(1)
	}
}
