package sstable

// ScanOptions says how a table is read from end to end.
type ScanOptions struct {
	// ChunkBytes is how much is read at once; 0 means 512 KiB: at that size a disk is busy with
	// transfer, not with requests, and eight inputs stay under 4 MiB.
	ChunkBytes int
	// DropBehind tells the kernel that what was read will not be read again, so that a scan does
	// not evict what readers need.
	DropBehind bool
	// OnRead is called with the length of each read of data before it is made; an error stops the
	// walk: to count, to throttle, to cancel. May be nil.
	OnRead func(n int) error
}

const defaultChunkBytes = 512 << 10

// NewScan returns an iterator for a walk over the whole table. It reads in large pieces into a
// buffer of its own and leaves the cache alone; keys and values are valid until the next
// positioning call.
func (r *Reader) NewScan(o ScanOptions) *Iter {
	if o.ChunkBytes <= 0 {
		o.ChunkBytes = defaultChunkBytes
	}
	it := r.NewIter()
	it.scan = &scan{o: o, r: r}
	return it
}

// scan is the buffer of a sequential walk.
type scan struct {
	o       ScanOptions
	r       *Reader
	chunk   []byte // bytes of the file from at on
	at      uint64
	scratch []byte // the block being walked, if it was packed
}

// block returns the content of a data block; it is valid until the next call. Its value blocks are
// in the chunk as well.
func (s *scan) block(r *Reader, h handle) ([]byte, error) {
	if h.offset < s.at || h.groupEnd() > s.at+uint64(len(s.chunk)) {
		if err := s.fill(h); err != nil {
			return nil, err
		}
	}
	return r.checkBlock(h, s.bytes(h), &s.scratch)
}

// bytes returns a block of the chunk as it is in the file.
func (s *scan) bytes(h handle) []byte { return s.chunk[h.offset-s.at : h.end()-s.at] }

// fill reads a chunk that begins with the block h.
func (s *scan) fill(h handle) error {
	s.drop()
	n := max(int(h.groupEnd()-h.offset), s.o.ChunkBytes)
	n = int(min(uint64(n), s.r.foot.dataEnd-h.offset))
	if s.o.OnRead != nil {
		if err := s.o.OnRead(n); err != nil {
			return err
		}
	}
	if cap(s.chunk) < n {
		s.chunk = make([]byte, n)
	}
	s.chunk, s.at = s.chunk[:n], h.offset
	if err := s.r.readAt(s.chunk, s.at); err != nil {
		s.chunk = s.chunk[:0]
		return err
	}
	return nil
}

// drop tells the kernel that the chunk is done with.
func (s *scan) drop() {
	if s.o.DropBehind && len(s.chunk) > 0 {
		s.r.f.DontNeed(int64(s.at), int64(len(s.chunk)))
	}
	s.chunk = s.chunk[:0]
}

func (s *scan) close() {
	if s != nil {
		s.drop()
	}
}
