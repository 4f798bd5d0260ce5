// Package moves keeps the moves and drains of a node, durably: what is to go where, how far it is, and
// what the node wants to be declared as. It never moves a record itself, nor decides who owns one.
//
// # Records
//
// The system tenant "_moves" has four kinds of records, all in JSON with a version:
//
//	move/<id>    where a move stands; written at each durable change
//	what/<id>    what it moves; written once, together with the first move/<id>
//	drain/<id>   where a drain stands
//	wanted       what the node wants to be declared as
//
// What changes together is written in one batch before it counts: what was told to anybody is never taken
// back by a crash. Progress is kept in memory alone: a count that is lost costs nothing.
//
// # Who changes what
//
// The node serves while its migrator is dead, and the migrator drives while nobody looks. So each change
// names the version that it is about (Advance), and which state may follow which is a table (Follows), not
// a habit of callers. Four steps are not the migrator's word but the node's own act, and are noted by the
// calls that do them: MarkPinned, MarkFenced, MarkGiven, MarkReleased.
//
//	PLANNED → PINNED → COPYING → TAILING ⇄ VERIFYING → COMMITTED → RELEASED          not handed over
//	PLANNED → PINNED → COPYING → TAILING ⇄ VERIFYING → FENCED → ACCEPTED → COMMITTED → RELEASED
//	PLANNED → VERIFYING → COMMITTED → RELEASED                                        repair
//
// Any state before RELEASED may fail and be resumed where it stood. A move that is begun anew, because its
// place in the log is lost, returns to PLANNED.
//
// # Why a cancel is safe
//
// Before FENCED nobody but the source owns the range: a cancel counts at once, and a fence that comes after
// it is refused. From FENCED on the target may have taken the range without the source knowing it: the
// fence must hold until the target has declined. So a cancel only marks the move (Cancelling); it is
// CANCELLED when the fence is lifted (MarkLifted), which is done after the target declined. If the target
// had accepted, the move goes on, because there is no other truth any more. From ACCEPTED on a cancel is
// refused.
//
// # What is remembered
//
// At most MaxActive moves are under way. Of those that are over the last MaxEnded are remembered, and less
// if what they say takes more than MaxEndedBytes; the oldest is forgotten first.
//
// # Damage
//
// Records that can't be read are left out and reported: the node serves. A move that is not known any more
// is not carried on, and holds nothing; making it again writes its record anew.
package moves
