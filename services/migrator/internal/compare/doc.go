// Package compare finds out in which records two nodes differ, and sends what one of them lacks, until
// what was compared is equal. It never decides what is compared with whom or when, and never takes two
// sides for equal that it has not compared.
//
// # How
//
//  1. Both sides hash the selection from one snapshot each, by ranges and leaves of ranges (Digest).
//  2. Ranges whose roots are equal are equal. Of the others the leaves are compared (Leaves), and of
//     leaves that differ the digest of each key (KeyDigests): two streams in key order, joined as they
//     come, so that memory does not grow with what differs.
//  3. Keys that differ are exchanged, at most 10,000 at a time: records are read as they are now (Fetch)
//     and joined into the other side (Ingest), durably, before anything is concluded from it.
//  4. Then their digests are compared again, as they are now (CompareKeys). What differs still is
//     written to meanwhile; it is exchanged again after a pause, a few times.
//
// # Why the answer is true
//
// A range is told as equal only if its roots were equal, or each key that differed was found equal
// after it. Records only ever grow by join, so whatever either snapshot held of the range is on both
// sides then. A range with a key that never was found equal, because it is written to all the time, is
// told apart: if each such record was read after the snapshot, joined into the other side, and found in
// what that side has then, the snapshots' part of it is on both sides too (Result.ExchangedRanges);
// otherwise nothing is claimed (Result.UnequalRanges).
package compare
