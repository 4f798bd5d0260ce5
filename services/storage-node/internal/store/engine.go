package store

import (
	"errors"

	"github.com/pairdb/pairdb/libs/ikey"
)

// ErrConflict is what Engine.Submit returns when something newer than a SetIfUnchanged's read is
// there. Nothing of the batch was applied.
var ErrConflict = errors.New("key changed since it was read")

// Engine is the database as this package uses it. Keys are engine keys, values encoded records.
type Engine interface {
	// NewBatch returns an empty batch. It may be reset and used again when Submit returned.
	NewBatch() Batch
	// Submit applies the batch as a whole or not at all, and returns when GetLatest sees it.
	// The sequence is that of its last change.
	Submit(b Batch) (ikey.Seq, error)
	// WaitDurable returns when everything up to seq survives a crash and Get sees it. seq was
	// returned by Submit or GetLatest.
	WaitDurable(seq ikey.Seq) error
	// Get returns the durable record of key, in dst[:0] if it fits.
	Get(key, dst []byte) (value []byte, found bool, err error)
	// GetLatest returns the newest applied record, and the sequence up to which that is known.
	GetLatest(key, dst []byte) (value []byte, found bool, readSeq ikey.Seq, err error)
	// NewIter walks the durable records in lower <= key < upper as they are now.
	NewIter(lower, upper []byte) (Iter, error)
	// NewSnapshot keeps what is durable now readable.
	NewSnapshot() Snapshot
}

// Batch collects changes that are applied together.
type Batch interface {
	// SetIfUnchanged makes value the state of key, if nothing newer than readSeq is there.
	SetIfUnchanged(key, value []byte, readSeq ikey.Seq)
	// Merge adds a fragment.
	Merge(key, value []byte)
	// Len counts changes, Bytes is their size in the commit log.
	Len() int
	Bytes() int
	Reset()
}

// Iter walks records in key order. Key and Value are valid until the next move.
type Iter interface {
	First() bool
	Next() bool
	Key() []byte
	Value() []byte
	Err() error
	Close() error
}

// Snapshot is the state at one moment. Its iterators stay valid after Close.
type Snapshot interface {
	NewIter(lower, upper []byte) (Iter, error)
	Close() error
}
