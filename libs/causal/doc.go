// Package causal decides which values of a key count: vector clocks, dots, siblings, their join and
// the bytes in which a record is stored. It never reads a clock, a disk or the network.
//
// # Order
//
// A sibling is a value with the clock that its writer had seen and, when a storage node coordinated
// the write, the dot of the write itself (dotted version vectors, Preguiça et al., "Dotted Version
// Vectors: Logical Clocks for Optimistic Replication", 2010). A sibling without a dot carries the
// whole clock that a coordinator made: a plain vector clock. Let full(a) be the clock of a with its
// dot. a is below b (b has seen a) if
//
//	b has a dot:  full(a) ≤ clock(b)
//	b has none:   full(a) ≤ clock(b)  and  full(a) ≠ clock(b)
//
// This is a strict partial order on every input that Validate accepts:
//
//  1. Irreflexive. With a dot: the dot is not in the sibling's own clock, so full(a) ≤ clock(a)
//     fails. Without: full(a) = clock(a).
//  2. Transitive. a below b below c gives full(a) ≤ clock(b) ≤ full(b) ≤ clock(c). If c has no dot,
//     full(b) ≠ clock(c), so full(b) is strictly less, and so is full(a).
//
// Join keeps the maximal elements of the union, so it is commutative, associative and idempotent
// whatever the input: the maximal elements of a union do not depend on how it was grouped.
// Siblings that are equal in dot, clock, tombstone mark and value are one element; what else they
// carry (timestamp, expiry, when a clock entry was last raised) is joined by maximum, which is a
// semilattice of its own.
//
// Two plain clocks that are equal with different values are incomparable: both are kept.
//
// # Record format, version 1
//
//	record  = version meta-length meta values
//	version = 0x01
//	meta    = ids sibling-count sibling*
//	ids     = count (length bytes)*              ascending, each used at least once
//	sibling = flags [dot] clock timestamp [expiry] [value-length]
//	flags   = u8: 1 tombstone, 2 has a dot, 4 has an expiry; others refused
//	dot     = id-index counter
//	clock   = count (index-gap counter raised)*  ascending by id
//	raised  = 0 unknown, else 1 + zigzag(seconds of timestamp - raised)
//	values  = the values of all siblings, in order
//
// timestamp is eight bytes, little endian; every other number is an unsigned varint of the shortest
// form. index-gap is the index in ids for the first entry, then the distance from the previous one
// less one. A tombstone has neither expiry nor value length. Siblings stand in ascending order of
// (dot, clock, tombstone, value) and none is below another. So equal records have equal bytes and a
// reader of the metadata touches no value. Golden bytes: testdata/golden.txt; the same text with
// an example: docs/formats/causal.md.
package causal
