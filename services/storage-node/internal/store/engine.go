package store

import (
	"context"
	"errors"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// ErrConflict is what Engine.Submit returns when something newer than a SetIfUnchanged's read is
// there. Nothing of the batch was applied.
var ErrConflict = errors.New("key changed since it was read")

// ErrOutOfRange is what Engine.Tail and Tail.Next return when changes that are wanted are not kept any
// more.
var ErrOutOfRange = errors.New("changes are not kept any more")

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
	// Tail follows the durable changes of sequences from from on.
	Tail(from ikey.Seq) (Tail, error)
	// FeedRange returns the oldest sequence from which Tail can be had, and the newest durable one.
	FeedRange() (oldest, newest ikey.Seq, err error)
}

// trailing is an engine that says where the reads of a request looked; store.Engine without it serves
// all the same.
type trailing interface {
	GetTrail(key, dst []byte, t *stages.Trail) (value []byte, found bool, err error)
	GetLatestTrail(key, dst []byte, t *stages.Trail) (value []byte, found bool, readSeq ikey.Seq, err error)
}

// Tail walks changes in the order of their sequences. It is for one goroutine. While it is open the
// engine keeps what it has not handed out, up to a limit: then Next returns ErrOutOfRange.
type Tail interface {
	// Next returns the next change, and waits for one: only there ctx counts, so that one that is over
	// asks what is there already. Key and Value are valid until the next call.
	Next(ctx context.Context) (TailChange, error)
	Close() error
}

// TailChange is one change of the feed, of any tenant. A range delete removes [Key, Value). Changes
// that were brought in together from a file have one sequence; all others differ.
type TailChange struct {
	Seq        ikey.Seq
	Kind       ikey.Kind
	Key, Value []byte
}

// Batch collects changes that are applied together.
type Batch interface {
	// SetIfUnchanged makes value the state of key, if nothing newer than readSeq is there.
	SetIfUnchanged(key, value []byte, readSeq ikey.Seq)
	// Merge adds a fragment.
	Merge(key, value []byte)
	// Urgent lets the batch pass although writes are refused: what the node itself writes leads to room.
	// Removal says that it stores tombstones only: a full disk takes it as long as it can. Both, and
	// Trail, hold until Reset.
	Urgent()
	Removal()
	// Trail has the commit say in t which stages the batch passed.
	Trail(t *stages.Trail)
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
	// Seq is the sequence up to which changes are in it.
	Seq() ikey.Seq
	NewIter(lower, upper []byte) (Iter, error)
	Close() error
}
