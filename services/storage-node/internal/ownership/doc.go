// Package ownership is who owns which hash ranges, as far as this node has a say in it, and which requests
// follow from that are refused. It never moves data and never decides where a range goes.
//
// # Facts
//
// What is known lives in the system tenant "_ownership", as JSON. The record "ranges" is the ground that
// the node stands on: the ranges that the declared ring gives it, those that it gave to other nodes, those
// that it took over and the ring does not give it yet, the highest epoch of each range, and its residue.
// The record "move/<id>" is what this node said in a hand-over, under the id of the move. A change is
// one atomic batch, durable before it counts; the requests that it allows come after it, and those that
// it refuses before its answer. So a call that was broken off by a crash is simply repeated.
//
// # A hand-over
//
// At no moment do two nodes accept writes of a range that is handed over, because each step is durable
// at one node before the next one is taken at the other:
//
//  1. Prepare at the target: it refuses reads and writes of the ranges.
//  2. Fence at the source: it refuses their writes. The fence stands before Fence looks: it takes and
//     releases every lock under which writes are admitted and applied, so each write that was admitted
//     before has a sequence when Fence reads the newest one. Batches from other nodes hold a lock of
//     their own from admission on, which Fence takes as well.
//  3. Accept at the target, with an epoch above all known ones, when it has everything up to the fence.
//  4. Give at the source: the ranges are the target's, and its requests are answered with NOT_OWNER.
//
// Before 3, Decline and Lift end it. After it only another move brings the ranges back, or the ring: when it
// gives them anew, when the new owner is gone, or when it names that one as a replica beside this node.
//
// # Residue
//
// A range that is lost, by Give or by a change of the declared ring, leaves its data behind: the residue,
// with the newest sequence that belongs to it and the time. When the node is to have the range again,
// the residue may know keys whose deletion everybody has forgotten. That takes longer than the grace:
// residue that is younger, with an allowance for clocks, is harmless, and simply belongs to the range
// again. Older residue is dropped first. It is never dropped by a change of the ring alone, but when
// another node begins to send or to compare what it has of the range; until then requests of the range
// are refused. Where the ring knows no other replica there is nothing better than the residue, and it
// stays. A drop that began is noted first, and its ranges count as old however young they are.
//
// # Another incarnation
//
// A data directory that was restored or adopted has a new incarnation. The hand-overs of the old one mean
// nothing to it and are forgotten; its residue and epochs stay.
package ownership
