// Package sstable is the immutable, sorted table file: writer, reader, iterators, verifier. It never
// decides which version of a key counts, and it never looks into a value.
//
// A file, in this order (docs/formats/sstable.md has every byte):
//
//	header        32 bytes: magic, version, key id
//	data blocks   entries, ascending by internal key; long values in blocks of their own behind them
//	hash index    where the long values are, as a hint for point reads (package hashindex)
//	index blocks  partitions of the index; none when the index is one block
//	filter        blocked Bloom filter over the engine keys
//	range deletes
//	index         the whole index, or the index of the partitions
//	properties    what Meta says, and how the table was made
//	footer        128 bytes: where the other parts are, digest, version, magic
//
// Everything is a block with a type byte and a checksum behind it, except the header and the
// footer, which have their own. Blocks follow each other without gaps, so each byte of a file is
// under exactly one checksum, which also covers the place of its block: a block that a disk
// returned for another address is damage, too.
//
// Reading is safe from many goroutines. What a reader keeps in memory for its life (filter, top
// index, properties, range deletes) was checked at Open; everything else is checked each time it is
// read from the file. Bytes that do not check out are a *CorruptionError, never an answer.
package sstable
