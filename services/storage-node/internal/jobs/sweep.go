package jobs

import "time"

// sweepInterval is how late an expiry may be noticed when nobody calls.
const sweepInterval = 500 * time.Millisecond

func (b *Board) sweepLoop() {
	for {
		select {
		case <-b.o.After(sweepInterval):
			b.sweep()
		case <-b.ctx.Done():
			return
		}
	}
}

// sweep does what only time brings about: expiries, the absence of workers, the end of back-offs,
// due scrubs, and directories that could not be removed.
func (b *Board) sweep() {
	b.mu.Lock()
	now := b.o.Now()
	waiting := b.o.Scrub != nil && now.Sub(b.scrub.last) >= b.o.ScrubInterval
	for _, id := range b.idsLocked() {
		j := b.jobs[id]
		b.expireLocked(j)
		waiting = waiting || j.state == StateQueued || j.state == StateLocal
	}
	b.watchWorkersLocked(now)
	if waiting {
		b.wakeLocked()
	}
	if dirs := b.garbage; len(dirs) > 0 {
		b.garbage = nil
		b.todo = append(b.todo, func() { b.wipe(dirs...) })
	}
	b.unlock()
}
