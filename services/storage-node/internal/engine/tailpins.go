package engine

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// Facts of the node: a pin of the change feed, with the sequence it holds; an ingest that the log still
// has a marker of, with the numbers of its tables; the sequence from which on the feed is complete.
const (
	metaPin      = metaPrefix + "pin."
	metaIngestAt = metaPrefix + "ingest."
	metaFeedFrom = metaPrefix + "feed_from"
	// maxKeptIngests bounds the ingests that the log may have markers of; then the oldest log is
	// given up.
	maxKeptIngests = 256
)

// tailState is what followers of the change feed hold: segments of the log, and tables that ingest
// markers in them name, even when the tree does not need them any more.
type tailState struct {
	mu      sync.Mutex
	pins    map[string]*tailPin
	open    map[*Tail]struct{}
	ingests map[ikey.Seq][]uint64 // tables of the markers in the log
	kept    map[uint64]int        // how many markers name a table
	// obsolete are kept tables that the tree does not need; they go with the marker.
	obsolete map[uint64]bool
	// from is the first sequence from which on the feed is complete: what ingest markers below it
	// named is forgotten, even if a crash brings their segments back.
	from ikey.Seq
	// stale are facts to be removed with the next edit.
	stale []string
}

// tailPin holds the log from a sequence on.
type tailPin struct {
	seq     ikey.Seq
	release func()
	segment uint64
}

// PinTail keeps the log from the changes of sequence from on, and the tables of ingests in it, under a
// name, through restarts, until UnpinTail or a later PinTail of that name. ErrOutOfRange says that
// they are gone already. A pin that holds more than Options.TailRetentionBytes breaks.
func (e *Engine) PinTail(name string, from ikey.Seq) error {
	if name == "" || len(name) > 128 || strings.ContainsAny(name, "\x00\n") {
		return fmt.Errorf("%w: pin %q", ErrInvalidKey, name)
	}
	if err := e.writable(); err != nil {
		return err
	}
	e.tails.mu.Lock()
	_, there := e.tails.pins[name]
	full := !there && len(e.tails.pins) >= e.opts.MaxTailPins
	e.tails.mu.Unlock()
	if full {
		return fmt.Errorf("pin %q: %w: there are %d already", name, ErrTooManyPins, e.opts.MaxTailPins)
	}
	pin, err := e.pinLog(from)
	if err != nil {
		return err
	}
	fact := map[string]string{metaPin + name: strconv.FormatUint(uint64(from), 10)}
	if err := e.applyEdit(manifest.Edit{NodeMeta: fact}, nil, nil); err != nil {
		pin.release()
		return err
	}
	e.setPin(name, pin)
	return nil
}

// UnpinTail ends a pin; it is no error if there is none.
func (e *Engine) UnpinTail(name string) error {
	if err := e.writable(); err != nil {
		return err
	}
	err := e.applyEdit(manifest.Edit{NodeMeta: map[string]string{metaPin + name: ""}}, nil, nil)
	if err == nil {
		e.setPin(name, nil)
	}
	return err
}

func (e *Engine) setPin(name string, pin *tailPin) {
	e.tails.mu.Lock()
	old := e.tails.pins[name]
	if pin != nil {
		e.tails.pins[name] = pin
	} else {
		delete(e.tails.pins, name)
	}
	e.tails.mu.Unlock()
	if old != nil {
		old.release()
	}
}

// restorePins takes the durable pins again. One whose log is gone is broken; the next flush forgets
// it.
func (e *Engine) restorePins() {
	for key, value := range e.manifest.NodeMeta() {
		name, ok := strings.CutPrefix(key, metaPin)
		if !ok {
			continue
		}
		seq, err := strconv.ParseUint(value, 10, 56)
		if err == nil {
			var pin *tailPin
			if pin, err = e.pinLog(ikey.Seq(seq)); err == nil {
				e.setPin(name, pin)
				continue
			}
		}
		e.pinBroken(name, err)
	}
}

func (e *Engine) pinBroken(name string, err error) {
	e.tails.mu.Lock()
	e.tails.stale = append(e.tails.stale, metaPin+name)
	e.tails.mu.Unlock()
	e.emit(Event{Kind: EventPinBroken, Reason: name, Err: err})
}

// pinLog pins the segment that holds the first change at or above a sequence.
func (e *Engine) pinLog(from ikey.Seq) (*tailPin, error) {
	for range 8 { // a segment may be trimmed between the look and the pin
		segment, err := e.segmentOf(from)
		if err != nil {
			return nil, err
		}
		if segment == 0 {
			return &tailPin{seq: from, release: func() {}}, nil
		}
		release, err := e.log.Pin(segment)
		if err == nil {
			return &tailPin{seq: from, segment: segment, release: release}, nil
		}
		if !errors.Is(err, commitlog.ErrTrimmed) {
			return nil, err
		}
	}
	return nil, ErrOutOfRange
}

// segmentOf returns the newest segment that begins at or below a sequence; 0: the log is empty, and
// whatever comes is wanted.
func (e *Engine) segmentOf(from ikey.Seq) (uint64, error) {
	e.tails.mu.Lock()
	complete := from >= e.tails.from
	e.tails.mu.Unlock()
	segments := e.log.Segments()
	for i := len(segments) - 1; i >= 0 && complete; i-- {
		first, ok, err := e.firstSeq(segments[i].Number)
		if err != nil {
			return 0, err
		}
		if ok && first <= from {
			return segments[i].Number, nil
		}
	}
	switch {
	case complete && len(segments) == 0 && from > ikey.Seq(e.applied.Load()):
		return 0, nil
	case complete && len(segments) > 0 && (from > ikey.Seq(e.flushed.Load()) || segments[0].Number == 1):
		return segments[0].Number, nil // only what recovery did not need was ever trimmed
	}
	return 0, fmt.Errorf("%w: the log does not reach back to sequence %d", ErrOutOfRange, from)
}

// FeedRange returns the oldest sequence from which Tail can be had now, and the newest that readers
// see.
func (e *Engine) FeedRange() (oldest, newest ikey.Seq, err error) {
	if e.closed.Load() {
		return 0, 0, ErrClosed
	}
	newest = ikey.Seq(e.visible.Load())
	e.tails.mu.Lock()
	complete := e.tails.from
	e.tails.mu.Unlock()
	segments := e.log.Segments()
	switch {
	case len(segments) == 0:
		return max(complete, ikey.Seq(e.applied.Load())+1), newest, nil
	case segments[0].Number == 1:
		return max(complete, 1), newest, nil
	}
	oldest = ikey.Seq(e.flushed.Load()) + 1 // only what recovery did not need was ever trimmed
	for _, s := range segments {
		first, ok, err := e.firstSeq(s.Number)
		if err != nil {
			return 0, 0, err
		}
		if ok {
			oldest = min(oldest, first)
			break
		}
	}
	return max(complete, oldest), newest, nil
}

// firstSeq returns the sequence of the first change in a segment; false if it has no frame yet.
func (e *Engine) firstSeq(segment uint64) (ikey.Seq, bool, error) {
	r, err := e.log.NewReader(commitlog.Position{Segment: segment})
	if errors.Is(err, commitlog.ErrTrimmed) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	f, err := r.Next(commitlog.Position{Segment: segment, Offset: 1 << 62})
	if cerr := r.Close(); cerr != nil && err == nil {
		err = cerr
	}
	if err != nil {
		return 0, false, ignoreEOF(err)
	}
	if len(f.Payload) < groupHeaderBytes {
		return 0, false, errOps
	}
	return frameSeq(f.Payload), true, nil
}

// trimLog gives up log segments below floor, but for what followers hold, as far as the retention
// allows; and what was kept for markers in the segments that are gone.
func (e *Engine) trimLog(floor uint64) {
	if e.closed.Load() {
		return
	}
	e.attachPins()
	e.breakPins(floor)
	if err := e.log.Trim(floor); err != nil {
		if !errors.Is(err, commitlog.ErrClosed) {
			e.emit(Event{Kind: EventDeleteFailed, Err: err, Reason: "commit log"})
		}
		return
	}
	e.forgetMarkers()
}

// attachPins makes the pins and tails hold the log that began when it was still empty.
func (e *Engine) attachPins() {
	segments := e.log.Segments()
	if len(segments) == 0 {
		return
	}
	e.tails.mu.Lock()
	defer e.tails.mu.Unlock()
	for _, p := range e.tails.pins {
		if p.segment == 0 {
			if release, err := e.log.Pin(segments[0].Number); err == nil {
				p.segment, p.release = segments[0].Number, release
			}
		}
	}
	for t := range e.tails.open {
		t.attach(segments[0].Number)
	}
}

// breakPins ends the pins and tails that hold more log below floor than the retention allows.
func (e *Engine) breakPins(floor uint64) {
	cut, bytes := uint64(0), int64(0) // segments up to cut are given up
	segments := e.log.Segments()
	for _, s := range slices.Backward(segments) {
		if s.Number >= floor {
			continue
		}
		if bytes += s.Bytes; bytes > e.opts.TailRetentionBytes {
			cut = s.Number
			break
		}
	}
	e.tails.mu.Lock()
	if len(e.tails.ingests) > maxKeptIngests && len(segments) > 1 {
		cut = max(cut, segments[len(segments)-2].Number)
	}
	var broken []string
	for name, p := range e.tails.pins {
		if p.segment != 0 && p.segment <= cut {
			broken = append(broken, name)
		}
	}
	tails := make([]*Tail, 0, len(e.tails.open))
	for t := range e.tails.open {
		tails = append(tails, t)
	}
	e.tails.mu.Unlock()
	for _, name := range broken {
		e.setPin(name, nil)
		e.pinBroken(name, fmt.Errorf("%w: it held more than %d bytes of log", ErrOutOfRange, e.opts.TailRetentionBytes))
	}
	for _, t := range tails {
		t.breakBelow(cut)
	}
}

// staleFacts returns facts to remove with an edit that is about to be made.
func (t *tailState) staleFacts(meta map[string]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, key := range t.stale {
		if _, again := t.pins[strings.TrimPrefix(key, metaPin)]; !again {
			meta[key] = ""
		}
	}
	t.stale = nil
}

// PinnedTail returns the sequence from which on a pin keeps the log; ok is false when there is none of that
// name, because it was never taken, ended, or broke.
func (e *Engine) PinnedTail(name string) (from ikey.Seq, ok bool) {
	e.tails.mu.Lock()
	defer e.tails.mu.Unlock()
	pin := e.tails.pins[name]
	if pin == nil {
		return 0, false
	}
	return pin.seq, true
}

// TailPins returns the names of the pins that hold the log, sorted.
func (e *Engine) TailPins() []string {
	e.tails.mu.Lock()
	defer e.tails.mu.Unlock()
	return slices.Sorted(maps.Keys(e.tails.pins))
}
