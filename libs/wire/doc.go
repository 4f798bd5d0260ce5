// Package wire turns values that two binaries share into proto and back: compaction jobs, outputs
// and counts, declared members. It never decides anything, and it never lets through what a limit
// forbids.
//
// Both directions are checked. A value that can't be sent is a mistake of this process, one that
// can't be received a mistake or an attack of another: both are ErrInvalid, before anything is
// allocated by the size that the message claims. What is decoded shares the message's byte slices.
package wire

import (
	"errors"
	"fmt"

	"github.com/pairdb/pairdb/libs/compact"
)

// ErrInvalid says that a message or a value is outside of what the wire allows.
var ErrInvalid = errors.New("invalid message")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Limits of one job, far above what the node makes: 2 GiB of inputs are 32 tables of 64 MiB.
const (
	// MaxInputs bounds the tables of a job.
	MaxInputs = compact.MaxInputs
	// MaxOutputs bounds the files that it writes.
	MaxOutputs = compact.MaxOutputs
	// MaxSnapshots bounds the live snapshots that it is told of.
	MaxSnapshots = 1 << 16
	// MaxRanges bounds the ranges in which it may collect.
	MaxRanges = 1 << 14
	// MaxHashCuts bounds the cuts of hash ranges, and the ranges that are dropped.
	MaxHashCuts = compact.MaxHashCuts
	// MaxKeyBytes bounds an encoded key.
	MaxKeyBytes = 1 << 16
	// MaxReasonBytes bounds a text for people; longer ones are cut when sent.
	MaxReasonBytes = 512
)
