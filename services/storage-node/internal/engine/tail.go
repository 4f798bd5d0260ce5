package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
)

// Change is one change of the feed.
type Change struct {
	// Seq orders changes. All fragments of an ingest have one.
	Seq  ikey.Seq
	Kind ikey.Kind
	// Key is an engine key; Value the record of a Set or Merge. A range delete removes [Key, Value).
	Key, Value []byte
}

// Tail follows the durable changes in their order: what readers see, and nothing else. It is for one
// goroutine, but Close.
type Tail struct {
	e    *Engine
	from ikey.Seq // of the changes that are wanted

	mu     sync.Mutex // the reader, against breakBelow and Close
	reader *commitlog.Reader
	at     commitlog.Position // behind the frame that was read last
	broken error

	// The frame being handed out.
	unpacker logUnpacker
	ops      []byte
	seq      ikey.Seq
	last     ikey.Seq
	// The ingest being handed out.
	ingest []uint64 // tables to come
	table  *openTable
	walk   tableWalk
	ingSeq ikey.Seq
}

// tableWalk is what Tail needs of a table's iterator.
type tableWalk interface {
	First() bool
	Next() bool
	Key() ikey.Key
	Value() []byte
	Err() error
	Close() error
}

// Tail returns the feed of the changes with sequences from from on. It holds the log, and the tables
// of ingests, from where it reads; a Tail that falls behind Options.TailRetentionBytes breaks:
// ErrOutOfRange, take a new snapshot. Use PinTail to hold them through restarts.
func (e *Engine) Tail(from ikey.Seq) (*Tail, error) {
	if e.closed.Load() {
		return nil, ErrClosed
	}
	from = max(from, 1)
	pin, err := e.pinLog(from)
	if err != nil {
		return nil, err
	}
	defer pin.release()
	t := &Tail{e: e, from: from}
	if pin.segment != 0 {
		if t.reader, err = e.log.NewReader(commitlog.Position{Segment: pin.segment}); err != nil {
			return nil, err
		}
		t.at = commitlog.Position{Segment: pin.segment}
	}
	e.tails.mu.Lock()
	e.tails.open[t] = struct{}{}
	e.tails.mu.Unlock()
	return t, nil
}

// Next returns the next change, and waits for one. Key and Value are valid until the next call.
// io.EOF is never returned: the feed has no end but ErrClosed. ctx counts only where Next would wait:
// with one that is over it returns what is there, and the error of ctx when all of it was handed out.
// The feed goes on after that.
func (t *Tail) Next(ctx context.Context) (Change, error) {
	for {
		if c, ok, err := t.pending(); ok || err != nil {
			return c, err
		}
		if len(t.ops) > 0 || t.ingSeq != 0 { // a frame that an earlier call did not wait for
			if err := t.waitVisible(ctx, t.last); err != nil {
				return Change{}, err
			}
			continue
		}
		seen := ikey.Seq(t.e.visible.Load())
		err := t.readFrame()
		if err == nil {
			err = t.waitVisible(ctx, t.last)
		} else if errors.Is(err, io.EOF) {
			err = t.waitBeyond(ctx, seen)
		}
		if err != nil {
			return Change{}, err
		}
	}
}

// pending returns the next change of the frame or the ingest that is being handed out.
func (t *Tail) pending() (Change, bool, error) {
	for len(t.ops) > 0 && ikey.Seq(t.e.visible.Load()) >= t.last {
		c, rest, err := nextChange(t.ops)
		if err != nil {
			return Change{}, false, err
		}
		seq := t.seq
		if t.ops, t.seq = rest, seq+1; len(rest) == 0 {
			t.ops = nil
			t.unpacker.shrink()
		}
		if seq >= t.from {
			return Change{Seq: seq, Kind: c.kind, Key: c.key, Value: c.value}, true, nil
		}
	}
	if t.ingSeq != 0 && ikey.Seq(t.e.visible.Load()) >= t.ingSeq {
		return t.nextIngested()
	}
	return Change{}, false, nil
}

// readFrame takes the next frame of the log.
func (t *Tail) readFrame() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken != nil {
		return t.broken
	}
	if t.reader == nil {
		segments := t.e.log.Segments()
		if len(segments) == 0 {
			return io.EOF
		}
		if err := t.attachLocked(segments[0].Number); err != nil {
			return err
		}
	}
	f, err := t.reader.Next(t.e.log.Written())
	switch {
	case errors.Is(err, commitlog.ErrTrimmed):
		return fmt.Errorf("%w: %w", ErrOutOfRange, err)
	case errors.Is(err, commitlog.ErrCorrupt):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case err != nil:
		return err
	}
	t.at = f.End
	return t.open(f)
}

// attach makes a feed that began with an empty log hold its first segment.
func (t *Tail) attach(segment uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reader == nil && t.broken == nil {
		t.broken = t.attachLocked(segment)
	}
}

func (t *Tail) attachLocked(segment uint64) error {
	r, err := t.e.log.NewReader(commitlog.Position{Segment: segment})
	if err != nil {
		return err
	}
	t.reader, t.at = r, commitlog.Position{Segment: segment}
	return nil
}

// open begins to hand a frame out.
func (t *Tail) open(f commitlog.Frame) error {
	switch f.Type {
	case frameBatch, framePacked:
		first, count, ops, err := t.unpacker.group(f.Type, f.Payload)
		if err != nil {
			return err
		}
		t.ops, t.seq, t.last = ops, first, first+ikey.Seq(count)-1
	case frameIngest:
		m, err := decodeIngestMarker(f.Payload)
		if err != nil {
			return err
		}
		t.last, t.ingSeq = m.seq, m.seq
		t.ops = nil
	default:
		return fmt.Errorf("%w: frame of type %d", ErrNewerFormat, f.Type)
	}
	return nil
}

// nextIngested walks the tables of the ingest whose marker was read.
func (t *Tail) nextIngested() (Change, bool, error) {
	if t.walk == nil && t.ingest == nil {
		nums, applied := t.e.tails.tablesOf(t.ingSeq)
		if !applied || t.ingSeq < t.from {
			t.ingSeq = 0
			return Change{}, false, nil
		}
		t.ingest = append([]uint64{}, nums...)
	}
	for {
		if t.walk == nil {
			if len(t.ingest) == 0 {
				t.ingest, t.ingSeq = nil, 0
				return Change{}, false, nil
			}
			if err := t.openTable(t.ingest[0]); err != nil {
				return Change{}, false, err
			}
			t.ingest = t.ingest[1:]
			if t.walk.First() {
				return t.ingested()
			}
		} else if t.walk.Next() {
			return t.ingested()
		}
		if err := t.closeTable(); err != nil {
			return Change{}, false, err
		}
	}
}

func (t *Tail) ingested() (c Change, ok bool, err error) {
	k := t.walk.Key()
	c = Change{Seq: k.Seq(), Kind: k.Kind(), Key: k.User, Value: t.walk.Value()}
	if c.Value == nil {
		err = t.walk.Err()
	}
	return c, err == nil, err
}

func (t *Tail) openTable(num uint64) error {
	table, err := t.e.tables.slot(num).acquire()
	if err != nil {
		return fmt.Errorf("follow an ingest: %w", err)
	}
	t.table, t.walk = table, table.NewIter()
	return nil
}

func (t *Tail) closeTable() error {
	if t.walk == nil {
		return nil
	}
	err := t.walk.Err()
	if cerr := t.walk.Close(); err == nil {
		err = cerr
	}
	t.table.release()
	t.walk, t.table = nil, nil
	return err
}

// waitVisible waits until readers see seq.
func (t *Tail) waitVisible(ctx context.Context, seq ikey.Seq) error {
	if seq == 0 {
		return nil
	}
	return t.waitBeyond(ctx, seq-1)
}

// waitBeyond waits until readers see more than seq.
func (t *Tail) waitBeyond(ctx context.Context, seq ikey.Seq) error {
	for {
		moved := t.e.visibleMoved(seq)
		if moved == nil {
			return nil
		}
		if t.e.closed.Load() {
			return ErrClosed
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-t.e.stop:
			return ErrClosed
		}
	}
}

// breakBelow ends the feed if it reads in a segment up to cut.
func (t *Tail) breakBelow(cut uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reader == nil || t.at.Segment > cut {
		return
	}
	t.broken = fmt.Errorf("%w: it held more than %d bytes of log", ErrOutOfRange, t.e.opts.TailRetentionBytes)
	_ = t.reader.Close() // read only
	t.reader = nil
}

// Close ends the feed. It is idempotent.
func (t *Tail) Close() error {
	t.e.tails.mu.Lock()
	delete(t.e.tails.open, t)
	t.e.tails.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.broken = ErrClosed
	err := t.closeTable()
	if t.reader != nil {
		err = errors.Join(err, t.reader.Close())
		t.reader = nil
	}
	return err
}

// frameSeq returns the first sequence of a frame of any type.
func frameSeq(payload []byte) ikey.Seq { return ikey.Seq(binary.LittleEndian.Uint64(payload)) }

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
