package cache

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/pairdb/pairdb/libs/ikey"
)

// Rows is a cache of encoded records by engine key, kept right by sequences.
//
// A row carries a sequence at which it was the state of its key. It is put there by a reader, with
// the sequence of its read (Insert), or by the committer, with the sequence of the write (Update).
// The committer calls Update or Invalidate for every write, InvalidateRange for every range delete
// and ingest, before the sequence becomes readable. Then a row that is in the cache is the state of
// its key now, and was at every sequence from its own on.
//
// A read that raced with a write must not put the old state back after the write went by. So a
// shard remembers the sequence of the last write for each of its classes of keys (floors), also of
// keys that are not cached; an Insert from a read below it is refused. Two keys in one class cost an
// Insert now and then, never a wrong answer.
type Rows struct {
	shards []rowShard
	mask   uint64
	limit  int64
	share  int64 // of a shard, at full capacity
	admits bool  // whatever is offered
	ranges atomic.Pointer[rangeSet]
	mu     sync.Mutex // writers of ranges
}

type rowShard struct {
	mu     sync.Mutex
	c      core[[]byte, row, *row]
	floors []ikey.Seq
	spare  spares
	full   int64 // what c may hold at full capacity; immutable
	_      [64]byte
}

// row is an entry: buf holds the key, then the value.
type row struct {
	buf    []byte
	keyLen int
	seq    ikey.Seq // the state of the key at seq
	ranges uint64   // generation of the ranges that it is known not to be hit by
	spare  *spares
}

func (r *row) is(k []byte) bool { return string(r.buf[:r.keyLen]) == string(k) }
func (r *row) drop()            { r.spare.put(r.buf) }

// NewRows returns a row cache of so many bytes; nil for 0 or less.
func NewRows(capacity int64) *Rows {
	if capacity <= 0 {
		return nil
	}
	r := &Rows{shards: make([]rowShard, shardCount(capacity))}
	r.mask = uint64(len(r.shards) - 1)
	share := capacity / int64(len(r.shards))
	// A floor for each KiB: about one for each row.
	floors := 1 << bits.Len64(uint64(max(share>>10, 1<<8)-1))
	for i := range r.shards {
		s := &r.shards[i]
		s.floors = make([]ikey.Seq, floors)
		s.spare.max = share / 32
		s.full = max(share-int64(floors)*8-s.spare.max, 0)
		s.c.init(s.full)
	}
	r.share = share
	r.limit = r.shards[0].c.capacity / 4
	r.ranges.Store(&rangeSet{})
	return r
}

// AdmitAll makes a full cache take what it is offered at once. It is for who made the cache, before its
// use.
func (r *Rows) AdmitAll() {
	if r != nil {
		r.admits = true
	}
}

// Hash is the hash of a key that the …Hashed methods expect: that of the tables' filters.
func Hash(key []byte) uint64 { return xxhash.Sum64(key) }

// bytes is what a row of so many bytes takes of the cache.
func (s *rowShard) bytes(size int) int64 { return int64(roundUp(size)) + s.c.overhead() }

func (r *Rows) shard(hash uint64) *rowShard { return &r.shards[hash>>48&r.mask] }

func (s *rowShard) floor(hash uint64) *ikey.Seq {
	return &s.floors[hash>>24&uint64(len(s.floors)-1)]
}

// Get appends the record of key to dst if the cache has it and it was the state of key at sequence
// at, which the caller loaded before. It allocates only if dst is too small.
func (r *Rows) Get(key, dst []byte, at ikey.Seq) (record []byte, ok bool) {
	if r == nil {
		return dst, false
	}
	return r.GetHashed(Hash(key), key, dst, at)
}

// GetHashed is Get with Hash(key).
func (r *Rows) GetHashed(hash uint64, key, dst []byte, at ikey.Seq) (record []byte, ok bool) {
	if r == nil {
		return dst, false
	}
	s := r.shard(hash)
	s.mu.Lock()
	e := r.live(s, hash, key)
	if e == nil || e.seq > at {
		s.c.metrics.Misses++
		s.mu.Unlock()
		return dst, false
	}
	s.c.metrics.Hits++
	dst = append(dst, e.buf[e.keyLen:]...)
	s.mu.Unlock()
	return dst, true
}

// live returns the row of key, and counts a hit; a row that a range hit is dropped instead.
func (r *Rows) live(s *rowShard, hash uint64, key []byte) *row {
	at, place := s.c.find(hash, key)
	if at == 0 {
		return nil
	}
	e := &s.c.slots[at].e
	if ranges := r.ranges.Load(); e.ranges != ranges.generation {
		if ranges.hit(key, e.seq, e.ranges) {
			s.c.remove(at, place)
			return nil
		}
		e.ranges = ranges.generation
	}
	s.c.touch(at)
	return e
}

// Insert offers the record that a read at sequence at found. It is refused if a write or a range
// with a newer sequence went by. A row that is there stays: it is right already. A full cache takes
// it when it is offered again, or at once after AdmitAll.
func (r *Rows) Insert(key, record []byte, at ikey.Seq) {
	if r == nil {
		return
	}
	hash := Hash(key)
	s := r.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if at < *s.floor(hash) || r.ranges.Load().hit(key, at, 0) {
		s.c.metrics.Refused++
		return
	}
	if r.live(s, hash, key) != nil || !r.admits && !s.c.admit(hash, s.bytes(len(key)+len(record))) {
		return
	}
	r.put(s, hash, key, record, at)
}

// Update tells of a write of key: from sequence seq on, record is its state. The row is replaced if
// it is there; otherwise it is only taken with insert, which pays when what is written is soon read.
func (r *Rows) Update(key, record []byte, seq ikey.Seq, insert bool) {
	if r == nil {
		return
	}
	hash := Hash(key)
	s := r.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	newest := r.note(s, hash, seq)
	at, place := s.c.find(hash, key)
	if at != 0 {
		e := &s.c.slots[at].e
		if e.seq >= seq {
			return
		}
		if e.replace(record) {
			e.seq, e.ranges = seq, 0
			return
		}
		s.c.remove(at, place)
		insert = true
	}
	// Of two writes that come in the wrong order, or before a range that is already known, the
	// newer one counts.
	if insert && newest && !r.ranges.Load().hit(key, seq, 0) {
		r.put(s, hash, key, record, seq)
	}
}

// Invalidate tells of a write of key with sequence seq whose result is not known: the row goes.
func (r *Rows) Invalidate(key []byte, seq ikey.Seq) {
	if r == nil {
		return
	}
	hash := Hash(key)
	s := r.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	r.note(s, hash, seq)
	if at, place := s.c.find(hash, key); at != 0 && s.c.slots[at].e.seq < seq {
		s.c.remove(at, place)
	}
}

// note raises the floor of a key; it reports whether seq is at least what it was.
func (r *Rows) note(s *rowShard, hash uint64, seq ikey.Seq) bool {
	floor := s.floor(hash)
	if seq < *floor {
		return false
	}
	*floor = seq
	return true
}

// InvalidateRange tells of a range delete or an ingest: rows of keys in [start, end) that are older
// than seq go, at the latest when they are asked for. A nil end has no bound. It costs nothing per
// row.
func (r *Rows) InvalidateRange(start, end []byte, seq ikey.Seq) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ranges.Store(r.ranges.Load().with(start, end, seq))
}

// Clear makes all rows older than seq go.
func (r *Rows) Clear(seq ikey.Seq) { r.InvalidateRange(nil, nil, seq) }

// put takes a row that is not there.
func (r *Rows) put(s *rowShard, hash uint64, key, record []byte, seq ikey.Seq) {
	size := len(key) + len(record)
	bytes := s.bytes(size)
	if bytes > s.c.capacity/4 {
		s.c.metrics.Refused++
		return
	}
	at := s.c.insert(hash, bytes)
	if at == 0 {
		return
	}
	buf := append(append(s.spare.get(size), key...), record...)
	s.c.slots[at].e = row{buf: buf, keyLen: len(key), seq: seq, spare: &s.spare}
}

// replace writes another record into the memory of the row, if it fits and is not much too large.
func (r *row) replace(record []byte) bool {
	size := r.keyLen + len(record)
	if roundUp(size) != cap(r.buf) {
		return false
	}
	r.buf = append(r.buf[:r.keyLen], record...)
	return true
}

// SetCapacity changes the size of the cache, from 0 to the one that it was made with; what no longer
// fits goes at once. What is remembered of writes stays: it keeps old rows out.
func (r *Rows) SetCapacity(capacity int64) {
	if r == nil {
		return
	}
	share := min(max(capacity, 0)/int64(len(r.shards)), r.share)
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		s.spare.setMax(share / 32)
		s.c.resize(min(max(share-int64(len(s.floors))*8-share/32, 0), s.full))
		s.mu.Unlock()
	}
}

// MaxEntryBytes returns how large a row may be, with its key and overhead, at full capacity.
func (r *Rows) MaxEntryBytes() int64 {
	if r == nil {
		return 0
	}
	return r.limit
}

// Metrics returns the numbers of the cache.
func (r *Rows) Metrics() (m Metrics) {
	if r == nil {
		return m
	}
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		m.add(s.c.snapshot())
		m.Bytes += s.spare.bytes
		m.CapacityBytes += s.spare.max
		s.mu.Unlock()
	}
	return m
}
