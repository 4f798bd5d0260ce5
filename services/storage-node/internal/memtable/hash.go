package memtable

import (
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
)

// Point reads go through a hash table beside the skiplist: a bucket is one word, the newest node of
// its chain (low 32 bits) and a bit for each of 32 classes of hashes that occur in the chain (high
// 32 bits), so most misses end after one cache line.

const (
	// arenaBytesPerBucket: a 64 MiB table gets 256 Ki buckets, 2 MiB.
	arenaBytesPerBucket = 256
	// maxChain bounds the walk through one bucket, so that keys chosen to collide cost a skiplist
	// search and not the length of the chain.
	maxChain = 16
)

// Hash is the hash that GetHashed and FindHashed expect.
func Hash(user []byte) uint64 { return xxhash.Sum64(user) }

func classBit(hash uint64) uint64 { return 1 << (32 + (hash>>27)&31) }

func (t *Table) index(n ref, hash uint64) {
	b := &t.buckets[hash&t.bucketMask]
	old := atomic.LoadUint64(b)
	*t.arena.u32(n, nodeChain) = uint32(old)
	atomic.StoreUint64(b, old&^(1<<32-1)|classBit(hash)|uint64(n))
}

// lookup returns the node of user, or 0.
func (t *Table) lookup(hash uint64, user []byte) ref {
	bucket := atomic.LoadUint64(&t.buckets[hash&t.bucketMask])
	if bucket&classBit(hash) == 0 {
		return 0
	}
	n := ref(uint32(bucket))
	for range maxChain {
		if n == 0 {
			return 0
		}
		if *t.arena.u32(n, nodeHash) == uint32(hash>>32) && string(t.arena.nodeKey(n)) == string(user) {
			return n
		}
		n = ref(*t.arena.u32(n, nodeChain))
	}
	if n == 0 {
		return 0
	}
	if at, _ := t.findGE(user); at != 0 && string(t.arena.nodeKey(at)) == string(user) {
		return at
	}
	return 0
}
