package engine

// hashSet is a set of hashes: open addressing, kept from one group to the next. A false "has" costs
// a writer one more read, so equal hashes of different keys are no harm.
type hashSet struct {
	slots []uint64 // 0: empty
	count int
}

func (s *hashSet) reset() {
	if s.count > 0 {
		if len(s.slots) > 1<<16 {
			s.slots = nil // one huge group must not make every later one clear its memory
		}
		clear(s.slots)
		s.count = 0
	}
}

func (s *hashSet) add(h uint64) {
	if 2*(s.count+1) > len(s.slots) {
		s.grow()
	}
	if s.place(h) {
		s.count++
	}
}

func (s *hashSet) grow() {
	old := s.slots
	s.slots = make([]uint64, max(64, 2*len(old)))
	for _, h := range old {
		if h != 0 {
			s.place(h)
		}
	}
}

// place puts h where it belongs and reports whether it was not there.
func (s *hashSet) place(h uint64) bool {
	h |= 1
	mask := uint64(len(s.slots) - 1)
	for i := h * 0x9E3779B97F4A7C15 >> 32 & mask; ; i = (i + 1) & mask {
		switch s.slots[i] {
		case 0:
			s.slots[i] = h
			return true
		case h:
			return false
		}
	}
}

func (s *hashSet) has(h uint64) bool {
	if s.count == 0 {
		return false
	}
	h |= 1
	mask := uint64(len(s.slots) - 1)
	for i := h * 0x9E3779B97F4A7C15 >> 32 & mask; s.slots[i] != 0; i = (i + 1) & mask {
		if s.slots[i] == h {
			return true
		}
	}
	return false
}
