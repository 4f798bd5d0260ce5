package memtable

import (
	"bytes"
	"sync/atomic"
)

// maxHeight fits 4^12 = 16 million keys with a branching of 4.
const maxHeight = 12

// splice remembers where the last insertion went: for each level the last node before it. Sorted
// loads then start next to where they end.
type splice struct {
	before [maxHeight]ref
	valid  bool
}

// less reports whether the node behind l comes before key. The hint decides alone unless it is
// equal or of another generation.
func (t *Table) less(l link, key []byte, hint uint32, generation uint8) bool {
	if generation != 0 && l.generation() == generation {
		if h := l.hint(); h != hint {
			return h < hint
		}
	}
	return bytes.Compare(t.arena.nodeKey(l.to()), key) < 0
}

// findGE returns the first node whose key is not less than key, or 0, and the last node before it
// (the head if there is none). Safe for readers.
func (t *Table) findGE(key []byte) (at, before ref) {
	h := t.hints.Load()
	hint := h.of(key)
	x := t.head
	for level := int(t.height.Load()) - 1; level >= 0; level-- {
		for {
			l := t.arena.link(x, level)
			if l.to() == 0 || !t.less(l, key, hint, h.generation) {
				at = l.to()
				break
			}
			x = l.to()
		}
	}
	return at, x
}

// findLast returns the last node, or the head of an empty table.
func (t *Table) findLast() ref {
	x := t.head
	for level := int(t.height.Load()) - 1; level >= 0; level-- {
		for l := t.arena.link(x, level); l.to() != 0; l = t.arena.link(x, level) {
			x = l.to()
		}
	}
	return x
}

// findSplice is findGE for the writer: it fills t.splice and renews old hints on its way.
func (t *Table) findSplice(key []byte) ref {
	h := t.hints.Load()
	hint := h.of(key)
	height := int(t.height.Load())
	top := t.spliceStart(key, hint, h, height)
	x := t.head
	if top < height {
		x = t.splice.before[top]
	}
	var at ref
	for level := top - 1; level >= 0; level-- {
		for {
			l := t.arena.link(x, level)
			if l.to() == 0 {
				at = 0
				break
			}
			if l.generation() != h.generation {
				l = makeLink(l.to(), h.generation, h.of(t.arena.nodeKey(l.to())))
				t.arena.setLink(x, level, l)
			}
			if !t.less(l, key, hint, h.generation) {
				at = l.to()
				break
			}
			x = l.to()
		}
		t.splice.before[level] = x
	}
	if top == 0 {
		at = t.arena.link(t.splice.before[0], 0).to()
	}
	for level := height; level < maxHeight; level++ {
		t.splice.before[level] = t.head
	}
	t.splice.valid = true
	return at
}

// spliceStart returns the lowest level whose remembered neighbours still enclose key; the search
// only has to be redone below it. height means: from the top.
func (t *Table) spliceStart(key []byte, hint uint32, h *hinting, height int) int {
	if !t.splice.valid {
		return height
	}
	// In random order climbing further costs more than it saves.
	for level := range min(height, 3) {
		x := t.splice.before[level]
		if x != t.head && bytes.Compare(t.arena.nodeKey(x), key) >= 0 {
			continue
		}
		if l := t.arena.link(x, level); l.to() == 0 || !t.less(l, key, hint, h.generation) {
			return level
		}
	}
	return height
}

// newNode allocates a node for key with its first version behind it and links it between the splice
// and next. It returns 0 if the arena is full.
func (t *Table) newNode(key []byte, hash uint64, trailer uint64, value []byte, next ref) ref {
	height := t.randomHeight()
	nodeBytes := nodeLinks + height*linkBytes + len(key)
	nodeBytes = (nodeBytes + 7) &^ 7
	a := &t.arena
	n, ok := a.alloc(nodeBytes + versValue + len(value))
	if !ok {
		return 0
	}
	v := n + ref(nodeBytes/8)
	t.fillVersion(v, trailer, value, 0)

	*a.u32(n, nodeKeyLen) = uint32(len(key))
	*a.u32(n, nodeHash) = uint32(hash >> 32)
	*a.u32(n, nodeHeight) = uint32(height)
	atomic.StoreUint32(a.u32(n, nodeNewest), uint32(v))
	atomic.StoreUint32(a.u32(n, nodeOldest), uint32(v))
	atomic.StoreUint32(a.u32(n, nodeBefore), uint32(t.splice.before[0]))
	copy(a.bytes(n, nodeLinks+height*linkBytes, len(key)), key)

	h := t.hints.Load()
	hint := h.of(key)
	for level := range height {
		a.setLink(n, level, a.link(t.splice.before[level], level))
	}
	if height > int(t.height.Load()) {
		t.height.Store(int32(height))
	}
	// Bottom up: who finds the node on a level can go down from it.
	for level := range height {
		a.setLink(t.splice.before[level], level, makeLink(n, h.generation, hint))
		t.splice.before[level] = n
	}
	if next != 0 {
		atomic.StoreUint32(a.u32(next, nodeBefore), uint32(n))
	}
	t.index(n, hash)
	t.keys++
	t.learn()
	return n
}

// learn takes the common prefix of the smallest and the largest key as the prefix of all, at a few
// sizes, unless it is the one already in use.
func (t *Table) learn() {
	h := t.hints.Load()
	if t.learned >= maxGeneration || t.keys < learnAt[t.learned] {
		return
	}
	t.learned++
	first, last := t.arena.link(t.head, 0).to(), t.findLast()
	prefix := commonPrefix(t.arena.nodeKey(first), t.arena.nodeKey(last))
	if h.generation != 0 && bytes.Equal(prefix, h.prefix) {
		return
	}
	t.hints.Store(&hinting{generation: h.generation + 1, prefix: bytes.Clone(prefix)})
}

func (t *Table) randomHeight() int {
	// xorshift64: the heights need no more.
	t.rand ^= t.rand << 13
	t.rand ^= t.rand >> 7
	t.rand ^= t.rand << 17
	height := 1
	for r := t.rand; height < maxHeight && r&3 == 0; r >>= 2 {
		height++
	}
	return height
}
