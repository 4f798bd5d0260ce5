package engine

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// commitQueue is where batches wait to be committed. The first one in an idle queue leads: it takes
// itself and those behind it as a group, commits them, hands the lead to the next in line, and only
// then wakes its group. So there is always at most one leader, no goroutine serves strangers
// for longer than its own group, and the next group forms while one is being written.
//
// A batch whose owner waits until it is durable gains nothing from being written while a sync runs:
// the next sync cannot begin earlier. So such batches are held until it ends, and become one group,
// with one write and one wake-up each.
type commitQueue struct {
	mu         sync.Mutex
	head, tail *request
	length     int
	urgent     int // of them, those that are not durable: they are never held
	leading    bool
	hold       bool   // a sync runs
	groups     uint64 // that were taken
	// woken is how many were woken since the last group: they tend to write again at once.
	woken atomic.Int64
}

// turn is what a waiting goroutine is told.
type turn uint8

const (
	turnDone   turn = iota // the outcome is there
	turnLead               // lead the queue
	turnSync               // sync the log, for everybody
	turnApply              // apply the frame that was logged last, as the leader
	turnFailed             // a sync failed
)

// request is a place in the queue: a batch, or something that must run between groups.
type request struct {
	// waiter wakes the owner; its seq is the outcome, written by the leader before it signals, and so
	// is err.
	waiter
	err error

	batch *Batch
	// durable: the owner is woken when the batch is durable, not already when it is applied.
	durable bool
	// alone runs as the leader, with nobody else in the group.
	alone func() error

	next  *request
	group []*request // when it leads
}

var requests = sync.Pool{New: func() any { return &request{waiter: newWaiter()} }}

func newRequest() *request { return requests.Get().(*request) }

func (r *request) recycle() {
	clear(r.group)
	*r = request{waiter: waiter{signal: r.signal}, group: r.group[:0]}
	requests.Put(r)
}

// enqueue returns when the outcome of r is there.
func (e *Engine) enqueue(r *request) {
	switch e.wait(r) {
	case turnLead:
		syncs := e.lead(r)
		if r.durable && r.err == nil {
			r.err = e.waitTurn(&r.waiter, syncs)
		}
	case turnApply:
		e.applyGroup()
		e.endLead(r, r.group)
		r.err = e.waitTurn(&r.waiter, false)
	case turnSync:
		r.err = e.waitTurn(&r.waiter, true)
	case turnFailed:
		r.err = e.poisonErr()
	}
}

// wait puts r into the queue and returns its turn.
func (e *Engine) wait(r *request) turn {
	q := &e.commit
	q.mu.Lock()
	if q.tail == nil {
		q.head = r
	} else {
		q.tail.next = r
	}
	q.tail = r
	q.length++
	if !r.durable {
		q.urgent++
	}
	leader := q.electLocked()
	q.mu.Unlock()
	if leader == r {
		return turnLead
	}
	if leader != nil {
		leader.signal <- turnLead
	}
	return <-r.signal
}

// electLocked returns who has to lead now, if there was no leader and there is need for one.
func (q *commitQueue) electLocked() *request {
	if q.leading || q.head == nil || q.hold && q.urgent == 0 {
		return nil
	}
	q.leading = true
	return q.head
}

// runAlone runs f as the leader: nothing is appended, applied or sequenced meanwhile.
func (e *Engine) runAlone(f func() error) error {
	r := newRequest()
	r.alone = f
	e.enqueue(r)
	err := r.err
	r.recycle()
	return err
}

// lead commits the group that begins with own, which is the head of the queue. It reports whether own
// has to sync now.
func (e *Engine) lead(own *request) (syncs bool) {
	if own.durable && !e.opts.NoHeldGroups {
		e.gather()
	}
	e.takeGroup(own)
	if own.alone != nil {
		own.err = own.alone()
		e.endLead(own, own.group)
		return false
	}
	logged := e.logGroup(own.group)
	// From here on members that are durable may be woken, and gone, as soon as they are applied.
	others, syncs, helper := e.awaitSync(own)
	if helper != nil {
		e.holdQueue()
		own.group, helper.group = helper.group, others
		helper.signal <- turnApply
		return true
	}
	if logged {
		e.applyGroup()
	}
	if syncs {
		e.holdQueue()
	}
	e.endLead(own, others)
	return syncs
}

// endLead hands the lead on and wakes those of the group who wait for nothing else. It runs as the
// leader, own.
func (e *Engine) endLead(own *request, group []*request) {
	e.lap(group, stages.Memtable)
	e.passLead()
	for _, r := range group {
		if r != own {
			r.signal <- turnDone
		}
	}
}

// gatherYields is how often the leader lets others run without anybody joining it: a few microseconds
// while another processor wakes up and runs them, a tenth of a sync.
const gatherYields = 10

// gather lets those join the group who were woken by the sync that ended just now: they are runnable,
// and each of them that misses this group waits for the sync of the next.
func (e *Engine) gather() {
	q := &e.commit
	q.mu.Lock()
	n := q.length
	q.mu.Unlock()
	expected := n + int(q.woken.Swap(0))
	for idle := 0; n < expected && idle < gatherYields; idle++ {
		runtime.Gosched()
		q.mu.Lock()
		if q.length > n {
			n, idle = q.length, -1
		}
		q.mu.Unlock()
	}
}

// takeGroup takes own, which is the head of the queue, and what may be committed with it.
func (e *Engine) takeGroup(own *request) {
	q := &e.commit
	q.mu.Lock()
	defer q.mu.Unlock()
	own.group = append(own.group, own)
	last := own
	if own.alone == nil {
		bytes := len(own.batch.ops)
		for r := own.next; r != nil && r.alone == nil; r = r.next {
			if bytes += len(r.batch.ops); bytes > e.opts.MaxGroupBytes {
				break
			}
			own.group = append(own.group, r)
			last = r
		}
	}
	q.head, last.next = last.next, nil
	if q.head == nil {
		q.tail = nil
	}
	q.length -= len(own.group)
	q.groups++
	for _, r := range own.group {
		if !r.durable {
			q.urgent--
		}
	}
}

// passLead makes the next in line the leader, unless it may wait for the end of the sync.
func (e *Engine) passLead() {
	q := &e.commit
	q.mu.Lock()
	q.leading = false
	next := q.electLocked()
	q.mu.Unlock()
	if next != nil {
		next.signal <- turnLead
	}
}

// holdQueue holds durable batches until releaseQueue.
func (e *Engine) holdQueue() {
	if e.opts.NoHeldGroups {
		return
	}
	q := &e.commit
	q.mu.Lock()
	q.hold = true
	q.mu.Unlock()
}

// releaseQueue lets the queue go on when a sync has ended.
func (e *Engine) releaseQueue() (next *request) {
	q := &e.commit
	q.mu.Lock()
	q.hold = false
	next = q.electLocked()
	q.mu.Unlock()
	return next
}
