// Package manifest is the durable list of what belongs to the store: which tables stand at which
// level, from where the commit log is needed, which numbers are used up. It never deletes a file
// other than its own, and never opens a table.
//
// A Version is one state of the list, immutable and counted by its users. An Edit leads from one
// version to the next. A Set appends edits to the current manifest file and publishes versions.
// The byte layout is in docs/formats/manifest.md.
//
// # Why a crash loses nothing
//
//  1. Apply returns nil only after the edit's frame was synced. The version with the edit becomes
//     visible after that, so nobody acts on an edit that a crash can take back.
//  2. Whoever applies an edit has synced the tables that it adds, and their directory, before; so a
//     manifest never names a table that a crash can lose.
//  3. Tables are reported obsolete when no version and no pin refers to them. The version that
//     dropped them was published after its edit was synced, so no manifest on disk names them.
//  4. An edit that was written but not synced may or may not survive. Nobody was told that it was
//     applied; if it survives it is whole (checksum), and its tables are there (2). So that they are
//     not deleted in the process that failed, a failed write or sync makes the set refuse
//     everything from then on; only ErrNoSpace, which the set undoes and syncs, does not.
//  5. A new manifest file replaces the old one in numbered steps, each after the one before is
//     durable: (1) write the whole state to MANIFEST-n+1 and sync it, (2) sync the directory,
//     (3) create the marker that names it, (4) sync the directory, (5) remove the old marker, then
//     the old file. Of several markers the highest counts; the file of the highest is complete by
//     (1) and (2).
//  6. Open reads the file that the marker names. A tail that is torn belongs to an edit that was
//     never acknowledged and is left out; damage that was once durable is an error. Open then
//     always continues in a new file, so nothing is ever appended behind a torn tail. (Without space
//     for one, the tail is cut and the cut synced.)
//
// # Invariants of a version
//
//  1. A number stands for one table, at one level.
//  2. Tables of level 0 are in the order of their largest sequence; the newest is the last.
//  3. Tables of each deeper level are in key order and disjoint; no engine key is in two of them.
//  4. For each engine key, entries in a level above are newer than those below. (Not to be seen from
//     the list alone; the picker's choices keep it.)
//
// # Who locks
//
// Current, Ref and Unref take no lock. Apply may be called from any goroutine; calls are one after
// the other. Options.Obsolete is called by whoever gives back the last reference, which may be Apply
// with its lock held: it must not call the set, and should only take note.
package manifest
