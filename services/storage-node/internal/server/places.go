package server

import (
	"context"
	"slices"
	"sync"
)

// places bounds what is in work at once, over all who take some. Who finds none waits; those who wait are
// served in their order, so that one who takes many is not overtaken for ever.
type places struct {
	all int

	mu      sync.Mutex
	taken   int
	waiting []*placesWaiter
}

type placesWaiter struct {
	n    int
	done chan struct{} // closed when they are taken
}

func newPlaces(all int) *places { return &places{all: all} }

// take takes n places, or all for a larger n, and returns how many. It waits until there are so many, or
// ctx ends.
func (p *places) take(ctx context.Context, n int) (int, error) {
	n, ok := p.try(n)
	if ok {
		return n, nil
	}
	w := &placesWaiter{n: n, done: make(chan struct{})}
	p.mu.Lock()
	p.waiting = append(p.waiting, w)
	p.serveLocked() // there may be some since
	p.mu.Unlock()
	select {
	case <-w.done:
		return n, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.waiting, w); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	} else {
		p.taken -= n // served meanwhile
	}
	p.serveLocked()
	return 0, ctx.Err()
}

// try is take that does not wait. It returns how many it took, or would have.
func (p *places) try(n int) (int, bool) {
	n = min(n, p.all)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) > 0 || p.taken+n > p.all {
		return n, false
	}
	p.taken += n
	return n, true
}

// give gives n places back.
func (p *places) give(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken -= n
	p.serveLocked()
}

// use returns how many places are taken, how many wait for some, and how many there are.
func (p *places) use() (taken, waiting, all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken, len(p.waiting), p.all
}

func (p *places) serveLocked() {
	for len(p.waiting) > 0 && p.taken+p.waiting[0].n <= p.all {
		p.taken += p.waiting[0].n
		close(p.waiting[0].done)
		p.waiting = slices.Delete(p.waiting, 0, 1)
	}
}
