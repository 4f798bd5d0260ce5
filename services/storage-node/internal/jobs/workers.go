package jobs

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// workerID tells workers apart; the local executor has an identity that nothing from the wire can
// claim.
type workerID struct {
	name  string
	local bool
}

// worker is one that was heard of. Guarded by Board.mu.
type worker struct {
	slots   int
	polling int
	leases  int
	seen    time.Time
}

// Limits of what a worker says about itself.
const (
	maxWorkers    = 64
	maxNameBytes  = 128
	maxSlots      = 256
	maxFormats    = 64
	forgetWorkers = 10 * time.Minute
)

func (w Worker) check() error {
	switch {
	case w.Name == "" || len(w.Name) > maxNameBytes || !utf8.ValidString(w.Name):
		return fmt.Errorf("%w: a name of 1 to %d bytes of UTF-8 expected", ErrInvalidWorker, maxNameBytes)
	case strings.ContainsFunc(w.Name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("%w: control characters in the name", ErrInvalidWorker)
	case w.FreeSlots < 1 || w.FreeSlots > maxSlots || w.TotalSlots < w.FreeSlots || w.TotalSlots > maxSlots:
		return fmt.Errorf("%w: %d free of %d slots", ErrInvalidWorker, w.FreeSlots, w.TotalSlots)
	case len(w.Formats) == 0 || len(w.Formats) > maxFormats:
		return fmt.Errorf("%w: %d table formats", ErrInvalidWorker, len(w.Formats))
	}
	return nil
}

// arrive notes a worker that polls. leave must follow. A worker that knows no format of this node is refused:
// it would count as present, and keep the executor of the node from the work that it can't do.
func (b *Board) arrive(w Worker) (workerID, error) {
	id := workerID{w.Name, w.local}
	if !slices.ContainsFunc(w.Formats, func(f uint32) bool { return slices.Contains(b.o.Formats, f) }) {
		return id, fmt.Errorf("%w: it knows the table formats %v, this node %v: run a compactor of the node's release", ErrInvalidWorker, w.Formats, b.o.Formats)
	}
	b.mu.Lock()
	defer b.unlock()
	if b.closed {
		return id, ErrClosed
	}
	known := b.workers[id]
	if known == nil {
		if len(b.workers) >= maxWorkers {
			b.forgetLocked(0)
		}
		if len(b.workers) >= maxWorkers {
			return id, fmt.Errorf("%w: %d workers are here already", ErrInvalidWorker, maxWorkers)
		}
		known = &worker{}
		b.workers[id] = known
	}
	known.slots = w.TotalSlots
	known.polling++
	b.seenLocked(id)
	b.wg.Add(1)
	return id, nil
}

func (b *Board) leave(id workerID) {
	b.mu.Lock()
	defer b.unlock()
	b.workers[id].polling--
	b.seenLocked(id)
	b.wg.Done()
}

// seenLocked notes a sign of life.
func (b *Board) seenLocked(id workerID) {
	now := b.o.Now()
	if w := b.workers[id]; w != nil {
		w.seen = now
	}
	if id.local {
		return
	}
	b.external = now
	if b.absent {
		b.absent = false
		b.events = append(b.events, Event{Kind: EventWorkersBack, Worker: id.name})
	}
}

// watchWorkersLocked notices that no external worker is there any more.
func (b *Board) watchWorkersLocked(now time.Time) {
	b.forgetLocked(forgetWorkers)
	for id, w := range b.workers {
		if !id.local && w.polling > 0 {
			b.external = now
			return
		}
	}
	if b.absent || now.Sub(b.external) < b.o.LocalAfter {
		return
	}
	b.absent = true
	b.totals.WorkersGone++
	b.events = append(b.events, Event{Kind: EventWorkersGone, Reason: fmt.Sprintf("no worker for %v", b.o.LocalAfter)})
	b.wakeLocked()
}

// forgetLocked drops the workers that hold nothing and were not heard of for so long.
func (b *Board) forgetLocked(after time.Duration) {
	now := b.o.Now()
	for id, w := range b.workers {
		if w.polling == 0 && w.leases == 0 && now.Sub(w.seen) >= after {
			delete(b.workers, id)
		}
	}
}

// localMayLocked reports whether the local executor may take what external workers could as well.
func (b *Board) localMayLocked() bool {
	switch b.o.Mode {
	case ModeAlways:
		return true
	case ModeNever:
		return false
	}
	return b.absent || b.urgent
}

// Status returns a snapshot.
func (b *Board) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.o.Now()
	s := Status{Session: b.session, Totals: b.totals, ReservedBytes: b.reserved, MaxJobs: b.o.MaxQueued}
	for id, w := range b.workers {
		ws := WorkerStatus{Name: id.name, Local: id.local, TotalSlots: w.slots, Leases: w.leases, Polling: w.polling > 0}
		if !ws.Polling {
			ws.Idle = now.Sub(w.seen)
		}
		// Between two polls a worker is here, as long as it could hold a lease.
		if !id.local && (ws.Polling || ws.Leases > 0 || ws.Idle < b.o.Lease) {
			s.ExternalWorkers++
		}
		s.Workers = append(s.Workers, ws)
	}
	slices.SortFunc(s.Workers, func(a, b WorkerStatus) int { return strings.Compare(a.Name, b.Name) })
	for _, id := range b.idsLocked() {
		s.Jobs = append(s.Jobs, b.jobStatusLocked(b.jobs[id], now))
	}
	return s
}

// PromisedBytes is what running attempts may still write: the headroom that they were promised, less the
// part of their inputs that they have done.
func (b *Board) PromisedBytes() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	var n uint64
	for _, j := range b.jobs {
		if j.active {
			left := max(j.bytes-j.doneBytes, 0)
			n += min(uint64(left)+uint64(left)/10, j.reserved)
		}
	}
	return n
}

// Compactors is how many external workers are there, as in Status, and when one was last heard; zero for
// never.
func (b *Board) Compactors() (count int, last time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.o.Now()
	for id, w := range b.workers {
		if id.local {
			continue
		}
		seen := w.seen
		if w.polling > 0 {
			seen = now
		}
		if w.polling > 0 || w.leases > 0 || now.Sub(seen) < b.o.Lease {
			count++
		}
		if seen.After(last) {
			last = seen
		}
	}
	return count, last
}

func (b *Board) jobStatusLocked(j *job, now time.Time) JobStatus {
	s := JobStatus{
		Key: Key{b.session, j.plan.Job.ID, j.epoch}, Scrub: j.isScrub(), State: j.state, Reason: j.plan.Reason,
		Priority: j.plan.Priority, OutputLevel: j.plan.Job.OutputLevel, InputLevel: j.plan.Job.Inputs[0].Level,
		InputBytes: j.bytes, DoneBytes: j.doneBytes, Attempts: j.failures, LastFailure: j.lastFailure,
	}
	for _, in := range j.plan.Job.Inputs {
		s.Inputs = append(s.Inputs, in.Num)
		s.InputLevel = min(s.InputLevel, in.Level)
	}
	if j.active {
		s.Worker, s.Running = j.worker.name, now.Sub(j.granted)
	}
	if j.state == StateLeased {
		s.Left = max(j.deadline.Sub(now), 0)
	}
	return s
}
