// Package engine is the database of one storage node: an LSM tree of encoded records under engine
// keys, durable, crash safe and bounded. It never knows a wire, a clock, a random source or an
// operating system of its own: Options bring them.
//
// # Parts
//
// A write goes through the commit queue (write.go, commit.go): a leader takes the waiting batches as
// one group, checks conditions, gives out sequences, writes one frame to the commit log, inserts into
// the active memtable and wakes the group; durability is one fdatasync for as many as wait
// (durable.go). A group that waits for it is applied by one member while another one syncs. Full memtables become tables of level 0 (flush.go), tables are merged by jobs that
// schedule.go offers on the board and install.go brings into the tree with one manifest edit.
// A read takes the current read state (readstate.go) and asks memtables, then tables (get.go,
// iter.go).
//
// # Order of durable steps
//
//  1. Log before memtable: an entry is inserted after its frame is written.
//  2. Synced before visible: under SyncGroup readers see a sequence when its frame is durable.
//  3. Synced before flushed: a memtable is flushed when its log is durable, so tables never hold
//     what the log may have lost.
//  4. Table file, fsync; directory, fsync; then the manifest edit that names it, fsync: the commit
//     point. What no edit names is deleted at the next open.
//  5. The edit of a flush carries the log floor and the flushed sequence; the log is trimmed
//     after it, never before.
//  6. Ingest: tables durable; marker in the commit log durable, for the change feed; then the edit:
//     the commit point. A marker without an edit counts for nothing.
//  7. Files go only when no version, no job, no checkpoint and no tail pin needs them.
//
// # Locks, outermost first
//
//	ingestMu      one ingest at a time
//	leadership    of the commit queue: the only writer of log, memtable and sequences
//	mu            memtable list, versions, scheduling; never held over disk operations
//	              except manifest edits' bookkeeping
//	editMu        one manifest edit at a time; taken before mu
//	queue.mu, durable.mu, snapshots.mu, space.mu   leaves
package engine
