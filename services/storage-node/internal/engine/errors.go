package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/pairdb/pairdb/libs/sstable"
)

var (
	// ErrClosed says that the engine is closed.
	ErrClosed = errors.New("engine is closed")
	// ErrPoisoned says that a sync of the commit log or the manifest failed: nothing is known about
	// what was not durable then, so the engine takes no more writes. Restart the process; recovery
	// keeps everything that was acknowledged.
	ErrPoisoned = errors.New("engine is poisoned by a failed sync")
	// ErrConflict says that something newer than a SetIfUnchanged's read is there. Nothing of the
	// batch was applied: read again.
	ErrConflict = errors.New("key changed since it was read")
	// ErrDiskFull says that there is no space for the write. Nothing was applied; writes work again
	// by themselves when there is space.
	ErrDiskFull = errors.New("disk is full")
	// ErrDiskThrottled says that the disk is nearly full and the batch too large for what is left.
	// Smaller ones are taken.
	ErrDiskThrottled = errors.New("disk is nearly full")
	// ErrMemoryPressure says that the process is about to run out of memory. Writes work again by
	// themselves when there is memory.
	ErrMemoryPressure = errors.New("memory is nearly used up")
	// ErrStalled says that flushes or compactions are too far behind. errors.As with *StalledError
	// tells when to try again.
	ErrStalled = errors.New("writes are stalled")
	// ErrLogWrite says that the commit log did not take the group. Nothing was applied; after a
	// crash the batch may be there as a whole or not at all.
	ErrLogWrite = errors.New("commit log write")
	// ErrBatchTooLarge says that a batch is over Options.MaxBatchBytes or MaxBatchOps.
	ErrBatchTooLarge = errors.New("batch is too large")
	// ErrInvalidKey says that a key is empty or too long, or a range not ascending.
	ErrInvalidKey = errors.New("invalid key")
	// ErrCorrupt says that damage is in the way; the error names the file.
	ErrCorrupt = sstable.ErrCorrupt
	// ErrOutOfRange says that the change feed does not reach back so far: take a new snapshot.
	ErrOutOfRange = errors.New("sequence is out of the change feed's range")
	// ErrSnapshotHolds says that entries which a cleanup should remove are seen by an open snapshot: call
	// again when it is closed.
	ErrSnapshotHolds = errors.New("a snapshot still needs entries that are to go")
	// ErrTooManyPins says that Options.MaxTailPins names hold the log.
	ErrTooManyPins = errors.New("too many pins of the commit log")
	// ErrNewerFormat says that a newer version of the program wrote the directory.
	ErrNewerFormat = errors.New("data directory has a newer format")
	// ErrInvalidOptions says that options contradict themselves.
	ErrInvalidOptions = errors.New("invalid options")
	// ErrInvalidTable says that a file can't be ingested.
	ErrInvalidTable = errors.New("table can't be ingested")
)

// StalledError is ErrStalled with what the caller can do about it.
type StalledError struct {
	// Reason says what is behind, for people.
	Reason string
	// RetryAfter is how long to wait at least.
	RetryAfter time.Duration
}

// Error implements error.
func (e *StalledError) Error() string {
	return fmt.Sprintf("%v: %s; try again in %v", ErrStalled, e.Reason, e.RetryAfter)
}

// Is makes errors.Is(err, ErrStalled) true.
func (e *StalledError) Is(target error) bool { return target == ErrStalled }
