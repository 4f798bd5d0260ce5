// Package commitlog is the write-ahead log: frames of bytes in numbered segment files, appended by one
// leader and synced for many. It never interprets a payload and never retries a sync.
//
// # Files
//
// Segments are log/NNNNNN.log (decimal, at least six digits), preallocated and used again. A segment
// is frames of libs/record with their positions in the checksum; the epoch is the segment's number, so
// what a recycled file held before does not exist (docs/formats/commitlog.md):
//
//	header frame ‖ frames of the owner … ‖ [close frame] ‖ zeros or older bytes
//
// The header frame names the format version, the key id (0: not encrypted), the segment's number, and
// number and length of the segment before it.
//
// # Why what was acknowledged is replayed, in order, and nothing else
//
//  1. One file takes frames at a time. Before the header of the next segment is written, the old one
//     is synced up to its end; the header is synced before the first frame behind it is written. So
//     a valid header proves that the segment before it is whole up to the length that it names:
//     everything that does not fit there is damage.
//  2. Numbers only rise, and a number is used by one file in its whole life: after a crash the log
//     continues above every number that is in the directory, and a new name is durable (its directory
//     is synced) before the file is written. So a frame with the right epoch and position was
//     written for this place in this segment.
//  3. The newest segment with a valid header is the head; its headers lead back to all others. Files
//     that they do not name (prepared, or given up after a failed write) do not count.
//  4. In the head, the end is where no valid frame stands; libs/record tells a torn tail from damage
//     by the synced offsets in later frames. The tail is cut: nothing is ever appended behind a
//     cut, the next frame goes to a new segment, whose header names the cut.
//  5. What was replayed must not vanish in a later crash: Start writes the head's bytes behind the
//     last proven synced offset once more and syncs them, before a new segment can name them. (Only
//     syncing is not enough: after a sync that failed, the page cache may call pages clean that the
//     disk does not have.)
//  6. A write that fails seals the segment at the last good frame: 4 applies. A sync that fails
//     poisons the log: nothing is known any more about what it covered.
//  7. From the moment that the header of a successor was attempted, the old segment takes no more
//     frames, even if the attempt failed: it may be on the disk all the same.
//  8. No two names are one file. A crash may leave a file that was being renamed under both names, but
//     the new one has no header yet (2) and a number above the head's: Start removes what is above the
//     head, and the sync of the directory in 2 makes that durable before the file is written again.
//
// # Concurrency
//
// Reserve and Append are for one goroutine at a time (the leader); everything else is safe from any.
// Lock order: syncMu, mu.
package commitlog
