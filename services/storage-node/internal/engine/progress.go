package engine

// Progress is whether writes move. A process whose disk hangs answers everything but them.
type Progress struct {
	// Waiting counts batches and syncs that are not over.
	Waiting int
	// Steps rises whenever one of them moves: a group is taken, a sync ends, a flush that writers may
	// wait for writes entries.
	Steps uint64
}

// Progress returns how far writes are. Two looks with somebody waiting and the same Steps, seconds
// apart, are a disk that hangs.
func (e *Engine) Progress() Progress {
	p := Progress{Steps: e.stats.flushSteps.Load()}
	q := &e.commit
	q.mu.Lock()
	p.Waiting, p.Steps = q.length, p.Steps+q.groups
	if q.leading {
		p.Waiting++
	}
	q.mu.Unlock()
	d := &e.durable
	d.mu.Lock()
	p.Waiting, p.Steps = p.Waiting+len(d.waiting), p.Steps+d.ended
	if d.syncing {
		p.Waiting++
	}
	d.mu.Unlock()
	return p
}
