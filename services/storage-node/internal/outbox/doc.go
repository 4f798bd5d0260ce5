// Package outbox keeps the events of a node, in order and durably, until they are published. It never
// holds anybody up: who has an event hands it over and goes on, and what does not fit is dropped,
// oldest first, and counted.
//
// # Format
//
// <data directory>/outbox/events is a file of frames of package record (epoch 1, with positions):
//
//	type 1  an event: JSON, see stored
//	type 2  a state: floor (8 bytes, little endian) ‖ last (8) ‖ clean (1)
//
// Events with a sequence up to floor are done with: published, or dropped. last is the newest sequence
// that was given. A state with clean = 1 at the end says that the file was closed, so that no number
// above last was given.
//
// The file is written anew (under a temporary name, synced, renamed) when the node starts and when
// most of it is done with; otherwise events are appended and synced, and states are appended without a
// sync: what a crash takes back of them is published again under the same id, which the stream drops.
//
// # What a crash leaves
//
//   - An event whose Add returned, or that a reader of Next was given for longer than one sync, is
//     there, with its id, before and after those that it was before and after.
//   - A torn tail is cut. Damage before it ends the file there: what can be read is kept, the rest is
//     lost and reported. Events are hints; a node does not stay away because of them.
//   - Numbers may have been given that are in no file: at most one batch. The next start leaves out as
//     many, so that no two events have one sequence.
//
// # When the disk does not take it
//
// The outbox goes on in memory, says so, and tries again every few seconds with a whole new file. A file
// that can't be read at the start is replaced too.
package outbox
