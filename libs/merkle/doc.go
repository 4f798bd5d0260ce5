// Package merkle compares what two nodes hold of the ring: digests of records, added up by leaves of hash
// ranges. It never reads a record from anywhere, nor decides which side is right.
//
// A digest is a number modulo 2^128, the sum over the records of a leaf; the root of a range is the sum of
// its leaves (Bellare and Micciancio, "A New Paradigm for Collision-Free Hashing", 1997: AdHash). So the
// order in which records are met does not matter, and a record that changes is taken out and put in again
// without looking at the others. A difference that is there is missed with a probability of about 2^-128,
// as long as nobody who can choose 2^40 records at will wants to hide it: nodes trust each other.
//
// The leaf of a token is its position within its range, so the leaves of ranges of any size hold about the
// same part of it, and both sides agree on them without talking.
package merkle
