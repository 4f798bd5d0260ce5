package compact

import (
	"context"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
)

// Kind is what a job does.
type Kind uint8

const (
	// Merge writes the inputs as one sorted run of tables.
	Merge Kind = 1
	// Scrub reads the inputs and checks every checksum; it has no outputs.
	Scrub Kind = 2
)

// Job is everything that a worker needs to know, by value. Equal jobs on equal inputs give equal
// outputs: no clock, no chance, no directory is looked at.
type Job struct {
	// ID is the board's number of the job; for messages only.
	ID   uint64
	Kind Kind
	// Inputs are the tables to read, newest first within level 0.
	Inputs      []Input
	OutputLevel int
	// Snapshots are the live snapshot sequences, ascending.
	Snapshots []ikey.Seq
	// GCBefore is the cut of collection, a hybrid-logical timestamp: only tombstones that are older,
	// and values that expired before it, may be collected. 0 collects nothing. It is the only time
	// that a worker knows.
	GCBefore uint64
	// CutsInForce says that an entry of a key that stands on the ring is collected only if, besides, it
	// is not newer than its key's cut in Cuts: what its replicas have, they have up to there. A key
	// without a cut keeps all it has.
	CutsInForce bool
	Cuts        []HashCut
	// Drop removes entries whose key's cut in it is not older than they are, whatever they hold: the
	// node does not own these keys any more. Only a job at the last level may have it, where nothing
	// older is outside of the job. At least one snapshot sees what stays in spite of it.
	Drop []HashCut
	// Bottommost are the ranges in which nothing older exists outside of the job; disjoint,
	// ascending.
	Bottommost []Range
	Table      TableOptions
	// MaxOutputs is how many output files there are.
	MaxOutputs int
	// MaxBytesPerSecond is a limit for the worker; 0 is none.
	MaxBytesPerSecond int64
}

// Range is the engine keys start <= key < end. An empty End is the end of all keys.
type Range struct{ Start, End []byte }

// TableOptions say how outputs are written.
type TableOptions struct {
	// Format is the version of the table format.
	Format uint32
	// TargetBytes is the size at which an output is cut; 0 means 64 MiB.
	TargetBytes int64
	// BlockBytes, Compression, ValueBlockBytes and FilterBits are the writer's options of these
	// names: 0 is its default block size, no compression, no value blocks, no filter.
	BlockBytes      int
	Compression     sstable.Compression
	ValueBlockBytes int
	FilterBits      int
}

// Input is a table to read.
type Input struct {
	Num    uint64
	Level  int
	Size   int64
	Digest uint64
	// Smallest and Largest are the bounds of the table, as in its Meta.
	Smallest, Largest ikey.Key
}

// Output is a table that was written: the file number Index, from 1.
type Output struct {
	Index int
	sstable.Meta
}

// Stats account for every entry: EntriesIn = EntriesOut + Shadowed + Joined + Collected + Dropped.
type Stats struct {
	EntriesIn, EntriesOut uint64
	// Shadowed entries were dropped under a newer Set, Delete or range delete of their stripe.
	Shadowed uint64
	// Joined are the fragments that went into another entry.
	Joined uint64
	// Collected are the records and deletes that were dropped at the bottom.
	Collected uint64
	// Dropped entries went by Job.Drop; DropLeft are those that a snapshot still needed, which are
	// among EntriesOut.
	Dropped, DropLeft       uint64
	BytesRead, BytesWritten uint64
}

// Accounted returns what became of entries, all together: EntriesIn, if nothing appeared or vanished.
func (s Stats) Accounted() uint64 {
	return s.EntriesOut + s.Shadowed + s.Joined + s.Collected + s.Dropped
}

// CorruptInput is a damaged input.
type CorruptInput struct {
	Num    uint64
	Reason string
}

// Env is how Run reaches files and the world.
type Env struct {
	// OpenInput opens an input for reading, OpenOutput the existing, empty output file number
	// index, from 1, for writing. Run closes what it opened.
	OpenInput  func(Input) (vfs.File, error)
	OpenOutput func(index int) (vfs.File, error)
	// Progress, if set, is told how many bytes of the inputs have been read.
	Progress func(doneBytes int64)
	// Throttle, if set, is called before n bytes are read or written; it waits as long as
	// MaxBytesPerSecond wants. An error stops the job.
	Throttle func(ctx context.Context, n int) error
}
