package cache

import "unsafe"

// entry is what a shard needs to know of its entries; K is how they are looked up.
type entry[K any] interface {
	// is reports whether this is the entry of a key with the same hash.
	is(k K) bool
	// drop is called when the entry leaves.
	drop()
}

// core is the policy and the index of one shard; the caller holds the shard's lock. It bounds
// used to capacity.
//
// Entries are slots of one slice, linked into two queues by their numbers. The index is a hash
// table with linear probing, at most half full, whose words hold 32 bits of the hash and a slot.
type core[K any, E any, P interface {
	*E
	entry[K]
}] struct {
	capacity, used, smallUsed int64

	slots []slot[E] // slots[0] is unused: 0 is "none"
	free  uint32    // list of free slots, by next
	index []uint64
	small queue
	main  queue
	ghost ghost
	asked ghost // what admit turned away

	metrics Metrics
}

type slot[E any] struct {
	hash       uint64
	next, prev uint32
	bytes      int64
	freq       uint8
	where      uint8
	e          E
}

const (
	inSmall = 1
	inMain  = 2

	maxFreq  = 3
	maxProbe = 128 // keys chosen to collide are not cached rather than searched for
	minIndex = 16
)

// queue is a doubly linked list of slots: in at the tail, out at the head.
type queue struct {
	head, tail uint32
	count      int
}

func (c *core[K, E, P]) init(capacity int64) {
	c.capacity = capacity
	c.slots = make([]slot[E], 1, minIndex)
	c.index = make([]uint64, minIndex)
	c.ghost.init(minIndex)
	c.asked.init(minIndex)
}

// overhead is what an entry costs beside its own memory: its slot, and its part of index and ghosts
// at their emptiest.
func (c *core[K, E, P]) overhead() int64 { return int64(unsafe.Sizeof(slot[E]{})) + 4*8 + 2*2*8 }

func indexWord(hash uint64, s uint32) uint64 { return hash&^(1<<32-1) | uint64(s) }

// home is where the search for a hash begins.
func (c *core[K, E, P]) home(hash uint64) int { return int(uint32(hash)) & (len(c.index) - 1) }

// find returns the slot of a key, or 0, and its place in the index.
func (c *core[K, E, P]) find(hash uint64, k K) (s uint32, at int) {
	mask := len(c.index) - 1
	at = c.home(hash)
	for range maxProbe {
		w := c.index[at]
		if w == 0 {
			return 0, 0
		}
		if (w^hash)>>32 == 0 {
			s = uint32(w)
			if c.slots[s].hash == hash && P(&c.slots[s].e).is(k) {
				return s, at
			}
		}
		at = (at + 1) & mask
	}
	return 0, 0
}

// touch counts a hit.
func (c *core[K, E, P]) touch(s uint32) {
	if c.slots[s].freq < maxFreq {
		c.slots[s].freq++
	}
}

// admit reports whether an entry is worth its insertion: there is room, or it was asked for before,
// not longer ago than about as many others as there are entries. Most of what is read once is never
// read again; to copy it in, and something else out, costs more than to find it.
func (c *core[K, E, P]) admit(hash uint64, bytes int64) bool {
	n := c.small.count + c.main.count
	if c.used+bytes <= c.capacity || c.ghost.has(hash, n) || c.asked.take(hash, n) {
		return true
	}
	c.asked.add(hash)
	return false
}

// insert makes a slot for an entry of so many bytes that is not there yet, after making room. It
// returns 0 if the entry is not taken. The caller fills slots[s].e.
func (c *core[K, E, P]) insert(hash uint64, bytes int64) uint32 {
	c.makeRoom(bytes)
	if 2*(c.small.count+c.main.count+1) > len(c.index) {
		c.grow()
	}
	s := c.free
	if s != 0 {
		c.free = c.slots[s].next
	} else {
		s = uint32(len(c.slots))
		c.slots = append(c.slots, slot[E]{})
	}
	if !c.place(hash, s) {
		c.slots[s] = slot[E]{next: c.free}
		c.free = s
		return 0
	}
	c.slots[s] = slot[E]{hash: hash, bytes: bytes}
	c.used += bytes
	if c.ghost.take(hash, c.small.count+c.main.count) {
		c.push(&c.main, s, inMain)
	} else {
		c.push(&c.small, s, inSmall)
	}
	c.metrics.Inserts++
	return s
}

// place writes a slot into the index.
func (c *core[K, E, P]) place(hash uint64, s uint32) bool {
	mask := len(c.index) - 1
	at := c.home(hash)
	for range maxProbe {
		if c.index[at] == 0 {
			c.index[at] = indexWord(hash, s)
			return true
		}
		at = (at + 1) & mask
	}
	return false
}

// grow doubles the index. An entry that finds no place in it is dropped.
func (c *core[K, E, P]) grow() {
	old := c.index
	c.index = make([]uint64, 2*len(old))
	c.ghost.init(len(old))
	c.asked.init(len(old))
	for _, w := range old {
		if s := uint32(w); s != 0 && !c.place(c.slots[s].hash, s) {
			c.release(s)
		}
	}
}

// remove takes an entry out; at is its place in the index.
func (c *core[K, E, P]) remove(s uint32, at int) {
	c.unplace(at)
	c.release(s)
}

// unplace empties a place of the index and moves later ones of the same run up, so that no search
// stops early.
func (c *core[K, E, P]) unplace(at int) {
	mask := len(c.index) - 1
	for next := at; ; {
		next = (next + 1) & mask
		w := c.index[next]
		if w == 0 {
			break
		}
		home := c.home(c.slots[uint32(w)].hash)
		// It may move to at if its home is not behind at, cyclically.
		if (next-home)&mask >= (next-at)&mask {
			c.index[at] = w
			at = next
		}
	}
	c.index[at] = 0
}

// release takes an entry off its queue and frees the slot.
func (c *core[K, E, P]) release(s uint32) {
	p := &c.slots[s]
	c.unlink(s)
	c.used -= p.bytes
	P(&p.e).drop()
	*p = slot[E]{next: c.free}
	c.free = s
}

// makeRoom evicts until so many bytes fit. Each round takes an entry from the small queue for good,
// or takes a hit away from one, so it ends.
func (c *core[K, E, P]) makeRoom(bytes int64) {
	for c.used+bytes > c.capacity && c.small.count+c.main.count > 0 {
		if c.small.count > 0 && (c.main.count == 0 || c.smallUsed*10 > c.capacity) {
			c.evictSmall()
		} else {
			c.evictMain()
		}
	}
}

// resize sets the capacity and evicts what no longer fits. Index and slots keep their size: they are a
// small part, and are needed again when the cache grows back.
func (c *core[K, E, P]) resize(capacity int64) {
	c.capacity = capacity
	c.makeRoom(0)
}

func (c *core[K, E, P]) evictSmall() {
	s := c.small.head
	p := &c.slots[s]
	if p.freq > 0 {
		c.unlink(s)
		p.freq = 0
		c.push(&c.main, s, inMain)
		return
	}
	c.ghost.add(p.hash)
	c.evict(s)
}

func (c *core[K, E, P]) evictMain() {
	s := c.main.head
	p := &c.slots[s]
	if p.freq > 0 {
		p.freq--
		c.unlink(s)
		c.push(&c.main, s, inMain)
		return
	}
	c.evict(s)
}

func (c *core[K, E, P]) evict(s uint32) {
	c.unplace(c.indexOf(s))
	c.release(s)
	c.metrics.Evictions++
}

// indexOf returns the place of a slot in the index.
func (c *core[K, E, P]) indexOf(s uint32) int {
	mask := len(c.index) - 1
	at := c.home(c.slots[s].hash)
	for uint32(c.index[at]) != s {
		at = (at + 1) & mask
	}
	return at
}

func (c *core[K, E, P]) push(q *queue, s uint32, where uint8) {
	p := &c.slots[s]
	p.where, p.prev, p.next = where, q.tail, 0
	if q.tail != 0 {
		c.slots[q.tail].next = s
	} else {
		q.head = s
	}
	q.tail = s
	q.count++
	if where == inSmall {
		c.smallUsed += p.bytes
	}
}

func (c *core[K, E, P]) unlink(s uint32) {
	p := &c.slots[s]
	q := &c.small
	if p.where == inMain {
		q = &c.main
	} else {
		c.smallUsed -= p.bytes
	}
	if p.prev != 0 {
		c.slots[p.prev].next = p.next
	} else {
		q.head = p.next
	}
	if p.next != 0 {
		c.slots[p.next].prev = p.prev
	} else {
		q.tail = p.prev
	}
	q.count--
}

func (c *core[K, E, P]) snapshot() Metrics {
	m := c.metrics
	m.Bytes, m.CapacityBytes = c.used, c.capacity
	m.Entries = int64(c.small.count + c.main.count)
	return m
}

// ghost remembers which hashes left the small queue lately: about as many as there are entries.
// A word holds 32 bits of the hash and the time, counted in departures; a collision forgets the
// older one, which costs a hit at most.
type ghost struct {
	words []uint64
	now   uint32
}

func (g *ghost) init(n int) { g.words = make([]uint64, n) }

func (g *ghost) add(hash uint64) {
	g.now++
	g.words[int(uint32(hash))&(len(g.words)-1)] = hash&^(1<<32-1) | uint64(g.now)
}

// word is the place of a hash.
func (g *ghost) word(hash uint64) *uint64 { return &g.words[int(uint32(hash))&(len(g.words)-1)] }

// has reports whether hash is among the last n.
func (g *ghost) has(hash uint64, n int) bool {
	w := *g.word(hash)
	return w != 0 && (w^hash)>>32 == 0 && g.now-uint32(w) < uint32(n)
}

// take is has, and forgets it.
func (g *ghost) take(hash uint64, n int) bool {
	if !g.has(hash, n) {
		return false
	}
	*g.word(hash) = 0
	return true
}
