package outbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/record"
	"github.com/pairdb/pairdb/libs/vfs"
)

const (
	// handOver is how many events may wait for the goroutine that writes them: more than a node makes
	// while one sync hangs.
	handOver = 1024
	// batch is how many are written with one sync.
	batch = 64
	// maxBytes bounds the memory and the file, however many events are allowed: sixty-four MiB are
	// four thousand of the largest, or two hundred thousand usual ones.
	maxBytes = 64 << 20
	// remembered is how many ids are known, so that a sidecar may repeat itself.
	remembered = 4096
	// settleEvery is how often what was published is noted in the file, and old events are dropped.
	settleEvery = time.Second
	// retryEvery is how often a file is tried after the disk did not take the last one.
	retryEvery = 10 * time.Second
	// tidyBytes: below it the file is not written anew, whatever of it is done with.
	tidyBytes = 64 << 10
)

// ErrClosed says that the outbox takes nothing any more.
var ErrClosed = errors.New("outbox is closed")

// Options say where an outbox is and how much it holds.
type Options struct {
	FS vfs.FS
	// Dir is the outbox's own directory; it is made when the outbox is attached.
	Dir string
	// Cluster and Node are the source of every event.
	Cluster, Node string
	// Capacity is how many events wait; the oldest is dropped for one more. At least 1.
	Capacity int
	// MaxAge is how long one waits before it is dropped: no longer than the stream knows ids.
	// Default event.MaxWait.
	MaxAge time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Outbox holds the events of one node. One goroutine, Run, writes the file; all methods are safe for
// concurrent use. There is one reader of Next.
type Outbox struct {
	o       Options
	session string

	counter  atomic.Uint64 // of ids
	in       chan item     // capacity handOver
	attach   chan struct{} // capacity 1
	done     chan struct{} // closed when Run has ended
	overflow atomic.Int64  // events dropped at the hand-over

	// Of Run alone.
	file    *file // nil while the disk does not take it
	lock    io.Closer
	retryAt time.Time
	written uint64 // the floor that the file knows
	ids     idSet

	mu      sync.Mutex
	entries []entry // guarded by mu; by sequence
	bytes   int64   // guarded by mu; of entries
	floor   uint64  // guarded by mu; sequences up to it are done with
	last    uint64  // guarded by mu; newest sequence given
	pending int     // guarded by mu; events handed over that are not in entries yet
	dropped int64   // guarded by mu; because there was no room, or too old
	memory  bool    // guarded by mu; the disk does not take it
	changed chan struct{}
}

// entry is an event that waits.
type entry struct {
	event   event.Event
	payload []byte // of its frame
}

// item is an event on its way to Run.
type item struct {
	event event.Event
	done  chan struct{} // closed when it is stored; nil if nobody waits
}

// New returns an outbox that takes events and keeps them in memory until it is attached.
func New(o Options) *Outbox {
	if o.MaxAge == 0 {
		o.MaxAge = event.MaxWait
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	var session [8]byte
	rand.Read(session[:])
	return &Outbox{
		o: o, session: hex.EncodeToString(session[:]), ids: idSet{known: map[string]bool{}},
		in: make(chan item, handOver), attach: make(chan struct{}, 1), done: make(chan struct{}), changed: make(chan struct{}),
	}
}

// Note hands over an event of the node itself and returns at once, whatever the disk does. data is the
// JSON of the kind's payload; it is not copied.
func (b *Outbox) Note(kind string, at time.Time, data json.RawMessage) {
	e := b.fill(event.Event{Kind: kind, Time: at, Data: data})
	e.ID = b.o.Node + "." + b.session + "." + strconv.FormatUint(b.counter.Add(1), 10)
	b.pend(1)
	select {
	case b.in <- item{event: e}:
	default:
		b.pend(-1)
		b.overflow.Add(1)
	}
}

// Add hands over an event of a sidecar, which has given it an id, a kind, a time and data, and returns
// when it is stored. An id that is known already changes nothing.
func (b *Outbox) Add(ctx context.Context, e event.Event) error {
	it := item{event: b.fill(e), done: make(chan struct{})}
	if _, err := it.event.Encode(); err != nil {
		return err
	}
	b.pend(1)
	select {
	case b.in <- it:
	case <-ctx.Done():
		b.pend(-1)
		return ctx.Err()
	case <-b.done:
		b.pend(-1)
		return ErrClosed
	}
	select {
	case <-it.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-b.done:
		select {
		case <-it.done:
			return nil
		default:
			return ErrClosed
		}
	}
}

func (b *Outbox) fill(e event.Event) event.Event {
	e.Cluster, e.Node, e.Sequence, e.Time = b.o.Cluster, b.o.Node, 0, e.Time.UTC().Round(0)
	return e
}

func (b *Outbox) pend(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending += n
	b.wakeLocked()
}

// wakeLocked wakes all who wait for a change.
func (b *Outbox) wakeLocked() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Attach says that the data directory is this process' own from now on. Before it nothing is touched,
// and nothing is published: a process that turns out to be the second one on a directory has nothing
// to tell. Repeats do nothing.
func (b *Outbox) Attach() {
	select {
	case b.attach <- struct{}{}:
	default:
	}
}

// Run writes what is handed over until ctx ends; then it takes what was handed over before, and closes
// the file. It is called once.
func (b *Outbox) Run(ctx context.Context) {
	defer close(b.done)
	select {
	case <-b.attach:
	case <-ctx.Done():
		return
	}
	b.open()
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		select {
		case it := <-b.in:
			b.take(b.collect([]item{it}))
		case <-tick.C:
			b.settle()
		case <-ctx.Done():
			for items := b.collect(nil); len(items) > 0; items = b.collect(nil) {
				b.take(items)
			}
			b.close()
			return
		}
	}
}

// collect adds what else waits, up to a batch.
func (b *Outbox) collect(items []item) []item {
	for len(items) < batch {
		select {
		case it := <-b.in:
			items = append(items, it)
		default:
			return items
		}
	}
	return items
}

// open takes over what an earlier process left.
func (b *Outbox) open() {
	c, err := b.load()
	if err != nil && !errors.Is(err, record.ErrTorn) {
		b.o.Log.Error("outbox is damaged: events that were not published are lost", "error", err, "kept", len(c.events))
	}
	b.mu.Lock()
	b.floor, b.last = c.floor, c.last
	if !c.clean && (c.last > 0 || err != nil) {
		b.last += batch // numbers that may have been given and not written
	}
	for _, e := range c.events {
		b.pushLocked(b.fromStored(e))
	}
	b.trimLocked()
	waiting := len(b.entries)
	b.wakeLocked()
	b.mu.Unlock()
	for _, id := range c.ids {
		b.ids.add(id)
	}
	if b.lock == nil {
		return // load has said why
	}
	b.rewrite()
	if waiting > 0 {
		b.o.Log.Info("events of an earlier process wait to be published", "events", waiting)
	}
}

// load reads the file. An error of the disk leaves the outbox in memory.
func (b *Outbox) load() (content, error) {
	err := b.o.FS.MkdirAll(b.o.Dir, dirPerm)
	if err == nil {
		err = vfs.SyncDir(b.o.FS, path.Dir(b.o.Dir))
	}
	if err == nil {
		b.lock, err = b.o.FS.Lock(path.Join(b.o.Dir, lockName))
	}
	var bytes []byte
	if err == nil {
		bytes, err = readFile(b.o.FS, path.Join(b.o.Dir, fileName))
	}
	if err != nil {
		b.fail(err)
		return content{}, nil
	}
	return decode(bytes)
}

func (b *Outbox) fromStored(s stored) entry {
	e := b.fill(event.Event{ID: s.ID, Kind: s.Kind, Time: s.Time, Data: s.Data})
	e.Sequence = s.Sequence
	return newEntry(e)
}

// newEntry returns an event with the payload of its frame. Its parts were checked: it can be encoded.
func newEntry(e event.Event) entry {
	payload, err := json.Marshal(stored{Sequence: e.Sequence, ID: e.ID, Kind: e.Kind, Time: e.Time, Data: e.Data})
	if err != nil {
		payload = nil // data that is no JSON: Note's caller is at fault, and the publisher says so
	}
	return entry{event: e, payload: payload}
}

// take stores a batch. Readers see it before it is synced: when the disk hangs is when the events of a
// node matter.
func (b *Outbox) take(items []item) {
	var fresh []entry
	b.mu.Lock()
	for _, it := range items {
		if !b.ids.add(it.event.ID) {
			continue
		}
		b.last++
		it.event.Sequence = b.last
		fresh = append(fresh, newEntry(it.event))
	}
	b.mu.Unlock()
	err := b.append(fresh)
	b.mu.Lock()
	for _, e := range fresh {
		b.pushLocked(e)
	}
	b.pending -= len(items)
	b.trimLocked()
	b.wakeLocked()
	b.mu.Unlock()
	if err == nil && b.file != nil {
		err = b.file.sync()
	}
	if err != nil {
		b.fail(err)
	}
	for _, it := range items {
		if it.done != nil {
			close(it.done)
		}
	}
}

// append writes events to the file, if there is one.
func (b *Outbox) append(entries []entry) error {
	if b.file == nil || len(entries) == 0 {
		return nil
	}
	var frames []byte
	for _, e := range entries {
		if e.payload != nil {
			frames = appendFrame(frames, frameEvent, b.file.size, b.file.synced, e.payload)
		}
	}
	return b.file.append(frames)
}

func (b *Outbox) pushLocked(e entry) {
	b.entries = append(b.entries, e)
	b.bytes += int64(len(e.payload)) + record.HeaderBytes
}

// popLocked takes the oldest event away for good.
func (b *Outbox) popLocked() {
	e := b.entries[0]
	b.entries[0] = entry{}
	b.entries = b.entries[1:]
	b.bytes -= int64(len(e.payload)) + record.HeaderBytes
	b.floor = e.event.Sequence
	b.wakeLocked()
}

// trimLocked drops the oldest events that there is no room for, and those that are too old.
func (b *Outbox) trimLocked() {
	oldest := b.o.Now().Add(-b.o.MaxAge)
	for len(b.entries) > 0 && (len(b.entries) > b.o.Capacity || b.bytes > maxBytes || b.entries[0].event.Time.Before(oldest)) {
		b.popLocked()
		b.dropped++
	}
}

// settle notes in the file what is done with, and tries a new file where the last one failed.
func (b *Outbox) settle() {
	b.mu.Lock()
	b.trimLocked()
	floor, last, live := b.floor, b.last, b.bytes
	b.mu.Unlock()
	switch {
	case b.file == nil:
		if b.lock != nil && !b.o.Now().Before(b.retryAt) {
			b.rewrite()
		}
	case floor == b.written:
	case b.file.size > tidyBytes+2*live:
		b.rewrite()
	default:
		if err := b.file.append(appendFrame(nil, frameState, b.file.size, b.file.synced, encodeState(floor, last, false))); err != nil {
			b.fail(err)
			return
		}
		b.written = floor
	}
}

// rewrite replaces the file by one that holds what waits.
func (b *Outbox) rewrite() {
	b.closeFile()
	b.mu.Lock()
	var frames []byte
	for _, e := range b.entries {
		if e.payload != nil {
			frames = appendFrame(frames, frameEvent, 0, 0, e.payload)
		}
	}
	frames = appendFrame(frames, frameState, 0, 0, encodeState(b.floor, b.last, false))
	floor := b.floor
	b.mu.Unlock()
	f, err := writeFile(b.o.FS, b.o.Dir, frames)
	if err != nil {
		b.fail(err)
		return
	}
	b.file, b.written = f, floor
	b.mu.Lock()
	back := b.memory
	b.memory = false
	b.mu.Unlock()
	if back {
		b.o.Log.Info("outbox is durable again")
	}
}

// fail goes on in memory.
func (b *Outbox) fail(err error) {
	b.closeFile()
	b.retryAt = b.o.Now().Add(retryEvery)
	b.mu.Lock()
	first := !b.memory
	b.memory = true
	b.mu.Unlock()
	if first {
		b.o.Log.Warn("outbox goes on in memory: events that are not published are lost with the process", "error", err)
	}
}

func (b *Outbox) closeFile() {
	if b.file == nil {
		return
	}
	if err := b.file.close(); err != nil {
		b.o.Log.Warn("outbox", "error", err) // what it held is in memory
	}
	b.file = nil
}

// close notes how far things are, and gives the directory back.
func (b *Outbox) close() {
	if b.file != nil {
		b.mu.Lock()
		state := encodeState(b.floor, b.last, true)
		b.mu.Unlock()
		err := b.file.append(appendFrame(nil, frameState, b.file.size, b.file.synced, state))
		if err == nil {
			err = b.file.sync()
		}
		if err != nil {
			b.fail(err)
		}
		b.closeFile()
	}
	if b.lock != nil {
		if err := b.lock.Close(); err != nil {
			b.o.Log.Warn("outbox", "error", fmt.Errorf("unlock: %w", err))
		}
	}
}

// Next returns the oldest event that waits; it blocks until there is one, or ctx ends.
func (b *Outbox) Next(ctx context.Context) (event.Event, error) {
	for {
		b.mu.Lock()
		b.trimLocked()
		if len(b.entries) > 0 {
			e := b.entries[0].event
			b.mu.Unlock()
			return e, nil
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return event.Event{}, ctx.Err()
		}
	}
}

// Ack takes the oldest event away if it has this id. One that was dropped meanwhile is gone already.
func (b *Outbox) Ack(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.entries) > 0 && b.entries[0].event.ID == id {
		b.popLocked()
	}
}

// WaitEmpty waits until nothing waits, or ctx ends; it reports which.
func (b *Outbox) WaitEmpty(ctx context.Context) bool {
	for {
		b.mu.Lock()
		empty, changed := len(b.entries) == 0 && b.pending == 0, b.changed
		b.mu.Unlock()
		if empty {
			return true
		}
		select {
		case <-changed:
		case <-b.done:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// Status is how an outbox is.
type Status struct {
	// Length of Capacity events wait, those included that are not written yet.
	Length, Capacity int
	// Oldest is when the oldest of them happened; zero when none waits.
	Oldest time.Time
	// Dropped counts events that were not published: there was no room, or they were too old.
	Dropped int64
	// Memory says that the disk does not take them.
	Memory bool
}

// Status returns how the outbox is.
func (b *Outbox) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Status{
		Length: len(b.entries) + b.pending, Capacity: b.o.Capacity, Dropped: b.dropped + b.overflow.Load(), Memory: b.memory,
	}
	if len(b.entries) > 0 {
		s.Oldest = b.entries[0].event.Time
	}
	return s
}

// idSet remembers the last ids.
type idSet struct {
	known map[string]bool
	order []string
	next  int // the oldest, when order is full
}

// add reports whether the id was not known.
func (s *idSet) add(id string) bool {
	if s.known[id] {
		return false
	}
	if len(s.order) < remembered {
		s.order = append(s.order, id)
	} else {
		delete(s.known, s.order[s.next])
		s.order[s.next] = id
		s.next = (s.next + 1) % remembered
	}
	s.known[id] = true
	return true
}
