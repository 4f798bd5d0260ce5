// Package compact merges tables into tables: a job goes in by value, a sorted run and its accounts
// come out. It never opens a manifest, lists a directory, looks at a clock or decides what to merge.
//
// # Which versions of a key survive
//
// The live snapshots cut the sequences into stripes: two entries are in one stripe if every
// snapshot, and the present, sees either both or none. Within a stripe only the newest state can be
// read, so there the versions of a key are folded, newest first:
//
//	Set     everything older in the stripe is dropped
//	Merge   is joined with the next older entry: Merge + Merge = Merge, Merge + Set = Set
//	Delete  everything older in the stripe is dropped; a Merge above it becomes a Set
//
// A range delete covers the entries of its stripe that are older than it: they are dropped. A Merge
// with a range delete below it in its stripe becomes a Set, because whoever sees the Merge sees the
// range delete, so nothing older counts. No join and no drop crosses the border of a stripe, and no
// join crosses a range delete.
//
// # What goes at the bottom
//
// Where the job is bottommost nothing of the key exists outside of it, not even a fragment in a
// memtable. There, going from the oldest stripe to the newest, as long as nothing older is kept: a
// Delete is dropped; a Merge becomes a Set; a Set of the newest stripe, which no snapshot sees, loses
// the siblings that are collectable before the job's cut, and goes altogether if none remains. A
// range delete goes where it is bottommost and in the oldest stripe: all it covered is gone. So at the
// bottom, without snapshots, only Sets are left.
//
// A job may carry cuts of hash ranges, sequences: then a record of a key that stands on the ring loses
// nothing unless the newest entry that was folded into it is at or below the key's cut, because only up
// to there every replica is known to have what this node has. A key without a cut keeps everything.
//
// # What a node does not own any more
//
// Job.Drop names hash ranges with sequences: entries of their keys that are not newer go, whatever they
// hold, as if the node had never had them. The sequence is a border of stripes for these keys, so that
// what stays is not joined with what goes. It needs a job below which nothing exists, and it goes from
// the oldest version to the newest, as collection does: what a snapshot sees stays, and what is above
// of it.
//
// Why nothing is resurrected: an entry that hides something (Set, Delete, range delete, tombstone)
// is dropped only if what it hides is dropped with it in the same job (same stripe), or does not
// exist (bottommost, nothing older kept).
//
// # Outputs
//
// Outputs are disjoint: cut between engine keys, never between versions of one, and range deletes
// are clipped at the cuts. Point entries are conserved: EntriesIn = EntriesOut + Shadowed + Joined +
// Collected + Dropped. Range deletes are not counted; they may be split and united.
package compact
