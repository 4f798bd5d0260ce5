// Package iterator is how sorted entries are walked, and how several walks are merged into one. It
// never decides which of several versions of a key counts.
package iterator

import "github.com/pairdb/pairdb/libs/ikey"

// Iterator walks entries in the order of ikey.Compare, in both directions.
//
// Positioning calls report whether the iterator stands on an entry. Key and Value are valid until
// the next positioning call or Close. After a positioning call returned false, Err says whether
// that was the end or a failure; a failed iterator stays failed until it is positioned absolutely
// (First, Last, SeekGE, SeekLT). An iterator is for one goroutine.
type Iterator interface {
	// First moves to the smallest entry.
	First() bool
	// Last moves to the largest entry.
	Last() bool
	// SeekGE moves to the smallest entry that is not less than k.
	SeekGE(k ikey.Key) bool
	// SeekLT moves to the largest entry that is less than k.
	SeekLT(k ikey.Key) bool
	// Next moves one entry forward; only from an entry.
	Next() bool
	// Prev moves one entry backward; only from an entry.
	Prev() bool
	// Valid reports whether the iterator stands on an entry.
	Valid() bool
	// Key returns the internal key of the entry.
	Key() ikey.Key
	// Value returns the value of the entry. It may have to be read: if that fails it is nil, the
	// iterator stands nowhere and Err says why.
	Value() []byte
	// Err returns the failure that stopped the walk, or nil.
	Err() error
	// Close releases what the iterator holds and returns Err. It is idempotent.
	Close() error
}
