package hot

import "container/heap"

// sketch counts the most frequent keys: Space-Saving. It is not safe for concurrent use.
type sketch struct {
	capacity int
	total    uint64
	byName   map[string]*counter
	smallest counters
}

// counter is the count of one key.
type counter struct {
	name  string // tenant ‖ 0x00 ‖ key
	count uint64
	over  uint64 // of it, what was taken over from another key
	value int    // bytes, when it was last seen
	place int    // in the heap
}

func newSketch(capacity int) *sketch {
	return &sketch{capacity: capacity, byName: make(map[string]*counter, capacity)}
}

// add counts one operation. It copies name.
func (s *sketch) add(name []byte, value int) {
	s.total++
	c, ok := s.byName[string(name)]
	switch {
	case ok:
	case len(s.smallest) < s.capacity:
		c = &counter{name: string(name)}
		s.byName[c.name] = c
		heap.Push(&s.smallest, c)
	default:
		c = s.smallest[0]
		delete(s.byName, c.name)
		c.name, c.over = string(name), c.count
		s.byName[c.name] = c
	}
	c.count++
	c.value = value
	heap.Fix(&s.smallest, c.place)
}

// floor is the most that a key without a counter can have been seen.
func (s *sketch) floor() uint64 {
	if len(s.smallest) < s.capacity {
		return 0
	}
	return s.smallest[0].count
}

// reset empties the sketch and keeps the map's memory.
func (s *sketch) reset() {
	clear(s.byName)
	clear(s.smallest)
	s.smallest, s.total = s.smallest[:0], 0
}

// counters is a heap with the smallest count first.
type counters []*counter

func (h counters) Len() int           { return len(h) }
func (h counters) Less(i, j int) bool { return h[i].count < h[j].count }
func (h counters) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

func (h *counters) Push(x any) {
	c := x.(*counter)
	c.place = len(*h)
	*h = append(*h, c)
}

func (h *counters) Pop() any {
	old := *h
	c := old[len(old)-1]
	*h = old[:len(old)-1]
	return c
}
