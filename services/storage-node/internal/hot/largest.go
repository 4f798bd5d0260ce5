package hot

import "container/heap"

// largest keeps the keys with the largest values. It is not safe for concurrent use.
type largest struct {
	capacity int
	byName   map[string]*sized
	smallest sizes
}

// sized is a key and the size of its value when it was last seen.
type sized struct {
	name  string
	bytes int
	place int
}

func newLargest(capacity int) *largest {
	return &largest{capacity: capacity, byName: make(map[string]*sized, capacity)}
}

// add takes note of the size of a value. It copies name. A key whose value became smaller keeps its
// place with the smaller size: another one takes it when it comes.
func (l *largest) add(name []byte, bytes int) {
	s, ok := l.byName[string(name)]
	switch {
	case ok:
	case bytes == 0:
		return
	case len(l.smallest) < l.capacity:
		s = &sized{name: string(name)}
		l.byName[s.name] = s
		heap.Push(&l.smallest, s)
	case l.smallest[0].bytes >= bytes:
		return
	default:
		s = l.smallest[0]
		delete(l.byName, s.name)
		s.name = string(name)
		l.byName[s.name] = s
	}
	s.bytes = bytes
	heap.Fix(&l.smallest, s.place)
}

func (l *largest) reset() {
	clear(l.byName)
	clear(l.smallest)
	l.smallest = l.smallest[:0]
}

// sizes is a heap with the smallest value first.
type sizes []*sized

func (h sizes) Len() int           { return len(h) }
func (h sizes) Less(i, j int) bool { return h[i].bytes < h[j].bytes }
func (h sizes) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

func (h *sizes) Push(x any) {
	s := x.(*sized)
	s.place = len(*h)
	*h = append(*h, s)
}

func (h *sizes) Pop() any {
	old := *h
	s := old[len(old)-1]
	*h = old[:len(old)-1]
	return s
}
