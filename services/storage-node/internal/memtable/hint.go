package memtable

import (
	"bytes"
	"encoding/binary"
	"math"
)

// link is one forward pointer of a tower together with what is needed to compare the node it leads
// to without touching that node: reference (30 bits) ‖ generation (2 bits) ‖ hint (32 bits).
type link uint64

func makeLink(to ref, generation uint8, hint uint32) link {
	return link(uint64(to)<<34 | uint64(generation&3)<<32 | uint64(hint))
}

func (l link) to() ref           { return ref(l >> 34) }
func (l link) generation() uint8 { return uint8(l>>32) & 3 }
func (l link) hint() uint32      { return uint32(l) }

// hinting maps keys to 32 bits in an order-preserving way: the four bytes after a prefix, 0 for
// keys before all keys with that prefix, the maximum for those after. The prefix is what the keys
// of this table had in common when it was learned (tenant, separator, and whatever the
// application puts in front of its own keys), so the four bytes fall where keys really differ.
//
// A table learns at most maxGeneration times, and links made under another generation are simply
// compared in full, so learning needs neither a pause nor agreement with the readers.
type hinting struct {
	generation uint8 // 1…maxGeneration; 0: nothing learned yet, no hints
	prefix     []byte
}

const maxGeneration = 3

// learnAt says after how many distinct keys each generation is learned.
var learnAt = [maxGeneration]int{64, 2 << 10, 64 << 10}

func (h *hinting) of(key []byte) uint32 {
	if h.generation == 0 {
		return 0
	}
	n := len(h.prefix)
	if len(key) >= n+4 && string(key[:n]) == string(h.prefix) {
		return binary.BigEndian.Uint32(key[n:])
	}
	if !bytes.HasPrefix(key, h.prefix) {
		if bytes.Compare(key, h.prefix) < 0 {
			return 0
		}
		return math.MaxUint32
	}
	var tail [4]byte
	copy(tail[:], key[n:])
	return binary.BigEndian.Uint32(tail[:])
}

func commonPrefix(a, b []byte) []byte {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return a[:i]
		}
	}
	return a[:n]
}
