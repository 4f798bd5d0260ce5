package sstable

import (
	"errors"
	"fmt"
)

var (
	// ErrCorrupt matches every *CorruptionError.
	ErrCorrupt = errors.New("table is corrupt")
	// ErrNewerFormat matches the *CorruptionError of a table whose format version or features this
	// program does not know.
	ErrNewerFormat = errors.New("table has a newer format")
	// ErrOutOfOrder says that Add got a key that is not greater than the one before.
	ErrOutOfOrder = errors.New("key out of order")
	// ErrTooLarge says that a key or a value exceeds MaxKeyBytes or MaxValueBytes.
	ErrTooLarge = errors.New("entry too large")
	// ErrEmpty says that Finish was called without an entry or range delete: there are no empty tables.
	ErrEmpty = errors.New("table without entries")
	// ErrFinished says that a writer was used after Finish or after it failed.
	ErrFinished = errors.New("table writer is finished")
)

// CorruptionError says where a file is not what was written. errors.Is(err, ErrCorrupt) finds it.
type CorruptionError struct {
	File   string
	Offset uint64
	What   string
	newer  bool
}

// Error names the file, the offset and the damage.
func (e *CorruptionError) Error() string {
	return fmt.Sprintf("%s: corrupt at offset %d: %s", e.File, e.Offset, e.What)
}

// Is reports whether target is ErrCorrupt, or ErrNewerFormat for a file of a newer format.
func (e *CorruptionError) Is(target error) bool {
	return target == ErrCorrupt || e.newer && target == ErrNewerFormat
}
