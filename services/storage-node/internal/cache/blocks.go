package cache

import (
	"math/bits"
	"sync"

	"github.com/pairdb/pairdb/libs/sstable"
)

const (
	maxShards = 64
	// minShardBytes keeps shards large enough for the largest usual entries.
	minShardBytes = 4 << 20
)

// shardCount returns a power of two.
func shardCount(capacity int64) int {
	n := min(max(capacity/minShardBytes, 1), maxShards)
	return 1 << (bits.Len64(uint64(n)) - 1)
}

// Blocks is a cache of unpacked blocks by file and offset. Files are never changed and their numbers
// never used again, so its entries never become wrong.
type Blocks struct {
	shards []blockShard
	mask   uint64
	limit  int64
	share  int64 // of a shard, at full capacity
}

var _ sstable.BlockCache = (*Blocks)(nil)

type blockShard struct {
	mu sync.Mutex
	c  core[blockKey, blockEntry, *blockEntry]
	_  [64]byte // shards are written by every reader: keep them on lines of their own
}

type blockKey struct{ file, offset uint64 }

type blockEntry struct {
	key  blockKey
	data []byte
}

func (e *blockEntry) is(k blockKey) bool { return e.key == k }
func (e *blockEntry) drop()              {}

// NewBlocks returns a block cache of so many bytes; nil for 0 or less.
func NewBlocks(capacity int64) *Blocks {
	if capacity <= 0 {
		return nil
	}
	b := &Blocks{shards: make([]blockShard, shardCount(capacity))}
	b.mask = uint64(len(b.shards) - 1)
	for i := range b.shards {
		b.shards[i].c.init(capacity / int64(len(b.shards)))
	}
	b.share = b.shards[0].c.capacity
	b.limit = b.share / 4
	return b
}

// hash mixes file and offset (the finaliser of MurmurHash3).
func (k blockKey) hash() uint64 {
	h := k.file*0x9e3779b97f4a7c15 ^ k.offset
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func (b *Blocks) shard(hash uint64) *blockShard { return &b.shards[hash>>48&b.mask] }

// Get returns the block at an offset of a file, nil if it is not there. It allocates nothing.
func (b *Blocks) Get(file, offset uint64) []byte {
	if b == nil {
		return nil
	}
	k := blockKey{file, offset}
	hash := k.hash()
	s := b.shard(hash)
	s.mu.Lock()
	at, _ := s.c.find(hash, k)
	if at == 0 {
		s.c.metrics.Misses++
		s.mu.Unlock()
		return nil
	}
	s.c.metrics.Hits++
	s.c.touch(at)
	data := s.c.slots[at].e.data
	s.mu.Unlock()
	return data
}

// Put offers a block. Nobody changes it afterwards. Blocks larger than a quarter of a shard are
// refused.
func (b *Blocks) Put(file, offset uint64, block []byte) {
	if b == nil {
		return
	}
	k := blockKey{file, offset}
	hash := k.hash()
	s := b.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	bytes := int64(cap(block)) + s.c.overhead()
	if bytes > s.c.capacity/4 {
		s.c.metrics.Refused++
		return
	}
	if at, _ := s.c.find(hash, k); at != 0 {
		return
	}
	if at := s.c.insert(hash, bytes); at != 0 {
		s.c.slots[at].e = blockEntry{key: k, data: block}
	}
}

// SetCapacity changes the size of the cache, from 0 to the one that it was made with; what no longer
// fits goes at once.
func (b *Blocks) SetCapacity(capacity int64) {
	if b == nil {
		return
	}
	share := max(capacity, 0) / int64(len(b.shards))
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		s.c.resize(min(share, b.share))
		s.mu.Unlock()
	}
}

// MaxEntryBytes returns how large an entry may be, with its overhead, at full capacity.
func (b *Blocks) MaxEntryBytes() int64 {
	if b == nil {
		return 0
	}
	return b.limit
}

// Metrics returns the numbers of the cache.
func (b *Blocks) Metrics() (m Metrics) {
	if b == nil {
		return m
	}
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		m.add(s.c.snapshot())
		s.mu.Unlock()
	}
	return m
}
