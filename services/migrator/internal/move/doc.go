// Package move takes one move of data through its life: it does what the node says is next, and tells
// the node what was reached. It never decides that a move is to be made, and stores nothing: a Runner
// that dies is replaced by one that knows only what the node has.
//
// # States
//
//	PLANNED    ask the target who it is; exchange tenants; Pin
//	PINNED     → COPYING
//	COPYING    Export from the cursor → Ingest; acknowledged cursors are stored
//	TAILING    Follow → Ingest, in the background from here to the end
//	VERIFYING  compare both sides until they are equal; remember the keys that change meanwhile
//	FENCED     Prepare, Fence, send all up to the fence, compare what changed, Accept
//	ACCEPTED   Give
//	COMMITTED  Release
//
// # Why nothing is lost at a hand-over
//
//  1. Accept is sent only by the process that has verified: it compared a snapshot of the source with
//     the target, and remembers each key that was forwarded since before that snapshot. A process that
//     finds a fence of another lifts it and verifies anew.
//  2. Before Accept is sent the epoch is stored with the move, as a change of the version that this
//     process has seen. So Accept is never sent for a move that was called off, and whoever finds a
//     fence without an epoch knows that it never was.
//  3. Between the fence and Accept nothing is written at the source. All up to the fence is
//     acknowledged by the target, and each remembered key was found equal or contained there.
//  4. Once Accept may have been sent the fence stays until the target has said what became of it.
//     Give follows Accept, and is recorded by the source before it redirects anybody.
//
// # Errors
//
// What may pass by itself is tried again for ever, with a growing pause, and said in the move's reason:
// a node that is away, a broken stream, a full disk at the target. What a person must solve makes the
// move FAILED: another cluster, another node at the address, damaged records at the source.
package move
