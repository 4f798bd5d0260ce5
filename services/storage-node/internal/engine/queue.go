package engine

import (
	"sync"

	"github.com/pairdb/pairdb/libs/ikey"
)

// commitQueue is where batches wait to be committed. The first one in an idle queue leads: it takes
// itself and those behind it as a group, commits them, hands the lead to the next in line, and only
// then wakes its group. So there is always at most one leader, no goroutine serves strangers
// for longer than its own group, and the next group forms while one is being written.
type commitQueue struct {
	mu         sync.Mutex
	head, tail *request
	length     int
	leading    bool
}

// request is a place in the queue: a batch, or something that must run between groups.
type request struct {
	batch *Batch
	// alone runs as the leader, with nobody else in the group.
	alone func() error

	next  *request
	group []*request // when it leads
	// The outcome, written by the leader before it signals.
	last ikey.Seq
	err  error
	// signal wakes the owner: true to lead, false when the outcome is there.
	signal chan bool
}

var requests = sync.Pool{New: func() any { return &request{signal: make(chan bool, 1)} }}

func newRequest() *request { return requests.Get().(*request) }

func (r *request) recycle() {
	clear(r.group)
	*r = request{signal: r.signal, group: r.group[:0]}
	requests.Put(r)
}

// enqueue returns when the outcome of r is there.
func (e *Engine) enqueue(r *request) {
	q := &e.commit
	q.mu.Lock()
	if q.tail == nil {
		q.head = r
	} else {
		q.tail.next = r
	}
	q.tail = r
	q.length++
	lead := !q.leading
	q.leading = true
	q.mu.Unlock()
	if !lead && !<-r.signal {
		return
	}
	e.lead(r)
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

// lead commits the group that begins with own, which is the head of the queue.
func (e *Engine) lead(own *request) {
	e.takeGroup(own)
	group := own.group
	if own.alone != nil {
		own.err = own.alone()
	} else {
		e.commitGroup(group)
	}
	e.passLead()
	for _, r := range group {
		if r != own {
			r.signal <- false
		}
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
}

// passLead makes the next in line the leader.
func (e *Engine) passLead() {
	q := &e.commit
	q.mu.Lock()
	next := q.head
	if next == nil {
		q.leading = false
	}
	q.mu.Unlock()
	if next != nil {
		next.signal <- true
	}
}
