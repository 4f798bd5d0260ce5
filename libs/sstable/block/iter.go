package block

import (
	"encoding/binary"

	"github.com/pairdb/pairdb/libs/ikey"
)

// Iter walks a block in both directions. Init prepares it, also again for another block; it keeps
// its buffers. It has the positioning methods of iterator.Iterator, without Close.
type Iter struct {
	view
	off, next int // the entry it stands on, and where the next one starts
	user      []byte
	buf       []byte // memory of keys that had to be put together
	inBuf     bool   // user is in buf
	trailer   ikey.Trailer
	value     []byte
	valid     bool
	err       error

	// The entries of the current restart interval before the one it stands on, so that walking
	// backward decodes each interval once.
	back     []backEntry
	backKeys []byte
}

type backEntry struct {
	off                int
	keyStart, keyEnd   int // in backKeys
	valStart, valueEnd int // in data; valueEnd is the next entry's offset
	trailer            ikey.Trailer
}

// Init points the iterator at a block; it stands on no entry. Keys and values alias b.
func (it *Iter) Init(b []byte) error {
	v, ok := parse(b)
	it.view = v
	it.user, it.value = nil, nil
	it.valid, it.inBuf = false, false
	it.off, it.next = 0, 0
	it.back = it.back[:0]
	it.err = nil
	if !ok {
		it.err = ErrMalformed
	}
	return it.err
}

// Release drops the references to the block and keeps the buffers, unless they are large.
func (it *Iter) Release() {
	const maxKeptBytes = 64 << 10 // a pooled iterator must not pin the memory of one odd key
	buf, back, keys := it.buf[:0], it.back[:0], it.backKeys[:0]
	*it = Iter{}
	if cap(buf) <= maxKeptBytes {
		it.buf = buf
	}
	if cap(keys) <= maxKeptBytes {
		it.back, it.backKeys = back, keys
	}
}

// Valid reports whether the iterator stands on an entry.
func (it *Iter) Valid() bool { return it.valid }

// Key returns the key of the entry, valid until the next positioning call.
func (it *Iter) Key() ikey.Key { return ikey.Key{User: it.user, Trailer: it.trailer} }

// Value returns the value of the entry; it aliases the block.
func (it *Iter) Value() []byte { return it.value }

// Err returns ErrMalformed if the block is none.
func (it *Iter) Err() error { return it.err }

func (it *Iter) fail() bool {
	it.valid = false
	it.err = ErrMalformed
	return false
}

// read decodes the entry at it.next, using it.user as the key before it.
func (it *Iter) read() bool {
	if it.next >= len(it.data) {
		it.valid = false
		return false
	}
	e, ok := it.at(it.next)
	if !ok || e.shared > len(it.user) {
		return it.fail()
	}
	if e.shared == 0 {
		it.user = it.data[e.keyStart:e.keyEnd:e.keyEnd]
		it.inBuf = false
	} else {
		if it.inBuf {
			it.buf = it.buf[:e.shared]
		} else {
			it.buf = append(it.buf[:0], it.user[:e.shared]...)
		}
		it.buf = append(it.buf, it.data[e.keyStart:e.keyEnd]...)
		it.user = it.buf
		it.inBuf = true
	}
	it.trailer = it.view.trailer(e)
	it.value = it.data[e.valStart:e.end:e.end]
	it.off, it.next = it.next, e.end
	it.valid = true
	return true
}

// start makes read begin at an offset that is a restart or the end.
func (it *Iter) start(off int) {
	it.back = it.back[:0]
	it.user, it.inBuf = nil, false
	it.next = off
}

// First moves to the smallest entry.
func (it *Iter) First() bool {
	if it.err != nil {
		return false
	}
	it.start(0)
	return it.read()
}

// Next moves one entry forward.
func (it *Iter) Next() bool {
	if !it.valid {
		return false
	}
	it.back = it.back[:0]
	return it.read()
}

// SeekGE moves to the smallest entry that is not less than k.
func (it *Iter) SeekGE(k ikey.Key) bool {
	it.valid = false
	if it.err != nil || it.count == 0 {
		return false
	}
	i, ok := it.floor(k)
	if !ok {
		return it.fail()
	}
	off, _ := it.restart(i)
	it.start(off)
	for it.read() {
		if ikey.Compare(it.Key(), k) >= 0 {
			return true
		}
	}
	return false
}

// SeekLT moves to the largest entry that is less than k.
func (it *Iter) SeekLT(k ikey.Key) bool {
	if it.SeekGE(k) {
		return it.Prev()
	}
	if it.err != nil {
		return false
	}
	return it.Last()
}

// Last moves to the largest entry.
func (it *Iter) Last() bool {
	if it.err != nil {
		return false
	}
	it.start(len(it.data))
	it.off = len(it.data)
	return it.prev()
}

// Prev moves one entry backward.
func (it *Iter) Prev() bool {
	if !it.valid {
		return false
	}
	return it.prev()
}

// prev moves to the entry that ends where the entry at it.off starts.
func (it *Iter) prev() bool {
	if len(it.back) == 0 && !it.fillBack() {
		it.valid = false
		return false
	}
	b := it.back[len(it.back)-1]
	it.back = it.back[:len(it.back)-1]
	it.user = it.backKeys[b.keyStart:b.keyEnd:b.keyEnd]
	it.inBuf = false
	it.trailer = b.trailer
	it.value = it.data[b.valStart:b.valueEnd:b.valueEnd]
	it.off, it.next = b.off, b.valueEnd
	it.valid = true
	return true
}

// fillBack decodes the entries of the restart interval that ends at it.off. It reports false at
// the start of the block and for a malformed one.
func (it *Iter) fillBack() bool {
	end := it.off
	if end == 0 {
		return false
	}
	lo, hi := 0, it.count // restarts below lo start before end
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if off := int(binary.LittleEndian.Uint32(it.restarts[4*mid:])); off < end {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return it.fail()
	}
	off, ok := it.restart(lo - 1)
	if !ok {
		return it.fail()
	}
	// The current key may live in backKeys; nothing reads it any more.
	it.backKeys = it.backKeys[:0]
	prev := 0 // start of the key before, in backKeys
	for off < end {
		e, ok := it.at(off)
		if !ok || e.shared > len(it.backKeys)-prev {
			return it.fail()
		}
		start := len(it.backKeys)
		it.backKeys = append(it.backKeys, it.backKeys[prev:prev+e.shared]...)
		it.backKeys = append(it.backKeys, it.data[e.keyStart:e.keyEnd]...)
		it.back = append(it.back, backEntry{off: off, keyStart: start, keyEnd: len(it.backKeys),
			valStart: e.valStart, valueEnd: e.end, trailer: it.view.trailer(e)})
		prev, off = start, e.end
	}
	if off != end {
		return it.fail()
	}
	return true
}
