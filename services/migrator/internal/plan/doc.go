// Package plan decides what a migrator does without being told, and has it done: a node that drains
// gives its ranges away, or gets back what it gave when that is called off, one that joins gets its ranges, and replicas are compared again and again. It
// moves no data itself: moves are made at nodes and carried out by their migrators; only what differs
// between two replicas is exchanged here (package compare). It keeps nothing: what is under way is read
// from the nodes, so a migrator that dies goes on where it was.
//
// The decisions are pure functions (drain.go, bootstrap.go, schedule.go); the loops that act on them
// look at the views of the own node (views.go), do the next step, and look again after each change.
package plan
