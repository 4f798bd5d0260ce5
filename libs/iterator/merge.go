package iterator

import "github.com/pairdb/pairdb/libs/ikey"

// Merge returns the entries of all iterators in one order. Entries with equal keys come in the
// order of the arguments, none is dropped. The result owns the iterators and closes them. A failure
// of one of them stops the walk, so that its entries are never missing silently.
//
// It is a binary heap that keeps the key of each iterator beside it: as long as the same iterator
// has the smallest key, a step costs one or two comparisons.
func Merge(its ...Iterator) Iterator {
	if len(its) == 1 {
		return its[0]
	}
	m := &merge{all: make([]source, len(its)), heap: make([]*source, 0, len(its))}
	for i, it := range its {
		m.all[i] = source{it: it, index: i}
	}
	return m
}

// source is one of the merged iterators. Between calls, each source but the top stands on its first
// entry behind the top in the direction of the walk.
type source struct {
	key   ikey.Key
	it    Iterator
	index int
}

type merge struct {
	all      []source
	heap     []*source // those that stand on an entry; the first is where the walk stands
	backward bool
	closed   bool
	err      error
}

// less reports whether a comes before b in the direction of the walk.
func (m *merge) less(a, b *source) bool {
	c := ikey.Compare(a.key, b.key)
	if c == 0 {
		c = a.index - b.index
	}
	return (c < 0) != m.backward
}

// down restores the heap when element i may be too large.
func (m *merge) down(i int) {
	h := m.heap
	for {
		child := 2*i + 1
		if child >= len(h) {
			return
		}
		if child+1 < len(h) && m.less(h[child+1], h[child]) {
			child++
		}
		if !m.less(h[child], h[i]) {
			return
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
}

// position moves every iterator with move and builds the heap.
func (m *merge) position(backward bool, move func(s *source) bool) bool {
	m.backward, m.err = backward, nil
	m.heap = m.heap[:0]
	for i := range m.all {
		s := &m.all[i]
		if move(s) {
			s.key = s.it.Key()
			m.heap = append(m.heap, s)
		} else if err := s.it.Err(); err != nil {
			return m.fail(err)
		}
	}
	for i := len(m.heap)/2 - 1; i >= 0; i-- {
		m.down(i)
	}
	return len(m.heap) > 0
}

func (m *merge) fail(err error) bool {
	m.err = err
	m.heap = m.heap[:0]
	return false
}

func (m *merge) First() bool {
	return m.position(false, func(s *source) bool { return s.it.First() })
}

func (m *merge) Last() bool {
	return m.position(true, func(s *source) bool { return s.it.Last() })
}

func (m *merge) SeekGE(k ikey.Key) bool {
	return m.position(false, func(s *source) bool { return s.it.SeekGE(k) })
}

func (m *merge) SeekLT(k ikey.Key) bool {
	return m.position(true, func(s *source) bool { return s.it.SeekLT(k) })
}

// advance takes over the result of moving the top.
func (m *merge) advance(ok bool) bool {
	top := m.heap[0]
	if ok {
		top.key = top.it.Key()
	} else {
		if err := top.it.Err(); err != nil {
			return m.fail(err)
		}
		n := len(m.heap) - 1
		m.heap[0] = m.heap[n]
		m.heap = m.heap[:n]
	}
	m.down(0)
	return len(m.heap) > 0
}

func (m *merge) Next() bool {
	if len(m.heap) == 0 {
		return false
	}
	if m.backward {
		return m.turn()
	}
	return m.advance(m.heap[0].it.Next())
}

func (m *merge) Prev() bool {
	if len(m.heap) == 0 {
		return false
	}
	if !m.backward {
		return m.turn()
	}
	return m.advance(m.heap[0].it.Prev())
}

// turn changes the direction and moves one entry. The iterators stand on both sides of the old
// direction's front: each moves over it, the exhausted ones return from their end.
func (m *merge) turn() bool {
	step, fromEnd := Iterator.Prev, Iterator.Last
	if m.backward {
		step, fromEnd = Iterator.Next, Iterator.First
	}
	return m.position(!m.backward, func(s *source) bool {
		if s.it.Valid() {
			return step(s.it)
		}
		return fromEnd(s.it)
	})
}

func (m *merge) Valid() bool { return len(m.heap) > 0 }

func (m *merge) Key() ikey.Key { return m.heap[0].key }

func (m *merge) Value() []byte {
	top := m.heap[0].it
	v := top.Value()
	if v == nil {
		if err := top.Err(); err != nil {
			m.fail(err)
		}
	}
	return v
}

// Source returns the iterator whose entry it stands on: one of those that were merged, or it itself
// if it is not a merge. Nobody moves it.
func Source(it Iterator) Iterator {
	if m, ok := it.(*merge); ok {
		return m.heap[0].it
	}
	return it
}

func (m *merge) Err() error { return m.err }

func (m *merge) Close() error {
	if m.closed {
		return m.err
	}
	m.closed = true
	m.heap = nil
	for i := range m.all {
		if err := m.all[i].it.Close(); err != nil && m.err == nil {
			m.err = err
		}
	}
	return m.err
}
