// Package block is the sorted, prefix-compressed block that tables are made of, for data and index
// alike. It never reads files, compresses or checks checksums; that is the table's work.
//
// Layout of a block, all numbers little endian:
//
//	entries   back to back, ascending in the order of ikey.Compare
//	restarts  u32 each: offset of an entry that is stored with its whole key
//	count     u32: number of restarts
//
// An entry:
//
//	shared    uvarint: bytes of the engine key that it has in common with the entry before it
//	unshared  uvarint: bytes of the engine key that follow
//	length    uvarint: bytes of the value
//	key       the unshared bytes
//	trailer   8 bytes, sequence and kind (ikey.Trailer)
//	value
//
// shared is the whole common prefix, but 0 at a restart. A point search relies on that: it compares
// without putting keys together.
package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/pairdb/pairdb/libs/ikey"
)

// ErrMalformed says that bytes are not a block.
var ErrMalformed = errors.New("malformed block")

// entryOverheadBytes bounds what an entry needs beside its key and value: three uvarints of at most
// five bytes and the trailer.
const entryOverheadBytes = 3*5 + ikey.TrailerLen

// Writer builds a block. The zero value with a RestartInterval is ready.
type Writer struct {
	// RestartInterval is how many entries share one restart; 0 means 16.
	RestartInterval int

	buf      []byte
	restarts []uint32
	since    int // entries since the last restart
	entries  int
	last     []byte // engine key of the last entry
	trailer  ikey.Trailer
}

// Reset empties the writer and keeps its memory. Last still returns the key that was added last.
func (w *Writer) Reset() {
	w.buf = w.buf[:0]
	w.restarts = w.restarts[:0]
	w.since, w.entries = 0, 0
}

// Add appends an entry. The caller adds in ascending order; the block keeps no reference to k.User
// or value.
func (w *Writer) Add(k ikey.Key, value []byte) {
	interval := w.RestartInterval
	if interval == 0 {
		interval = 16
	}
	shared := 0
	if w.entries == 0 || w.since >= interval {
		w.restarts = append(w.restarts, uint32(len(w.buf)))
		w.since = 0
	} else {
		shared = commonPrefix(w.last, k.User)
	}
	w.buf = binary.AppendUvarint(w.buf, uint64(shared))
	w.buf = binary.AppendUvarint(w.buf, uint64(len(k.User)-shared))
	w.buf = binary.AppendUvarint(w.buf, uint64(len(value)))
	w.buf = append(w.buf, k.User[shared:]...)
	w.buf = binary.LittleEndian.AppendUint64(w.buf, uint64(k.Trailer))
	w.buf = append(w.buf, value...)
	w.last = append(w.last[:0], k.User...)
	w.trailer = k.Trailer
	w.since++
	w.entries++
}

// Last returns the key that was added last; it is valid until the next Add.
func (w *Writer) Last() ikey.Key { return ikey.Key{User: w.last, Trailer: w.trailer} }

// Entries returns the number of entries since Reset.
func (w *Writer) Entries() int { return w.entries }

// SizeBytes returns how long the block would be if it were finished now.
func (w *Writer) SizeBytes() int { return len(w.buf) + 4*len(w.restarts) + 4 }

// SizeWith bounds how long the block would be with one more entry.
func (w *Writer) SizeWith(k ikey.Key, valueBytes int) int {
	return w.SizeBytes() + entryOverheadBytes + 4 + len(k.User) + valueBytes
}

// Finish returns the block. It is valid until the next call of a method.
func (w *Writer) Finish() []byte {
	for _, r := range w.restarts {
		w.buf = binary.LittleEndian.AppendUint32(w.buf, r)
	}
	w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(len(w.restarts)))
	return w.buf
}

// commonPrefix returns how many leading bytes a and b have in common.
func commonPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)>>3
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

// view is a block split into its parts.
type view struct {
	data     []byte // entries
	restarts []byte // u32 each
	count    int
}

func parse(b []byte) (view, bool) {
	if len(b) < 4 {
		return view{}, false
	}
	count := uint64(binary.LittleEndian.Uint32(b[len(b)-4:]))
	if count*4 > uint64(len(b)-4) {
		return view{}, false
	}
	end := len(b) - 4 - int(count)*4
	if (count == 0) != (end == 0) {
		return view{}, false
	}
	return view{data: b[:end:end], restarts: b[end : len(b)-4], count: int(count)}, true
}

// restart returns the offset of the i-th restart; ok is false if it lies outside.
func (v *view) restart(i int) (off int, ok bool) {
	off = int(binary.LittleEndian.Uint32(v.restarts[4*i:]))
	return off, off < len(v.data)
}

// entry is the place of one entry in a block.
type entry struct {
	shared   int
	keyStart int // unshared bytes of the key
	keyEnd   int // trailer
	valStart int
	end      int
}

// uvarint reads a number that must fit 32 bits.
func uvarint(b []byte, off int) (v uint32, next int, ok bool) {
	if off < len(b) && b[off] < 0x80 {
		return uint32(b[off]), off + 1, true
	}
	if off+1 < len(b) && b[off+1] < 0x80 {
		return uint32(b[off]&0x7f) | uint32(b[off+1])<<7, off + 2, true
	}
	if off >= len(b) {
		return 0, 0, false
	}
	x, n := binary.Uvarint(b[off:])
	if n <= 0 || x > 1<<32-1 {
		return 0, 0, false
	}
	return uint32(x), off + n, true
}

// at finds the parts of the entry that starts at off.
func (v *view) at(off int) (e entry, ok bool) {
	shared, p, ok := uvarint(v.data, off)
	if !ok {
		return e, false
	}
	unshared, p, ok := uvarint(v.data, p)
	if !ok {
		return e, false
	}
	length, p, ok := uvarint(v.data, p)
	if !ok {
		return e, false
	}
	if uint64(unshared)+uint64(length)+ikey.TrailerLen > uint64(len(v.data)-p) {
		return e, false
	}
	e.shared = int(shared)
	e.keyStart = p
	e.keyEnd = p + int(unshared)
	e.valStart = e.keyEnd + ikey.TrailerLen
	e.end = e.valStart + int(length)
	return e, true
}

func (v *view) trailer(e entry) ikey.Trailer {
	return ikey.Trailer(binary.LittleEndian.Uint64(v.data[e.keyEnd:]))
}

// floor returns the index of the last restart whose key is less than k, 0 if there is none.
func (v *view) floor(k ikey.Key) (i int, ok bool) {
	lo, hi := 0, v.count // restarts below lo are less than k, those from hi on are not
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		off, ok := v.restart(mid)
		if !ok {
			return 0, false
		}
		e, ok := v.at(off)
		if !ok || e.shared != 0 {
			return 0, false
		}
		c := bytes.Compare(v.data[e.keyStart:e.keyEnd], k.User)
		if c == 0 && v.trailer(e) > k.Trailer {
			c = -1
		}
		if c < 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return max(lo-1, 0), true
}

// Found is what Seek stands on.
type Found struct {
	// Value aliases the block.
	Value   []byte
	Trailer ikey.Trailer
	// Same reports whether the entry has the engine key that was searched.
	Same bool
}

// Seek finds the smallest entry of block b that is not less than k. It allocates nothing. ok is
// false if all entries are less.
func Seek(b []byte, k ikey.Key) (f Found, ok bool, err error) {
	v, ok := parse(b)
	if !ok {
		return f, false, ErrMalformed
	}
	if v.count == 0 {
		return f, false, nil
	}
	i, ok := v.floor(k)
	if !ok {
		return f, false, ErrMalformed
	}
	off, ok := v.restart(i)
	if !ok {
		return f, false, ErrMalformed
	}
	// match is the length of the common prefix of k.User and the entry before, which is less than
	// k. So an entry that shares more with the one before is less, too; one that shares less is
	// greater, since keys ascend.
	match := 0
	for off < len(v.data) {
		e, ok := v.at(off)
		if !ok {
			return f, false, ErrMalformed
		}
		off = e.end
		if e.shared > match {
			continue
		}
		if e.shared < match && e.shared > 0 {
			return v.found(e, false), true, nil
		}
		suffix, want := v.data[e.keyStart:e.keyEnd], k.User[e.shared:]
		n := commonPrefix(suffix, want)
		match = e.shared + n
		switch {
		case n == len(suffix) && n == len(want):
			if v.trailer(e) <= k.Trailer {
				return v.found(e, true), true, nil
			}
		case n == len(want) || n < len(suffix) && suffix[n] > want[n]:
			return v.found(e, false), true, nil
		}
	}
	return f, false, nil
}

func (v *view) found(e entry, same bool) Found {
	return Found{Value: v.data[e.valStart:e.end:e.end], Trailer: v.trailer(e), Same: same}
}

// Check reports what Seek and Iter do not look at: that keys ascend strictly, that entries share
// all they can, and that restarts are where whole keys are.
func Check(b []byte) error {
	v, ok := parse(b)
	if !ok {
		return ErrMalformed
	}
	var last, user []byte
	var trailer ikey.Trailer
	next := 0 // restart that comes next
	for off := 0; off < len(v.data); {
		e, ok := v.at(off)
		if !ok || e.shared > len(last) {
			return ErrMalformed
		}
		user = append(append(user[:0], last[:e.shared]...), v.data[e.keyStart:e.keyEnd]...)
		atRestart := false
		if next < v.count {
			r, _ := v.restart(next)
			atRestart = r == off
		}
		if off > 0 {
			c := bytes.Compare(last, user)
			if c > 0 || c == 0 && trailer <= v.trailer(e) {
				return fmt.Errorf("%w: keys do not ascend", ErrMalformed)
			}
		}
		if atRestart && e.shared != 0 || !atRestart && (off == 0 || e.shared != commonPrefix(last, user)) {
			return fmt.Errorf("%w: prefix is not shared as it should be", ErrMalformed)
		}
		if atRestart {
			next++
		}
		last, user, trailer = user, last, v.trailer(e)
		off = e.end
	}
	if next != v.count {
		return fmt.Errorf("%w: restart without entry", ErrMalformed)
	}
	return nil
}
