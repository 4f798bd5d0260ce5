package engines

import (
	"fmt"
	"slices"
	"time"
)

// Engine is an open data directory. Its methods may be called from several goroutines.
type Engine interface {
	// Get writes the value of key to the memory of dst, not necessarily to its beginning, or to new
	// memory if that doesn't hold it; Room more than the value is enough. A missing key is found ==
	// false and no error.
	Get(key, dst []byte) (value []byte, found bool, err error)
	// Scan reads up to n keys and their values from the smallest key that is not less than start,
	// in order, and returns a digest of them: so every value is touched and none is copied.
	Scan(start []byte, n int) (Scanned, error)
	// NewWriter returns a writer for one goroutine.
	NewWriter() Writer
	// Settle returns when the engine has no work left that an earlier write caused: memtables that
	// can be flushed are in tables, and no compaction runs or waits. quiet is since when, which is
	// earlier than the return: engines that don't tell are watched for a while.
	Settle() (quiet time.Time, err error)
	// Close gives the directory back. What was written is there at the next open.
	Close() error
}

// Room is what a buffer should have beyond the longest value: some engines store more than the value.
const Room = 64

// Writer collects changes and commits them as one. It is for one goroutine, and is used again after
// each Commit. It must be closed before its engine is.
type Writer interface {
	// Set adds a change; key and value may be used again when it returns, for engines whose own
	// batches keep them it is Commit that lets go of them.
	Set(key, value []byte) error
	// Delete adds the removal of key.
	Delete(key []byte) error
	// Commit applies the changes as a whole; they are durable when it returns if OpenOptions.Sync.
	Commit() error
	Close() error
}

// OpenOptions are what differs between rows; everything else is in settings.go.
type OpenOptions struct {
	// Sync makes every commit durable before it returns; without it the log is written, so that
	// a crash of the process loses nothing, but not synced. Except in Pebble: see WritesBeforeReturn.
	Sync bool
	// Writers is how many goroutines will write at a time.
	Writers int
}

// Scanned is what a scan met.
type Scanned struct {
	Count       int
	First, Last uint64 // digests of the first and last key, see KeyDigest
	// Digest is the sum of the first eight bytes, little endian, of each value and of all lengths.
	Digest uint64
}

// add takes the next entry.
func (s *Scanned) add(key, value []byte) {
	d := KeyDigest(key)
	if s.Count == 0 {
		s.First = d
	}
	s.Last = d
	s.Count++
	s.Digest += head(value) + uint64(len(key)) + uint64(len(value))
}

// KeyDigest returns the last eight bytes of a key as a big-endian number: among keys that differ
// there only, it is their order.
func KeyDigest(key []byte) uint64 {
	var d uint64
	for _, c := range key[max(0, len(key)-8):] {
		d = d<<8 | uint64(c)
	}
	return d
}

// head returns the first eight bytes as a little-endian number.
func head(value []byte) uint64 {
	var d uint64
	for i := min(8, len(value)) - 1; i >= 0; i-- {
		d = d<<8 | uint64(value[i])
	}
	return d
}

// opener opens or creates a directory.
type opener struct {
	name string
	open func(dir string, o OpenOptions) (Engine, error)
}

// Baseline is the engine that the ratios refer to.
const Baseline = "pebble"

// Ours is the name of PairDB's engine.
const Ours = "pairdb"

var openers = []opener{
	{Ours, openPairDB},
	{Baseline, openPebble},
	{"badger", openBadger},
	{"bbolt", openBolt},
	{"goleveldb", openGoLevelDB},
}

// WritesBeforeReturn reports whether a commit without Sync has handed its log to the operating system
// when it returns, so that a killed process loses nothing. Pebble has not: another goroutine writes the
// log behind it. There is no setting between that and a sync, so its rows without a sync spare it a
// system call for each commit that the others make.
func WritesBeforeReturn(name string) bool { return name != Baseline }

// Names returns the engines of this build, PairDB's first and the baseline second.
func Names() []string {
	names := make([]string, len(openers))
	for i, o := range openers {
		names[i] = o.name
	}
	return names
}

// Open opens or creates the directory with the engine of that name.
func Open(name, dir string, o OpenOptions) (Engine, error) {
	i := slices.IndexFunc(openers, func(c opener) bool { return c.name == name })
	if i < 0 {
		return nil, fmt.Errorf("unknown engine %q: one of %v expected", name, Names())
	}
	if o.Writers == 0 {
		o.Writers = 1
	}
	e, err := openers[i].open(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open %s in %s: %w", name, dir, err)
	}
	return e, nil
}

const (
	// pollEvery is how often an engine is asked whether it still works. 20 ms: a call costs some
	// microseconds, and the settling of a measured row takes seconds.
	pollEvery = 20 * time.Millisecond
	// quietFor is how long nothing may have happened: longer than any engine waits between the end
	// of one compaction and the pick of the next.
	quietFor = 400 * time.Millisecond
	// settleLimit bounds the settling; the longest one seen took a minute.
	settleLimit = 10 * time.Minute
)

// waitQuiet polls until state has been the same and busy false for quietFor, and returns since when.
func waitQuiet[S comparable](poll func() (state S, busy bool)) (time.Time, error) {
	start := time.Now()
	since := start
	last, _ := poll()
	for {
		time.Sleep(pollEvery)
		now := time.Now()
		state, busy := poll()
		if busy || state != last {
			last, since = state, now
		}
		if now.Sub(since) >= quietFor {
			return since, nil
		}
		if now.Sub(start) > settleLimit {
			return now, fmt.Errorf("not settled after %v", settleLimit)
		}
	}
}
