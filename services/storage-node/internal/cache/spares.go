package cache

import "math/bits"

// spares keeps the memory of rows that left for those that come, in classes of size, so that a full
// cache makes no garbage. It holds at most max bytes.
type spares struct {
	classes    [64][][]byte
	bytes, max int64
}

// roundUp returns the size that a row of n bytes gets: four classes for each power of two from 64
// bytes on, so at most a fifth is wasted.
func roundUp(n int) int {
	if n <= 64 {
		return 64
	}
	step := 1 << (bits.Len(uint(n-1)) - 3)
	return (n + step - 1) &^ (step - 1)
}

// class numbers the sizes that roundUp returns.
func class(size int) int {
	if size <= 64 {
		return 0
	}
	l := bits.Len(uint(size - 1))
	return min((l-7)*4+(size-1)>>(l-3)-3, 63)
}

func (s *spares) get(n int) []byte {
	size := roundUp(n)
	list := &s.classes[class(size)]
	if last := len(*list) - 1; last >= 0 && cap((*list)[last]) == size {
		b := (*list)[last]
		(*list)[last] = nil
		*list = (*list)[:last]
		s.bytes -= int64(size)
		return b[:0]
	}
	return make([]byte, 0, size)
}

// setMax changes max, and lets go of everything if it is less.
func (s *spares) setMax(n int64) {
	if n < s.max {
		s.classes, s.bytes = [64][][]byte{}, 0
	}
	s.max = n
}

func (s *spares) put(b []byte) {
	if s.bytes+int64(cap(b)) > s.max {
		return
	}
	list := &s.classes[class(cap(b))]
	*list = append(*list, b)
	s.bytes += int64(cap(b))
}
