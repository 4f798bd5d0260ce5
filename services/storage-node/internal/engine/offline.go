package engine

import (
	"fmt"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
)

// What tools that look into a data directory without an engine need.

// ReadFormat returns the format version of a data directory, 0 if it has none: then it is none, or
// its creation did not end. ErrNewerFormat says that this program does not read it.
func ReadFormat(fsys vfs.FS, dir string) (int, error) { return readFormat(fsys, dir) }

// LockOffline keeps engines away from a data directory until unlock, if it has a LOCK file that may
// be opened; checkpoints have none. vfs.ErrLocked says that an engine has it open.
func LockOffline(fsys vfs.FS, dir string) (unlock func() error, err error) {
	return lockForCheck(fsys, dir)
}

// LogFrame is a frame of the commit log, decoded.
type LogFrame struct {
	// Kind is batch, ingest, or ingest-abort, which takes the ingest of the frame before it back.
	Kind string
	// First is the sequence of the first of Count changes; an ingest has one sequence.
	First ikey.Seq
	Count int
	// Tables are those of an ingest.
	Tables []LogTable
}

// LogTable is a table that an ingest names.
type LogTable struct{ Num, Digest uint64 }

// LogChange is a change in a batch of the commit log. The value of a KindRangeDelete is the end of
// its range. Key and value alias the frame.
type LogChange struct {
	Seq        ikey.Seq
	Kind       ikey.Kind
	Key, Value []byte
}

// DecodeLogFrame decodes a frame of the commit log as recovery does, and hands its changes to visit,
// which may be nil. Damage is ErrCorrupt; changes before it were visited. ErrNewerFormat is a frame
// of a kind that this program does not know.
func DecodeLogFrame(frameType uint8, payload []byte, visit func(LogChange) error) (LogFrame, error) {
	switch frameType {
	case frameIngest:
		m, err := decodeIngestMarker(payload)
		f := LogFrame{Kind: "ingest", First: m.seq, Count: 1}
		for _, t := range m.tables {
			f.Tables = append(f.Tables, LogTable{Num: t.num, Digest: t.digest})
		}
		return f, err
	case frameBatch, framePacked:
	default:
		return LogFrame{}, fmt.Errorf("%w: frame of type %d", ErrNewerFormat, frameType)
	}
	f := LogFrame{Kind: "batch"}
	if frameType == framePacked {
		f.Kind = "packed"
	}
	var u logUnpacker
	first, count, ops, err := u.group(frameType, payload)
	if err != nil {
		return f, err
	}
	f.First, f.Count = first, int(count)
	n := uint32(0)
	for ; len(ops) > 0; n++ {
		c, rest, err := nextChange(ops)
		if err != nil {
			return f, fmt.Errorf("change %d of %d: %w", n+1, count, err)
		}
		if ops = rest; visit == nil {
			continue
		}
		if err := visit(LogChange{Seq: first + ikey.Seq(n), Kind: c.kind, Key: c.key, Value: c.value}); err != nil {
			return f, err
		}
	}
	if n != count {
		return f, fmt.Errorf("%w: %d changes, its header says %d", errOps, n, count)
	}
	return f, nil
}
