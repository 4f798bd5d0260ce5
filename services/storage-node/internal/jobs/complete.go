package jobs

import (
	"context"
	"errors"
	"fmt"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
)

// maxReasonBytes bounds the text of a worker that is kept and logged.
const maxReasonBytes = 512

// Heartbeat extends the lease of an attempt and notes its progress.
func (b *Board) Heartbeat(k Key, doneBytes int64) Direction {
	b.mu.Lock()
	defer b.unlock()
	j := b.leasedLocked(k)
	if j == nil {
		return Direction{Stop: true, Reason: "fenced: the lease is over"}
	}
	b.seenLocked(j.worker)
	now := b.o.Now()
	j.deadline = now.Add(b.o.Lease)
	// A claim beyond what there is to read and write is not progress.
	if doneBytes = min(doneBytes, 4*j.bytes); doneBytes > j.doneBytes {
		j.doneBytes, j.progressed = doneBytes, now
	}
	return Direction{MaxBytesPerSecond: b.rateLocked(j)}
}

// leasedLocked returns the job whose present attempt has the key, or nil. An attempt whose time is
// over ends here, so that the answer does not depend on the sweeper.
func (b *Board) leasedLocked(k Key) *job {
	j := b.jobs[k.ID]
	if k.Session != b.session || j == nil || !j.active || j.granting || j.epoch != k.Epoch || b.expireLocked(j) {
		b.totals.Fenced++
		return nil
	}
	return j
}

// expireLocked ends an attempt whose time is over.
func (b *Board) expireLocked(j *job) bool {
	if j.state != StateLeased || j.granting {
		return false
	}
	now := b.o.Now()
	switch {
	case !now.Before(j.deadline):
		b.failLocked(j, EventExpired, fmt.Sprintf("no heartbeat for %v", b.o.Lease))
	case now.Sub(j.progressed) >= b.o.Stall:
		b.failLocked(j, EventStalled, fmt.Sprintf("no progress for %v", b.o.Stall))
	case now.Sub(j.granted) >= b.o.MaxAttempt:
		b.failLocked(j, EventStalled, fmt.Sprintf("not done after %v", b.o.MaxAttempt))
	default:
		return false
	}
	return true
}

// Complete verifies the outputs of an attempt and has them installed, all or none. Repeating it is
// safe: a repetition during the verification waits for the same verdict. It returns an error only
// when ctx ends first; the verification goes on.
func (b *Board) Complete(ctx context.Context, k Key, r Report) (Verdict, error) {
	b.mu.Lock()
	if b.done.has(k) {
		b.unlock()
		return Verdict{AlreadyInstalled, ""}, nil
	}
	j := b.leasedLocked(k)
	if j == nil || b.closed {
		b.unlock()
		return Verdict{Fenced, "the lease is over"}, nil
	}
	b.seenLocked(j.worker)
	repeated := j.state == StateVerifying
	if !repeated {
		j.state = StateVerifying
		waiting := newJudgement()
		j.judgement = waiting
		b.wg.Go(func() { b.judge(j, waiting, k, r) })
	}
	judgement := j.judgement
	b.unlock()

	select {
	case <-judgement.done:
	case <-ctx.Done():
		return Verdict{}, ctx.Err()
	}
	v := judgement.verdict
	if repeated && v.Outcome == Installed {
		v.Outcome = AlreadyInstalled
	}
	return v, nil
}

// judge runs the verification and the installation of a report.
func (b *Board) judge(j *job, waiting *judgement, k Key, r Report) {
	defer close(waiting.done)
	outs, err := b.verifyAndInstall(j, k, r)

	b.mu.Lock()
	v := Verdict{Outcome: Installed}
	switch {
	case err == nil:
		b.installedLocked(j, outs)
	case errors.Is(err, ErrObsolete):
		v = Verdict{Rejected, err.Error()}
		b.cancelNowLocked(j, err.Error())
	case errors.Is(err, context.Canceled): // Close
		v = Verdict{Fenced, "the node shuts down"}
		b.cancelNowLocked(j, "shutdown")
	case errors.Is(err, vfs.ErrNoSpace):
		v = Verdict{Rejected, err.Error()}
		b.requeueLocked(j, EventNoSpace, err.Error(), true)
	default:
		v = Verdict{Rejected, err.Error()}
		var why *rejection
		b.caught = b.caught || errors.As(err, &why) && why.code == codeContent
		b.failLocked(j, EventRejected, err.Error())
	}
	waiting.verdict = v
	b.unlock()
}

func (b *Board) verifyAndInstall(j *job, k Key, r Report) ([]compact.Output, error) {
	if j.isScrub() {
		return nil, b.judgeScrub(j, r)
	}
	if err := b.o.Installer.Check(j.plan); errors.Is(err, vfs.ErrNoSpace) {
		return nil, err
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrObsolete, err)
	}
	outs, files, err := b.verify(b.ctx, j.plan, k, r)
	if err != nil {
		return nil, err
	}
	if b.audited(j) {
		if err := b.audit(b.ctx, j.plan, r.Stats, outs, files); err != nil {
			return nil, err
		}
	}
	b.mu.Lock()
	cancelled, by := j.cancelled, j.origin()
	b.mu.Unlock()
	if cancelled != "" {
		return nil, fmt.Errorf("%w: %s", ErrObsolete, cancelled)
	}
	j.plan.Stats = r.Stats
	if err := b.o.Installer.Install(j.plan, outs, files, by); err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	return outs, nil
}

func (b *Board) installedLocked(j *job, outs []compact.Output) {
	if j.isScrub() {
		b.totals.Scrubbed++
		b.finishLocked(j, StateInstalled, EventScrubbed, "")
		return
	}
	j.outputs = len(outs)
	for _, o := range outs {
		j.outBytes += int64(o.Size)
	}
	if j.worker.local {
		b.totals.InstalledLocal++
		b.totals.BytesInLocal += uint64(j.bytes)
		b.totals.BytesOutLocal += uint64(j.outBytes)
	} else {
		b.totals.InstalledExternal++
		b.totals.BytesInExternal += uint64(j.bytes)
		b.totals.BytesOutExternal += uint64(j.outBytes)
	}
	b.finishLocked(j, StateInstalled, EventInstalled, "")
}

// Abandon gives an attempt back. A key that is not leased is ignored.
func (b *Board) Abandon(k Key, reason AbandonReason, detail string, corrupt []compact.CorruptInput) {
	if len(detail) > maxReasonBytes {
		detail = detail[:maxReasonBytes]
	}
	b.mu.Lock()
	defer b.unlock()
	j := b.leasedLocked(k)
	if j == nil || j.state == StateVerifying {
		return
	}
	b.seenLocked(j.worker)
	b.totals.Abandoned++
	why := fmt.Sprintf("%s: %s", reason, detail)
	switch reason {
	case AbandonShutdown:
		b.requeueLocked(j, EventAbandoned, why, false)
	case AbandonNoSpace:
		b.requeueLocked(j, EventAbandoned, why, true)
	case AbandonCorruptInput:
		j.state = StateVerifying
		waiting := newJudgement()
		waiting.verdict = Verdict{Fenced, "abandoned"}
		j.judgement = waiting
		b.wg.Go(func() { b.judgeCorrupt(j, waiting, why, corrupt) })
	default:
		b.failLocked(j, EventAbandoned, why)
	}
}

// judgeCorrupt looks whether inputs that a worker calls damaged are.
func (b *Board) judgeCorrupt(j *job, waiting *judgement, why string, claimed []compact.CorruptInput) {
	seen := b.confirm(b.ctx, j.plan, claimed)
	if len(seen) > 0 {
		b.o.Installer.Quarantine(j.plan, seen)
	}
	defer close(waiting.done)
	b.mu.Lock()
	defer b.unlock()
	if len(seen) == 0 {
		b.failLocked(j, EventAbandoned, why+" (the node sees no damage)")
		return
	}
	b.corruptLocked(j, seen)
	b.totals.Quarantined++
	b.finishLocked(j, StateQuarantined, EventQuarantined, why)
}

func (b *Board) corruptLocked(j *job, seen []compact.CorruptInput) {
	b.totals.CorruptTables += uint64(len(seen))
	for _, c := range seen {
		b.eventLocked(EventCorrupt, j, fmt.Sprintf("table %d: %s", c.Num, c.Reason))
	}
}

// judgeScrub takes the result of a scrub; damage counts once the node has seen it.
func (b *Board) judgeScrub(j *job, r Report) error {
	if len(r.Outputs) > 0 {
		return reject("COUNT", "a scrub has no outputs, %d reported", len(r.Outputs))
	}
	if len(r.Corrupt) == 0 {
		return nil
	}
	seen := b.confirm(b.ctx, j.plan, r.Corrupt)
	if len(seen) == 0 {
		return reject("CORRUPT", "the node sees no damage in what the scrub reports")
	}
	b.o.Installer.Quarantine(j.plan, seen)
	b.mu.Lock()
	b.corruptLocked(j, seen)
	b.unlock()
	return nil
}
