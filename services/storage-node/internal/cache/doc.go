// Package cache keeps what reads need often: unpacked blocks of tables, and whole rows. It never
// knows more than the tables and memtables do, so losing it loses nothing, and it never hands out a
// row that a newer write has replaced.
//
// Both caches are the same core: shards with a lock each, bounded in bytes including their own
// overhead, with S3-FIFO as policy (Yang et al., "FIFO queues are all you need for cache eviction",
// SOSP 2023): new entries enter a small queue (a tenth of the space); those that were hit while
// in it, or that come back soon after they left it, go to the main queue, which gives every hit
// entry another round. A scan passes through the small queue and does no harm. A hit changes one
// counter in the entry; every operation costs O(1), amortised over the hits that give an entry
// another round; nothing is allocated on a hit.
//
// Nil caches are caches of size 0: they keep nothing.
//
// All methods may be called from any goroutine.
package cache

// Metrics are the numbers of a cache.
type Metrics struct {
	Hits, Misses uint64
	// Inserts counts what was taken, Refused what was not: larger than MaxEntryBytes, or, for a
	// row, read before a write that came first.
	Inserts, Refused uint64
	Evictions        uint64
	// Bytes is what the entries take, with their overhead; it is at most CapacityBytes.
	Bytes, CapacityBytes int64
	Entries              int64
}

func (m *Metrics) add(o Metrics) {
	m.Hits += o.Hits
	m.Misses += o.Misses
	m.Inserts += o.Inserts
	m.Refused += o.Refused
	m.Evictions += o.Evictions
	m.Bytes += o.Bytes
	m.CapacityBytes += o.CapacityBytes
	m.Entries += o.Entries
}
