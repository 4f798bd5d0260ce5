package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
)

// maxLeases bounds what one call of Lease hands out.
const maxLeases = 16

// Back-off of a job for which there was no space or no directory: it does not count as an attempt.
const (
	minBackoff = 5 * time.Second
	maxBackoff = time.Minute
)

// Lease waits until there is work for w, at most Options.Poll, and returns up to w.FreeSlots leases,
// or none. The leases run from the grant.
func (b *Board) Lease(ctx context.Context, w Worker) ([]Lease, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	id, err := b.arrive(w)
	if err != nil {
		return nil, err
	}
	defer b.leave(id)
	timeout := b.o.After(b.o.Poll)
	for {
		leases, wake, err := b.tryLease(ctx, w, id)
		if err != nil || len(leases) > 0 {
			return leases, err
		}
		select {
		case <-wake:
		case <-timeout:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-b.ctx.Done():
			return nil, ErrClosed
		}
	}
}

// tryLease grants what can be granted now. wake tells when to try again.
func (b *Board) tryLease(ctx context.Context, w Worker, id workerID) (leases []Lease, wake <-chan struct{}, err error) {
	b.mu.Lock()
	wake = b.wake
	wanted := !b.closed && b.anyLocked(w)
	b.unlock()
	if !wanted {
		if l, ok := b.tryScrub(w, id); ok {
			return []Lease{l}, wake, nil
		}
		return nil, wake, nil
	}
	usage, err := b.o.FS.Usage(b.stagingDir())
	if err != nil {
		return nil, nil, fmt.Errorf("space of staging: %w", err)
	}
	for len(leases) < min(w.FreeSlots, maxLeases) && ctx.Err() == nil { // a lease that nobody takes goes back at once
		j := b.reserve(w, id, usage)
		if j == nil {
			break
		}
		l, err := b.grant(ctx, j)
		if err != nil {
			continue // requeued with a back-off, so the loop ends
		}
		leases = append(leases, l)
	}
	return leases, wake, nil
}

// anyLocked reports whether a job could go to w, headroom aside.
func (b *Board) anyLocked(w Worker) bool {
	now := b.o.Now()
	for _, j := range b.jobs {
		if b.fitsLocked(j, w, now) {
			return true
		}
	}
	return false
}

func (b *Board) fitsLocked(j *job, w Worker, now time.Time) bool {
	switch {
	case now.Before(j.notBefore):
		return false
	case j.state == StateLocal:
		if !w.local {
			return false
		}
	case j.state != StateQueued:
		return false
	case w.local && !b.localMayLocked():
		return false
	}
	return slices.Contains(w.Formats, j.plan.Job.Table.Format)
}

// reserve takes the first job that fits w and the disk, and makes it an attempt whose directory is
// not there yet. It returns nil if there is none.
func (b *Board) reserve(w Worker, id workerID, usage vfs.Usage) *job {
	b.mu.Lock()
	defer b.unlock()
	if b.closed {
		return nil
	}
	now := b.o.Now()
	var best *job
	var need uint64
	for _, j := range b.jobs {
		if !b.fitsLocked(j, w, now) || best != nil && !before(j, best) {
			continue
		}
		n := uint64(j.bytes) + uint64(j.bytes)/10
		if promised := b.o.ReserveBytes/4 + b.reserved; promised > usage.FreeBytes || n > usage.FreeBytes-promised {
			b.refuseHeadroomLocked(j, n, usage)
			continue
		}
		best, need = j, n
	}
	if best == nil {
		return nil
	}
	b.beginLocked(best, id, now)
	best.reserved, best.granting = need, true
	b.reserved += need
	return best
}

func (b *Board) refuseHeadroomLocked(j *job, need uint64, usage vfs.Usage) {
	if j.blocked {
		return
	}
	j.blocked = true
	b.totals.HeadroomRefusals++
	b.eventLocked(EventNoSpace, j, fmt.Sprintf("%d bytes of headroom wanted, %d free, %d promised, %d in reserve",
		need, usage.FreeBytes, b.reserved, b.o.ReserveBytes/4))
}

func before(a, b *job) bool {
	if a.plan.Priority != b.plan.Priority {
		return a.plan.Priority > b.plan.Priority
	}
	return a.plan.Job.ID < b.plan.Job.ID
}

// beginLocked starts the next attempt of j.
func (b *Board) beginLocked(j *job, id workerID, now time.Time) {
	j.epoch++
	j.state, j.active = StateLeased, true
	j.worker = id
	j.granted, j.progressed, j.deadline = now, now, now.Add(b.o.Lease)
	j.doneBytes, j.outputs, j.outBytes = 0, 0, 0
	j.blocked = false
	if w := b.workers[id]; w != nil {
		w.leases++
	}
}

// grant makes the attempt's directory and starts the lease.
func (b *Board) grant(ctx context.Context, j *job) (Lease, error) {
	key := Key{b.session, j.plan.Job.ID, j.epoch} // ours while granting
	err := b.prepare(key, j.plan.Job.MaxOutputs)

	b.mu.Lock()
	defer b.unlock()
	j.granting = false
	switch {
	case err != nil:
		b.requeueLocked(j, EventNoSpace, fmt.Sprintf("make staging: %v", err), true)
		return Lease{}, err
	case j.cancelled != "":
		b.cancelNowLocked(j, j.cancelled)
		return Lease{}, errors.New(j.cancelled)
	case b.closed || ctx.Err() != nil:
		b.requeueLocked(j, EventQueued, "the worker went away", false)
		return Lease{}, ErrClosed
	}
	return b.leaseLocked(j, key), nil
}

func (b *Board) leaseLocked(j *job, key Key) Lease {
	now := b.o.Now()
	j.granted, j.progressed, j.deadline = now, now, now.Add(b.o.Lease)
	b.eventLocked(EventLeased, j, j.plan.Reason)
	l := Lease{Key: key, Job: j.plan.Job, Lease: b.o.Lease, Heartbeat: b.o.Heartbeat}
	l.Job.MaxBytesPerSecond = b.rateLocked(j)
	return l
}

func (b *Board) rateLocked(j *job) int64 {
	switch {
	case j.isScrub():
		return b.o.ScrubRate
	case j.worker.local:
		return slower(max(b.o.LocalRate, 0), j.plan.Job.MaxBytesPerSecond)
	case j.plan.Job.MaxBytesPerSecond > 0:
		return j.plan.Job.MaxBytesPerSecond
	}
	return b.rate
}

// slower returns the smaller of two rates, of which 0 is none.
func slower(a, b int64) int64 {
	if a <= 0 || b > 0 && b < a {
		return b
	}
	return a
}

// requeueLocked ends an attempt that does not count.
func (b *Board) requeueLocked(j *job, kind EventKind, why string, backOff bool) {
	switch {
	case j.cancelled != "":
		b.cancelNowLocked(j, j.cancelled)
		return
	case j.isScrub():
		b.cancelNowLocked(j, why)
		return
	}
	b.endAttemptLocked(j)
	j.lastFailure = why
	j.state = b.nextStateLocked(j)
	if backOff {
		j.backoff = min(max(2*j.backoff, minBackoff), maxBackoff)
		j.notBefore = b.o.Now().Add(j.backoff)
	}
	b.eventLocked(kind, j, why)
	b.wakeLocked()
}

// nextStateLocked is where a job waits, by the number of attempts that failed.
func (b *Board) nextStateLocked(j *job) State {
	switch {
	case j.failures < b.o.Attempts:
		return StateQueued
	case j.failures == b.o.Attempts && b.o.Mode != ModeNever:
		return StateLocal
	}
	return StateQuarantined
}

// failLocked ends an attempt that counts: again, or locally, or never.
func (b *Board) failLocked(j *job, kind EventKind, why string) {
	switch kind {
	case EventExpired:
		b.totals.Expired++
	case EventStalled:
		b.totals.Stalled++
	case EventRejected:
		b.totals.Rejected++
	}
	b.eventLocked(kind, j, why)
	j.failures++
	if j.cancelled != "" || j.isScrub() {
		b.requeueLocked(j, kind, why, false)
		return
	}
	next := b.nextStateLocked(j)
	if next == StateQuarantined {
		b.totals.Quarantined++
		b.finishLocked(j, next, EventQuarantined, fmt.Sprintf("%d attempts failed, the last one: %s", j.failures, why))
		return
	}
	b.endAttemptLocked(j)
	j.state, j.lastFailure = next, why
	if next == StateLocal {
		b.eventLocked(EventLocal, j, why)
	}
	b.wakeLocked()
}

// scrubState is the round-robin of scrubs. Guarded by Board.mu.
type scrubState struct {
	after uint64
	last  time.Time
	busy  bool // the source is being asked
}

// tryScrub offers the next table to check, if nothing waits and it is time.
func (b *Board) tryScrub(w Worker, id workerID) (Lease, bool) {
	now := b.o.Now()
	b.mu.Lock()
	due := !b.closed && b.o.Scrub != nil && !b.scrub.busy && b.idleLocked() &&
		now.Sub(b.scrub.last) >= b.o.ScrubInterval && (!w.local || b.localMayLocked())
	b.scrub.busy = b.scrub.busy || due
	after := b.scrub.after
	b.unlock()
	if !due {
		return Lease{}, false
	}
	in, release, ok := b.o.Scrub(after)

	b.mu.Lock()
	defer b.unlock()
	b.scrub.busy, b.scrub.last = false, now
	if !ok {
		return Lease{}, false
	}
	_, taken := b.inputs[in.Num]
	if b.closed || taken {
		b.todo = append(b.todo, release)
		b.scrub.after = in.Num
		return Lease{}, false
	}
	b.scrub.after = in.Num
	p := &Plan{Job: compact.Job{Kind: compact.Scrub, Inputs: []compact.Input{in}, OutputLevel: in.Level}, Reason: "scrub"}
	p.Job.Table.Format = b.o.Formats[0]
	j := b.addLocked(p, in.Size)
	j.release = release
	b.beginLocked(j, id, now)
	return b.leaseLocked(j, Key{b.session, p.Job.ID, j.epoch}), true
}

// idleLocked reports whether nothing waits for a worker.
func (b *Board) idleLocked() bool {
	for _, j := range b.jobs {
		if j.state == StateQueued || j.state == StateLocal {
			return false
		}
	}
	return true
}
